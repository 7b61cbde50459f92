"""Pages for a browser: one file each, readable without scripts, and in Chromium what the scripts make of them.

The tests in Chromium run where Debian's package `chromium` is installed; neither the Makefile nor CI installs it.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import kvm_mmu as km
import pytest
from kvm_mmu.lab import comparison_page
from kvm_mmu.lab.comparison import COLUMNS, MODELLED
from kvm_mmu.lab.sweep.cells import ROW
from kvm_mmu.lab.time_travel import travel
from kvm_mmu.scenario.machine_engine import COUNTERS, STEPPED_COUNTERS
from kvm_mmu.view import meanings
from kvm_mmu.view.document import document, table

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium here (Debian's package of that name)"
)
VOID = {"meta", "input", "br", "rect", "path", "line", "circle", "use", "stop"}


class Balanced(HTMLParser):
    """Fails where a tag is closed that was not opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}>"


def parsed(page: str) -> Balanced:
    found = Balanced()
    found.feed(page)
    found.close()
    assert found.open == []
    return found


def witness(root: Path, where: Path) -> Path:
    """The witness of the thread without its last operation, which is the wrap that is forced here."""
    lines = (root / "tests/data/scenarios/restart_witness.jsonl").read_text().splitlines(keepends=True)
    path = where / "witness.jsonl"
    path.write_text("".join(lines[:-1]))
    return path


def scenario(root: Path) -> Path:
    return root / "tests" / "data" / "scenarios" / "v6_wrap_within_delete.jsonl"


def in_chromium(page: Path, fragment: str = "") -> str:
    assert CHROMIUM is not None
    own = f"--user-data-dir={page.parent / 'chromium'}"
    words = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        own,
        "--dump-dom",
    ]
    # A browser reserves far more addresses than tests may have (conftest.py).
    free = "import os, resource, sys; hard = resource.getrlimit(resource.RLIMIT_AS)[1]; "
    free += "resource.setrlimit(resource.RLIMIT_AS, (hard, hard)); os.execv(sys.argv[1], sys.argv[1:])"
    words = [sys.executable, "-c", free, *words, f"file://{page}{fragment}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_page_needs_no_network_and_no_scripts(root: Path) -> None:
    page = travel(scenario(root))
    found = parsed(page)
    assert not [
        attrs
        for _, attrs in found.seen
        for name in ("src", "href")
        if (attrs.get(name) or "").startswith("http")
    ]
    assert "<link" not in page and "@import" not in page and "url(" not in page
    steps = [attrs for tag, attrs in found.seen if tag == "section"]
    assert len(steps) == 8 and not any("hidden" in attrs for attrs in steps)
    assert page.count("<svg") == 8
    links = {attrs["href"] for tag, attrs in found.seen if tag == "a"}
    assert links and all(f"id='{link[1:]}'" in page for link in links if link)


def test_every_counter_has_its_definition() -> None:
    assert {*COUNTERS, *STEPPED_COUNTERS} == set(meanings.COUNTERS)
    assert set(km.Vm().work) == set(meanings.WORK)
    assert {*COLUMNS, *MODELLED, *ROW} <= set(meanings.COLUMNS)


def test_the_same_run_is_the_same_page(root: Path) -> None:
    assert travel(scenario(root)) == travel(scenario(root))


def test_a_stranger_s_words_stay_words(tmp_path: Path) -> None:
    path = tmp_path / "evil.jsonl"
    header = {"scenario": "</title><script>alert(1)</script>\x1b[31m", "format": 1, "variant": "v5.0"}
    path.write_text(json.dumps(header) + '\n{"op":{"op":"enter","vcpu":0}}\n')
    page = travel(path)
    assert page.count("<script>") == 1 and "alert(1)</script>" not in page and "\x1b" not in page
    parsed(page)


def test_first_and_steps_choose_what_is_shown(root: Path) -> None:
    page = travel(scenario(root), first=2, steps=3)
    assert re.findall(r"<section class='step' id='step-(\d+)'", page) == ["3", "4", "5"]
    assert "operations are not shown" in page
    for wrong in ({"first": 7}, {"first": -1}, {"steps": 0}, {"steps": 5001}):
        with pytest.raises(km.UsageError):
            travel(scenario(root), **wrong)


def test_the_command_writes_a_page(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.html"
    words = [sys.executable, "-m", "kvm_mmu", "view"]
    subprocess.run([*words, str(scenario(root)), "-o", str(out)], check=True, capture_output=True)
    assert out.read_text() == travel(scenario(root))
    recording = root / "tests/data/traces/5.0.1-npt/basic/trace.txt.xz"
    done = subprocess.run(
        [*words, str(recording), "--steps", "20", "-o", "-"], check=True, capture_output=True
    )
    parsed(done.stdout.decode())
    refused = subprocess.run(
        [*words, str(scenario(root)), "-o", str(tmp_path)], capture_output=True, check=False
    )
    assert refused.returncode == 2


def test_results_are_pages_too(tmp_path: Path) -> None:
    km.sweep(["boot"], ["own", "merged"], pages=["64"], at="wrap", mmio=[0.1], jobs=1, out=tmp_path / "s")
    km.curve(values=["64"], kernels=["v5.2", "v6.12"], jobs=1).write(tmp_path / "c")
    km.compare(km.lab.named_workloads.named_workload("boot", pages=64), ["v5.4-fast"], at="wrap").write(
        tmp_path / "p"
    )
    for folder in "scp":
        parsed((tmp_path / folder / "report.html").read_text())


#: What a reader does, told to `did`; then what is to be seen, as JSON in the page.
DRIVER = """
const did = {};
const one = name => document.querySelector(name);
const shown = () => [...document.querySelectorAll("section.step")].filter(s => !s.hidden).map(s => s.id).join();
did.first = shown();
one(".steps .after").click();
did.after = shown();
one(".steps .last").click();
did.last = shown();
did.told = one(".steps output").textContent;
did.valuetext = one(".steps input").getAttribute("aria-valuetext");
one(".steps .first").click();
did.slider = [0, 3].map(at => {
  const slider = one(".steps input");
  slider.value = at;
  slider.dispatchEvent(new Event("input"));
  return shown();
});
did.hash = location.hash;
const svg = one("section.step:not([hidden]) svg");
const wide = svg.getBoundingClientRect().width;
one("section.step:not([hidden]) .zoom button[aria-label='zoom in']").click();
did.zoomed = svg.getBoundingClientRect().width / wide;
did.counters = [...document.querySelectorAll("a")].every(a => document.getElementById(a.hash.slice(1)));
did.named = [...document.querySelectorAll("button, input, [tabindex]")].every(
  e => (e.getAttribute("aria-label") || e.textContent).trim());
did.wide = document.documentElement.scrollWidth <= innerWidth;
"""
#: Puts what the driver saw into the page.
TOLD = """
const seen = document.createElement("pre");
seen.id = "seen";
seen.textContent = JSON.stringify(did);
document.body.append(seen);
"""


def driven(page: Path, fragment: str = "", driver: str = DRIVER) -> dict[str, object]:
    """What the driver saw in a copy of a page."""
    copy = page.with_name("driven.html")
    copy.write_text(page.read_text().replace("</body>", f"<script>{{{driver}{TOLD}}}</script></body>"))
    found = re.search(r'<pre id="seen">(.*?)</pre>', in_chromium(copy, fragment))
    assert found, "the driver did not get to its end"
    seen: dict[str, object] = json.loads(html.unescape(found[1]))
    return seen


@needs_chromium
def test_in_chromium_one_step_is_shown_at_a_time(root: Path, tmp_path: Path) -> None:
    page = tmp_path / "run.html"
    page.write_text(travel(scenario(root)))
    seen = driven(page)
    assert (seen["first"], seen["after"], seen["last"]) == ("step-0", "step-1", "step-7")
    assert seen["told"] == seen["valuetext"] and str(seen["told"]).startswith("7: ")
    assert seen["slider"] == ["step-0", "step-3"] and seen["hash"] == "#step-3"
    assert seen["zoomed"] == pytest.approx(1.5, rel=0.05)
    assert seen["counters"] and seen["named"] and seen["wide"]
    assert driven(page, "#step-3")["first"] == "step-3"


@needs_chromium
def test_in_chromium_a_report_begins_at_the_event(tmp_path: Path, root: Path) -> None:
    km.compare(witness(root, tmp_path), ["seed", "merged"], at="wrap", kernel="v5.0").write(tmp_path)
    seen = driven(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    steps = re.findall(r"<section class='step' id='(run-1-step-\d+)' aria-label='([^']*)'", text)
    assert [name for _, name in steps[-3:]] == ["the wrap, before any plan", "after seed", "after merged"]
    assert seen["first"] == steps[-3][0] and seen["last"] == steps[-1][0]
    assert seen["zoomed"] == pytest.approx(1.5, rel=0.05)
    assert seen["counters"] and seen["named"] and seen["wide"]


@needs_chromium
def test_in_chromium_a_table_sorts(tmp_path: Path) -> None:
    page = tmp_path / "table.html"
    values = {"plan": ["b", "a", "c", "d"], "pages": [1_256, 64, None, 128]}
    page.write_text(document("Sorts", [table(values, "four rows")]))
    driver = """
    const did = [];
    for (const at of [1, 1, 0]) {
      document.querySelectorAll("th button")[at].click();
      did.push([...document.querySelectorAll("tbody tr")].map(row => row.cells[0].textContent).join(""));
    }
    did.push([...document.querySelectorAll("th")].map(head => head.getAttribute("aria-sort")).join());
    """
    assert driven(page, driver=driver) == ["adbc", "bdac", "abcd", "ascending,"]


def test_a_report_shows_the_state_after_each_plan(tmp_path: Path, root: Path) -> None:
    """Its last steps, the event, and the plans, with the counts of their rows, which lead to what they mean."""
    found = km.compare(witness(root, tmp_path), ["seed", "merged"], at="wrap", kernel="v5.0")
    found.write(tmp_path)
    page = (tmp_path / "report.html").read_text()
    parsed(page)
    steps = page.split("<section class='step'")[1:]
    assert len(steps) == 1 + 23 + 3
    for row, step in zip(found.rows, steps[-2:], strict=True):
        assert f"<a href='#work-walk_visited'>walk_visited</a> {row['nodes_visited']}," in step
        assert f"longest hold {row['longest_hold']}" in step
        assert "pages: gone 14 16 18 20 22; changed 3" in step
    for kind in ("column-nodes_visited", "work-walk_visited", "counter-zapped", "event-prepare_zap"):
        assert f"id='{kind}'" in page and f"href='#{kind}'" in page


def test_a_report_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workloads without steps are counted: too large for a picture, or too much for one page."""
    boot = [km.lab.named_workloads.named_workload("boot", pages=pages) for pages in (64, 1_000)]
    km.compare(boot, ["v5.4-fast"], at="wrap").write(tmp_path / "large")
    page = (tmp_path / "large" / "report.html").read_text()
    assert page.count("<div class='travel'>") == 1 and "Without steps: 1 of 2 workloads" in page
    monkeypatch.setattr(comparison_page, "MOST_TEXT", 1_000)
    km.compare(boot[:1], ["v5.4-fast"], at="wrap").write(tmp_path / "much")
    page = (tmp_path / "much" / "report.html").read_text()
    assert "<div class='travel'>" not in page and "Without steps: 1 of 1 workloads" in page


def test_an_event_has_names_for_its_fields() -> None:
    assert meanings.fields(["get_page", 4, 512, "0x3781", 1]) == "id 4, gfn 0x200, role 0x3781, created 1"
    assert meanings.fields(["spte", 0, 1, 1, "0x0", "0x1", None, None, 511]).endswith(
        "new_child -, times 511"
    )
    assert meanings.fields(["lock_break", 3]) == "kind 3"
    assert meanings.fields(["of a kernel to come", 1, 2]) == "1 2"
