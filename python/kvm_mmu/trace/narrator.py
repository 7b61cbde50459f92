"""The events of one engine operation told as the lines a kernel would have traced.

Owns: the mapping of the closed event list to tracepoints, through the population of pages and the kernel's
wording. Events that have no tracepoint (flushes, reload requests) are passed over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from kvm_mmu.trace.population import Population
from kvm_mmu.trace.wording import Wording

_ENTERING = frozenset({"enter", "load", "access"})
_UNLOADING = frozenset({"unload", "smm", "set_regs"})


class Prediction(NamedTuple):
    """An output the model predicts, after the input line that caused it."""

    line: int
    event: str
    body: str


class Narrator:
    """Events of one VM to text, in order."""

    def __init__(self, wording: Wording, root_level: int):
        self._wording = wording
        self.population = Population(root_level)

    def tell(self, op: Mapping[str, object], result: Mapping[str, object]) -> Iterator[tuple[str, str]]:
        """The outputs among the events of one operation."""
        events = result.get("events")
        if not isinstance(events, list):
            return
        vcpu = _int(op.get("vcpu", 0))
        people = self.population
        entering = op["op"] in _ENTERING
        # A vCPU that ends this operation with another root dropped the old one before anything else.
        if op["op"] in _UNLOADING or (entering and self._loads_root(events)):
            people.release_root(vcpu)
        for event in events:
            match event:
                case ["get_page", page, gfn, role, created]:
                    found = people.get_page(_int(page), _int(gfn), _int(role), bool(created))
                    body = self._page(found.gfn, found.role, people.root_count(found.id), found.valid_gen)
                    if entering and people.is_root_role(found.role):
                        people.take_root(found, vcpu)
                    yield "kvm_mmu_get_page", f"{body} {'new' if created else 'existing'}"
                case ["prepare_zap", page]:
                    before, count = people.prepare_zap(_int(page))
                    yield (
                        "kvm_mmu_prepare_zap_page",
                        self._page(before.gfn, before.role, count, before.valid_gen),
                    )
                case ["mark_mmio", _, _, gfn, access, gen]:
                    yield "mark_mmio_spte", self._wording.mark_mmio(_int(gfn), _int(access), _int(gen))
                case ["set_spte", page, index, gfn, spte, level]:
                    value, place = _int(spte), _int(page) << 12 | _int(index) << 3
                    yield "kvm_mmu_set_spte", self._wording.set_spte(_int(gfn), value, _int(level), place)
                case ["check_mmio", spte, kvm_gen, spte_gen]:
                    yield (
                        "check_mmio_spte",
                        self._wording.check_mmio(_int(spte), _int(kvm_gen), _int(spte_gen)),
                    )
                case ["handle_mmio", addr, gfn, access]:
                    yield (
                        "handle_mmio_page_fault",
                        self._wording.handle_mmio(_int(addr), _int(gfn), _int(access)),
                    )
                case ["fast_pf", cpu, addr, err, _, _, old, new, handled]:
                    yield (
                        "fast_page_fault",
                        self._wording.fast_page_fault(
                            _int(cpu), _int(addr), _int(err), _int(old), _int(new), bool(handled)
                        ),
                    )
                case ["invalidate_zap_all"]:
                    body = self._wording.invalidate_zap_all(people.valid_gen, people.used)
                    people.valid_gen += 1
                    yield "kvm_mmu_invalidate_zap_all_pages", body
                case ["zap_all_fast", valid_gen, used]:
                    people.valid_gen = _int(valid_gen) ^ 1
                    yield (
                        "kvm_mmu_zap_all_fast",
                        f"kvm-mmu-valid-gen {_int(valid_gen)} used_pages {_int(used):x}",
                    )
                case _:
                    pass

    def _loads_root(self, events: list[object]) -> bool:
        return any(
            isinstance(event, list)
            and event[0] == "get_page"
            and self.population.is_root_role(_int(event[3]))
            for event in events
        )

    def _page(self, gfn: int, role: int, root_count: int, valid_gen: int) -> str:
        return self._wording.page(gfn, role, root_count, False, valid_gen)


def _int(value: object) -> int:
    """A number of an event: an integer, or hexadecimal text."""
    if isinstance(value, str):
        return int(value, 16)
    assert isinstance(value, int)
    return value
