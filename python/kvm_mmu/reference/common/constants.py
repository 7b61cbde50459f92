"""Numbers of the kernel's x86 MMU that the reference needs, under the kernel's names (v5.0 to v6.12).

Owns nothing that varies at run time: masks that depend on the family and the physical width are in
`masks`, the differences between kernels in `kernels`.
"""

from __future__ import annotations

from typing import Final

U64: Final = (1 << 64) - 1
U32: Final = (1 << 32) - 1

PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 1 << PAGE_SHIFT
PT64_ENT_PER_PAGE: Final = 512
PT64_LEVEL_BITS: Final = 9

# A guest physical page can be mapped at 4 KiB, 2 MiB or 1 GiB; those levels have reverse maps in a slot.
PT_PAGE_TABLE_LEVEL: Final = 1
PT_DIRECTORY_LEVEL: Final = 2
PT_MAX_HUGEPAGE_LEVEL: Final = 3

# Bits of an SPTE that are the same for every family.
PT_WRITABLE_MASK: Final = 1 << 1
PT_PAGE_SIZE_MASK: Final = 1 << 7
PT64_BASE_ADDR_MASK: Final = ((1 << 52) - 1) & ~(PAGE_SIZE - 1)
SPTE_SPECIAL_MASK: Final = 1 << 62  # until v5.3

# The read and execute bits, which an access-tracked entry keeps elsewhere.
SHADOW_ACC_TRACK_SAVED_BITS_MASK: Final = 0b101

ACC_EXEC_MASK: Final = 1
ACC_WRITE_MASK: Final = 2
ACC_USER_MASK: Final = 4
ACC_ALL: Final = 7

PFERR_PRESENT: Final = 1 << 0
PFERR_WRITE: Final = 1 << 1
PFERR_USER: Final = 1 << 2
PFERR_RSVD: Final = 1 << 3
PFERR_FETCH: Final = 1 << 4
PFERR_PK: Final = 1 << 5
PFERR_GUEST_FINAL: Final = 1 << 32
PFERR_GUEST_PAGE: Final = 1 << 33
PFERR_NESTED_GUEST_PAGE: Final = PFERR_GUEST_PAGE | PFERR_WRITE | PFERR_PRESENT

RET_PF_RETRY: Final = 0
RET_PF_EMULATE: Final = 1
RET_PF_INVALID: Final = 2
RET_PF_FIXED: Final = 3
RET_PF_SPURIOUS: Final = 4
RET_PF_WRITE_PROTECTED: Final = 5

KVM_ADDRESS_SPACE_NUM: Final = 2
KVM_PRIVATE_MEM_SLOTS: Final = 3
KVM_MEM_MAX_NR_PAGES: Final = (1 << 31) - 1
KVM_MEM_LOG_DIRTY_PAGES: Final = 1 << 0
KVM_MEM_READONLY: Final = 1 << 1
KVM_MEMSLOT_INVALID: Final = 1 << 16
# User addresses end here; a slot's memory may not lie above.
TASK_SIZE_MAX: Final = (1 << 47) - PAGE_SIZE

KVM_PERMILLE_MMU_PAGES: Final = 20
KVM_MIN_ALLOC_MMU_PAGES: Final = 64
KVM_MIN_FREE_MMU_PAGES: Final = 5
KVM_REFILL_PAGES: Final = 25
KVM_MMU_HASH_SHIFT: Final = 12
GOLDEN_RATIO_64: Final = 0x61C8864680B583EB

PTE_PREFETCH_NUM: Final = 8
KVM_PAGE_ARRAY_NR: Final = 16
RMAP_RECYCLE_THRESHOLD: Final = 1000

SET_SPTE_WRITE_PROTECTED_PT: Final = 1 << 0
SET_SPTE_NEED_REMOTE_TLB_FLUSH: Final = 1 << 1

KVM_REQ_TLB_FLUSH: Final = 1 << 0
KVM_REQ_MMU_RELOAD: Final = 1 << 1
KVM_REQ_TRIPLE_FAULT: Final = 1 << 10
KVM_REQ_MMU_SYNC: Final = 1 << 11
KVM_REQ_LOAD_CR3: Final = 1 << 13
KVM_REQ_TLB_FLUSH_CURRENT: Final = 1 << 34
KVM_REQ_TLB_FLUSH_GUEST: Final = 1 << 35
KVM_REQ_UPDATE_CPU_DIRTY_LOGGING: Final = 1 << 38
KVM_REQ_MMU_FREE_OBSOLETE_ROOTS: Final = 1 << 39  # what a reload is from v6 on

EMULTYPE_RETRY: Final = 8
EMULTYPE_WRITE_PF_TO_SP: Final = 0x100
CR0_AFTER_INIT: Final = 0x60000010  # no paging, no protection, caches off
X86_CR0_WP: Final = 1 << 16
X86_CR0_PG: Final = 1 << 31
X86_CR4_PSE: Final = 1 << 4
X86_CR4_PAE: Final = 1 << 5
X86_CR4_LA57: Final = 1 << 12
X86_CR4_SMEP: Final = 1 << 20
X86_CR4_SMAP: Final = 1 << 21
X86_CR4_PKE: Final = 1 << 22
EFER_LMA: Final = 1 << 10
EFER_NX: Final = 1 << 11

EPERM: Final = 1
ENOENT: Final = 2
EFAULT: Final = 14
EEXIST: Final = 17
EINVAL: Final = 22
EIO: Final = 5
EINTR: Final = 4
EOPNOTSUPP: Final = 95
ENOSPC: Final = 28


def kvm_pages_per_hpage(level: int) -> int:
    """How many 4 KiB pages one entry of a table of this level covers."""
    return 1 << (PT64_LEVEL_BITS * (level - 1))


def spte_index(gpa: int, level: int) -> int:
    """Which of the 512 entries of a table of this level translates the address."""
    return (gpa >> (PAGE_SHIFT + PT64_LEVEL_BITS * (level - 1))) & (PT64_ENT_PER_PAGE - 1)
