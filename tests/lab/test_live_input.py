"""A real VM as an input: the reduced dump of a crash goes where scenarios and recordings go."""

from __future__ import annotations

import lzma
from pathlib import Path

import kvm_mmu as km
import pytest
from kvm_mmu.lab.live_input import is_dump, live_workload

pytest.importorskip("drgn", reason="the extra `live` is not installed")


@pytest.fixture(scope="module")
def dumps(root: Path) -> Path:
    return root / "tests" / "data" / "live"


def test_a_dump_is_known_by_its_first_bytes(dumps: Path, root: Path, tmp_path: Path) -> None:
    assert is_dump(dumps / "6.1.192" / "npt1tdp1" / "mini.elf.xz")
    assert not is_dump(root / "tests" / "data" / "traces" / "5.0.1-npt" / "basic" / "trace.txt.xz")
    assert not is_dump(root / "pyproject.toml") and not is_dump(root) and not is_dump(tmp_path / "nothing")
    cut = tmp_path / "cut.xz"
    cut.write_bytes(lzma.compress(b"\x7fELF" * 1000)[:20])
    assert not is_dump(cut)


def test_what_the_tables_map_is_what_the_guest_touches(dumps: Path) -> None:
    """Every mapped page is a hit, and what a fast zap costs is a fault for each."""
    made = live_workload(dumps / "6.1.192" / "npt1tdp0" / "mini.elf.xz")
    vm = made.vm.clone()
    before = vm.work["faults"]
    found: dict[str, int] = {}
    for batch in made.touches:
        for name, count in vm.vcpus[0].access_many(batch.gpas, batch.kind).counts().items():
            found[name] = found.get(name, 0) + count
    touches = sum(batch.gpas.size for batch in made.touches)
    assert touches > 100 and found["hit"] + found["emulate"] == touches
    assert vm.work["faults"] - before < touches / 5
    row = km.compare(made, ["v5.4-fast"], at="wrap").rows[0]
    assert 0.75 * touches < row["faults_again"] <= touches and row["sound"] == "yes"


def test_compare_and_sweep_take_it(dumps: Path) -> None:
    path = dumps / "6.1.192" / "npt1tdp1" / "mini.elf.xz"
    compared = km.compare(path, ["tdp-fast", "merged"], at="wrap")
    assert [row["plan"] for row in compared.rows] == ["tdp-fast"] and compared.rows[0]["sound"] == "yes"
    assert any("merged not run" in note for note in compared.notes)
    assert any("the one with the most tables" in note for note in compared.notes)
    swept = km.sweep([path], ["own", "merged"], kernels=["v6.1", "v6.18"], at="wrap", jobs=1)
    assert [(row["kernel"], row["plan"]) for row in swept.rows if not row["error"]] == [
        ("v6.1", "own"),
        ("v6.18", "own"),
    ]
    assert all("no plan of shadow pages runs there" in row["error"] for row in swept.failed)
    assert swept.rows[0]["faults_again"] == compared.rows[0]["faults_again"] > 1000
    own = km.sweep([dumps / "6.12.117" / "npt1tdp0" / "mini.elf.xz"], ["own"], at="wrap", jobs=1).rows[0]
    assert own["mmu"] == "shadow" and own["error"] == "" and own["faults_again"] > 80


def test_what_no_workload_can_be_made_of_is_said(dumps: Path) -> None:
    path = dumps / "6.1.192" / "npt0" / "mini.elf.xz"
    with pytest.raises(km.UsageError, match="what the guest touches is not known"):
        km.compare(path, ["merged"])
    with pytest.raises(km.UsageError, match="VM 9: expected 1 to"):
        live_workload(path, vm=9)
    row = km.sweep(
        [dumps / "6.1.192" / "npt1tdp0" / "mini.elf.xz"], ["merged"], pages=["2x"], at="wrap", jobs=1
    )
    assert "has the size that it has" in row.rows[0]["error"]
