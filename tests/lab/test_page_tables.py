"""Plans on the page table that they are about: the TDP MMU's beside those of shadow pages, each kernel with its own."""

from __future__ import annotations

from pathlib import Path

import kvm_mmu as km
import pytest
from kvm_mmu.cli import main
from kvm_mmu.errors import UsageError
from kvm_mmu.scenario.language import read_scenario
from kvm_mmu.scenario.workload import Workload, live_pages, mmio_mix

NEWER = ("v6.1", "v6.12", "v7.3")
#: What each event needs gone is 30 leaves, 10 MMIO SPTEs, and 42 tables below the root.
TABLES, LEAVES, MMIO = 40, 30, 10
NOT_ENOUGH = {"wrap": {"tdp-slot"}, "slot-removal": set(), "teardown": {"tdp-slot"}}
TDP = ["tdp-fast", "tdp-all", "tdp-slot"]


def mix(kernel: str, tdp_mmu: bool = True) -> Workload:
    return mmio_mix(TABLES, 0.25, "even", kernel=kernel, tdp_mmu=tdp_mmu)


def guest(tmp_path: Path) -> Path:
    path = tmp_path / "guest.jsonl"
    slots = '{"op":{"op":"set_memslot","id":0,"gpa":0,"size":"0x400000","hva":"0x200000000","flags":0}}'
    touches = [f'{{"op":{{"op":"access","gpa":{gpa},"kind":"w"}}}}' for gpa in range(0, 0x400000, 0x8000)]
    mmio = '{"op":{"op":"access","gpa":"0xfee00000","kind":"r"}}'
    path.write_text("\n".join(['{"scenario":"guest"}', slots, *touches, mmio]) + "\n")
    return path


@pytest.mark.parametrize("at", NOT_ENOUGH)
@pytest.mark.parametrize("kernel", NEWER)
def test_what_is_left_of_tables_of_the_tdp_mmu_is_seen(kernel: str, at: str) -> None:
    found = km.compare(mix(kernel), TDP, at=at)
    assert {row["plan"] for row in found.rows if row["sound"] == "no"} == NOT_ENOUGH[at]
    gone = {"wrap": MMIO, "slot-removal": LEAVES, "teardown": TABLES + 2}[at]
    for row in found.rows:
        assert (row["mmu"], row["to_go"]) == ("tdp", gone)
        assert row["left_over"] == (gone if row["plan"] in NOT_ENOUGH[at] else 0)


def test_work_beside_faults_is_no_hold() -> None:
    rows = {row["plan"]: row for row in km.compare(mix("v6.12"), TDP, at="wrap").rows}
    fast, everything = rows["tdp-fast"], rows["tdp-all"]
    assert fast["longest_hold"] == 0 and fast["shared_units"] == fast["work_units"] > 0
    assert everything["shared_units"] == 0 and everything["longest_hold"] == everything["work_units"]
    # Beside faults all 512 entries of a removed table are frozen and reported.
    assert fast["sptes_changed"] - everything["sptes_changed"] == (TABLES + 2) * 512
    assert fast["nodes_visited"] == everything["nodes_visited"]
    alone = "walk=roots,only=obsolete,offer=when_wanted,bump_valid_gen=yes,reload_roots=before"
    (row,) = km.compare(mix("v6.12"), [alone], at="wrap").rows
    assert row["shared_units"] == 0 and row["longest_hold"] == row["work_units"]


def test_yields_part_the_shared_hold() -> None:
    calm, wanted = (km.compare(mix("v6.12"), ["tdp-fast"], at="wrap", contend=n).rows[0] for n in (0, 400))
    assert calm["lock_breaks"] == 0 < wanted["lock_breaks"]
    assert wanted["longest_shared_hold"] < calm["longest_shared_hold"] == calm["shared_units"]
    assert wanted["sound"] == "yes" and wanted["sptes_changed"] == calm["sptes_changed"]


def test_each_plan_is_run_on_the_page_table_it_is_about(tmp_path: Path) -> None:
    scenario = read_scenario(guest(tmp_path))
    found = km.compare(scenario, ["v5.4-fast", "tdp-fast"], at="wrap", kernel=["v5.4", "v6.12"])
    assert [(row["kernel"], row["mmu"], row["plan"]) for row in found.rows] == [
        ("v5.4", "shadow", "v5.4-fast"),
        ("v6.12", "shadow", "v5.4-fast"),
        ("v6.12", "tdp", "tdp-fast"),
    ]
    assert "tdp-fast not run on v5.4: no TDP MMU" in found.notes
    assert set(found.column("sound")) == {"yes"}
    assert len({row["faults_again"] for row in found.rows}) == 1
    assert "(TDP MMU)" in str(found) and "shared" in str(found)


def test_without_plans_each_kernel_answers_with_its_own(tmp_path: Path) -> None:
    path = guest(tmp_path)
    kernels = ["v5.4", "v6.1", "v6.12", "v7.3"]
    for at, own in (("wrap", "tdp-fast"), ("slot-removal", "tdp-fast"), ("teardown", "tdp-all")):
        found = km.compare(path, at=at, kernel=kernels)
        assert [row["kernel"] for row in found.rows] == kernels
        assert [row["mmu"] for row in found.rows] == ["shadow", "tdp", "tdp", "tdp"]
        assert found.rows[0]["plan"] == getattr(km.kernels["v5.4"], at.replace("-", "_")).name
        assert {row["plan"] for row in found.rows[1:]} == {own}


def test_a_scenario_that_names_no_mmu_reads_as_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(guest(tmp_path)), "--kernel", "v6.12"]) == 0
    written = capsys.readouterr().out
    assert "tdp_mmu" not in written.partition("\n")[0] and '"tdp"' not in written


def test_scaled_runs_count_tables(tmp_path: Path) -> None:
    found = km.compare(guest(tmp_path), ["tdp-fast"], at="wrap", kernel="v6.12", scale=[100, 400])
    pages = found.column("pages")
    assert 90 <= pages[0] < pages[1] and pages[1] >= 380
    assert all(row["sound"] == "yes" for row in found.rows)


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"tdp-fast not run on v5\.4: no TDP MMU"):
        km.compare(guest(tmp_path), ["tdp-fast"], kernel="v5.4")
    found = km.compare(mix("v6.12"), ["tdp-all", "zap-all"], at="teardown")
    assert [row["plan"] for row in found.rows] == ["tdp-all"]
    assert any("zap-all not run" in note for note in found.notes)


def test_a_cost_model_of_shadow_pages_says_nothing_of_the_tdp_mmu(tmp_path: Path) -> None:
    found = km.compare(
        guest(tmp_path), ["zap-all", "tdp-all"], at="teardown", kernel="v6.12", cost="kernel-c-5.0"
    )
    shadow, tdp = found.rows
    assert shadow["modelled_ms"] > 0 and tdp["modelled_ms"] is None
    assert any("none for the TDP MMU" in note for note in found.notes)
    assert "modelled" in str(found)


@pytest.mark.parametrize("kernel", NEWER)
def test_the_default_is_what_a_host_of_that_kernel_has(kernel: str) -> None:
    vm = km.Vm(kernel=kernel)
    assert vm.tdp_mmu and not km.Vm(kernel=kernel, tdp_mmu=False).tdp_mmu
    assert not km.Vm(kernel=kernel, family="shadow", guest_paging=False).tdp_mmu
    assert not km.Vm(kernel="v5.10").tdp_mmu
    with pytest.raises(UsageError, match="tdp_mmu"):
        km.Vm(kernel="v5.10", tdp_mmu=True)
    assert live_pages(vm) == 0 and "TDP MMU" in repr(vm)


def test_a_plan_of_roots_needs_the_tdp_mmu() -> None:
    with pytest.raises(UsageError, match="TDP MMU"):
        km.Vm(kernel="v6.12", tdp_mmu=False).zap("tdp-fast")
    with pytest.raises(UsageError, match="slot"):
        km.Vm(kernel="v6.12").zap("tdp-slot")


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        ("walk=roots,only=mmio_cached", "marked so"),
        ("walk=roots,only=all,skip=invalid", "on no list"),
        ("walk=roots,only=all,lock=shared", "only=obsolete"),
        ("walk=roots,only=all,offer=batch:3", "at each entry"),
        ("walk=roots,only=all,before_drop=commit", "no flush"),
        ("walk=tail,only=obsolete,lock=shared", "walk=roots"),
    ],
)
def test_what_a_walk_over_roots_does_not_do_is_refused(plan: str, why: str) -> None:
    from kvm_mmu.reference.common.errors import ScenarioError
    from kvm_mmu.reference.common.zap_plan import parse_plan

    with pytest.raises(UsageError, match=why):
        km.ZapPlan.parse(plan)
    with pytest.raises(ScenarioError):
        parse_plan(plan)
