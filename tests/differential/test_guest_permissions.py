"""The permission space: what a guest's entries allow, for every combination, by core, reference and a table of rules.

The table is written here a third time, from the processor manuals ("Determination of access rights", "Page-protection
checks"), over whole columns: each rule looks at all rows at once, and nothing walks. The core judges all rows in one
call; the reference walks each row.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import kvm_mmu as km
import numpy as np
import numpy.typing as npt
import pytest
from kvm_mmu.reference.common.state import GuestMode
from kvm_mmu.reference.shadow.guest_mode import guest_mode
from kvm_mmu.reference.shadow.guest_walk import walk_entries
from kvm_mmu.scenario.language import Scenario, make_engine
from kvm_mmu.scenario.verify import plain

U64 = npt.NDArray[np.uint64]

P, W, U, A, D, PS, NX = 1, 2, 4, 1 << 5, 1 << 6, 1 << 7, 1 << 63
READ, WRITE, USER, FETCH = 0, 2, 4, 16
PG, WP = 1 << 31, 1 << 16
PSE, PAE, LA57, SMEP, SMAP, PKE = 1 << 4, 1 << 5, 1 << 12, 1 << 20, 1 << 21, 1 << 22
LMA, NXE = 1 << 10, 1 << 11
PHYS_BITS = 46
KINDS = [READ, WRITE, FETCH, USER, USER | WRITE, USER | FETCH]
MODES = {  # CR0, CR4, EFER, levels
    "long": (PG, PAE, LMA, 4),
    "long5": (PG, PAE | LA57, LMA, 5),
    "pae": (PG, PAE, 0, 2),
    "p32": (PG, PSE, 0, 2),
    "p32_small": (PG, 0, 0, 2),
    "none": (0, 0, 0, 0),
}


class Rows(NamedTuple):
    """One access a row; `entries` has five columns, top level first."""

    entries: U64
    access: U64
    cr0: U64
    cr4: U64
    efer: U64
    pkru: U64
    ac: U64
    implicit: U64


def grid(*axes: list[int]) -> list[U64]:
    """Every combination of the axes, a column each."""
    return [
        column.ravel() for column in np.meshgrid(*[np.array(axis, np.uint64) for axis in axes], indexing="ij")
    ]


def rights(nx: int) -> list[int]:
    return [w | u | x for w in (0, W) for u in (0, U) for x in (0, nx)]


def used_bits(entries: U64) -> U64:
    """Bits A and D that the guest's entries may already have: by the row's number, so that every pattern comes."""
    number = np.arange(entries.shape[0], dtype=np.uint64)
    for column in range(5):
        entries[:, column] |= np.where(number >> np.uint64(column) & np.uint64(1), A, 0).astype(np.uint64)
        entries[:, column] |= np.where(
            number // np.uint64(31) >> np.uint64(column) & np.uint64(1), D, 0
        ).astype(np.uint64)
    return entries


def every_right() -> Rows:
    """Four levels: all rights of every level, all accesses, WP, SMEP, SMAP, NXE and AC."""
    each = rights(NX)
    l4, l3, l2, l1, access, wp, cr4, nxe, ac = grid(
        each, each, each, each, KINDS, [0, WP], [0, SMEP, SMAP, SMEP | SMAP], [0, NXE], [0, 1]
    )
    zero = np.zeros_like(l4)
    present = np.uint64(P)
    entries = np.stack([zero, l4 | present, l3 | present, l2 | present, l1 | present], axis=1)
    return Rows(used_bits(entries), access, wp | PG, cr4 | PAE, nxe | LMA, zero, ac, zero)


def every_key() -> Rows:
    """Four levels: protection keys over rights of the leaf and of what is above."""
    above, leaf, access, wp, cr4, key, denied, ac, implicit = grid(
        rights(NX),
        rights(NX),
        KINDS,
        [0, WP],
        [0, SMEP, SMAP, PKE, PKE | SMAP],
        [0, 5, 15],
        [0, 1, 2, 3],
        [0, 1],
        [0, 1],
    )
    implicit = np.where(access & USER, 0, implicit).astype(np.uint64)
    zero = np.zeros_like(above)
    top = above | P
    entries = np.stack([zero, top, top, top, leaf | P | key << 59], axis=1)
    return Rows(
        used_bits(entries), access, wp | PG, cr4 | PAE, zero | LMA | NXE, denied << key * 2, ac, implicit
    )


def every_pair() -> Rows:
    """Two levels: PAE and 32-bit."""
    tables = []
    for name, nx in (("pae", NX), ("p32", 0), ("p32_small", 0)):
        cr0, cr4, efer, _ = MODES[name]
        each = [right | present | large for right in rights(nx) for present in (0, P) for large in (0, PS)]
        l2, l1, access, wp, controls, nxe, ac = grid(
            each, each, KINDS, [0, WP], [0, SMEP, SMAP, SMEP | SMAP], [0, NXE], [0, 1]
        )
        zero = np.zeros_like(l2)
        entries = np.stack([zero, zero, zero, l2, l1], axis=1)
        if nx == 0:
            l2, l1 = l2 & 0xFFFFFFFF, l1 & 0xFFFFFFFF
        tables.append(Rows(used_bits(entries), access, wp | cr0, controls | cr4, nxe | efer, zero, ac, zero))
    return joined(tables)


def at_random(rows: int) -> Rows:
    """Any mode with any bits, reserved ones now and then."""
    rng = np.random.default_rng(12)
    mode = rng.integers(0, len(MODES), rows)
    table = np.array([values[:3] for values in MODES.values()], np.uint64)
    is_32 = np.isin(mode, [list(MODES).index("p32"), list(MODES).index("p32_small")])
    often = {P: 0.998, W: 0.9, U: 0.9, A: 0.5, D: 0.5, PS: 0.2, NX: 0.1}  # by bit
    often |= {1 << 8: 0.2, 1 << 13: 0.1, 1 << 17: 0.1, 1 << 21: 0.3, 1 << 30: 0.3, 1 << 45: 0.3}
    often |= {1 << 46: 0.02, 1 << 51: 0.02, 1 << 52: 0.1, 1 << 59: 0.5, 1 << 61: 0.5, 1 << 62: 0.1}
    bits = np.array(list(often), np.uint64)
    chosen = rng.random((rows, 5, bits.size)) < np.array(list(often.values()))
    entries = np.bitwise_or.reduce(np.where(chosen, bits, np.uint64(0)), axis=2)
    entries[is_32] &= np.uint64(0xFFFFFFFF)
    access = np.array(KINDS, np.uint64)[rng.integers(0, 6, rows)]

    def some(*controls: int) -> U64:
        column = np.zeros(rows, np.uint64)
        for control in controls:
            column |= np.where(rng.random(rows) < 0.5, control, 0).astype(np.uint64)
        return column

    implicit = np.where(access & USER, 0, some(1)).astype(np.uint64)
    return Rows(
        entries,
        access,
        table[mode, 0] | some(WP),
        table[mode, 1] | some(SMEP, SMAP, PKE),
        table[mode, 2] | some(NXE),
        rng.integers(0, 1 << 32, rows, dtype=np.uint64),
        some(1),
        implicit,
    )


def joined(tables: list[Rows]) -> Rows:
    return Rows(*(np.concatenate(columns) for columns in zip(*tables, strict=True)))


def mode_names(rows: Rows) -> npt.NDArray[np.str_]:
    """How each row pages, from its registers."""
    is_long = rows.efer & LMA != 0
    names = np.where(rows.cr4 & PAE != 0, "pae", np.where(rows.cr4 & PSE != 0, "p32", "p32_small"))
    names = np.where(is_long, np.where(rows.cr4 & LA57 != 0, "long5", "long"), names)
    return np.where(rows.cr0 & PG != 0, names, "none")


class Verdicts(NamedTuple):
    """By the rules: -1 or the error code, and the entries after the access."""

    error_code: npt.NDArray[np.int64]
    entries: U64


def by_the_rules(rows: Rows) -> Verdicts:
    """Every rule over all rows at once."""
    names = mode_names(rows)
    levels = np.array([MODES[name][3] for name in MODES])[
        np.argmax(names[:, None] == np.array(list(MODES)), axis=1)
    ]
    is_long, is_pae = (
        np.isin(names, ["long", "long5"]),
        names == "pae",
    )
    nxe = (rows.efer & NXE != 0) & (is_long | is_pae)
    fetch, write, user = rows.access & FETCH != 0, rows.access & WRITE != 0, rows.access & USER != 0
    wp, smep, smap = rows.cr0 & WP != 0, rows.cr4 & SMEP != 0, rows.cr4 & SMAP != 0
    # 1. Each entry by itself: absent, reserved, leaf.
    high = sum(1 << bit for bit in range(PHYS_BITS, 52))
    goes_on = levels > 0  # the walk comes to this level
    stops = np.full(len(names), -1)  # why it ended: 0 absent, 9 reserved
    walked = np.zeros(rows.entries.shape, bool)
    is_leaf = np.zeros(rows.entries.shape, bool)
    for column, level in enumerate((5, 4, 3, 2, 1)):
        entry = rows.entries[:, column]
        here = goes_on & (level <= levels)
        large = entry & PS != 0
        reserved = np.where(is_long, entry & high != 0, False)
        reserved |= is_pae & (entry & ((1 << 63) - (1 << PHYS_BITS)) != 0)
        reserved |= (is_long | is_pae) & ~nxe & (entry & NX != 0)
        if level >= 4:
            reserved |= large
        if level == 3:
            reserved |= large & (entry & ((1 << 30) - (1 << 13)) != 0)
        if level == 2:
            reserved |= large & (is_long | is_pae) & (entry & ((1 << 21) - (1 << 13)) != 0)
            reserved |= large & (names == "p32") & (entry & (0x1F << 17) != 0)
        absent = here & (entry & P == 0)
        stops = np.where(absent, 0, np.where(here & ~absent & reserved, 9, stops))
        fine = here & ~absent & ~reserved
        leaf = fine & ((level == 1) | (large & (level < 4) & (names != "p32_small")))
        walked[:, column], is_leaf[:, column] = fine, leaf
        goes_on &= np.where(level <= levels, fine & ~leaf, True)
    # 2. All of them together.
    w = ((rows.entries & np.uint64(W) != 0) | ~walked).all(axis=1)
    us = ((rows.entries & np.uint64(U) != 0) | ~walked).all(axis=1)
    x = ~((rows.entries & np.uint64(NX) != 0) & walked).any(axis=1)
    leaf_entry = np.where(is_leaf, rows.entries, 0).max(axis=1).astype(np.uint64)
    key = leaf_entry >> np.uint64(59) & np.uint64(15)
    # 3. Rights, then keys.
    denied = user & ~us | write & ~w & (user | wp) | fetch & nxe & ~x
    denied |= ~user & us & fetch & smep | ~user & us & ~fetch & smap & ~(
        (rows.ac != 0) & (rows.implicit == 0)
    )
    no_access = rows.pkru >> key * np.uint64(2) & np.uint64(1) != 0
    no_write = rows.pkru >> key * np.uint64(2) + np.uint64(1) & np.uint64(1) != 0
    by_key = is_long & (rows.cr4 & PKE != 0) & us & ~fetch & (no_access | write & no_write & (user | wp))
    # 4. and 5. The error code.
    asked = np.where(write, WRITE, 0) | np.where(user, USER, 0) | np.where(fetch & (nxe | smep), FETCH, 0)
    reason = np.where(by_key, 0x21, np.where(denied, 1, -1))
    reason = np.where(stops >= 0, stops, reason)
    reason = np.where(levels == 0, -1, reason)
    code = np.where(reason < 0, -1, reason | asked)
    # 6. The bits that an allowed access leaves.
    allowed = (code < 0)[:, None]
    marked = rows.entries | np.where(allowed & walked, A, 0).astype(np.uint64)
    marked |= np.where(allowed & is_leaf & write[:, None], D, 0).astype(np.uint64)
    return Verdicts(code.astype(np.int64), marked)


@pytest.fixture(scope="module")
def space() -> Rows:
    return joined([every_right(), every_key(), every_pair(), at_random(1 << 17)])


@pytest.fixture(scope="module")
def found(space: Rows) -> km.GuestPermissions:
    return judged(space)


def judged(rows: Rows) -> km.GuestPermissions:
    return km.guest_permissions(
        rows.entries,
        rows.access,
        cr0=rows.cr0,
        cr4=rows.cr4,
        efer=rows.efer,
        pkru=rows.pkru,
        ac=rows.ac,
        implicit=rows.implicit,
        phys_bits=PHYS_BITS,
    )


def test_the_core_follows_the_rules(space: Rows, found: km.GuestPermissions) -> None:
    assert len(space.access) >= 1 << 20
    rules = by_the_rules(space)
    wrong = np.flatnonzero(found.error_code != rules.error_code)
    assert not wrong.size, [column[wrong[0]] for column in space]
    wrong = np.flatnonzero((found.entries != rules.entries).any(axis=1))
    assert not wrong.size, [column[wrong[0]] for column in space]
    assert (found.allowed == (found.error_code == -1)).all()
    # Nothing is tested that does not occur: every reason, every access, every mode.
    reasons = {-1, *(reason | asked for reason in (0, 1, 9) for asked in KINDS)}
    reasons |= {0x21 | asked for asked in (READ, WRITE, USER, USER | WRITE)}
    assert set(np.unique(found.error_code).tolist()) == reasons
    assert set(np.unique(mode_names(space)).tolist()) == set(MODES)


def reference_walks(rows: Rows, found: km.GuestPermissions, which: npt.NDArray[np.int64]) -> None:
    """Each of these rows by the reference; the first that differs fails."""
    modes: dict[tuple[int, int, int], GuestMode] = {}
    columns = [column[which].tolist() for column in rows]
    answers = zip(
        found.error_code[which].tolist(),
        found.entries[which].tolist(),
        found.gfn[which].tolist(),
        strict=True,
    )
    for row, answer in zip(zip(*columns, strict=True), answers, strict=True):
        entries, access, cr0, cr4, efer, pkru, ac, implicit = row
        mode = modes.get((cr0, cr4, efer))
        if mode is None:
            mode = modes.setdefault((cr0, cr4, efer), guest_mode(cr0, cr4, efer, PHYS_BITS))
        by_level = dict(zip((5, 4, 3, 2, 1), entries, strict=True))
        walk = walk_entries(mode, by_level, 0, access, ac, pkru, is_implicit=bool(implicit))
        if walk.error_code is not None:
            assert answer == (walk.error_code, entries, 0), row
        else:
            by_level.update(walk.ptes)
            assert answer == (-1, list(by_level.values()), walk.gfn), row


def test_the_reference_follows_the_core(space: Rows, found: km.GuestPermissions) -> None:
    rows = len(space.access)
    # A step without a common factor with any axis comes to every value of each; the random rows at the end all.
    which = np.concatenate([np.arange(0, rows - (1 << 17), 5), np.arange(rows - (1 << 15), rows)])
    reference_walks(space, found, which)


@pytest.mark.soak
def test_the_reference_follows_the_core_in_every_row(space: Rows, found: km.GuestPermissions) -> None:
    reference_walks(space, found, np.arange(len(space.access)))


def test_rights_are_monotone(space: Rows, found: km.GuestPermissions) -> None:
    """With W and U added and NX taken away, nothing becomes a fault that a user was allowed."""
    user = (space.access & USER != 0) & (space.cr0 & PG != 0)
    more = space._replace(
        entries=np.where(space.entries & P != 0, (space.entries | W | U) & ~np.uint64(NX), space.entries)
    )
    keyless = judged(more._replace(pkru=np.zeros_like(space.pkru)))
    assert keyless.allowed[user & found.allowed].all()


#: What kvm-unit-tests' access test is known for: entries from the top, access, registers, error code (-1: allowed).
FULL = P | W | U
DIRECTED = {
    "a supervisor writes a read-only page without WP": ([FULL, FULL, FULL, P | U], WRITE, {"cr0": PG}, -1),
    "and not with it": ([FULL, FULL, FULL, P | U], WRITE, {"cr0": PG | WP}, 3),
    "WP is nothing to a user": ([FULL, FULL, FULL, P | U], USER | WRITE, {"cr0": PG}, 7),
    "SMEP forbids fetching from the user's pages": ([FULL, FULL, FULL, FULL], FETCH, {"cr4": PAE | SMEP}, 17),
    "an upper entry's missing W counts": ([FULL, P | U, FULL, FULL], USER | WRITE, {}, 7),
    "an upper entry's NX counts": ([FULL | NX, FULL, FULL, FULL], USER | FETCH, {}, 21),
}


@pytest.mark.parametrize("case", DIRECTED, ids=str)
def test_directed_cases(case: str) -> None:
    entries, access, registers, code = DIRECTED[case]
    answer = km.guest_permissions([entries], access, **registers)
    assert answer.error_code.tolist() == [code]
    if code >= 0:
        assert answer.entries.tolist() == [entries] and answer.gfn.tolist() == [0]
    else:
        assert answer.entries.tolist() == [[entry | A for entry in entries[:3]] + [entries[3] | A | D]]
    registers = {"cr0": 0x80010001, "cr4": PAE, "efer": 0xD00} | registers
    mode = guest_mode(registers["cr0"], registers["cr4"], registers["efer"], PHYS_BITS)
    walk = walk_entries(
        mode, dict(zip((4, 3, 2, 1), entries, strict=True)), 0, access, 0, 0, is_implicit=False
    )
    assert walk.error_code == (None if code < 0 else code)


def test_the_leaf_says_where_the_address_leads() -> None:
    entries = [[0, FULL, FULL, FULL, 0x77000 | FULL], [0, FULL, FULL, 0x800000 | FULL | PS, 0]]
    answer = km.guest_permissions(entries, 0, gva=[0x12345678, 0x12345678])
    assert answer.level.tolist() == [1, 2] and answer.gfn.tolist() == [0x77, 0x945]
    flat = km.guest_permissions([[0]], 0, cr0=1, gva=0x12345678)
    assert flat.level.tolist() == [0] and flat.gfn.tolist() == [0x12345]
    assert km.guest_permissions(np.zeros((0, 5), np.uint64), 0).allowed.shape == (0,)


WRONG = [
    ({"entries": [1, 2]}, r"entries: shape \(2,\); expected \(rows, levels\) with 1 to 5 levels"),
    ({"entries": [[0] * 6]}, "entries: shape"),
    ({"entries": [[1.5] * 4]}, "entries: dtype float64; expected integers"),
    ({"entries": [[-1] * 4]}, "entries: negative value -1"),
    ({"entries": [[1 << 64] * 4]}, r"entries: value 18446744073709551616 above 2\^64-1"),
    ({"entries": [[1 << 63, -1, 0, 0]]}, "entries: negative value -1"),
    ({"entries": [[1 << 63, 0.5, 0, 0]]}, "entries: dtype float64; expected integers"),
    ({"entries": [[0] * 3]}, "row 0: mode long walks 4 entries, the row has 3"),
    ({"access": [0, 0]}, r"access: shape \(2,\); expected a number or 1 of them"),
    ({"access": 18}, "access: row 0 has 0x12; expected 0, 2 or 16, plus 4 from user mode"),
    ({"access": 8}, "access: row 0 has 0x8"),
    ({"access": 4, "implicit": True}, "implicit: row 0 is an access from user mode"),
    ({"pkru": 1 << 32}, "row 0: pkru 0x100000000: expected at most 32 bits"),
    ({"phys_bits": 53}, "phys_bits=53: expected an integer from 36 to 52"),
    ({"entries": [[0, 1 << 32]], "cr4": 0, "efer": 0}, "row 0: entry 0x100000000: mode p32 has entries of 4 bytes"),
    ({"cr0": "PG"}, "cr0: dtype"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_what_cannot_be_judged_is_refused(wrong: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"entries": [[0] * 4], "access": 0} | wrong
    with pytest.raises(km.UsageError, match=message):
        km.guest_permissions(**arguments)  # type: ignore[arg-type]


def test_every_mode_has_its_levels() -> None:
    for (name, (cr0, cr4, efer, levels)), kind in itertools.product(MODES.items(), KINDS):
        entries = [[FULL | (i + 1) << 12 for i in range(5)]]
        answer = km.guest_permissions(entries, kind, cr0=cr0, cr4=cr4, efer=efer)
        marks = [entry & A != 0 for entry in answer.entries[0].tolist()]
        assert answer.allowed.all() and marks == [False] * (5 - levels) + [True] * levels, (name, kind)


SHADOWING = [name for name, row in km.kernels.items() if row.facts["has_guest_tables"]]
TABLES = (0x1000, 0x2000, 0x3000, 0x4000)


@pytest.mark.parametrize("number", range(len(SHADOWING)), ids=SHADOWING)
def test_every_row_gives_the_verdict_through_its_shadow_tables(number: int) -> None:
    """A whole VM of each row: what its guest is refused, and with which code, is what the rules say; on core and
    reference alike, whose roles differ (SMEP by itself or without WP, access with a read bit)."""
    kernel, rows = SHADOWING[number], every_right()
    rng = np.random.default_rng(7 + number)
    which = np.concatenate(
        [rng.integers(0, len(rows.access), 40), np.flatnonzero(rows.cr4 & SMEP)[:: 1 << 14]]
    )
    sample = Rows(*(column[which] for column in rows))
    sample.entries[:, 1:4] |= np.array(TABLES[1:], np.uint64)
    sample.entries[:, 4] |= np.uint64(0x6000)
    codes = by_the_rules(sample).error_code.tolist()
    scenario = Scenario(kernel=kernel, config={"family": "shadow"})
    core, reference = (make_engine(scenario, kernel, backend) for backend in ("core", "reference"))
    words = {READ: "r", WRITE: "w", FETCH: "x"}
    assert {-1} < set(codes)
    for engine in (core, reference):
        engine.apply({"op": "set_memslot", "id": 0, "gpa": 0, "size": 0x10000, "hva": 0x1000_0000})
    for row, code in zip(zip(*(column.tolist() for column in sample), strict=True), codes, strict=True):
        entries, access, cr0, cr4, efer, _, ac, _ = row
        ops = [
            *(
                {"op": "poke", "gpa": table, "val": entry}
                for table, entry in zip(TABLES, entries[1:], strict=True)
            ),
            {"op": "set_regs", "cr0": cr0, "cr4": cr4, "efer": efer, "ac": ac},
            {"op": "zap_all"},
            {"op": "vaccess", "gva": 0, "kind": words[access & ~USER], "user": int(bool(access & USER))},
        ]
        lines = [(core.apply(op), reference.apply(op)) for op in ops]
        assert all(plain(one) == plain(other) for one, other in lines), row
        done = lines[-1][0]
        injected = [int(str(event[3]), 0) for event in done["events"] if event[0] == "inject_pf"]
        assert injected == ([] if code < 0 else [code]), row
        assert done["out"]["outcome"] == ("hit" if code < 0 else "guest_fault"), row
    assert plain(core.state()) == plain(reference.state())
