"""A search of the core out of a world and a kernel: the VM, operations as numbers, the generation ring cut small."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kvm_mmu import _core
from kvm_mmu.check.worlds import Operation, World
from kvm_mmu.errors import UsageError
from kvm_mmu.machine.generation import (
    GenerationField,
    GenerationLayout,
    GenerationPolicy,
    GenerationV50,
    GenerationV51,
)
from kvm_mmu.machine.numbers import shown
from kvm_mmu.machine.profiles import kernel_profile
from kvm_mmu.machine.zap_plan import ZapPlan
from kvm_mmu.scenario.machine_engine import MachineEngine

#: Updates of a policy that is known by its functions only.
TABLE = 96
#: Events whose plan a world exercises.
EVENTS = ("wrap", "slot_removal", "teardown", "flush_all")


@dataclass(frozen=True)
class Subject:
    """Who is judged.

    Args:
        kernel: a row, with changed facts behind colons if any.
        plan: a plan for `event`; None: the row's.
        event: wrap, slot_removal, teardown or flush_all; None: every one that the plan can serve.
        policy: a generation policy; None: the row's.
    """

    kernel: str
    plan: ZapPlan | None = None
    event: str | None = None
    policy: type[GenerationPolicy] | None = None


def load_policy(name: str) -> type[GenerationPolicy]:
    """Find a generation policy.

    Args:
        name: `module:Class`.

    Returns:
        The class.

    Raises:
        UsageError: there is none.
    """
    module, _, cls = name.partition(":")
    # A console script does not look for modules where the user stands.
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), cls)
    except (Exception, SystemExit) as error:
        raise UsageError(f"policy {shown(name)}: {type(error).__name__}: {error}") from None
    finally:
        sys.path.pop(0)
    if not (isinstance(found, type) and issubclass(found, GenerationPolicy)):
        raise UsageError(f"policy {shown(name)}: expected a subclass of kvm_mmu.GenerationPolicy")
    return found


def scaled(policy: type[GenerationPolicy], bits: int) -> tuple[GenerationPolicy, int]:
    """The policy on a ring of few bits, and how many it has.

    A policy whose generations are odd while in flight keeps one bit more, which it does not store.
    """
    layout = policy.layout
    odd = layout.in_progress & 1
    bits = min(bits + odd, layout.width)
    fields = (GenerationField(odd, bits - odd, 3),)
    small = GenerationLayout(bits, layout.in_progress, layout.refuse_in_progress, fields)
    start: Callable[[int], int] = (lambda i: 2 + 2 * i) if odd else (lambda i: i)
    cls: type[GenerationPolicy] = type(policy.__name__, (policy,), {"layout": small})
    made = cls(start)
    made.layout = small  # also where a policy makes its own when it is made
    return made, bits


def _rule(policy: GenerationPolicy) -> dict[str, Any]:
    """The policy as the core steps it: a sum where it is one of the kernels', else a table of its first updates."""
    cls = type(policy)
    kept = (1 << policy.layout.width) - 1
    order: list[str] = []
    policy.conclude(0, lambda _: order.append("publish"), lambda _: order.append("check"))
    common = {"is_checked_first": order[:1] == ["check"], "table": []}
    for base, wrap_mask, added in ((GenerationV50, kept, True), (GenerationV51, kept & ~1, False)):
        same = all(getattr(cls, name) is getattr(base, name) for name in ("begin", "next", "is_wrap"))
        if same:
            start = policy.initial(0)
            step = policy.next(policy.begin(start)) - start
            mark = policy.layout.in_progress
            return {**common, "mark": mark, "is_mark_added": added, "step": step, "wrap_mask": wrap_mask}
    table: list[tuple[int, int, int, bool]] = []
    for as_id in range(2):
        generation = policy.initial(as_id)
        for _ in range(TABLE):
            in_flight = policy.begin(generation)
            after = policy.next(in_flight)
            table.append((generation, in_flight, after, bool(policy.is_wrap(after))))
            generation = after
    return {**common, "mark": 0, "is_mark_added": False, "step": 0, "wrap_mask": 0, "table": table}


def plans_of(subject: Subject) -> dict[str, ZapPlan]:
    """The plan of each event, with a batch of one page wherever a plan counts pages before it offers the lock."""
    profile = kernel_profile(subject.kernel)
    plans = {event: getattr(profile, event) for event in EVENTS}
    if subject.plan is not None:
        needs_slot = subject.plan.needs_slot
        events = [subject.event] if subject.event else ["slot_removal"] if needs_slot else list(EVENTS)
        for event in events:
            if event not in EVENTS:
                raise UsageError(f"--at {shown(event)}: expected one of {', '.join(EVENTS)}")
            if needs_slot and event != "slot_removal":
                raise UsageError(
                    f"--at {event}: the plan {subject.plan} is for a slot, and there is none then"
                )
            plans[event] = subject.plan
    elif subject.event is not None:
        raise UsageError("--at EVENT: give the plan, too: --plan P")
    return {
        event: replace(plan, offer="batch:1", name="") if plan.offer.startswith("batch") else plan
        for event, plan in plans.items()
    }


def _numbers(op: Operation) -> tuple[str, list[int], str]:
    """An operation as the core's search takes it."""
    name = str(op["op"])

    def value(key: str) -> int:
        return int(str(op.get(key, 0)), 0)

    if name == "access":
        return name, [value("vcpu"), value("gpa")], str(op.get("kind", "r"))
    if name == "vaccess":
        return name, [value("vcpu"), value("gva"), value("user")], str(op.get("kind", "r"))
    if name == "set_memslot":
        if not value("size"):
            return "delete", [value("as"), value("id")], ""
        return (
            name,
            [value("as"), value("id"), value("gpa") >> 12, value("size") >> 12, value("hva"), value("flags")],
            "",
        )
    keys = {
        "poke": ("vcpu", "gpa", "val"),
        "gwrite": ("vcpu", "gva", "gpa", "val"),
        "emul_write": ("vcpu", "gpa", "val"),
        "invlpg": ("vcpu", "gva"),
        "set_cr3": ("vcpu", "cr3"),
        "sync_roots": ("vcpu",),
        "init": ("vcpu",),
        "set_regs": ("vcpu", "cr0", "cr4", "efer"),
        "unmap_hva": ("start", "end"),
        "age_hva": ("start", "end"),
        "change_pte": ("hva", "pfn", "write"),
        "host_state": ("hva", "npages"),
        "host_huge": ("hva", "npages"),
        "get_dirty_log": ("as", "id"),
        "clear_dirty_log": ("as", "id"),
        "track": ("as", "gfn", "on"),
        "smm": ("vcpu", "on"),
        "unload": ("vcpu",),
        "enter": ("vcpu",),
        "zap_all": (),
        "set_nx": ("on",),
        "nx_recover": (),
        "shrink": ("n",),
        "set_max_raw": ("n",),
        "set_nr_mmu_pages": ("n",),
    }
    if name not in keys:
        raise UsageError(f"operation {shown(name)}: not one that a world can have")
    return name, [value(key) for key in keys[name]], str(op.get("state", op.get("kind", "")))


@dataclass(frozen=True)
class Prepared:
    """A search that can begin, and what its numbers mean."""

    search: _core.Search
    world: World
    subject: Subject
    config: Mapping[str, Any]
    plans: Mapping[str, ZapPlan]
    policy: GenerationPolicy
    bits: int
    actions: tuple[Operation, ...]
    constants: Mapping[str, Any]


def fits(world: World, kernel: str, plan: ZapPlan | None = None) -> bool:
    """Whether a kernel can have this world, and its page table the plan."""
    if plan is not None and plan.is_of_roots != world.is_tdp:
        return False
    facts = kernel_profile(kernel).facts
    needs = {"has_tdp_mmu": world.is_tdp, "has_guest_tables": world.is_shadowed}
    return all(bool(facts[fact]) for fact, is_needed in needs.items() if is_needed)


def prepare(subject: Subject, world: World) -> Prepared:
    """Make the search of a world under a kernel.

    Raises:
        UsageError: the kernel cannot have the world, or an operation is none.
    """
    profile = kernel_profile(subject.kernel)
    facts = profile.facts
    if not fits(world, subject.kernel):
        what = "TDP MMU" if world.is_tdp else "guest tables that are shadowed"
        raise UsageError(f"world {world.name}: {profile.name} has no {what}")
    if subject.plan is not None and subject.plan.is_of_roots != world.is_tdp:
        other = "the TDP MMU" if subject.plan.is_of_roots else "shadow pages"
        raise UsageError(f"world {world.name}: the plan {subject.plan} is one of {other}, which it has not")
    wanted = subject.policy or profile.generation
    policy, bits = scaled(wanted, world.bits)
    plans = plans_of(subject)
    config = {"family": "npt", "gfn_hash": "wide", "tdp_mmu": 0, **world.config}
    engine = MachineEngine(subject.kernel, config, dict(plans), generation=policy)
    for op in world.start:
        engine.do(op)
    actions = tuple(
        op
        for op in world.actions
        if not (op["op"] in ("set_nx", "nx_recover") and not facts["has_nx_huge_pages"])
        and not (op["op"] == "change_pte" and not facts["has_change_pte"])
        and not (op["op"] == "shrink" and not facts["has_shrinker"])
    )
    vm = engine.vm
    search = _core.Search(
        vm.core,
        [_numbers(op) for op in actions],
        **_rule(policy),
        has_windows=world.windows,
        polls=world.polls,
        inside=world.inside,
        nesting=world.nesting,
        has_accessed=world.accessed,
        splits_eagerly=vm.splits_eagerly and bool(facts["has_eager_split"]),
        is_pml=vm.pml,
    )
    constants = {
        "generation_bits": bits,
        "batch": 1,
        "polls": world.polls,
        "nesting": world.nesting,
        "inside": world.inside,
    }
    return Prepared(search, world, subject, config, plans, policy, bits, actions, constants)
