"""The events of one engine operation told as the lines a kernel would have traced.

Owns: the mapping of the closed event list to tracepoints, through the population of pages and the kernel's
wording. Events that have no tracepoint (flushes, reload requests) are passed over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from kvm_mmu.trace.replay.population import Population
from kvm_mmu.trace.text.wording import Wording

_ENTERING = frozenset({"enter", "load", "access"})
_UNLOADING = frozenset({"unload", "smm", "set_regs"})


class Prediction(NamedTuple):
    """An output that the model predicts, after the input line that caused it.

    Attributes:
        line: the line of the input in the stripped text.
        event: the event's name.
        body: its text.
    """

    line: int
    event: str
    body: str


class Narrator:
    """Events of one VM to text, in order, as v5.x says them."""

    def __init__(self, wording: Wording, root_level: int):
        self._wording = wording
        self.population = Population(root_level, wording.invalid)

    def tell(self, op: Mapping[str, object], result: Mapping[str, object]) -> Iterator[tuple[str, str]]:
        """The outputs among the events of one operation."""
        events = result.get("events")
        if not isinstance(events, list):
            return
        vcpu = number_of(op.get("vcpu", 0))
        people = self.population
        entering = op["op"] in _ENTERING
        # A vCPU that ends this operation with another root dropped the old one before anything else.
        if op["op"] in _UNLOADING or (entering and self._loads_root(events)):
            people.release_root(vcpu)
        for event in events:
            match event:
                case ["get_page", page, gfn, role, created]:
                    found = people.get_page(number_of(page), number_of(gfn), number_of(role), bool(created))
                    body = self._page(found.gfn, found.role, people.root_count(found.id), found.valid_gen)
                    if entering and people.is_root_role(found.role):
                        people.take_root(found, vcpu)
                    yield "kvm_mmu_get_page", f"{body} {'new' if created else 'existing'}"
                case ["prepare_zap", page]:
                    before, count = people.prepare_zap(number_of(page))
                    yield (
                        "kvm_mmu_prepare_zap_page",
                        self._page(before.gfn, before.role, count, before.valid_gen),
                    )
                case ["zap_all_fast", valid_gen, used]:
                    people.valid_gen = number_of(valid_gen) ^ 1
                    yield (
                        "kvm_mmu_zap_all_fast",
                        f"kvm-mmu-valid-gen {number_of(valid_gen)} used_pages {number_of(used):x}",
                    )
                case _:
                    told = self._told(event)
                    if told is not None:
                        yield told

    def _told(self, event: object) -> tuple[str, str] | None:
        """The line of an event that neither makes nor zaps a page; None where the kernel has none for it."""
        wording, people = self._wording, self.population
        match event:
            case ["mark_mmio", _, _, gfn, access, gen]:
                return "mark_mmio_spte", wording.mark_mmio(number_of(gfn), number_of(access), number_of(gen))
            case ["set_spte", page, index, gfn, spte, level]:
                place = place_of(page, index)
                return "kvm_mmu_set_spte", wording.set_spte(
                    number_of(gfn), number_of(spte), number_of(level), place
                )
            case ["check_mmio", spte, kvm_gen, spte_gen]:
                return "check_mmio_spte", wording.check_mmio(
                    number_of(spte), number_of(kvm_gen), number_of(spte_gen)
                )
            case ["handle_mmio", addr, gfn, access]:
                return "handle_mmio_page_fault", wording.handle_mmio(
                    number_of(addr), number_of(gfn), number_of(access)
                )
            case ["fast_pf", cpu, addr, err, _, _, old, new, handled]:
                return (
                    "fast_page_fault",
                    wording.fast_page_fault(
                        number_of(cpu),
                        number_of(addr),
                        number_of(err),
                        number_of(old),
                        number_of(new),
                        bool(handled),
                    ),
                )
            case ["invalidate_zap_all"]:
                body = wording.invalidate_zap_all(people.valid_gen, people.used)
                people.valid_gen += 1
                return "kvm_mmu_invalidate_zap_all_pages", body
        return None

    def _loads_root(self, events: list[object]) -> bool:
        return any(
            isinstance(event, list)
            and event[0] == "get_page"
            and self.population.is_root_role(number_of(event[3]))
            for event in events
        )

    def _page(self, gfn: int, role: int, root_count: int, valid_gen: int) -> str:
        return self._wording.page(gfn, role, root_count, False, valid_gen)


def place_of(page: object, index: object) -> int:
    """A stand-in for the address of an entry: the model has none, only its low 12 bits are real."""
    return number_of(page) << 12 | number_of(index) << 3


def number_of(value: object) -> int:
    """A number of an event: an integer, or hexadecimal text."""
    if isinstance(value, str):
        return int(value, 16)
    assert isinstance(value, int)
    return value
