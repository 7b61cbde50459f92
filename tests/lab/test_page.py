"""Pages for a browser: one file each, readable without scripts, and in Chromium what the scripts make of them.

The tests in Chromium run where Debian's package `chromium` is installed; neither the Makefile nor CI installs it.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import kvm_mmu as km
import pytest
from kvm_mmu.lab.time_travel import travel
from kvm_mmu.scenario.machine_engine import COUNTERS, STEPPED_COUNTERS
from kvm_mmu.view import time_travel

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
    assert {*COUNTERS, *STEPPED_COUNTERS} == set(time_travel.COUNTERS)


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


@needs_chromium
def test_in_chromium_one_step_is_shown_at_a_time(root: Path, tmp_path: Path) -> None:
    page = tmp_path / "run.html"
    page.write_text(travel(scenario(root)))
    for fragment, shown in (("", "0"), ("#step-3", "3")):
        text = in_chromium(page, fragment)
        steps = re.findall(r'<section class="step" id="step-(\d+)"[^>]*>', text)
        hidden = re.findall(r'<section class="step" id="step-(\d+)"[^>]*hidden[^>]*>', text)
        assert set(steps) - set(hidden) == {shown}
    assert 'aria-pressed="false"' in text


@needs_chromium
def test_in_chromium_a_table_sorts(tmp_path: Path) -> None:
    km.sweep(["boot"], ["own"], kernels=["v6.12"], pages=["256", "64", "128"], jobs=1, out=tmp_path)
    page = tmp_path / "report.html"
    click = "<script>document.querySelectorAll('table.sorts th button')[1].click()</script></body>"
    page.write_text(page.read_text().replace("</body>", click))
    rows = re.findall(r"<tr>(.*?)</tr>", in_chromium(page).split("<tbody>")[1].split("</tbody>")[0])
    assert [re.findall(r"<td[^>]*>(.*?)</td>", row)[1] for row in rows] == ["64", "128", "256"]
