"""Fixtures for pytest-benchmark: a zap plan or a generation policy of one's own against those of history.

A plugin of pytest, for a test suite of one's own: `pytest_plugins = ["kvm_mmu.testing.benchmarks"]` in `conftest.py`.
pytest-benchmark tells the time, which is ours and no kernel's; the exact counts are returned to the test, stand in its
`extra_info`, and are printed as tables at the end of the run, also under `--benchmark-disable` and pytest-xdist.

This module stands on the laboratory, which is above its room (pyproject.toml says so); nothing imports it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from kvm_mmu.lab import forced_event
from kvm_mmu.lab.compare import compare
from kvm_mmu.lab.comparison_text import table
from kvm_mmu.lab.forced_event import Plan
from kvm_mmu.lab.named_workloads import named_workload
from kvm_mmu.lab.ring import ring
from kvm_mmu.machine.generation import GenerationPolicy
from kvm_mmu.machine.profiles import as_plan, kernel_profile
from kvm_mmu.machine.zap_plan import ZapPlan, plans
from kvm_mmu.view.tables import text_table

#: The plans of history for shadow pages, by event.
HISTORY: dict[str, tuple[ZapPlan, ...]] = {
    "wrap": tuple(plans[name] for name in ("v5.0-fast", "seed", "merged", "zap-all", "v5.4-fast")),
    "slot-removal": tuple(plans[name] for name in ("v5.0-fast", "v5.2-slot", "v5.4-fast", "v6.12-slot")),
}
#: Kernels whose generation policies differ; the whole ring of each is judged in about a second.
GENERATIONS = ("v5.0", "v5.2", "v5.10", "v6.12")
#: Generations that one round steps through.
STEPS = 1_000
_PLANS, _POLICIES = "kvm_mmu plans", "kvm_mmu generations"

PlanBenchmark = Callable[..., dict[str, Any]]


@pytest.fixture
def plan_benchmark(request: pytest.FixtureRequest, benchmark: Any) -> PlanBenchmark:
    """Measure a zap plan: called with the plan and, by name, `at`, `workload`, `pages`, `mmio` and `kernel`.

    Args:
        request: of pytest.
        benchmark: of pytest-benchmark.

    Returns:
        A function. It takes a plan (also a name, a text, or a function that zaps), `at` (`wrap` or `slot-removal`;
        default `wrap`), `workload` (a name; default `boot`), `pages` that live (default 1,000), `mmio`, the share of
        them that caches MMIO (default 0.1), and `kernel` (default v5.0), and returns the row of `km.compare`.
    """

    def measure(
        plan: Plan | str,
        *,
        at: str = "wrap",
        workload: str = "boot",
        pages: int = 1_000,
        mmio: float = 0.1,
        kernel: str = "v5.0",
    ) -> dict[str, Any]:
        chosen = as_plan(plan) if isinstance(plan, str | dict) else plan
        made = named_workload(workload, pages=pages, mmio_share=mmio, kernel=kernel)

        def prepared() -> tuple[tuple[object, ...], dict[str, object]]:
            vm = made.vm.clone()
            forced_event.prepare(vm, at)
            return (vm, at, chosen, 0, 0, made.removed), {}

        benchmark.group = f"{at}, {workload}, {pages:,} pages, kernel {kernel}"
        benchmark.pedantic(forced_event.force, setup=prepared, rounds=5)
        row = compare(made, [chosen], at=at).rows[0]
        benchmark.extra_info.update(row)
        request.node.user_properties.append((_PLANS, json.dumps(row)))
        return row

    return measure


@pytest.fixture
def generation_benchmark(request: pytest.FixtureRequest, benchmark: Any) -> PlanBenchmark:
    """Measure a generation policy: called with the policy, or with the name of a kernel, whose policy it is.

    Args:
        request: of pytest.
        benchmark: of pytest-benchmark.

    Returns:
        A function. It returns `policy`, `bits`, `first_wrap` and `updates_per_lap` of address space 0, and `unsafe`: of
        how many generations an MMIO SPTE is believed again later, over both spaces.
    """

    def measure(policy: GenerationPolicy | str) -> dict[str, Any]:
        chosen = kernel_profile(policy).generation() if isinstance(policy, str) else policy

        def stepped() -> int:
            generation = chosen.initial(0)
            for _ in range(STEPS):
                generation = chosen.next(chosen.begin(generation))
            return generation

        benchmark.group = f"{STEPS:,} memslot updates"
        benchmark.pedantic(stepped, rounds=5)
        found = ring(policy)
        space = found.spaces[0]
        row = {
            "policy": policy if isinstance(policy, str) else type(chosen).__name__,
            "bits": found.width,
            "first_wrap": space.first_wrap,
            "updates_per_lap": space.period,
            "unsafe": sum(one.unsafe for one in found.spaces),
        }
        benchmark.extra_info.update(row)
        request.node.user_properties.append((_POLICIES, json.dumps(row)))
        return row

    return measure


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the counts of all tests that measured something, in the order in which they ended.

    Args:
        terminalreporter: of pytest.
    """
    found: dict[str, list[dict[str, Any]]] = {_PLANS: [], _POLICIES: []}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "call":
                for name, text in report.user_properties:
                    if name in found:
                        found[name].append(json.loads(text))
    if found[_PLANS]:
        terminalreporter.section("zap plans, exact counts")
        terminalreporter.write_line(table(found[_PLANS]))
    if found[_POLICIES]:
        terminalreporter.section("generation policies")
        rows = found[_POLICIES]
        terminalreporter.write_line(text_table({name: [row[name] for row in rows] for name in rows[0]}))
