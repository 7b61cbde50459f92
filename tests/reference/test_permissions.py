"""The walk of a guest's tables against the architecture's rules: who may do what, with which error code and which bits.

The rules are written down here a second time, from the processor manuals ("Determination of access rights", "Page-
protection checks"), not from the reference: each level's entry decides by itself, and the answer is put together from
all of them. The reference walks real tables in guest memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from kvm_mmu.reference import Engine
from kvm_mmu.reference.shadow.guest_memory import kvm_vcpu_read_guest, write_guest
from kvm_mmu.reference.shadow.guest_walk import walk_addr

P, W, U, A, D, PS, NX = 1, 2, 4, 1 << 5, 1 << 6, 1 << 7, 1 << 63
READ, WRITE, FETCH = 0, 2, 16
PAGE = 0x1000
#: Where the tables of each level stand, and what the leaf maps.
TABLES = {4: 0x1000, 3: 0x2000, 2: 0x3000, 1: 0x4000}
TARGET = 0x200000
CR0, CR4_PAE, CR4_PSE, SMEP, SMAP = 0x80000001, 1 << 5, 1 << 4, 1 << 20, 1 << 21


@dataclass(frozen=True)
class Mode:
    """A guest: how its tables look and what its registers say."""

    name: str
    levels: tuple[int, ...]
    nxe: bool
    wp: bool
    smep: bool
    smap: bool
    ac: bool

    @property
    def entry_size(self) -> int:
        return 4 if self.name == "p32" else 8

    def registers(self) -> dict[str, int]:
        cr4 = {"p32": CR4_PSE, "pae": CR4_PAE, "long": CR4_PAE}[self.name]
        efer = (0xD00 if self.nxe else 0x500) if self.name == "long" else (0x800 if self.nxe else 0)
        return {
            "cr0": CR0 | self.wp << 16,
            "cr4": cr4 | SMEP * self.smep | SMAP * self.smap,
            "efer": efer,
            "cr3": TABLES[self.levels[0]] if self.name != "pae" else 0x8000,
            "ac": int(self.ac),
        }


def modes() -> list[Mode]:
    names = {"long": (4, 3, 2, 1), "pae": (2, 1), "p32": (2, 1)}
    flags = list(itertools.product((False, True), repeat=5))
    return [Mode(name, levels, *flag) for name, levels in names.items() for flag in flags]


def verdict(mode: Mode, entries: dict[int, int], wanted: int, is_user: bool) -> int | None:
    """The error code of the fault, None where the access is allowed."""
    has_nx = mode.nxe and mode.name != "p32"
    fetch_bit = FETCH if wanted == FETCH and (has_nx or mode.smep) else 0
    asked = (WRITE if wanted == WRITE else 0) | (4 if is_user else 0) | fetch_bit
    for level in mode.levels:
        entry = entries[level]
        if not entry & P:
            return asked
        if entry & NX and mode.name != "p32" and not mode.nxe:
            return asked | 9
    used = [entries[level] for level in mode.levels]
    writable = all(entry & W for entry in used)
    user_page = all(entry & U for entry in used)
    executable = not (has_nx and any(entry & NX for entry in used))
    if is_user:
        allowed = user_page and (wanted != WRITE or writable) and (wanted != FETCH or executable)
    elif wanted == FETCH:
        allowed = executable and not (user_page and mode.smep)
    else:
        allowed = not (user_page and mode.smap and not mode.ac)
        allowed &= wanted != WRITE or writable or not mode.wp
    return None if allowed else asked | 1


def entry_choices(mode: Mode) -> Iterator[dict[int, int]]:
    """Entries for every level: all rights of one level while the others give everything or nothing, and mixtures."""
    nx = NX if mode.name != "p32" else 0
    rights = sorted({p | w | u | x for p in (0, P) for w in (0, W) for u in (0, U) for x in (0, nx)})
    everything = P | W | U
    for level in mode.levels:
        for right in rights:
            for other in (everything, P, P | U, P | W, everything | nx):
                yield {each: right if each == level else other for each in mode.levels}
    for upper, leaf in itertools.product(rights, rights):
        yield {level: upper if level != mode.levels[-1] else leaf for level in mode.levels}


@pytest.fixture(scope="module")
def engine() -> Engine:
    engine = Engine("v5.0", {"family": "shadow"})
    engine.apply({"op": "set_memslot", "id": 0, "gpa": 0, "size": 0x400000, "hva": "0x200000000"})
    return engine


def put_entries(engine: Engine, mode: Mode, entries: dict[int, int]) -> None:
    vcpu = engine.kvm.vcpus[0]
    for level, entry in entries.items():
        below = TABLES[level - 1] if level > 1 else TARGET
        write_guest(engine.kvm, vcpu, TABLES[level], below | entry, mode.entry_size)


def get_entries(engine: Engine, mode: Mode) -> dict[int, int]:
    vcpu = engine.kvm.vcpus[0]
    found = {}
    for level in mode.levels:
        entry = kvm_vcpu_read_guest(engine.kvm, vcpu, TABLES[level], mode.entry_size)
        assert entry is not None
        found[level] = entry
    return found


@pytest.mark.parametrize("mode", modes(), ids=str)
def test_the_walk_follows_the_architecture(engine: Engine, mode: Mode) -> None:
    if mode.name == "pae":
        for i in range(4):
            engine.apply({"op": "poke", "gpa": 0x8000 + 8 * i, "val": TABLES[2] | P})
    assert engine.apply({"op": "set_regs", **mode.registers()})["ret"] == 0
    leaf = mode.levels[-1]
    tried = 0
    for entries in entry_choices(mode):
        for wanted, is_user in itertools.product((READ, WRITE, FETCH), (False, True)):
            put_entries(engine, mode, entries)
            before = get_entries(engine, mode)
            walk = walk_addr(engine.kvm, engine.kvm.vcpus[0], 0, wanted | (4 if is_user else 0))
            code = verdict(mode, entries, wanted, is_user)
            assert walk.error_code == code, (entries, wanted, is_user)
            after = get_entries(engine, mode)
            if code is not None:
                assert after == before, "a fault wrote to the guest's tables"
                continue
            dirty = D if wanted == WRITE else 0
            assert after == {
                level: entry | A | (dirty if level == leaf else 0) for level, entry in before.items()
            }
            assert walk.gfn == TARGET // PAGE
            tried += 1
    assert tried > 50


def test_rights_are_monotone(engine: Engine) -> None:
    """Where W, U (for users) or X is added, nothing that was allowed becomes a fault."""
    for mode in modes():
        for entries in entry_choices(mode):
            for wanted in (READ, WRITE, FETCH):
                if verdict(mode, entries, wanted, True) is not None:
                    continue
                for level in mode.levels:
                    more = {**entries, level: (entries[level] | W | U) & ~NX}
                    assert verdict(mode, more, wanted, True) is None


#: What kvm-unit-tests' access test is known for, one case each: entries, what is wanted, and the code, None: allowed.
DIRECTED = [
    pytest.param(
        {4: P | W | U, 3: P | W | U, 2: P | W | U, 1: P | U}, WRITE, False, {"wp": False}, None, id="wp_off"
    ),
    pytest.param(
        {4: P | W | U, 3: P | W | U, 2: P | W | U, 1: P | U}, WRITE, False, {"wp": True}, 3, id="wp_on"
    ),
    pytest.param(
        {4: P | W | U, 3: P | W | U, 2: P | W | U, 1: P | U}, WRITE, True, {"wp": False}, 7, id="user_wp_off"
    ),
    pytest.param(
        {4: P | W | U, 3: P | W | U, 2: P | W | U, 1: P | W | U}, FETCH, False, {"smep": True}, 17, id="smep"
    ),
    pytest.param({4: P | W | U, 3: P | U, 2: P | W | U, 1: P | W | U}, WRITE, True, {}, 7, id="upper_w"),
    pytest.param(
        {4: P | W | U | NX, 3: P | W | U, 2: P | W | U, 1: P | W | U}, FETCH, True, {}, 21, id="upper_nx"
    ),
]


@pytest.mark.parametrize(("entries", "wanted", "is_user", "flags", "code"), DIRECTED)
def test_directed_cases(
    engine: Engine,
    entries: dict[int, int],
    wanted: int,
    is_user: bool,
    flags: dict[str, bool],
    code: int | None,
) -> None:
    chosen = {"nxe": True, "wp": True, "smep": False, "smap": False, "ac": False} | flags
    mode = Mode("long", (4, 3, 2, 1), **chosen)
    engine.apply({"op": "set_regs", **mode.registers()})
    put_entries(engine, mode, entries)
    walk = walk_addr(engine.kvm, engine.kvm.vcpus[0], 0, wanted | (4 if is_user else 0))
    assert walk.error_code == code == verdict(mode, entries, wanted, is_user)
