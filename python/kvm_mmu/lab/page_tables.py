"""The two page tables that a comparison runs plans on, shadow pages and the TDP MMU: which plan zaps which.

A plan that walks roots is of the TDP MMU, every other one of shadow pages: neither does anything to the other.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvm_mmu.lab import forced_event
from kvm_mmu.lab.forced_event import Plan
from kvm_mmu.machine.profiles import KernelProfile
from kvm_mmu.machine.vm import Vm
from kvm_mmu.machine.zap_plan import ZapPlan

#: What each is called in a sentence.
WORDS = {"shadow": "shadow pages", "tdp": "the TDP MMU"}
#: The kernel of an input that names none, until that is refused.
NEEDED = "v5.0"
#: Whose plan an event is, of the machine's events.
OWN = {"end": "wrap", "wrap": "wrap", "slot-removal": "slot_removal", "teardown": "teardown"}


def name_of(vm: Vm) -> str:
    """Name the page table of a VM.

    Args:
        vm: the VM.

    Returns:
        `tdp` or `shadow`.
    """
    return "tdp" if vm.tdp_mmu else "shadow"


def own_plan(profile: KernelProfile, at: str, family: str) -> ZapPlan:
    """Find the plan of a kernel for an event, on the page table that it serves guests with.

    Args:
        profile: the kernel.
        at: the event; for `end` the plan of the wrap.
        family: the paging family; without two-dimensional paging there is no TDP MMU.

    Returns:
        The plan.
    """
    own = profile.tdp_plans if family != "shadow" else {}
    found: ZapPlan = own.get(OWN[at]) or getattr(profile, OWN[at])
    return found


def plans_by_mmu(
    chosen: Sequence[Plan] | None, profile: KernelProfile, at: str, family: str
) -> list[tuple[str, list[Plan]]]:
    """Part plans by the page table that they zap, shadow pages first.

    Args:
        chosen: the plans; None: the kernel's own for the event.
        profile: the kernel.
        at: the event.
        family: the paging family.

    Returns:
        Each page table that has plans, and these.
    """
    several: Sequence[Plan] = [own_plan(profile, at, family)] if chosen is None else chosen
    found: dict[str, list[Plan]] = {"shadow": [], "tdp": []}
    for plan in several:
        found["tdp" if isinstance(plan, ZapPlan) and plan.is_of_roots else "shadow"].append(plan)
    return [(mmu, mine) for mmu, mine in found.items() if mine]


def why_not(mmu: str, profile: KernelProfile, family: str) -> str:
    """Say why a kernel has not this page table.

    Args:
        mmu: `shadow` or `tdp`.
        profile: the kernel.
        family: the paging family.

    Returns:
        The reason; "" where it has it.
    """
    if mmu == "shadow":
        return ""
    if not profile.facts["has_tdp_mmu"]:
        return "no TDP MMU"
    return "no TDP MMU without two-dimensional paging" if family == "shadow" else ""


def left_out(plans: Sequence[Plan], where: Sequence[str], why: str) -> str:
    """Say which plans are not run.

    Args:
        plans: those.
        where: kernels or inputs.
        why: the reason.

    Returns:
        A sentence.
    """
    names = ", ".join(forced_event.plan_name(plan) for plan in plans)
    return f"{names} not run on {', '.join(where)}: {why}"
