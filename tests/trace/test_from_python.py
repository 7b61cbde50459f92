"""Recordings from Python: a path, an open trace and lines are the same trace to every function."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kvm_mmu as km
import pytest
from kvm_mmu.trace import strip
from kvm_mmu.trace.analysis.activity import activity
from kvm_mmu.trace.analysis.export import export_chrome
from kvm_mmu.trace.replay.difference import diff
from kvm_mmu.trace.replay.workload import read_recording
from kvm_mmu.trace.text.reader import Trace
from kvm_mmu.trace.text.source import iter_lines, read_lines
from kvm_mmu.trace.text.window import Window

FOLDER = Path(__file__).resolve().parent.parent / "data" / "traces" / "6.1" / "npt1tdp0_multi_vcpu"
PATH = FOLDER / "trace.txt.xz"
HOST = json.loads((FOLDER / "host.json").read_text())


def core(kernel: str, config: Any, plans: Any) -> Any:
    from kvm_mmu.scenario.machine_engine import MachineEngine

    return MachineEngine(kernel, config, plans)


FUNCTIONS: dict[str, Callable[[Any], object]] = {
    "stalls": lambda trace: km.stalls(trace, "x").as_json(),
    "activity": activity,
    "chrome_trace": km.chrome_trace,
    "explained": lambda trace: list(km.explained(trace, "v6.1")),
    "summarize": lambda trace: {**km.summarize(trace).as_json(), "file": "", "bytes": 0},
    "replay": lambda trace: {**km.replay(trace, host=HOST).as_json(), "file": ""},
    "read_all": lambda trace: Trace(trace).read_all()["kvm_mmu_set_spte"]["spte"].tolist(),
    "lines": lambda trace: list(Trace(trace).lines()),
    "strip": lambda trace: strip(trace, HOST, answers=False).lines,
    "read_recording": lambda trace: read_recording(trace, HOST).kernel,
    "diff": lambda trace: diff(trace, None, core, hosts=(HOST, HOST)).is_equal,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_path_a_trace_and_lines_are_the_same(name: str):
    function = FUNCTIONS[name]
    expected = function(PATH)
    assert expected
    assert function(str(PATH)) == expected
    assert function(Trace(PATH)) == expected
    assert function(read_lines(PATH)) == expected
    assert function(iter_lines(PATH)) == expected
    assert function(text + "\n" for text in iter_lines(PATH)) == expected


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_str_is_never_lines(name: str):
    with pytest.raises(km.TraceError, match=r"nowhere/trace\.txt: cannot be opened"):
        FUNCTIONS[name]("nowhere/trace.txt")
    for wrong in (b"text", 7, None):
        with pytest.raises(km.UsageError, match="expected a path, a Trace or lines of text, not"):
            FUNCTIONS[name](wrong)


def test_replay_in_one_line():
    report = km.replay(PATH)
    assert report.is_equal and report.compared and report.kernel == "v6.1"
    assert km.replay(str(PATH), kernel="v6.1", host=FOLDER / "host.json", backend="reference").is_equal
    assert km.replay(PATH, host='{"kernel": "6.1"}').is_equal
    with pytest.raises(km.UsageError, match="backend 'x': expected one of auto, core, reference"):
        km.replay(PATH, backend="x")


def test_an_export_takes_them_too(tmp_path: Path):
    files = [tmp_path / name for name in ("path.json", "lines.json")]
    export_chrome(PATH, files[0])
    export_chrome(read_lines(PATH), files[1])
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_trace_of_a_window():
    whole = Trace(PATH)
    first, last = whole.counts()["span_ns"]
    middle = (first + last) // 2
    parts = [Trace(PATH, Window(to_ns=middle)), Trace(whole, Window(from_ns=middle + 1))]
    assert sum(len(part.read_all()) for part in parts) == len(whole.read_all())
    assert parts[1].read_all().timeline["line"][0] > 100 and not parts[1].is_whole
    assert sum(sum(km.summarize(part).events.values()) for part in parts) == sum(
        km.summarize(whole).events.values()
    )


def test_tables_have_the_task_and_words():
    found = km.Trace(PATH).read_all()
    for event in found:
        table = found[event]
        tasks = dict(zip(found.timeline["line"].tolist(), found.timeline.words("task"), strict=True))
        assert table.words("task").tolist() == [tasks[line] for line in table["line"].tolist()]
    updates = found["set_memslot"]
    assert set(updates.words("change")) <= {"create", "delete", "move", "flags"} and len(updates) > 3
    assert updates.names("change") == ["create", "delete", "move", "flags"]
    assert updates["change"].tolist() == [
        updates.names("change").index(word) for word in updates.words("change")
    ]
    assert "<td>create</td>" in updates._repr_html_()
    pl = pytest.importorskip("polars")
    frame = updates.to_polars()
    assert frame["change"].cast(pl.String).to_list() == updates.words("change").tolist()
    assert frame["task"].cast(pl.String).to_list() == updates.words("task").tolist()


def test_a_trace_in_a_notebook(tmp_path: Path):
    shown = km.Trace(PATH)._repr_html_()
    assert "all of it, " in shown and "kvm_mmio" in shown
    assert len(shown) < 8000
    (tmp_path / "<b>.txt").write_text(("\n".join(read_lines(PATH)) + "\n") * 12)
    shown = km.Trace(tmp_path / "<b>.txt")._repr_html_()
    assert "the beginning, " in shown and "&lt;b&gt;.txt" in shown and "<b>.txt" not in shown
    assert "not looked at" in km.Trace("-")._repr_html_()
    assert "not looked at" in km.Trace(tmp_path / "none")._repr_html_()
    (tmp_path / "cut.xz").write_bytes(PATH.read_bytes()[:500])
    assert "end too early" in km.Trace(tmp_path / "cut.xz")._repr_html_()
    assert "kvm_mmio" in km.Trace(read_lines(PATH))._repr_html_()


def test_a_number_without_a_word_is_other():
    lines = [
        f"             vmm-1     [000] ..... 1.{i:06d}: set_memslot: (x+0x0/0x1 [kvm]) change={change}"
        for i, change in enumerate((0, 7, -1))
    ]
    table = Trace(lines).read_all()["set_memslot"]
    assert table.words("change").tolist() == ["create", "(other)", "(other)"]
    pytest.importorskip("pyarrow")
    assert table.to_arrow().column("change").to_pylist() == ["create", "(other)", "(other)"]


@pytest.mark.parametrize(
    "name",
    [
        "Trace",
        "Batch",
        "Table",
        "Vcpu",
        "Codec",
        "Memslots",
        "Page",
        "ZapRun",
        "AccessResult",
        "replay",
        "stalls",
    ],
)
def test_one_import_has_them(name: str):
    assert name in dir(km) and getattr(km, name).__name__ == name and getattr(km, name).__doc__
    page = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "python.md").read_text()
    assert f".{name}\n" in page or f" {name}," in page or f", {name}\n" in page, (
        f"{name} is not in the reference"
    )
