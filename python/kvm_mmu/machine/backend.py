"""What the machine layer needs of a core to change memslots: the seam between policy and mechanism.

`VmBackend` is what `memory_region` runs against; `Vm` provides it over the Rust core. Everything that may drop
`mmu_lock` is called through it too, so that lock breaks can be interleaved in one place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kvm_mmu.machine.zap_plan import ZapPlan


class VmBackend(Protocol):
    """The memslot side of a VM, one method per thing a memslot update makes happen."""

    def install_slot(self, as_id: int, generation: int, slot: tuple[int, int, int, int, int]) -> None:
        """Make an array with this slot `(id, base gfn, npages, hva, flags)` visible, with this generation."""

    def alternate_flags(
        self,
        as_id: int,
        turns: Sequence[tuple[tuple[int, int, int, int, int], bool, Sequence[str], bool]],
        in_flight: tuple[int, int],
        published: tuple[int, int],
        count: int,
    ) -> None:
        """Make two updates of a slot's flags in turn, `count` in all.

        Each is the slot, whether vCPUs switch the processor's own log, the walks, whether the slot is flushed.

        Their generations are given as the first and the step to the next one.
        """

    def remove_slot(self, as_id: int, generation: int, slot_id: int) -> None:
        """Make an array without this slot visible, with this generation."""

    def generation(self, as_id: int) -> int:
        """The memslot generation that is visible now."""

    def set_generation(self, as_id: int, generation: int) -> None:
        """Make this generation visible."""

    def memslots_updated(self, generation: int) -> None:
        """The architecture is told of a new generation; only the event log hears of it."""

    def invalidate_mmio(self, generation: int) -> None:
        """A generation is looked at for a wrap; only the event log hears of it."""

    def makes_mmio_sptes(self) -> bool:
        """Whether there are MMIO SPTEs, on this host and with this module parameter."""

    def flush_shadow_memslot(self) -> None:
        """A slot is about to be zapped; only the event log hears of it."""

    def zap(self, plan: ZapPlan, slot: tuple[int, int] | None = None) -> object:
        """Run a plan to its end; `slot` is (address space, id) for plans that need one."""

    def flush_slot_tlbs(self, as_id: int, slot_id: int) -> None:
        """Flush the gfns of a slot."""

    def update_cpu_dirty_logging(self, is_on: bool) -> None:
        """A slot's dirty log went on or off: vCPUs may have to switch the processor's own log."""

    def slot_walk(self, as_id: int, slot_id: int, what: str) -> object:
        """Walk the slot's rmaps: remove_write_access, leaf_clear_dirty, largepage_remove_write_access, set_dirty,
        zap_collapsible."""

    def total_slot_pages(self) -> int:
        """Pages of all slots of both address spaces."""

    def requested_mmu_pages(self) -> int:
        """The limit user space asked for, 0: none."""

    def change_mmu_pages(self, goal: int) -> None:
        """Set the limit of shadow pages, zapping the oldest above it."""
