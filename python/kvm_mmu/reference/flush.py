"""TLB flushes and requests to the vCPUs, with their events and counts.

Owns `Vcpu.requests` being raised for all vCPUs. Models kvm_flush_remote_tlbs, kvm_flush_remote_tlbs_with_address
and kvm_reload_remote_mmus of v5.0 to v5.2.
"""

from __future__ import annotations

from .constants import KVM_REQ_MMU_RELOAD, KVM_REQ_TLB_FLUSH
from .state import Kvm


def kvm_flush_remote_tlbs(kvm: Kvm) -> None:
    kvm.events.append(["flush"])
    kvm.ctr["flush"] += 1
    kvm.work["flushes"] += 1
    for vcpu in kvm.vcpus:
        vcpu.requests |= KVM_REQ_TLB_FLUSH


def kvm_available_flush_tlb_with_range(kvm: Kvm) -> bool:
    return kvm.config.flush_range != 0


def kvm_flush_remote_tlbs_with_address(kvm: Kvm, start_gfn: int, pages: int) -> None:
    """Flush a range where the vendor has a hook for it, everything otherwise."""
    if not kvm_available_flush_tlb_with_range(kvm):
        kvm_flush_remote_tlbs(kvm)
        return
    kvm.events.append(["flush_range", start_gfn, pages])
    kvm.work["flushes_ranged"] += 1


def kvm_reload_remote_mmus(kvm: Kvm) -> None:
    kvm.events.append(["reload_mmus"])
    kvm.ctr["reload"] += 1
    for vcpu in kvm.vcpus:
        vcpu.requests |= KVM_REQ_MMU_RELOAD
