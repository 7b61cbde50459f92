"""`LiveVm`: one VM of a kernel, as it was read: its snapshot, its tables as columns, its picture.

Stands above what reads and what audits; reads no memory itself, but where it is asked for the guest's own tables.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from kvm_mmu.errors import LiveError
from kvm_mmu.live import snapshot
from kvm_mmu.live.capture import IN_PROGRESS, Capture
from kvm_mmu.live.guest_memory import GuestMemory
from kvm_mmu.live.slots import Space
from kvm_mmu.live.vcpus import VcpuState

if TYPE_CHECKING:
    from kvm_mmu.live.audit.findings import Audit
    from kvm_mmu.live.kernel import LiveKernel

#: Tables up to which a notebook draws a VM unasked.
GLANCE_TABLES = 1000
MMU_NAMES = {"shadow": "shadow paging", "npt": "NPT", "ept_ad": "EPT", "ept_noad": "EPT without A/D bits"}


class LiveVm:
    """One VM.

    Args:
        kvm: address of its `struct kvm`.
        capture: what was read; None where that failed.
        kernel: where it is from.
        error: why it could not be read.
    """

    def __init__(self, kvm: int, capture: Capture | None, kernel: LiveKernel, error: str = "") -> None:
        self.kvm, self._capture, self.kernel, self.error = kvm, capture, kernel, error

    @property
    def state(self) -> Capture:
        """What was read, as columns.

        Raises:
            LiveError: it could not be read.
        """
        if self._capture is None:
            raise LiveError(self.error)
        return self._capture

    def __repr__(self) -> str:
        if self._capture is None:
            return f"<LiveVm {self.kvm:#x}: {self.error}>"
        state = self._capture
        return f"<LiveVm of process {state.pid}, {self.mmu}, {len(state.vcpus)} vCPUs, {len(state.pages)} tables>"

    def _repr_html_(self) -> str:
        from kvm_mmu.view.html import pairs_html

        if self._capture is None:
            return pairs_html({"VM": hex(self.kvm), "error": self.error})
        shown = pairs_html(self.summary(), caption=repr(self).strip("<>"))
        return shown + self.to_svg() if len(self._capture.pages) <= GLANCE_TABLES else shown

    @property
    def pid(self) -> int:
        """The process that made it."""
        return self.state.pid

    @property
    def mmu(self) -> str:
        """How its memory is mapped, in words."""
        name = MMU_NAMES[self.state.facts.family]
        return f"{name}, TDP MMU" if self.state.tdp_mmu else name

    @property
    def busy(self) -> list[str]:
        """What was going on while it was read, in words; findings of an audit are no verdicts then."""
        return self.state.busy

    @property
    def faults(self) -> list[str]:
        """What could not be read, in words."""
        return self.state.faults

    @property
    def settled(self) -> bool | None:
        """Whether nothing moved while it was read (None where the source does not move)."""
        return self.state.settled

    @property
    def spaces(self) -> list[Space]:
        """Both address spaces with their slots."""
        return self.state.spaces

    @property
    def vcpus(self) -> list[VcpuState]:
        """The vCPUs."""
        return self.state.vcpus

    @property
    def pages(self) -> list[dict[str, Any]]:
        """Shadow pages and tables as plain data, active ones newest first, then off the list, then of the TDP MMU."""
        whole = self._whole
        return [*whole["active"], *whole["off_list"], *whole["tdp"]]

    @cached_property
    def _whole(self) -> dict[str, Any]:
        return snapshot.snapshot(self.state)

    def snapshot(self) -> dict[str, Any]:
        """Give the VM as plain data, in the form of `Vm.snapshot()` with more keys; one that could not be read says so.

        Returns:
            What JSON can hold.
        """
        if self._capture is None:
            return {"kvm": hex(self.kvm), "error": self.error}
        return self._whole

    def audit(self, guest_tables: bool = False) -> Audit:
        """Check everything that the VM's structures claim, computed again from what was read.

        Args:
            guest_tables: also compare shadow pages with the guest's own tables, which are read now.

        Returns:
            What was compared and found; iterable as (name, what was found), like `Vm.audit()`.
        """
        from kvm_mmu.live.audit import audit

        guest: GuestMemory | LiveError | None = None
        if guest_tables:
            try:
                guest = GuestMemory(self.kernel.opened, self.state)
            except LiveError as error:
                guest = error
        return audit(self.state, guest)

    def to_svg(self, title: str = "") -> str:
        """Draw roots, tables, links, leaves and memslots; large VMs are capped.

        Args:
            title: a line above the picture.

        Returns:
            The picture as SVG text.
        """
        from kvm_mmu.view.picture import vm_svg

        return vm_svg(
            snapshot.picture(self.state), title or f"{self.kernel.release}, process {self.pid}: {self.mmu}"
        )

    def entries(self) -> dict[str, Any]:
        """Give every entry that is not empty as columns.

        Returns:
            `page` (its number), `space`, `level`, `index`, `spte`, `gfn`, `kind` (leaf, link, mmio, frozen, other).
        """
        state = self.state
        rows, raw = state.entries.page, state.entries.raw
        level = state.pages.level[rows]
        kind = np.full(len(raw), "other", "<U6")
        kind[state.words.is_leaf(raw, level)] = "leaf"
        kind[state.words.is_link(raw, level)] = "link"
        kind[state.words.is_mmio(raw)] = "mmio"
        kind[state.words.is_frozen(raw)] = "frozen"
        return {
            "page": state.ids[rows],
            "space": state.pages.space[rows],
            "level": level,
            "index": state.entries.index.astype(np.int64),
            "spte": raw,
            "gfn": state.entries.gfn,
            "kind": kind,
        }

    def mapped_by_slot(self, space: int) -> list[int]:
        """Count the leaves of each memslot.

        Args:
            space: address space.

        Returns:
            One count a slot, by ascending base.
        """
        from kvm_mmu.live.audit.facts import Seen

        seen = Seen(self.state)
        slot_of = seen.slot_of(seen.space[seen.is_leaf], seen.entries.gfn[seen.is_leaf])
        counts = np.bincount(slot_of[slot_of >= 0], minlength=len(seen.all_slots)).tolist()
        return [count for (number, _), count in zip(seen.all_slots, counts, strict=True) if number == space]

    def mmio_sptes(self) -> dict[str, Any]:
        """Give every MMIO SPTE as columns.

        Returns:
            `page`, `space`, `index`, `spte`, `gfn`, `access`, `generation` (what it stores), `fresh` (against the
            generation of its page's address space; nothing is while an update is in flight).
        """
        state = self.state
        at = np.flatnonzero(state.words.is_mmio(state.entries.raw))
        rows, raw = state.entries.page[at], state.entries.raw[at]
        found = state.facts.codec.decode_mmio_sptes(raw)
        space = state.pages.space[rows]
        return {
            "page": state.ids[rows],
            "space": space,
            "index": state.entries.index[at].astype(np.int64),
            "spte": raw,
            "gfn": found.gfn,
            "access": found.access.astype(np.int64),
            "generation": found.mmio_gen,
            "fresh": is_fresh(state, found.mmio_gen, space),
        }

    def summary(self) -> dict[str, Any]:
        """Count what it has: the row of the table of VMs.

        Returns:
            Process, vCPUs, MMU, generations, slots, shadow pages, TDP tables, leaves, MMIO fresh and stale, busy.
        """
        state = self.state
        level = state.pages.level[state.entries.page]
        fresh = self.mmio_sptes()["fresh"]
        return {
            "pid": state.pid,
            "vcpus": len(state.vcpus),
            "mmu": self.mmu,
            "generation": " ".join(f"{space.generation:#x}" for space in state.spaces),
            "slots": " ".join(str(len(space.slots)) for space in state.spaces),
            "pages": state.nr_shadow,
            "tdp_tables": len(state.pages) - state.nr_shadow,
            "leaves": int(state.words.is_leaf(state.entries.raw, level).sum()),
            "fresh": int(fresh.sum()),
            "stale": int(len(fresh) - fresh.sum()),
            "busy": ", ".join(state.busy) or "no",
        }


def is_fresh(state: Capture, mmio_gen: Any, space: Any) -> Any:
    """Whether each MMIO generation is the current one of its address space; none is while an update is in flight."""
    width = np.uint64((1 << state.facts.codec.layout.width) - 1)
    now = np.array([one.generation for one in state.spaces] or [0], np.uint64)
    own = now[np.minimum(space, len(now) - 1)]
    return ((own & width) == mmio_gen) & ((own & np.uint64(IN_PROGRESS)) == 0)
