"""A part of a trace: events of a span of time, of some CPUs, of one VM's process.

Owns: what `--from`, `--to`, `--cpu` and `--vm` mean, and how they are written. An event is inside or not by its own
line; comments belong to what they stand in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kvm_mmu.errors import UsageError
from kvm_mmu.machine.numbers import shown
from kvm_mmu.trace.text.line import Line, nanoseconds, parse_line, process_of

_SECONDS = re.compile(r"\d{1,12}(?:\.\d{1,9})?$")
_NUMBERS = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?$")
_PID = re.compile(r"-(\d{1,10})(?:\s|$)")
_RANGE_MAX = 1 << 16
#: Processes that a sentence lists.
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Window:
    """Which events of a trace count.

    Args:
        from_ns: No earlier ones, nanoseconds of trace time.
        to_ns: No later ones, nanoseconds of trace time.
        cpus: Only those of these CPUs.
        vms: Only those of these processes; where the trace does not say a task's process, of these tasks.
    """

    from_ns: int = 0
    to_ns: int | None = None
    cpus: frozenset[int] | None = None
    vms: frozenset[int] | None = None

    @classmethod
    def of(
        cls,
        start: str | float | None = None,
        end: str | float | None = None,
        cpu: str | None = None,
        vm: str | None = None,
    ) -> Window | None:
        """Returns the window of these options, None where none is given.

        Args:
            start: Seconds of trace time.
            end: Seconds of trace time.
            cpu: Numbers and ranges, such as `0,2-3`.
            vm: Process ids, such as `4321`.

        Raises:
            UsageError: one of them is not of that form, or the time ends before it begins.
        """
        if start is None and end is None and cpu is None and vm is None:
            return None
        from_ns = 0 if start is None else _time("--from", start)
        to_ns = None if end is None else _time("--to", end)
        if to_ns is not None and to_ns < from_ns:
            raise UsageError(f"--to {end}: is before --from {start}")
        return cls(from_ns, to_ns, _numbers("--cpu", cpu), _numbers("--vm", vm))

    def has(self, line: Line) -> bool:
        """Returns true if the event of this line is inside.

        Args:
            line: The parsed line.
        """
        if self.cpus is not None and line.cpu not in self.cpus:
            return False
        if self.vms is not None and not self.vms & _processes(line.task):
            return False
        if self.to_ns is None and not self.from_ns:
            return True
        time = nanoseconds(line.timestamp)
        return time >= self.from_ns and (self.to_ns is None or time <= self.to_ns)

    def as_numbers(self) -> tuple[int, int | None, list[int] | None, list[int] | None]:
        """Returns the window as the core takes it: first and last nanosecond, CPUs, processes."""
        cpus = None if self.cpus is None else sorted(self.cpus)
        return self.from_ns, self.to_ns, cpus, None if self.vms is None else sorted(self.vms)

    def lines(self, lines: Iterable[str]) -> Iterator[str | None]:
        """Yields every line of a text that is inside, None in place of each other one, so that numbers of lines stay.

        Args:
            lines: The whole text.
        """
        is_inside = self.from_ns == 0
        for text in lines:
            line = parse_line(text)
            if line is not None:
                is_inside = self.has(line)
            yield text if is_inside or text.startswith("#") else None

    def __str__(self) -> str:
        said = []
        if self.from_ns:
            said.append(f"from {self.from_ns / 1e9:.6f} s")
        if self.to_ns is not None:
            said.append(f"to {self.to_ns / 1e9:.6f} s")
        if self.cpus is not None:
            said.append(f"of CPU {', '.join(map(str, sorted(self.cpus)))}")
        if self.vms is not None:
            said.append(f"of process {', '.join(map(str, sorted(self.vms)))}")
        return "only events " + " ".join(said)


class Processes:
    """The processes of a trace whose window asks for some of them; owns which of these the trace does not have.

    Args:
        only: The window.
    """

    def __init__(self, only: Window | None) -> None:
        self._asked = None if only is None else only.vms
        self._seen: dict[int, str] = {}

    def see(self, tasks: Iterable[str]) -> None:
        """Take in tasks of the trace.

        Args:
            tasks: Their names, in the order of the text.
        """
        for task in tasks if self._asked is not None else ():
            for process in _processes(task):
                self._seen.setdefault(process, task)

    def absent(self) -> list[str]:
        """Returns a sentence if processes were asked for that have no event in the trace."""
        missing = sorted((self._asked or frozenset()) - self._seen.keys())
        if not missing:
            return []
        known = [f"{process} ({task.strip()})" for process, task in sorted(self._seen.items())]
        more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
        has = f"it has those of {', '.join(known[:_SHOWN])}{more}" if known else "it has those of no process"
        return [f"--vm {', '.join(map(str, missing))}: no event of such a process in the trace; {has}"]


def _processes(task: str) -> frozenset[int]:
    process = process_of(task)
    if process:
        return frozenset({int(process)})
    found = _PID.findall(task)  # the last: a name may have such an end in it
    return frozenset({int(found[-1])}) if found else frozenset()


def _time(option: str, text: str | float) -> int:
    text = f"{text:.9f}" if isinstance(text, float) else str(text)
    if _SECONDS.match(text) is None:
        raise UsageError(f"{option} {shown(text)}: expected seconds of trace time, such as 74.25")
    return nanoseconds(text)


def _numbers(option: str, text: str | None) -> frozenset[int] | None:
    if text is None:
        return None
    numbers: set[int] = set()
    for part in str(text).split(","):
        found = _NUMBERS.match(part.strip())
        first, last = (0, -1) if found is None else (int(found[1]), int(found[2] or found[1]))
        if last < first or last - first > _RANGE_MAX:
            raise UsageError(f"{option} {shown(text)}: expected numbers and ranges, such as 0,2-3")
        numbers.update(range(first, last + 1))
    return frozenset(numbers)
