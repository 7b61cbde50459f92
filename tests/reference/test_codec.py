"""The MMIO SPTE codec of the reference against the 3,151 recorded values and the values told in the texts."""

from __future__ import annotations

import json
import lzma
import os
from pathlib import Path
from typing import Any

import pytest
from kvm_mmu.reference import ScenarioError
from kvm_mmu.reference.common import mmio

ROOT = Path(__file__).resolve().parents[2]


def codec_lines() -> list[dict[str, Any]]:
    shared = Path(os.environ.get("KVM_MMU_SHARED", ROOT.parent / "shared")) / "vectors"
    own = ROOT / "tests" / "data" / "vectors" / "mmio_codec.jsonl.xz"
    if own.exists():
        text = lzma.decompress(own.read_bytes()).decode()
    elif (shared / "mmio_codec.jsonl").exists():
        text = (shared / "mmio_codec.jsonl").read_text()
    else:
        pytest.skip("no codec vectors here: set KVM_MMU_SHARED to run this test")
    return [json.loads(line) for line in text.splitlines() if line]


def test_every_recorded_value_is_equal() -> None:
    values = 0
    where: tuple[str, int, str] = ("", 0, "")
    for line in codec_lines():
        if "config" in line:
            config = line["config"]
            where = (config["variant"], config["phys_bits"], config["family"])
            header = mmio.codec(*where)[1].to_header()
            assert {name: header[name] for name in line["masks"]} == line["masks"]
            continue
        values += 1
        if "raw" in line:
            word = int(line["raw"], 16)
        else:
            gen = int(line["gen"], 16)
            word = mmio.make_mmio_spte(*where, line["gfn"], line["access"], gen)
            assert hex(word) == line["spte"], (where, line)
            assert mmio.mmio_generation(mmio.codec(*where)[0], gen) == line["kvm_gen"]
            assert mmio.check_mmio_spte_word(*where, word, gen) == bool(line["check_same"])
            assert mmio.check_mmio_spte_word(*where, word, gen + 2) == bool(line["check_next"])
        decoded = mmio.decode_mmio_spte(*where, word)
        assert decoded == {
            "is_mmio": line["is_mmio"],
            "shadow_present": line["shadow_present"],
            "gfn": line["dec_gfn"],
            "access": line["dec_access"],
            "mmio_gen": line["dec_gen"],
        }, (where, line)
    assert values == 3151


@pytest.mark.parametrize(
    ("kernel", "gfn", "access", "gen", "spte"),
    [
        ("v5.0", 0xE0000, 6, 0xFFF6A, 0x7FF800F8E0000DAF),
        ("v5.0", 0xE0000, 6, 0xFFF6E, 0x7FF800F8E0000DBF),
        ("v5.0", 0xE0000, 6, 0x2, 0x400800F8E000000F),
        ("v5.2", 0xE0000, 6, 0x0, 0x400800F8E0000007),
        ("v5.2", 0xE0000, 6, 0x2, 0x402800F8E0000017),
        ("v5.2", 0xE0000, 6, 0xA, 0x40A800F8E0000057),
        ("v5.2", 0x812345, 6, 0x2, 0x402801F812345017),
        ("v5.2", 0xF7FFFFF, 0, 0x2, 0x40281EFFFFFFF011),
    ],
)
def test_values_seen_on_running_kernels(kernel: str, gfn: int, access: int, gen: int, spte: int) -> None:
    assert mmio.make_mmio_spte(kernel, 40, "npt", gfn, access, gen) == spte


def test_v5_2_reads_back_only_ten_generation_bits() -> None:
    for gen in (0x3FE, 0x400, 0x7FFFE):
        word = mmio.make_mmio_spte("v5.2", 40, "npt", 0xE0000, 6, gen)
        assert mmio.decode_mmio_spte("v5.2", 40, "npt", word)["mmio_gen"] == gen & 0x3FF
        assert mmio.check_mmio_spte_word("v5.2", 40, "npt", word, gen) == (gen < 0x400)


def test_an_unknown_kernel_family_or_width_is_refused() -> None:
    for where in (("v4.20", 40, "npt"), ("v5.0", 40, "arm"), ("v5.0", 53, "npt")):
        with pytest.raises(ScenarioError):
            mmio.make_mmio_spte(*where, 0, 6, 0)
