"""Carrying out a zap plan: one runner for every way a kernel, or nobody yet, zaps.

Owns the walk over the active list, its restarts, its offers of the lock and the named end `stale_next`. Run with a
kernel's own plans it is kvm_mmu_invalidate_zap_all_pages and kvm_zap_obsolete_pages of v5.0, kvm_mmu_zap_mmio_sptes of
the seed, __kvm_mmu_zap_all and kvm_mmu_invalidate_zap_pages_in_memslot of v5.2, kvm_mmu_zap_all_fast of v5.3 to v6.12
and kvm_mmu_zap_memslot of v6.12.

A walk remembers the neighbour it goes to next before it zaps. When the lock was dropped and the plan does not restart,
that neighbour may have left the list; a kernel would follow a dangling pointer, here the run ends as `stale_next`
with the page and the number of the visit that found it gone.

A walk that does not skip invalid roots can meet roots in use without end, since each is moved to the head when it is
zapped. It ends as `livelock` once more than twice as many prepares in a row as there are pages have freed nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ..common.errors import ScenarioError
from ..common.events import note_silent_call
from ..common.flush import kvm_flush_remote_tlbs, kvm_reload_remote_mmus
from ..common.lock import cond_resched_lock, count_polls, may_break, need_resched
from ..common.page_table import is_obsolete_sp
from ..common.role import role_is_direct, role_is_invalid
from ..common.state import Kvm, KvmMemorySlot, ShadowPage
from ..common.zap_plan import ZapPlan
from ..shadow.page import for_each_sp
from ..shadow.slot_walk import ALL_LEVELS, handle_heads_without_polls, slot_handle_level_range, whole_slot
from ..shadow.zap import (
    Prepared,
    kvm_mmu_commit_zap_page,
    kvm_mmu_prepare_zap_page,
    kvm_mmu_remote_flush_or_zap,
)
from ..tdp.roots import kvm_tdp_mmu_invalidate_all_roots
from ..tdp.zap import (
    kvm_tdp_mmu_unmap_gfn_range,
    kvm_tdp_mmu_zap_all,
    kvm_tdp_mmu_zap_invalidated_roots,
)
from .notifier import kvm_unmap_gfn_range, kvm_zap_gfn_range, unmap_head
from .zap_memslot import kvm_mmu_zap_memslot


@dataclass(frozen=True, slots=True)
class ZapTarget:
    """What a plan works on, where it works on a part: a slot or gfns start..end (end exclusive)."""

    slot: KvmMemorySlot | None = None
    start: int = 0
    end: int = 0


@dataclass(slots=True)
class ZapRun:
    """One run of a plan: what it collected and how it went."""

    plan: ZapPlan
    target: ZapTarget
    invalid_list: list[int]
    pages_zapped: int = 0
    walk_starts: int = 0
    walk_visited: int = 0
    batch: int = 0
    stale_page: int | None = None
    stale_step: int = 0
    idle: int = 0  # prepares in a row that freed nothing
    is_livelock: bool = False
    skipped: set[int] = field(default_factory=set)

    @property
    def restarts(self) -> int:
        return max(0, self.walk_starts - 1)


def run_zap_plan(kvm: Kvm, plan: ZapPlan, target: ZapTarget | None = None) -> ZapRun:
    """Zap by a plan, with mmu_lock taken for the whole run except where the plan offers it."""
    if plan.walk == "roots" and not kvm.config.tdp_mmu:
        raise ScenarioError(
            "zap by this plan walks the roots of the TDP MMU, and the VM has none: tdp_mmu is 0"
        )
    # v5.0 collects what it made obsolete on a list of the VM, so that the shrinker finds it during a lock break.
    is_shared = kvm.rules.has_zapped_obsolete and plan.bump_valid_gen
    invalid_list = kvm.zapped_obsolete_pages if is_shared else []
    run = ZapRun(plan=plan, target=target or ZapTarget(), invalid_list=invalid_list)
    if plan.bump_valid_gen:
        begin_new_valid_gen(kvm)
        kvm.filters_obsolete = True
        if kvm.config.tdp_mmu:
            kvm_tdp_mmu_invalidate_all_roots(kvm)
    # A list's walk would ask where it meets a root in use; the TDP MMU's roots are on no list.
    is_asked_by_walk = kvm.config.tdp_mmu and plan.bump_valid_gen and plan.walk != "roots"
    if plan.reload_roots == "before" or (is_asked_by_walk and plan.reload_roots == "no"):
        kvm_reload_remote_mmus(kvm)
    if kvm.config.tdp_mmu:
        zap_tdp_mmu(kvm, run)
    elif plan.walk == "slot":
        zap_pages_in_memslot(kvm, run)
    elif plan.walk == "index":
        walk_mmio_pages(kvm, run)
    else:
        while walk_active_pages(kvm, run):
            pass
    kvm_mmu_commit_zap_page(kvm, run.invalid_list)
    if kvm.config.tdp_mmu and zaps_invalidated_roots(plan):
        # After the exclusive lock was given up and the shared one taken.
        kvm_tdp_mmu_zap_invalidated_roots(kvm)
    if plan.reload_roots == "after":
        kvm_reload_remote_mmus(kvm)
    return run


def zaps_invalidated_roots(plan: ZapPlan) -> bool:
    is_asked = plan.bump_valid_gen and not plan.needs_slot and plan.only != "gfn_range"
    return is_asked and plan.walk != "roots"


def zap_tdp_mmu(kvm: Kvm, run: ZapRun) -> None:
    """What a plan is to the TDP MMU, whose tables are on no list: a slot or gfns are unmapped, else roots are zapped.

    Plans that make everything obsolete have their roots zapped last. Tables have no mark for MMIO entries, so a plan
    that looks for it finds nothing.
    """
    plan, slot = run.plan, run.target.slot
    if plan.walk == "roots":
        zap_by_roots(kvm, plan, slot)
    elif plan.needs_slot:
        may_block = plan.offer != "never"
        if slot is not None and kvm_unmap_gfn_range(
            kvm, slot, slot.base_gfn, slot.base_gfn + slot.npages, may_block
        ):
            kvm_flush_remote_tlbs(kvm)
    elif plan.only == "gfn_range":
        kvm_zap_gfn_range(kvm, run.target.start, run.target.end)
    elif plan.only == "all" and not plan.bump_valid_gen:
        kvm_tdp_mmu_zap_all(kvm)


def zap_by_roots(kvm: Kvm, plan: ZapPlan, slot: KvmMemorySlot | None) -> None:
    """A plan that speaks of roots: those made invalid, all, or a slot's leaves in those of its address space."""
    can_yield = plan.offer != "never"
    match plan.only:
        case "obsolete":
            kvm_tdp_mmu_zap_invalidated_roots(kvm, plan.lock == "shared", can_yield)
        case "all":
            kvm_tdp_mmu_zap_all(kvm, can_yield)
        case "slot" if slot is not None:
            first, end = slot.base_gfn, slot.base_gfn + slot.npages
            if kvm_tdp_mmu_unmap_gfn_range(
                kvm, slot.as_id, first, end, can_yield, flushes_on_yield=plan.before_drop == "commit"
            ):
                kvm_flush_remote_tlbs(kvm)


def begin_new_valid_gen(kvm: Kvm) -> None:
    """Make every page obsolete at once, with what the kernel traces of it."""
    if kvm.rules.has_invalidate_event:
        kvm.events.append(["invalidate_zap_all"])
    note_silent_call(kvm, "zap_all_fast_enter")
    if kvm.rules.has_zap_all_fast_event:
        kvm.events.append(["zap_all_fast", kvm.mmu_valid_gen, kvm.n_used_mmu_pages])
    kvm.mmu_valid_gen = kvm.mmu_valid_gen ^ 1 if kvm.rules.valid_gen_toggles else kvm.mmu_valid_gen + 1


def start_walk(kvm: Kvm, run: ZapRun) -> None:
    run.walk_starts += 1
    kvm.ctr["walk_starts"] += 1
    kvm.work["walk_starts"] += 1
    if run.walk_starts > 1:
        kvm.work["restarts"] += 1


def visit(kvm: Kvm, run: ZapRun) -> None:
    run.walk_visited += 1
    kvm.ctr["walk_visited"] += 1
    kvm.work["walk_visited"] += 1


def is_wanted(kvm: Kvm, run: ZapRun, sp: ShadowPage) -> bool:
    """Whether the plan's filter and skip rule let this page be zapped."""
    if run.plan.skip == "invalid" and role_is_invalid(sp.role):
        return False
    if run.plan.skip == "invalid_in_use" and role_is_invalid(sp.role) and sp.root_count > 0:
        return False
    match run.plan.only:
        case "mmio_cached":
            return sp.mmio_cached
        case "obsolete":
            return is_obsolete_sp(kvm, sp)
        case "slot":
            slot = run.target.slot
            return slot is not None and slot.base_gfn <= sp.gfn < slot.base_gfn + slot.npages
        case "gfn_range":
            return run.target.start <= sp.gfn < run.target.end
        case "indirect":
            return not role_is_direct(sp.role)
    return True


def offer_lock(kvm: Kvm, run: ZapRun) -> bool:
    """Offer the lock once; true when it was dropped."""
    if run.plan.before_drop == "commit":
        kvm_mmu_commit_zap_page(kvm, run.invalid_list)
    return cond_resched_lock(kvm)


def offer_before_prepare(kvm: Kvm, run: ZapRun) -> bool:
    batch = run.plan.batch
    if batch is not None:
        if run.batch >= batch and offer_lock(kvm, run):
            run.batch = 0  # only a real drop starts the count again
            return True
        return False
    return run.plan.offer == "when_wanted" and need_resched(kvm) and offer_lock(kvm, run)


def prepare(kvm: Kvm, run: ZapRun, sp: ShadowPage) -> Prepared:
    prepared = kvm_mmu_prepare_zap_page(kvm, sp, run.invalid_list)
    run.pages_zapped += prepared.nr_zapped
    if prepared.is_list_unstable or not kvm.rules.batch_counts_unstable:
        run.batch += prepared.nr_zapped
    run.idle = 0 if prepared.nr_zapped else run.idle + 1
    return prepared


def must_restart(run: ZapRun, prepared: Prepared) -> bool:
    if "on_nonzero" in run.plan.restart and prepared.nr_zapped:
        return True
    return "on_unstable" in run.plan.restart and prepared.is_list_unstable


def walk_active_pages(kvm: Kvm, run: ZapRun) -> bool:
    """One pass over the active list from its head or its tail; true when the plan wants another one."""
    plan = run.plan
    active = kvm.active
    neighbours = active.next if plan.walk == "head" else active.prev
    restarts_on_drop = "on_lock_drop" in plan.restart
    start_walk(kvm, run)
    page_id = neighbours[0]
    while page_id:
        if page_id not in neighbours:
            run.stale_page, run.stale_step = page_id, run.walk_visited + 1
            return False
        following = neighbours[page_id]
        visit(kvm, run)
        sp = kvm.pages[page_id]
        if plan.stop == "first_not_obsolete" and not is_obsolete_sp(kvm, sp):
            return False
        if is_wanted(kvm, run, sp):
            if offer_before_prepare(kvm, run):
                if restarts_on_drop:
                    return True
                if page_id not in neighbours:
                    run.stale_page, run.stale_step = page_id, run.walk_visited
                    return False
            prepared = prepare(kvm, run, sp)
            if run.idle > 2 * kvm.n_used_mmu_pages:
                run.is_livelock = True
                return False
            dropped = plan.offer == "each_page" and not prepared.is_list_unstable and offer_lock(kvm, run)
            if must_restart(run, prepared) or (dropped and restarts_on_drop):
                return True
        page_id = following
    return False


def walk_mmio_pages(kvm: Kvm, run: ZapRun) -> None:
    """Take the page marked last until none is left that the plan wants; the index needs no neighbour."""
    start_walk(kvm, run)
    while True:
        page_id = next((page for page in reversed(kvm.mmio_pages) if page not in run.skipped), None)
        if page_id is None:
            return
        visit(kvm, run)
        sp = kvm.pages[page_id]
        if run.plan.stop == "first_not_obsolete" and not is_obsolete_sp(kvm, sp):
            return
        if not is_wanted(kvm, run, sp):
            run.skipped.add(page_id)
            continue
        dropped = offer_before_prepare(kvm, run)
        if dropped and "on_lock_drop" in run.plan.restart:
            run.skipped.clear()
            start_walk(kvm, run)
            continue
        if page_id not in kvm.mmio_pages:
            continue  # somebody else zapped it during the break
        prepared = prepare(kvm, run, sp)
        dropped = run.plan.offer == "each_page" and offer_lock(kvm, run)
        if must_restart(run, prepared) or (dropped and "on_lock_drop" in run.plan.restart):
            run.skipped.clear()
            start_walk(kvm, run)


def paged_gfns(kvm: Kvm, slot: KvmMemorySlot) -> list[int]:
    """The gfns of the slot that shadow pages have, ascending."""
    end = slot.base_gfn + slot.npages
    return sorted({sp.gfn for sp in kvm.pages.values() if slot.base_gfn <= sp.gfn < end})


def zap_pages_in_memslot(kvm: Kvm, run: ZapRun) -> None:
    """v5.2: the slot's reverse maps at every level, then the pages whose own gfn lies in the slot, ascending.

    v6.12 the same, but of the pages only those that shadow guest tables, so here none.
    Other tables survive with empty entries, MMIO entries are left to go stale. Nothing is counted as walked.
    """
    slot = run.target.slot
    if slot is None:
        return
    flush_on_yield = kvm.rules.unmap_offers_lock
    if run.plan.only == "indirect" and flush_on_yield and run.plan.offer != "never":
        kvm_mmu_zap_memslot(kvm, slot)
        return
    if kvm.active.next[0] == 0 and not flush_on_yield:
        return
    walk = whole_slot(slot, ALL_LEVELS)
    if run.plan.offer == "never":
        flush = handle_heads_without_polls(kvm, walk, unmap_head)
    else:
        flush = slot_handle_level_range(kvm, walk, unmap_head, flush_on_yield=flush_on_yield)
    gfns: Iterable[int] = range(
        slot.base_gfn, slot.base_gfn + slot.npages if kvm.active.next[0] else slot.base_gfn
    )
    is_polled = run.plan.offer != "never"
    if not is_polled or not may_break(kvm):
        # No poll can be true: they are counted at once, and only gfns that pages have are looked at.
        if is_polled and kvm.active.next[0]:
            count_polls(kvm, slot.npages)
        gfns, is_polled = paged_gfns(kvm, slot), False
    for gfn in gfns:
        for sp in for_each_sp(kvm, gfn):
            if sp.gfn == gfn and not role_is_invalid(sp.role) and is_wanted(kvm, run, sp):
                prepare(kvm, run, sp)
        if is_polled and need_resched(kvm):
            if run.plan.before_drop == "commit":
                kvm_mmu_remote_flush_or_zap(kvm, run.invalid_list, flush)
                flush = False
            cond_resched_lock(kvm)
    if not run.invalid_list and flush:
        kvm_flush_remote_tlbs(kvm)
