"""TLB flushes and requests to the vCPUs, with their events and counts.

Owns `Vcpu.requests` being raised for all vCPUs. Models kvm_flush_remote_tlbs, kvm_flush_remote_tlbs_with_address
and kvm_reload_remote_mmus of v5.0 to v6.12, where a reload is a request to free obsolete roots.
"""

from __future__ import annotations

from .constants import KVM_REQ_MMU_RELOAD, KVM_REQ_TLB_FLUSH
from .events import note_reload, note_silent_call
from .state import Kvm, KvmMemorySlot


def kvm_flush_remote_tlbs(kvm: Kvm) -> None:
    kvm.events.append(["flush"])
    kvm.ctr["flush"] += 1
    kvm.tlbs_dirty = 0
    kvm.stat["remote_tlb_flush_requests"] += 1
    kvm.work["flushes"] += 1
    for vcpu in kvm.vcpus:
        vcpu.requests |= KVM_REQ_TLB_FLUSH


def kvm_available_flush_tlb_with_range(kvm: Kvm) -> bool:
    return kvm.config.flush_range != 0


def kvm_flush_remote_tlbs_with_address(kvm: Kvm, start_gfn: int, pages: int) -> None:
    """Flush a range where the vendor has a hook for it, everything otherwise."""
    if kvm.config.tdp_mmu:
        note_silent_call(kvm, "flush_remote_tlbs_range", start_gfn, pages)
    flush_range(kvm, start_gfn, pages)


def flush_range(kvm: Kvm, start_gfn: int, pages: int) -> None:
    if not kvm_available_flush_tlb_with_range(kvm):
        kvm_flush_remote_tlbs(kvm)
        return
    kvm.events.append(["flush_range", start_gfn, pages])
    kvm.ctr["flush_range"] += 1
    kvm.work["flushes_ranged"] += 1


def kvm_arch_flush_remote_tlbs_memslot(kvm: Kvm, slot: KvmMemorySlot) -> None:
    flush_range(kvm, slot.base_gfn, slot.npages)


def kvm_reload_remote_mmus(kvm: Kvm) -> None:
    note_reload(kvm)
    kvm.ctr["reload"] += 1
    for vcpu in kvm.vcpus:
        vcpu.requests |= KVM_REQ_MMU_RELOAD
