"""KVM_PRE_FAULT_MEMORY of v6.12: a vCPU maps a range before its guest asks for it.

Owns the signal that ends a call that does not come forward: it is pending after so many polls.
"""

from __future__ import annotations

from ..common.constants import (
    EINTR,
    EINVAL,
    ENOENT,
    EOPNOTSUPP,
    PAGE_SHIFT,
    PAGE_SIZE,
    PFERR_GUEST_FINAL,
    RET_PF_EMULATE,
    RET_PF_RETRY,
    U64,
    kvm_pages_per_hpage,
)
from ..common.host_memory import HostAnswer
from ..common.page_fault import PageFault
from ..common.state import Kvm, Vcpu
from .fault import kvm_mmu_do_page_fault
from .roots import kvm_mmu_load

POLLS_BEFORE_SIGNAL = 8


def kvm_vcpu_pre_fault_memory(
    kvm: Kvm, vcpu: Vcpu, gpa: int, size: int, answer: HostAnswer | None = None
) -> int:
    """Map the first page of the range, however large: the bytes done, or a negative errno."""
    if not kvm.rules.has_prefault:
        return -EOPNOTSUPP
    if gpa % PAGE_SIZE or size % PAGE_SIZE or gpa + size & U64 <= gpa:
        return -EINVAL
    if not vcpu.roots:
        error = kvm_mmu_load(kvm, vcpu)
        if error:
            return error
    level = kvm_tdp_map_page(kvm, vcpu, gpa, answer)
    if level < 0:
        return level
    covered = kvm_pages_per_hpage(level) << PAGE_SHIFT
    return min(size, (gpa & ~(covered - 1)) + covered - gpa)


def kvm_tdp_map_page(kvm: Kvm, vcpu: Vcpu, gpa: int, answer: HostAnswer | None = None) -> int:
    """The level the address was mapped at, or a negative errno; it comes again until a signal ends it."""
    for _ in range(POLLS_BEFORE_SIGNAL):
        fault = PageFault(gpa, PFERR_GUEST_FINAL, answer, is_prefetch=True)
        verdict = kvm_mmu_do_page_fault(kvm, vcpu, fault)
        if verdict < 0:
            return verdict
        if verdict == RET_PF_EMULATE:
            return -ENOENT
        if verdict != RET_PF_RETRY:
            return fault.goal_level
    return -EINTR
