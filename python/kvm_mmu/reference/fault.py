"""The page fault of a direct MMU: from the error code to the entry or the emulator.

Owns the order of the MMIO check, the fault and the emulation. Models kvm_mmu_page_fault of v5.0 to v6.12; what lies
behind the check is `fault_v5` or `fault_v6`. The emulator of the modelled environment always ends in an exit to user
space.
"""

from __future__ import annotations

from .constants import (
    EMULTYPE_RETRY,
    PFERR_NESTED_GUEST_PAGE,
    PFERR_RSVD,
    RET_PF_EMULATE,
    RET_PF_RETRY,
    U32,
)
from .fault_v5 import tdp_page_fault
from .fault_v6 import direct_page_fault
from .host_memory import HostAnswer
from .mmio_fault import handle_mmio_page_fault, vcpu_match_mmio_gpa
from .state import Kvm, Vcpu


def kvm_mmu_page_fault(
    kvm: Kvm, vcpu: Vcpu, gpa: int, error_code: int, answer: HostAnswer | None = None
) -> int:
    """1: resume the guest, 0: exit to user space after emulation, negative: an errno."""
    kvm.work["faults"] += 1
    if error_code & PFERR_RSVD:
        verdict = handle_mmio_page_fault(kvm, vcpu, gpa)
        if verdict == RET_PF_EMULATE:
            return x86_emulate_instruction(kvm, vcpu, gpa, 0)
        if verdict == RET_PF_RETRY:
            return 1
    if kvm.rules.is_v6:
        verdict = direct_page_fault(kvm, vcpu, gpa, error_code, answer)
    else:
        verdict = tdp_page_fault(kvm, vcpu, gpa, error_code & U32, answer)
    if verdict < 0:
        return verdict
    if verdict == RET_PF_RETRY:
        return 1
    if error_code & PFERR_NESTED_GUEST_PAGE == PFERR_NESTED_GUEST_PAGE:
        return 1  # the processor walked a guest table: its indirect pages would go, a direct MMU has none
    is_cached = vcpu_match_mmio_gpa(kvm, vcpu, gpa)
    return x86_emulate_instruction(kvm, vcpu, gpa, 0 if is_cached else EMULTYPE_RETRY)


def x86_emulate_instruction(kvm: Kvm, vcpu: Vcpu, gpa: int, emulation_type: int) -> int:
    kvm.events.append(["emulate", vcpu.id, gpa, emulation_type])
    return 0
