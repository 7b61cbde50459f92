"""A guest that pages, written in Python: the same script over a `Vm`, the scenario engine and the reference.

What each of them must say is known: the script reads its tables back, writes through them and sees its own faults.
"""

from __future__ import annotations

from collections.abc import Callable

import kvm_mmu as km
import numpy as np
import pytest
from kvm_mmu.machine.guest import Guest
from kvm_mmu.machine.guest_paging import Registers, shape_of
from kvm_mmu.reference import Engine
from kvm_mmu.scenario.machine_engine import MachineEngine

MEMORY = 16 * km.MIB
Maker = Callable[[str], Guest]


def over_vm(kernel: str) -> Guest:
    return km.Vm(kernel=kernel, family="shadow", events="all").guest


def over_engine(kernel: str) -> Guest:
    return Guest(MachineEngine(kernel, {"family": "shadow"}))


def over_reference(kernel: str) -> Guest:
    return Guest(Engine(kernel, {"family": "shadow"}))


MAKERS = [over_vm, over_engine, over_reference]
KERNELS = ["v5.0", "v5.2", "v6.1", "v6.12"]


@pytest.fixture(params=MAKERS, ids=lambda maker: maker.__name__.removeprefix("over_"))
def make(request: pytest.FixtureRequest) -> Maker:
    maker: Maker = request.param

    def with_memory(kernel: str) -> Guest:
        guest = maker(kernel)
        guest.add_memory(0, MEMORY)
        return guest

    return with_memory


def modes(kernel: str) -> list[str]:
    return ["long", "pae", "p32", *(["long5"] if kernel.startswith("v6") else [])]


CASES = [(kernel, mode) for kernel in KERNELS for mode in modes(kernel)]


@pytest.mark.parametrize(("kernel", "mode"), CASES)
def test_a_guest_reads_and_writes_through_its_tables(make: Maker, kernel: str, mode: str) -> None:
    guest = make(kernel)
    guest.set_mode(mode)
    assert guest.mode == mode
    guest.map(0x400000, 0x200000, 3 * km.PAGE_SIZE, "rwu")
    done = guest.access(0x400000, "w", user=True)
    assert (done.outcome, done.faults) == ("hit", 1)
    assert guest.write(0x401008, 0x1234, size=4).outcome == "hit"
    assert guest.peek(0x201008, 4) == 0x1234
    assert guest.read(0x401008, size=4) == (km.AccessResult("hit", 0, 0), 0x1234)
    assert guest.access(0x403000).outcome == "guest_fault"
    leaves = [entry for entry in guest.tables() if entry.is_leaf]
    # The first page was written, the second read and written, the third never used.
    assert [(leaf.gva, leaf.gpa, leaf.flags[-2:]) for leaf in leaves] == [
        (0x400000, 0x200000, "ad"),
        (0x401000, 0x201000, "ad"),
        (0x402000, 0x202000, "--"),
    ]
    assert guest.translate(0x402ABC) == 0x202ABC and guest.translate(0x403000) is None


@pytest.mark.parametrize(("kernel", "mode"), CASES)
def test_a_guest_writes_its_own_tables(make: Maker, kernel: str, mode: str) -> None:
    """A table that the guest maps goes out of step with its shadow, and comes back with the flush."""
    guest = make(kernel)
    guest.set_mode(mode)
    guest.map(0x400000, 0x200000, flags="rwu")
    guest.map(0x1000, 0x1000, 8 * km.PAGE_SIZE, "rw")
    assert guest.access(0x400000, "w", user=True).outcome == "hit"
    place = guest.entry_gpa(0x400000)
    size = 4 if mode == "p32" else 8
    assert guest.write(place, guest.peek(place, size) & ~2, size).outcome == "hit"
    guest.invlpg(0x400000)
    assert guest.access(0x400000, "r", user=True).outcome == "hit"
    assert guest.access(0x400000, "w", user=True).outcome == "guest_fault"


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("mode", "page"), [("long", 2 * km.MIB), ("pae", 2 * km.MIB), ("p32", 4 * km.MIB)])
def test_large_pages(make: Maker, kernel: str, mode: str, page: int) -> None:
    guest = make(kernel)
    guest.set_mode(mode)
    assert guest.map(0x10000000, 0x800000, 2 * page, "rwx", page=page) >= 2
    assert guest.write(0x10000000 + page + 0x5000, 7).outcome == "hit"
    assert guest.peek(0x800000 + page + 0x5000) == 7
    with pytest.raises(km.UsageError, match=r"a page of .* bytes is mapped there"):
        guest.map(0x10000000, 0x300000)
    assert guest.unmap(0x10000000, 2 * page) == 2
    assert [entry for entry in guest.tables() if entry.is_leaf] == []


@pytest.mark.parametrize("kernel", KERNELS)
def test_two_address_spaces(make: Maker, kernel: str) -> None:
    guest = make(kernel)
    first, second = guest.cr3, guest.new_root()
    guest.map(0x400000, 0x200000)
    guest.map(0x400000, 0x300000, cr3=second)
    guest.write(0x400000, 1)
    guest.set_cr3(second)
    assert guest.cr3 == second and guest.translate(0x400000) == 0x300000
    guest.write(0x400000, 2)
    guest.set_cr3(first)
    assert guest.read(0x400000)[1] == 1
    assert (guest.peek(0x200000), guest.peek(0x300000)) == (1, 2)


@pytest.mark.parametrize("kernel", KERNELS)
def test_protections(make: Maker, kernel: str) -> None:
    guest = make(kernel)
    guest.set_mode("long", smep=True, smap=True)
    guest.map(0x400000, 0x200000, flags="rwu")
    guest.map(0x401000, 0x201000, flags="rx")
    assert guest.access(0x400000, "r").outcome == "guest_fault"  # SMAP
    assert guest.access(0x400000, "r", user=True).outcome == "hit"
    assert guest.access(0x400000, "x", user=True).outcome == "guest_fault"  # NX
    assert guest.access(0x401000, "x").outcome == "hit"
    assert guest.access(0x401000, "w").outcome == "guest_fault"
    assert guest.access(0x401000, "r", user=True).outcome == "guest_fault"


@pytest.mark.parametrize("kernel", KERNELS)
def test_many_accesses_and_no_paging(make: Maker, kernel: str) -> None:
    guest = make(kernel)
    guest.map(0x400000, 0x200000, 4 * km.PAGE_SIZE)
    rows = guest.access_many(np.arange(5, dtype=np.uint64) * 0x1000 + 0x400000, "w")
    assert rows.counts() == {"hit": 4, "emulate": 0, "error": 0, "stuck": 0, "guest_fault": 1}
    guest.set_mode("none")
    assert guest.mode == "none" and guest.access(0x200000).outcome == "hit"
    assert list(guest.tables()) == [] and guest.translate(0x1234) == 0x1234
    with pytest.raises(km.UsageError, match="map: the guest does not page"):
        guest.map(0x400000, 0x200000)


def test_all_three_do_the_same() -> None:
    """Events and results of a longer script, step by step, are equal over the core and the reference."""
    engines = [MachineEngine("v6.12", {"family": "shadow"}), Engine("v6.12", {"family": "shadow"})]
    logs: list[list[object]] = []
    for engine in engines:
        guest, log = Guest(engine), []
        guest.add_memory(0, MEMORY)
        guest.map(0x1000, 0x1000, 16 * km.PAGE_SIZE, "rw")
        for round_ in range(4):
            guest.map(0x400000, 0x200000 + (round_ << 16), 6 * km.PAGE_SIZE, "rwu")
            log += [guest.access(0x400000 + i * 0x1000, "wr"[i & 1], user=True) for i in range(7)]
            place = guest.entry_gpa(0x402000)
            log.append(guest.write(place, 0))
            log += [guest.access(0x402000), guest.set_cr3(guest.cr3), guest.access(0x402000)]
            guest.invlpg(0x401000)
            log.append(engine.digest())
        logs.append(log)
    assert logs[0] == logs[1]


WRONG = [
    ("map", (0x400001, 0x200000), {}, "gva=0x400001: expected a multiple of the page size 0x1000"),
    ("map", (0x400000, 0x200000), {"page": 0x3000}, "page=12288: mode long has pages of 0x1000, 0x200000"),
    ("map", (0x400000, 0x200000), {"flags": "rq"}, "flags='rq': expected the letters"),
    ("map", (0x400000, 1 << 52), {}, "gpa=4503599627370496: expected an integer from 0 to 2\\^52-1"),
    ("set_mode", ("real",), {}, "mode='real'"),
    ("access", (0, "rw"), {}, "kind='rw'"),
    ("write", (0x400000, 1, 3), {}, "size=3: expected 1, 2, 4 or 8 bytes"),
    ("write", (0x400000, 256, 1), {}, "value=256: expected an integer from 0 to 255"),
    ("poke", (MEMORY, 1), {}, "gpa 0x1000000: the guest has no memory there"),
    ("entry_gpa", (0x400000,), {}, "no table of level 1 translates it, level 4 has 0x0"),
    ("access_many", ([[1]],), {}, r"gvas has shape \(1, 1\)"),
]


@pytest.mark.parametrize(("method", "arguments", "more", "message"), WRONG)
def test_what_a_guest_cannot_do_is_refused(
    make: Maker, method: str, arguments: tuple[object, ...], more: dict[str, object], message: str
) -> None:
    guest = make("v6.12")
    with pytest.raises(km.UsageError, match=message):
        getattr(guest, method)(*arguments, **more)


def test_a_guest_without_memory_says_so() -> None:
    for maker in MAKERS:
        with pytest.raises(km.UsageError, match="no memory for its tables"):
            maker("v6.12").map(0x400000, 0x200000)


def test_only_a_machine_with_shadowed_tables_has_one() -> None:
    with pytest.raises(km.UsageError, match="make it with family='shadow'"):
        _ = km.Vm().guest
    with pytest.raises(km.UsageError, match="guest of int: expected a Vm"):
        Guest(3)  # type: ignore[arg-type]


def test_the_shapes_are_those_of_the_registers() -> None:
    assert shape_of(Registers(0x80010001, 0, 0x20, 0xD00)).mode == "long"
    p32 = shape_of(Registers(0x80000001, 0, 0x10, 0))
    assert p32.leaf(0x3_0080_0000, "rw", 2) == 0x00800083 | 3 << 13
    assert p32.leads_to(0x00800083 | 3 << 13, 2) == 0x3_0080_0000


@pytest.mark.parametrize("kernel", ["v6.1", "v6.12"])
def test_neighbours_at_hand_are_given_in_the_order_of_their_entries(kernel: str) -> None:
    """A guest's neighbours may lead to gfns in any order; the recording's answer names those that were at hand."""
    from kvm_mmu.scenario.language import Scenario, make_engine

    pages = {0: 9, 1: 7, 2: 8, 3: 6}
    tables = {0x1000: 0x2067, 0x2000: 0x3067, 0x3000: 0x4067}
    tables |= {0x4000 + 8 * index: page << 12 | 0x67 for index, page in pages.items()}
    host = {"level": 1, "writable": 1, "found": [9, 7, 8], "set": 1}
    operations = [
        {"op": "set_memslot", "as": 0, "id": 0, "gpa": 0, "size": 0x10000, "hva": 0x10000000, "flags": 0},
        *({"op": "poke", "gpa": at, "val": to, "bytes": 8} for at, to in tables.items()),
        {"op": "load", "vcpu": 0},
        {"op": "fault", "vcpu": 0, "gpa": 0x3000, "err": 2, "host": host},
    ]
    states = []
    for backend in ("core", "reference"):
        scenario = Scenario(kernel=kernel, config={"family": "shadow", "traced": 1}, plans={})
        engine = make_engine(scenario, backend=backend)
        lines = [engine.apply(operation) for operation in operations]
        made = [event for event in lines[-1]["events"] if event[0] == "set_spte"]
        assert [event[2] for event in made] == [3, 0, 1, 2], backend
        states.append(engine.state())
    assert states[0] == states[1]
