"""The guest's memory: what its tables hold, at host addresses behind the slots of a vCPU.

Owns `HostMemory.memory`. Models kvm_vcpu_read_guest_atomic, kvm_vcpu_write_guest and cmpxchg on a guest's entry of
v5.0 to v6.12. Memory is zero until something is stored; a value is read and written contiguously from the host
address of its first byte, little endian. A slot that is on its way out counts as none.
"""

from __future__ import annotations

from ..common.constants import EFAULT, PAGE_SHIFT, PAGE_SIZE
from ..common.slots import kvm_vcpu_gfn_to_memslot, kvm_vcpu_mark_page_dirty, memslot_is_visible
from ..common.state import HostMemory, Kvm, KvmMemorySlot, Vcpu

NO_PAGE = bytes(PAGE_SIZE)


def kvm_vcpu_gfn_to_visible_slot(kvm: Kvm, vcpu: Vcpu, gfn: int) -> KvmMemorySlot | None:
    slot = kvm_vcpu_gfn_to_memslot(kvm, vcpu, gfn)
    return slot if memslot_is_visible(slot) else None


def gpa_to_hva(kvm: Kvm, vcpu: Vcpu, gpa: int) -> int | None:
    slot = kvm_vcpu_gfn_to_visible_slot(kvm, vcpu, gpa >> PAGE_SHIFT)
    return None if slot is None else slot.userspace_addr + gpa - (slot.base_gfn << PAGE_SHIFT)


def read_host(host: HostMemory, hva: int, size: int) -> int:
    page, offset = divmod(hva, PAGE_SIZE)
    if offset + size <= PAGE_SIZE:
        return int.from_bytes(host.memory.get(page, NO_PAGE)[offset : offset + size], "little")
    return sum(read_host(host, hva + i, 1) << 8 * i for i in range(size))


def write_host(host: HostMemory, hva: int, value: int, size: int) -> None:
    for i in range(size):
        page, offset = divmod(hva + i, PAGE_SIZE)
        if page not in host.memory:
            host.memory[page] = bytearray(PAGE_SIZE)
        host.memory[page][offset] = value >> 8 * i & 0xFF


def kvm_vcpu_read_guest(kvm: Kvm, vcpu: Vcpu, gpa: int, size: int) -> int | None:
    """The value at a guest address, None without a slot."""
    hva = gpa_to_hva(kvm, vcpu, gpa)
    return None if hva is None else read_host(kvm.host, hva, size)


def write_guest(kvm: Kvm, vcpu: Vcpu, gpa: int, value: int, size: int) -> int:
    """Store without telling the MMU; -EFAULT without a slot."""
    hva = gpa_to_hva(kvm, vcpu, gpa)
    if hva is None:
        return -EFAULT
    write_host(kvm.host, hva, value, size)
    return 0


def kvm_vcpu_write_guest(kvm: Kvm, vcpu: Vcpu, gpa: int, value: int, size: int) -> int:
    """Store and mark the page dirty; -EFAULT without a slot."""
    error = write_guest(kvm, vcpu, gpa, value, size)
    if not error:
        kvm_vcpu_mark_page_dirty(kvm, vcpu, gpa >> PAGE_SHIFT)
    return error
