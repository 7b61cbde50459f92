"""What the replay knows of a recorder: how it finds out what must be known beforehand, and how it drives a model.

Owns the interface and the list of recorders; the packages of `kvm_mmu.trace.RECORDERS` put theirs there. The replay
knows no marker, no probe and no guest program of any of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from kvm_mmu.trace import RECORDERS
from kvm_mmu.trace.replay.engine import EngineFactory
from kvm_mmu.trace.replay.narrator import Prediction
from kvm_mmu.trace.text.host import HostFacts


@dataclass
class Survey:
    """What the first pass over a recording found.

    Attributes:
        vcpus: how many vCPUs the busiest VM gets.
        events: names of the input events that occur.
        tasks: which task is which vCPU, where no operation chooses one.
    """

    vcpus: int
    events: frozenset[str] = frozenset()
    tasks: dict[str, int] = field(default_factory=dict)


@dataclass
class Session:
    """What a recorder is given for the second pass.

    Attributes:
        factory: makes the engine of a VM.
        kernel: the row the recording is replayed under.
        host: facts of the recording's host; the recorder notes what it inferred.
        name: the trace, for errors.
        predict: takes each output that the model predicts.
        note: takes a sentence for the report.
    """

    factory: EngineFactory
    kernel: str
    host: HostFacts
    name: str
    predict: Callable[[Prediction], None]
    note: Callable[[str], None]


class Recorder(Protocol):
    """One way in which recordings were made."""

    #: What stands at the beginning of its markers, and the kernels it was made for, in words.
    mark: str
    made_on: str

    def fits(self, kernel: str) -> bool:
        """Say whether recordings of this kernel are its own."""

    def survey(self, lines: Iterable[str], name: str) -> Survey | None:
        """Read the inputs once; None where there is none."""

    def drive(self, survey: Survey, lines: Iterable[str], session: Session) -> Mapping[str, int]:
        """Feed the inputs to a model; returns the operations without an effect on it.

        Raises:
            Unreplayable: the facts of the host rule a replay out.
            TraceError: a line cannot be replayed.
        """


class Unreplayable(Exception):
    """What a recorder says of a recording that it cannot drive at all, for the facts of the host."""


_recorders: list[Recorder] = []


def register(recorder: Recorder) -> None:
    """Put a recorder on the list."""
    _recorders.append(recorder)


def _listed() -> list[Recorder]:
    for package in RECORDERS:
        importlib.import_module(package)
    return _recorders


def recorder_of(kernel: str) -> Recorder:
    """Find the recorder whose recordings of this kernel are.

    Raises:
        LookupError: no recorder on the list is for it.
    """
    for recorder in _listed():
        if recorder.fits(kernel):
            return recorder
    raise LookupError(f"no recorder for kernel {kernel}")


def others(recorder: Recorder) -> list[Recorder]:
    """List the recorders besides this one."""
    return [known for known in _listed() if known is not recorder]
