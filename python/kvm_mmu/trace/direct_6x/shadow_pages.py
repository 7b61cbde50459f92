"""Shadow pages of v6.1/v6.12: the active list, the hash, parents, and zapping.

Owns: pages from creation to commit, the valid generation, the number of used pages and its limit. Invariant:
an invalid page is on no list but an invalid list, or is a root in use that is on none; `used` counts it until
its last user is gone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from kvm_mmu.trace.direct_6x import spte

Out = Callable[[str, str], None]

_MIN_FREE, _REFILL = 5, 25


@dataclass(eq=False)
class ShadowPage:
    """A direct shadow page. `role` is what tells pages of one gfn apart: level and SMM."""

    id: int
    gfn: int
    level: int
    is_smm: bool
    valid_gen: int
    root_count: int = 0
    invalid: bool = False
    #: Made where a large mapping was refused because of an instruction fetch.
    nx_disallowed: bool = False
    entries: dict[int, int] = field(default_factory=dict)
    children: dict[int, ShadowPage] = field(default_factory=dict)
    parents: list[tuple[ShadowPage, int]] = field(default_factory=list)

    def text(self) -> str:
        """The page as page events print it."""
        return (
            f"sp gen {self.valid_gen} gfn {self.gfn:x} l{self.level} 8-byte q0 direct wux"
            f"{' invalid' if self.invalid else ''} nxe ad root {self.root_count} sync"
        )

    def sptep(self, index: int) -> int:
        """A stand-in for the address of an entry; its low 12 bits are those of the real one."""
        return self.id << 12 | index << 3

    def gfn_of(self, index: int) -> int:
        """The first gfn that an entry covers."""
        return self.gfn + (index << 9 * (self.level - 1))

    def index_of(self, gfn: int) -> int:
        """The entry that covers a gfn."""
        return gfn >> 9 * (self.level - 1) & 511


class ShadowPages:
    """All shadow pages of a VM. `active` is ordered from the oldest to the newest."""

    def __init__(self, out: Out):
        self._out = out
        self.active: dict[int, ShadowPage] = {}
        self._hash: dict[int, list[ShadowPage]] = {}
        self._last_id = 0
        self.valid_gen = 0
        self.used = 0
        self.limit = 0
        #: zap_oldest calls made by the model whose probe has not come by yet.
        self.expected_scans = 0

    def is_obsolete(self, page: ShadowPage) -> bool:
        """Invalid, or of another generation."""
        return page.invalid or page.valid_gen != self.valid_gen

    def get_page(self, gfn: int, level: int, is_smm: bool) -> ShadowPage:
        """Find the newest page of this gfn and role, or make one."""
        bucket = self._hash.setdefault(gfn, [])
        for page in bucket:
            if not self.is_obsolete(page) and (page.level, page.is_smm) == (level, is_smm):
                self._out("kvm_mmu_get_page", f"{page.text()} existing")
                return page
        self._last_id += 1
        page = ShadowPage(self._last_id, gfn, level, is_smm, self.valid_gen)
        bucket.insert(0, page)
        self.active[page.id] = page
        self.used += 1
        self._out("kvm_mmu_get_page", f"{page.text()} new")
        return page

    def link(self, parent: ShadowPage, index: int, child: ShadowPage) -> None:
        """Let an entry point to a table."""
        parent.entries[index] = spte.make_link(child.id)
        parent.children[index] = child
        child.parents.append((parent, index))

    def unlink(self, parent: ShadowPage, index: int) -> None:
        """Clear an entry that points to a table; the table stays."""
        child = parent.children.pop(index)
        child.parents.remove((parent, index))
        del parent.entries[index]

    def zap_entry(self, page: ShadowPage, index: int) -> None:
        """Clear one entry, with the probe that shows its old value."""
        self._out("page_zap_pte", f"sptep={page.sptep(index):#x} spte={page.entries[index]:#x}")
        if index in page.children:
            self.unlink(page, index)
        else:
            del page.entries[index]

    def prepare_zap(self, page: ShadowPage, invalid_list: list[ShadowPage]) -> None:
        """Empty a page and take it off the active list; without users it goes to the invalid list."""
        self._out("kvm_mmu_prepare_zap_page", page.text())
        for index in sorted(page.entries):
            self.zap_entry(page, index)
        for parent, index in list(page.parents):
            self.unlink(parent, index)
        self.active.pop(page.id, None)
        page.invalid = True
        if page.root_count == 0:
            invalid_list.append(page)
            self.used -= 1

    def commit_zap(self, invalid_list: list[ShadowPage]) -> None:
        """Flush and free what was prepared."""
        if not invalid_list:
            return
        self._out("commit_zap", "")
        for page in invalid_list:
            self._hash[page.gfn].remove(page)
        invalid_list.clear()

    def drop_roots(self, roots: list[ShadowPage]) -> None:
        """One user less each; invalid pages without users are zapped a second time, and committed
        together."""
        invalid_list: list[ShadowPage] = []
        for page in roots:
            page.root_count -= 1
            if page.root_count == 0 and page.invalid:
                self.prepare_zap(page, invalid_list)
        self.commit_zap(invalid_list)

    # -- whole-MMU verbs
    # ------------------------------------------------------------------------------------------

    def zap_all_fast(self) -> None:
        """Make every page obsolete and zap them, oldest first."""
        self._out("zap_all_fast_enter", "")
        self._out("kvm_mmu_zap_all_fast", f"kvm-mmu-valid-gen {self.valid_gen} used_pages {self.used:x}")
        self.valid_gen ^= 1
        invalid_list: list[ShadowPage] = []
        for page in list(self.active.values()):
            if not self.is_obsolete(page):
                break
            self.prepare_zap(page, invalid_list)
        self.commit_zap(invalid_list)

    def zap_all(self) -> None:
        """The VM ends: every page, newest first."""
        invalid_list: list[ShadowPage] = []
        for page in reversed(list(self.active.values())):
            self.prepare_zap(page, invalid_list)
        self.commit_zap(invalid_list)

    def zap_oldest(self, wanted: int) -> int:
        """Zap the oldest pages that are no roots in use, at least `wanted` of them."""
        invalid_list: list[ShadowPage] = []
        zapped = 0
        for page in list(self.active.values()):
            if zapped >= wanted:
                break
            if page.root_count == 0:
                self.prepare_zap(page, invalid_list)
                zapped += 1
        self.commit_zap(invalid_list)
        self._out("zap_oldest_ret", f"ret={zapped}")
        return zapped

    def change_limit(self, goal: int) -> None:
        """Set the limit, zapping what is above it; pages that cannot go raise it."""
        self._out("change_mmu_pages", f"goal={goal}")
        if self.used > goal:
            self.expected_scans += 1
            self.zap_oldest(self.used - goal)
            goal = self.used
        self.limit = goal

    def make_available(self) -> None:
        """Reclaim before a fault maps or a root is made."""
        available = max(self.limit - self.used, 0)
        if available < _MIN_FREE:
            self.expected_scans += 1
            self.zap_oldest(_REFILL - available)
