"""The state of a VM under the TDP MMU in format 1: told whole, the same by core and reference, drawn and counted."""

from __future__ import annotations

import json
import re
from typing import Any

import kvm_mmu as km
import pytest
from kvm_mmu.reference import Engine
from kvm_mmu.scenario.machine_engine import MachineEngine

OPERATIONS: list[dict[str, Any]] = [
    {"op": "set_memslot", "id": 0, "gpa": 0, "size": 2 << 20, "hva": "0x200000000", "flags": 0},
    {"op": "access", "gpa": 0x1000, "kind": "w"},
    {"op": "access", "gpa": 0x2000, "kind": "r"},
    {"op": "access", "gpa": 0xFEE00000, "kind": "r"},
    {"op": "smm", "on": 1},
    {"op": "access", "gpa": 0x1000, "kind": "r"},
    {"op": "zap_all"},
    {"op": "access", "gpa": 0x3000, "kind": "w"},
]


@pytest.mark.parametrize("family", ["npt", "ept_ad"])
@pytest.mark.parametrize("kernel", ["v6.1", "v6.12"])
def test_both_tell_the_same_tables_after_every_step(kernel: str, family: str) -> None:
    config = {"family": family, "tdp_mmu": 1}
    core, reference = MachineEngine(kernel=kernel, config=config), Engine(kernel, config)
    tables = set()
    for operation in OPERATIONS:
        core.apply(operation), reference.apply(operation)
        state = core.state()
        assert state == json.loads(json.dumps(reference.state())), operation
        assert core.digest() == reference.digest()
        tables.add(len(state["tdp"]))
        assert state["tdp_pages"] == len(state["tdp"]) - len(state["roots"])
    assert len(tables) > 2


def test_a_digest_tells_two_states_of_the_tables_apart() -> None:
    vm = km.Vm(kernel="v6.12", tdp_mmu=True)
    vm.memslots.create(slot=0, gpa=0, size=2 << 20)
    vm.vcpus[0].access(0x1000)
    before = vm.digest()
    vm.vcpus[0].access(0x2000)
    assert vm.digest() != before


def test_without_the_tdp_mmu_nothing_is_told_of_it() -> None:
    assert "tdp" not in km.Vm(kernel="v6.12", tdp_mmu=False).snapshot()


def test_the_picture_and_the_page_show_the_tables() -> None:
    vm = km.Vm(kernel="v6.12", family="npt", tdp_mmu=True)
    vm.memslots.create(slot=0, gpa=0, size=2 << 20)
    for page in range(3):
        vm.vcpus[0].access(page << 12, kind="w")
    picture = vm.to_svg()
    assert "TDP MMU: 1 root, 3 tables below" in picture
    assert picture.count("<path ") == 3 and "root x2" in picture
    assert re.search(r">\s*0 0x[0-9a-f]+ x3<", picture)
    assert "tables of the TDP MMU</td><td>4<" in vm._repr_html_()
    assert repr(vm) == "<Vm v6.12 npt 1 vcpus, 1 slots, 4 tables of the TDP MMU>"
    assert vm.memory["tdp_tables"] == 4 and vm.memory["shadow_pages"] == 0
    assert 0 < vm.memory["bytes_per_page"] < 4300
