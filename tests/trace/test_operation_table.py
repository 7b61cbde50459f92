"""The table of operations: against sums made of the text alone, and on traces written by hand."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from kvm_mmu.errors import UsageError
from kvm_mmu.trace.analysis.operation_table import SORTS
from kvm_mmu.trace.analysis.stalls import Stalls, stalls
from kvm_mmu.trace.analysis.summary import summarize
from kvm_mmu.trace.text.source import read_lines
from kvm_mmu.trace.text.window import Window

TRACES = Path(__file__).resolve().parent.parent / "data" / "traces"
LINE = re.compile(r" (\d+)\.(\d{6}): (\w+): ?(.*)")
CHANGES = {"0": "create", "1": "delete", "2": "move", "3": "flags"}
PROBE = "(x+0x0/0x1 [kvm])"


def from_the_text(lines: list[str]) -> dict[str, tuple[int, int, int]]:
    """change -> operations, nanoseconds from marker to return, pages zapped between; made without the package."""
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    current = None
    for text in lines:
        match = LINE.search(text)
        if match is None:
            continue
        time = int(match[1] + match[2]) * 1000
        event, body = match[3], match[4]
        if event == "tracing_mark_write" and '"op":"set_memslot"' in body:
            current = [time, "?", 0]
        elif event == "set_memslot" and current:
            current[1] = CHANGES[body.split("change=")[1][0]]
        elif event == "kvm_mmu_prepare_zap_page" and current:
            current[2] += 1
        elif event == "tracing_mark_write" and "set_memslot_ret" in body and current:
            found[current[1]].append((time - current[0], current[2]))
            current = None
    return {
        kind: (len(each), sum(length for length, _ in each), sum(pages for _, pages in each))
        for kind, each in found.items()
    }


def reconciles(path: Path) -> int:
    lines = read_lines(path)
    found, expected = stalls(lines, path.parent.name), from_the_text(lines)
    rows = [row for row in found.operations if row.is_memslot]
    name = path.parent.name
    assert sum(sum(row.lengths) for row in rows) == sum(total for _, total, _ in expected.values()), name
    assert sum(len(row.lengths) for row in rows) == sum(count for count, *_ in expected.values()), name
    assert sum(row.pages_zapped for row in rows) == sum(pages for *_, pages in expected.values()), name
    for row in rows:
        if not row.name.endswith("refused") and row.name in expected:
            assert (len(row.lengths), sum(row.lengths), row.pages_zapped) == expected[row.name], (
                name,
                row.name,
            )
        assert sum(row.lengths) == sum(part.total_ns for part in row.parts.values()), (name, row.name)
        if row.slots:
            assert sum(row.lengths) == sum(sum(slot.lengths) for slot in row.slots), (name, row.name)
    assert sum(row.waited.waited_ns for row in found.operations) == found.waited_ns - found.other_ns, name
    return len(rows)


#: The recorders of these kernels write a marker at the return too.
FAMILIES = sorted(path.name for path in TRACES.iterdir() if re.match(r"5\.10|[67]\.", path.name))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_rows_are_what_passed_between_markers_and_returns(family: str):
    paths = sorted((TRACES / family).glob("*/trace.txt.xz"))
    assert sum(reconciles(path) for path in paths) >= len(paths)


@pytest.mark.soak
def test_the_rows_of_all_shared_recordings(shared: Path):
    for pattern in ("5.10*", "6.*", "7.*"):
        for path in sorted((shared / "traces").glob(f"{pattern}/*/trace.txt.xz")):
            reconciles(path)


def test_a_delete_is_worse_than_a_create(shared: Path):
    """The question of an operator: which memslot operation stalls my guest?"""
    lines = read_lines(shared / "traces" / "6.1" / "npt0_memslot_churn_long" / "trace.txt.xz")
    rows = {row.name: row for row in stalls(lines, "x").operations if row.is_memslot}
    assert list(rows)[:3] == ["delete", "move", "create"]
    assert [sum(rows[name].lengths) // 1000 for name in ("delete", "move", "create")] == [24016, 11506, 3713]
    assert [rows[name].pages_zapped for name in ("delete", "move", "create")] == [48, 22, 0]
    delete = rows["delete"]
    assert set(delete.parts) == {"zap-all", "memslot update"} and set(delete.later) == {"obsolete root freed"}
    assert str(delete.slots[0].change) == "slot 2 at 0x8000000 4 MiB"


def us(when: float, task: str, text: str) -> str:
    return f"{task:>22} [000] ..... {1 + when / 1e6:.9f}: {text}"


def zap(root: int = 0, invalid: bool = False) -> str:
    word = " invalid" if invalid else ""
    return f"kvm_mmu_prepare_zap_page: sp gen 0 gfn 0 l4 8-byte q0 direct wux{word} nxe ad root {root} sync"


REGION = f"set_memory_region: {PROBE} slot=65539 flags=0x1 gpa=0x1000 size=0x200000"
#: A VMM without markers, recorded with the kit's probes; vCPU 0 waits for the deletion and frees the root it used.
KIT = [
    us(0, "qemu-9", REGION),
    us(5, "qemu-9", f"set_memslot: {PROBE} change=0"),
    us(10, "qemu-9", f"set_memslot_ret: {PROBE}"),
    us(20, "qemu-9", f"set_memory_region_ret: {PROBE} ret=0"),
    us(100, "qemu-9", f"set_memory_region: {PROBE} slot=65539 flags=0x0 gpa=0x1000 size=0x0"),
    us(110, "qemu-9", f"set_memslot: {PROBE} change=1"),
    us(120, "v0-3", "kvm_exit: vcpu 0 reason npf"),
    us(130, "qemu-9", f"zap_all_fast_enter: {PROBE}"),
    us(140, "qemu-9", zap(root=1)),
    us(180, "qemu-9", f"zap_all_fast_ret: {PROBE}"),
    us(190, "qemu-9", f"set_memslot_ret: {PROBE}"),
    us(200, "qemu-9", f"set_memory_region_ret: {PROBE} ret=0"),
    us(210, "v0-3", zap(invalid=True)),
    us(215, "v0-3", f"commit_zap: {PROBE}"),
    us(230, "v0-3", "kvm_entry: vcpu 0"),
    us(300, "qemu-9", f"set_memory_region: {PROBE} slot=1 flags=0x0 gpa=0x1000 size=0x1000"),
    us(301, "qemu-9", f"set_memory_region_ret: {PROBE} ret=-17"),
]


def rows(found: Stalls) -> dict[str, tuple[int, int, int]]:
    return {row.name: (len(row.lengths), sum(row.lengths), row.pages_zapped) for row in found.operations}


def test_the_probe_of_the_kit_names_slot_and_return():
    found = stalls(KIT, "kit")
    assert found.notes == []
    assert rows(found) == {"delete": (1, 100_000, 1), "create": (1, 20_000, 0), "update": (1, 1_000, 0)}
    delete = found.operations[0]
    assert str(delete.slots[0].change) == "slot 3 of address space 1 at 0x1000 2 MiB flags 0x1"
    # 20 us of the deletion went by before the vCPU was out, and 5 us later it frees the root.
    assert (delete.waited.waited_ns, delete.waited.nobody_ns) == (85_000, 20_000)
    assert delete.later["obsolete root freed"].total_ns == 5_000 and found.other_ns == 25_000
    assert [change.is_refused for change in found.changes.values()] == [False, False, True]


def test_a_root_is_freed_at_the_account_of_what_zapped_it():
    """Two deletions; the root that the first left in use is freed after the second one."""
    lines = [
        us(0, "q-1", f"set_memslot: {PROBE} change=1"),
        us(1, "q-1", f"zap_all_fast_enter: {PROBE}"),
        us(2, "q-1", zap(root=1)),
        us(3, "q-1", f"zap_all_fast_ret: {PROBE}"),
        us(4, "q-1", f"set_memslot_ret: {PROBE}"),
        us(10, "q-1", f"set_memslot: {PROBE} change=2"),
        us(11, "q-1", f"zap_all_fast_enter: {PROBE}"),
        us(12, "q-1", f"zap_all_fast_ret: {PROBE}"),
        us(13, "q-1", f"set_memslot_ret: {PROBE}"),
        us(20, "v-2", zap(invalid=True)),
    ]
    by_name = {row.name: row for row in stalls(lines, "x").operations}
    assert list(by_name["delete"].later) == ["obsolete root freed"] and not by_name["move"].later


def test_short_markers_tell_a_removal_from_the_rest():
    def update(at: int, *more: str) -> list[str]:
        begin = us(at, "vmm-1", 'tracing_mark_write: {"i":1,"op":"set_memslot"}')
        end = us(at + 9, "vmm-1", 'tracing_mark_write: {"i":2,"ev":"set_memslot_ret"}')
        return [
            begin,
            *(us(at + 2 + i, "vmm-1", f"{event}: {PROBE} gen=0x2") for i, event in enumerate(more)),
            end,
        ]

    found = stalls(
        [*update(0, "memslots_updated"), *update(50, "memslots_updated", "flush_shadow_memslot")], "x"
    )
    assert rows(found) == {"create or flags": (1, 9_000, 0), "delete or move": (1, 9_000, 0)}
    assert rows(stalls(update(0, "memslots_updated"), "x")) == {"update": (1, 9_000, 0)}


def test_work_that_nobody_waits_for_is_in_the_table():
    """No vCPU event at all: no zeros in place of work."""
    text = stalls(read_lines(TRACES / "6.12" / "npt1tdp0_memslot_churn_big" / "trace.txt.xz"), "x").as_text()
    lines = text.splitlines()
    row = lines[next(at for at, line in enumerate(lines) if "of it zap-all" in line) + 1]
    assert row.split() == ["600", "3,966,547", "3500", "0", "0", "3,966,547"]


@pytest.mark.parametrize("path", ["6.12/npt1tdp0_memslot_churn_big", "6.1/npt1tdp0_multi_vcpu"])
def test_a_report_fits_80_columns(path: str) -> None:
    text = stalls(read_lines(TRACES / path / "trace.txt.xz"), "x").as_text()
    assert max(map(len, text.splitlines())) <= 80
    heads, first, *_ = [line for line in text.splitlines() if "count" in line or "slot 7 at" in line] + [""]
    assert heads.split()[-9:] == "count total p50 p99 max zapped vCPUs waited nobody".split()
    assert not first or first.split() == ["slot", "7", "at", "0x9000000", "4", "KiB"]


def test_a_process_that_is_not_there_is_said() -> None:
    lines = read_lines(TRACES / "6.1" / "npt1tdp0_multi_vcpu" / "trace.txt.xz")
    notes = stalls(lines, "x", Window.of(vm="1,1542")).notes
    assert notes[1] == "--vm 1: no event of such a process in the trace; it has those of 1542 (vmm-1542)"
    assert not any("no event" in note for note in stalls(lines, "x", Window.of(vm="1542")).notes)
    assert "it has those of no process" in stalls([], "x", Window.of(vm="1")).notes[1]


def test_the_order_of_the_rows():
    for sort in SORTS:
        found = stalls(KIT, "x", sort=sort).operations
        assert [row.key(sort) for row in found] == sorted(row.key(sort) for row in found)
    assert [row.name for row in stalls(KIT, "x", sort="name").operations] == ["create", "delete", "update"]
    with pytest.raises(UsageError, match="expected one of total"):
        stalls(KIT, "x", sort="size")


def test_windows():
    whole = Window.of()
    assert whole is None
    found = stalls(KIT, "x", Window.of("1.0001", "1.00025"))
    # The slot is still known by what was said of it before.
    assert rows(found) == {"delete": (1, 100_000, 1)} and found.operations[0].slots[0].change.size == 0x200000
    assert "only events from 1.000100 s to 1.000250 s" in found.notes[0]
    assert rows(stalls(KIT, "x", Window.of(vm="9"))).keys() == {"delete", "create", "update"}
    assert rows(stalls(KIT, "x", Window.of(cpu="1-3,7"))) == {}
    for bad in ({"start": "soon"}, {"end": "-1"}, {"cpu": "2-1"}, {"vm": "qemu"}, {"start": 2, "end": 1}):
        with pytest.raises(UsageError, match="--"):
            Window.of(**bad)


def test_the_process_of_a_task_is_its_vm():
    line = "       CPU 0/KVM-4321  (   4300) [003] ..... 1.000001: kvm_entry: vcpu 0, rip 0x1"
    path_of = {
        vm: len(list(filter(None, Window.of(vm=vm).lines([line])))) for vm in ("4300", "4321", "1,4300")
    }
    assert path_of == {"4300": 1, "4321": 0, "1,4300": 1}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kvm_mmu", "trace", *words], capture_output=True, text=True, check=False
    )


def test_the_commands_take_windows_and_orders(tmp_path: Path):
    trace = tmp_path / "t.txt"
    trace.write_text("# tracer: nop\n" + "\n".join(KIT) + "\n")
    done = json.loads(run("stalls", str(trace), "--from", "1.0001", "--sort", "count", "--json").stdout)
    assert [row["operation"] for row in done["operations"]] == ["delete", "update"]
    assert done["operations"][0]["slots"][0]["slot"] == 3
    done = json.loads(run("summary", str(trace), "--to", "1.00002", "--json").stdout)
    assert (sum(done["events"].values()) + sum(done["opaque"].values()), done["lines"]) == (4, 5)
    assert summarize(trace).counts["lines"] == len(KIT) + 1
    text = run("decode", str(trace), "--kernel", "v6.1", "--from", "1.000205", "--sort", "event").stdout
    events = [line.split(": ")[1] for line in text.splitlines() if " [000] " in line]
    assert events == sorted(events) and len(events) == 5
    said = run("decode", str(trace), "--kernel", "v6.1", "--from", "1.0002", "--json").stdout.splitlines()
    assert [json.loads(line)["line"] for line in said] == [14]
    for command in ("summary", "decode", "stalls"):
        wrong = run(command, str(trace), "--cpu", "x")
        assert wrong.returncode == 2 and wrong.stderr == (
            f"kvm-mmu trace {command}: --cpu 'x': expected numbers and ranges, such as 0,2-3\n"
        )
    assert run("summary", str(trace), "--sort", "name").stdout.index("commit_zap") < 2000


def test_one_of_a_thing_is_one():
    text = stalls([*KIT[:3], us(120, "v0-3", "kvm_exit: vcpu 0 reason npf")], "x").as_text()
    assert "note: 1 vCPU was still out" in text and "no return of 1 memslot operation:" in text
    assert "1 page zapped)" in stalls(KIT, "x").as_text() and "1 vCPUs" not in text
