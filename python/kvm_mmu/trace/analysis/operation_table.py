"""The table of operations of a trace: each memslot operation with its slot, and every other piece of MMU work.

Owns: which operation a piece of work belongs to, the sums of the rows, and how the table is printed. A zap-all, a flush
or a dirty-log step inside a memslot update belongs to the update; a root that it left in use and that its last user
freed later belongs to it too, apart from its own time (`later`). The time of an operation is that between its beginning
and its return, so that the rows add up to what passed between these in the trace.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from kvm_mmu.errors import UsageError
from kvm_mmu.terminal import WIDTH
from kvm_mmu.trace.analysis.mmu_work import UPDATE, ZAP_ALL, Work
from kvm_mmu.trace.text.slot_changes import SlotChange

#: What `--sort` takes -> the largest first of what (`name`: in order of the alphabet).
SORTS = ("total", "count", "p50", "p99", "max", "zapped", "entries", "waited", "nobody", "name")
_MEMSLOT = "memslot"
#: Slots of a row that are printed, and the least room for names: a longer one has a line of its own.
_SLOTS, _NAME_MIN, _INDENT = 8, 12, "  "
_HEADS = ("count", "total", "p50", "p99", "max", "zapped", "entries", "vCPUs", "waited", "nobody")
_ENTRIES_AT = _HEADS.index("entries")


@dataclass(slots=True)
class Waited:
    """What a piece of work cost the vCPUs: who waited, how long in all, and its time while nobody did."""

    vcpus: set[tuple[int | None, str]] = field(default_factory=set)
    waited_ns: int = 0
    nobody_ns: int = 0

    def add(self, other: Waited) -> None:
        """Count another one in."""
        self.vcpus |= other.vcpus
        self.waited_ns += other.waited_ns
        self.nobody_ns += other.nobody_ns


@dataclass(slots=True)
class Part:
    """The work of one cause in a row."""

    operations: set[int] = field(default_factory=set)
    total_ns: int = 0
    pages_zapped: int = 0
    entries: int = 0
    waited: Waited = field(default_factory=Waited)

    def add(self, work: Work, waited: Waited) -> None:
        """Count a piece in."""
        self.operations.add(work.operation)
        self.total_ns += work.end_ns - work.start_ns
        self.pages_zapped += work.pages_zapped
        self.entries += work.entries
        self.waited.add(waited)

    def as_json(self) -> dict[str, int]:
        """Plain values, nanoseconds."""
        return {
            "works": len(self.operations),
            "total_ns": self.total_ns,
            "pages_zapped": self.pages_zapped,
            "entries_changed": self.entries,
            "vcpus": len(self.waited.vcpus),
            "waited_ns": self.waited.waited_ns,
            "without_a_waiting_vcpu_ns": self.waited.nobody_ns,
        }


@dataclass(slots=True)
class Row:
    """Operations of one kind: how many, how long, what they zapped, who waited for them."""

    name: str
    is_memslot: bool = False
    #: The slot, of a row below another one.
    change: SlotChange | None = None
    lengths: list[int] = field(default_factory=list)
    pages_zapped: int = 0
    #: Entries that the TDP MMU changed.
    entries: int = 0
    waited: Waited = field(default_factory=Waited)
    #: cause -> its work inside the operations, and what they made necessary after their return
    parts: dict[str, Part] = field(default_factory=dict)
    later: dict[str, Part] = field(default_factory=dict)
    #: The same by slot, where the trace names it.
    slots: list[Row] = field(default_factory=list)

    def numbers(self) -> dict[str, int]:
        """Count, sum and percentiles of the lengths, nanoseconds."""
        lengths = sorted(self.lengths)
        return {
            "count": len(lengths),
            "total_ns": sum(lengths),
            "p50_ns": percentile(lengths, 50),
            "p99_ns": percentile(lengths, 99),
            "max_ns": lengths[-1] if lengths else 0,
        }

    def key(self, sort: str) -> tuple[int, str]:
        """Sorts rows: the largest first, then by name."""
        values = {
            "zapped": self.pages_zapped,
            "entries": self.entries,
            "waited": self.waited.waited_ns,
            "nobody": self.waited.nobody_ns,
            **{name.removesuffix("_ns"): value for name, value in self.numbers().items()},
        }
        return (-values.get(sort, 0), self.title)

    @property
    def title(self) -> str:
        """What the row is called in print."""
        if self.change is not None:
            return str(self.change)
        return f"{_MEMSLOT} {self.name}" if self.is_memslot else self.name

    def as_json(self) -> dict[str, object]:
        """Plain values, nanoseconds."""
        found: dict[str, object] = {"operation": self.name, "is_memslot": self.is_memslot}
        if self.change is not None:
            change = self.change
            found = {key: getattr(change, key) for key in ("slot", "as_id", "gpa", "size", "flags")}
        found |= self.numbers()
        found |= {
            "pages_zapped": self.pages_zapped,
            "entries_changed": self.entries,
            "vcpus": len(self.waited.vcpus),
            "waited_ns": self.waited.waited_ns,
            "without_a_waiting_vcpu_ns": self.waited.nobody_ns,
        }
        if self.change is None:
            found["parts"] = {cause: part.as_json() for cause, part in sorted(self.parts.items())}
            found["later"] = {cause: part.as_json() for cause, part in sorted(self.later.items())}
            found["slots"] = [row.as_json() for row in self.slots]
        return found


def table(
    works: Iterable[Work],
    changes: Mapping[int, SlotChange],
    waited: Mapping[int, Waited],
    sort: str = "total",
) -> list[Row]:
    """The rows of a trace.

    Args:
        works: The pieces of work.
        changes: Of the memslot updates, by the number of their operation, which slot.
        waited: What a piece cost, by its `id`.
        sort: One of `SORTS`.

    Raises:
        UsageError: there is no such order.
    """
    if sort not in SORTS:
        raise UsageError(f"sort {sort!r}: expected one of {', '.join(SORTS)}")
    by_operation: dict[int, list[Work]] = {}
    later: dict[int, list[Work]] = {}
    for work in works:
        if work.caused_by:
            later.setdefault(work.caused_by, []).append(work)
        else:
            by_operation.setdefault(work.within, []).append(work)
    rows: dict[tuple[bool, str], Row] = {}
    slots: dict[tuple[str, object], Row] = {}
    for operation, pieces in by_operation.items():
        change = changes.get(operation)
        name = _name(pieces[0]) if change is None else change.what or "update"
        row = rows.setdefault((change is not None, name), Row(name, change is not None))
        counted = [row]
        if change is not None and change.slot is not None:
            key = (name, (change.slot, change.as_id, change.gpa, change.size, change.flags))
            if key not in slots:
                slots[key] = Row(name, change=change)
                row.slots.append(slots[key])
            counted.append(slots[key])
        for one in counted:
            _count(one, pieces, later.get(operation, ()), waited)
    for row in rows.values():
        row.slots.sort(key=lambda one: one.key(sort))
    return sorted(rows.values(), key=lambda row: (not row.is_memslot, row.key(sort)))


def _name(work: Work) -> str:
    return f"{work.cause} ({work.what})" if work.what else work.cause


def _count(row: Row, pieces: Sequence[Work], later: Sequence[Work], waited: Mapping[int, Waited]) -> None:
    row.lengths.append(max(work.end_ns for work in pieces) - min(work.start_ns for work in pieces))
    row.pages_zapped += sum(work.pages_zapped for work in pieces)
    row.entries += sum(work.entries for work in pieces)
    for works, parts in ((pieces, row.parts), (later, row.later)):
        for work in works:
            cost = waited.get(id(work), Waited())
            parts.setdefault(work.cause, Part()).add(work, cost)
            row.waited.add(cost)


def as_lines(rows: Sequence[Row]) -> list[str]:
    """The table for a person, microseconds, in 80 columns; with changed entries where there is a TDP MMU."""
    has_entries = any(row.entries for row in rows)
    named: list[tuple[str, list[str]]] = []
    for row in rows:
        named.append((row.title, _cells(row)))
        named.extend((f"  {one.title}", _cells(one)) for one in row.slots[:_SLOTS])
        if len(row.slots) > _SLOTS:
            named.append((f"  and {len(row.slots) - _SLOTS} more", []))
        inside = row.parts if len(row.parts) > 1 or row.later else {}
        for cause, part in _largest(inside):
            said = "the update itself" if cause == UPDATE and row.is_memslot else cause
            named.append((f"  of it {said}", _part_cells(part)))
        named.extend((f"  then {cause}", _part_cells(part)) for cause, part in _largest(row.later))
    shown = [at for at in range(len(_HEADS)) if has_entries or at != _ENTRIES_AT]
    widths = {at: max(len(_HEADS[at]), *(len(cells[at]) for _, cells in named if cells)) + 1 for at in shown}
    room = max(WIDTH - len(_INDENT) - sum(widths.values()), _NAME_MIN)
    lines = [f"{_INDENT}{'times in us':<{room}}{_joined(_HEADS, widths)}"]
    for name, cells in named:
        joined = _joined(cells, widths)
        if cells and len(name) > room:
            lines.append(f"{_INDENT}{name}")
            name = ""
        lines.append(f"{_INDENT}{name:<{room}}{joined}".rstrip())
    return lines


def _joined(cells: Sequence[str], widths: Mapping[int, int]) -> str:
    return "".join(f"{cells[at]:>{width}}" for at, width in widths.items()) if cells else ""


def _cells(row: Row) -> list[str]:
    count, *times = row.numbers().values()
    return [
        f"{count}",
        *map(_short, times),
        f"{row.pages_zapped}",
        f"{row.entries}",
        *_waited_cells(row.waited),
    ]


def _part_cells(part: Part) -> list[str]:
    times = [_short(part.total_ns), "", "", ""]
    numbers = [f"{len(part.operations)}", *times, f"{part.pages_zapped}", f"{part.entries}"]
    return [*numbers, *_waited_cells(part.waited)]


def _waited_cells(waited: Waited) -> list[str]:
    return [f"{len(waited.vcpus)}", _short(waited.waited_ns), _short(waited.nobody_ns)]


def _short(nanoseconds: int) -> str:
    """Microseconds: the fraction of a long time says nothing."""
    return f"{nanoseconds / 1000:,.0f}" if nanoseconds >= 100_000 or not nanoseconds else us(nanoseconds)


def _largest(parts: Mapping[str, Part]) -> list[tuple[str, Part]]:
    return sorted(parts.items(), key=lambda item: (item[0] != ZAP_ALL, -item[1].total_ns, item[0]))


def percentile(ordered: Sequence[int], percent: int) -> int:
    """The smallest value that at least `percent` of the values do not exceed; 0 of nothing."""
    return ordered[max(-(-len(ordered) * percent // 100) - 1, 0)] if ordered else 0


def us(nanoseconds: int) -> str:
    """Microseconds for a person."""
    return f"{nanoseconds / 1000:,.1f}"
