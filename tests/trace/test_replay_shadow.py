"""Recordings of guests whose page tables are shadowed replay to their own outputs; what such a guest does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from kvm_mmu import reference
from kvm_mmu.errors import TraceError
from kvm_mmu.recorders.guest_program import GuestProgram, Step, command_of
from kvm_mmu.recorders.guest_tables import GuestTables
from kvm_mmu.scenario.machine_engine import MachineEngine
from kvm_mmu.trace.replay.engine import engine_factory, shadows_guest
from kvm_mmu.trace.replay.fidelity import kept
from kvm_mmu.trace.replay.guest_memory import with_guest_memory
from kvm_mmu.trace.replay.replaying import replay
from kvm_mmu.trace.replay.stripping import Kept
from kvm_mmu.trace.text.source import read_lines

TRACES = Path(__file__).resolve().parent.parent / "data" / "traces"
RECORDINGS = [
    "5.0.1/legacy32",
    "6.1/npt0_multi_vcpu_p32",
    "6.1/npt0_pt_writes_long",
    "6.12/ept0_basic_long",
    "6.12/npt0_access_roles_pae",
    "6.18/npt0_smm",
    "7.2/npt0_access_roles_long",
]
HOST = {
    "kernel": "6.1",
    "release": "6.1.192",
    "mmu": "shadow",
    "tdp_mmu": 0,
    "phys_bits": 40,
    "guest_mode": "long",
}
PREFIX = "             vmm-1199    [000] ...1.   115.872493: "


def slow(kernel: str, config: Mapping[str, object]) -> Any:
    return reference.Engine(kernel=kernel, config=dict(config))


def core(kernel: str, config: Mapping[str, object]) -> Any:
    from kvm_mmu.scenario.machine_engine import MachineEngine

    return MachineEngine(kernel=kernel, config=dict(config))


@pytest.mark.parametrize("make", [core, slow])
@pytest.mark.parametrize("name", RECORDINGS)
def test_equal(name: str, make: Any):
    report = replay(TRACES / name / "trace.txt.xz", make)
    assert report.compared and report.is_equal, report.as_text()
    assert report.inferred == {} and report.recorded["kvm_mmu_get_page"]
    assert dict(report.recorded) == kept(TRACES / name), "kvm-mmu trace fidelity tests/data/traces --keep"


def test_the_recordings_show_what_only_shadow_paging_does():
    kinds = set().union(*(kept(TRACES / name) for name in RECORDINGS))
    assert kinds >= {
        "kvm_mmu_sync_page",
        "kvm_mmu_unsync_page",
        "kvm_mmu_set_accessed_bit",
        "kvm_mmu_set_dirty_bit",
        "unprotect_page_ret",
    }


@pytest.mark.soak
@pytest.mark.parametrize("kernel", ["6.1", "6.12", "6.18", "7.2", "7.2.6", "7.3"])
def test_every_shared_recording_is_equal(shared: Path, kernel: str):
    paths = sorted((shared / "traces" / kernel).glob("[en]pt0_*/trace.txt.xz"))
    assert paths
    for path in paths:
        if path.parent.name != "npt0_pt_writes_long_mid":
            report = replay(path, keep=False)
            assert report.is_equal, report.as_text()


def test_the_core_is_taken_where_a_guests_tables_are_shadowed():
    assert shadows_guest({"family": "shadow", "guest_paging": 1}) and shadows_guest({"family": "shadow"})
    assert not shadows_guest({"family": "shadow", "guest_paging": 0})
    assert not shadows_guest({"family": "npt"})
    made = engine_factory("auto")("v6.12", {"family": "shadow"})
    assert isinstance(made, MachineEngine)
    assert isinstance(engine_factory("reference")("v6.12", {"family": "shadow"}), reference.Engine)


# -- recordings that cannot be predicted --------------------------------------------------------------------------


def story(folder: Path, *lines: str, **host: object) -> Path:
    path = folder / "story.txt"
    text = ["# replay-host: " + json.dumps({**HOST, **host}), *(PREFIX + line for line in lines)]
    path.write_text("\n".join(text) + "\n")
    return path


def mark(number: int, **operation: object) -> str:
    return "tracing_mark_write: " + json.dumps({"i": number, **operation})


BEGIN = (
    mark(0, op="create_vm"),
    mark(1, op="backing", name="low", gpa="0x0", size="0x400000", hva="0x7f0000000000", thp=0),
    mark(2, op="set_memslot", slot=0, as_id=0, flags=0, gpa="0x0", size="0x400000", hva="0x7f0000000000"),
    mark(3, op="create_vcpu", id=0),
    mark(4, op="host_map", root="0x100000", gva="0x0", gpa="0x0", size="0x400000", flags="0x7", level=1),
    mark(5, op="set_cpu", cpl=0, cr0="0x80010033", cr3="0x100000", cr4="0x20", efer="0xd00"),
    mark(6, op="guest_write", gva="0x103000", stride=8, count=1, value="0x7", inc="0x0", size=8),
    mark(7, op="guest_run", ncmds=1),
    mark(8, ev="guest_done"),
)


def test_a_store_into_a_table_without_the_probes_on_it_is_refused(tmp_path: Path):
    with pytest.raises(
        TraceError, match=r"writes into a page that may be one of its page tables, at 0x103000"
    ):
        replay(story(tmp_path, *BEGIN), slow)
    # With a probe in the text the store has trapped where it had to.
    assert replay(story(tmp_path, *BEGIN, "sync_roots: (x+0x0/0x1 [kvm])"), slow).predicted


def test_a_kernel_whose_shadow_paging_is_not_modelled_is_refused(tmp_path: Path):
    with pytest.raises(
        TraceError, match="cannot be replayed: guests with page tables of their own are not modelled"
    ):
        replay(story(tmp_path, *BEGIN, kernel="5.10", release="5.10.251"), slow)


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (
            mark(
                9, op="host_map", root="0x100000", gva="0x0", gpa="0x0", size="0x1000", flags="0x7", level=4
            ),
            "1 to 3",
        ),
        (
            mark(
                9,
                op="host_map",
                root="0x100000",
                gva="0x0",
                gpa="0x0",
                size="0x10000000000",
                flags="0x7",
                level=1,
            ),
            "more than any recording has",
        ),
        (mark(9, op="guest_read", gva="0x0", stride=4096, count=1 << 30), "accesses in one command"),
        ("pte_write: (x+0x0/0x1 [kvm]) gpa=0x103000 val=0x7 bytes=16", "an emulated write of 16 bytes"),
    ],
)
def test_what_cannot_be_is_said(operation: str, message: str, tmp_path: Path):
    with pytest.raises(TraceError, match=message):
        replay(story(tmp_path, *BEGIN[:6], operation), slow)


def test_5x_without_the_guests_memory_is_refused(tmp_path: Path):
    folder = TRACES / "5.0.1" / "legacy32"
    (tmp_path / "trace.txt").write_text("\n".join(read_lines(folder / "trace.txt.xz")) + "\n")
    (tmp_path / "host.json").write_bytes((folder / "host.json").read_bytes())
    with pytest.raises(TraceError, match="replay_guest_regs and replay_guest_memory"):
        replay(tmp_path / "trace.txt", slow)
    (tmp_path / "guest_memory.jsonl").write_text('{"before": 1}\n')
    with pytest.raises(
        TraceError, match=r"guest_memory\.jsonl:1: expected an object of 'before' and one of regs, w"
    ):
        replay(tmp_path / "trace.txt", slow)


def test_guest_memory_comes_before_its_operation(tmp_path: Path):
    path = tmp_path / "guest_memory.jsonl"
    path.write_text('{"before": 2, "w": [["0x1000", "0x7"]]}\n')
    marks = [Kept(f'{PREFIX}tracing_mark_write: OP {n} "op":"read8"', n) for n in (1, 3)]
    texts = [item.text for item in with_guest_memory(marks, path) if isinstance(item, Kept)]
    assert texts == [
        marks[0].text,
        PREFIX + 'replay_guest_memory: [["0x1000", "0x7"]]',
        marks[1].text,
    ]


# -- the guest ----------------------------------------------------------------------------------------------------


def program(*operations: dict[str, object], mode: str = "long") -> tuple[GuestProgram, list[Step]]:
    done: list[Step] = []
    made = GuestProgram(done.append)
    for op in operations:
        command = command_of(op, str(op["op"]), mode, "here")
        assert command is not None
        made.add(command)
    made.start(len(operations))
    return made, done


STORES = {
    "op": "guest_write",
    "gva": "0x1000",
    "stride": 8,
    "count": 4,
    "value": "0x10",
    "inc": "0x1",
    "size": 8,
}


def test_the_guest_has_come_to_the_access_that_faults_and_no_further():
    made, done = program(STORES, {"op": "guest_read", "gva": "0x5000", "stride": 4096, "count": 3})
    assert made.go_to_access(0x1010, frozenset({"write"}))
    assert [(step.gva, step.value) for step in done] == [(0x1000, 0x10), (0x1008, 0x11)]
    assert not made.go_to_access(0x1000, frozenset({"write"}))  # it is over
    assert made.go_to_access(0x6000, frozenset({"read"}))
    assert [step.gva for step in done] == [0x1000, 0x1008, 0x1010, 0x1018]
    made.finish()
    assert len(done) == 4


def test_a_store_of_eight_bytes_is_two_outside_long_mode_the_higher_half_first():
    made, done = program({**STORES, "count": 1, "value": "0x1122334455667788"}, mode="pae")
    made.finish()
    assert [(step.gva, step.size, step.value) for step in done] == [
        (0x1004, 4, 0x11223344),
        (0x1000, 4, 0x55667788),
    ]


def test_a_store_that_the_emulator_made_is_not_made_again():
    made, done = program(STORES)
    found = made.take_store(lambda step: step.gva == 0x1008)
    assert found is not None and found.value == 0x11
    made.finish()
    assert [step.gva for step in done] == [0x1000, 0x1010, 0x1018]


def test_commands_behind_those_of_a_run_wait_for_the_next():
    made, done = program(STORES, {**STORES, "gva": "0x2000"})
    made.start(1)
    made.finish()
    assert {step.gva >> 12 for step in done} == {1}
    made.start(1)
    made.finish()
    assert {step.gva >> 12 for step in done} == {1, 2}


def test_a_register_is_written_when_its_line_comes():
    made, done = program(STORES, {"op": "guest_mov_cr", "cr": 3, "value": "0x4000"}, STORES)
    step = made.go_to_register(lambda register, value: (register, value) == (3, 0x4000))
    assert step is not None and len(done) == 4
    assert made.go_to_register(lambda *_: True) is None


class Memory(dict[int, int]):
    """Entries of 8 bytes by their address."""

    def read(self, gpa: int, size: int) -> int:
        return self.get(gpa & -8, 0) >> 8 * (gpa & 7) & (1 << 8 * size) - 1

    def write(self, gpa: int, value: int, size: int) -> None:
        shift, mask = 8 * (gpa & 7), (1 << 8 * size) - 1
        self[gpa & -8] = self.get(gpa & -8, 0) & ~(mask << shift) | (value & mask) << shift


def test_tables_lie_behind_each_other_in_order_of_need():
    memory = Memory()
    tables = GuestTables("long", memory.read, memory.write)
    tables.map_range(0x100000, 0, 0, 0x3000, 2, 1)
    assert [memory[at] for at in (0x100000, 0x101000, 0x102000)] == [0x101007, 0x102007, 0x103007]
    assert [memory[0x103000 + 8 * i] for i in range(3)] == [0x3, 0x1003, 0x2003]
    tables.map_range(0x100000, 0x200000, 0x800000, 0x1000, 6, 1)
    assert memory[0x102008] == 0x104007 and memory[0x104000] == 0x800007
    assert tables.translate(0x100000, 0x200123) == 0x800123 and tables.translate(0x100000, 0x400000) is None
    # A store through a table that a translation used is seen, and a root that is new is a copy of the first.
    tables.store(0x104000, 0x900007, 8)
    assert tables.translate(0x100000, 0x200123) == 0x900123
    tables.see_root(0x105000)
    assert memory[0x105000] == 0x101007


def test_pdptes_of_three_levels_have_no_rights_and_entries_of_two_levels_four_bytes():
    memory = Memory()
    GuestTables("pae", memory.read, memory.write).map_range(0x100000, 0x40000000, 0, 0x1000, 6, 1)
    assert memory[0x100008] == 0x101001
    memory = Memory()
    tables = GuestTables("p32", memory.read, memory.write)
    tables.map_range(0x100000, 0x400000, 0x800000, 0x400000, 6, 2)
    assert memory[0x100000] == 0x800087 << 32 and tables.translate(0x100000, 0x512345) == 0x912345


def test_only_the_first_pass_of_a_walk_that_began_anew_is_what_was_read():
    tables = GuestTables("long", lambda *_: 0, lambda *_: None)
    walk = [(0x100027, 4), (0x100027, 3), (0x100067, 4)]
    assert tables.place(0x100000, 0, walk) == [(0x100000, 0x100027), (0x100000, 0x100027)]
