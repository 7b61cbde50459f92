"""Small words used all over the package: sizes, address spaces, slot flags, access kinds."""

from __future__ import annotations

from typing import Literal

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT

#: Address spaces: the normal one and the one a vCPU sees in SMM.
KVM_ADDRESS_SPACE_NUM = 2
#: Slot ids below this belong to user space; the three above are the kernel's own.
KVM_USER_MEM_SLOTS = 509
KVM_MEM_SLOTS_NUM = 512

KVM_MEM_LOG_DIRTY_PAGES = 1 << 0
KVM_MEM_READONLY = 1 << 1
#: Set on the copy of a slot that is being deleted or moved, never by user space.
KVM_MEMSLOT_INVALID = 1 << 16

Family = Literal["npt", "ept_ad", "ept_noad", "shadow"]
AccessKind = Literal["r", "w", "x"]
Outcome = Literal["hit", "emulate", "error", "stuck", "guest_fault"]
