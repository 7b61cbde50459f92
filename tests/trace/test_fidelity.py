"""The fidelity table over the recordings of the tree."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from kvm_mmu import reference
from kvm_mmu.errors import TraceError
from kvm_mmu.trace.replay.evidence import evidence
from kvm_mmu.trace.replay.evidence import markdown as evidence_table
from kvm_mmu.trace.replay.fidelity import keep, kept, kept_rows, markdown, rows

TRACES = Path(__file__).resolve().parent.parent / "data" / "traces"


def engine(kernel: str, config: Mapping[str, object]) -> Any:
    return reference.Engine(kernel=kernel, config=dict(config))


def test_a_row_for_each_recording(tmp_path: Path):
    for name in ("5.2.1-npt/basic", "6.12/npt1tdp0_zap_batch"):
        shutil.copytree(TRACES / name, tmp_path / name)
    shutil.copytree(TRACES / "5.2.1-npt" / "basic", tmp_path / "5.2.1" / "shadow")
    (tmp_path / "5.2.1" / "shadow" / "host.json").write_text('{"kernel": "5.2.1", "mmu": "shadow"}')
    found = list(rows(tmp_path, engine))
    assert [(row.kernel, row.scenario, row.is_equal) for row in found] == [
        ("5.2.1", "shadow", False),
        ("5.2.1-npt", "basic", True),
        ("6.12", "npt1tdp0_zap_batch", True),
    ]
    text = markdown(found)
    assert "| 5.2.1-npt | basic | 67 of 67 | check_mmio_spte" in text
    assert "| 5.2.1 | shadow | not replayed | " in text and "page tables are in no event" in text
    assert text.endswith("2 of 3 recordings equal, 681 of 681 outputs.")


def test_an_empty_folder_is_an_error(tmp_path: Path):
    with pytest.raises(TraceError, match="no recording here"):
        list(rows(tmp_path, engine))


def test_counts_that_are_kept_give_the_same_table_without_a_replay(tmp_path: Path):
    shutil.copytree(TRACES / "5.2.1-npt" / "pthuge", tmp_path / "5.2.1-npt" / "pthuge")
    recording = tmp_path / "5.2.1-npt" / "pthuge"
    (recording / "outputs.json").unlink()
    assert kept(recording) == {}
    assert "| not replayed | no outputs.json beside it |" in markdown(list(kept_rows(tmp_path)))
    found = list(rows(tmp_path, engine))
    assert keep(tmp_path, found) == [recording / "outputs.json"] and keep(tmp_path, found) == []
    assert markdown(list(kept_rows(tmp_path))) == markdown(found)
    assert (recording / "outputs.json").read_bytes() == (
        TRACES / "5.2.1-npt" / "pthuge" / "outputs.json"
    ).read_bytes()
    (recording / "outputs.json").write_text('{"kvm_mmu_get_page": true}')
    with pytest.raises(TraceError, match="kinds and counts"):
        kept(recording)


def test_evidence_is_counted_by_kernel_mmu_and_host(tmp_path: Path):
    shutil.copytree(TRACES / "5.2.1-npt" / "pthuge", tmp_path / "5.2.1-npt" / "pthuge")
    lines = [
        "# comment",
        "v6.1/aging.npt.tdp1.jsonl.xz reference",
        "seed/aging.ept_ad.jsonl.xz core reference",
    ]
    found = evidence(lines, tmp_path)
    assert {place: str(one) for place, one in found.items()} == {
        ("v6.1", "tdp", "npt"): "1 vectors (reference)",
        ("v5.0-seed", "direct", "ept_ad"): "1 vectors",
        ("v5.2", "direct", "npt"): "1 recording (20 outputs)",
    }
    table = evidence_table(found)
    assert "| `v6.1` | 6.1.192 | TDP MMU | 1 vectors (reference) | rules only | rules only | - |" in table
    assert "| `v5.2` | 5.2.1 | shadow pages, direct | 1 recording (20 outputs) | rules only |" in table
    for line in ("v5.0/nothing core", "v5.0/aging.npt.jsonl", "v5.0/aging.npt.jsonl someone"):
        with pytest.raises(TraceError, match="expected variant/name"):
            evidence([line], tmp_path)
