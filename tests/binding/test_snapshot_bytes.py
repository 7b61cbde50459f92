"""A VM as bytes and back: the same state, digest and future; anything else is refused with a clear error."""

from __future__ import annotations

import pickle
import zlib

import kvm_mmu as km
import pytest
from kvm_mmu.machine.generation import GenerationV50
from kvm_mmu.scenario.machine_engine import MachineEngine
from kvm_mmu.testing.operations import Generator, Universe


def lived_in(kernel="v5.0", steps=150, **config):
    engine = MachineEngine(kernel, {"family": "npt", "vcpus": 2, **config})
    engine.apply(
        {"op": "set_memslot", "as": 0, "id": 0, "gpa": 0, "size": 0x40_0000, "hva": 0x2_0000_0000, "flags": 1}
    )
    source = Generator(11, Universe(vcpus=2, with_breaks=False), kernel)
    for _ in range(steps):
        engine.apply(next(source))
    return engine, source


@pytest.mark.parametrize("kernel", ["v5.0", "v5.0-seed", "v5.2"])
def test_the_same_state_and_the_same_future(kernel):
    engine, source = lived_in(kernel)
    twin = MachineEngine(kernel, {"family": "npt", "vcpus": 2})
    twin.vm = km.Vm.from_bytes(engine.vm.to_bytes())
    assert twin.vm.snapshot() == engine.vm.snapshot()
    assert twin.vm.audit() == []
    assert (twin.vm.stats, twin.vm.work) == (engine.vm.stats, engine.vm.work)
    for _ in range(150):
        op = next(source)
        ours, theirs = engine.apply(op), twin.apply(op)
        assert (ours["ret"], ours["ctr"], engine.digest()) == (theirs["ret"], theirs["ctr"], twin.digest()), (
            op
        )


def test_pickle_goes_the_same_way():
    engine, _ = lived_in(steps=60)
    assert pickle.loads(pickle.dumps(engine.vm)).digest() == engine.vm.digest()


def test_every_single_damaged_byte_is_noticed():
    engine, _ = lived_in(steps=20)
    data = engine.vm.to_bytes()
    for at in range(0, len(data), max(1, len(data) // 400)):
        broken = data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :]
        with pytest.raises(km.SnapshotError):
            km.Vm.from_bytes(broken)


def test_every_cut_is_noticed():
    engine, _ = lived_in(steps=20)
    data = engine.vm.to_bytes()
    for length in [*range(40), *range(40, len(data), max(1, len(data) // 200))]:
        with pytest.raises(km.SnapshotError):
            km.Vm.from_bytes(data[:length])
    with pytest.raises(km.SnapshotError):
        km.Vm.from_bytes(data + b"\0")


def test_a_forged_checksum_does_not_get_a_broken_state_in():
    engine, _ = lived_in(steps=40)
    data = engine.vm.to_bytes()
    accepted = 0
    for at in range(60, len(data) - 4, max(1, (len(data) - 64) // 600)):
        body = bytearray(data[:-4])
        body[at] ^= 0x15
        forged = bytes(body) + zlib.crc32(bytes(body)).to_bytes(4, "little")
        try:
            vm = km.Vm.from_bytes(forged)
        except (km.KvmMmuError, ValueError):
            continue
        accepted += 1  # another host state, counter or generation: a VM as good as any
        assert vm.audit() == []
        vm.vcpus[0].access(0x1000, "w")
        vm.destroy()
        assert vm.audit() == []
    assert accepted


@pytest.mark.parametrize("data", [b"", b"KVMMMU\x1a\n", b"\x7fELF" * 40, b"{}"])
def test_foreign_bytes(data):
    with pytest.raises(km.SnapshotError):
        km.Vm.from_bytes(data)


def test_not_bytes_at_all():
    with pytest.raises(km.SnapshotError, match="found str"):
        km.Vm.from_bytes("snapshot")


def test_a_policy_of_ones_own_is_named_and_must_be_given_again():
    class Mine(GenerationV50):
        name = "mine"

    vm = km.Vm(generation=Mine("i*2"))
    data = vm.to_bytes()
    with pytest.raises(km.SnapshotError, match="policy 'mine'"):
        km.Vm.from_bytes(data)
    assert km.Vm.from_bytes(data, generation=Mine("i*2")).digest() == vm.digest()


def test_a_paused_run_cannot_be_saved():
    engine, _ = lived_in(steps=60)
    vm = engine.vm
    vm.core.set_lock_break(1, 0)
    steps = vm.zap_steps("zap-all")
    next(steps)
    with pytest.raises(km.SnapshotError, match="in progress"):
        vm.to_bytes()
    steps.close()
    assert km.Vm.from_bytes(vm.to_bytes()).digest() == vm.digest()
