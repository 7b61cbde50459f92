"""Zapping written by the user: pages of the active list, a safe walk over it, and a batch that flushes, then frees.

Freeing without a flush cannot be expressed: the only way out of a batch is its end, and that flushes first.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from kvm_mmu.errors import RunStateError, UsageError
from kvm_mmu.machine.numbers import integer

if TYPE_CHECKING:
    from kvm_mmu.machine.vm import Vm


class Prepared(NamedTuple):
    """What preparing one page for zapping told: unsync children zapped with it, pages put on the list in all, and
    whether the active list became unstable (a child left it)."""

    nr_children: int
    nr_zapped: int
    is_list_unstable: bool


class Page:
    """A live shadow page, by creation number; its fields are read when asked."""

    __slots__ = ("_vm", "id")

    def __init__(self, vm: Vm, page_id: int) -> None:
        self._vm = vm
        self.id = page_id

    def __repr__(self) -> str:
        f = self.fields
        flags = "".join(f" {n}" for n in ("mmio_cached", "invalid", "unsync") if f[n])
        return f"<Page {self.id} gfn={f['gfn']:#x} level={f['level']} root_count={f['root_count']}{flags}>"

    def _repr_html_(self) -> str:
        from kvm_mmu.view.html import page_html

        return page_html(self.id, self._vm.core.page(self.id))

    @property
    def fields(self) -> dict[str, Any]:
        """All fields as a dict (gfn, role, level, root_count, valid_gen, mmio_cached, invalid, parents, sptes, ...).

        Raises:
            UsageError: the page is gone.
        """
        found = self._vm.core.page(self.id)
        if found is None:
            raise UsageError(f"shadow page {self.id}: there is no such page")
        return found

    @property
    def mmio_cached(self) -> bool:
        """True if the page ever held an MMIO SPTE."""
        return self._vm.core.page_facts(self.id)[0]

    @property
    def invalid(self) -> bool:
        """True if the page was zapped while in use as a root."""
        return self._vm.core.page_facts(self.id)[1]

    @property
    def obsolete(self) -> bool:
        """True if the page's generation is not the VM's valid one."""
        return self._vm.core.page_facts(self.id)[2]

    @property
    def in_use(self) -> bool:
        """True if a vCPU has the page as root."""
        return self._vm.core.page_facts(self.id)[3]

    @property
    def gfn(self) -> int:
        """The first guest frame that the page maps."""
        return int(self.fields["gfn"])

    @property
    def level(self) -> int:
        """The level of the table, from 1 (page table) to 4 or 5 (root)."""
        return int(self.fields["level"])

    @property
    def sptes(self) -> list[tuple[int, int, int | None]]:
        """The non-zero entries as (index, raw word, child page or None)."""
        return list(self.fields["sptes"])


class ActivePages:
    """Iterates the active list with the next page cached, as the kernel's safe walk does.

    Each iteration is a walk start, each page a visit in `Vm.work`.

    Raises:
        StaleNextError: the cached next page has left the list when it is its turn.
    """

    def __init__(self, vm: Vm, from_tail: bool) -> None:
        self._vm = vm
        self._from_tail = from_tail

    def __len__(self) -> int:
        return self._vm.core.nr_active_pages

    def __iter__(self) -> Iterator[Page]:
        core = self._vm.core
        walk = core.active_walk(self._from_tail)
        while True:
            page = core.active_walk_next(walk)
            if page is None:
                return
            yield Page(self._vm, page)


class ZapBatch:
    """Pages prepared for zapping; leaving the `with` block flushes every TLB, then frees them."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._batch: int | None = None
        self.report: dict[str, Any] | None = None

    def __enter__(self) -> ZapBatch:
        self._batch = self._vm.core.batch_begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._batch is not None:
            batch, self._batch = self._batch, None
            self.report = self._vm.core.batch_commit(batch)

    def prepare(self, page: Page | int) -> Prepared:
        """Prepare a page for zapping (`kvm_mmu_prepare_zap_page`).

        Args:
            page: the page, or its creation number.

        Returns:
            How many pages went, and whether the active list became unstable.

        Raises:
            RunStateError: outside the `with` block.
            UsageError: no such page, or one of another VM.
        """
        if self._batch is None:
            raise RunStateError("a zap batch is used inside its with block only")
        if isinstance(page, Page):
            if page._vm is not self._vm:
                raise UsageError(f"{page!r} is a page of another VM than this batch")
            page = page.id
        page = integer("page", page, 0, (1 << 32) - 1)
        return Prepared(*self._vm.core.batch_prepare(self._batch, page))
