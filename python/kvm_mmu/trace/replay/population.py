"""The population of shadow pages as the events of an engine tell it: what the trace text needs and the events
leave out.

Owns: for every live page its gfn and role; which root each vCPU holds (so the root count), the number of used
pages and the valid generation. It follows the closed event list only, so it works over any engine.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_LEVEL = 0xF


@dataclass
class Page:
    """A shadow page as far as events show it."""

    id: int
    gfn: int
    role: int
    valid_gen: int


@dataclass
class Population:
    """Live shadow pages, followed event by event."""

    root_level: int
    #: Role bit of an invalid page.
    invalid: int
    pages: dict[int, Page] = field(default_factory=dict)
    #: vCPU -> the root pages it holds: one, or four of a guest without paging on shadow tables
    roots: dict[int, list[int]] = field(default_factory=dict)
    used: int = 0
    valid_gen: int = 0

    def root_count(self, page: int) -> int:
        """How many vCPUs hold this page as their root."""
        return sum(roots.count(page) for roots in self.roots.values())

    def release_root(self, vcpu: int) -> None:
        """A vCPU drops its roots: whatever is zapped next is zapped without it."""
        self.roots.pop(vcpu, None)

    def get_page(self, page: int, gfn: int, role: int, created: bool) -> Page:
        """A page was created or found."""
        found = self.pages.get(page)
        if created or found is None:
            found = self.pages[page] = Page(page, gfn, role, self.valid_gen)
            self.used += 1
        return found

    def take_root(self, page: Page, vcpu: int) -> None:
        """The page just got is loaded as this vCPU's root."""
        self.roots.setdefault(vcpu, []).append(page.id)

    def prepare_zap(self, page: int) -> tuple[Page, int]:
        """A page is zapped: the page and its root count as they are before."""
        found = self.pages[page]
        before = Page(found.id, found.gfn, found.role, found.valid_gen)
        count = self.root_count(page)
        if count == 0:
            del self.pages[page]
            self.used -= 1
        else:
            found.role |= self.invalid
        return before, count

    def is_root_role(self, role: int) -> bool:
        """Whether a page of this role can only be a root."""
        return role & _LEVEL == self.root_level
