"""What the names in a page mean: events with their fields, counters, work, and the columns of comparisons and sweeps.

Owns one sentence a name, for those who read a page and have no documentation at hand; docs/reference/state.md says the
same at length, and a test holds the fields of both together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: Event to its fields, and when it is logged.
EVENTS: dict[str, tuple[str, str]] = {
    "get_page": ("id gfn role created", "a shadow page or table was made (created 1) or found (0)"),
    "prepare_zap": ("id", "a page is prepared for a zap; a root in use comes once more when it is given up"),
    "sync": ("id", "the shadow of a guest's table is in step with it again, or gone"),
    "unsync": ("id", "the shadow of a guest's table may fall out of step with it from now on"),
    "inject_pf": ("vcpu addr error_code", "the guest gets a page fault of its own"),
    "WARN": ("where condition", "the kernel would warn"),
    "mark_mmio": ("id index gfn access gen", "an MMIO SPTE is written"),
    "check_mmio": ("spte kvm_gen spte_gen", "an MMIO SPTE is compared with the current generation"),
    "handle_mmio": ("addr gfn access", "an MMIO SPTE was accepted"),
    "fast_pf": (
        "vcpu addr error_code id index old new handled",
        "the fault path without the lock looked at an entry",
    ),
    "flush": ("", "a TLB flush of all vCPUs"),
    "flush_range": ("gfn pages", "a TLB flush of a range"),
    "reload_mmus": ("", "every vCPU is asked to reload its root"),
    "invalidate_zap_all": ("", "v5.0: the fast zap of everything begins"),
    "age": ("gfn level", "a young head of the reverse map was aged"),
    "pfn_accessed": ("pfn", "the host page is marked as accessed"),
    "pfn_dirty": ("pfn", "the host page is marked as dirty"),
    "pml": ("gfn", "a dirty bit was set and logged by the processor"),
    "emulate": ("vcpu addr type", "the emulator is called"),
    "fault": ("vcpu addr error_code", "an access faults"),
    "ret": ("ret", "what the fault handler returned: 1 resume, 0 exit to user space, negative an errno"),
    "lock_break": ("", "mmu_lock was dropped"),
    "srcu_sync": ("", "a memslot array is published, readers of the old one are waited for"),
    "hwpoison_signal": ("hva", "a poisoned page was touched"),
    "nested_begin": ("kind", "operations inside another begin: 1 in a lock break, 2 in a memslot update"),
    "nested_end": ("kind", "operations inside another end"),
    "spte": (
        "as gfn level old new old_child new_child",
        "an entry of the TDP MMU changed; a link has the id of its table",
    ),
    "split": ("gfn spte level errno", "a large leaf of the TDP MMU became a table"),
    "set_spte": ("id index gfn spte level", "a leaf is written"),
    "page_zap_pte": ("id index spte", "an entry goes with its page, or a large leaf that is in the way"),
    "commit_zap": ("", "prepared pages are about to be flushed and freed"),
    "make_mmio_spte": ("gfn access", "an MMIO word is about to be made"),
    "make_mmio_spte_ret": ("spte", "an MMIO word was made"),
    "try_unsync": ("gfn can_unsync prefetch", "it is asked whether the gfn may be mapped writable"),
    "try_unsync_ret": ("ret", "the answer: 0, it may"),
    "zap_oldest_ret": ("nr_zapped", "reclaim has ended"),
    "change_mmu_pages": ("goal", "the limit of shadow pages is set"),
    "memslots_updated": ("slots_gen", "a new memslot generation is made known"),
    "invalidate_mmio": ("slots_gen", "a new memslot generation is looked at for a wrap"),
    "flush_remote_tlbs_range": ("gfn pages", "the TDP MMU asks for a flush of a range"),
    "flush_shadow_memslot": ("", "a slot is about to be zapped"),
    "zap_all_fast_enter": ("", "the fast zap begins"),
    "zap_all_fast": ("valid_gen used", "the fast zap: valid generation before it, pages in use"),
    "requested": ("gfn pfn level", "a fault has its host page and goes on to map"),
    "unmap_hva": ("start end", "a notifier unmaps a range of host addresses"),
    "age_hva": ("start end", "a notifier ages a range of host addresses"),
    "test_age_hva": ("hva", "a notifier asks whether a host page is young"),
    "set_spte_hva": ("hva", "a notifier changes the host page behind an address"),
    "walk": ("addr error_code", "the guest's own page tables are walked"),
    "walk_pte": ("entry level", "an entry of theirs is read"),
    "walk_error": ("error_code", "the walk ends in a fault of the guest"),
    "set_accessed": ("gpa", "the walk sets an accessed bit"),
    "set_dirty": ("gpa", "the walk sets a dirty bit"),
}
#: Fields of the same in scenarios of format 6, where they are others.
STEPPED_FIELDS: dict[str, str] = {
    "get_page": "id gfn role created valid_gen root_count unsync",
    "prepare_zap": "id gfn role valid_gen root_count unsync",
    "sync": "id gfn role valid_gen root_count unsync",
    "unsync": "id gfn role valid_gen root_count unsync",
    "fast_pf": "vcpu addr error_code id index old new spurious fixed",
    "set_spte": "gfn spte level r x u id index",
    "lock_break": "kind",
}
#: Fields that are addresses, frames or words.
_HEX = {"gfn", "pfn", "addr", "hva", "gpa", "err", "start", "end", "gen", "slots_gen", "kvm_gen", "spte_gen"}

#: What each counter of an operation counts.
COUNTERS: dict[str, str] = {
    "flush": "full flushes of all TLBs",
    "flush_range": "flushes of a range of guest memory",
    "reload": "requests to all vCPUs to load their roots again",
    "lock_breaks": "times mmu_lock was dropped in the middle of work",
    "cond_resched": "times the lock was offered",
    "need_resched": "times it was asked whether somebody needs the processor",
    "needbreak": "times it was asked whether somebody waits for the lock",
    "warn": "warnings of the kernel",
    "zapped": "shadow pages prepared for a zap",
    "recycled": "shadow pages taken by reclaim in faults",
    "cache_miss": "shadow pages that were asked for and not found",
    "created": "shadow pages made",
    "freed": "shadow pages freed",
    "lpages": "large leaves, net",
    "max_collisions": "the most pages met in one hash bucket",
    "pfn_accessed": "host pages marked as accessed",
    "pfn_dirty": "host pages marked as dirty",
    "walk_starts": "passes of zap loops over the active list",
    "walk_visited": "list entries that they looked at",
    "srcu_sync": "waits for everybody who may use the old memslots",
    "spte_changed": "entries of the TDP MMU whose change was reported",
    "tdp_walks": "walks of the TDP MMU",
    "tdp_steps": "entries that they came to",
}

#: What each count of work is.
WORK: dict[str, str] = {
    "walk_starts": "passes of zap loops over the active list, restarts included",
    "walk_visited": "list entries that they looked at",
    "restarts": "passes begun beyond the first of each run",
    "pages_zapped": "pages prepared for a zap",
    "pages_freed": "pages freed by a commit",
    "sptes_cleared": "entries that were not empty and went with their page",
    "rmap_steps": "reverse-map entries added, removed, or come to by a handler that may change them",
    "parent_steps": "parent entries added or removed",
    "hash_probes": "pages compared in hash buckets",
    "flushes": "full TLB flushes",
    "flushes_ranged": "flushes of a range",
    "lock_breaks": "times mmu_lock was dropped",
    "lock_offers": "times it was offered",
    "lock_polls": "times it was asked whether somebody wants it",
    "faults": "page faults handled",
    "mmio_faults": "faults that the MMIO check was asked about",
    "get_page_found": "shadow pages that were asked for and found",
    "get_page_created": "shadow pages made",
    "heads_visited": "reverse-map heads that walks over slots came to, empty ones included",
    "sptes_changed": "entries of the TDP MMU whose change was reported",
    "units": "the work under the lock as one number: 1 for each list entry, cleared entry, reverse-map and parent "
    "step, hash probe and head, 8 for a page zapped, 4 for one freed, 16 for a full flush",
}

#: What each column of a comparison is.
COLUMNS: dict[str, str] = {
    "input": "scenario, recording or workload",
    "kernel": "the kernel that was modelled",
    "mmu": "what the plan was run on: shadow pages, or tables of the TDP MMU",
    "at": "the event that was forced",
    "plan": "which pages were zapped, and in which order",
    "pages": "shadow pages (or tables) that lived before the event",
    "mmio_pages": "those of them that cached MMIO",
    "sample_share": "the share of the guest's memory that was asked for: the counts are estimates for the whole",
    "sample_gfns": "gfns that the guest comes to",
    "sample_kept": "those of them that were run",
    "outcome": "how the plan ended",
    "sound": "yes: nothing is left of what the event needs gone; no: something is; -: the run does not show it",
    "to_go": "what the event needs gone, before the plan: stale MMIO SPTEs, mappings of the slot, or tables",
    "left_over": "how much of that is left after the plan",
    "nodes_visited": "entries of the active list that the walk looked at",
    "restarts": "passes begun beyond the first",
    "pages_zapped": "pages prepared for a zap",
    "sptes_cleared": WORK["sptes_cleared"],
    "sptes_changed": WORK["sptes_changed"],
    "rmap_steps": WORK["rmap_steps"],
    "parent_steps": WORK["parent_steps"],
    "flushes": "full TLB flushes",
    "lock_breaks": "times mmu_lock was dropped on the way",
    "longest_hold": "the most work between two lock breaks while mmu_lock was held for writing, in work units",
    "shared_units": "work done while mmu_lock was held for reading, beside faults",
    "longest_shared_hold": "the most of it between two lock breaks",
    "work_units": WORK["units"],
    "tables_rebuilt": "tables that the guest's accesses make again afterwards",
    "faults_again": "faults that the guest takes again afterwards",
    "updates_per_event": "memslot updates between two such events",
    "units_per_update": "work units, spread over those updates",
    "tables_per_update": "tables rebuilt, spread over them",
    "faults_per_update": "faults taken again, spread over them",
    "digest": "the state and the work after the run, as 16 digits: equal digests, equal runs",
    "cost_model": "whose constants turn counts into time",
    "modelled_ms": "time modelled from the counts, not measured, in milliseconds",
    "modelled_ms_per_update": "the same, spread over the updates between two events",
    "cell": "which cell of the grid this is, as a digest of its place",
    "pages_asked": "pages that were asked for",
    "mmio_asked": "share of pages that cache MMIO that was asked for",
    "vcpus": "vCPUs of the guest",
    "sample": "the share of the guest's gfns that was run, where the counts are estimates",
    "seed": "of what the workload draws by chance",
    "error": "why the cell failed; empty where it did not",
}


def fields(event: Sequence[Any]) -> str:
    """Write an event's fields with their names.

    Args:
        event: its name, then its fields.

    Returns:
        `gfn 0x200 level 1`, for example; the bare values where the names are not known.
    """
    values = list(event[1:])
    known = EVENTS.get(str(event[0]), ("", ""))[0].split()
    stepped = STEPPED_FIELDS.get(str(event[0]), "").split()
    if len(values) == len(known) + 1 and event[0] == "spte":
        known = [*known, "times"]
    names = known if len(values) == len(known) else stepped
    if len(values) != len(names):
        return " ".join(map(str, values))
    return ", ".join(f"{name} {number(name, value)}" for name, value in zip(names, values, strict=True))


def number(name: str, value: Any) -> str:
    """Write a value as people read it: addresses, frames and generations with 0x.

    Args:
        name: of the field.
        value: its value.

    Returns:
        The text.
    """
    if name in _HEX and isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return hex(value)
    return "-" if value is None else str(value)


def operation(values: Mapping[str, Any]) -> str:
    """Write an operation of the scenario language in one line.

    Args:
        values: `op` and its fields.

    Returns:
        Its name and its plain fields, cut to 160 characters; lists are counted.
    """
    parts = [str(values.get("op", "?"))]
    for key, value in values.items():
        if key == "op" or value is None:
            continue
        if isinstance(value, list | dict):
            parts.append(f"{key} ({len(value)})")
        else:
            parts.append(f"{key} {number(key, value)}")
    return " ".join(parts)[:160]
