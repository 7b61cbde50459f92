"""Each fact of shadow paging in which v6.1 and v6.12 differ is decided by a vector: turned round, a step differs."""

from __future__ import annotations

import json
import lzma
from dataclasses import replace
from pathlib import Path

import pytest
from kvm_mmu.reference import Engine

VECTORS = Path(__file__).resolve().parents[1] / "data" / "vectors" / "v6.12"
#: The fact, a vector of v6.12 that shows it, and the step that comes out otherwise.
SHOWN_BY = {
    "self_map_is_small": ("sx_large_hugetlb1g", 25),
    "sync_keeps_same_access": ("shadow_mmio", 32),
    "invlpg_syncs": ("shadow_mmio", 29),
    "has_dummy_root": ("sx_roots", 79),
    "unprotect_counts_freed": ("sx_pae", 99),
}


def first_difference(name: str, fact: str | None) -> int | None:
    """The first step that differs from the vector, with a fact turned round."""
    text = lzma.decompress((VECTORS / f"{name}.shadow.tdp0.jsonl.xz").read_bytes()).decode()
    header, *lines = [json.loads(line) for line in text.splitlines() if line]
    engine = Engine("v6.12", header["config"], format=header["format"])
    if fact is not None:
        rules = engine.kvm.rules
        engine.kvm.rules = replace(rules, **{fact: not getattr(rules, fact)})
    for want in lines:
        got = engine.apply(want["op"])
        if any(got.get(key) != want.get(key) for key in ("ret", "out", "events")):
            return int(want["i"])
    return None


@pytest.mark.parametrize("fact", SHOWN_BY)
def test_a_fact_turned_round_is_noticed(fact: str) -> None:
    name, step = SHOWN_BY[fact]
    assert first_difference(name, fact) == step
    assert first_difference(name, None) is None
