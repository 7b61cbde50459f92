"""Dumps of real kernels read whole: equal to what they hold, and to what the recording's events alone say of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kvm_mmu import live
from kvm_mmu.words.roles import decode_role

pytest.importorskip("drgn", reason="drgn has no wheel for this platform: the extra `live` is not installed")

#: Bits of a leaf that the processor sets.
ACCESSED_DIRTY = 0x60


def part(wanted: Any, found: Any, path: str = "vm") -> str:
    """The first difference of what is wanted; there may be more than that."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key, value in wanted.items():
            said = part(value, found[key], f"{path}.{key}") if key in found else f"{path}.{key}: missing"
            if said:
                return said
        return ""
    if isinstance(wanted, list) and isinstance(found, list):
        if len(wanted) != len(found):
            return f"{path}: {len(found)} for {len(wanted)}"
        return next(
            (
                said
                for i, pair in enumerate(zip(wanted, found, strict=True))
                if (said := part(*pair, f"{path}[{i}]"))
            ),
            "",
        )
    return "" if wanted == found else f"{path}: expected {str(wanted)[:60]}, got {str(found)[:60]}"


def test_equals_what_the_dump_holds_and_what_happened(dump):
    with live.open(str(dump.elf), facts=dump.folder) as kernel:
        found = json.loads(json.dumps([vm.snapshot() for vm in kernel.vms()]))
    assert part(dump.json("live.json"), found) == ""
    assert [vm["faults"] for vm in found] == [[], []]
    truth, first = dump.json("truth.json"), found[0]
    assert [int(space["gen"], 16) for space in first["as"]] == truth["generation"]
    if first["tdp_mmu"]:
        entries = {
            (page["smm"], page["level"], page["gfn"] + (spte[0] << 9 * (page["level"] - 1))): int(spte[1], 16)
            & ~ACCESSED_DIRTY
            for page in first["tdp"]
            for spte in page["sptes"]
        }
        assert entries == {tuple(one[:3]): int(one[3], 16) & ~ACCESSED_DIRTY for one in truth["tdp"]}
        return
    wanted, got = (
        [(p["gfn"], p["role"], p["unsync"]) for p in pages] for pages in (truth["active"], first["active"])
    )
    assert got == wanted
    assert first["used"] == truth["made"] - truth["freed"]
    leaves = {}
    for page in [*first["active"], *first["off_list"]]:
        for spte in page["sptes"]:
            if len(spte) == 2:
                at = int(page["spt"], 16) % (1 << 46) + 8 * spte[0]
                leaves[at & (1 << 40) - 1] = int(spte[1], 16) & ~ACCESSED_DIRTY
    assert len(leaves) == len(truth["leaf_sptes"])
    assert sorted(leaves.values()) == sorted(
        int(one[0], 16) & ~ACCESSED_DIRTY for one in truth["leaf_sptes"].values()
    )


def test_the_row_explains_the_kernel_s_own_masks_and_roles(dump):
    with live.open(str(dump.elf), facts=dump.folder) as kernel:
        assert kernel.facts.foreign_masks == []
        assert kernel.facts.row.is_known
        for vm in kernel.vms():
            for page in vm.pages:
                said = decode_role(page["role"], kernel.facts.row.profile)
                for key in ("level", "direct", "access", "invalid", "smm", "ad_disabled"):
                    assert said[key] == page[key]


def test_command_prints_an_object_with_every_vm(dumps):
    dump = dumps["6.1.192/npt1tdp1"]
    done = subprocess.run(
        [sys.executable, "-m", "kvm_mmu", "live", str(dump.elf), "--facts", str(dump.folder), "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["schema"] == "kvm-mmu/live/1"
    assert part(dump.json("live.json"), found["vms"]) == ""


def test_full_dump_carries_its_own_types(shared: Path, tmp_path: Path):
    import lzma

    folders = sorted(path.parent for path in (shared / "live").glob("*/*/full.elf.xz"))
    if not folders:
        pytest.skip("no dump with types of its own in the shared material")
    for folder in folders:
        elf = tmp_path / "full.elf"
        elf.write_bytes(lzma.decompress((folder / "full.elf.xz").read_bytes()))
        with live.open(str(elf)) as kernel:
            found = json.loads(json.dumps([vm.snapshot() for vm in kernel.vms()]))
            assert kernel.opened.faults == []
        assert part(json.loads((folder / "live.json").read_text(encoding="utf-8")), found) == ""
