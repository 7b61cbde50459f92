"""Numbers of a VM over the time of a trace: live shadow pages, generations.

Owns: which events change which number. A shadow page lives from the event that makes it to the one that zaps it for
good: a root that is zapped while in use lives on until its last user frees it. Where the trace begins in the middle,
pages made before it are missing, and the lowest count is taken for zero.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from kvm_mmu.trace.text.line import process_of

LIVE, SLOTS_GEN, MMIO_GEN, VALID_GEN = (
    "live shadow pages",
    "memslot generation",
    "MMIO generation",
    "MMU valid generation",
)
_MADE = re.compile(r" new$|\bcreated=(?:0x)?1\b")
_IN_USE = re.compile(r"\broot [1-9]|\broot_count=(?:0x)?[1-9]")
#: event -> the number it says, and where
_SAYS = {
    "memslots_updated": (SLOTS_GEN, re.compile(r"\bgen=(?:0x)?([0-9a-f]{1,16})")),
    "check_mmio_spte": (MMIO_GEN, re.compile(r"\bkvm_gen ([0-9a-f]{1,16})\b")),
    "mark_mmio_spte": (MMIO_GEN, re.compile(r"\bgen ([0-9a-f]{1,16})$")),
    "kvm_mmu_zap_all_fast": (VALID_GEN, re.compile(r"kvm-mmu-valid-gen ([0-9a-f]{1,16})\b")),
    "kvm_mmu_invalidate_zap_all_pages": (VALID_GEN, re.compile(r"kvm-mmu-valid-gen ([0-9a-f]{1,16})\b")),
}


#: Events that change a number.
EVENTS = ("kvm_mmu_get_page", "kvm_mmu_prepare_zap_page", *_SAYS)


class Sample(NamedTuple):
    """A number from this time on."""

    time_ns: int
    value: int


class Counters:
    """Collects the numbers of each process, event by event; only changes are kept."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str], list[Sample]] = {}
        self._makes_pages = False

    def event(self, task: str, time: int, event: str, body: str) -> None:
        """Take in an event."""
        if event == "kvm_mmu_get_page":
            if _MADE.search(body) is not None:
                self._makes_pages = True
                self._change(task, time, 1)
        elif event == "kvm_mmu_prepare_zap_page":
            if _IN_USE.search(body) is None:
                self._change(task, time, -1)
        elif event in _SAYS:
            name, where = _SAYS[event]
            found = where.search(body)
            if found is not None:
                self._set(task, time, name, int(found[1], 16))

    def series(self) -> Iterator[tuple[str, str, list[Sample]]]:
        """Yields name, process (empty where the trace names none) and samples of each number, in order of time."""
        for (name, process), samples in sorted(self._series.items()):
            if name == LIVE and not self._makes_pages:
                continue  # only zaps were recorded
            below = min(0, *(sample.value for sample in samples), 0) if name == LIVE else 0
            moved = [sample._replace(value=sample.value - below) for sample in samples]
            yield name, process, sorted(moved, key=lambda sample: sample.time_ns)

    def _change(self, task: str, time: int, by: int) -> None:
        samples = self._series.get((LIVE, process_of(task)), [])
        self._set(task, time, LIVE, (samples[-1].value if samples else 0) + by)

    def _set(self, task: str, time: int, name: str, value: int) -> None:
        samples = self._series.setdefault((name, process_of(task)), [])
        if samples and samples[-1].value == value:
            return
        samples.append(Sample(time, value))
