"""Kernel profiles, the policy half: which generation policy, which plan for which event, which checks a kernel has.

The mechanism half (layouts, list rules) is the core's `KernelProfile` of the same name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from kvm_mmu.errors import UsageError
from kvm_mmu.machine.generation import GenerationPolicy, GenerationV50, GenerationV51, GenerationV61
from kvm_mmu.machine.numbers import shown
from kvm_mmu.machine.zap_plan import ZapPlan, plans

EVENTS = ("wrap", "slot_removal", "teardown", "flush_all", "create_move")


@dataclass(frozen=True)
class KernelProfile:
    """One kernel as the machine layer sees it.

    `wrap`, `slot_removal`, `teardown`, `flush_all` are the plans it uses for those events; `create_move` one that it
    runs after a slot was created or moved (v3.10 did; None: nothing).

    `limit_on_resize`: the automatic limit follows only slots created or deleted (v6.1), not every change.
    `walk_on_log_change`: a slot's mappings are walked only when its dirty log goes on or off (v6.1), not after every
    change.
    """

    name: str
    title: str
    generation: type[GenerationPolicy]
    wrap: ZapPlan
    slot_removal: ZapPlan
    teardown: ZapPlan
    flush_all: ZapPlan
    create_move: ZapPlan | None = None
    limit_on_resize: bool = False
    walk_on_log_change: bool = False
    has_probes: bool = False

    @property
    def plans(self) -> dict[str, ZapPlan]:
        """The plan of each event, by name."""
        return {event: getattr(self, event) for event in EVENTS if getattr(self, event) is not None}


def _profile(
    name: str, title: str, generation: type[GenerationPolicy], *, is_v6: bool = False, **chosen: str
) -> KernelProfile:
    picked = {event: plans[plan] for event, plan in chosen.items()}
    return KernelProfile(
        name,
        title,
        generation,
        limit_on_resize=is_v6,
        walk_on_log_change=is_v6,
        has_probes=is_v6,
        **picked,
    )


kernels: dict[str, KernelProfile] = {
    profile.name: profile
    for profile in (
        _profile(
            "v5.0",
            "Linux 5.0 (5.0.1), fast invalidate for everything",
            GenerationV50,
            wrap="v5.0-fast",
            slot_removal="v5.0-fast",
            teardown="v5.0-fast",
            flush_all="v5.0-fast",
        ),
        _profile(
            "v5.0-seed",
            "Linux 5.0 with the seed patch: a dedicated zap of MMIO-caching pages at the wrap",
            GenerationV50,
            wrap="seed",
            slot_removal="v5.0-fast",
            teardown="v5.0-fast",
            flush_all="v5.0-fast",
        ),
        _profile(
            "v5.2",
            "Linux 5.2 (5.2.1): the merged series, slot-only removal, no fast invalidate",
            GenerationV51,
            wrap="merged",
            slot_removal="v5.2-slot",
            teardown="zap-all",
            flush_all="zap-all",
        ),
        _profile(
            "v5.3",
            "Linux 5.3 (5.3.1): the fast invalidate is back for slot removal (from specification)",
            GenerationV51,
            wrap="merged",
            slot_removal="v5.3-fast",
            teardown="zap-all",
            flush_all="zap-all",
        ),
        _profile(
            "v5.4",
            "Linux 5.4 (5.4.18): the fast invalidate for the wrap too, one valid bit (from specification)",
            GenerationV51,
            wrap="v5.4-fast",
            slot_removal="v5.4-fast",
            teardown="zap-all",
            flush_all="zap-all",
        ),
        _profile(
            "v6.1",
            "Linux 6.1 (6.1.192): another SPTE layout, reclaim passes over roots, the level is requested first",
            GenerationV61,
            is_v6=True,
            wrap="v5.4-fast",
            slot_removal="v5.4-fast",
            teardown="zap-all",
            flush_all="zap-all",
        ),
        _profile(
            "v6.12",
            "Linux 6.12 (6.12.117): as 6.1; an empty SPTE has bit 63 set",
            GenerationV61,
            is_v6=True,
            wrap="v5.4-fast",
            slot_removal="v5.4-fast",
            teardown="zap-all",
            flush_all="zap-all",
        ),
    )
}

#: Names that vectors and recordings use for the same kernels.
ALIASES: dict[str, str] = {
    "seed": "v5.0-seed",
    "5.0": "v5.0",
    "5.0.1": "v5.0",
    "v5.0.1": "v5.0",
    "5.2": "v5.2",
    "5.2.1": "v5.2",
    "v5.2.1": "v5.2",
    "5.3": "v5.3",
    "5.3.1": "v5.3",
    "v5.3.1": "v5.3",
    "5.4": "v5.4",
    "5.4.18": "v5.4",
    "v5.4.18": "v5.4",
    "6.1": "v6.1",
    "6.1.192": "v6.1",
    "v6.1.192": "v6.1",
    "6.12": "v6.12",
    "6.12.117": "v6.12",
    "v6.12.117": "v6.12",
}


def kernel_profile(name: str | KernelProfile) -> KernelProfile:
    """The profile of a kernel by name.

    Raises:
        UsageError: the name is none of `kernels`; the message lists them.
    """
    if isinstance(name, KernelProfile):
        return name
    found = kernels.get(ALIASES.get(name, name)) if isinstance(name, str) else None
    if found is None:
        raise UsageError(f"kernel {shown(name)}: expected one of {', '.join(kernels)}")
    return found


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
