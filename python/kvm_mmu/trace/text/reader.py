"""Reading a trace of any length: batches of columns with constant memory, or everything at once.

Owns: the way from chunks of bytes through the core's reader to tables of columns. A batch has one table per
kind of event, and the timeline of all events in order. Units: `time_ns` nanoseconds of trace time, `line`
from 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, cast

from kvm_mmu import _core
from kvm_mmu.errors import TraceError
from kvm_mmu.terminal import one_line
from kvm_mmu.trace.text.slot_changes import CHANGES
from kvm_mmu.trace.text.source import (
    Source,
    Traced,
    is_file,
    is_opened,
    is_source,
    iter_chunks,
    lines_of,
    name_of,
)
from kvm_mmu.trace.text.table import Table
from kvm_mmu.trace.text.window import Window

#: How much text a batch covers by default, in bytes.
BATCH_BYTES = 16 << 20
OPAQUE_KIND = 255
#: How much of the beginning a `Trace` keeps, at least: the comments before the first event fit in.
HEAD_BYTES = 4096
#: How much of a trace a notebook looks at.
SHOWN_BYTES = 1 << 20


#: event -> field -> what its numbers mean
_SAID: dict[str, dict[str, tuple[str, ...]]] = {
    "set_memslot": {"change": tuple(CHANGES[number] for number in sorted(CHANGES))},
}


class _Native(Protocol):
    """The core's reader."""

    def feed(self, chunk: bytes, threads: int = 1) -> None: ...
    def finish(self) -> None: ...
    def summary(self) -> dict[str, Any]: ...
    def take(self) -> tuple[list[dict[str, Any]], dict[str, Any]]: ...
    def tasks(self) -> list[str]: ...


def native_reader(*, columns: bool) -> _Native:
    """The core's reader.

    Raises:
        TraceError: this build of the core has none.
    """
    make = getattr(_core, "TraceReader", None)
    if make is None:
        raise TraceError("this build of the core has no trace reader: build the package again")
    return cast(_Native, make(columns=columns))


class Batch:
    """A part of a trace as columns.

    A batch is a mapping of event names to tables: `batch["kvm_page_fault"]`, `"kvm_entry" in batch`. An event that
    occurs in the words of two kernels has a table of each, the second under `NAME (WORDING)`.

    Attributes:
        tables: One `Table` an event, by name: `line`, `time_ns`, `cpu`, `task` and the event's own fields.
        timeline: A `Table` of all events in order: `line`, `time_ns`, `cpu`, `task`, `kind`.
    """

    def __init__(self, tables: dict[str, Table], timeline: Table):
        self.tables = tables
        self.timeline = timeline

    def __repr__(self) -> str:
        return f"<Batch {len(self.timeline)} events of {len(self.tables)} kinds>"

    def __len__(self) -> int:
        return len(self.timeline)

    def __getitem__(self, event: str) -> Table:
        return self.tables[event]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tables)

    def __contains__(self, event: object) -> bool:
        return event in self.tables

    def wordings(self, event: str) -> list[Table]:
        """Returns all tables of an event: one a wording that occurred, none where it did not occur.

        Args:
            event: The name of the event.
        """
        return [table for table in self.tables.values() if table.event == event]


class Trace:
    """A trace, read as often as asked; `-` is stdin and can be read once.

    Iterating over it gives its batches.

    Args:
        source: A path of ftrace text of tracefs or `trace-cmd report`, plain, `.gz` or `.xz`; a `Trace`; or lines.
        only: Which events are read; None: all. Numbers of lines are those of the whole text.
    """

    def __init__(self, source: Traced, only: Window | None = None):
        self.only = only
        if is_opened(source):
            self.source: Source | list[str] = source.source
            self.only = only or getattr(source, "only", None)
        else:
            self.source = source if is_source(source) else list(lines_of(source))
        #: The beginning of the text, as far as it was read.
        self.head = b""
        self._left_out = 0

    def __repr__(self) -> str:
        return one_line(f"<Trace {self.name}>")

    def _repr_html_(self) -> str:
        from kvm_mmu.view.html import trace_html

        if not isinstance(self.source, list) and not is_file(self.source):
            return trace_html(self.name, "no file that can be read again, so not looked at", {})
        reader, read = native_reader(columns=False), 0
        try:
            for chunk in self._chunks(SHOWN_BYTES):
                reader.feed(chunk)
                read += len(chunk)
                if read >= SHOWN_BYTES:
                    break
        except TraceError as err:
            return trace_html(self.name, str(err).removeprefix(f"{self.name}: "), {})
        reader.finish()
        counts = reader.summary()
        events = sorted({**counts["opaque"], **counts["events"]}.items(), key=lambda one: (-one[1], one[0]))
        part = "the beginning" if read >= SHOWN_BYTES else "all of it"
        return trace_html(self.name, f"{part}, {counts['lines']:,} lines", dict(events))

    def __iter__(self) -> Iterator[Batch]:
        return self.batches()

    @property
    def name(self) -> str:
        """The name of the file as messages have it."""
        return name_of(self.source)

    @property
    def is_whole(self) -> bool:
        """Whether every event of the text is read."""
        return self.only is None

    def lines(self) -> Iterator[str]:
        """Returns the lines of the text; of a window those inside.

        Raises:
            TraceError: the file cannot be read to its end.
        """
        lines = lines_of(self.source)
        return lines if self.only is None else (text for text in self.only.lines(lines) if text is not None)

    def counts(self) -> dict[str, Any]:
        """Returns the counts of everything in the trace, without columns; memory does not grow with the trace.

        Raises:
            TraceError: the file cannot be read to its end.
        """
        reader = native_reader(columns=False)
        for chunk in self._chunks(1 << 20):
            reader.feed(chunk)
        reader.finish()
        return self._counts(reader)

    def batches(self, size: int = BATCH_BYTES) -> Iterator[Batch]:
        """Yields the trace in batches; memory does not grow with the trace.

        Args:
            size: How much text a batch covers, about, in bytes.

        Raises:
            TraceError: the file cannot be read to its end.
        """
        for batch, _ in self._batches(size):
            yield batch

    def read_all(self) -> Batch:
        """Returns everything as one batch. Needs memory for every event (about 40 bytes and its fields).

        Raises:
            TraceError: the file cannot be read to its end.
        """
        reader = native_reader(columns=True)
        for chunk in self._chunks(1 << 20):
            reader.feed(chunk)
        reader.finish()
        return _batch(reader)

    def batches_and_counts(
        self, size: int = BATCH_BYTES, jobs: int = 1
    ) -> Iterator[tuple[Batch, dict[str, Any] | None]]:
        """Yields the batches; with the last one come the counts of the whole trace, None with the others.

        Args:
            size: How much text a batch covers, about, in bytes.
            jobs: How many threads read the text. The result is the same.

        Raises:
            TraceError: the file cannot be read to its end.
        """
        return self._batches(size, jobs)

    def _batches(self, size: int, jobs: int = 1) -> Iterator[tuple[Batch, dict[str, Any] | None]]:
        reader = native_reader(columns=True)
        filled = 0
        self.head = b""
        for chunk in self._chunks(min(size, max(jobs, 1) << 20)):
            if len(self.head) < HEAD_BYTES:
                self.head += chunk[:HEAD_BYTES]
            reader.feed(chunk, jobs)
            filled += len(chunk)
            if filled >= size:
                filled = 0
                yield _batch(reader), None
        reader.finish()
        yield _batch(reader), self._counts(reader)

    def _chunks(self, size: int) -> Iterator[bytes]:
        """The text in pieces; a line that is left out is an empty one."""
        self._left_out = 0
        if self.only is None and not isinstance(self.source, list):
            yield from iter_chunks(self.source, size)
            return
        kept: list[bytes] = []
        filled = 0
        lines = lines_of(self.source)
        for text in lines if self.only is None else self.only.lines(lines):
            self._left_out += text is None
            kept.append(b"" if text is None else text.encode("utf-8", "replace"))
            filled += len(kept[-1]) + 1
            if filled >= size:
                yield b"\n".join([*kept, b""])
                kept, filled = [], 0
        if kept:
            yield b"\n".join([*kept, b""])

    def _counts(self, reader: _Native) -> dict[str, Any]:
        counts = reader.summary()
        if self.only is not None:
            for name in ("lines", "blank", "bytes"):
                counts[name] -= self._left_out
        return counts


def _batch(reader: _Native) -> Batch:
    found, timeline = reader.take()
    tables: dict[str, Table] = {}
    tasks = reader.tasks()
    for table in found:
        name = event = str(table["event"])
        if name in tables:
            # The same event in another kernel's wording: other fields, so a table of its own.
            name = f"{name} ({table['wording']})"
        columns = table["columns"]
        names = {
            "task": tasks,
            **{field: said for field, said in _SAID.get(event, {}).items() if field in columns},
        }
        tables[name] = Table(name, columns, names, event=event, wording=str(table["wording"]))
    return Batch(tables, Table("events", timeline, {"task": tasks, "kind": _kind_names()}))


def _kind_names() -> list[str]:
    return cast(list[str], cast(Any, _core).TraceReader.kinds())
