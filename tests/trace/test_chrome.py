"""Chrome traces: slices of a lane nest, times go forward, every lane has a name, nothing of the trace is missing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from kvm_mmu.trace.analysis.activity import activity
from kvm_mmu.trace.analysis.chrome import chrome_trace
from kvm_mmu.trace.analysis.stalls import stalls
from kvm_mmu.trace.text.source import read_lines

TRACES = Path(__file__).resolve().parent.parent / "data" / "traces"
NAMES = [
    "6.1/npt1tdp0_multi_vcpu",
    "6.1/npt1tdp0_smm",
    "6.1/npt1tdp0_dirty_log",
    "6.12/npt1tdp0_zap_batch",
    "6.12/npt1tdp0_shrink",
    "5.0.1-npt/mmio_gen",
    "5.2.1-npt/vcpus",
]


def check(document: dict[str, Any]) -> dict[tuple[int, int], list[dict[str, Any]]]:
    """What Perfetto asks of a file; returns the slices of each lane."""
    named, processes = set(), set()
    lanes: dict[tuple[int, int], list[dict[str, Any]]] = {}
    arrows: dict[int, list[dict[str, Any]]] = {}
    for event in document["traceEvents"]:
        assert event["ph"] in ("X", "M", "C", "s", "f")
        assert event["ph"] == "M" or event["cat"]
        if event["ph"] in "sf":
            arrows.setdefault(event["id"], []).append(event)
        if event["ph"] in "Csf":
            continue
        lane = (event["pid"], event["tid"])
        if event["ph"] == "M":
            assert event["args"]["name"]
            (named if event["name"] == "thread_name" else processes).add(
                lane if event["name"] == "thread_name" else event["pid"]
            )
        else:
            assert event["ts"] >= 0 and event["dur"] >= 0 and event["name"]
            lanes.setdefault(lane, []).append(event)
    assert set(lanes) == named and {pid for pid, _ in lanes} <= processes
    for slices in lanes.values():
        assert_nested(slices)
    for begin, end in arrows.values():
        assert (begin["ph"], end["ph"], end["bp"], begin["pid"], end["pid"]) == ("s", "f", "e", 2, 1)
        for one in (begin, end):
            assert any(
                within["ts"] <= one["ts"] <= within["ts"] + within["dur"]
                for within in lanes[one["pid"], one["tid"]]
            )
    return lanes


def assert_nested(slices: Iterable[dict[str, Any]]) -> None:
    """Begin and end events in the order of the file match like brackets."""
    open_until: list[int] = []
    last = 0
    for one in slices:
        # Nanoseconds are whole again: floats of microseconds hold three decimals exactly enough.
        start, length = round(one["ts"] * 1000), round(one["dur"] * 1000)
        assert start >= last, one
        last = start
        while open_until and open_until[-1] <= start and not (length == 0 and open_until[-1] == start):
            open_until.pop()
        assert not open_until or start + length <= open_until[-1], one
        open_until.append(start + length)


@pytest.mark.parametrize("name", NAMES)
def test_recordings(name: str):
    lines = read_lines(TRACES / name / "trace.txt.xz")
    lanes = check(chrome_trace(lines))
    found = activity(lines)
    slices = [one for lane in lanes.values() for one in lane]
    zapped = sum(": kvm_mmu_prepare_zap_page:" in text for text in lines)
    assert sum(one["args"]["pages"] for one in slices if one["name"] == "zap batch") == zapped
    assert sum(one["args"].get("pages zapped", 0) for one in slices) == zapped
    for name_of, total in (
        ("guest", sum(run.end_ns - run.start_ns for run in found.runs)),
        ("wait", sum(wait.end_ns - wait.start_ns for wait in found.waits)),
    ):
        assert round(sum(one["dur"] for one in slices if one["name"].startswith(name_of)) * 1000) == total


def test_a_memslot_update_holds_its_zap():
    lines = read_lines(TRACES / "6.12" / "npt1tdp0_zap_batch" / "trace.txt.xz")
    work = [one for (pid, _), lane in check(chrome_trace(lines)).items() if pid == 2 for one in lane]
    removal = next(one for one in work if one["name"] == "memslot update (delete)")
    inside = [
        one["name"]
        for one in work
        if one is not removal
        and removal["ts"] <= one["ts"]
        and one["ts"] + one["dur"] <= removal["ts"] + removal["dur"]
    ]
    assert inside == ["zap-all", "zap batch"]


def test_a_trace_out_of_order_still_nests():
    def at(time: str, event: str, task: str = "CPU 0/KVM-10") -> str:
        return f"{task:>22} [000] ..... {time}: {event}"

    lines = [
        at("1.000010", "kvm_entry: vcpu 0, rip 0x1"),
        at("1.000030", "kvm_exit: vcpu 0 reason npf rip 0x1"),
        at("1.000050", "kvm_entry: vcpu 0, rip 0x1"),
        at("1.000040", "kvm_exit: vcpu 0 reason npf rip 0x1"),
        at("1.000060", "kvm_entry: vcpu 0, rip 0x1"),
        at("1.000020", "kvm_mmu_zap_all_fast: kvm-mmu-valid-gen 0 used_pages 3", "qemu-1"),
        at(
            "1.000005",
            "kvm_mmu_prepare_zap_page: sp gen 0 gfn 1 l1 8-byte q0 direct wux nxe ad root 0 sync",
            "qemu-1",
        ),
        at("1.000070", "commit_zap: (x+0x0/0x1 [kvm])", "qemu-1"),
    ]
    check(chrome_trace(lines))


def test_two_vms_have_lanes_of_their_own():
    lines = [
        f"{task:>22} [000] ..... 1.{number:06d}: kvm_{event}"
        for number, (task, event) in enumerate(
            (task, event)
            for event in (
                "entry: vcpu 0, rip 0x1",
                "exit: vcpu 0 reason npf rip 0x1",
                "entry: vcpu 0, rip 0x1",
            )
            for task in ("CPU 0/KVM-10", "CPU 0/KVM-20")
        )
    ]
    names = [e["args"]["name"] for e in chrome_trace(lines)["traceEvents"] if e["name"] == "thread_name"]
    assert names == ["vCPU 0 of CPU 0/KVM-10", "vCPU 0 of CPU 0/KVM-20"]


def test_a_trace_without_anything_is_a_document():
    assert check(chrome_trace(["# nothing"])) == {}


def of_phase(document: dict[str, Any], *phases: str) -> list[dict[str, Any]]:
    return [event for event in document["traceEvents"] if event["ph"] in phases]


@pytest.mark.parametrize("name", NAMES)
def test_times_are_those_of_the_trace(name: str):
    lines = read_lines(TRACES / name / "trace.txt.xz")
    document, found = chrome_trace(lines), activity(lines)
    assert (document["otherData"]["first_ns"], document["otherData"]["last_ns"]) == (
        found.first_ns,
        found.last_ns,
    )
    times = [round(event["ts"] * 1000) for event in of_phase(document, "X", "C", "s", "f")]
    assert times and found.first_ns <= min(times) and max(times) <= found.last_ns
    starts = {run.start_ns for run in (*found.runs, *found.waits)}
    shown = {round(event["ts"] * 1000) for event in of_phase(document, "X") if event["pid"] == 1}
    assert shown >= starts


def test_each_wait_that_is_explained_has_an_arrow():
    lines = read_lines(TRACES / "6.1" / "npt1tdp0_multi_vcpu" / "trace.txt.xz")
    document = chrome_trace(lines)
    pairs = {(stall.work.operation, stall.wait.line) for stall in stalls(lines, "x").stalls}
    assert len(of_phase(document, "s")) == len(of_phase(document, "f")) == len(pairs) > 0


def test_the_categories():
    document = chrome_trace(read_lines(TRACES / "6.12" / "npt1tdp0_zap_batch" / "trace.txt.xz"))
    by_name = {event["name"]: event["cat"] for event in of_phase(document, "X")}
    assert by_name["guest"] == "vcpu" and by_name["zap-all"] == "zap"
    assert by_name["memslot update (delete)"] == "memslot"
    removal = next(e for e in of_phase(document, "X") if e["name"] == "memslot update (delete)")
    assert {"slot", "gpa", "size"} <= set(removal["args"])


def test_the_counters_are_the_sums_of_the_events():
    lines = read_lines(TRACES / "5.0.1-npt" / "mmio_gen" / "trace.txt.xz")
    counters: dict[str, list[int]] = {}
    for event in of_phase(chrome_trace(lines), "C"):
        counters.setdefault(event["name"], []).extend(event["args"].values())
    made = sum(" kvm_mmu_get_page: " in text and text.endswith(" new") for text in lines)
    gone = sum(" kvm_mmu_prepare_zap_page: " in text and " root 0 " in text for text in lines)
    assert counters["live shadow pages"][-1] == made - gone and min(counters["live shadow pages"]) >= 0
    said = [int(text.split(" kvm_gen ")[1].split()[0], 16) for text in lines if " kvm_gen " in text]
    assert counters["MMIO generation"][-1] in (said[-1], *counters["MMIO generation"]) and len(said) > 100
    assert set(said) <= set(counters["MMIO generation"]) and "MMU valid generation" in counters
    late = chrome_trace(lines[len(lines) // 2 :])
    assert all(min(event["args"].values()) >= 0 for event in of_phase(late, "C"))
