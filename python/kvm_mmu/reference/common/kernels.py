"""What differs between the kernels the reference speaks for, as rows of plain facts.

This file owns the table. A kernel is a row, named by its branch if it is the branch's newest row, else by branch and
patch level; `v6.12.117`, `6.12.117` and `v6.12` name the same one. Every other module asks a fact by its name and none
compares names of kernels. Each row is written as what it changes of the row it came from, so that the table reads as a
history. A fact that a value stands for: `any`, `own` and other words say which of the known rules holds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from typing import Any

from .errors import ScenarioError, cut
from .fix_levels import FIX_LEVELS, changed_facts

Plans = tuple[tuple[str, str], ...]


def plans(wrap: str, slot_removal: str, teardown: str, flush_all: str) -> Plans:
    """Name the zap plan of each event."""
    return (
        ("wrap", wrap),
        ("slot_removal", slot_removal),
        ("teardown", teardown),
        ("flush_all", flush_all),
    )


@dataclass(frozen=True, slots=True)
class KernelRules:
    """The facts about one kernel; the defaults are those of v5.0."""

    name: str
    release: str
    plans: Plans
    # Words and layouts.
    spte_layout: str = "v5.0"  # where the kernel's own bits lie
    generation_layout: str = "v5.0"  # how an MMIO entry keeps the generation
    role_layout: str = "v5.0"
    access_bits: str = "xwu"
    direct_role_bit4: bool = False  # direct pages have 8-byte guest entries
    is_role_fixed: bool = False  # a direct role follows SMM only
    l1tf: bool = True  # the mask is in use whatever the CPU
    mark_mmio_access_mask: int = 0  # what the tracepoint shows of the entry as access; 0: the access itself
    fast_pf_whole_error_code: bool = False
    # Structure.
    mem_slots: int = 512  # of an address space, three private ones included
    has_max_gfn: bool = False  # no slot and no MMIO entry above the host's physical width
    pte_list_ext: int = 3
    pte_list_order: str = "tail"  # where a full chain gets its next descriptor
    has_valid_gen: bool = True
    valid_gen_toggles: bool = False
    obsolete_if_invalid: bool = False
    has_mmio_cached: bool = False
    has_zapped_obsolete: bool = True  # what a fast zap collects waits on a list of the VM
    has_shrinker: bool = True
    # Events.
    has_invalidate_event: bool = True
    has_zap_all_fast_event: bool = False
    has_set_spte_event: bool = False
    set_spte_for_mmio: bool = False
    has_requested_event: bool = False
    logs_silent_calls: bool = False  # recordings have probes on functions without a tracepoint
    # Zap, reclaim, roots.
    batch_counts_unstable: bool = False  # a zapped page counts for the batch only where the list changed
    reload_skips_obsolete: bool = True  # a zapped root in use asks for a reload only if not obsolete
    reload_keeps_valid_root: bool = False
    zapped_root_leaves: bool = False  # a zapped root in use leaves the active list
    reclaim_skips_roots: bool = False
    zap_spares_rooted_child: bool = False
    stale_test: str = "none"  # a fault tests its root: none, before_reclaim, after_reclaim
    enospc_to_user: bool = False
    child_role_valid: bool = True  # else taken from the parent with its mark invalid
    child_reuse: str = "access"  # which child table a fault keeps
    large_in_way: str = "dropped_range"  # of a large leaf where a table is wanted
    mmio_over_leaf: str = "drop_first"
    old_entry_exempts: str = "none"  # from what a writable old entry exempts the new leaf
    track_all_spaces: bool = False
    mmio_cache_space: str = "zero"  # whose generation the vCPU's MMIO cache goes by
    # Fault.
    is_level_requested: bool = False  # the level is settled first, then tables, then the leaf
    retry_before_pin: bool = False
    mmio_emulate_retry: bool = True
    fault_returns: str = "one"
    prefetch_drops_open_run: bool = True
    prefetch_over_same_is_spurious: bool = False
    emulate_wins_over_spurious: bool = False
    has_nx_huge_pages: bool = False
    nx_keeps_any_table: bool = False
    nx_marks_all_levels: bool = False
    has_mmio_caching: bool = False  # there is an option to have no MMIO entries
    wrap_zaps_without_caching: bool = True
    # Ranges, dirty log, notifiers.
    clear_log_whole_words: bool = True
    walk_flush_ranged: bool = False
    zap_range_defers: bool = True  # zap_gfn_range leaves its flush to the end where a hook exists
    log_on_flush: str = "if_changed"
    dirty_log_flush: str = "all"
    zap_range_flush: str = "each_slot"
    zap_range_blocks: str = "nothing"  # which faults a zap of a gfn range makes retry
    collapse: str = "by_leaf"
    collapse_flush: str = "table"
    has_change_pte: bool = True
    unmap_offers_lock: bool = False
    aging_is_lockless: bool = False
    has_initially_set: bool = False
    limit_on_resize: bool = False  # the automatic limit follows created and deleted slots only
    walk_on_log_change: bool = False  # a slot's mappings are walked only where its log flag changed
    has_eager_split: bool = False
    has_slot_zap_all_quirk: bool = False
    nx_recovery_spares_logged: bool = False
    has_prefault: bool = False
    spte_flush: str = "any_bit"  # which lost bits of an entry ask for a flush
    copies_ad_on_zap: bool = True
    # The TDP MMU.
    has_tdp_mmu: bool = False
    tdp_load_needs_room: bool = True  # a root is loaded only where shadow pages may be made
    tdp_root_zap: str = "large"  # the passes of a root's zap: large, each_level
    tdp_atomic_zap: str = "report_first"  # of one entry: report_first, flush_first
    tdp_large_in_way: str = "zapped"  # a fault needs a table where a large leaf stands: zapped, split
    tdp_fault_flush: str = "table"  # after a leaf took a link's place: the range of the table, of the leaf
    tdp_walks_invalid_roots: bool = True  # also masks, single gfns and zap_gfn_range
    tdp_split_whole_mask: bool = False  # the split for a mask reaches its last page
    tdp_split_drops_lock: bool = False  # for each table it allocates
    tdp_log_marks_dirty: bool = False  # the host page of a small leaf that loses W or D to the log
    tdp_age_marks_twice: bool = True  # the host page of a writable leaf without A/D bits
    tdp_collapse: str = "zapped"  # a link that could be a large leaf when the log ends: zapped, in_place
    tdp_allowed_is_spurious: bool = False  # a leaf that allows the access ends the fault unseen
    tdp_nx_recovery_shared: bool = False  # the lock of a recovered table's zap
    tdp_nx_count_kept: bool = False  # recovery lowers the count of another list
    tdp_subtree_first: bool = False  # the change of a link is reported after those of its table
    # Guests with page tables of their own.
    has_guest_tables: bool = False  # they are modelled
    walk_levels: int = 4  # levels of a guest's tables that the kernel's walk has room for
    walk_bound: str = "none"  # of a walk of more levels: none, template
    init_resets: bool = False  # INIT resets the MMU context too
    max_parents: int = 0  # entries that lead to a shadow page; 0: any number
    keys_obey_wp: bool = False  # protection keys go by CR0.WP as it is, else also by one cleared since
    invlpg_warn_line: int = 0  # of paging_tmpl.h, where there is no root
    self_map_is_small: bool = True  # a large page that holds a table of its own walk is mapped small
    sync_keeps_same_access: bool = False  # a sync leaves an entry alone whose gfn and access are the same
    sync_keeps_ad: bool = (
        False  # an entry that a sync makes anew has its accessed bit, else it is as prefetched
    )
    invlpg_syncs: bool = False  # an entry of an unsync page, else it is zapped and filled again
    has_dummy_root: bool = False  # for a root whose table is no memory, else a triple fault
    unprotect_counts_freed: bool = False  # unprotecting succeeds only where a page left the active list
    role_has_smep: bool = False  # a role says CR4.SMEP, else SMEP without CR0.WP
    direct_gfn_bug_line: int = 0  # of mmu.c, where a gfn comes into a direct table of another
    has_unsync: bool = (
        True  # a guest may write a level-1 table whose shadow lags behind, else each write is emulated
    )
    write_flood_limit: int = (
        3  # emulated writes to a table above level 1 that zap its shadow page; 0: none do
    )
    # What the vectors of v6 showed besides.
    walk_skips_empty_heads: bool = False  # a walk polls only after heads that hold something
    notifier_by_hva: bool = False  # notifiers come to slots by host address, else as the array has them
    zap_list_in_order: bool = False  # a reverse map is emptied in its order, else always of its first entry
    move_renews_arrays: bool = False  # a moved slot gets fresh vetoes, reverse maps and tracking
    mmio_cache_access: str = (
        "all"  # the access a fault without a slot leaves in the vCPU's cache: all, masked
    )
    invalid_slot_retries: bool = False  # a fault on a slot that is on its way out comes again
    pml_while_logging: bool = False  # the processor logs dirty pages only while some slot does


_FAST_ZAP = plans("v5.4-fast", "v5.4-fast", "zap-all", "zap-all")

_V5_0 = KernelRules(
    name="v5.0",
    release="5.0.1",
    plans=plans("v5.0-fast", "v5.0-fast", "v5.0-fast", "v5.0-fast"),
    has_guest_tables=True,
    invlpg_warn_line=876,
    direct_gfn_bug_line=1060,
)
_V5_0_SEED = replace(
    _V5_0,
    name="v5.0-seed",
    plans=plans("seed", "v5.0-fast", "v5.0-fast", "v5.0-fast"),
    direct_gfn_bug_line=1061,
    has_mmio_cached=True,
)
_V5_2 = replace(
    _V5_0,
    name="v5.2",
    release="5.2.1",
    plans=plans("merged", "v5.2-slot", "zap-all", "zap-all"),
    generation_layout="v5.1",
    role_layout="v5.1",
    direct_role_bit4=True,
    has_valid_gen=False,
    has_mmio_cached=True,
    has_zapped_obsolete=False,
    has_invalidate_event=False,
    reload_skips_obsolete=False,
    clear_log_whole_words=False,
    walk_flush_ranged=True,
    zap_range_defers=False,
    invlpg_warn_line=893,
    direct_gfn_bug_line=1077,
)
_V5_3 = replace(
    _V5_2,
    name="v5.3",
    release="5.3.1",
    has_guest_tables=False,
    invlpg_warn_line=0,
    direct_gfn_bug_line=0,
    plans=plans("merged", "v5.3-fast", "zap-all", "zap-all"),
    has_valid_gen=True,
    has_set_spte_event=True,
)
_V5_4 = replace(
    _V5_3,
    name="v5.4",
    release="5.4.18",
    plans=_FAST_ZAP,
    spte_layout="v5.4",
    valid_gen_toggles=True,
    obsolete_if_invalid=True,
    has_mmio_cached=False,
    has_zapped_obsolete=True,
    has_zap_all_fast_event=True,
    batch_counts_unstable=True,
    reload_skips_obsolete=True,
)
_V5_10 = replace(
    _V5_4,
    name="v5.10",
    release="5.10.251",
    spte_layout="v5.10",
    generation_layout="v5.10",
    l1tf=False,
    mark_mmio_access_mask=7,
    set_spte_for_mmio=True,
    has_requested_event=True,
    logs_silent_calls=True,
    batch_counts_unstable=False,
    zapped_root_leaves=True,
    reclaim_skips_roots=True,
    enospc_to_user=True,
    mmio_over_leaf="overwrite",
    move_renews_arrays=True,
    mmio_cache_access="masked",
    is_level_requested=True,
    has_nx_huge_pages=True,
    nx_keeps_any_table=True,
    has_initially_set=True,
    walk_on_log_change=True,
)
_V6_1_0 = replace(
    _V5_10,
    name="v6.1.0",
    release="6.1.0",
    spte_layout="v6.1",
    generation_layout="v6.1",
    role_layout="v6.1",
    direct_role_bit4=False,
    is_role_fixed=True,
    mem_slots=32767,
    has_max_gfn=True,
    pte_list_ext=14,
    set_spte_for_mmio=False,
    reload_keeps_valid_root=True,
    stale_test="before_reclaim",
    child_role_valid=False,
    child_reuse="any",
    old_entry_exempts="dirty_and_unsync",
    prefetch_drops_open_run=False,
    emulate_wins_over_spurious=True,
    has_mmio_caching=True,
    log_on_flush="always",
    dirty_log_flush="slot",
    zap_range_flush="once",
    zap_range_blocks="everything",
    collapse="by_table",
    limit_on_resize=True,
    has_eager_split=True,
    walk_levels=5,
    keys_obey_wp=True,
    has_tdp_mmu=True,
    walk_skips_empty_heads=True,
    notifier_by_hva=True,
    zap_list_in_order=True,
    invalid_slot_retries=True,
    pml_while_logging=True,
)
_V6_1 = replace(
    _V6_1_0,
    name="v6.1",
    release="6.1.192",
    has_guest_tables=True,
    zap_spares_rooted_child=True,
    stale_test="after_reclaim",
    child_role_valid=True,
    child_reuse="gfn_role",
    large_in_way="zapped_full",
    mmio_over_leaf="drop_first",
    track_all_spaces=True,
    mmio_cache_space="own",
    collapse="by_table_in_slot",
)
_V6_12_0 = replace(
    _V6_1_0,
    name="v6.12.0",
    release="6.12.0",
    self_map_is_small=False,
    sync_keeps_same_access=True,
    invlpg_syncs=True,
    has_dummy_root=True,
    unprotect_counts_freed=True,
    spte_layout="v6.12",
    fast_pf_whole_error_code=True,
    pte_list_order="front",
    retry_before_pin=True,
    mmio_emulate_retry=False,
    nx_keeps_any_table=False,
    nx_marks_all_levels=True,
    zap_range_blocks="range",
    collapse_flush="entry",
    has_change_pte=False,
    unmap_offers_lock=True,
    has_slot_zap_all_quirk=True,
    nx_recovery_spares_logged=True,
    has_prefault=True,
    tdp_load_needs_room=False,
    tdp_root_zap="each_level",
    tdp_atomic_zap="flush_first",
    tdp_large_in_way="split",
    tdp_fault_flush="leaf",
    tdp_walks_invalid_roots=False,
    tdp_split_whole_mask=True,
    tdp_split_drops_lock=True,
    tdp_log_marks_dirty=True,
    tdp_age_marks_twice=False,
)
_V6_12 = replace(
    _V6_12_0,
    name="v6.12",
    release="6.12.117",
    has_guest_tables=True,
    zap_spares_rooted_child=True,
    stale_test="after_reclaim",
    child_role_valid=True,
    child_reuse="gfn_role",
    large_in_way="zapped_full",
    mmio_over_leaf="drop_first",
    track_all_spaces=True,
    mmio_cache_space="own",
    collapse="by_table_in_slot",
    walk_bound="template",
)
_V6_18 = replace(
    _V6_12_0,
    name="v6.18",
    release="6.18.15",
    has_guest_tables=True,
    sync_keeps_ad=True,
    has_zapped_obsolete=False,
    has_shrinker=False,
    old_entry_exempts="unsync",
    fault_returns="verdict",
    prefetch_over_same_is_spurious=True,
    aging_is_lockless=True,
    spte_flush="mmu_writable",
    copies_ad_on_zap=False,
    tdp_log_marks_dirty=False,
    tdp_collapse="in_place",
    tdp_allowed_is_spurious=True,
    tdp_nx_recovery_shared=True,
    tdp_nx_count_kept=True,
)
_V7_1_3 = replace(
    _V6_18,
    name="v7.1.3",
    release="7.1.3",
    child_reuse="gfn_role",
    large_in_way="zapped_range",
    mmio_over_leaf="drop_first",
    wrap_zaps_without_caching=False,
    collapse="by_table_in_slot",
)
_V7_1 = replace(
    _V7_1_3,
    name="v7.1",
    release="7.1.13",
    stale_test="after_reclaim",
    child_role_valid=True,
    track_all_spaces=True,
)
_V7_2_6 = replace(
    _V7_1,
    name="v7.2.6",
    release="7.2.6",
    spte_layout="v7.2",
    generation_layout="v7.2",
    role_layout="v7.2",
    access_bits="rwux",
    role_has_smep=True,
    mark_mmio_access_mask=15,
    zap_spares_rooted_child=True,
    tdp_subtree_first=True,
)
_V7_2 = replace(_V7_2_6, name="v7.2", release="7.2.12", mmio_cache_space="own")
_V7_3 = replace(_V7_2, name="v7.3", release="7.3.4", walk_bound="template")

KERNELS: dict[str, KernelRules] = {
    rules.name: rules
    for rules in (
        *(_V5_0, _V5_0_SEED, _V5_2, _V5_3, _V5_4, _V5_10, _V6_1_0, _V6_1, _V6_12_0, _V6_12),
        *(_V6_18, _V7_1_3, _V7_1, _V7_2_6, _V7_2, _V7_3),
    )
}

#: The names of the facts: what a row has beside its name, release and plans.
_FACTS = tuple(field.name for field in fields(KernelRules) if field.name not in ("name", "release", "plans"))
_RELEASE = re.compile(r"v?(\d{1,3})\.(\d{1,3})(?:\.(\d{1,4}))?")


def kernel(name: str) -> KernelRules:
    """Find the row of a kernel: by its name, or by branch and patch level the branch's newest row that is not newer.

    A patch level before the branch's first row gets that one; what fixes are known to have changed between the row and
    the patch level is changed. `ROW:fact=value` is that row with the fact changed.

    Args:
        name: a row's name, a branch (its newest row) or a release, and facts to change.

    Returns:
        The row.

    Raises:
        ScenarioError: the reference knows no such branch, no such fact or not that value of it.
    """
    row, *changes = name.split(":")
    rules = _row(row)
    for change in changes:
        fact, _, text = change.partition("=")
        if fact not in _FACTS:
            raise ScenarioError(f"kernel {cut(name)}: {cut(change)} changes no fact; expected fact=value")
        changed: dict[str, Any] = {fact: _fact_value(fact, text)}
        rules = replace(rules, **changed)
    return replace(rules, name=":".join((rules.name, *changes)))


def _fact_value(fact: str, text: str) -> bool | int | str:
    """Read a changed fact: a number is free, another must be the value of some row."""
    if isinstance(getattr(_V5_0, fact), int) and not isinstance(getattr(_V5_0, fact), bool):
        if not (text.isascii() and text.isdigit()):
            raise ScenarioError(f"fact {fact} is {cut(text)}; expected a number")
        return int(text)
    known: dict[str, bool | int | str] = (
        {"yes": True, "no": False} if isinstance(getattr(_V5_0, fact), bool) else {}
    )
    if not known:
        known |= {str(getattr(rules, fact)): getattr(rules, fact) for rules in KERNELS.values()}
        levels = (value for level in FIX_LEVELS for value in level.facts.get(fact, ()))
        known |= {str(value): value for value in levels}
    if text not in known:
        raise ScenarioError(f"fact {fact} is {cut(text)}; expected one of {', '.join(known)}")
    return known[text]


def _row(name: str) -> KernelRules:
    """Find the row itself."""
    if name in KERNELS:
        return KERNELS[name]
    release = _RELEASE.fullmatch(name)
    if release is not None:
        branch = f"{release[1]}.{release[2]}"
        rows = [
            (int(number), rules)
            for rules in KERNELS.values()
            for of, _, number in [rules.release.rpartition(".")]
            if of == branch and "-" not in rules.name
        ]
        if rows and release[3] is None:
            return rows[-1][1]
        if rows:
            patch = int(release[3])
            older = [row for row in rows if row[0] <= patch]
            number, rules = older[-1] if older else rows[0]
            return _changed(rules, changed_facts(branch, number, patch))
    raise ScenarioError(f"unknown kernel {cut(name)}; expected one of {', '.join(KERNELS)}")


def _changed(rules: KernelRules, facts: dict[str, Any]) -> KernelRules:
    """Change facts of a row; its name says each, in the order of the facts."""
    changes = [f"{fact}={value_text(facts[fact])}" for fact in _FACTS if fact in facts]
    return replace(rules, name=":".join((rules.name, *changes)), **facts)


def value_text(value: object) -> str:
    """Write a value as a kernel's text has it."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
