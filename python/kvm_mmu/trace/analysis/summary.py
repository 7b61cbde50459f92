"""What is in a trace: events and counts, kernel, vCPUs, shadow pages, generations, MMIO.

Owns: the numbers of `kvm-mmu trace summary` and how they are printed. Streams: memory does not grow with the
trace.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kvm_mmu.errors import TraceError
from kvm_mmu.terminal import escaped
from kvm_mmu.trace.analysis.tdp_changes import RECOVERY_TASK, Kind, count_kinds, largest
from kvm_mmu.trace.text.buffer_header import BufferHeader, header_in
from kvm_mmu.trace.text.reader import Batch, Trace
from kvm_mmu.trace.text.recognise import KERNELS_OF_ERA
from kvm_mmu.trace.text.source import Traced, name_of
from kvm_mmu.trace.text.table import Table
from kvm_mmu.trace.text.window import Window

_VCPU_EVENTS = ("kvm_page_fault", "kvm_entry", "kvm_exit", "fast_page_fault", "kvm_smm_transition")
_ZAP_ALLS = ("kvm_mmu_invalidate_zap_all_pages", "kvm_mmu_zap_all_fast")
#: Kernels without a tracepoint for a whole-MMU zap.
_NO_ZAP_ALL = frozenset({"v5.1-v5.2", "v5.3"})
_UPDATES = "memslots_updated"
_TDP_CHANGED = "kvm_tdp_mmu_spte_changed"
_PRESENT, _LARGE = 1 << 11, 1 << 7
_SHOWN = 8
#: Columns of a terminal.
_WIDTH = 80


@dataclass
class TraceSummary:
    """Counts of a trace. Times in nanoseconds of trace time."""

    name: str
    counts: dict[str, Any] = field(default_factory=dict)
    vcpus: set[int] = field(default_factory=set)
    pages_created: int = 0
    pages_found: int = 0
    pages_zapped: int = 0
    #: Of these, pages that were still somebody's root: they are zapped once more when the last user leaves.
    roots_zapped_in_use: int = 0
    #: Installed memslot arrays (probe `memslots_updated`), and the last generation of them.
    memslot_updates: int = 0
    last_update_gen: int | None = None
    mmio_marks: int = 0
    mmio_hits: int = 0
    mmio_stale_checks: int = 0
    zap_alls: int = 0
    generations: set[int] = field(default_factory=set)
    #: Changes of entries of the TDP MMU by kind.
    tdp_changes: dict[Kind, int] = field(default_factory=dict)
    #: Tables that a recovery of NX huge pages took away.
    nx_recovered: int = 0
    header: BufferHeader = field(default_factory=BufferHeader)
    #: Which events were counted; None: all.
    only: Window | None = None

    @property
    def events(self) -> dict[str, int]:
        """Understood events by name."""
        return dict(self.counts["events"])

    @property
    def not_understood(self) -> int:
        """Lines that should be events and cannot be read."""
        return int(self.counts["not_understood"]) + int(self.counts["overlong"])

    @property
    def entries(self) -> int:
        """Lines that are neither blank nor comments."""
        return int(self.counts["lines"] - self.counts["blank"] - self.counts["notes"])

    @property
    def eras(self) -> list[str]:
        """Ranges of kernels that can have printed this trace, by its wording, as the reader calls them."""
        return list(self.counts["kernels"])

    @property
    def kernels(self) -> list[str]:
        """Kernels that can have printed this trace, by the names that `--kernel` takes."""
        return [kernel for era in self.eras for kernel in KERNELS_OF_ERA[era]]

    @property
    def shows_zap_alls(self) -> bool:
        """Whole-MMU zaps have a tracepoint in some kernel that can have printed this trace."""
        return not self.eras or not _NO_ZAP_ALL.issuperset(self.eras)

    def add(self, batch: Batch) -> None:
        """Count a batch."""
        for event in _VCPU_EVENTS:
            for table in batch.wordings(event):
                if "vcpu" in table:
                    self.vcpus.update(int(v) for v in np.unique(table["vcpu"]))
        for table in batch.wordings("kvm_mmu_get_page"):
            if "created" in table:
                created = table["created"]
                self.pages_created += int((created == 1).sum())
                self.pages_found += int((created == 0).sum())
            elif table.wording == "plugin, new":
                self.pages_created += len(table)
            else:
                self.pages_found += len(table)
        for zapped in batch.wordings("kvm_mmu_prepare_zap_page"):
            self.pages_zapped += len(zapped)
            self.roots_zapped_in_use += int((zapped["root_count"].astype(np.int64) > 0).sum())
        for updates in batch.wordings(_UPDATES):
            if len(updates):
                self.memslot_updates += len(updates)
                self.last_update_gen = int(updates["gen"][-1])
        self.mmio_marks += _rows(batch, ("mark_mmio_spte",))
        self.mmio_hits += _rows(batch, ("handle_mmio_page_fault",))
        self.zap_alls += _rows(batch, _ZAP_ALLS)
        for checks in batch.wordings("check_mmio_spte"):
            self.mmio_stale_checks += int((checks["kvm_gen"] != checks["spte_gen"]).sum())
            self.generations.update(int(g) for g in np.unique(checks["kvm_gen"]))
        for changed in batch.wordings(_TDP_CHANGED):
            columns = (changed[name].astype(np.uint64) for name in ("level", "old_spte", "new_spte"))
            for kind, count in count_kinds(*columns):
                self.tdp_changes[kind] = self.tdp_changes.get(kind, 0) + count
            self.nx_recovered += _recovered(changed)
        for marks in batch.wordings("mark_mmio_spte"):
            self.generations.update(int(g) for g in np.unique(marks["gen"]))

    def as_json(self) -> dict[str, Any]:
        """Plain values; the schema has a version."""
        gens = sorted(self.generations)
        entries = self.header.entries
        return {
            "schema": "kvm-mmu/trace-summary/1",
            "file": self.name,
            **self.counts,
            "kernels": self.kernels,
            "vcpus": sorted(self.vcpus),
            "pages_created": self.pages_created,
            "pages_found": self.pages_found,
            "pages_zapped": self.pages_zapped,
            "roots_zapped_in_use": self.roots_zapped_in_use,
            "memslot_updates": self.memslot_updates if self.memslot_updates else None,
            "mmio_marks": self.mmio_marks,
            "mmio_hits": self.mmio_hits,
            "mmio_stale_checks": self.mmio_stale_checks,
            "zap_alls": self.zap_alls if self.shows_zap_alls else None,
            "tdp_changes": {kind.name: count for kind, count in largest(self.tdp_changes.items())},
            "nx_recovered": self.nx_recovered,
            "generations": {
                "count": len(gens),
                "first": gens[0] if gens else None,
                "last": gens[-1] if gens else None,
            },
            "buffer": None if entries is None else {**entries._asdict(), "in_text": self.entries},
            "missing": self.header.missing(self.entries),
        }

    def _tdp_lines(self) -> list[str]:
        total = sum(self.tdp_changes.values())
        if not total:
            return []
        lines = [f"  entries that the TDP MMU changed: {total}"]
        lines.extend(f"    {count:>8}  {kind.name}" for kind, count in largest(self.tdp_changes.items()))
        if splits := self.events.get("kvm_mmu_split_huge_page"):
            lines.append(f"  huge pages split: {splits}")
        if self.nx_recovered:
            lines.append(f"  tables taken away by the recovery of NX huge pages: {self.nx_recovered}")
        flushes, ranged = (
            self.events.get(name, 0) for name in ("flush_remote_tlbs", "flush_remote_tlbs_range")
        )
        if flushes:
            lines.append(
                f"  remote TLB flushes: {flushes}" + (f", {ranged} asked for a range" if ranged else "")
            )
        return lines

    def as_text(self, sort: str = "count") -> str:
        """Returns the summary for a person, its events by `count` or by `name`."""
        ordered = _by_name if sort == "name" else _by_count
        counts = self.counts
        understood = sum(self.events.values())
        lines = [f"{self.name}: {counts['lines']} line{_s(counts['lines'])}, "]
        lines[0] += f"{understood} event{_s(understood)} understood"
        if self.only is not None:
            lines.append(f"  {self.only}")
        lines.append(f"  kernel by wording: {_kernels(self.eras)}")
        if counts["span_ns"] is not None:
            first, last = counts["span_ns"]
            lines.append(f"  span: {(last - first) / 1e9:.6f} s of trace time, from {first / 1e9:.6f} s")
        vcpus = ", ".join(str(v) for v in sorted(self.vcpus))
        lines.append(f"  vCPUs: {vcpus or 'no event here names one'}")
        zapped = f"{self.pages_zapped} zapped"
        if self.roots_zapped_in_use:
            zapped += (
                f" ({self.roots_zapped_in_use} of them roots in use, which are zapped once more when unused)"
            )
        lines.append(f"  shadow pages: {self.pages_created} created, {self.pages_found} found, {zapped}")
        lines.append(
            f"  MMIO SPTEs: {self.mmio_marks} marked, {self.mmio_hits} hit, {self.mmio_stale_checks} found stale"
        )
        lines.append(
            f"  whole-MMU zaps: {self.zap_alls if self.shows_zap_alls else 'no tracepoint for them in this kernel'}"
        )
        if self.generations:
            gens = sorted(self.generations)
            lines.append(
                f"  memslot generations seen by MMIO SPTEs: {len(gens)}, {gens[0]:#x} to {gens[-1]:#x}"
            )
        if self.last_update_gen is not None:
            lines.append(
                f"  memslot arrays installed: {self.memslot_updates}, the last of generation {self.last_update_gen:#x}"
            )
        lines.extend(self._tdp_lines())
        lines.extend(f"  {count:>10}  {event}" for event, count in ordered(self.events.items()))
        lines.extend(
            f"  {count:>10}  {event} (other event, kept as text)"
            for event, count in ordered(counts["opaque"].items())
        )
        lines.extend(f"  {note}" for note in self.header.missing(self.entries))
        if counts["lost_notes"]:
            places = f"{counts['lost_notes']} place{_s(counts['lost_notes'])}"
            lines.append(f"  events were lost at {places} ({counts['lost']} as far as the trace says)")
        if counts["overlong"]:
            were = "line longer than 1 MiB was" if counts["overlong"] == 1 else "lines longer than 1 MiB were"
            lines.append(f"  {counts['overlong']} {were} skipped")
        lines.append(f"  {counts['not_understood']} line{_s(counts['not_understood'])} not understood")
        if counts["raw"]:
            are = "event is" if counts["raw"] == 1 else "events are"
            lines.append(f"  {counts['raw']} {are} raw fields (trace-cmd report -R)")
        if counts["plugin"]:
            are = "page event is" if counts["plugin"] == 1 else "page events are"
            lines.append(
                f"  {counts['plugin']} {are} in the wording of libtraceevent's KVM plugin, which knows an old"
                " role layout only:"
            )
            lines.append(
                "  what it says of the role is kept as text; report again with raw fields (trace-cmd report -R)"
            )
        lines = [part for line in lines for part in _folded(line)]
        lines.extend(f"    line {line}: {text}" for line, text in counts["examples"][:_SHOWN])
        return escaped("\n".join(lines))


def _recovered(changed: Table) -> int:
    """Links that the recovery thread cut off, or that became large leaves by it."""
    names = changed.names("task")
    codes = [code for code, name in enumerate(names) if name.startswith(RECOVERY_TASK)]
    if not codes:
        return 0
    old, level = changed["old_spte"].astype(np.uint64), changed["level"]
    is_link = (level > 1) & ((old & np.uint64(_PRESENT)) != 0) & ((old & np.uint64(_LARGE)) == 0)
    # A table below another one goes with it.
    is_frozen = np.isin(changed["new_spte"].astype(np.uint64) & ~np.uint64(1 << 63), (0x5A0, 0x1A0))
    return int(np.count_nonzero(np.isin(changed["task"], codes) & is_link & ~is_frozen))


def summarize(
    trace: Traced, *, strict: bool = False, only: Window | None = None, jobs: int = 1
) -> TraceSummary:
    """Returns the counts of what is in a trace.

    Args:
        trace: A path, an open `Trace`, or lines.
        strict: A line that is not understood is an error.
        only: Which events count; None: all.
        jobs: How many threads read the text. The result is the same.

    Raises:
        TraceError: the trace cannot be read, or `strict` and a line is not understood.
    """
    found = TraceSummary(name_of(trace))
    opened = Trace(trace, only)
    found.only = opened.only
    for batch, counts in opened.batches_and_counts(jobs=jobs):
        found.add(batch)
        if counts is not None:
            found.counts = counts
    found.header = header_in(opened.head) if opened.is_whole else BufferHeader()
    if found.counts["lines"] == 0:
        raise TraceError(f"{found.name}: empty: expected ftrace text")
    if found.not_understood and not found.events and not found.counts["opaque"]:
        line, text = min(_first_not_understood(found.counts))
        raise TraceError(f"{found.name}:{line}: no event in it: expected ftrace text, not {text[:80]!r}")
    if strict and found.not_understood:
        line, text = min(_first_not_understood(found.counts))
        raise TraceError(
            f"{found.name}:{line}: not understood: {text[:120]!r} ({found.not_understood} such lines)"
        )
    return found


def _first_not_understood(counts: dict[str, Any]) -> list[tuple[int, str]]:
    overlong = [(counts["first_overlong"], "a line longer than 1 MiB")] if counts["overlong"] else []
    return [*counts["examples"][:1], *overlong]


def _folded(line: str) -> list[str]:
    """The line in as many as a terminal needs; a path that is too long stays whole."""
    if len(line) <= _WIDTH:
        return [line]
    indent = " " * (len(line) - len(line.lstrip(" ")))
    return textwrap.wrap(
        line.lstrip(" "),
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + "    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def _rows(batch: Batch, events: Iterable[str]) -> int:
    return sum(len(table) for event in events for table in batch.wordings(event))


def _kernels(eras: list[str]) -> str:
    kernels = [kernel for era in eras for kernel in KERNELS_OF_ERA[era]]
    if not kernels:
        return "none (the trace mixes wordings of several kernels)"
    if len(eras) == len(KERNELS_OF_ERA):
        return "any (no event here that kernels word differently)"
    return kernels[0] if len(kernels) == 1 else f"one of {', '.join(kernels)} (not told apart by this trace)"


def _by_name(counts: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    return sorted(counts)


def _by_count(counts: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    return sorted(counts, key=lambda item: (-item[1], item[0]))
