"""Kernels as the machine layer sees them: the rows of the core, each with its generation policy and its zap plans.

Owns nothing of a kernel: names, patch levels, plans and facts are read from the core (`_core.kernels`); here stands
only which policy class belongs to a generation layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kvm_mmu import _core
from kvm_mmu.errors import UsageError
from kvm_mmu.machine.generation import (
    GenerationPolicy,
    GenerationV50,
    GenerationV51,
    GenerationV61,
    GenerationV72,
    GenerationV510,
)
from kvm_mmu.machine.numbers import shown
from kvm_mmu.machine.zap_plan import ZapPlan, plans

EVENTS = ("wrap", "slot_removal", "teardown", "flush_all", "create_move")
_POLICIES: dict[str, type[GenerationPolicy]] = {
    "v5.0": GenerationV50,
    "v5.1": GenerationV51,
    "v5.10": GenerationV510,
    "v6.1": GenerationV61,
    "v7.2": GenerationV72,
}


class Facts(Mapping[str, bool | int | str]):
    """The facts of one kernel, by name: `kernel.facts["has_valid_gen"]` or `kernel.facts.has_valid_gen`."""

    def __init__(self, values: Mapping[str, bool | int | str]) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> bool | int | str:
        return self._values[name]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._values:
            raise AttributeError(f"no fact {name!r}")
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(tuple(self._values.items()))

    def __repr__(self) -> str:
        return f"Facts({self._values!r})"


@dataclass(frozen=True)
class Fact:
    """What is known of one rule, whatever its value in a kernel.

    Args:
        name: Its name in `KernelProfile.facts`.
        rule: The rule, a sentence.
        commit: The upstream change that made the difference, or "".
        cve: The CVE it fixed, or "".
        known: How the values are known: vector, recording, source or assumed.
        words: The words it can have; empty for a boolean or a number.
    """

    name: str
    rule: str
    commit: str
    cve: str
    known: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class KernelProfile:
    """One kernel at a patch level.

    Args:
        name: The branch where it is the branch's newest row (`v6.12`), else branch and patch level (`v6.12.0`).
        title: What is special about it, in a line.
        generation: The generation policy it has.
        wrap: The zap plan it uses when the generation wraps.
        slot_removal: The plan for a memslot that is deleted or moved.
        teardown: The plan for the end of the VM.
        flush_all: The plan for everything.
        create_move: A plan that runs after a slot was created or moved (v3.10 did; None: nothing).
        release: The patch level that the row describes.
        tdp_plans: The plans by which it zaps what its TDP MMU maps, by event; empty where it has none.
        facts: Its rules by name; `kvm_mmu.facts` says what each means.
        fault_order: The steps of a page fault of a direct MMU, in its order; it follows from the facts.
    """

    name: str
    title: str
    generation: type[GenerationPolicy]
    wrap: ZapPlan
    slot_removal: ZapPlan
    teardown: ZapPlan
    flush_all: ZapPlan
    create_move: ZapPlan | None = None
    release: str = ""
    tdp_plans: Mapping[str, ZapPlan] = field(default_factory=dict, repr=False, compare=False)
    facts: Facts = field(default_factory=lambda: Facts({}), repr=False)
    fault_order: tuple[str, ...] = field(default=(), repr=False)

    @property
    def plans(self) -> dict[str, ZapPlan]:
        """The plan of each event, by name."""
        return {event: getattr(self, event) for event in EVENTS if getattr(self, event) is not None}


def _profile(row: Mapping[str, Any]) -> KernelProfile:
    facts = Facts(row["facts"])
    return KernelProfile(
        row["name"],
        row["title"],
        _POLICIES[str(facts["generation_layout"])],
        release=row["release"],
        tdp_plans={event: plans[plan] for event, plan in row["tdp_plans"].items() if plan},
        facts=facts,
        fault_order=tuple(row["fault_order"]),
        **{event: plans[plan] for event, plan in row["plans"].items()},
    )


class Kernels(Mapping[str, KernelProfile]):
    """Every kernel by name, oldest first.

    A release of a known branch (`6.12.94`) gives the row that is not newer; `v6.12:stale_test=before_reclaim` a row of
    which single facts were changed.
    """

    def __init__(self) -> None:
        self._rows = {row["name"]: _profile(row) for row in _core.kernels()}

    def __getitem__(self, name: str) -> KernelProfile:
        if not isinstance(name, str):
            raise KeyError(name)
        try:
            if name in self._rows:
                return self._rows[name]
            text = _core.resolve_kernel(name)[0]
            return self._rows[text] if text in self._rows else _profile(_core.kernel_row(text))
        except UsageError:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"<Kernels {', '.join(self._rows)}>"


#: Every kernel by name, oldest first.
kernels: Kernels = Kernels()
#: Every fact by name, in the order of the documentation.
facts: dict[str, Fact] = {
    fact["name"]: Fact(**{**fact, "words": tuple(fact["words"])}) for fact in _core.facts()
}


def assumed(name: str) -> str:
    """Say what was assumed when this name was read as a row.

    Args:
        name: a row or a release.

    Returns:
        A sentence; "" where the name is that of a row.

    Raises:
        UsageError: no row is of its branch.
    """
    return _core.resolve_kernel(name)[1]


def kernel_profile(name: str | KernelProfile) -> KernelProfile:
    """Find a kernel by the name of its row or by a release of its branch; `ROW:fact=value` changes facts of it.

    Args:
        name: `v6.12`, `6.12.94`, `v6.12:stale_test=before_reclaim:child_reuse=any`; a profile is given back.

    Returns:
        The profile.

    Raises:
        UsageError: No row is of its branch, the message lists them; or no such fact, or none of its values.
    """
    if isinstance(name, KernelProfile):
        return name
    if isinstance(name, str) and ":" in name and kernels.get(name.partition(":")[0]) is not None:
        return _profile(_core.kernel_row(name))
    found = kernels.get(name) if isinstance(name, str) else None
    if found is None:
        raise UsageError(
            f"kernel {shown(name)}: expected one of {', '.join(kernels)}, or a release of their branches"
        )
    return found


def difference(
    a: str | KernelProfile, b: str | KernelProfile
) -> dict[str, tuple[bool | int | str, bool | int | str]]:
    """List the facts that differ between two kernels, with both values.

    Args:
        a: a row, a release or a profile.
        b: another.

    Returns:
        Fact to its values in both.

    Raises:
        UsageError: a kernel is not known.
    """
    first, second = kernel_profile(a), kernel_profile(b)
    return {
        name: (first.facts[name], second.facts[name])
        for name in facts
        if first.facts[name] != second.facts[name]
    }


def with_plans(
    profile: KernelProfile, chosen: Mapping[str, ZapPlan | str | Mapping[str, object]]
) -> KernelProfile:
    """The profile with the plan of some events replaced (keys: `EVENTS`)."""
    if not isinstance(chosen, Mapping):
        raise UsageError(f"plans={shown(chosen)}: expected a dict of event to plan")
    fixed: dict[str, ZapPlan] = {}
    for event, plan in chosen.items():
        if event not in EVENTS:
            raise UsageError(f"plan for event {shown(event)}: expected one of {', '.join(EVENTS)}")
        fixed[event] = as_plan(plan)
    return replace(profile, **fixed)  # type: ignore[arg-type]


def as_plan(plan: ZapPlan | str | Mapping[str, object]) -> ZapPlan:
    """A plan from a plan, its name or text, or a dict."""
    if isinstance(plan, ZapPlan):
        return plan
    if isinstance(plan, str):
        return ZapPlan.parse(plan)
    if not isinstance(plan, Mapping) or not plan:
        raise UsageError(
            f"zap plan {shown(plan)}: expected a ZapPlan, a name, walk=..,only=.., or a dict of its words"
        )
    return ZapPlan.from_dict(dict(plan))
