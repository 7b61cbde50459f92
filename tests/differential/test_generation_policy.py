"""A generation policy of one's own over the core: four bits, so that it wraps soon."""

from __future__ import annotations

import kvm_mmu as km
import pytest


class FourBits(km.GenerationPolicy):
    """A generation of four bits, of which bit 0 says that an update is in flight."""

    name = "four-bits"
    layout = km.GenerationLayout(
        width=4, in_progress=1, refuse_in_progress=False, fields=(km.GenerationField(0, 4, 3),)
    )
    default_start = "i*2"

    def begin(self, generation):
        return generation + 1

    def next(self, generation):
        return generation + 1

    def is_wrap(self, generation):
        return generation % 16 == 0


@pytest.mark.parametrize("plan", ["seed", "merged", "indexed", "v5.0-fast"])
def test_create_and_delete_wrap_after_the_number_of_updates_the_policy_says(plan):
    policy = FourBits()
    vm = km.Vm(
        kernel="v5.0-seed",
        family="npt",
        generation=policy,
        plans={"wrap": plan, "slot_removal": "v5.2-slot"},
        events="all",
    )
    vm.memslots.create(slot=0, gpa=0, size=1 << 20)
    vm.vcpus[0].access(0x1000, "w")
    vm.vcpus[0].access(0xFEE0_0000)
    flagged = [page.id for page in vm.active_pages() if page.mmio_cached]
    assert len(flagged) == 1
    wrapped_at = []
    for update in range(2, 40):  # each is one install: slot 1 is created, then its flags change to and fro
        vm.clear_events()
        if update == 2:
            vm.memslots.create(slot=1, gpa=1 << 32, size=1 << 20)
        else:
            vm.memslots.set_flags(slot=1, flags=update % 2)
        if any(event[0] == "prepare_zap" for event in vm.events):
            wrapped_at.append(update)
            vm.vcpus[0].access(0xFEE0_0000)
    assert wrapped_at == [8, 16, 24, 32]
    assert vm.audit() == []


def test_an_mmio_spte_is_fresh_only_under_its_own_generation():
    vm = km.Vm(kernel="v5.0", family="npt", generation=FourBits(), events="all", vcpus=2)
    vm.memslots.create(slot=0, gpa=0, size=1 << 20)
    vm.vcpus[0].access(0xFEE0_0000)
    vm.clear_events()
    vm.vcpus[1].access(0xFEE0_0000)
    assert [e[0] for e in vm.events if e[0] in ("check_mmio", "handle_mmio")] == ["check_mmio", "handle_mmio"]
    vm.memslots.create(slot=1, gpa=1 << 32, size=1 << 20)
    vm.clear_events()
    vm.vcpus[1].access(0xFEE0_0000)
    assert "handle_mmio" not in [e[0] for e in vm.events]
    assert "mark_mmio" in [e[0] for e in vm.events]
