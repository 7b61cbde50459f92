"""The cost model: fitted again to its rows it is the one that is kept; modelled time has columns of its own."""

from __future__ import annotations

import kvm_mmu as km
import numpy as np
import pytest
from kvm_mmu.errors import UsageError
from kvm_mmu.lab import cost
from kvm_mmu.scenario.workload import mmio_mix

#: What each model was fitted to.
FITTED = {"kernel-c-5.0": cost.ROWS, "kernel-c-5.0-epyc": cost.EPYC_ROWS}


def test_the_kept_models_are_the_fitted_ones() -> None:
    # The rows up to 10,000 pages: enough to pin every coefficient but that of a large list.
    small = [i for i, row in enumerate(cost.ROWS) if row.tables <= 10_000]
    counts = cost.measured_features([cost.ROWS[i] for i in small])
    assert FITTED.keys() == cost.MODELS.keys()
    for model, rows in FITTED.items():
        used, _, _ = cost.fit(counts, [rows[i].nanoseconds for i in small])
        for name, mine, theirs in zip(cost.FEATURES, used, cost.MODELS[model].coefficients, strict=True):
            if name != "visit_large":
                assert mine == pytest.approx(theirs, rel=0.1), (model, name)


@pytest.mark.soak
def test_all_rows_give_the_kept_models() -> None:
    counts = cost.measured_features()
    for name, rows in FITTED.items():
        used, error, worst = cost.fit(counts, [row.nanoseconds for row in rows])
        model = cost.MODELS[name]
        assert used == pytest.approx(model.coefficients, rel=1e-3)
        assert (error, worst) == pytest.approx((model.error, model.worst), abs=1e-3)


def test_the_fit_finds_what_made_the_rows() -> None:
    dice = np.random.default_rng(1)
    counts = dice.uniform(1, 100, size=(30, 3))
    used, error, worst = cost.fit(counts, list(counts @ np.array([2.0, 0.0, 7.0])))
    assert used == pytest.approx([2, 0, 7], abs=1e-6) and error < 1e-9 and worst < 1e-9


def test_modelled_time_has_its_own_columns() -> None:
    mix = mmio_mix(1000, 0.01, "even", kernel="v5.0-seed")
    found = km.compare(mix, ["seed", "merged", "v5.0-fast"], at="wrap", cost="kernel-c-5.0")
    assert found.names[-3:] == ("cost_model", "modelled_ms", "modelled_ms_per_update")
    by_plan = {row["plan"]: row["modelled_ms"] for row in found.rows}
    assert by_plan["v5.0-fast"] == pytest.approx(0.59, rel=0.1)
    assert by_plan["seed"] == pytest.approx(0.029, rel=0.1)
    assert "not measured" in found.to_text() and "error on its rows" in found.to_text()
    assert found.to_polars().columns[-1] == "modelled_ms_per_update"
    assert "cost_model" not in km.compare(mix, ["seed"], at="wrap").columns
    slot = km.compare(mix, ["v5.2-slot", "seed"], at="end", cost="kernel-c-5.0")
    assert [row["modelled_ms"] is None for row in slot.rows] == [True, False]
    with pytest.raises(UsageError, match="kernel-c"):
        km.compare(mix, ["seed"], cost="guess")
