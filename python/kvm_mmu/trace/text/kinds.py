"""Which trace events are outputs of the MMU (a replay predicts them) and which of them a recording had
switched on.

Owns: the list of outputs, the families of kernels, the event sets of the recordings. Everything that is not
an output is an input or is ignored.
"""

from __future__ import annotations

from collections.abc import Set

from kvm_mmu.trace.text.wording import Wording

#: Every output of any kernel. What a recording does not have switched on is dropped from the prediction.
OUTPUTS: frozenset[str] = frozenset(
    {
        "kvm_mmu_get_page",
        "kvm_mmu_prepare_zap_page",
        "kvm_mmu_sync_page",
        "kvm_mmu_unsync_page",
        "kvm_mmu_set_spte",
        "mark_mmio_spte",
        "check_mmio_spte",
        "handle_mmio_page_fault",
        "fast_page_fault",
        "kvm_mmu_set_accessed_bit",
        "kvm_mmu_set_dirty_bit",
        "kvm_mmu_walker_error",
        "kvm_mmu_zap_all_fast",
        "kvm_mmu_invalidate_zap_all_pages",
        "kvm_mmu_split_huge_page",
        "memslots_updated",
        "invalidate_mmio",
        "flush_shadow_memslot",
        "zap_all_fast_enter",
        "commit_zap",
        "change_mmu_pages",
        "page_zap_pte",
        "make_mmio_spte",
        "make_mmio_spte_ret",
        "zap_oldest_ret",
        "try_unsync",
        "try_unsync_ret",
        "unprotect_page_ret",
    }
)

#: The tracepoints among them (the others are kprobes of the recording set-up).
TRACEPOINTS: frozenset[str] = frozenset(
    name
    for name in OUTPUTS
    if name.startswith("kvm_mmu_")
    or name in ("mark_mmio_spte", "check_mmio_spte", "handle_mmio_page_fault", "fast_page_fault")
)

#: Outputs of the TDP MMU besides: its own tracepoint, and the probes on flushes, each of which has a reason there.
TDP_OUTPUTS = OUTPUTS | {"kvm_tdp_mmu_spte_changed", "flush_remote_tlbs", "flush_remote_tlbs_range"}
#: The probes on flushes.
FLUSHES = frozenset({"flush_remote_tlbs", "flush_remote_tlbs_range"})

_TDP_CHANGED = frozenset({"kvm_tdp_mmu_spte_changed"})
_GUEST_TABLE_BITS = frozenset({"kvm_mmu_set_accessed_bit", "kvm_mmu_set_dirty_bit"})
#: Any of these shows that a memslot update took place.
UPDATE_PROBES = frozenset({"memslots_updated", "swap_memslots", "set_memslot"})
_MODEL_PROBES = frozenset(
    {"memslots_updated", "change_mmu_pages", "flush_shadow_memslot", "commit_zap", "zap_oldest_ret"}
)
#: What has to be known of a recording to say what it had switched on.
TELLING = frozenset({"kvm_entry", "memslots_updated", "invalidate_mmio"})


def outputs_of(names: Set[str], *, is_tdp: bool = False) -> frozenset[str]:
    """The outputs to strip from a recording in which these events occur.

    Without any probe on memslot updates the generation probe is the only sign of one, and so an input.
    """
    outputs = TDP_OUTPUTS if is_tdp else OUTPUTS
    return outputs if names & UPDATE_PROBES else outputs - {"invalidate_mmio"}


def switched_on(wording: Wording, names: Set[str], *, is_tdp: bool = False) -> frozenset[str]:
    """The outputs that a recording of a kernel with this wording had switched on, judged by its event set."""
    if is_tdp:
        return _switched_on(wording, names) | (
            TDP_OUTPUTS - OUTPUTS if "kvm_entry" in names else _TDP_CHANGED
        )
    return _switched_on(wording, names)


def _switched_on(wording: Wording, names: Set[str]) -> frozenset[str]:
    if not wording.has_requests:
        return TRACEPOINTS
    if "kvm_entry" in names:
        return OUTPUTS - wording.unprobed
    if "memslots_updated" in names:
        return (TRACEPOINTS - _GUEST_TABLE_BITS) | _MODEL_PROBES - wording.unprobed
    if "invalidate_mmio" in names:
        return (TRACEPOINTS - _GUEST_TABLE_BITS) | {"invalidate_mmio"}
    return TRACEPOINTS
