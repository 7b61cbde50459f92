"""A `Vm` made of a real one: the same state, plans with their costs, the judge; and refused where it is broken."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import kvm_mmu as km
import pytest
from kvm_mmu import live
from kvm_mmu.errors import SnapshotError
from kvm_mmu.studies.live_costs import costs, slot_of
from memory_of import Changeable

DATA = Path(__file__).resolve().parent.parent / "data" / "live"
VMS = [
    pytest.param(str(path.parent.relative_to(DATA)), number, id=f"{path.parent.relative_to(DATA)}-{number}")
    for path in sorted(DATA.glob("*/*/live.json"))
    for number in (0, 1)
]
PAGE = (
    "id",
    "gfn",
    "role",
    "level",
    "direct",
    "access",
    "invalid",
    "smm",
    "ad_disabled",
    "root_count",
    "parents",
)


def vm_of(case: str, number: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DATA / case / "live.json").read_text(encoding="utf-8"))[number]
    return found


def entries(pages: list[dict[str, Any]]) -> list[list[Any]]:
    """Of each entry its index, and the word or where it leads: a link of the model has no frame."""
    return [[spte if len(spte) == 2 else [spte[0], spte[2]] for spte in page["sptes"]] for page in pages]


@pytest.mark.parametrize(("case", "number"), VMS)
def test_state_is_that_of_the_real_one(case: str, number: int):
    wanted = vm_of(case, number)
    vm = km.Vm.from_snapshot(wanted)
    found = vm.snapshot()
    assert vm.audit() == []
    assert [[page[key] for key in PAGE] for page in found["active"]] == [
        [page[key] for key in PAGE] for page in wanted["active"]
    ]
    assert entries(found["active"]) == entries(wanted["active"])
    for key in ("used", "max", "requested", "mmu_valid_gen"):
        assert found[key] == wanted[key]
    for space, real in zip(found["as"], wanted["as"], strict=True):
        assert space["gen"] == real["gen"]
        slots = sorted(space["slots"], key=lambda slot: slot["base"])
        for slot, of in zip(slots, real["slots"], strict=True):
            for key in ("id", "base", "npages", "flags", "disallow", "track"):
                assert slot[key] == of[key], (of["id"], key)
            if not wanted["tdp_mmu"]:
                assert slot["rmap"] == of["rmap"]
            dirty = [page for first, count in slot.get("dirty") or () for page in range(first, first + count)]
            assert dirty == (of["dirty"] or [])
    assert [vcpu["mmio"][1:3] for vcpu in found["vcpus"]] == [vcpu["mmio"][1:3] for vcpu in wanted["vcpus"]]
    if wanted["tdp_mmu"]:
        tables = {(p["role"], p["gfn"]): [s[0] for s in p["sptes"]] for p in wanted["tdp"]}
        assert found["tdp_pages"] == sum("tdp_root" not in page["where"] for page in wanted["tdp"])
        assert {(p["role"], p["gfn"]) for p in found["tdp"]} == tables.keys()
        assert [root["refs"] for root in found["roots"]] == [
            page["root_count"] for page in wanted["tdp"] if "tdp_root" in page["where"]
        ]


@pytest.mark.parametrize(("case", "number"), VMS)
def test_costs_of_a_wrap_and_of_a_removal_by_plan(case: str, number: int):
    vm = km.Vm.from_snapshot(vm_of(case, number))
    before = vm.digest()
    for at, slot in (("wrap", None), ("slot-removal", slot_of(vm, 1))):
        rows = costs(vm, at, slot)
        assert rows[0]["is_own"] and len(rows) >= 2
        assert rows[0]["sound"] == "yes" and rows[0]["left_over"] == 0
        assert rows[0]["broken"] == []
        assert rows == costs(vm, at, slot)
    assert vm.digest() == before


def test_every_plan_that_the_run_calls_sound_is_so_for_the_judge():
    vm = km.Vm.from_snapshot(vm_of("6.1.192/npt1tdp0", 0))
    for row in costs(vm, "slot-removal", slot_of(vm, 2)):
        assert (row["sound"] == "no") == (row["left_over"] > 0)
        if row["sound"] == "yes":
            assert row["broken"] == [], row["plan"]


def test_live_vm_itself_is_taken(dumps):
    dump = dumps["6.12.117/npt1tdp0"]
    with live.open(str(dump.elf), facts=dump.folder) as kernel:
        vm = km.Vm.from_snapshot(kernel.vms()[0])
    assert (vm.kernel, vm.family, len(vm.vcpus)) == ("v6.12", "npt", 2)
    twin = km.Vm.from_bytes(vm.to_bytes())
    assert twin.digest() == vm.digest()
    vm.set_judged()
    assert vm.judge() == []
    vm.memslots.delete(3)
    assert vm.audit() == []
    assert vm.judge() == []


def test_broken_state_is_refused_by_the_name_of_what_is_broken():
    wanted = vm_of("6.1.192/npt1tdp0", 0)
    wanted["active"][0]["parents"] = []
    with pytest.raises(SnapshotError, match="link_parent"):
        km.Vm.from_snapshot(wanted)
    wanted = vm_of("6.1.192/npt1tdp0", 0)
    wanted["used"] += 1
    with pytest.raises(SnapshotError, match="used_pages"):
        km.Vm.from_snapshot(wanted)


@pytest.mark.parametrize(
    "damage", ["active", "as", "vcpus", "used", "family", "kernel", "phys_bits", "tdp_mmu"]
)
def test_damaged_snapshot_is_an_error_in_words(damage: str):
    for value in (None, "x", [None], {"a": 1}, -1, 1 << 80):
        wanted = vm_of("6.1.192/npt0", 0)
        wanted[damage] = value
        try:
            km.Vm.from_snapshot(wanted)
        except km.KvmMmuError as error:
            assert str(error)
    wanted = vm_of("6.1.192/npt0", 0)
    del wanted[damage]
    with pytest.raises(SnapshotError):
        km.Vm.from_snapshot(wanted)


@pytest.mark.parametrize("index", [512, 70_000, -1, "a"])
def test_entries_out_of_a_table_are_refused(index: Any):
    wanted = vm_of("6.1.192/npt1tdp0", 0)
    wanted["active"][0]["sptes"][0][0] = index
    with pytest.raises(km.KvmMmuError):
        km.Vm.from_snapshot(wanted)


def test_vm_that_could_not_be_read_is_refused(dumps):
    dump = dumps["6.1.192/npt1tdp0"]
    memory = Changeable(dump.elf, dump.folder)
    memory.write(memory.kvm("active"), 8, 0x40)
    with pytest.raises(SnapshotError):
        km.Vm.from_snapshot(memory.changed_vm())
    with pytest.raises(SnapshotError, match="could not be read"):
        km.Vm.from_snapshot({"kvm": "0x1", "error": "gone"})
    with pytest.raises(SnapshotError, match="a mapping"):
        km.Vm.from_snapshot([])


def test_command_tells_the_costs(dumps):
    dump = dumps["6.1.192/npt1tdp1"]
    words = [
        sys.executable,
        "-m",
        "kvm_mmu",
        "live",
        str(dump.elf),
        "--facts",
        str(dump.folder),
        "--vm",
        "1686",
    ]
    done = subprocess.run(
        [*words, "slot-removal", "3", "--json"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert (found["schema"], found["slot"]) == ("kvm-mmu/live-cost/1", [0, 3])
    assert found["plans"][0]["is_own"]
    done = subprocess.run([*words, "wrap"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "(own)" in done.stdout
    done = subprocess.run([*words, "slot-removal", "77"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        "kvm-mmu live slot-removal: slot 77: this VM has 0, 1, 2, 3, 6\n",
    )
