"""The page fault of v6.1/v6.12 on direct pages: MMIO check, fast path, and, once the host has answered,
mapping.

A trace shows a fault in two lines: the exit, and later the request to map (gfn, pfn, level) when the fault
got that far. So the fault is run in two halves: `begin` and `finish`. A fault whose second half never comes
was a retry.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass

from kvm_mmu.trace.direct_6x import spte
from kvm_mmu.trace.direct_6x.memslots import LOG_DIRTY, READONLY, Slot
from kvm_mmu.trace.direct_6x.shadow_pages import ShadowPage
from kvm_mmu.trace.direct_6x.vm import Vcpu, Vm
from kvm_mmu.trace.wording import HIDDEN_POINTER, error_flags

P, W, RSVD, FETCH = 1 << 0, 1 << 1, 1 << 3, 1 << 4
_GROUP = 8
_ACCESS_ALL = 7
#: `pfn` of a request for a gfn without a slot
NO_SLOT = 1 << 63
_EMPTY_6_12 = 1 << 63
#: Frames of prefetched pages are in no trace line that stays.
_STAND_IN_PFN = (1 << 40) - 1


@dataclass(frozen=True)
class HostAnswer:
    """What host memory said: was the entry written, is the page writable, which pages did the prefetch lookup
    find."""

    was_set: bool
    writable: bool
    found: frozenset[int]


@dataclass
class Fault:
    """A fault between its exit and its request to map."""

    vcpu: Vcpu
    gpa: int
    error_code: int
    slot: Slot | None
    reclaimed: bool = False

    @property
    def gfn(self) -> int:
        """The faulting frame."""
        return self.gpa >> 12

    @property
    def is_write(self) -> bool:
        """A write access."""
        return bool(self.error_code & W)


def begin(vm: Vm, vcpu: Vcpu, gpa: int, error_code: int) -> Fault | None:
    """The first half; None: the fault was answered and maps nothing."""
    if error_code & RSVD:
        if _handle_mmio(vm, vcpu, gpa):
            return None
    elif error_code & P and error_code & W and _fast_page_fault(vm, vcpu, gpa, error_code):
        return None
    slot = vm.memslots.find(vcpu.as_id, gpa >> 12)
    if slot is None:
        _fill_mmio_cache(vm, vcpu, gpa >> 12)
        return Fault(vcpu, gpa, error_code, None) if vm.facts.mmio_caching else None
    if slot.flags & READONLY and error_code & W:
        return None
    if error_code & W:
        # Whether the fault maps or is told to come again: the host page is resident and writable from here
        # on.
        page = slot.hva_of(gpa >> 12) >> 12
        if not vm.residency.is_resident(page):
            vm.residency.touch(page)
    return Fault(vcpu, gpa, error_code, slot)


def reclaim(vm: Vm, fault: Fault) -> None:
    """Make pages available, once, before the request to map."""
    if not fault.reclaimed:
        fault.reclaimed = True
        vm.pages.make_available()


def finish(vm: Vm, fault: Fault, pfn: int, level: int, answer: HostAnswer | None) -> None:
    """The second half: build the tables down to the level, write the leaf, prefetch."""
    reclaim(vm, fault)
    table = _walk_down(vm, fault, level)
    if table is None:
        return
    page, index = table
    if pfn == NO_SLOT or fault.slot is None:
        _mark_mmio(vm, page, index, fault)
        return
    if level > 1:
        vm.residency.note_2m(fault.slot.hva_of(fault.gfn) >> 12)
    within = fault.gfn & (1 << 9 * (level - 1)) - 1
    frame = (pfn & -(1 << 9 * (level - 1))) + (within & -(1 << 9 * (page.level - 1)))
    writable = _is_writable(vm, fault.slot, fault.gfn) if answer is None else answer.writable
    written = _set_spte(vm, page, index, frame, writable=writable, prefetch=False, answer=answer)
    if written and page.level == 1:
        _prefetch(vm, fault.vcpu, page, index, answer)


# -- MMIO
# ---------------------------------------------------------------------------------------------------------


def _current_gen(vm: Vm, vcpu: Vcpu) -> int:
    return vm.memslots.generations[vcpu.as_id]


def _fill_mmio_cache(vm: Vm, vcpu: Vcpu, gfn: int) -> None:
    vcpu.mmio_gfn, vcpu.mmio_gen = gfn, _current_gen(vm, vcpu)


def _handle_mmio(vm: Vm, vcpu: Vcpu, gpa: int) -> bool:
    """A fault on a reserved bit; True: answered."""
    if vcpu.mmio_gfn and vcpu.mmio_gfn == gpa >> 12 and vcpu.mmio_gen == _current_gen(vm, vcpu):
        return True
    found = _leaf(vm, vcpu, gpa >> 12)
    value = 0 if found is None else found[0].entries.get(found[1], 0)
    if not spte.is_mmio(value):
        return True
    kvm_gen, gen = _current_gen(vm, vcpu) & spte.GEN_MASK, spte.mmio_gen(value)
    body = f"spte {value:x} kvm_gen {kvm_gen:x} spte-gen {gen:x} valid {int(kvm_gen == gen)}"
    vm.out("check_mmio_spte", body)
    if kvm_gen != gen:
        return False
    gfn = spte.mmio_gfn(value)
    vm.out("handle_mmio_page_fault", f"addr:0 gfn {gfn:x} access {spte.mmio_access(value):x}")
    _fill_mmio_cache(vm, vcpu, gfn)
    return True


def _mark_mmio(vm: Vm, page: ShadowPage, index: int, fault: Fault) -> None:
    gen = _current_gen(vm, fault.vcpu)
    value = spte.make_mmio(fault.gfn, _ACCESS_ALL, gen)
    vm.out("make_mmio_spte", f"gfn={fault.gfn:#x} access={_ACCESS_ALL:#x}")
    vm.out("make_mmio_spte_ret", f"spte={value:#x}")
    body = (
        f"sptep:{page.sptep(index):016x} gfn {fault.gfn:x} access {value & 7:x} gen {gen & spte.GEN_MASK:x}"
    )
    vm.out("mark_mmio_spte", body)
    page.entries[index] = value


# -- walks
# --------------------------------------------------------------------------------------------------------


def _root(vcpu: Vcpu, gfn: int) -> ShadowPage | None:
    """The root that a gfn is reached from."""
    if len(vcpu.roots) > 1:
        return vcpu.roots[gfn >> 18] if gfn >> 18 < len(vcpu.roots) else None
    return vcpu.roots[0] if vcpu.roots else None


def _leaf(vm: Vm, vcpu: Vcpu, gfn: int) -> tuple[ShadowPage, int] | None:
    """The last entry on the way to a gfn."""
    page = _root(vcpu, gfn)
    if page is None:
        return None
    index = page.index_of(gfn)
    while index in page.children:
        page = page.children[index]
        index = page.index_of(gfn)
    return page, index


def _fast_page_fault(vm: Vm, vcpu: Vcpu, gpa: int, error_code: int) -> bool:
    """Make an entry writable without the lock; True: the fault ends here."""
    found = _leaf(vm, vcpu, gpa >> 12)
    empty = _EMPTY_6_12 if vm.facts.kernel == "v6.12" else 0
    old = empty if found is None else found[0].entries.get(found[1], empty)
    new, spurious, fixed = old, bool(old & spte.WRITABLE and spte.is_shadow_present(old)), False
    if found is not None and not spurious and spte.is_shadow_present(old) and old & spte.MMU_WRITABLE:
        page, index = found
        slot = vm.memslots.find(vcpu.as_id, gpa >> 12)
        if page.level == 1 or slot is None or not slot.flags & LOG_DIRTY:
            new, fixed = old | spte.WRITABLE, True
            page.entries[index] = new
    vm.out(
        "fast_page_fault",
        f"vcpu {vcpu.id} gva {gpa:x} error_code {error_flags(error_code, vm.facts.kernel)} sptep {HIDDEN_POINTER} "
        f"old {old:#x} new {new:x} spurious {int(spurious)} fixed {int(fixed)}",
    )
    return spurious or fixed


def _walk_down(vm: Vm, fault: Fault, level: int) -> tuple[ShadowPage, int] | None:
    """From the root to the table of the mapping, making and linking what is missing."""
    page = _root(fault.vcpu, fault.gfn)
    if page is None or page.invalid:
        return None
    while True:
        index = page.index_of(fault.gfn)
        if page.level == level:
            below = page.children.get(index)
            if not (vm.facts.nx_huge_pages and below is not None and below.nx_disallowed):
                return page, index
            level -= 1
        if index not in page.children:
            gfn = fault.gfn & -(1 << 9 * (page.level - 1))
            child = vm.pages.get_page(gfn, page.level - 1, page.is_smm)
            if index in page.entries and spte.is_shadow_present(page.entries[index]):
                vm.pages.zap_entry(page, index)
            vm.pages.link(page, index, child)
            if vm.facts.nx_huge_pages and fault.error_code & FETCH and child.level == 1:
                child.nx_disallowed = True
        page = page.children[index]


# -- leaves
# -------------------------------------------------------------------------------------------------------


def _is_writable(vm: Vm, slot: Slot, gfn: int) -> bool:
    """What the host says of a page, where the trace does not."""
    return not slot.flags & READONLY and vm.residency.is_resident(slot.hva_of(gfn) >> 12)


def _set_spte(
    vm: Vm,
    page: ShadowPage,
    index: int,
    pfn: int,
    *,
    writable: bool,
    prefetch: bool,
    answer: HostAnswer | None = None,
) -> bool:
    """Write a leaf; False when the entry was that leaf already."""
    gfn = page.gfn_of(index)
    if index in page.children:
        vm.pages.unlink(page, index)
    old = page.entries.get(index, 0)
    if spte.is_shadow_present(old) and not _same_frame(spte.pfn_of(old), pfn):
        old = 0
    executable = not (vm.facts.nx_huge_pages and page.level > 1)
    new = spte.make_leaf(pfn, page.level, host_writable=writable, prefetch=prefetch, executable=executable)
    if new & spte.WRITABLE:
        if old & spte.WRITABLE:
            new &= ~spte.DIRTY
        else:
            vm.out("try_unsync", f"gfn={gfn:#x} can_unsync=1 prefetch={int(prefetch)}")
            vm.out("try_unsync_ret", "ret=0")
    if spte.is_shadow_present(old) and (
        old == new or (spte.same_but_cpu_bits(old, new) and _said_unset(answer))
    ):
        return False
    vm.out(
        "kvm_mmu_set_spte",
        f"gfn {gfn:x} spte {new:x} ({spte.access_text(new)}) level {page.level} at {page.sptep(index):x}",
    )
    page.entries[index] = new
    return True


def _said_unset(answer: HostAnswer | None) -> bool:
    return answer is not None and not answer.was_set


def _prefetch(vm: Vm, vcpu: Vcpu, page: ShadowPage, index: int, answer: HostAnswer | None) -> None:
    """Map the neighbours in the aligned group of eight, run by run."""
    start = index & -_GROUP
    run: list[int] = []
    for entry in range(start, start + _GROUP):
        if entry == index or spte.is_shadow_present(page.entries.get(entry, 0)):
            if run and not _prefetch_run(vm, vcpu, page, run, answer):
                return
            run = []
        else:
            run.append(entry)
    if run:
        _prefetch_run(vm, vcpu, page, run, answer)


def _prefetch_run(vm: Vm, vcpu: Vcpu, page: ShadowPage, run: list[int], answer: HostAnswer | None) -> bool:
    """Map a run of absent entries as far as the host has the pages; False: the prefetch ends."""
    slot = vm.memslots.find(vcpu.as_id, page.gfn_of(run[0]))
    if slot is None or slot.flags & (READONLY | LOG_DIRTY) or not slot.holds(page.gfn_of(run[-1])):
        return False
    found = _lookup(vm, slot, answer)
    mapped = 0
    for entry in run:
        gfn = page.gfn_of(entry)
        if not found(gfn):
            break
        _set_spte(vm, page, entry, _STAND_IN_PFN, writable=True, prefetch=True)
        mapped += 1
    return mapped > 0


def _lookup(vm: Vm, slot: Slot, answer: HostAnswer | None) -> Callable[[int], bool]:
    """Whether the lockless lookup finds a gfn's page resident and writable."""
    if answer is not None:
        gfns: Set[int] = answer.found
        return lambda gfn: gfn in gfns
    return lambda gfn: vm.residency.is_resident(slot.hva_of(gfn) >> 12)


def _same_frame(one: int, other: int) -> bool:
    """Whether two frames can be the same: a stand-in can be any."""
    return one == other or _STAND_IN_PFN in (one, other)
