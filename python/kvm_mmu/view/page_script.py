"""Style and script of the pages for a browser; both are optional to a reader: without them everything is there."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8881; --mark: #0072b2; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --mark: #6bb5ec; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 76rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0.5rem 0; } h2 { font-size: 1.2rem; margin: 2rem 0 0.5rem; }
h3 { font-size: 1rem; margin: 1rem 0 0.25rem; }
p { margin: 0.4rem 0; }
a { color: var(--mark); }
code, pre, td { font-variant-numeric: tabular-nums; }
pre { white-space: pre-wrap; background: var(--soft); padding: 0.4rem 0.6rem; border-radius: 4px; margin: 0.4rem 0; }
:focus-visible { outline: 2px solid var(--mark); outline-offset: 2px; }
:target { background: color-mix(in srgb, var(--mark) 15%, transparent); scroll-margin-top: 5rem; }
section.step:target { background: none; }
.wide { overflow-x: auto; max-width: 100%; margin: 0.4rem 0; }
table { border-collapse: collapse; font-size: 14px; overflow-wrap: normal; }
caption { text-align: left; padding: 0.2rem 0; color: color-mix(in srgb, CanvasText 75%, Canvas); }
th, td { padding: 0.15rem 0.6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { vertical-align: bottom; font-weight: 600; }
td.n, th.n { text-align: right; }
th button { font: inherit; color: inherit; background: none; border: 0; padding: 0; text-align: inherit; }
th button, summary { cursor: pointer; }
th button:hover { text-decoration: underline; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
th a { text-decoration: none; font-weight: 400; }
figure { margin: 1rem 0; }
figcaption { margin: 0.2rem 0; color: color-mix(in srgb, CanvasText 75%, Canvas); font-size: 14px; }
.picture { overflow: auto; max-width: 100%; background: #fff; border: 1px solid var(--line); border-radius: 4px; }
.picture svg { display: block; max-width: 100%; height: auto; }
.zoom button, .steps button { font: inherit; min-width: 2rem; }
.zoom output { margin: 0 0.4rem; }
.steps { position: sticky; top: 0; z-index: 1; background: Canvas; padding: 0.5rem 0; }
.steps { border-bottom: 1px solid var(--line); }
.steps[hidden] { display: none; }
.steps .row { display: flex; gap: 0.5rem; align-items: center; }
.steps input { flex: 1 1 auto; min-width: 4rem; max-width: 46rem; }
.steps output { display: block; font-weight: 600; min-height: 1.5em; }
section.step { border-top: 1px solid var(--line); padding-bottom: 1rem; scroll-margin-top: 6rem; }
.guided section.step { border-top: 0; }
.guided section.step > h3 { position: absolute; clip-path: inset(50%); width: 1px; height: 1px; overflow: hidden; }
.contents ol { columns: 18rem; padding-left: 1.2rem; margin: 0.3rem 0; list-style: none; }
dt { font-weight: 600; font-family: ui-monospace, monospace; font-size: 14px; } dd { margin: 0 0 0.3rem 1.5rem; }
dl { columns: 26rem; column-gap: 2rem; } dl > div { break-inside: avoid; }
.bad { color: var(--bad); font-weight: 600; }
@media print { .steps, .zoom { display: none; } section.step[hidden] { display: block; } }
"""

SCRIPT = """
"use strict";
const made = (name, text, label) => {
  const element = document.createElement(name);
  element.textContent = text;
  if (name === "button") element.type = "button";
  if (label) element.setAttribute("aria-label", label);
  return element;
};
const key = text => {
  const number = Number(text.replaceAll(",", ""));
  return text === "" || text === "-" ? null : Number.isNaN(number) ? text : number;
};
const order = (a, b) =>
  typeof a === "number" && typeof b === "number" ? a - b
  : typeof a === "number" ? -1 : typeof b === "number" ? 1 : a.localeCompare(b);
for (const table of document.querySelectorAll("table.sorts")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const name = head.querySelector("span");
    const button = made("button", name.textContent);
    button.title = "sort";
    name.replaceWith(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows].map(row => [key(row.cells[column].textContent), row]);
      // What is absent comes last, whichever way.
      rows.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null) : order(a, b) * (down ? -1 : 1));
      table.tBodies[0].append(...rows.map(([, row]) => row));
    });
  });
}
for (const figure of document.querySelectorAll("figure")) {
  const svg = figure.querySelector("svg");
  const bar = made("div", "");
  bar.className = "zoom";
  const told = made("output", "whole");
  let scale = 1;
  const zoom = to => {
    scale = Math.min(8, Math.max(1, to));
    svg.style.maxWidth = scale === 1 ? "100%" : "none";
    svg.style.width = scale === 1 ? "" : `${scale * 100}%`;
    told.textContent = scale === 1 ? "whole" : `${Math.round(scale * 100)} %`;
  };
  const less = made("button", "\\u2212", "zoom out"), more = made("button", "+", "zoom in");
  less.addEventListener("click", () => zoom(scale / 1.5));
  more.addEventListener("click", () => zoom(scale * 1.5));
  bar.append(less, told, more);
  svg.addEventListener("dblclick", () => zoom(scale > 1 ? 1 : 2.25));
  figure.prepend(bar);
}
for (const travel of document.querySelectorAll(".travel")) {
  const steps = [...travel.querySelectorAll("section.step")];
  const nav = travel.querySelector(".steps");
  if (!steps.length) continue;
  travel.classList.add("guided");
  nav.hidden = false;
  const slider = nav.querySelector("input");
  const told = nav.querySelector("output");
  const show = (at, says = true) => {
    steps.forEach((step, i) => { step.hidden = i !== at; });
    slider.value = String(at);
    const name = steps[at].querySelector("h3").textContent;
    slider.setAttribute("aria-valuetext", name);
    told.textContent = name;
    if (says) history.replaceState(null, "", "#" + steps[at].id);
  };
  const move = to => show(Math.min(steps.length - 1, Math.max(0, to)));
  slider.addEventListener("input", () => show(Number(slider.value)));
  const ways = { first: () => 0, before: at => at - 1, after: at => at + 1, last: () => steps.length };
  for (const [name, way] of Object.entries(ways))
    nav.querySelector("." + name).addEventListener("click", () => move(way(Number(slider.value))));
  const named = () => steps.findIndex(step => "#" + step.id === location.hash);
  addEventListener("hashchange", () => { if (named() >= 0) show(named()); });
  show(named() < 0 ? Number(slider.defaultValue) : named(), false);
  if (named() >= 0) travel.scrollIntoView();
}
"""
