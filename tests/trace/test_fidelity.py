"""The fidelity table over the recordings of the tree."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from kvm_mmu import reference
from kvm_mmu.errors import TraceError
from kvm_mmu.trace.replay.fidelity import markdown, rows

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
    assert "| 5.2.1 | shadow | not replayed | shadow paging of 5.x" in text
    assert text.endswith("2 of 3 recordings equal, 681 of 681 outputs.")


def test_an_empty_folder_is_an_error(tmp_path: Path):
    with pytest.raises(TraceError, match="no recording here"):
        list(rows(tmp_path, engine))
