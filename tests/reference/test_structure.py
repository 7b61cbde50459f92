"""Random operations, operations inside operations included, leave a reference VM whole after every step."""

from __future__ import annotations

import random
from typing import Any

import pytest
from kvm_mmu.reference import Engine
from kvm_mmu.testing.tdp_operations import TdpGenerator

from structure import assert_structure, assert_tdp_structure  # isort: skip

PAGE = 0x1000


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("kernel", ["v5.0", "v5.0-seed", "v5.2", "v5.3", "v5.4", "v6.1", "v6.12"])
def test_random_operations_keep_the_structure(kernel: str, seed: int) -> None:
    choose = random.Random(f"{kernel} {seed}")
    family = choose.choice(["npt", "ept_ad", "ept_noad"])
    config = {"family": family, "vcpus": 2, "pml": choose.choice([0, 1]), "flush_range": seed % 2}
    if kernel.startswith("v6"):
        # More that only these have: four roots, NX huge pages, no MMIO entries.
        config |= [
            {},
            {"family": "shadow", "guest_paging": 0},
            {"nx_huge_pages": 1},
            {"mmio_caching": 0},
        ][seed % 4]
    engine = Engine(kernel, config)
    for _ in range(150):
        engine.apply(random_op(choose, kernel))
        assert_structure(engine.kvm)
    assert engine.clone().digest() == engine.digest()


TDP_CONFIGS: list[dict[str, Any]] = [
    {"family": "npt", "vcpus": 2},
    {"family": "ept_ad", "vcpus": 2, "pml": 1},
    {"family": "ept_noad", "vcpus": 3, "execonly": 0, "lpage_level": 2},
    {"family": "npt", "vcpus": 2, "tdp_level": 5, "phys_bits": 51, "nx_huge": 1, "flush_range": 1},
]


@pytest.mark.parametrize("config", TDP_CONFIGS, ids=lambda config: str(config["family"]))
@pytest.mark.parametrize("kernel", ["v6.1", "v6.12", "v6.18", "v7.3"])
def test_random_operations_keep_the_structure_of_the_tdp_mmu(kernel: str, config: dict[str, Any]) -> None:
    engine = Engine(kernel, config, format=6)
    generator = TdpGenerator(TDP_CONFIGS.index(config), kernel, config)
    for _ in range(250):
        engine.apply(next(generator))
        assert_tdp_structure(engine.kvm)
    assert engine.clone().digest() == engine.digest()


def random_op(choose: random.Random, kernel: str, depth: int = 0) -> dict[str, Any]:
    def gpa() -> int:
        return choose.choice([0, 0x200000, 0x400000, 0x800000]) + PAGE * choose.randrange(24)

    def slot_op() -> dict[str, Any]:
        base = choose.choice([0, 0x200000, 0x400000])
        size = choose.choice([0, 0x200000, 0x200000])
        op = {
            "op": "set_memslot",
            "id": choose.randrange(3),
            "as": choose.randrange(2),
            "gpa": base,
            "size": size,
        }
        op |= {
            "hva": 0x200000000 + choose.choice([0, 0x1000]) * choose.randrange(2),
            "flags": choose.randrange(4),
        }
        if depth == 0 and choose.random() < 0.3:
            op["during"] = [[random_op(choose, kernel, 1)], [random_op(choose, kernel, 1)]]
        return op

    def breaks() -> dict[str, Any]:
        if depth:
            return {"op": "dump"}
        do = [[random_op(choose, kernel, 1) for _ in range(choose.randrange(3))] for _ in range(6)]
        return {
            "op": "lock_break",
            "cond": choose.choice([0, 1, 3]),
            "need": choose.choice([0, 50]),
            "do": do,
        }

    hva = 0x200000000 + PAGE * choose.randrange(512)
    whole = {"start": hva, "end": hva + PAGE * choose.choice([1, 8, 512])}
    whats = [
        "remove_write_access",
        "leaf_clear_dirty",
        "set_dirty",
        "zap_collapsible",
        "flush_shadow_memslot",
    ]
    makers: list[tuple[int, Any]] = [
        (
            40,
            lambda: {"op": "access", "vcpu": choose.randrange(2), "gpa": gpa(), "kind": choose.choice("rwx")},
        ),
        (8, slot_op),
        (3, breaks),
        (
            3,
            lambda: {
                "op": "zap",
                "plan": choose.choice(["seed", "merged", "v5.0-fast", "v5.3-fast", "v5.4-fast", "indexed"]),
            },
        ),
        (2, lambda: {"op": "zap_all"}),
        (2, lambda: {"op": "unload", "vcpu": choose.randrange(2)}),
        (2, lambda: {"op": "smm", "vcpu": choose.randrange(2), "on": choose.randrange(2)}),
        (2, lambda: {"op": "get_dirty_log", "as": choose.randrange(2), "id": choose.randrange(3)}),
        (2, lambda: {"op": "unmap_hva", **whole}),
        (2, lambda: {"op": "age_hva", "flush": choose.randrange(2), **whole}),
        (
            0 if kernel == "v6.12" else 2,
            lambda: {"op": "change_pte", "hva": hva, "pfn": 0x5000, "write": choose.randrange(2)},
        ),
        (
            2,
            lambda: {
                "op": "host_huge",
                "hva": 0x200000000,
                "npages": 512,
                "kind": choose.choice(["thp", "none"]),
            },
        ),
        (
            2,
            lambda: {
                "op": "host_state",
                "hva": hva,
                "npages": 4,
                "state": choose.choice(["cow", "rw", "fault"]),
            },
        ),
        (2, lambda: {"op": "slot", "id": choose.randrange(3), "what": choose.choice(whats)}),
        (2, lambda: {"op": "track", "gfn": choose.randrange(1024), "on": choose.randrange(2)}),
        (2, lambda: {"op": "shrink", "n": 1}),
        (1, lambda: {"op": "zap_oldest", "n": choose.randrange(6)}),
        (1, lambda: {"op": "manual_protect", "on": choose.randrange(4)}),
        (1, lambda: {"op": "dirty_masked", "id": choose.randrange(3), "offset": 0, "mask": 0xFF}),
        (
            2,
            lambda: {
                "op": "fault",
                "gpa": gpa(),
                "err": choose.choice([6, 7, 0x14]),
                "host": choose.choice([None, {"level": 1, "writable": choose.randrange(2), "found": [1, 2]}]),
            },
        ),
        (1, lambda: {"op": "change_mmu_pages", "n": choose.choice([4, 40])}),
        (1, lambda: {"op": "teardown"}),
        (1, lambda: {"op": "zap_gfn_range", "start": 0, "end": choose.choice([1, 700])}),
    ]
    op: dict[str, Any] = choose.choices([make for _, make in makers], [weight for weight, _ in makers])[0]()
    return op
