"""The memslots of a VM: create, delete, move, change flags; errors carry the kernel's errno and a sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from kvm_mmu.machine import memory_region
from kvm_mmu.machine.memory_region import Change, Request, Slot
from kvm_mmu.machine.numbers import U64, integer
from kvm_mmu.types import GIB, KVM_ADDRESS_SPACE_NUM, PAGE_SHIFT

if TYPE_CHECKING:
    from kvm_mmu.machine.vm import Vm

#: Where host memory that the caller did not place is put: after 8 GiB, each slot congruent to its gpa modulo 1 GiB.
FIRST_HVA = 8 * GIB
_INTS = {int}


def _nothing() -> None:
    return None


class Memslots:
    """The memslots of both address spaces of one VM. Iterating yields `(as_id, Slot)` in array order."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm

    def __iter__(self) -> Iterator[tuple[int, Slot]]:
        for as_id in range(KVM_ADDRESS_SPACE_NUM):
            for slot in self.of(as_id):
                yield as_id, slot

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"<Memslots {len(self)} slots, generations {', '.join(f'{g:#x}' for g in self.generations)}>"

    def of(self, as_id: int) -> list[Slot]:
        """List the slots of one address space.

        Args:
            as_id: 0 normal, 1 SMM.

        Returns:
            The slots in array order (descending base).
        """
        as_id = integer("as_id", as_id, 0, KVM_ADDRESS_SPACE_NUM - 1)
        return list(map(Slot._make, self._vm.core.slots(as_id)))

    def get(self, slot: int, as_id: int = 0) -> Slot:
        """Find a slot by its id.

        Args:
            slot: slot id.
            as_id: address space, 0 normal, 1 SMM.

        Returns:
            The slot.

        Raises:
            KeyError: there is none.
        """
        slot = integer("slot", slot)
        for found in self.of(as_id):
            if found.id == slot:
                return found
        raise KeyError(f"no slot {slot} in address space {as_id}")

    @property
    def generations(self) -> tuple[int, ...]:
        """The visible generation of each address space (unsigned 64-bit)."""
        return tuple(self._vm.core.generation(as_id) for as_id in range(KVM_ADDRESS_SPACE_NUM))

    def set_region(
        self,
        *,
        slot: int,
        gpa: int,
        size: int,
        hva: int,
        flags: int = 0,
        as_id: int = 0,
        published: Callable[[], None] = _nothing,
    ) -> Change:
        """Make the set-user-memory-region request as user space makes it; `size` 0 deletes.

        Args:
            slot: slot id.
            gpa: guest physical address, bytes.
            size: bytes; 0 deletes.
            hva: host virtual address, bytes.
            flags: bit 0 log dirty, bit 1 read-only.
            as_id: address space, 0 normal, 1 SMM.
            published: called while a new slot array is visible and its generation is still in flight.

        Returns:
            What the request was: create, delete, move, flags or none.

        Raises:
            MemslotError: refused, with the kernel's errno. Nothing has changed then.
            KeyboardInterrupt: the slot is as it was, or the whole change is done; mappings may be gone.
        """
        vm, request = self._vm, Request(as_id, slot, gpa, size, hva, flags)
        if set(map(type, request)) != _INTS or min(request) < 0 or max(request) > U64:
            values = zip(Request._fields, request, strict=True)
            request = Request(*(integer(f"memslot {name}", value) for name, value in values))
        with vm.updating():
            live = self.of(request.as_id) if request.as_id in range(KVM_ADDRESS_SPACE_NUM) else []
            change, old = memory_region.check(request, live, vm.max_memslots, vm.max_gfn)
            todo = memory_region.steps(
                request,
                change,
                old,
                vm.pml,
                vm.profile,
                vm.dirty_log_initially_set,
                vm.max_gfn,
                vm.splits_eagerly,
            )
            with vm.judged_update(request.as_id, request.slot, change in ("delete", "move")):
                memory_region.carry_out(vm, vm.profile, vm.generation_policy, request, todo, published, old)
        return change

    def create(
        self, slot: int, gpa: int, size: int, hva: int | None = None, flags: int = 0, as_id: int = 0
    ) -> Slot:
        """Create a slot.

        Args:
            slot: slot id.
            gpa: guest physical address, bytes.
            size: bytes.
            hva: host virtual address, bytes; None: placed after all other slots' host memory.
            flags: bit 0 log dirty, bit 1 read-only.
            as_id: address space, 0 normal, 1 SMM.

        Returns:
            The slot as it stands in the array.

        Raises:
            MemslotError: EEXIST when it overlaps or the id is taken, EINVAL for anything the kernel refuses.
        """
        slot, gpa, size = integer("slot", slot), integer("gpa", gpa), integer("size", size)
        if any(found.id == slot for found in self.of(as_id)):
            raise memory_region._refuse(17, f"slot {slot}: exists already in address space {as_id}")
        if not size:
            raise memory_region._refuse(22, f"slot {slot}: size 0 would delete it")
        self.set_region(
            slot=slot,
            gpa=gpa,
            size=size,
            hva=self._place(gpa) if hva is None else hva,
            flags=flags,
            as_id=as_id,
        )
        return self.get(slot, as_id)

    def delete(self, slot: int, as_id: int = 0) -> None:
        """Delete a slot: an invalid copy is published, the slot's pages are zapped, it leaves the array.

        Args:
            slot: slot id.
            as_id: address space, 0 normal, 1 SMM.
        """
        self.set_region(slot=slot, gpa=0, size=0, hva=0, as_id=as_id)

    def move(self, slot: int, gpa: int, as_id: int = 0) -> Slot:
        """Move a slot to another guest address; it is zapped like a delete.

        Args:
            slot: slot id.
            gpa: the new guest physical address, bytes.
            as_id: address space, 0 normal, 1 SMM.

        Returns:
            The slot as it stands in the array.
        """
        old = self._old(slot, as_id)
        self.set_region(
            slot=slot, gpa=gpa, size=old.npages << PAGE_SHIFT, hva=old.hva, flags=old.flags, as_id=as_id
        )
        return self.get(slot, as_id)

    def set_flags(self, slot: int, flags: int, as_id: int = 0) -> Slot:
        """Change a slot's flags.

        Args:
            slot: slot id.
            flags: bit 0 log dirty; bit 1 (read-only) cannot change.
            as_id: address space, 0 normal, 1 SMM.

        Returns:
            The slot as it stands in the array.
        """
        old = self._old(slot, as_id)
        self.set_region(
            slot=slot,
            gpa=old.base << PAGE_SHIFT,
            size=old.npages << PAGE_SHIFT,
            hva=old.hva,
            flags=flags,
            as_id=as_id,
        )
        return self.get(slot, as_id)

    def touch(self, slot: int, as_id: int = 0) -> None:
        """Make the cheapest update there is: turn the slot's dirty log on and off again (two installs).

        Args:
            slot: slot id.
            as_id: address space, 0 normal, 1 SMM.
        """
        old = self._old(slot, as_id)
        self.set_flags(slot, old.flags ^ 1, as_id)
        self.set_flags(slot, old.flags, as_id)

    def alternate_log(self, slot: int, updates: int, as_id: int = 0) -> Slot:
        """Turn a slot's dirty log on and off in turn, each time an update of its own; many are made at once.

        Args:
            slot: slot id.
            updates: how many.
            as_id: address space, 0 normal, 1 SMM.

        Returns:
            The slot as it stands in the array.
        """
        left, vm = integer("updates", updates), self._vm
        while left > 0:
            with vm.updating():
                old = self._old(slot, as_id)
                is_only_log = not any(
                    known.flags & 1 and (space, known.id) != (as_id, old.id) for space, known in self
                )
                made = memory_region.alternate_log(
                    vm,
                    vm.profile,
                    vm.generation_policy,
                    as_id,
                    old,
                    left,
                    vm.pml,
                    vm.dirty_log_initially_set,
                    is_only_log,
                    vm.splits_eagerly,
                )
                if not made:
                    self.set_flags(slot, old.flags ^ 1, as_id)
            left -= max(made, 1)
        return self.get(slot, as_id)

    def _old(self, slot: int, as_id: int) -> Slot:
        try:
            return self.get(slot, as_id)
        except KeyError:
            raise memory_region._refuse(
                22, f"slot {slot}: there is no such slot in address space {as_id}"
            ) from None

    def _place(self, gpa: int) -> int:
        top = max((slot.hva + (slot.npages << PAGE_SHIFT) for _, slot in self), default=FIRST_HVA)
        return (max(top, FIRST_HVA) + GIB - 1) // GIB * GIB + gpa % GIB
