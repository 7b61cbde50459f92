"""A captured VM as plain data: the form of `Vm.snapshot()`, with what only a live kernel has beside it.

Owns: the form of `--json`, which has a version (`SCHEMA`). docs/reference/live-json.md says each key.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kvm_mmu.live.capture import Capture
from kvm_mmu.live.page_store import WHERE
from kvm_mmu.live.slots import Slot
from kvm_mmu.live.vcpus import NO_ROOT, VcpuState

#: Raised when a key changes its meaning or goes; new keys do not raise it.
SCHEMA = 1


def snapshot(capture: Capture) -> dict[str, Any]:
    """A VM as plain data.

    Args:
        capture: the VM.

    Returns:
        What JSON can hold; words and addresses are text with 0x.
    """
    pages = _pages(capture)
    facts = capture.facts
    return {
        "kernel": facts.release,
        "kvm": hex(capture.kvm),
        "pid": capture.pid,
        "family": facts.family,
        "phys_bits": facts.phys_bits,
        "active": pages[: capture.nr_active],
        "off_list": pages[capture.nr_active : capture.nr_shadow],
        "tdp": pages[capture.nr_shadow :],
        "as": _spaces(capture),
        "vcpus": [_vcpu(capture, vcpu) for vcpu in capture.vcpus],
        "used": capture.counters["used"],
        "max": capture.counters["max"],
        "requested": capture.counters["requested"],
        "indirect": capture.counters["indirect"],
        "mmu_valid_gen": capture.counters.get("valid_gen"),
        "tdp_mmu": capture.tdp_mmu,
        "stats": capture.stats,
        "row": facts.row.profile.name,
        "lpage_level": facts.variable("max_huge_page_level"),
        "nx_huge_pages": bool(facts.variable("nx_huge_pages")),
        "mmio_caching": facts.variable("enable_mmio_caching") != 0,
        "busy": list(capture.busy),
        "faults": list(capture.faults),
        "settled": capture.settled,
        "tries": capture.tries,
    }


def picture(capture: Capture) -> dict[str, Any]:
    """A snapshot as `view.picture.vm_svg` draws it: the TDP MMU's roots and tables under the keys of the model."""
    whole = snapshot(capture)
    roots = [page for page in whole["tdp"] if "tdp_root" in page["where"]]
    tables = [dict(page) for page in whole["tdp"]]
    if not tables:
        return {**whole, "tdp": None}
    return {
        **whole,
        "roots": [
            {"id": page["id"], "refs": page["root_count"], "invalid": page["invalid"], "role": page["role"]}
            for page in roots
        ],
        "tdp": tables,
        "tdp_pages": len(tables) - len(roots),
    }


def places(capture: Capture, sptep: Any) -> tuple[Any, Any]:
    """Page rows (-1: none) and indices of SPTE addresses (virtual)."""
    base = np.uint64(capture.pages.direct_map)
    inside = sptep >= base
    physical = np.where(inside, sptep - base, np.uint64((1 << 64) - 1))
    rows = capture.pages.at_table(physical)
    return rows, (sptep & np.uint64(4095)) // np.uint64(8)


def _named(capture: Capture, sptep: Any) -> list[list[Any]]:
    rows, index = places(capture, sptep)
    ids = capture.ids
    return [
        [int(ids[row]), at] if row >= 0 else [None, hex(address)]
        for row, at, address in zip(rows.tolist(), index.tolist(), sptep.tolist(), strict=True)
    ]


def _pages(capture: Capture) -> list[dict[str, Any]]:
    pages, entries, ids = capture.pages, capture.entries, capture.ids
    level, role = pages.level, pages.role
    column = {
        key: pages.column(key).tolist()
        for key in ("gfn", "unsync", "unsync_children", "root_count", "valid_gen")
    }
    has_mmio_cached = capture.facts.has("mmu_page.mmio_cached")
    mmio_cached = pages.column("mmio_cached").tolist() if has_mmio_cached else None
    spt = pages.unsigned("spt").tolist()
    entry_level = level[entries.page]
    is_link = capture.words.is_link(entries.raw, entry_level)
    child = np.where(is_link, pages.at_table(capture.words.address(entries.raw)), -1).tolist()
    marks: dict[int, list[int]] = {}
    bits = np.unpackbits(pages.bytes_of("unsync_bitmap"), axis=1, bitorder="little")
    bits[capture.nr_shadow :] = 0
    for row, index in zip(*(axis.tolist() for axis in np.nonzero(bits)), strict=True):
        marks.setdefault(row, []).append(index)
    starts = np.searchsorted(entries.page, np.arange(len(pages) + 1)).tolist()
    index, raw, links = entries.index.tolist(), entries.raw.tolist(), is_link.tolist()
    found = []
    for row in range(len(pages)):
        word = int(role[row])
        sptes: list[list[Any]] = []
        for at in range(starts[row], starts[row + 1]):
            spte: list[Any] = [index[at], hex(raw[at])]
            if links[at]:
                spte.append(int(ids[child[at]]) if child[at] >= 0 else None)
            sptes.append(spte)
        fields = capture.facts.role_fields(word)
        found.append(
            {
                "id": int(ids[row]),
                "gfn": column["gfn"][row],
                "role": hex(word),
                **{
                    key: fields.get(key, 0)
                    for key in ("level", "direct", "access", "invalid", "smm", "ad_disabled")
                },
                "unsync": column["unsync"][row],
                "unsync_children": column["unsync_children"][row],
                "root_count": column["root_count"][row],
                "unsync_bitmap": marks.get(row, []),
                "valid_gen": column["valid_gen"][row],
                "mmio_cached": None if mmio_cached is None else mmio_cached[row],
                "parents": _named(capture, capture.parents[row]) if row in capture.parents else [],
                "sptes": sptes,
                "addr": hex(int(pages.addresses[row])),
                "spt": hex(spt[row]),
                "where": sorted(name for bit, name in WHERE.items() if capture.where[row] & bit),
            }
        )
    return found


def _spaces(capture: Capture) -> list[dict[str, Any]]:
    return [
        {"gen": hex(space.generation), "slots": [_slot(capture, slot) for slot in space.slots]}
        for space in capture.spaces
    ]


def _slot(capture: Capture, slot: Slot) -> dict[str, Any]:
    rmap: list[list[Any]] = []
    for level in sorted(slot.rmap):
        heads = slot.rmap[level]
        before = None
        for head, named in zip(heads.head.tolist(), _named(capture, heads.sptep), strict=True):
            if head != before:
                rmap.append([level, head, []])
                before = head
            rmap[-1][2].append(named)
    return {
        "id": slot.id,
        "base": slot.base,
        "npages": slot.npages,
        "flags": slot.flags,
        "hva": hex(slot.hva),
        "rmap": rmap,
        "disallow": [
            [level, at, count]
            for level, (index, value) in sorted(slot.disallow.items())
            for at, count in zip(index.tolist(), value.tolist(), strict=True)
        ],
        "track": [list(pair) for pair in zip(slot.track[0].tolist(), slot.track[1].tolist(), strict=True)],
        "dirty": None if slot.dirty is None else np.flatnonzero(slot.is_dirty).tolist(),
    }


def _vcpu(capture: Capture, vcpu: VcpuState) -> dict[str, Any]:
    mmu = vcpu.mmu
    gva, gfn, access, generation = vcpu.mmio

    def page_of(hpa: int) -> int | None:
        if hpa == NO_ROOT or hpa >> 52:
            return None
        row = int(capture.pages.at_table(np.array([hpa], np.uint64))[0])
        return int(capture.ids[row]) if row >= 0 else None

    return {
        "id": vcpu.id,
        "cr3": hex(mmu.root_pgd),
        "root": page_of(mmu.root_hpa),
        "root_hpa": hex(mmu.root_hpa),
        "pae_entries": mmu.pae_entries if mmu.root_hpa == mmu.special.get("pae_root") else None,
        "prev_roots": [page_of(hpa) for hpa, _ in mmu.prev_roots],
        "requests": hex(vcpu.requests),
        "mmio": [hex(gva), gfn, access, hex(generation)],
        "root_role": hex(mmu.role),
        "smm": mmu.role >> 24,
        "mmu": mmu.name,
    }
