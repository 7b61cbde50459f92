"""Every direct recording of v6.1 and v6.12 replays to its own outputs; rules that no recording shows, one by one."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from kvm_mmu import reference
from kvm_mmu.errors import TraceError
from kvm_mmu.recorders.residency_6x import Residency
from kvm_mmu.trace.replay.fidelity import kept
from kvm_mmu.trace.replay.normalise import normalise
from kvm_mmu.trace.replay.replaying import replay
from kvm_mmu.trace.replay.stripping import ANSWER, operations_beside, strip, wants_answers
from kvm_mmu.trace.text import host
from kvm_mmu.trace.text.kinds import TRACEPOINTS
from kvm_mmu.trace.text.source import read_lines
from kvm_mmu.trace.text.spte_words import words_of

TRACES = Path(__file__).resolve().parent.parent / "data" / "traces"
#: Those of the TDP MMU are in test_replay_tdp, those of guests whose tables are shadowed in test_replay_shadow.
SHADOWED = re.compile("[en]pt0_(?!.*(flat|real)$)")
RECORDINGS = [
    f"{d.parent.name}/{d.name}"
    for kernel in ("6.1", "6.12")
    for d in sorted((TRACES / kernel).iterdir())
    if "tdp1" not in d.name and not SHADOWED.match(d.name)
]
PREFIX = "             vmm-851   [000] .....  5012.1: "
PAGE = "8-byte q0 direct wux"


def engine(kernel: str, config: Mapping[str, object]) -> Any:
    return reference.Engine(kernel=kernel, config=dict(config))


def test_there_are_recordings():
    assert len(RECORDINGS) == 36


def core(kernel: str, config: Mapping[str, object]) -> Any:
    from kvm_mmu.scenario.machine_engine import MachineEngine

    return MachineEngine(kernel=kernel, config=dict(config))


@pytest.mark.parametrize("backend", [core, engine], ids=["core", "reference"])
@pytest.mark.parametrize("name", RECORDINGS)
def test_equal(name: str, backend: Any):
    report = replay(TRACES / name / "trace.txt.xz", backend)
    assert report.compared and report.is_equal, report.as_text()
    assert sum(report.equal.values()) == sum(report.recorded.values()) > 0
    assert dict(report.recorded) == kept(TRACES / name), "kvm-mmu trace fidelity tests/data/traces --keep"
    assert bool(report.host_answers) == ("notifier" in name)
    assert report.inferred == {}


class Story:
    """A trace written line by line: a VM with 16 MiB of written memory at gpa 0x1000000, one vCPU, a root."""

    def __init__(self, tmp_path: Path, **facts: object):
        self.path = tmp_path / "story.txt"
        values = {
            "kernel": "6.1",
            "mmu": "npt",
            "tdp_mmu": 0,
            "la57": 0,
            "mmio_caching": 1,
            "nx_huge_pages": 0,
        }
        self.kernel = str(facts.get("kernel", "6.1"))
        self.lines = [host.PREFIX + json.dumps({**values, "guest_mode": "long", **facts})]
        self._ops = 0
        self.thp = int(bool(facts.get("thp")))
        self.op("create_vm")
        self.op("backing", name="data", gpa="0x1000000", size="0x1000000", hva="0x7f0000000000", thp=self.thp)
        self.slot()
        self.op("create_vcpu", id=0)
        self.line("mmu_load: (kvm_mmu_load+0x0/0x890 [kvm])")

    def line(self, text: str) -> int:
        self.lines.append(PREFIX + text)
        return len(self.lines)

    def op(self, name: str, /, **fields: object) -> int:
        self._ops += 1
        return self.line(
            "tracing_mark_write: " + json.dumps({"i": self._ops, "op": name, **fields}).replace(" ", "")
        )

    def slot(self, flags: int = 0, size: str = "0x1000000", slot: int = 1) -> int:
        return self.op(
            "set_memslot", slot=slot, as_id=0, flags=flags, gpa="0x1000000", size=size, hva="0x7f0000000000"
        )

    def fault(self, gpa: int, error_code: int, level: int | None = 1, pfn: int = 0x161C00) -> int:
        at = self.line(f"kvm_page_fault: vcpu 0 rip 0x1000 address {gpa:#018x} error_code {error_code:#x}")
        if level is not None:
            base = pfn + (gpa >> 12) & -(1 << 9 * (level - 1))
            at = self.line(f"kvm_mmu_spte_requested: gfn {gpa >> 12:x} pfn {base:x} level {level}")
        return at

    def outputs(self, *after: int, factory: Any = engine) -> list[str]:
        """What the lines `after` caused."""
        self.path.write_text("\n".join(self.lines))
        predictions = replay(self.path, factory).predictions
        numbers = [p.line for p in predictions]
        assert numbers == sorted(numbers)
        return [f"{p.event} {p.body}".strip() for p in predictions if p.line in after]


def quiet(story: Story, *gens: int) -> int:
    return [story.line(f"invalidate_mmio: (x+0x0/0x1 [kvm]) gen={gen:#x}") for gen in gens][-1]


def short(outputs: list[str]) -> list[str]:
    return [text.split(" at ")[0] for text in outputs if not text.startswith("try_unsync")]


def test_a_fault_maps_and_prefetches_the_aligned_group(tmp_path: Path):
    story = Story(tmp_path)
    at = story.fault(0x1003000, 0x100000006)
    text = short(story.outputs(at))
    assert text[:3] == [f"kvm_mmu_get_page sp gen 0 gfn {g} l{n} {PAGE} nxe ad root 0 sync new" for g, n in
                        (("0", 3), ("0", 2), ("1000", 1))]  # fmt: skip
    assert [line.split(" spte")[0] for line in text[3:]] == [
        f"kvm_mmu_set_spte gfn {g:x}"
        for g in (0x1003, 0x1000, 0x1001, 0x1002, 0x1004, 0x1005, 0x1006, 0x1007)
    ]
    assert "e67 (rwxu)" in text[3] and "e47 (rwxu)" in text[4]


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_a_large_leaf_in_the_way_is_shown_after_its_replacement_is_got(tmp_path: Path, kernel: str):
    story = Story(tmp_path, kernel=kernel, thp=1)
    story.fault(0x1200000, 0x100000006, level=2)
    at = story.fault(0x1200000, 0x100000006, level=1)
    text = story.outputs(at)
    assert text[0].startswith("kvm_mmu_get_page sp gen 0 gfn 1200 l1") and text[1].startswith(
        "page_zap_pte sptep="
    )
    assert int(text[1].split("spte=0x")[1], 16) & 0xFFF == 0xEE7


def test_large_leaves_lose_execute_while_nx_huge_pages_is_on(tmp_path: Path):
    story = Story(tmp_path, nx_huge_pages=1, thp=1)
    large = story.fault(0x1200000, 0x100000006, level=2)
    executed = story.fault(0x1200000, 0x100000014, level=1)
    refused = story.fault(0x1201000, 0x100000006, level=2)
    assert any("(rw-u) level 2" in line for line in story.outputs(large))
    assert any("(rwxu) level 1" in line for line in story.outputs(executed))
    # The level-1 table was made for a fetch: the host's 2 MiB are used one level down.
    assert all("level 2" not in line for line in story.outputs(refused))


def test_manual_protect_initially_set_leaves_leaves_alone_until_they_are_cleared(tmp_path: Path):
    story = Story(tmp_path, kernel="6.12", thp=1)
    story.op("enable_cap", cap=168, arg0=3, rc=0)
    story.fault(0x1200000, 0x100000006, level=2)
    story.slot(flags=1)
    spurious = story.fault(0x1200000, 0x100000007, level=None)
    story.op("clear_dirty_log", slot=1, first=0, num=64, bytepattern="0xff")
    story.line("dirty_masked: (x+0x0/0x1 [kvm]) gfn_offset=0x200 mask=0xffff")
    cleared = story.fault(0x1200000, 0x100000007, level=None)
    assert story.outputs(spurious)[0].endswith("spurious 1 fixed 0")
    # The large leaf lost W and bit 10, so the fast path cannot give it back.
    assert story.outputs(cleared)[0].endswith("spurious 0 fixed 0")
    assert "ae5 new" in story.outputs(cleared)[0]


def test_ram_over_a_stale_mmio_entry_is_written_without_the_dirty_bit(tmp_path: Path):
    story = Story(tmp_path)
    story.fault(0xD0000000, 0x100000004, pfn=0)
    story.lines[-1] = PREFIX + "kvm_mmu_spte_requested: gfn d0000 pfn 8000000000000000 level 1"
    story.op("set_memslot", slot=9, as_id=0, flags=0, gpa="0xd0000000", size="0x1000", hva="0x7f0000001000")
    check = story.line("kvm_page_fault: vcpu 0 rip 0x1000 address 0x00000000d0000000 error_code 0x10000000e")
    at = story.line("kvm_mmu_spte_requested: gfn d0000 pfn 161c00 level 1")
    assert story.outputs(check) == ["check_mmio_spte spte 80000d0000017 kvm_gen 4 spte-gen 2 valid 0"]
    assert [line.split(" at ")[0] for line in story.outputs(at)] == [
        "kvm_mmu_set_spte gfn d0000 spte 7f0000001e27 (rwxu) level 1"
    ]


def test_without_mmio_caching_nothing_is_marked(tmp_path: Path):
    story = Story(tmp_path, mmio_caching=0)
    at = story.fault(0xD0000000, 0x100000004)
    assert story.outputs(at - 1, at) == []


def test_reclaim_skips_roots_and_prints_what_it_zapped(tmp_path: Path):
    story = Story(tmp_path)
    story.op("set_nr_mmu_pages", n=64)
    for i in range(64):
        story.op("set_memslot", slot=10 + i, as_id=0, flags=0, gpa=hex(0x20000000 + i * 0x200000), size="0x1000",
                 hva=hex(0x7F0000000000 + i * 0x1000))  # fmt: skip
    faults = [story.fault(0x20000000 + i * 0x200000, 0x100000006) for i in range(64)]
    zaps = [line for line in story.outputs(*faults) if line.startswith(("kvm_mmu_prepare", "zap_oldest_ret"))]
    assert (
        zaps[0].startswith("kvm_mmu_prepare_zap_page sp gen 0 gfn 0 l3")
        and zaps[21] == "zap_oldest_ret ret=21"
    )
    assert not any(" l4 " in line for line in zaps)


def test_five_levels(tmp_path: Path):
    story = Story(tmp_path, la57=1)
    at = story.fault(0x1000000, 0x100000006)
    assert [line.split()[6] for line in short(story.outputs(at)) if "get_page" in line] == [
        "l4",
        "l3",
        "l2",
        "l1",
    ]


def test_refused_requests_change_nothing(tmp_path: Path):
    story = Story(tmp_path)
    refused = [
        story.slot(size="0x2000000"),
        story.slot(flags=2),
        story.slot(slot=5),
        story.slot(slot=6, size="0x0"),
        story.slot(),
    ]
    assert story.outputs(*refused) == []
    deleted = story.slot(size="0x0")
    assert [line.split()[0] for line in story.outputs(deleted)] == [
        "memslots_updated", "invalidate_mmio", "flush_shadow_memslot", "zap_all_fast_enter", "kvm_mmu_zap_all_fast",
        "kvm_mmu_prepare_zap_page", "memslots_updated", "invalidate_mmio", "change_mmu_pages",
    ]  # fmt: skip


def test_recordings_that_cannot_be_replayed_say_why(tmp_path: Path):
    story = Story(tmp_path)
    story.line("kvm_page_fault: vcpu 0 rip")
    with pytest.raises(TraceError, match=r"story\.txt:7: kvm_page_fault: cannot be read"):
        story.outputs()


def test_residency_of_guest_tables_follows_the_mapped_ranges():
    found = Residency()
    found.add_backing("low", 0x10000000, 0x400000, False)
    first = 0x10000 + 0x100
    found.map_guest_range("long", 0x100000, 0, 0x400000, 1)
    # A root, one table of each level 3 and 2, two of level 1.
    assert [found.is_resident(first + n) for n in range(6)] == [True] * 5 + [False]
    assert found.is_resident(0x10008) and not found.is_resident(0x10009)


def test_residency_of_what_the_recorder_wrote_between_the_operations():
    found = Residency()
    found.add_backing("low", 0x10000000, 0x400000, False)
    found.map_guest_range("long", 0x100000, 0, 0x400000, 1)
    found.write_commands(63)
    assert found.is_resident(0x10008) and not found.is_resident(0x10009)
    # 64 commands and the one that ends them do not fit on one page.
    found.write_commands(64)
    assert found.is_resident(0x10009) and not found.is_resident(0x1000A)
    found.write_commands(1 << 40)
    assert found.is_resident(0x1000F) and not found.is_resident(0x10010)
    # Two more tables above the last one of an address, and a root copied behind them.
    found.map_guest_table("long", 0x10000000000)
    found.map_guest_table("long", 0x10000200000)
    found.write_guest_table(0x107000)
    assert [found.is_resident(0x10100 + n) for n in range(4, 9)] == [True] * 4 + [False]
    found.map_guest_table("long", 0x20000000000)
    assert [found.is_resident(0x10100 + n) for n in range(8, 11)] == [True] * 2 + [False]


def test_batched_commands_and_hung_in_tables_are_found_by_prefetch(tmp_path: Path):
    story = Story(tmp_path)
    story.op("backing", name="low", gpa="0x0", size="0x400000", hva="0x7e0000000000", thp=0)
    story.op("set_memslot", slot=0, as_id=0, flags=0, gpa="0x0", size="0x400000", hva="0x7e0000000000")
    story.op("guest_run", ncmds=97)
    at = story.fault(0x8000, 0x100000004)
    assert [line.split(" spte")[0] for line in short(story.outputs(at))[-2:]] == [
        "kvm_mmu_set_spte gfn 8",
        "kvm_mmu_set_spte gfn 9",
    ]


def test_a_guest_with_three_levels_loses_its_roots_whenever_its_registers_are_set(tmp_path: Path):
    regs = {"cr0": "0x80010033", "cr3": "0x100000", "cr4": "0x20"}
    for efer, loaded in (("0x800", ["kvm_mmu_get_page"]), ("0xd00", [])):
        story = Story(tmp_path)
        story.lines = [line for line in story.lines if "mmu_load" not in line]
        story.op("set_cpu", cpl=0, efer=efer, **regs)
        story.op("guest_run", ncmds=1)
        story.op("set_cpu", cpl=0, efer=efer, **regs)
        at = story.op("guest_run", ncmds=1)
        assert [line.split()[0] for line in story.outputs(at)] == loaded


def test_prefetch_looks_up_the_slot_of_each_gfn(tmp_path: Path):
    story = Story(tmp_path)
    story.op("set_memslot", slot=1, as_id=0, flags=0, gpa="0x1000000", size="0x0", hva="0x0")
    for slot, gpa in ((1, 0x1000000), (2, 0x1004000)):
        hva = hex(0x7F0000000000 + slot * 0x10000)
        story.op("set_memslot", slot=slot, as_id=0, flags=0, gpa=hex(gpa), size="0x4000", hva=hva)
    story.line("mmu_load: (kvm_mmu_load+0x0/0x890 [kvm])")
    at = story.fault(0x1003000, 0x100000006)
    # The run before the fault lies in the first slot, the one behind it in the second.
    assert [line.split(" spte")[0][-4:] for line in short(story.outputs(at)) if "set_spte" in line] == [
        f"{gfn:x}" for gfn in (0x1003, 0x1000, 0x1001, 0x1002, 0x1004, 0x1005, 0x1006, 0x1007)
    ]


def test_updates_without_markers_follow_the_generation_probe(tmp_path: Path):
    story = Story(tmp_path)
    story.lines = [line for line in story.lines if "mmu_load" not in line]
    story.op("guest_run")
    # Publications 4, 6 and 8 are the next ones; a generation out of order is none.
    last = quiet(story, 4, 6, 0x7FFFE, 8)
    at = story.fault(0xD0000, 0x100000004, pfn=1 << 63)
    assert story.outputs(last) == [f"memslots_updated gen={gen:#x}" for gen in (4, 6, 8)]
    assert next(line for line in story.outputs(at) if line.startswith("mark_mmio")).endswith("access 7 gen 8")


def test_the_quiet_update_that_wraps_zaps_everything(tmp_path: Path):
    def aged(kernel: str, config: Mapping[str, object]) -> Any:
        """A VM that has seen a quarter of a million updates before the recording began."""
        old = engine(kernel, config)
        old.apply({"op": "set_generation", "as": 0, "gen": 0x7FFE0})
        return old

    story = Story(tmp_path)
    story.lines = [line for line in story.lines if "mmu_load" not in line]
    story.op("guest_run")
    story.fault(0x1000000, 0x100000006)
    last = quiet(story, *range(0x7FFE4, 0x80002, 2))
    outputs = story.outputs(last, factory=aged)
    said = [line.split()[0] for line in outputs if not line.startswith("memslots_updated")]
    assert said[:2] == ["zap_all_fast_enter", "kvm_mmu_zap_all_fast"]
    assert said.count("kvm_mmu_prepare_zap_page") == 4


RECREATED = ["memslots_updated", "flush_shadow_memslot", "zap_all_fast_enter", "kvm_mmu_zap_all_fast"]


def test_quiet_rounds_that_publish_three_arrays_delete_the_slot_and_make_it_again(tmp_path: Path):
    story = Story(tmp_path)
    story.op("guest_run")
    story.fault(0x1000000, 0x100000006)
    first = quiet(story, 4, 6, 8)
    story.line('tracing_mark_write: {"i":90,"ev":"toggle","k":0}')
    second = quiet(story, 10, 12, 14, 16, 18, 20)
    story.line('tracing_mark_write: {"i":91,"ev":"toggle","k":2}')
    story.slot(size="0x0")
    story.slot()
    story.line('tracing_mark_write: {"i":92,"ev":"toggle","k":3}')
    # Nothing says how many rounds the last ones are: they are like those before.
    third = quiet(story, 28, 30, 32)
    for at, rounds in ((first, 1), (second, 2), (third, 1)):
        said = [line.split()[0] for line in story.outputs(at)]
        assert said.count("kvm_mmu_zap_all_fast") == rounds and said.count("change_mmu_pages") == 2 * rounds
        assert said[:4] == RECREATED and said[-2:] == ["memslots_updated", "change_mmu_pages"]


def test_quiet_rounds_that_publish_one_array_change_the_flags(tmp_path: Path):
    story = Story(tmp_path)
    story.op("guest_run")
    story.fault(0x1000000, 0x100000006)
    at = quiet(story, 4, 6, 8)
    story.line('tracing_mark_write: {"i":90,"ev":"toggle","k":2}')
    write = story.fault(0x1000000, 0x100000007, level=None)
    assert [line.split()[0] for line in story.outputs(at)] == ["memslots_updated"] * 3
    # Logged an odd number of times: the leaf lost W and keeps bit 10.
    assert story.outputs(write)[0].endswith("spurious 0 fixed 1")


@pytest.mark.parametrize("deletes", [True, False])
def test_the_first_announced_round_says_what_the_quiet_ones_before_it_were(tmp_path: Path, deletes: bool):
    story = Story(tmp_path)
    story.op("guest_run")
    at = quiet(story, 4, 6, 8, 10, 12, 14)
    story.slot(**({"size": "0x0"} if deletes else {"flags": 1}))
    said = [line.split()[0] for line in story.outputs(at)]
    assert said.count("kvm_mmu_zap_all_fast") == (2 if deletes else 0)
    assert said.count("memslots_updated") == 6


def test_the_probe_on_an_update_says_what_no_marker_announced(tmp_path: Path):
    story = Story(tmp_path)
    story.lines.insert(5, PREFIX + "set_memslot: (kvm_set_memslot+0x0/0x4c0 [kvm]) change=0")
    story.fault(0x1000000, 0x100000006)
    changes = [story.line(f"set_memslot: (kvm_set_memslot+0x0/0x4c0 [kvm]) change={n}") for n in (3, 3, 1, 0)]
    assert story.outputs(changes[0]) == ["memslots_updated gen=0x4", "invalidate_mmio gen=0x4"]
    assert story.outputs(changes[1]) == ["memslots_updated gen=0x6", "invalidate_mmio gen=0x6"]
    assert [line.split()[0] for line in story.outputs(changes[2])][:5] == [
        "memslots_updated", "invalidate_mmio", "flush_shadow_memslot", "zap_all_fast_enter", "kvm_mmu_zap_all_fast",
    ]  # fmt: skip
    assert [line.split()[0] for line in story.outputs(changes[3])] == [
        "memslots_updated", "invalidate_mmio", "change_mmu_pages",
    ]  # fmt: skip


@pytest.mark.parametrize("has_probes", [True, False])
def test_without_the_event_on_smm_the_smi_and_what_follows_it_say_when(tmp_path: Path, has_probes: bool):
    story = Story(tmp_path)
    if not has_probes:
        story.lines = [line for line in story.lines if "mmu_load" not in line]
    story.op("set_memslot", slot=1, as_id=1, flags=0, gpa="0x1000000", size="0x1000000", hva="0x7f0000000000")
    story.op("guest_run", ncmds=1)
    story.fault(0x1000000, 0x100000006)
    story.op("smi", rc=0)
    entered = story.op("guest_run", ncmds=1)
    if has_probes:
        story.line("free_roots: (kvm_mmu_free_roots+0x0/0x1c0 [kvm]) mask=0xffffffffffffffff")
        entered = story.line("mmu_load: (kvm_mmu_load+0x0/0x890 [kvm])")
    inside = story.line("kvm_page_fault: vcpu 0 rip 0x8006 address 0x0000000001000000 error_code 0x100000004")
    inside = story.line("kvm_mmu_spte_requested: gfn 1000 pfn 161c00 level 1")
    left = [story.line("kvm_page_fault: vcpu 0 rip 0x10a7 address 0x0000000001008000 error_code 0x100000004")]
    if has_probes:
        left[0:0] = [
            story.line("free_roots: (kvm_mmu_free_roots+0x0/0x1c0 [kvm]) mask=0xffffffffffffffff"),
            story.line("mmu_load: (kvm_mmu_load+0x0/0x890 [kvm])"),
        ]
        story.lines.append(story.lines.pop(-3))
    story.line("kvm_mmu_spte_requested: gfn 1008 pfn 161c08 level 1")
    story.op("smi", rc=0)
    story.op("guest_run", ncmds=1)
    ended = story.op("use_vcpu", id=0)
    root = f"kvm_mmu_get_page sp gen 0 gfn 0 l4 {PAGE} nxe ad root 0 sync"
    # Roots of one mode are never those of the other.
    assert story.outputs(entered) == [f"{root} new"]
    assert sum("get_page" in line for line in story.outputs(inside)) == 3
    assert [line for line in story.outputs(*left) if " l4 " in line] == [f"{root} existing"]
    assert story.outputs(ended) == ([] if has_probes else [f"{root} existing"])


def test_where_no_operation_chooses_the_vcpu_the_task_of_a_line_says_whose_probe_it_is(tmp_path: Path):
    def line(task: str, text: str) -> str:
        return f"{task:>20}   [000] .....  5012.1: {text}"

    def fault(task: str, vcpu: int, gpa: int) -> list[str]:
        address = f"address {gpa:#018x} error_code 0x100000006"
        return [
            line(task, f"kvm_page_fault: vcpu {vcpu} rip 0x1000 {address}"),
            line(task, f"kvm_mmu_spte_requested: gfn {gpa >> 12:x} pfn 8000000000000000 level 1"),
        ]

    one, two = "CPU 0/KVM-71", "CPU 1/KVM-72"
    load = "mmu_load: (kvm_mmu_load+0x0/0x890 [kvm])"
    free = "free_roots: (kvm_mmu_free_roots+0x0/0x1c0 [kvm]) mask=0xffffffffffffffff"
    slot = '{"i":9,"op":"set_memslot","slot":0,"gpa":"0x0","size":"0x1000","hva":"0x1000"}'
    lines = [
        host.PREFIX + json.dumps({"kernel": "6.1", "mmu": "npt"}),
        line("vmm-70", 'tracing_mark_write: {"i":1,"op":"create_vm"}'),
        line("vmm-70", f"tracing_mark_write: {slot}"),
        *(line("vmm-70", f'tracing_mark_write: {{"i":{n + 2},"op":"create_vcpu","id":{n}}}') for n in range(2)),
        line(one, load), line(two, load), *fault(one, 0, 0xD0000000), line(two, free), *fault(one, 0, 0xD0001000),
        line(two, load), *fault(two, 1, 0xD0002000),
    ]  # fmt: skip
    trace = tmp_path / "two.txt"
    trace.write_text("\n".join(lines) + "\n")
    roots = [p.body.split(" l4 ")[1] for p in replay(trace, engine).predictions if " l4 " in p.body]
    marks = [p.line for p in replay(trace, engine).predictions if p.event == "mark_mmio_spte"]
    role = "8-byte q0 direct wux nxe ad root"
    # The second vCPU shares the first one's root; the first keeps it when the second gives it up and takes it again.
    assert roots == [f"{role} 0 sync new", f"{role} 1 sync existing", f"{role} 1 sync existing"]
    assert marks == [9, 12, 15]


def test_a_reclaim_of_a_root_load_is_not_that_of_the_fault_before_it(tmp_path: Path):
    story = Story(tmp_path)
    story.op("set_nr_mmu_pages", n=64)
    for i in range(64):
        story.op("set_memslot", slot=10 + i, as_id=0, flags=0, gpa=hex(0x20000000 + i * 0x200000), size="0x1000",
                 hva=hex(0x7F0000000000 + i * 0x1000))  # fmt: skip
    for i in range(57):  # with the tables above 60 pages of 64, at which a load reclaims
        story.fault(0x20000000 + i * 0x200000, 0x100000006)
    story.fault(0x20000000 + 60 * 0x200000, 0x100000006, level=None)
    story.line("free_roots: (kvm_mmu_free_roots+0x0/0x1d0 [kvm]) mask=0x1")
    load = story.line("mmu_load: (kvm_mmu_load+0x0/0x890 [kvm])")
    reclaim = story.line("zap_oldest: (kvm_mmu_zap_oldest_mmu_pages+0x0/0x190 [kvm]) nr=21")
    scan = story.line("zap_oldest: (kvm_mmu_zap_oldest_mmu_pages+0x0/0x190 [kvm]) nr=128")
    told = {at: [text.split()[0] for text in story.outputs(at)] for at in (load, reclaim, scan)}
    assert told[load].count("zap_oldest_ret") == 1 and told[reclaim] == []
    assert told[scan].count("zap_oldest_ret") == 1


def test_what_the_answer_says_was_written_decides_where_only_accessed_and_dirty_differ(tmp_path: Path):
    """v6.fault.7: the leaf is there already, and a processor may have set bits in it behind the kernel's back."""
    story = Story(tmp_path)
    written, same, again = (
        (story.fault(0x1000000, 0x100000006), story.line(f"{ANSWER}: set {was} writable 1 found -"))[1]
        for was in (1, 0, 1)
    )
    first, nothing, rewritten = (short(story.outputs(at)) for at in (written, same, again))
    assert "e67" in first[-1] and nothing == []
    assert len(rewritten) == 1 and "e27" in rewritten[0]


def test_a_scan_that_no_fault_asks_for_is_the_shrinkers(tmp_path: Path):
    story = Story(tmp_path)
    story.fault(0x1000000, 0x100000006)
    story.fault(0x1000000, 0x100000006, level=None)
    at = story.line("zap_oldest: (kvm_mmu_zap_oldest_mmu_pages+0x0/0x190 [kvm]) nr=128")
    assert [line.split()[0] for line in story.outputs(at)][-2:] == ["commit_zap", "zap_oldest_ret"]


def test_impossible_levels_are_refused(tmp_path: Path):
    story = Story(tmp_path)
    story.fault(0x1000000, 0x100000006, level=5)
    with pytest.raises(TraceError, match="level 5 is not possible"):
        story.outputs()


@pytest.mark.parametrize("name", ["6.1/npt0_basic_flat", "6.1/npt0_basic_real", "6.1/npt1tdp0_basic_long"])
def test_without_host_facts_the_faults_say_which_mmu_it_was(name: str, tmp_path: Path):
    for file in ("trace.txt.xz", "ops.jsonl.xz"):
        shutil.copy(TRACES / name / file, tmp_path)
    report = replay(tmp_path / "trace.txt.xz", core, kernel="v6.1")
    assert report.is_equal and report.compared
    facts = json.loads((TRACES / name / "host.json").read_text())
    assert {key: report.inferred[key] for key in ("mmu", "guest_mode")} == {
        key: facts[key] for key in ("mmu", "guest_mode")
    }
    assert report.inferred["phys_bits"] == 40


def test_a_shortened_first_marker_still_says_that_answers_are_wanted(tmp_path: Path):
    name = "6.1/npt1tdp0_notifier"
    for file in ("host.json", "ops.jsonl.xz"):
        shutil.copy(TRACES / name / file, tmp_path)
    short = re.compile(r'(tracing_mark_write: \{"i":\d+,"(?:op|ev)":"\w+").*')
    text = "\n".join(short.sub(r"\1}", line) for line in read_lines(TRACES / name / "trace.txt.xz"))
    (tmp_path / "trace.txt").write_text(text + "\n")
    report = replay(tmp_path / "trace.txt", core)
    assert report.is_equal and report.host_answers == 95


def test_a_recording_is_replayed_with_the_rules_of_its_kernels_only():
    with pytest.raises(TraceError, match=r"recorded on v5\.10 or later, so it cannot be replayed as v5\.2"):
        replay(TRACES / "6.12" / "npt1tdp0_zap_batch" / "trace.txt.xz", engine, kernel="v5.2")
    with pytest.raises(
        TraceError, match=r"recorded on a kernel before v5\.10, so it cannot be replayed as v6\.1"
    ):
        replay(TRACES / "5.0.1-npt" / "basic" / "trace.txt.xz", engine, kernel="v6.1")


#: What the plain event set leaves out of the full one.
PROBES = (
    "mmu_load free_roots dirty_masked zap_oldest swap_memslots set_memslot kvm_entry kvm_exit free_obsolete_roots"
    " reset_context slot_wrprot sync_roots"
).split()
FULL = [
    name
    for name in RECORDINGS
    if json.loads((TRACES / name / "host.json").read_text())["event_set"] == "full"
]


@pytest.mark.parametrize("name", FULL)
def test_without_the_probes_the_markers_say_enough(name: str, tmp_path: Path):
    """Loads, dropped roots, reclaim and dirty protection then follow from the operations and the model itself."""
    path = TRACES / name / "trace.txt.xz"
    lines, facts = read_lines(path), host.beside(path) or {}
    text = strip(lines, facts, operations_beside(path), answers=wants_answers(facts, lines)).text()
    plain = [line for line in text.splitlines() if not any(f": {probe}:" in line[:200] for probe in PROBES)]
    told = []
    for number, left in enumerate((text.splitlines(), plain)):
        file = tmp_path / f"{number}.txt"
        file.write_text("\n".join(left) + "\n")
        predictions = replay(file, engine).predictions
        told.append(
            [
                (p.event, normalise(p.event, p.body, words_of(facts)))
                for p in predictions
                if p.event in TRACEPOINTS
            ]
        )
    assert told[0] == told[1]
