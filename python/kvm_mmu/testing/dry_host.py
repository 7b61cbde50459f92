"""The host memory of a dry recording: which pages are there, writable, and mapped with 2 MiB.

Owns: the state of each host page, by host page number, and made-up page frame numbers. A page that was never written
is absent; reading it maps the one zero page; writing it makes it there, with its whole 2 MiB where the backing allows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

PAGES_2M = 512
ZERO_PFN = 0x3310


@dataclass(frozen=True)
class DryBacking:
    """A range of host pages; one that is `written` is there from the start."""

    name: str
    first: int
    npages: int
    thp: bool
    written: bool


@dataclass
class DryHost:
    """Host memory of one VM."""

    backings: list[DryBacking] = field(default_factory=list)
    pfns: dict[int, int] = field(default_factory=dict)
    zero: set[int] = field(default_factory=set)
    mapped_2m: set[int] = field(default_factory=set)
    _next_pfn: int = 0x160000

    def add(self, backing: DryBacking) -> None:
        """A new backing."""
        self.backings.append(backing)
        if backing.written:
            for page in range(backing.first, backing.first + backing.npages):
                self.write(page)

    def write(self, page: int) -> None:
        """Somebody wrote the page."""
        self.zero.discard(page)
        start = page & -PAGES_2M
        if page in self.pfns:
            return
        if not any(
            b.thp and b.first <= start and start + PAGES_2M <= b.first + b.npages for b in self.backings
        ):
            self.pfns[page], self._next_pfn = self._next_pfn, self._next_pfn + 1
            return
        self.mapped_2m.add(start)
        first = self._next_pfn + PAGES_2M - 1 & -PAGES_2M
        self.pfns.update({start + n: first + n for n in range(PAGES_2M)})
        self._next_pfn = first + PAGES_2M

    def read(self, page: int) -> None:
        """Somebody read the page."""
        if page not in self.pfns:
            self.zero.add(page)

    def is_writable(self, page: int) -> bool:
        """Whether the page is there, and not as the zero page."""
        return page in self.pfns

    def is_2m(self, page: int) -> bool:
        """Whether the host maps the page with 2 MiB."""
        return page & -PAGES_2M in self.mapped_2m

    def pfn(self, page: int) -> int:
        """Its frame."""
        return self.pfns.get(page, ZERO_PFN)
