"""A third model of the direct pages of v6.1 and v6.12, for dry recordings: it says what a kernel would have traced.

Owns nothing but itself: it was written from the contract of replay alone, works with plain lists, and shares no code
with core, reference or the replay. So what the three agree on was read out of the text three times. Its host page
frames are made up, and it does not count work.

The guest's processor sets no accessed and no dirty bit: what it set no replay can know.

Invariant: every line it says that is an input of a replay (a fault, a request to map, a load of roots) stands where the
recordings have it.
"""

from __future__ import annotations

from kvm_mmu.testing.dry_pages import MMU_WRITABLE, SPTEP, DryPage, DryVcpu, W, is_mmio
from kvm_mmu.testing.dry_slots import GEN_MASK, LOG_DIRTY, READONLY, DrySlot, DrySlots

_NX, _FRAME = 1 << 63, 0x000FFFFFFFFFF000
_HOST_WRITABLE, _LARGE, _ACCESSED, _DIRTY = 1 << 9, 1 << 7, 1 << 5, 1 << 6
#: Bits of an error code.
_P, _WRITE, _USER, _RSVD, _FETCH = 1, 2, 4, 8, 16
_GUEST_FINAL, _GUEST_PAGE = 1 << 32, 1 << 33


class DryMmu(DrySlots):
    """One VM of a dry recording."""

    def access(self, vcpu: DryVcpu, gpa: int, kind: str) -> bool:
        """The guest reads, writes, executes (`r`, `w`, `x`) or walks a table of its own (`t`): whether it came
        forward."""
        error = (_GUEST_FINAL | _USER) if self.facts.npt else 0
        if kind == "t":
            error = _GUEST_PAGE | _USER | _WRITE
        error |= {"w": _WRITE, "x": _FETCH}.get(kind, 0)
        page, index = self._leaf(vcpu, gpa)
        word = page.entries.get(index, 0)
        assert isinstance(word, int)
        if word and not is_mmio(word):
            if not (error & _WRITE and not word & W) and not (error & _FETCH and word & _NX):
                return True
            error |= _P
        elif word:
            error |= _RSVD
        self.say("kvm_page_fault", f"vcpu {vcpu.id} rip 0x1000 address {gpa:#018x} error_code {error:#x}")
        is_emulated = self._fault(vcpu, gpa, error)
        self.say("page_fault_ret", f"ret={int(not is_emulated)}")
        if not is_emulated:
            self.enter(vcpu)
        return is_emulated

    def _leaf(self, vcpu: DryVcpu, gpa: int) -> tuple[DryPage, int]:
        page = vcpu.roots[0 if self.facts.npt else gpa >> 30 & 3]
        while True:
            index = gpa >> 12 + 9 * (page.level - 1) & 511
            child = page.entries.get(index)
            if not isinstance(child, DryPage):
                return page, index
            page = child

    def _fault(self, vcpu: DryVcpu, gpa: int, error: int) -> bool:
        """Whether the emulator ends it."""
        gfn, gen = gpa >> 12, self.gen[vcpu.smm]
        if error & _RSVD:
            if gfn and (vcpu.mmio_gfn, vcpu.mmio_gen) == (gfn, gen):
                return True
            if self._is_current_mmio(vcpu, gpa):
                vcpu.mmio_gfn, vcpu.mmio_gen = gfn, gen
                return True
        elif error & _P and error & _WRITE and self._fast_page_fault(vcpu, gpa, error):
            return False
        slot = self.find(vcpu.smm, gfn)
        if slot is None:
            vcpu.mmio_gfn, vcpu.mmio_gen = gfn, gen
            return not self.facts.mmio_caching or self._map(vcpu, gpa, error, None)
        if slot.flags & READONLY and error & _WRITE:
            return True
        page = slot.page(gfn)
        if not error & _WRITE:
            self.host.read(page)
        else:
            is_broken = page in self.host.zero
            self.host.write(page)
            if is_broken:  # the zero page gives way to an own one: everybody loses it and comes again
                self.unmap(page << 12, page + 1 << 12)
                return False
        return self._map(vcpu, gpa, error, slot)

    def _is_current_mmio(self, vcpu: DryVcpu, gpa: int) -> bool:
        page, index = self._leaf(vcpu, gpa)
        word = page.entries[index]
        assert isinstance(word, int)
        has, now = word >> 3 & 0xFF | (word >> 52 & 0x7FF) << 8, self.gen[vcpu.smm] & GEN_MASK
        self.say("check_mmio_spte", f"spte {word:x} kvm_gen {now:x} spte-gen {has:x} valid {int(has == now)}")
        if has == now:
            self.say("handle_mmio_page_fault", f"addr:0 gfn {gpa >> 12:x} access {word & 6:x}")
        return has == now

    def _fast_page_fault(self, vcpu: DryVcpu, gpa: int, error: int) -> bool:
        page, index = self._leaf(vcpu, gpa)
        old = page.entries.get(index, 0)
        assert isinstance(old, int)
        slot = self.find(vcpu.smm, gpa >> 12)
        is_split_first = page.level > 1 and slot is not None and slot.flags & LOG_DIRTY
        new = old | W if old & MMU_WRITABLE and not is_split_first else old
        page.entries[index] = new
        flags = [name for bit, name in ((1, "P"), (2, "W"), (4, "U"), (16, "F")) if error & bit]
        if self.facts.kernel == "6.12" and error >> 32:
            flags.append(f"{error & ~0x1F:#x}")
        spurious, fixed = int(bool(old & W)), int(new != old)
        self.say(
            "fast_page_fault",
            f"vcpu {vcpu.id} gva {gpa:x} error_code {'|'.join(flags)} sptep (____ptrval____) old {old:#x} "
            f"new {new:x} spurious {spurious} fixed {fixed}",
        )
        if fixed and slot is not None and slot.dirty is not None:
            slot.dirty.add((gpa >> 12) - slot.base)
        return bool(spurious or fixed)

    def _level(self, slot: DrySlot, gfn: int, error: int) -> int:
        if slot.flags & LOG_DIRTY or (error & _FETCH and self.facts.nx_huge_pages):
            return 1
        return 2 if self.may_be_2m(slot, gfn) and self.host.is_2m(slot.page(gfn)) else 1

    def _map(self, vcpu: DryVcpu, gpa: int, error: int, slot: DrySlot | None) -> bool:
        gfn, page = gpa >> 12, vcpu.roots[0 if self.facts.npt else gpa >> 30 & 3]
        if self.is_obsolete(page):
            return False
        self.make_room()
        level = 1 if slot is None else self._level(slot, gfn, error)
        pfn = 1 << 63 if slot is None else self.host.pfn(slot.page(gfn))
        self.say("kvm_mmu_spte_requested", f"gfn {gfn:x} pfn {pfn:x} level {level}")
        while True:
            index = gpa >> 12 + 9 * (page.level - 1) & 511
            child = page.entries.get(index)
            if page.level == level:
                is_refused = level > 1 and isinstance(child, DryPage) and child.made_for_fetch
                if not (is_refused and self.facts.nx_huge_pages):
                    break
                level -= 1
            if not isinstance(child, DryPage):
                child = self._table_below(page, index, gfn, vcpu.smm)
                child.made_for_fetch |= bool(error & _FETCH) and child.level == 1
            page = child
        if slot is None:
            self._mark_mmio(page, index, gfn, self.gen[vcpu.smm])
            return True
        whole = (1 << 9 * (level - 1)) - 1
        is_writable = self.host.is_writable(slot.page(gfn)) and not slot.flags & READONLY
        is_new = self._set_leaf(vcpu, page, index, gfn & ~whole, pfn & ~whole, is_writable, prefetch=False)
        if is_new and level == 1:
            self._prefetch(vcpu, page, index)
        return False

    def _table_below(self, page: DryPage, index: int, gfn: int, smm: int) -> DryPage:
        child = self.get_page(gfn & ~((1 << 9 * (page.level - 1)) - 1), page.level - 1, smm)
        if index in page.entries:
            self.say_zap_pte(page, index)
        page.entries[index] = child
        child.parents.append((page, index))
        return child

    def _mark_mmio(self, page: DryPage, index: int, gfn: int, gen: int) -> None:
        word = 1 << 51 | 7 | gfn << 12 | (gen & 0xFF) << 3 | (gen >> 8 & 0x7FF) << 52
        place = SPTEP + (page.id << 12) + index * 8
        self.say("make_mmio_spte", f"gfn={gfn:#x} access=0x7")
        self.say("make_mmio_spte_ret", f"spte={word:#x}")
        self.say("mark_mmio_spte", f"sptep:{place:016x} gfn {gfn:x} access 7 gen {gen & GEN_MASK:x}")
        page.entries[index] = word

    def _set_leaf(
        self,
        vcpu: DryVcpu,
        page: DryPage,
        index: int,
        gfn: int,
        pfn: int,
        is_writable: bool,
        *,
        prefetch: bool,
    ) -> bool:
        """Whether anything was written."""
        old = page.entries.get(index, 0)
        if isinstance(old, DryPage):
            old.parents.remove((page, index))
            old = 0
        elif not is_mmio(old) and old & _FRAME != pfn << 12:
            old = 0
        word = 0x801 | _USER | pfn << 12 | (0 if prefetch else _ACCESSED) | (_LARGE if page.level > 1 else 0)
        word |= _NX if page.level > 1 and self.facts.nx_huge_pages else 0
        if is_writable:
            word |= _HOST_WRITABLE | MMU_WRITABLE | W
            if not old & W:
                self.say("try_unsync", f"gfn={gfn:#x} can_unsync=1 prefetch={int(prefetch)}")
                self.say("try_unsync_ret", "ret=0")
                word |= _DIRTY
            slot = self.find(vcpu.smm, gfn)
            if slot is not None and slot.dirty is not None:
                slot.dirty.add(gfn - slot.base)
        if old == word:
            return False
        page.entries[index] = word
        text = f"r{'w' if word & W else '-'}{'-' if word & _NX else 'x'}u"
        place = 0x150000000 + (page.id << 12) + index * 8
        self.say("kvm_mmu_set_spte", f"gfn {gfn:x} spte {word:x} ({text}) level {page.level} at {place:x}")
        return True

    def _prefetch(self, vcpu: DryVcpu, page: DryPage, faulting: int) -> None:
        group = range(faulting & ~7, (faulting & ~7) + 8)
        absent = [i != faulting and self._is_absent(page, i) for i in group]
        runs, start = [], None
        for position, is_absent in enumerate([*absent, False]):
            if is_absent and start is None:
                start = position
            elif not is_absent and start is not None:
                runs.append(range(group[0] + start, group[0] + position))
                start = None
        for run in runs:
            gfn = page.gfn_at(run[0])
            slot = self.find(vcpu.smm, gfn)
            if slot is None or slot.flags & (LOG_DIRTY | READONLY) or not slot.has(gfn + len(run) - 1):
                return
            for index in run:
                host_page = slot.page(page.gfn_at(index))
                if not self.host.is_writable(host_page):
                    if index == run[0]:
                        return
                    break
                pfn = self.host.pfn(host_page)
                self._set_leaf(vcpu, page, index, page.gfn_at(index), pfn, is_writable=True, prefetch=True)

    def _is_absent(self, page: DryPage, index: int) -> bool:
        entry = page.entries.get(index, 0)
        return not isinstance(entry, DryPage) and (not entry or is_mmio(entry))
