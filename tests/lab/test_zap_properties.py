"""Properties of zap plans over random populations: S8, and that the index is the merged walk by another way."""

from __future__ import annotations

from dataclasses import replace

import kvm_mmu as km
from hypothesis import given, settings
from hypothesis import strategies as st
from kvm_mmu.studies.thread_restart import flagged_pages
from kvm_mmu.types import MIB

KERNELS = st.sampled_from(sorted(km.kernels))
TOUCHES = st.lists(
    st.tuples(
        st.integers(0, 1), st.integers(0, 40), st.integers(0, 9), st.sampled_from("rwx"), st.booleans()
    ),
    min_size=1,
    max_size=60,
)
PLANS = st.sampled_from(list(km.ZapPlan.space(only=("mmio_cached",))))


def guest(kernel: str, touches: list[tuple[int, int, int, str, bool]]) -> km.Vm:
    """Two vCPUs, RAM in the first 16 tables, MMIO above; the last field switches the vCPU's SMM."""
    vm = km.Vm(kernel=kernel, family="npt", vcpus=2, events="off")
    for as_id in (0, 1):
        vm.memslots.create(slot=0, gpa=0, size=32 * MIB, hva=(as_id + 1) << 33, as_id=as_id)
    for vcpu, table, page, kind, smm in touches:
        vm.vcpus[vcpu].set_smm(smm)
        vm.vcpus[vcpu].access(table * 2 * MIB + page * 4096, kind)  # type: ignore[arg-type]
    return vm


@given(KERNELS, TOUCHES, PLANS, st.integers(0, 3))
@settings(max_examples=150)
def test_no_mmio_plan_meets_an_unstable_list(
    kernel: str, touches: list[tuple[int, int, int, str, bool]], plan: km.ZapPlan, breaks: int
) -> None:
    vm = guest(kernel, touches)
    flagged = sorted(flagged_pages(vm))
    twin = vm.clone()
    vm.core.set_lock_break(breaks, breaks + 1 if breaks else 0)
    run = vm.zap(replace(plan, restart=frozenset({"on_unstable"})))
    assert run.work["restarts"] == 0
    assert vm.audit() == []
    with twin.zap_batch() as batch:
        for page in flagged:
            assert not batch.prepare(page).is_list_unstable


@given(KERNELS, TOUCHES)
@settings(max_examples=100)
def test_the_index_is_the_merged_walk(kernel: str, touches: list[tuple[int, int, int, str, bool]]) -> None:
    vm = guest(kernel, touches)
    flagged = flagged_pages(vm)
    ends = {}
    for name in ("merged", "indexed"):
        twin = vm.clone()
        run = twin.zap(name)
        assert twin.audit() == []
        assert flagged_pages(twin) == {p for p in flagged if twin.core.page(p) is not None}
        ends[name] = (twin.digest(), set(twin.core.active_page_ids()), run.nr_zapped)
        if name == "indexed":
            assert run.work["walk_visited"] == len(flagged)
    assert ends["merged"] == ends["indexed"]


@given(TOUCHES)
@settings(max_examples=50)
def test_seed_and_merged_zap_the_same_pages(touches: list[tuple[int, int, int, str, bool]]) -> None:
    vm = guest("v5.0-seed", touches)
    one, two = vm.clone(), vm.clone()
    seed, merged = one.zap("seed"), two.zap("merged")
    assert one.digest() == two.digest()
    assert seed.work["walk_visited"] >= merged.work["walk_visited"]
    assert seed.work["pages_zapped"] == merged.work["pages_zapped"]


def test_the_whole_plan_space_ends() -> None:
    vm = guest("v5.0-seed", [(0, i, 0, "r", False) for i in range(24)])
    tried = 0
    for plan in km.ZapPlan.space():
        twin = vm.clone()
        run = twin.zap(plan)
        assert run.outcome == "done"
        tried += 1
    assert tried > 1000
