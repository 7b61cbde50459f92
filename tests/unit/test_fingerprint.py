"""Fingerprints: the same for VMs that went the same way, carried on as if made anew; clones go their own ways."""

from __future__ import annotations

import kvm_mmu as km


def _vm(pages: int = 600) -> km.Vm:
    vm = km.Vm(kernel="v5.2")
    vm.memslots.create(0, 0, 4 << 20)
    for gfn in range(pages):
        vm.vcpus[0].access(gfn << 12, "w")
    return vm


def test_the_way_to_a_state_decides_and_not_when_it_was_asked() -> None:
    often, once = _vm(0), _vm(0)
    seen = {often.fingerprint()}
    for gfn in range(0, 1000, 50):
        for vm in (often, once):
            vm.vcpus[0].access(gfn << 12, "w")
        seen.add(often.fingerprint())
    assert len(seen) == 21
    assert often.fingerprint() == once.fingerprint() == km.Vm.from_bytes(once.to_bytes()).fingerprint()


def test_a_clone_has_the_fingerprint_until_one_of_both_changes() -> None:
    vm = _vm()
    twin = vm.clone()
    before, digest = vm.fingerprint(), vm.digest()
    assert twin.fingerprint() == before
    twin.zap("zap-all")
    twin.vcpus[0].access(700 << 12, "w")
    assert twin.fingerprint() != before
    assert (vm.fingerprint(), vm.digest()) == (before, digest)
    vm.zap("zap-all")
    vm.vcpus[0].access(700 << 12, "w")
    assert (vm.fingerprint(), vm.digest()) == (twin.fingerprint(), twin.digest())
    assert vm.audit() == twin.audit() == []
