"""What a change of an entry of the TDP MMU was, and which part of KVM made it, in words.

Owns: the kinds of change, of one change and of columns of them, and the events that tell why a task changes entries. An
entry is a leaf (it maps a page), a link (to a table), an MMIO entry, empty, or frozen: on its way to be empty, or in a
table that no link leads to any more. What the processor set is no change of KVM's and shows in old values only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvm_mmu.trace.text.markers import parse_marker
from kvm_mmu.trace.text.spte_words import SpteWords

_PRESENT, _LARGE, _WRITABLE = 1 << 11, 1 << 7, 1 << 1
_SUPPRESS_VE = 1 << 63
_SIZES = {1: "4 KiB", 2: "2 MiB", 3: "1 GiB", 4: "512 GiB", 5: "256 TiB"}
#: Values of a frozen entry, without the bit that empty entries may have.
_FROZEN = (0x5A0, 0x1A0)
#: The thread that recovers huge pages.
RECOVERY_TASK = "kvm-nx-"
RECOVERY = "recovery of NX huge pages"
#: event -> why its task changes entries from here on
_REASONS = {
    "kvm_mmu_zap_all_fast": "every root is invalidated and zapped",
    "flush_shadow_memslot": "a memslot is removed",
    "memslots_updated": "a memslot is updated",
    "slot_wrprot": "the dirty log goes on: write protection",
    "slot_clear_dirty": "the dirty log goes on: dirty bits cleared",
    "zap_collapsible": "the dirty log goes off",
    "dirty_masked": "the dirty log is read or cleared",
    "kvm_unmap_hva_range": "the host takes memory away",
    "kvm_age_hva": "the host asks whether memory was used",
    "kvm_set_spte_hva": "the host puts another page in place",
    "kvm_page_fault": "page fault",
    "mmu_fault": "page fault",
    "mmu_unload": "the VM ends",
}
_UNMAP = _REASONS["kvm_unmap_hva_range"]
_FAULTS = frozenset({"kvm_page_fault", "mmu_fault"})
#: What ends what a task did.
_ENDS = frozenset({"kvm_entry", "kvm_exit", "page_fault_ret"})
_CODE = re.compile(r"error_code[ =]0x([0-9a-f]{1,16})")
_FETCH, _FETCH_QUALIFICATION = 1 << 4, 1 << 2


#: Every event that may tell why a task changes entries.
TELLING = frozenset({*_REASONS, *_ENDS, "flush_remote_tlbs", "tracing_mark_write"})


class Kind(NamedTuple):
    """A kind of change; `is_table`: a table came or went with it."""

    name: str
    is_table: bool = False


MAPPED, UNMAPPED = Kind("mapped"), Kind("unmapped")
LINKED, CUT_OFF = Kind("table linked", True), Kind("table cut off", True)
SPLIT, MERGED = Kind("large leaf split", True), Kind("table replaced by a large leaf", True)
PROTECTED, OTHER_BITS = Kind("write-protected"), Kind("accessed, dirty or other bits")
MMIO, FROZEN = Kind("marked as MMIO"), Kind("empty entry of a removed table frozen")
KINDS = (MAPPED, UNMAPPED, LINKED, CUT_OFF, SPLIT, MERGED, PROTECTED, OTHER_BITS, MMIO, FROZEN)
Column = npt.NDArray[np.uint64]


def count_kinds(level: Column, old: Column, new: Column) -> Iterator[tuple[Kind, int]]:
    """How many changes of columns are of each kind."""
    present, large, writable = (np.uint64(bit) for bit in (_PRESENT, _LARGE, _WRITABLE))
    is_small = level == 1
    was, now = ((value & present) != 0 for value in (old, new))
    was_leaf = was & (is_small | ((old & large) != 0))
    now_leaf = now & (is_small | ((new & large) != 0))
    was_link, now_link = was & ~was_leaf, now & ~now_leaf
    bare = new & ~np.uint64(_SUPPRESS_VE)
    is_frozen = (bare == _FROZEN[0]) | (bare == _FROZEN[1])
    is_protected = ((old & writable) != 0) & ((new & writable) == 0)
    for kind, rows in (
        (MAPPED, ~was & now_leaf),
        (UNMAPPED, was_leaf & ~now),
        (LINKED, ~was & now_link),
        (CUT_OFF, was_link & ~now),
        (SPLIT, was_leaf & now_link),
        (MERGED, was_link & now_leaf),
        (PROTECTED, was_leaf & now_leaf & is_protected),
        (OTHER_BITS, was & now & (was_leaf == now_leaf) & ~(was_leaf & is_protected)),
        (MMIO, ~was & ~now & ~is_frozen),
        (FROZEN, ~was & ~now & is_frozen),
    ):
        count = int(np.count_nonzero(rows))
        if count:
            yield kind, count


def change_in_words(words: SpteWords, level: int, old: int, new: int) -> str:
    """What became of an entry."""
    was, now = _state(words, level, old), _state(words, level, new)
    size, below = _SIZES.get(level, f"level {level}"), _SIZES.get(level - 1, "")
    match was, now:
        case ("empty" | "frozen", "leaf"):
            return f"{size} mapped"
        case ("mmio", "leaf"):
            return f"{size} mapped where there was an MMIO entry"
        case ("empty" | "frozen" | "mmio", "link"):
            return f"table of {below} entries linked"
        case ("leaf", "link"):
            return f"{size} leaf split: a table of {below} leaves takes its place"
        case ("link", "leaf"):
            return f"table replaced by a {size} leaf; it and all below it are removed"
        case ("link", "empty" | "frozen"):
            return f"table of {below} entries cut off; it and all below it are removed"
        case ("leaf", "empty"):
            return f"{size} unmapped"
        case ("leaf", "frozen"):
            return f"{size} unmapped: frozen until nobody can use it, or with its table"
        case (_, "mmio"):
            return "marked as MMIO" if was == "empty" else "marked as MMIO again, in another generation"
        case (_, "frozen"):
            return "entry of a removed table frozen" + (", it was an MMIO entry" if was == "mmio" else "")
        case ("leaf", "leaf"):
            return f"{size} leaf: {_bits(words, old, new)}"
    return "emptied" if now == "empty" else "changed"


def _state(words: SpteWords, level: int, value: int) -> str:
    if value & _PRESENT:
        return "leaf" if level == 1 or value & _LARGE else "link"
    bare = value & ~_SUPPRESS_VE
    if not bare:
        return "empty"
    return "frozen" if bare in _FROZEN else "mmio" if words.is_mmio(value) else "unknown"


def _bits(words: SpteWords, old: int, new: int) -> str:
    said = []
    if (old ^ new) & words.frame:
        said.append("another frame")
    for bit, lost, got in (
        (_WRITABLE, "write-protected", "writable"),
        (words.dirty, "dirty bit cleared", "dirty"),
        (words.accessed, "accessed bit cleared", "accessed"),
    ):
        if bit and (old ^ new) & bit:
            said.append(lost if old & bit else got)
    return ", ".join(said) or "other bits changed"


class Reasons:
    """Why each task changes entries, event by event."""

    def __init__(self, *, is_ept: bool = False):
        self._is_ept = is_ept
        self._now: dict[str, str] = {}

    def note(self, task: str, event: str, body: str) -> None:
        """Take in an event."""
        if event in _ENDS or (event == "flush_remote_tlbs" and self._now.get(task) == _UNMAP):
            self._now.pop(task, None)
        elif event == "tracing_mark_write":
            self._now.pop(task, None)
            if '"op":"pre_fault"' in body and parse_marker(body, ""):
                self._now[task] = "KVM_PRE_FAULT_MEMORY"
        elif event in _REASONS:
            self._now[task] = _REASONS[event]
            if event in _FAULTS:
                kind = fault_kind(body, is_qualification=self._is_ept and event == "kvm_page_fault")
                self._now[task] += f" ({kind})" if kind else ""

    def of(self, task: str, *, is_cut: bool = False) -> str:
        """Why a task changes entries now; empty where the trace does not say. `is_cut`: it cuts a table off."""
        if task.startswith(RECOVERY_TASK):
            return RECOVERY
        if is_cut and self._now.get(task) == _UNMAP:
            self._now[task] = _REASONS["mmu_unload"]  # the host's taking memory away leaves every table
        return self._now.get(task, "")


def fault_kind(body: str, *, is_qualification: bool) -> str:
    """`instruction fetch` where a fault's line says so."""
    found = _CODE.search(body)
    bit = _FETCH_QUALIFICATION if is_qualification else _FETCH
    return "instruction fetch" if found is not None and int(found[1], 16) & bit else ""


def largest(counts: Iterable[tuple[Kind, int]]) -> list[tuple[Kind, int]]:
    """Kinds and counts, the most frequent first."""
    return sorted(counts, key=lambda item: (-item[1], KINDS.index(item[0])))
