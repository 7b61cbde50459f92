"""Cost models: work counts turned into modelled time. Modelled time is no measurement: it has columns of its own.

Both models are fitted to what the kernel's own C took (5.0.1 and 5.2.1 in userspace, EPT masks, one vCPU, tracing and
locking compiled out), on two machines: `ROWS` and `EPYC_ROWS` say which zaps took how long, `fit` runs the same zaps in
the model and chooses the coefficients with the least relative error. What was fitted is kept in `MODELS`; a test fits
again and compares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvm_mmu.errors import UsageError
from kvm_mmu.lab import forced_event
from kvm_mmu.machine.vm import Vm
from kvm_mmu.machine.zap_plan import plans
from kvm_mmu.scenario.workload import Workload, mmio_mix

#: Features of a run: nodes visited and pages zapped cost more when the list no longer fits a cache.
FEATURES = ("visit_small", "visit_medium", "visit_large", "page_small", "page_large", "spte", "fault")
#: Live pages up to which a list is small, and medium.
SMALL, MEDIUM = 3_000, 30_000


@dataclass(frozen=True)
class Row:
    """One published time: what was zapped by which plan (`map`: built, not zapped), and how long it took."""

    name: str
    tables: int
    share: float
    plan: str
    nanoseconds: float
    leaves: int = 1


#: Wraps that were timed: level-1 tables and the share of them that caches MMIO; then three plans each.
_WRAPS = ((1_000, 0.01), (1_000, 0.10), (10_000, 0.01), (10_000, 0.10), (100_000, 0.01), (100_000, 0.10))
_WRAP_PLANS = ("v5.0-fast", "merged", "seed")


def _rows(
    wraps: Sequence[tuple[float, float, float]],
    sparse: Sequence[float],
    full: Sequence[float],
    mapped: float,
) -> tuple[Row, ...]:
    """The rows of one machine.

    Args:
        wraps: nanoseconds of each of `_WRAPS`, a number a plan.
        sparse: nanoseconds a table of one entry, 1,000, 10,000 and 100,000 of them, all zapped.
        full: nanoseconds a table of 512 entries, 1,000 and 10,000 of them, all zapped.
        mapped: nanoseconds a page that is mapped, in order, over 1 GiB.
    """
    rows = [
        Row(f"MMIO wrap, {n:,} pages, {share:.0%}, {plan}", n, share, plan, time)
        for (n, share), times in zip(_WRAPS, wraps, strict=True)
        for plan, time in zip(_WRAP_PLANS, times, strict=True)
    ]
    for n, each in zip((1_000, 10_000, 100_000), sparse, strict=True):
        rows.append(Row(f"zap everything, one SPTE a table, {n:,} pages", n, 0.0, "zap-all", each * n))
    for n, each in zip((1_000, 10_000), full, strict=True):
        rows.append(Row(f"zap everything, full tables, {n:,} pages", n, 0.0, "zap-all", each * n, 512))
    rows.append(Row("map 1 GiB, sequential, per page", 512, 0.0, "map", mapped * 512 * 512, 512))
    return tuple(rows)


#: The published times that `kernel-c-5.0` is fitted to.
ROWS = _rows(
    (
        (590_000, 13_000, 29_000),
        (570_000, 65_000, 220_000),
        (12_500_000, 230_000, 2_100_000),
        (11_500_000, 1_300_000, 26_700_000),
        (134_000_000, 5_700_000, 748_000_000),
        (142_000_000, 20_300_000, 14_000_000_000),
    ),
    (600, 1_300, 1_300),
    (5_200, 5_200),
    67,
)
#: Those that `kernel-c-5.0-epyc` is fitted to: the same C code and the same zaps on the other machine.
EPYC_ROWS = _rows(
    (
        (1_370_000, 68_900, 77_200),
        (1_410_000, 174_000, 332_000),
        (14_500_000, 441_000, 2_340_000),
        (14_500_000, 1_750_000, 21_200_000),
        (144_000_000, 4_400_000, 435_000_000),
        (139_000_000, 18_400_000, 3_560_000_000),
    ),
    (1_410, 1_470, 1_430),
    (4_690, 4_770),
    96.5,
)


@dataclass(frozen=True)
class CostModel:
    """Nanoseconds for each unit of each feature, and how far it is off on the rows it was fitted to."""

    name: str
    about: str
    coefficients: tuple[float, ...]
    #: Root mean square and largest relative error on the rows that it was fitted to.
    error: float
    worst: float

    def __str__(self) -> str:
        parts = ", ".join(
            f"{f.replace('_', ' ')} {c:.3g}" for f, c in zip(FEATURES, self.coefficients, strict=True)
        )
        off = f"error on its rows {self.error:.0%}, at worst {self.worst:.0%}"
        return f"{self.name}: {self.about}; ns each: {parts}; {off}"

    def nanoseconds(self, work: Mapping[str, int], pages: int) -> float:
        """Modelled time of a zap's work with so many live pages before it."""
        return float(np.dot(features(work, pages), self.coefficients))


def is_fitted_to(vm: Vm, plan: object) -> bool:
    """True if the models' rows say anything of a plan: of none that walks roots or a slot's reverse maps.

    Args:
        vm: the VM that it is run on.
        plan: the plan, or a function that zaps.
    """
    return not vm.tdp_mmu and getattr(plan, "walk", "") != "slot"


def features(work: Mapping[str, int], pages: int) -> npt.NDArray[np.float64]:
    """What a model multiplies, in the order of `FEATURES`."""
    visits, zapped = work["walk_visited"], work["pages_zapped"]
    size = 0 if pages <= SMALL else 1 if pages <= MEDIUM else 2
    row = [0.0, 0.0, 0.0, 0.0, 0.0, float(work["sptes_cleared"]), float(work["faults"])]
    row[size] = float(visits)
    row[3 if size == 0 else 4] = float(zapped)
    return np.array(row)


def cost_model(name: str) -> CostModel:
    """A model by name.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in MODELS:
        raise UsageError(f"cost model {name!r}: expected one of {', '.join(MODELS)}")
    return MODELS[name]


def measured_features(rows: Sequence[Row] = ROWS) -> npt.NDArray[np.float64]:
    """Run each row's zap in the model and count."""
    found = []
    made: dict[tuple[int, float, int], Workload] = {}
    for row in rows:
        key = (row.tables, row.share, row.leaves)
        if key not in made:
            mix = mmio_mix(
                row.tables, row.share, "even", leaves=row.leaves, kernel="v5.0-seed", family="ept_ad"
            )
            made = {key: mix}
        if row.plan == "map":
            found.append(features(made[key].vm.work, 0))
            continue
        vm = made[key].vm.clone()
        forced_event.prepare(vm, "wrap")
        pages = vm.core.nr_active_pages
        found.append(features(forced_event.force(vm, "wrap", plans[row.plan]).work, pages))
    return np.array(found)


def fit(
    counts: npt.NDArray[np.float64], times: Sequence[float]
) -> tuple[npt.NDArray[np.float64], float, float]:
    """Non-negative coefficients with the least squared relative error, by coordinate descent.

    Returns:
        Coefficients, root mean square and largest relative error.
    """
    scaled = counts / np.array(times)[:, None]
    target = np.ones(len(times))
    used = np.zeros(counts.shape[1])
    for _ in range(20_000):
        before = used.copy()
        for j in range(len(used)):
            column = scaled[:, j]
            norm = float(column @ column)
            if norm > 0:
                rest = target - scaled @ used + column * used[j]
                used[j] = max(0.0, float(column @ rest) / norm)
        if np.max(np.abs(used - before)) < 1e-12 * (1 + np.max(used)):
            break
    errors = scaled @ used - 1
    return used, float(np.sqrt(np.mean(errors**2))), float(np.max(np.abs(errors)))


#: Fitted once (`fit` over `measured_features`), to four digits.
MODELS: dict[str, CostModel] = {
    model.name: model
    for model in (
        CostModel(
            name="kernel-c-5.0",
            about="the kernel's own C, 5.0.1 and 5.2.1, gcc 12 -O2, 2.6 GHz class, no lock contention",
            coefficients=(3.721, 4.529, 19.63, 589.6, 1320.0, 8.259, 67.0),
            error=0.172,
            worst=0.422,
        ),
        CostModel(
            name="kernel-c-5.0-epyc",
            about="the same C code, gcc 12.2 -O2, on an AMD EPYC with 1 MiB of L2 that other jobs shared",
            coefficients=(5.896, 4.45, 8.611, 1460.0, 1535.0, 6.28, 96.5),
            error=0.230,
            worst=0.701,
        ),
    )
}
