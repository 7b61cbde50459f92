"""The shadow pages, roots and zaps of a dry recording: the lower part of its model of v6.1 and v6.12.

Owns: the active list, the page generation, the limit, the vCPUs' roots. Written from the contract of replay alone;
shares no code with core, reference or the replay. See `dry_mmu`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

W, MMU_WRITABLE = 1 << 1, 1 << 10
SPTEP = 0xFFFF888000000000
MIN_LIMIT, _MIN_FREE, _REFILL = 64, 5, 25


@dataclass(eq=False)
class DryPage:
    """A shadow page; an entry is a table, or a word: a leaf or an MMIO entry."""

    id: int
    gfn: int
    level: int
    smm: int
    gen: int
    invalid: bool = False
    roots: int = 0
    entries: dict[int, DryPage | int] = field(default_factory=dict)
    parents: list[tuple[DryPage, int]] = field(default_factory=list)
    made_for_fetch: bool = False

    def gfn_at(self, index: int) -> int:
        """First gfn of an entry."""
        return self.gfn + (index << 9 * (self.level - 1))


@dataclass
class DryVcpu:
    """A vCPU: its roots, what it was asked to do, its MMIO cache."""

    id: int
    smm: int = 0
    roots: list[DryPage] = field(default_factory=list)
    asked: bool = False
    mmio_gfn: int = 0
    mmio_gen: int = 0


@dataclass(frozen=True)
class DryFacts:
    """What a replay is told about the host."""

    kernel: str = "6.1"
    npt: bool = True
    la57: bool = False
    nx_huge_pages: bool = False
    mmio_caching: bool = True


def is_mmio(word: int) -> bool:
    """Bit 51, present, and not a mapping of KVM's."""
    return word & (1 << 51 | 1) == 1 << 51 | 1 and not word & 1 << 11


class DryPages:
    """Pages of one VM; `say(event, body)` gets every line."""

    def __init__(self, facts: DryFacts, say: Callable[[str, str], None]):
        self.facts, self.say = facts, say
        self.vcpus: list[DryVcpu] = []
        self.active: list[DryPage] = []
        self._made = self.used = self._valid_gen = self._limit = self.requested = 0

    def _text(self, page: DryPage) -> str:
        invalid = "invalid " if page.invalid else ""
        return (
            f"sp gen {page.gen} gfn {page.gfn:x} l{page.level} 8-byte q0 direct wux {invalid}nxe ad "
            f"root {page.roots} sync"
        )

    def is_obsolete(self, page: DryPage) -> bool:
        return page.invalid or page.gen != self._valid_gen

    def get_page(self, gfn: int, level: int, smm: int) -> DryPage:
        for page in reversed(self.active):
            if (page.gfn, page.level, page.smm) == (gfn, level, smm) and not self.is_obsolete(page):
                self.say("kvm_mmu_get_page", self._text(page) + " existing")
                return page
        self._made, self.used = self._made + 1, self.used + 1
        page = DryPage(self._made, gfn, level, smm, self._valid_gen)
        self.active.append(page)
        self.say("kvm_mmu_get_page", self._text(page) + " new")
        return page

    def say_zap_pte(self, page: DryPage, index: int) -> None:
        entry = page.entries[index]
        word = 0x827 if isinstance(entry, DryPage) else entry
        self.say("page_zap_pte", f"sptep={SPTEP + (page.id << 12) + index * 8:#x} spte={word:#x}")

    def _prepare(self, page: DryPage, zapped: list[DryPage]) -> None:
        self.say("kvm_mmu_prepare_zap_page", self._text(page))
        for index in sorted(page.entries):
            self.say_zap_pte(page, index)
            child = page.entries[index]
            if isinstance(child, DryPage):
                child.parents.remove((page, index))
        page.entries = {}
        for parent, index in page.parents:
            del parent.entries[index]
        page.parents = []
        if page in self.active:
            self.active.remove(page)
        if page.roots == 0:
            zapped.append(page)
            self.used -= 1
        elif not self.is_obsolete(page):
            self._ask_all()
        page.invalid = True

    def _commit(self, zapped: list[DryPage]) -> None:
        if zapped:
            self.say("commit_zap", "")
        zapped.clear()

    def _ask_all(self) -> None:
        for vcpu in self.vcpus:
            vcpu.asked = True

    def zap_all_fast(self) -> None:
        self.say("zap_all_fast_enter", "")
        self.say("kvm_mmu_zap_all_fast", f"kvm-mmu-valid-gen {self._valid_gen} used_pages {self.used:x}")
        self._valid_gen ^= 1
        self._ask_all()
        zapped: list[DryPage] = []
        for page in list(self.active):
            if not self.is_obsolete(page):
                break
            self._prepare(page, zapped)
        self._commit(zapped)

    def zap_oldest(self, wanted: int) -> None:
        """Zap so many pages, oldest first; roots in use are passed over."""
        self.say("zap_oldest", f"nr={wanted}")
        zapped: list[DryPage] = []
        for page in [page for page in self.active if not page.roots][:wanted]:
            self._prepare(page, zapped)
        count = len(zapped)
        self._commit(zapped)
        self.say("zap_oldest_ret", f"ret={count}")

    def make_room(self) -> None:
        free = max(0, self._limit - self.used)
        if free < _MIN_FREE:
            self.zap_oldest(_REFILL - free)

    def change_limit(self, goal: int) -> None:
        self.say("change_mmu_pages", f"goal={goal}")
        if self.used > goal:
            self.zap_oldest(self.used - goal)
            goal = self.used
        self._limit = goal

    def set_nr_mmu_pages(self, n: int) -> None:
        """KVM_SET_NR_MMU_PAGES; too few are refused."""
        if n >= MIN_LIMIT:
            self.change_limit(n)
            self.requested = n

    def end(self) -> None:
        """The VM goes: newest pages first, then the roots of each vCPU."""
        zapped: list[DryPage] = []
        for page in reversed(list(self.active)):
            self._prepare(page, zapped)
        self._commit(zapped)
        for vcpu in self.vcpus:
            self.drop_roots(vcpu)

    def add_vcpu(self) -> DryVcpu:
        """One more vCPU."""
        self.vcpus.append(DryVcpu(len(self.vcpus)))
        return self.vcpus[-1]

    def drop_roots(self, vcpu: DryVcpu, mask: int = 0xF) -> None:
        """kvm_mmu_free_roots of the MMU in use."""
        self.say("free_roots", f"mask={mask:#x}")
        zapped: list[DryPage] = []
        roots, vcpu.roots = vcpu.roots, []
        for page in roots:
            page.roots -= 1
            if not page.roots and page.invalid:
                self._prepare(page, zapped)
        self._commit(zapped)

    def reset(self, vcpu: DryVcpu) -> None:
        """Registers that roles are made of were set."""
        self.say("reset_context", "")
        self.drop_roots(vcpu)
        self.say("free_roots", "mask=0xf")

    def switch_smm(self, vcpu: DryVcpu, on: int) -> None:
        """The vCPU goes into or out of system management mode."""
        vcpu.smm = on
        self.say(
            "kvm_smm_transition", f"vcpu {vcpu.id}: {'entering' if on else 'leaving'} SMM, smbase 0x30000"
        )
        self.reset(vcpu)
        self.reset(vcpu)

    def enter(self, vcpu: DryVcpu) -> None:
        """The vCPU enters the guest."""
        if vcpu.asked:
            vcpu.asked = False
            self.say("free_obsolete_roots", "")
            if any(self.is_obsolete(page) for page in vcpu.roots):
                self.drop_roots(vcpu, 1)
        if not vcpu.roots:
            self.say("mmu_load", "")
            self.make_room()
            level = (4 + self.facts.la57) if self.facts.npt else 2
            for gfn in (0,) if self.facts.npt else (0, 0x40000, 0x80000, 0xC0000):
                page = self.get_page(gfn, level, vcpu.smm)
                page.roots += 1
                vcpu.roots.append(page)
        self.say("kvm_entry", f"vcpu {vcpu.id}, rip 0x1000")
