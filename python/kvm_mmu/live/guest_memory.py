"""The guest's memory, read through the page tables of its VMM's process: only where somebody asks for it.

Owns: the way from a gfn to bytes. A dump may have left guest memory out; a page of zeros is then no memory.
"""

from __future__ import annotations

from kvm_mmu.errors import LiveError
from kvm_mmu.live.capture import Capture
from kvm_mmu.live.memory import PAGE
from kvm_mmu.live.program import Opened
from kvm_mmu.live.translate import HostTables


class GuestMemory:
    """The memory of one VM's guest.

    Args:
        opened: the source.
        capture: the VM.

    Raises:
        LiveError: the way to the process's page tables is not known or cannot be read.
    """

    def __init__(self, opened: Opened, capture: Capture) -> None:
        layout, memory = opened.layout, opened.memory
        pgd = layout.find("mm_struct.pgd")
        if pgd is None:
            raise LiveError(
                "the types of this source have no struct mm_struct, so the guest's memory is not reached"
            )
        place = layout["kvm.mm"]
        mm = int.from_bytes(capture.raw[place.offset : place.offset + 8], "little")
        root = memory.physical(memory.number(mm + pgd.offset, 8, "the process of the VM"), "its page table")
        encrypted = int(opened.info("NUMBER(sme_mask)") or "0", 0)
        self._memory, self._capture = memory, capture
        self._tables = HostTables(memory, root, capture.facts.host_levels, encrypted)

    def page(self, space: int, gfn: int) -> bytes:
        """Read one page of the guest.

        Args:
            space: address space.
            gfn: the frame.

        Returns:
            4,096 bytes.

        Raises:
            LiveError: no memslot has it, or it is not in the source.
        """
        for slot in self._capture.spaces[space].slots if space < len(self._capture.spaces) else ():
            if slot.base <= gfn < slot.end:
                address = slot.hva + ((gfn - slot.base) << 12)
                return self._memory.read_physical(
                    self._tables.find(address).physical, PAGE, f"guest frame {gfn:#x}"
                )
        raise LiveError(f"guest frame {gfn:#x}: in no memslot of address space {space}")
