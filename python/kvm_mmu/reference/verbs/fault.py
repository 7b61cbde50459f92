"""The page fault of a direct MMU: from the error code to the entry or the emulator.

Owns the order of the MMIO check, the fault and the emulation, and the vCPU's statistics. Models kvm_mmu_page_fault and
kvm_mmu_do_page_fault of v5.0 to v6.12; what lies behind the check is `fault_v5` or `fault_v6`. The emulator of the
modelled environment always ends in an exit to user space.
"""

from __future__ import annotations

from ..common.constants import (
    EMULTYPE_RETRY,
    EMULTYPE_WRITE_PF_TO_SP,
    PFERR_NESTED_GUEST_PAGE,
    PFERR_RSVD,
    RET_PF_EMULATE,
    RET_PF_FIXED,
    RET_PF_RETRY,
    RET_PF_SPURIOUS,
    RET_PF_WRITE_PROTECTED,
    U32,
)
from ..common.events import note_emulate
from ..common.host_memory import HostAnswer
from ..common.mmio_fault import handle_mmio_page_fault, is_guest_paging, mmio_info_in_cache
from ..common.page_fault import PageFault
from ..common.page_table import has_guest_tables
from ..common.state import Kvm, Vcpu
from ..paging.nonpaging import nonpaging_page_fault
from ..paging.page_fault import paging_page_fault
from ..paging.page_fault_v6 import nonpaging_page_fault_v6, paging_page_fault_v6
from ..v5.fault import tdp_page_fault
from ..v6.fault import direct_page_fault

# What v6.18 and later return for a fault that was handled.
VERDICTS = {RET_PF_RETRY: 1, RET_PF_FIXED: 5, RET_PF_SPURIOUS: 6}


def kvm_mmu_page_fault(
    kvm: Kvm, vcpu: Vcpu, gpa: int, error_code: int, answer: HostAnswer | None = None
) -> int:
    """1 or a verdict: resume the guest, 0: exit to user space after emulation, negative: an errno."""
    kvm.work["faults"] += 1
    if error_code & PFERR_RSVD:
        verdict = handle_mmio_page_fault(kvm, vcpu, gpa)
        if verdict == RET_PF_EMULATE:
            return x86_emulate_instruction(kvm, vcpu, gpa, 0)
        if verdict == RET_PF_RETRY:
            return 1
    own_table = 0
    if kvm.rules.is_level_requested:
        fault = PageFault(gpa, error_code, answer)
        verdict = kvm_mmu_do_page_fault(kvm, vcpu, fault)
        own_table = EMULTYPE_WRITE_PF_TO_SP if fault.is_write_to_own_table else 0
    elif is_guest_paging(vcpu):
        verdict = paging_page_fault(kvm, vcpu, gpa, error_code & U32)
    elif has_guest_tables(kvm):
        verdict = nonpaging_page_fault(kvm, vcpu, gpa, error_code & U32)
    else:
        verdict = tdp_page_fault(kvm, vcpu, gpa, error_code & U32, answer)
    if verdict < 0:
        return verdict
    if verdict not in (RET_PF_EMULATE, RET_PF_WRITE_PROTECTED):
        return VERDICTS[verdict] if kvm.rules.fault_returns == "verdict" else 1
    if error_code & PFERR_NESTED_GUEST_PAGE == PFERR_NESTED_GUEST_PAGE:
        return 1  # the processor walked a guest table: its indirect pages would go, a direct MMU has none
    return x86_emulate_instruction(kvm, vcpu, gpa, emulation_type(kvm, vcpu, gpa, verdict) | own_table)


def emulation_type(kvm: Kvm, vcpu: Vcpu, gpa: int, verdict: int) -> int:
    """Whether the emulator may let the guest retry: unless it is MMIO that the cache knows, later for writes only."""
    if not kvm.rules.mmio_emulate_retry:
        if has_guest_tables(kvm) and gpa == 0:
            return 0  # no instruction was retried yet, which counts as one that was, at address 0
        return EMULTYPE_RETRY if verdict == RET_PF_WRITE_PROTECTED else 0
    return 0 if mmio_info_in_cache(kvm, vcpu, gpa) else EMULTYPE_RETRY


def kvm_mmu_do_page_fault(kvm: Kvm, vcpu: Vcpu, fault: PageFault) -> int:
    """A fault behind the MMIO check, counted; one that only prefetches is not the guest's and counts nothing."""
    if not fault.is_prefetch:
        vcpu.stat["pf_taken"] += 1
    if is_guest_paging(vcpu):
        verdict = paging_page_fault_v6(kvm, vcpu, fault)
    elif has_guest_tables(kvm):
        verdict = nonpaging_page_fault_v6(kvm, vcpu, fault)
    else:
        verdict = direct_page_fault(kvm, vcpu, fault)
    if fault.is_prefetch:
        return verdict
    if verdict == RET_PF_FIXED:
        vcpu.stat["pf_fixed"] += 1
    elif verdict in (RET_PF_EMULATE, RET_PF_WRITE_PROTECTED):
        vcpu.stat["pf_emulate"] += 1
    elif verdict == RET_PF_SPURIOUS:
        vcpu.stat["pf_spurious"] += 1
    return verdict


def x86_emulate_instruction(kvm: Kvm, vcpu: Vcpu, gpa: int, kind: int) -> int:
    note_emulate(kvm, vcpu, gpa, kind)
    return 0
