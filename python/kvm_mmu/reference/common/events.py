"""The events of an operation, in the two forms a scenario can ask for.

Owns the form of each event. Format 1 is the form of the vectors of v5.0 and v5.2; format 6, that of v6.1 and v6.12,
says more of each page and has the tracepoints of the notifiers. Functions without a tracepoint, on which recordings
have probes (`logs_silent_calls`), are entered in format 1 only.
"""

from __future__ import annotations

from typing import Any

from . import spte as word
from .constants import ACC_USER_MASK, ACC_WRITE_MASK, PT64_BASE_ADDR_MASK, U64, kvm_pages_per_hpage
from .role import role_address_space, role_level, shown_role
from .state import Kvm, ShadowPage, Vcpu

EMULTYPE_PF = 0x40
PFN_NOSLOT_SHOWN = 1 << 63


def shown_spte(kvm: Kvm, sp: ShadowPage, spte: int) -> str:
    """An entry as events show it: the address of a table is not part of the model."""
    is_present = word.is_shadow_present_pte(kvm.masks, spte)
    if is_present and not word.is_last_spte(spte, role_level(sp.role)):
        spte &= ~PT64_BASE_ADDR_MASK & U64
    return hex(spte or kvm.masks.empty)


def says_all(kvm: Kvm) -> bool:
    """Whether events of pages and walks are as long as the kernel's tracepoints."""
    return kvm.format == 6 or kvm.config.traced != 0


def note_silent_call(kvm: Kvm, name: str, *values: int | str) -> None:
    """A function that has no tracepoint."""
    if kvm.rules.logs_silent_calls and kvm.format == 1:
        kvm.events.append([name, *values])


def note_get_page(kvm: Kvm, sp: ShadowPage, role: int, created: int) -> None:
    event = ["get_page", sp.id, sp.gfn, hex(shown_role(kvm.rules, role)), created]
    if says_all(kvm):
        event += [sp.mmu_valid_gen, sp.root_count, int(sp.unsync)]
    kvm.events.append(event)


def note_prepare_zap(kvm: Kvm, sp: ShadowPage) -> None:
    note_page(kvm, "prepare_zap", sp)


def note_page(kvm: Kvm, name: str, sp: ShadowPage) -> None:
    """prepare_zap, sync or unsync of a page, as it was before."""
    event = [name, sp.id]
    if says_all(kvm):
        event += [
            sp.gfn,
            hex(shown_role(kvm.rules, sp.role)),
            sp.mmu_valid_gen,
            sp.root_count,
            int(sp.unsync),
        ]
    kvm.events.append(event)


def note_guest_walk(kvm: Kvm, name: str, *values: int | str) -> None:
    """A step of the walk of the guest's tables."""
    if says_all(kvm):
        kvm.events.append([name, *values])


def note_inject_page_fault(kvm: Kvm, vcpu: Vcpu, gva: int, code: int) -> None:
    kvm.events.append(["inject_pf", vcpu.id, gva, hex(code) if kvm.format == 6 else code])


def note_requested(kvm: Kvm, gfn: int, pfn: int, level: int) -> None:
    """The level a fault asks for; `pfn` below 0: there is no slot."""
    if kvm.format == 6:
        kvm.events.append(["requested", gfn, hex(pfn if pfn >= 0 else PFN_NOSLOT_SHOWN), level])


def note_set_spte(kvm: Kvm, sp: ShadowPage, index: int, gfn: int, spte: int) -> None:
    level = role_level(sp.role)
    if kvm.format != 6:
        kvm.events.append(["set_spte", sp.id, index, gfn, shown_spte(kvm, sp, spte), level])
        return
    masks = kvm.masks
    is_readable = int(bool(masks.present | masks.suppress_ve) or spte & 1 != 0)
    rights = [is_readable, int(word.is_executable_pte(masks, spte)), int(spte & masks.user != 0)]
    kvm.events.append(["set_spte", gfn, shown_spte(kvm, sp, spte), level, *rights, sp.id, index])


def note_fast_page_fault(
    kvm: Kvm, vcpu: Vcpu, gpa: int, code: int, sp: ShadowPage, index: int, old: int, handled: int
) -> None:
    """`handled`: 0 no, 1 mended, 2 spurious; v5 does not tell the last two apart."""
    shown = [shown_spte(kvm, sp, spte) for spte in (old, sp.sptes.get(index, 0))]
    if kvm.format == 6:
        verdict = [int(handled == 2), int(handled == 1)]
        kvm.events.append(["fast_pf", vcpu.id, gpa, hex(code), sp.id, index, *shown, *verdict])
    else:
        kvm.events.append(["fast_pf", vcpu.id, gpa, code, sp.id, index, *shown, handled])


def shown_tdp_spte(kvm: Kvm, spte: int, level: int) -> tuple[str, int | None]:
    """A TDP entry as events show it, and the table that it links."""
    if word.is_shadow_present_pte(kvm.masks, spte) and not word.is_last_spte(spte, level):
        return hex(spte & ~PT64_BASE_ADDR_MASK & U64), word.spte_to_pfn(spte)
    return hex(spte or kvm.masks.empty), None


def note_spte_changed(kvm: Kvm, sp: ShadowPage, gfn: int, old: int, new: int, number: int = 1) -> None:
    """A change of a TDP entry, or of so many neighbours; format 6 has equal ones that follow each other as one."""
    kvm.ctr["spte_changed"] += number
    kvm.work["sptes_changed"] += number
    level = role_level(sp.role)
    (shown_old, old_child), (shown_new, new_child) = (shown_tdp_spte(kvm, spte, level) for spte in (old, new))
    what: list[Any] = [level, shown_old, shown_new, old_child, new_child]
    as_id = role_address_space(sp.role)
    pages = kvm_pages_per_hpage(level)
    if kvm.format != 6:
        kvm.events.extend(["spte", as_id, gfn + i * pages, *what] for i in range(number))
        return
    last: list[Any] = kvm.events[-1] if kvm.events else [""]
    if last[0] == "spte" and last[1] == as_id and last[3:8] == what:
        run = last[8] if len(last) > 8 else 1
        if last[2] + run * pages == gfn:
            last[8:] = [run + number]
            return
    kvm.events.append(["spte", as_id, gfn, *what] + ([number] if number > 1 else []))


def note_split(kvm: Kvm, gfn: int, huge_spte: int, level: int) -> None:
    """A large leaf became a table; there is always memory for it."""
    kvm.events.append(["split", gfn, hex(huge_spte), level, 0])


def note_mark_mmio(kvm: Kvm, sp: ShadowPage, index: int, gfn: int, spte: int, gen: int) -> None:
    mask = kvm.rules.mark_mmio_access_mask
    access = spte & mask if mask else ACC_WRITE_MASK | ACC_USER_MASK
    kvm.events.append(["mark_mmio", sp.id, index, gfn, access, gen])


def note_hwpoison_signal(kvm: Kvm, hva: int) -> None:
    kvm.events.append(["hwpoison_signal", hex(hva) if kvm.format == 6 else hva])


def note_emulate(kvm: Kvm, vcpu: Vcpu, gpa: int, emulation_type: int) -> None:
    if kvm.format == 6:
        emulation_type |= EMULTYPE_PF
    kvm.events.append(["emulate", vcpu.id, gpa, emulation_type])


def note_reload(kvm: Kvm) -> None:
    """A reload request to all vCPUs; it has no tracepoint of its own."""
    if kvm.format == 1:
        kvm.events.append(["reload_mmus"])


def note_lock_break(kvm: Kvm, kind: int) -> None:
    kvm.events.append(["lock_break", kind] if kvm.format == 6 else ["lock_break"])


def note_age(kvm: Kvm, gfn: int, level: int) -> None:
    """v5: a head that had been used."""
    if kvm.format == 1:
        kvm.events.append(["age", gfn, level])


def note_notifier(kvm: Kvm, name: str, *addresses: int) -> None:
    if kvm.format == 6:
        kvm.events.append([name, *map(hex, addresses)])
