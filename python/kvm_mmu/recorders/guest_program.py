"""What the 6.x recorder's guest does, instruction by instruction, as far as the lines of a recording show it.

Owns: the commands of a run, how far it has come, and which instruction a line of the recording belongs to. The guest
runs on silently between two lines: it has come to the instruction that the line is about, and behind it nothing is
known. What an instruction does is the recorder's to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from kvm_mmu.errors import TraceError
from kvm_mmu.trace.text.markers import Operation, number

_ADDRESS_MASK = (1 << 64) - 1
#: Iterations of one command; the recorder's largest have some ten thousand.
_COUNT_MAX = 1 << 24
#: Operations of the guest that are one command each: name -> what it does.
COMMANDS = {
    "guest_read": "read",
    "guest_write": "write",
    "guest_exec": "exec",
    "guest_invlpg": "invlpg",
    "guest_mov_cr": "cr",
    "guest_rep_stos": "write",
    "guest_rep_movs": "copy",
    "guest_xchg": "write",
    "guest_lock_or": "or",
}
_STORES = frozenset({"write", "copy", "or"})
#: What leaves nothing behind.
_SILENT = frozenset({"read", "exec"})


class Step(NamedTuple):
    """One access: what it is, its address, its size, the value it stores (`copy`: the address it reads)."""

    kind: str
    gva: int
    size: int
    value: int


@dataclass(frozen=True)
class Command:
    """A loop of accesses; `halves`: how many stores each takes, the higher half first."""

    kind: str
    gva: int
    stride: int
    count: int
    value: int
    increment: int
    size: int
    halves: int
    source: int = 0

    @property
    def steps(self) -> int:
        """How many accesses there are."""
        return self.count * self.halves

    def step(self, at: int) -> Step:
        """One access of the loop."""
        turn, half = divmod(at, self.halves)
        gva = self.gva + turn * self.stride & _ADDRESS_MASK
        if self.kind == "copy":
            return Step(self.kind, gva, self.size, self.source + turn * self.stride & _ADDRESS_MASK)
        value = self.value + turn * self.increment & _ADDRESS_MASK
        if self.halves == 1:
            return Step(self.kind, gva, self.size, value & (1 << 8 * self.size) - 1)
        is_high = half == 0
        return Step(self.kind, gva + (4 if is_high else 0), 4, value >> 32 if is_high else value & 0xFFFFFFFF)

    def find(self, address: int, first: int, kinds: frozenset[str]) -> int | None:
        """The first access from `first` on that touches an address; None: there is none."""
        if self.kind not in kinds:
            return None
        found = [
            at
            for base, half in self._bases()
            if (at := self._at(address, base, half, first)) is not None and first <= at < self.steps
        ]
        return min(found, default=None)

    def _bases(self) -> Iterator[tuple[int, int]]:
        if self.halves == 2:
            yield self.gva + 4, 0
            yield self.gva, 1
            return
        yield self.gva, 0
        if self.kind == "copy":
            yield self.source, 0

    def _at(self, address: int, base: int, half: int, first: int) -> int | None:
        distance = address - base & _ADDRESS_MASK
        if self.stride and self.count > 1:
            turn, rest = divmod(distance, self.stride)
            return None if rest else turn * self.halves + half
        if distance:
            return None
        turn = max(0, -((half - first) // self.halves))
        return turn * self.halves + half


def command_of(op: Operation, name: str, mode: str, where: str) -> Command | None:
    """The command of an operation of the guest; None: it is none."""
    kind = COMMANDS.get(name)
    if kind is None:
        return None
    is_long = mode in ("long", "long5")
    word = 8 if is_long else 4
    if kind == "cr":
        return Command(kind, number(op, "cr", where), 0, 1, number(op, "value", where), 0, 8, 1)
    if name in ("guest_rep_stos", "guest_rep_movs"):
        size = number(op, "wordsize", where, word)
        count = _count(op, "words", where)
        if kind == "copy":
            source, target = number(op, "src", where), number(op, "dst", where)
            return Command(kind, target, size, count, 0, 0, size, 1, source)
        return Command(kind, number(op, "gva", where), size, count, number(op, "value", where), 0, size, 1)
    size = number(op, "size", where, word)
    halves = 2 if kind == "write" and size == 8 and not is_long else 1
    stride = number(op, "stride", where, 0)
    value, increment = number(op, "value", where, 0), number(op, "inc", where, 0)
    return Command(
        kind, number(op, "gva", where), stride, _count(op, "count", where), value, increment, size, halves
    )


def _count(op: Operation, key: str, where: str) -> int:
    count = number(op, key, where, 1)
    if count > _COUNT_MAX:
        raise TraceError(f"{where}: {count} accesses in one command: more than any recording has")
    return max(count, 1)


class GuestProgram:
    """The commands of the guest; `execute(step)` is called for each that is over."""

    def __init__(self, execute: Callable[[Step], None]):
        self._execute = execute
        self._commands: list[Command] = []
        #: Commands that the run has, those behind them wait for the next one.
        self._limit = 0
        self._command = self._step = 0

    def add(self, command: Command) -> None:
        """A command for the next run."""
        self._commands.append(command)

    def start(self, commands: int) -> None:
        """A run of so many commands begins."""
        self._command = self._step = 0
        self._limit = min(commands, len(self._commands))

    def finish(self) -> None:
        """The run is over: everything left of it was done."""
        self._run_to(self._limit, 0)
        del self._commands[: self._limit]
        self._limit = self._command = self._step = 0

    @property
    def next_command(self) -> int:
        """The number of the command that is running."""
        return self._command

    def go_to_command(self, at: int) -> None:
        """The guest reads a command: those before it are over."""
        if self._command < at <= self._limit:
            self._run_to(at, 0)

    def go_to_access(self, address: int, kinds: frozenset[str]) -> bool:
        """The guest is at an access to this address; what comes before it is over. False: there is none."""
        for at in range(self._command, self._limit):
            first = self._step if at == self._command else 0
            found = self._commands[at].find(address, first, kinds)
            if found is not None:
                self._run_to(at, found)
                return True
        return False

    def go_to_register(self, wanted: Callable[[int, int], bool]) -> Step | None:
        """The guest is at the next write to a control register that is wanted, and it is over."""
        for at in range(self._command, self._limit):
            command = self._commands[at]
            if command.kind == "cr" and wanted(command.gva, command.value):
                self._run_to(at, 0)
                self._command, self._step = at + 1, 0
                return command.step(0)
        return None

    def take_store(self, is_it: Callable[[Step], bool]) -> Step | None:
        """The store that somebody else made, the next that is it; it is over, and is not executed."""
        for at in range(self._command, self._limit):
            command = self._commands[at]
            if command.kind not in _STORES:
                continue
            first = self._step if at == self._command else 0
            for step in range(first, command.steps):
                if is_it(command.step(step)):
                    self._run_to(at, step)
                    self.skip()
                    return command.step(step)
        return None

    def skip(self) -> None:
        """The access that the guest is at is over, without being executed."""
        if self._command < self._limit:
            self._step += 1
            if self._step >= self._commands[self._command].steps:
                self._command, self._step = self._command + 1, 0

    def _run_to(self, command: int, step: int) -> None:
        while (self._command, self._step) < (command, step):
            current = self._commands[self._command]
            if current.kind in _SILENT:
                is_last = self._command == command
                self._command, self._step = (command, step) if is_last else (self._command + 1, 0)
                continue
            self._execute(current.step(self._step))
            self.skip()
