"""The model against a real kernel's memory: the recording beside a dump is replayed, and the states are the same.

What no event shows is compared here, too: lists, parents, reverse maps, vetoes. Left out are the frames of host memory
(the replay gives each page its address), bits that the processor sets, and the dirty bitmaps, which a replay does not
keep.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from kvm_mmu import live
from kvm_mmu.trace.replay.engine import Engine, engine_factory
from kvm_mmu.trace.replay.replaying import replay

DATA = Path(__file__).resolve().parent.parent / "data" / "live"
CASES = sorted(str(path.parent.relative_to(DATA)) for path in DATA.glob("*/*/trace.txt.xz"))
ACCESSED_DIRTY, ADDRESS = 0x60, (1 << 52) - 1 & ~0xFFF


def word(text: str, is_mmio: bool) -> int:
    """A word without frame and the processor's bits; an MMIO SPTE whole."""
    raw = int(text, 16)
    return raw if is_mmio else raw & ~ADDRESS & ~ACCESSED_DIRTY


def pages_of(pages: list[dict[str, Any]], is_mmio: Any) -> list[list[Any]]:
    """The pages oldest first, with their numbers from 1 in place of ids: the recording had others before."""
    ordered = sorted(pages, key=lambda page: page["id"])
    number = {page["id"]: at for at, page in enumerate(ordered, 1)}
    found = []
    for page in ordered:
        sptes = [
            [s[0], word(s[1], is_mmio(int(s[1], 16)))] + ([number[s[2]]] if len(s) > 2 else [])
            for s in page["sptes"]
        ]
        parents = [[number[at], index] for at, index in page["parents"]]
        found.append([page["gfn"], page["role"], page["root_count"], page["unsync"], parents, sptes])
    return found


def tables_of(pages: list[dict[str, Any]], is_mmio: Any) -> dict[tuple[str, int], list[list[int]]]:
    """Tables of the TDP MMU by role and gfn; rows of neighbouring leaves unfolded."""
    found = {}
    for page in pages:
        sptes = []
        for spte in page["sptes"]:
            # The model folds neighbours that are alike: [index, word, address of the next, how many].
            count = spte[3] if len(spte) > 3 else 1
            raw = int(spte[1], 16)
            sptes += [[spte[0] + at, word(spte[1], is_mmio(raw) and count == 1)] for at in range(count)]
        found[page["role"], page["gfn"]] = sptes
    return found


@pytest.mark.parametrize("case", CASES)
def test_replay_of_the_recording_ends_in_the_state_of_the_dump(case: str, dumps, tmp_path: Path):
    dump = dumps[case]
    for name in ("trace.txt.xz", "ops.jsonl.xz"):
        (tmp_path / name).write_bytes((dump.folder / name).read_bytes())
    with live.open(str(dump.elf), facts=dump.folder) as kernel:
        real = kernel.vms()[0].snapshot()
        is_mmio = lambda raw: bool(kernel.codec.decode_mmio(raw)["is_mmio"])  # noqa: E731
    host = {
        "kernel": case.split("/")[0],
        "mmu": "npt",
        "tdp_mmu": int(real["tdp_mmu"]),
        "phys_bits": real["phys_bits"],
        "nx_huge_pages": int(real["nx_huge_pages"]),
    }
    (tmp_path / "host.json").write_text(json.dumps(host), encoding="utf-8")
    words = [sys.executable, "-m", "kvm_mmu", "trace", "strip", "trace.txt.xz", "--answers", "yes"]
    with (tmp_path / "stripped.txt").open("w") as out:
        subprocess.run(words, cwd=tmp_path, stdout=out, check=True)
    engines: list[Any] = []
    make = engine_factory("core")

    def factory(name: str, config: Mapping[str, object]) -> Engine:
        engines.append(make(name, config))
        return engines[-1]  # type: ignore[no-any-return]

    report = replay(tmp_path / "stripped.txt", factory)
    assert len(report.predictions) > 500
    model = engines[0].vm.snapshot()
    assert pages_of(model["active"], is_mmio) == pages_of(real["active"], is_mmio)
    if real["tdp_mmu"]:
        assert tables_of(model["tdp"], is_mmio) == tables_of(real["tdp"], is_mmio)
        roots = [page for page in real["tdp"] if "tdp_root" in page["where"]]
        assert [(root["role"], root["refs"]) for root in model["roots"]] == [
            (p["role"], p["root_count"]) for p in roots
        ]
    for key in ("used", "max", "requested", "mmu_valid_gen"):
        assert model[key] == real[key], key
    numbers = {
        id(state): {
            page["id"]: at for at, page in enumerate(sorted(state["active"], key=lambda p: p["id"]), 1)
        }
        for state in (model, real)
    }
    for mine, own in zip(model["as"], real["as"], strict=True):
        assert mine["gen"] == own["gen"]
        slots = {slot["id"]: slot for slot in mine["slots"]}
        assert slots.keys() == {slot["id"] for slot in own["slots"]}
        for slot in own["slots"]:
            for key in ("base", "npages", "flags", "hva", "disallow", "track"):
                assert slots[slot["id"]][key] == slot[key], (slot["id"], key)
            maps = [
                [
                    [level, index, [[numbers[id(state)][page], at] for page, at in chain]]
                    for level, index, chain in of["rmap"]
                ]
                for state, of in ((model, slots[slot["id"]]), (real, slot))
            ]
            assert maps[0] == maps[1]
    assert [vcpu["mmio"] for vcpu in model["vcpus"]] == [vcpu["mmio"] for vcpu in real["vcpus"]]
