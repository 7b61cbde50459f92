"""Checks of memslots, of what is write-tracked in them, and of MMIO SPTEs against them."""

from __future__ import annotations

from collections import Counter

import numpy as np

from kvm_mmu.live.audit.facts import Seen
from kvm_mmu.live.audit.findings import Check
from kvm_mmu.live.capture import IN_PROGRESS
from kvm_mmu.live.live_vm import is_fresh
from kvm_mmu.live.slots import INVALID, LOG_DIRTY, Slot


def memslots(seen: Seen, check: Check) -> None:
    """No update is in flight, each address space has its own generations, and a dirty log where it is asked for."""
    in_flight = seen.c.facts.codec.layout.in_progress
    for number, space in enumerate(seen.c.spaces):
        check.compare(1)
        if space.generation & in_flight:
            check.find(f"address space {number}: generation {space.generation:#x}, an update is in flight")
        elif in_flight == IN_PROGRESS and len(seen.c.spaces) == 2 and space.generation & 1 != number:
            parity = "even" if number == 0 else "odd"
            check.find(f"address space {number}: generation {space.generation:#x}, expected an {parity} one")
        for slot in space.slots:
            check.compare(1)
            logs = bool(slot.flags & LOG_DIRTY)
            if logs != (slot.dirty is not None) and not seen.c.counters.get("dirty_ring_size"):
                check.find(
                    f"slot {slot.id}: {'no dirty bitmap, but' if logs else 'a dirty bitmap, and not'} the flag for it"
                )
            if slot.flags & INVALID:
                check.find(f"slot {slot.id}: is marked invalid, no update is in flight")
            if slot.as_id is not None and slot.as_id != number:
                check.find(f"slot {slot.id} of address space {number}: says that it is of {slot.as_id}")


def slot_order(seen: Seen, check: Check) -> None:
    """Slots do not overlap and have one id each."""
    for number, space in enumerate(seen.c.spaces):
        check.compare(len(space.slots))
        for before, slot in zip(space.slots, space.slots[1:], strict=False):
            if before.end > slot.base:
                check.find(
                    f"address space {number}: slots {before.id} and {slot.id} overlap at gfn {slot.base:#x}"
                )
        for slot_id, count in Counter(slot.id for slot in space.slots).items():
            if count > 1:
                check.find(f"address space {number}: {count} slots have the id {slot_id}")


def tracked_tables(seen: Seen, check: Check) -> None:
    """Tables that are shadowed are counted: in all, where writes are tracked, and where they forbid a large page."""
    pages = seen.pages
    shadowed = np.flatnonzero(seen.is_active & ~seen.is_direct & ~seen.is_invalid)
    said = seen.c.counters["indirect"]
    check.compare(1)
    if said != len(shadowed):
        check.find(f"{said} pages shadow a guest's table by the counter, {len(shadowed)} are on the list")
    slot_of = seen.slot_of(pages.space[shadowed], pages.gfn[shadowed])
    for number, (_, slot) in enumerate(seen.all_slots):
        if not slot.is_sane:
            continue  # said when it was read
        own = shadowed[slot_of == number]
        offset = pages.gfn[own].astype(np.int64) - slot.base
        if slot.has_track:
            wanted = Counter(offset[pages.level[own] > 1].tolist())
            found = dict(zip(slot.track[0].tolist(), slot.track[1].tolist(), strict=True))
            _same(slot, "writes tracked", wanted, found, check)
        for level, (index, value) in slot.disallow.items():
            shift = 9 * (level - 1)
            wanted = _vetoes(slot, level)
            first = slot.base >> shift
            wanted.update((((offset + slot.base) >> shift) - first).tolist())
            found = dict(zip(index.tolist(), value.tolist(), strict=True))
            _same(slot, f"large pages of level {level} forbidden", wanted, found, check)


def _vetoes(slot: Slot, level: int) -> Counter[int]:
    """What forbids a large page whatever is shadowed: the ends of a slot, and a host address that lies otherwise."""
    mask = (1 << 9 * (level - 1)) - 1
    steps = slot.steps(level)
    if (slot.base ^ (slot.hva >> 12)) & mask:
        return Counter(dict.fromkeys(range(steps), 1))
    found: Counter[int] = Counter()
    if slot.base & mask:
        found[0] = 1
    if slot.end & mask:
        found[steps - 1] = 1
    return found


def _same(slot: Slot, what: str, wanted: Counter[int], found: dict[int, int], check: Check) -> None:
    check.compare(len(wanted.keys() | found.keys()))
    for at in sorted(wanted.keys() | found.keys()):
        if wanted.get(at, 0) != found.get(at, 0):
            check.find(
                f"slot {slot.id}, index {at}: {what} {found.get(at, 0)} times, expected {wanted.get(at, 0)}"
            )


def mmio_sptes(seen: Seen, check: Check) -> None:
    """An MMIO SPTE is of level 1 and of its own gfn, and a fresh one never covers a memslot."""
    at = np.flatnonzero(seen.is_mmio)
    check.compare(len(at))
    if not len(at):
        return
    c, pages, raw = seen.c, seen.pages, seen.entries.raw
    check.find_all(at[seen.level[at] != 1], lambda n: f"{seen.entry_name(n)}: an MMIO SPTE above level 1")
    decoded = c.facts.codec.decode_mmio_sptes(raw[at])
    own = pages.gfn[seen.page[at]] + seen.index[at].astype(np.uint64)
    wrong = seen.is_direct[seen.page[at]] & (seen.level[at] == 1) & (decoded.gfn != own)
    check.find_all(
        at[wrong],
        lambda n: f"{seen.entry_name(n)}: an MMIO SPTE of gfn {int(seen.entries.gfn[n]):#x}, not its own",
    )
    fresh = is_fresh(c, decoded.mmio_gen, seen.space[at])
    covered = fresh & (seen.slot_of(seen.space[at], decoded.gfn) >= 0)
    check.find_all(
        at[covered],
        lambda n: (
            f"{seen.entry_name(n)}: a fresh MMIO SPTE of gfn {int(seen.entries.gfn[n]):#x}, which has a memslot"
        ),
    )


def mmio_cache(seen: Seen, check: Check) -> None:
    """What a vCPU remembers of the current generation is no memory."""
    for vcpu in seen.c.vcpus:
        _, gfn, _, generation = vcpu.mmio
        space = vcpu.mmu.role >> 24
        if space >= len(seen.c.spaces) or seen.c.spaces[space].generation & IN_PROGRESS:
            continue
        check.compare(1)
        covers = any(slot.base <= gfn < slot.end for slot in seen.slots(space))
        if generation == seen.c.spaces[space].generation and covers:
            check.find(
                f"vCPU {vcpu.id}: remembers MMIO at gfn {gfn:#x} of generation {generation:#x}; it has a memslot"
            )
