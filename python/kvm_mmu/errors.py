"""Every exception of the package, under one root; those about a bad value are also `ValueError`."""

from __future__ import annotations

import errno as _errno
import os

from kvm_mmu.terminal import escaped


class KvmMmuError(Exception):
    """Root of all exceptions raised by `kvm_mmu`. Control characters in what it says are shown, not passed on."""

    def __str__(self) -> str:
        return escaped(super().__str__())


class UsageError(KvmMmuError, ValueError):
    """An argument is outside what the model accepts; the message names it and what was expected.

    `where` is the line of a BUG and its condition, where the modelled kernel stops.
    """

    where: str | None = None


class ScenarioError(KvmMmuError, ValueError):
    """A scenario, snapshot or value stream cannot be read; the message names file and line.

    `where` is the line of a BUG and its condition, where the modelled kernel stops.
    """

    where: str | None = None


class TraceError(KvmMmuError, ValueError):
    """A trace cannot be read or replayed; the message names file and line."""


class SnapshotError(KvmMmuError, ValueError):
    """Bytes that are not a snapshot of this package, or a damaged or foreign one."""


class StaleNextError(KvmMmuError, RuntimeError):
    """The next page of a list walk has left the active list while the walk was paused on its neighbour."""


class RunStateError(KvmMmuError, RuntimeError):
    """A run or batch is used after its end, or something is asked that only a finished run can answer."""


class MemslotError(KvmMmuError, OSError):
    """A refused memslot operation, with the kernel's errno and a sentence that says why."""

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(code, f"{sentence} ({_errno.errorcode.get(code, code)}: {os.strerror(code)})")


class LiveError(KvmMmuError, RuntimeError):
    """A kernel's memory cannot be read as expected; the message names the place and what was expected there."""
