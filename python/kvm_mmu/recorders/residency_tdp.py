"""At which level the host maps the memory of the recorder, for a VM with a TDP MMU.

Owns: what the level of 2 MiB of host memory follows from (what the recorder touched, what faults asked for, what a
notifier took away) and that hugetlb memory of 1 GiB stays as it is. The level matters where no request says it: when
huge pages are recovered, and for an instruction fetch that is not allowed to map them.
"""

from __future__ import annotations

from collections.abc import Callable

from kvm_mmu.recorders.residency_6x import Backing, Residency

_PAGES_2M = 512
#: `hugetlb` of a backing: pages of 1 GiB.
HUGETLB_1G = 3


class ResidencyTdp(Residency):
    """Resident host pages, and the host's levels: `note_level(first, count, kind)` tells each change of a range.

    Kinds are those of the operation `host_huge`.
    """

    def __init__(self, note_level: Callable[[int, int, str], None]) -> None:
        super().__init__(self._maps_2m)
        self._note_level = note_level
        #: first pages of 2 MiB that the host maps with less, after it was known to map them at once
        self._split: set[int] = set()
        self._hugetlb: list[Backing] = []

    def _maps_2m(self, first: int, count: int) -> None:
        self._note_level(first, count, "thp")

    def add_hugetlb(self, name: str, hva: int, size: int) -> None:
        """The recorder made a backing of 1 GiB pages."""
        backing = Backing(name, hva >> 12, size >> 12, thp=False)
        self._backings.append(backing)
        self._hugetlb.append(backing)
        self._note_level(backing.first, backing.npages, "hugetlb1g")

    def is_resident(self, page: int) -> bool:
        """Whether the host page is there and writable: hugetlb memory has no zero page that a read would get."""
        return self._is_hugetlb(page) or super().is_resident(page)

    def _is_hugetlb(self, page: int) -> bool:
        return any(huge.first <= page < huge.first + huge.npages for huge in self._hugetlb)

    def note_2m(self, page: int) -> None:
        """A fault was told that the host maps this page with 2 MiB."""
        if self._is_hugetlb(page):
            return
        start = page & -_PAGES_2M
        if start in self._split:
            self._split.discard(start)
            self._note_level(start, _PAGES_2M, "thp")
        super().note_2m(page)

    def note_fault(self, page: int) -> None:
        """A fault touched a page, be it with a read: the first one gets the whole 2 MiB where that can be."""
        backing = self._find(page)
        start = page & -_PAGES_2M
        if backing is not None and self._huge_range(backing, page) and start not in self._split:
            self._map_2m(start)

    def note_4k(self, page: int) -> None:
        """A fault was told that the host maps this page with 4 KiB."""
        start = page & -_PAGES_2M
        backing = self._find(page)
        if backing is not None and self._huge_range(backing, page) and start not in self._split:
            self._split.add(start)
            self._note_level(start, _PAGES_2M, "none")

    def unmap(self, first: int, end: int) -> None:
        """The host took pages away: where they were part of 2 MiB, it no longer maps these at once."""
        for backing in self._backings:
            if not backing.thp:
                continue
            low = max(first, backing.first) & -_PAGES_2M
            for start in range(low, min(end, backing.first + backing.npages), _PAGES_2M):
                self.note_4k(start)
