"""`compare`: known counts on known populations, rows that do not depend on their neighbours, ways out of the result."""

from __future__ import annotations

import json
from pathlib import Path

import kvm_mmu as km
import numpy as np
import pytest
from kvm_mmu.errors import UsageError
from kvm_mmu.lab import forced_event
from kvm_mmu.lab.comparison import COLUMNS
from kvm_mmu.machine.generation import GenerationField, GenerationLayout, GenerationV50
from kvm_mmu.scenario.language import read_scenario
from kvm_mmu.scenario.workload import Workload, mmio_mix

ALL = [name for name, plan in km.plans.items() if not plan.is_of_roots]


@pytest.fixture(scope="module")
def mix() -> Workload:
    return mmio_mix(500, 0.10, "tail", kernel="v5.0-seed")


@pytest.fixture(scope="module")
def wrap(mix: Workload) -> km.lab.comparison.Comparison:  # type: ignore[name-defined]
    return km.compare(mix, ALL, at="wrap")


def row(found: object, plan: str) -> dict[str, object]:
    return next(r for r in found.rows if r["plan"] == plan)  # type: ignore[attr-defined]


def test_known_counts(wrap: object) -> None:
    # 500 tables, 50 flagged at the tail, below a root, a level-3 and one level-2 table (within 1 GiB).
    pages = row(wrap, "seed")["pages"]
    assert pages == 500 + 1 + 1 + 1
    # Each of 50 starts passes 450 unflagged tables, then one flagged; the last pass sees 450 and the upper three.
    assert row(wrap, "seed")["nodes_visited"] == 50 * 451 + 453
    assert row(wrap, "seed")["restarts"] == 50
    assert row(wrap, "merged")["nodes_visited"] == pages
    assert row(wrap, "indexed")["nodes_visited"] == 50
    for plan in ("seed", "merged", "indexed"):
        assert row(wrap, plan)["pages_zapped"] == 50
        assert row(wrap, plan)["tables_rebuilt"] == 50
        assert row(wrap, plan)["faults_again"] == 0
    for plan in ("zap-all", "v5.0-fast"):
        assert row(wrap, plan)["pages_zapped"] == pages
        assert row(wrap, plan)["faults_again"] == 450
        assert row(wrap, plan)["tables_rebuilt"] == pages
    assert (
        row(wrap, "seed")["longest_hold"]
        > row(wrap, "merged")["longest_hold"]
        > row(wrap, "indexed")["longest_hold"]
    )
    assert row(wrap, "merged")["updates_per_event"] == 1 << 18


def test_amortised_is_work_over_updates(wrap: object) -> None:
    for one in wrap.rows:  # type: ignore[attr-defined]
        assert one["units_per_update"] == one["work_units"] / one["updates_per_event"]


def test_every_plan_runs_on_the_same_state(mix: Workload, wrap: object) -> None:
    before = mix.vm.digest()
    for plan in ("seed", "indexed"):
        alone = km.compare(mix, [plan], at="wrap")
        assert alone.rows[0] == row(wrap, plan)
    backwards = km.compare(mix, ALL[::-1], at="wrap")
    assert {r["plan"]: r for r in backwards.rows} == {r["plan"]: r for r in wrap.rows}  # type: ignore[attr-defined]
    assert mix.vm.digest() == before


def test_digests_tell_plans_apart(wrap: object) -> None:
    digests = wrap.column("digest")  # type: ignore[attr-defined]
    assert len(set(digests)) >= len(digests) - 1  # seed and v3.10-mmio differ by a reload only


def test_not_exercised_and_what_is_left_behind(mix: Workload) -> None:
    nothing = km.compare(mmio_mix(20, 0.0), ["merged", "zap-all"], at="wrap")
    assert nothing.column("outcome") == ["not exercised", "done"]
    assert nothing.not_exercised == [(nothing.rows[0]["input"], "merged")]
    removal = km.compare(mix, ["seed", "v5.2-slot", "v5.0-fast"], at="slot-removal")
    assert [row["sound"] for row in removal.rows] == ["no", "yes", "yes"]
    assert [note.partition(" left ")[0] for note in removal.notes if "no way to do" in note] == ["seed"]


def test_teardown_has_no_afterwards(mix: Workload) -> None:
    found = km.compare(mix, ["zap-all"], at="teardown")
    assert found.column("tables_rebuilt") == [None]
    assert np.isnan(found.columns["tables_rebuilt"][0])


def test_a_contended_lock_restarts_the_merged_walk(mix: Workload) -> None:
    calm = km.compare(mix, ["merged"], at="wrap").rows[0]
    wanted = km.compare(mix, ["merged"], at="wrap", contend=2).rows[0]
    assert wanted["lock_breaks"] == 25 and calm["lock_breaks"] == 0
    assert wanted["nodes_visited"] > 10 * calm["nodes_visited"]
    assert wanted["longest_hold"] < calm["longest_hold"] * 2
    assert wanted["pages_zapped"] == calm["pages_zapped"]


def test_a_vcpu_that_adds_pages_can_starve_a_plan() -> None:
    small = mmio_mix(40, 0.5, "tail", kernel="v5.2")
    found = km.compare(small, ["zap-all", "v5.3-fast"], contend=2, added=2)
    assert found.column("outcome") == ["livelock", "done"]
    assert [plan for _, plan, _ in found.findings] == ["zap-all"]


def test_a_plan_in_python(mix: Workload) -> None:
    def by_hand(vm: km.Vm) -> None:
        with vm.zap_batch() as batch:
            for page in vm.active_pages():
                if page.mmio_cached:
                    batch.prepare(page)

    found = km.compare(mix, [by_hand, "merged"], at="wrap")
    mine, merged = found.rows
    assert mine["plan"] == "by_hand"
    for name in (
        "nodes_visited",
        "pages_zapped",
        "sptes_cleared",
        "parent_steps",
        "flushes",
        "tables_rebuilt",
    ):
        assert mine[name] == merged[name], name


def test_the_wrap_is_found_by_stepping_any_policy() -> None:
    class FourBits(GenerationV50):
        """Sixteen values, four updates a lap."""

        layout = GenerationLayout(
            width=4, in_progress=1, refuse_in_progress=False, fields=(GenerationField(1, 3, 3),)
        )

    assert forced_event.wrapping_generation(FourBits("i*2")) % 16 == 0
    for kernel in km.kernels.values():
        policy = kernel.generation()
        assert policy.is_wrap(forced_event.wrapping_generation(policy))


def test_ways_out(wrap: object, tmp_path: Path) -> None:
    columns = wrap.columns  # type: ignore[attr-defined]
    assert tuple(columns) == COLUMNS and columns["nodes_visited"].dtype == np.int64
    assert "measured" not in " ".join(COLUMNS) and "seconds" not in " ".join(COLUMNS)
    paths = wrap.write(tmp_path)  # type: ignore[attr-defined]
    assert [path.name for path in paths] == ["compare.csv", "compare.json", "compare.svg", "report.html"]
    read = json.loads(paths[1].read_text())
    assert read["schema"] == "kvm-mmu/compare/1" and len(read["rows"]) == len(ALL)
    assert paths[0].read_text().count("\n") == len(ALL) + 1
    assert "<svg" in wrap.to_svg("nodes_visited")  # type: ignore[attr-defined]
    assert "<table>" in wrap._repr_html_()  # type: ignore[attr-defined]
    assert len(repr(wrap)) < 200
    with pytest.raises(UsageError, match="plan"):
        wrap.to_svg("plan")  # type: ignore[attr-defined]


def test_data_frames(wrap: object) -> None:
    polars = pytest.importorskip("polars")
    frame = wrap.to_polars()  # type: ignore[attr-defined]
    assert frame.columns == list(COLUMNS) and frame.height == len(ALL)
    pytest.importorskip("pandas")
    assert list(wrap.to_pandas()["plan"]) == ALL  # type: ignore[attr-defined]
    pytest.importorskip("pyarrow")
    assert polars.DataFrame(wrap).height == len(ALL)


def test_a_plot_takes_and_returns_axes(wrap: object) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    assert wrap.plot(ax) is ax  # type: ignore[attr-defined]
    assert wrap.plot().get_xlabel() == "longest hold, work units, logarithmic"  # type: ignore[attr-defined]


def test_scenarios_and_paths_are_inputs(data: Path) -> None:
    path = data / "vectors" / "seed" / "mmio_stale_generation.npt.jsonl.xz"
    one = km.compare(path, ["zap-all"])
    two = km.compare([read_scenario(path)], ["zap-all"])
    assert one.rows == two.rows and one.rows[0]["kernel"] == "v5.0-seed"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"at": "wedding"}, "expected one of end, wrap"),
        ({"plans": []}, "no plan to compare"),
        ({"plans": ["nobody"]}, "nobody"),
        ({"kernel": "v4.0"}, "v4.0"),
        ({"scale": [0]}, "1 or more"),
        ({"scale": [10]}, "is not scaled"),
        ({"mmio_share": 2.0}, "0 to 1"),
        ({"contend": -1}, "contend"),
        ({"added": 1}, "contend with it"),
    ],
)
def test_refusals(mix: Workload, options: dict[str, object], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        km.compare(mix, **{"plans": ["seed"], **options})  # type: ignore[arg-type]


def test_a_kernel_without_mmio_cached_marks_is_named() -> None:
    plans = ["seed", "zap-all"]
    without = km.compare(mmio_mix(50, 0.1, "tail", kernel="v6.12"), plans, at="wrap")
    assert [note for note in without.notes if "mmio_cached" in note] == [
        "v6.12 keeps no mmio_cached marks on its shadow pages: seed goes by marks that the model adds"
    ]
    for kernel, chosen in (("v5.2", plans), ("v6.12", ["zap-all", "v5.4-fast"])):
        found = km.compare(mmio_mix(50, 0.1, "tail", kernel=kernel), chosen, at="wrap")
        assert not any("mmio_cached" in note for note in found.notes)
