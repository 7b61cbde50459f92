"""Memslot updates as ordered steps, over a backend that only writes down what it is told."""

from __future__ import annotations

import errno

import pytest
from kvm_mmu.errors import MemslotError
from kvm_mmu.machine.memory_region import Request, Slot, carry_out, check, default_mmu_pages, steps
from kvm_mmu.machine.profiles import kernels, with_plans

MIB = 1 << 20
LIVE = [Slot(1, 0x400, 0x200, 0x4000_0000, 0), Slot(0, 0, 0x400, 0x2000_0000, 1)]


class Recorder:
    """A backend that keeps a list of calls and the generations."""

    def __init__(self, generations=(0, 1), requested=0):
        self.calls: list[tuple] = []
        self.generations = list(generations)
        self.requested = requested

    def install_slot(self, as_id, generation, slot):
        self.generations[as_id] = generation
        self.calls.append(("install", generation, slot[4]))

    def remove_slot(self, as_id, generation, slot_id):
        self.generations[as_id] = generation
        self.calls.append(("remove", generation))

    def generation(self, as_id):
        return self.generations[as_id]

    def set_generation(self, as_id, generation):
        self.generations[as_id] = generation
        self.calls.append(("generation", generation))

    def zap(self, plan, slot=None):
        self.calls.append(("zap", plan.name, slot))

    def slot_walk(self, as_id, slot_id, what):
        self.calls.append(("walk", what))

    def total_slot_pages(self):
        return 100_000

    def requested_mmu_pages(self):
        return self.requested

    def memslots_updated(self, generation):
        """Nothing: a log entry where probes are on."""

    invalidate_mmio = memslots_updated

    def makes_mmio_sptes(self):
        return True

    def flush_shadow_memslot(self):
        """The same."""

    def change_mmu_pages(self, goal):
        self.calls.append(("limit", goal))


def update(
    request, live, kernel="v5.2", generations=(0, 1), requested=0, pml=False, published=lambda: None, **plans
):
    backend = Recorder(generations, requested)
    profile = with_plans(kernels[kernel], plans)
    policy = profile.generation()
    change, old = check(request, live)
    carry_out(backend, profile, policy, request, steps(request, change, old, pml), published)
    return backend.calls


def test_create_is_one_publication_and_the_limit():
    calls = update(Request(0, 5, 0x80_0000, 2 * MIB, 0x8000_0000, 0), LIVE)
    assert calls == [("install", 1 << 63, 0), ("generation", 2), ("limit", 2000)]


def test_delete_publishes_an_invalid_copy_flushes_and_publishes_again():
    calls = update(Request(0, 1, 0, 0, 0, 0), LIVE, "v5.0", (100, 0))
    assert calls == [
        ("install", 101, 1 << 16),
        ("generation", 104),
        ("zap", "v5.0-fast", (0, 1)),
        ("remove", 105),
        ("generation", 108),
        ("limit", 2000),
    ]


def test_move_flushes_too_and_keeps_the_flags():
    calls = update(Request(0, 0, 0x4000_0000, 4 * MIB, 0x2000_0000, 1), LIVE)
    assert [c[0] for c in calls] == ["install", "generation", "zap", "install", "generation", "limit", "walk"]
    assert calls[0][2] == 1 | 1 << 16


def test_flags_off_collapses_before_anything_else():
    calls = update(Request(0, 0, 0, 4 * MIB, 0x2000_0000, 0), LIVE)
    assert [c for c in calls if c[0] == "walk"] == [("walk", "zap_collapsible")]
    calls = update(Request(0, 0, 0, 4 * MIB, 0x2000_0000, 0), LIVE, pml=True)
    assert [c[1] for c in calls if c[0] == "walk"] == ["zap_collapsible", "set_dirty"]


@pytest.mark.parametrize(
    ("flags", "pml", "walks"),
    [
        (0, False, []),
        (1, False, ["remove_write_access"]),
        (1, True, ["leaf_clear_dirty", "largepage_remove_write_access"]),
        (2, True, ["remove_write_access"]),
        (3, False, ["remove_write_access"]),
        (0, True, ["set_dirty"]),
    ],
)
def test_what_a_new_slots_flags_make_happen(flags, pml, walks):
    calls = update(Request(0, 5, 0x80_0000, MIB, 0x8000_0000, flags), LIVE, pml=pml)
    assert [c[1] for c in calls if c[0] == "walk"] == walks


def test_v5_0_looks_for_a_wrap_after_publication_and_v5_2_before():
    old = update(Request(1, 5, 0, MIB, 0, 0), [], "v5.0-seed", (0, (1 << 20) - 4))
    assert old[1:3] == [("generation", 1 << 20), ("zap", "seed", None)]
    new = update(Request(1, 5, 0, MIB, 0, 0), [], "v5.2", (0, (1 << 19) - 1))
    assert new[1:3] == [("zap", "merged", None), ("generation", (1 << 19) + 1)]


def test_wrap_may_be_the_first_of_the_two_publications_of_a_delete():
    calls = update(Request(0, 1, 0, 0, 0, 0), LIVE, "v5.2", ((1 << 19) - 2, 1))
    assert [c[:2] for c in calls[:4]] == [
        ("install", (1 << 63) | ((1 << 19) - 2)),
        ("zap", "merged"),
        ("generation", 1 << 19),
        ("zap", "v5.2-slot"),
    ]


def test_the_plan_of_v3_10_runs_after_create_and_move():
    calls = update(Request(0, 5, 0x80_0000, MIB, 0x8000_0000, 0), LIVE, create_move="v3.10-mmio")
    assert ("zap", "v3.10-mmio", None) in calls
    calls = update(Request(0, 1, 0, 0, 0, 0), LIVE, create_move="v3.10-mmio")
    assert ("zap", "v3.10-mmio", None) not in calls


def test_a_requested_limit_is_not_computed_again():
    assert ("limit", 2000) not in update(Request(0, 5, 0x80_0000, MIB, 0x8000_0000, 0), LIVE, requested=64)
    assert default_mmu_pages(8192) == 163
    assert default_mmu_pages(10) == 64


def test_published_runs_between_publication_and_final_generation():
    order: list[str] = []
    backend = Recorder()
    request = Request(0, 5, 0, MIB, 0x8000_0000, 0)
    profile = kernels["v5.2"]
    carry_out(
        backend,
        profile,
        profile.generation(),
        request,
        steps(request, "create", None, False),
        lambda: order.append(backend.calls[-1][0]),
    )
    assert order == ["install"]


def test_nothing_to_change_does_nothing():
    assert update(Request(0, 1, 0x40_0000, 2 * MIB, 0x4000_0000, 0), LIVE) == []


@pytest.mark.parametrize(
    ("request_", "code", "word"),
    [
        (Request(0, 7, 0, MIB, 0, 4), errno.EINVAL, "flags"),
        (Request(0, 7, 0, 0x1001, 0, 0), errno.EINVAL, "size"),
        (Request(0, 7, 0x10, MIB, 0, 0), errno.EINVAL, "gpa"),
        (Request(0, 7, 0, MIB, 0x10, 0), errno.EINVAL, "hva"),
        (Request(2, 7, 0, MIB, 0, 0), errno.EINVAL, "address space"),
        (Request(0, 512, 0, MIB, 0, 0), errno.EINVAL, "too many slots"),
        (Request(0, 7, (1 << 64) - MIB, MIB, 0, 0), errno.EINVAL, "wraps"),
        (Request(0, 7, 0, 1 << 44, 0, 0), errno.EINVAL, "pages"),
        (Request(0, 7, 0, 0, 0, 0), errno.EINVAL, "no such slot"),
        (Request(0, 1, 0x40_0000, 2 * MIB, 0x5000_0000, 0), errno.EINVAL, "hva cannot change"),
        (Request(0, 1, 0x40_0000, 4 * MIB, 0x4000_0000, 0), errno.EINVAL, "resized"),
        (Request(0, 1, 0x40_0000, 2 * MIB, 0x4000_0000, 2), errno.EINVAL, "read-only"),
        (Request(0, 7, 0x30_0000, 2 * MIB, 0x9000_0000, 0), errno.EEXIST, "overlaps slot"),
        (Request(0, 1, 0x10_0000, 2 * MIB, 0x4000_0000, 0), errno.EEXIST, "overlaps slot 0"),
    ],
)
def test_refusals_have_the_kernels_errno_and_a_sentence(request_, code, word):
    with pytest.raises(MemslotError, match=word) as caught:
        check(request_, LIVE)
    assert caught.value.errno == code


def test_kernel_slots_may_have_an_unaligned_hva():
    assert check(Request(0, 509, 0x8000_0000, MIB, 0x10, 0), LIVE)[0] == "create"


@pytest.mark.parametrize("broken", ["next", "is_wrap", "published"])
def test_a_failing_policy_leaves_no_update_in_flight(broken):
    def fail(*_):
        raise RuntimeError("mine")

    backend = Recorder((4, 1))
    policy = kernels["v5.2"].generation()
    if broken != "published":
        setattr(policy, broken, fail)
    request = Request(0, 5, 0x80_0000, MIB, 0x8000_0000, 0)
    with pytest.raises(RuntimeError, match="mine"):
        carry_out(
            backend,
            kernels["v5.2"],
            policy,
            request,
            steps(request, "create", None, False),
            fail if broken == "published" else lambda: None,
        )
    assert backend.generations[0] in (4, 6)
    assert backend.generations[0] == 4 or backend.calls[0][0] == "install"
