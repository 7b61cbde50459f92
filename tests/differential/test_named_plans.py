"""The named plans are the same in machine, core and reference, and slot plans do the same on both, with lock breaks.

They are written three times, by two hands; where a walk reinterprets a field, the fields must still say the same.
"""

from __future__ import annotations

from typing import Any

import kvm_mmu as km
import pytest
from kvm_mmu import _core
from kvm_mmu.reference import Engine
from kvm_mmu.reference.common.zap_plan import NAMED_PLANS
from kvm_mmu.scenario.machine_engine import MachineEngine

HVA, M2 = 0x2_0000_0000, 1 << 21
SLOT_PLANS = [name for name, plan in km.plans.items() if plan.walk == "slot"]
RUNS = [(kernel, plan) for kernel in ("v5.2", "v6.1", "v6.12", "v7.3") for plan in SLOT_PLANS]


def words_of(plan: Any) -> dict[str, str]:
    """A plan of the reference, its fields as the machine writes them."""
    restart = "+".join(sorted(plan.restart)) or "never"
    flag = {True: "yes", False: "no"}[plan.bump_valid_gen]
    fields = {name: getattr(plan, name) for name, _ in _core.plan_fields()}
    return {**fields, "restart": restart, "bump_valid_gen": flag}


def test_the_three_lists_have_the_same_names() -> None:
    assert set(km.plans) == set(NAMED_PLANS) == {name for name, _, _ in _core.named_plans()}


@pytest.mark.parametrize("name", km.plans)
def test_a_plan_says_the_same_in_all_three(name: str) -> None:
    machine = km.plans[name].words
    assert words_of(NAMED_PLANS[name]) == machine
    assert {other: words for other, words, _ in _core.named_plans()}[name] == machine


@pytest.mark.parametrize(("kernel", "plan"), RUNS)
@pytest.mark.parametrize("cond", [0, 1, 3])
def test_slot_plans_do_the_same_on_core_and_reference(kernel: str, plan: str, cond: int) -> None:
    config = {"family": "npt", "tdp_mmu": 0, "vcpus": 2}
    engines = [kind(kernel, dict(config)) for kind in (MachineEngine, Engine)]
    ops: list[dict[str, Any]] = [
        {"op": "set_memslot", "id": 0, "gpa": 0, "size": 4 * M2, "hva": HVA},
        {"op": "set_memslot", "id": 1, "gpa": 16 * M2, "size": M2, "hva": HVA + 32 * M2},
        {"op": "set_max_raw", "n": 100},
        *(
            {"op": "access", "vcpu": at % 2, "gpa": at * 0x7000, "kind": "wr"[at % 2]}
            for at in range(0, 300, 7)
        ),
        {"op": "access", "gpa": 16 * M2, "kind": "w"},
        {"op": "access", "gpa": 64 * M2, "kind": "r"},
    ]
    if cond:
        ops.append({"op": "lock_break", "cond": cond, "do": [[{"op": "access", "gpa": 0x3000, "kind": "w"}]]})
    ops += [{"op": "zap", "plan": plan, "id": 0}, {"op": "access", "gpa": 0, "kind": "w"}, {"op": "zap_all"}]
    for op in ops:
        core, reference = (engine.apply(dict(op)) for engine in engines)
        for part in ("ret", "out", "events", "nested"):
            assert core.get(part) == reference.get(part), (op, part)
        assert engines[0].state() == engines[1].state(), op


def test_a_slot_plan_of_each_kind_zaps_what_it_says() -> None:
    """`v5.2-slot` takes the slot's tables; `v6.12-slot` takes the leaves and only tables that shadow guest tables."""
    zapped = {}
    for plan in SLOT_PLANS:
        vm = km.Vm(kernel="v6.12", family="npt", tdp_mmu=False)
        vm.memslots.create(slot=0, gpa=0, size=4 * km.MIB)
        vm.vcpus[0].access(0x1000, kind="w")
        before = len(vm.core.slots(0))
        run = vm.zap(plan, slot=(0, 0))
        zapped[plan] = (run.outcome, run.nr_zapped)
        assert len(vm.core.slots(0)) == before
    assert zapped["v6.12-slot"] == ("done", 0)
    assert zapped["v5.2-slot"][1] > 0
