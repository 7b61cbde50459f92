"""The scenarios that show the facts of the kernels: a file a fact, which runs otherwise with only that fact changed.

Owns the folder `data/scenarios/facts`, what its headers say, and why some facts have no file. A header names under
`pairs` a kernel and another value of the fact: the file under `v6.12` and under `v6.12:stale_test=before_reclaim` gives
two results, and nothing but the fact makes the difference. Stands on the scenario language; `kvm-mmu kernels diff` and
`kvm-mmu scenario sample --fact` read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvm_mmu.errors import UsageError
from kvm_mmu.machine.numbers import shown
from kvm_mmu.machine.profiles import facts, kernel_profile
from kvm_mmu.scenario.language import SAMPLE
from kvm_mmu.scenario.scenario_text import read_object

FOLDER = SAMPLE.parent / "facts"
#: Facts without a file, and why.
NOT_SHOWN: dict[str, str] = {
    "has_requested_event": "recordings only: which tracepoints the text of a recording has; the model's events are of "
    "one form",
    "zap_spares_rooted_child": "nested guests: only their tables are a root and the child of another table at once, "
    "and the language has no nested guests",
    "has_tdp_mmu": "the TDP MMU: `tdp_mmu` of a VM says which of the two page tables serves a guest",
}


@dataclass(frozen=True)
class FactScenario:
    """A scenario that shows a fact.

    Args:
        fact: the fact.
        path: its file.
        shows: what differs, a clause.
        pairs: kernels, each with another value of the fact under which the file gives another result.
    """

    fact: str
    path: Path
    shows: str
    pairs: tuple[tuple[str, str], ...]

    def kernels(self, a: str = "", b: str = "", near: tuple[str, ...] = ()) -> tuple[str, str]:
        """The two kernels to run it under, which differ in nothing but the fact.

        Args:
            a: one of two values that should be told apart; "": any.
            b: the other one.
            near: rows that it should be one of, if there is a choice.

        Returns:
            A kernel, and the same with the other value; the first pair where none has these two values.
        """
        fit = [pair for pair in self.pairs if {a, b} == {pair[1], _value(pair[0], self.fact)}]
        kernel, other = next((pair for pair in fit if pair[0] in near), (fit or self.pairs)[0])
        return kernel, f"{kernel}:{self.fact}={other}"


def value_text(value: bool | int | str) -> str:
    """Write the value of a fact as `ROW:fact=value` takes it.

    Args:
        value: the value.

    Returns:
        `yes`, `no`, a number or a word.
    """
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _value(kernel: str, fact: str) -> str:
    return value_text(kernel_profile(kernel).facts[fact])


def fact_scenario(fact: str) -> FactScenario | None:
    """Find the scenario of a fact.

    Args:
        fact: its name.

    Returns:
        The scenario; None where there is no file, `reason` says why.

    Raises:
        UsageError: there is no such fact.
    """
    if fact not in facts:
        raise UsageError(f"fact {shown(fact)}: expected one that `kvm-mmu kernels show v6.12` lists")
    path = FOLDER / f"{fact}.jsonl"
    if not path.exists():
        return None
    with path.open(encoding="utf-8") as stream:
        header: dict[str, Any] = read_object(stream.readline(), f"{path.name}:1")
    pairs = tuple((str(kernel), str(other)) for kernel, other in header["pairs"])
    return FactScenario(fact, path, str(header["shows"]), pairs)


def reason(fact: str) -> str:
    """Say why a fact has no scenario.

    Args:
        fact: its name.

    Returns:
        A clause; "" where it has one.
    """
    if (FOLDER / f"{fact}.jsonl").exists():
        return ""
    return NOT_SHOWN.get(fact, "")
