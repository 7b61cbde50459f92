"""Plan against plan (`pytest benches/python --benchmark-enable`): one wrap, each plan on a clone of the same state.

Measured wall time of our own code; the exact work counts are what `kvm-mmu compare` prints.
"""

from __future__ import annotations

from typing import Any

import kvm_mmu as km
import numpy as np
import pytest

PLANS = ("seed", "v5.0-fast", "merged", "zap-all", "v5.3-fast", "indexed")
TABLES = 1000
PERCENT = 10


@pytest.fixture(scope="module")
def vm() -> km.Vm:
    """1,000 tables of one entry each, every tenth an MMIO entry."""
    vm = km.Vm(kernel="v5.2", family="ept_ad", events="off")
    vm.memslots.create(slot=0, gpa=0, size=TABLES << 21)
    table = np.arange(TABLES, dtype=np.uint64)
    is_mmio = table % np.uint64(100 // PERCENT) == 0
    vm.vcpus[0].access_many((table << np.uint64(21)) + np.where(is_mmio, np.uint64(1 << 40), np.uint64(0)))
    return vm


@pytest.mark.parametrize("plan", PLANS)
def test_wrap(benchmark: Any, vm: km.Vm, plan: str) -> None:
    benchmark.group = f"wrap, {TABLES} tables, {PERCENT} % MMIO-cached"
    run = benchmark.pedantic(lambda clone: clone.zap(plan), setup=lambda: ((vm.clone(),), {}), rounds=5)
    assert run.nr_zapped >= TABLES * PERCENT // 100
