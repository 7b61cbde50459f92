"""The events of one engine operation told as the lines v6.1 and v6.12 would have traced, kprobes included.

Owns: the wording of those kernels and of the recorder's kprobes. The model has no addresses: an entry is told at a
stand-in address whose low 12 bits are those of the real one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kvm_mmu.trace import spte_6x
from kvm_mmu.trace.population import Population
from kvm_mmu.trace.wording import HIDDEN_POINTER, Wording, error_flags

_ENTERING = frozenset({"enter", "load", "access"})
_UNLOADING = frozenset({"unload", "smm", "set_regs"})
#: Bit 4 of a role says here that guest entries have 4 bytes; the wording of 5.x reads it as 8.
_GPTE_BIT = 1 << 4
_FIXED, _SPURIOUS = 1, 2


class Narrator6x:
    """Events of one VM to text, in order."""

    def __init__(self, kernel: str, root_level: int):
        self._kernel = kernel
        self._wording = Wording(gen="d", gpte_bytes=True)
        self.population = Population(root_level)

    def tell(self, op: Mapping[str, object], result: Mapping[str, object]) -> Iterator[tuple[str, str]]:
        """The outputs among the events of one operation."""
        events = result.get("events")
        if not isinstance(events, list):
            return
        vcpu = _int(op.get("vcpu", 0))
        people = self.population
        entering = op["op"] in _ENTERING
        # A vCPU that ends this operation with other roots dropped the old ones before anything else.
        if op["op"] in _UNLOADING or (entering and self._loads_root(events)):
            people.release_root(vcpu)
        for event in events:
            match event:
                case ["set_spte", page, index, gfn, spte, level]:
                    value = _int(spte)
                    yield (
                        "kvm_mmu_set_spte",
                        f"gfn {gfn:x} spte {value:x} ({spte_6x.access_text(value)}) level {level} "
                        f"at {_place(page, index):x}",
                    )
                case ["try_unsync", gfn, can_unsync, prefetch]:
                    yield "try_unsync", f"gfn={gfn:#x} can_unsync={can_unsync} prefetch={prefetch}"
                case ["try_unsync_ret", ret]:
                    yield "try_unsync_ret", f"ret={ret}"
                case ["page_zap_pte", page, index, spte]:
                    yield "page_zap_pte", f"sptep={_place(page, index):#x} spte={_int(spte):#x}"
                case ["get_page", page, gfn, role, created]:
                    found = people.get_page(_int(page), _int(gfn), _int(role), bool(created))
                    text = self._page(found.gfn, found.role, people.root_count(found.id), found.valid_gen)
                    if entering and people.is_root_role(found.role):
                        people.take_root(found, vcpu)
                    yield "kvm_mmu_get_page", f"{text} {'new' if created else 'existing'}"
                case ["prepare_zap", page]:
                    before, count = people.prepare_zap(_int(page))
                    yield (
                        "kvm_mmu_prepare_zap_page",
                        self._page(before.gfn, before.role, count, before.valid_gen),
                    )
                case ["zap_all_fast", valid_gen, used]:
                    people.valid_gen = _int(valid_gen) ^ 1
                    yield "kvm_mmu_zap_all_fast", f"kvm-mmu-valid-gen {valid_gen} used_pages {used:x}"
                case ["fast_pf", cpu, addr, err, _, _, old, new, handled]:
                    yield "fast_page_fault", self._fast_page_fault(cpu, addr, err, old, new, handled)
                case _:
                    told = _simple(event)
                    if told is not None:
                        yield told

    def _loads_root(self, events: list[object]) -> bool:
        return any(
            isinstance(event, list)
            and event[0] == "get_page"
            and self.population.is_root_role(_int(event[3]))
            for event in events
        )

    def _page(self, gfn: int, role: int, root_count: int, valid_gen: int) -> str:
        return self._wording.page(gfn, role ^ _GPTE_BIT, root_count, False, valid_gen)

    def _fast_page_fault(
        self, vcpu: object, addr: object, err: object, old: object, new: object, handled: object
    ) -> str:
        """`handled` has a bit for fixed and one for spurious."""
        said = _int(handled)
        return (
            f"vcpu {vcpu} gva {_int(addr):x} error_code {error_flags(_int(err), self._kernel)} "
            f"sptep {HIDDEN_POINTER} old {_int(old):#x} new {_int(new):x} "
            f"spurious {int(bool(said & _SPURIOUS))} fixed {int(bool(said & _FIXED))}"
        )


def _simple(event: object) -> tuple[str, str] | None:
    """The events that need neither pages nor the kernel's name."""
    match event:
        case ["make_mmio_spte", gfn, access]:
            return "make_mmio_spte", f"gfn={gfn:#x} access={access:#x}"
        case ["make_mmio_spte_ret", spte]:
            return "make_mmio_spte_ret", f"spte={_int(spte):#x}"
        case ["mark_mmio", page, index, gfn, access, gen]:
            place = _place(page, index)
            return "mark_mmio_spte", f"sptep:{place:016x} gfn {gfn:x} access {access:x} gen {gen:x}"
        case ["check_mmio", spte, kvm_gen, spte_gen]:
            return "check_mmio_spte", Wording.check_mmio(_int(spte), _int(kvm_gen), _int(spte_gen))
        case ["handle_mmio", addr, gfn, access]:
            return "handle_mmio_page_fault", Wording.handle_mmio(_int(addr), _int(gfn), _int(access))
        case ["memslots_updated" | "invalidate_mmio" as name, gen]:
            return str(name), f"gen={_int(gen):#x}"
        case ["commit_zap" | "flush_shadow_memslot" | "zap_all_fast_enter" as name]:
            return str(name), ""
        case ["zap_oldest_ret", count]:
            return "zap_oldest_ret", f"ret={count}"
        case ["change_mmu_pages", goal]:
            return "change_mmu_pages", f"goal={goal}"
    return None


def _place(page: object, index: object) -> int:
    return _int(page) << 12 | _int(index) << 3


def _int(value: object) -> int:
    """A number of an event: an integer, or hexadecimal text."""
    if isinstance(value, str):
        return int(value, 16)
    assert isinstance(value, int)
    return value
