"""The audit of a live VM: everything that its structures claim, computed again from what was read.

Owns: the list of checks. Names are those of docs/invariants.md where the rule is the same. No check reads memory, but
`guest_tables`, which compares with the guest's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvm_mmu.live.audit import leaves, links, lists, roots_tdp, slots_mmio
from kvm_mmu.live.audit.facts import Seen
from kvm_mmu.live.audit.findings import Audit, Check
from kvm_mmu.live.audit.guest_tables import check_guest
from kvm_mmu.live.capture import Capture

#: Every check by its name, in the order of the report.
CHECKS: dict[str, Callable[[Seen, Check], None]] = {
    function.__name__: function
    for function in (
        lists.active_links,
        lists.used_pages,
        lists.page_limit,
        lists.hash_bucket,
        lists.hash_unique,
        lists.valid_gen,
        lists.page_back_pointer,
        links.link_level,
        links.link_child,
        links.link_parent,
        links.parent_link,
        leaves.leaf_rmap,
        leaves.rmap_leaf,
        roots_tdp.root_alive,
        roots_tdp.root_count,
        links.unsync_marks,
        slots_mmio.tracked_tables,
        leaves.write_protected_tables,
        leaves.dirty_log,
        slots_mmio.mmio_sptes,
        slots_mmio.mmio_cache,
        leaves.page_stats,
        leaves.spte_writable,
        leaves.spte_bits,
        roots_tdp.tdp_refs,
        roots_tdp.tdp_tree,
        roots_tdp.nx_huge_pages,
        slots_mmio.memslots,
        slots_mmio.slot_order,
    )
}


def audit(capture: Capture, guest: Any = None) -> Audit:
    """Check every rule.

    Args:
        capture: the VM.
        guest: what gives pages of the guest (`page(space, gfn)`), for the check `guest_tables`; a `LiveError` says why
            there is none; None: the check is left out.

    Returns:
        What was compared, and what was found.
    """
    seen = Seen(capture)
    done = []
    for name, function in CHECKS.items():
        check = Check(name)
        function(seen, check)
        done.append(check)
    if guest is not None:
        done.append(check_guest(seen, guest))
    return Audit(done, list(capture.busy), list(capture.faults))
