"""What a person asks of one VM: who maps a gfn, what stands at an address, which pages are of a gfn. In words.

Owns: the sentences. Each question gives plain data (`--json`) and lines of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kvm_mmu.errors import UsageError
from kvm_mmu.live.audit.facts import Seen
from kvm_mmu.live.live_vm import LiveVm
from kvm_mmu.words.roles import decode_role

#: Entries, pages and steps upwards that are listed.
MAX_LISTED, MAX_STEPS = 200, 8


def ask_gfn(vm: LiveVm, gfn: int) -> dict[str, Any]:
    """Find everything that concerns one guest frame.

    Args:
        vm: the VM.
        gfn: the frame.

    Returns:
        `gfn`, `slots` (each memslot it lies in), `sptes` (each leaf or MMIO SPTE of it), `tables` (pages that shadow
        or begin at it).
    """
    seen = Seen(vm.state)
    wanted = np.uint64(_number("gfn", gfn, 52))
    size = np.uint64(1) << ((seen.level - 1) * 9).clip(0, 63).astype(np.uint64)
    first = seen.entries.gfn & ~(size - np.uint64(1))
    covers = (first <= wanted) & (wanted < first + size) & (seen.is_leaf | seen.is_mmio)
    found = np.flatnonzero(covers)
    rows = np.flatnonzero(seen.pages.gfn == wanted)
    return {
        "gfn": hex(int(wanted)),
        "slots": _slots(vm, int(wanted)),
        "sptes": [_spte(seen, int(at)) for at in found[:MAX_LISTED]],
        "nr_sptes": len(found),
        "tables": [_page(seen, int(row)) for row in rows[:MAX_LISTED]],
        "nr_tables": len(rows),
    }


def _slots(vm: LiveVm, gfn: int) -> list[dict[str, Any]]:
    found = []
    for number, space in enumerate(vm.state.spaces):
        for slot in space.slots:
            if not slot.base <= gfn < slot.end:
                continue
            at = gfn - slot.base
            tracked = dict(zip(slot.track[0].tolist(), slot.track[1].tolist(), strict=True)).get(at, 0)
            vetoes = {
                level: dict(zip(index.tolist(), value.tolist(), strict=True)).get(
                    (gfn >> 9 * (level - 1)) - (slot.base >> 9 * (level - 1)), 0
                )
                for level, (index, value) in slot.disallow.items()
            }
            found.append(
                {
                    "space": number,
                    "id": slot.id,
                    "hva": hex(slot.hva + (at << 12)),
                    "tracked": tracked,
                    "large_forbidden": vetoes,
                    "dirty": None if slot.dirty is None else bool(slot.is_dirty[at]),
                }
            )
    return found


def ask_spte(vm: LiveVm, address: int) -> dict[str, Any]:
    """Find what stands at the address of an SPTE.

    Args:
        vm: the VM.
        address: virtual (in the direct map) or physical.

    Returns:
        The entry, its page, and the way up to its roots.

    Raises:
        UsageError: there is no table of this VM.
    """
    seen = Seen(vm.state)
    base = vm.state.pages.direct_map
    physical = _number("address", address, 64)
    physical -= base if physical >= base else 0
    row = int(seen.pages.at_table(np.array([physical], np.uint64))[0])
    if row < 0:
        raise UsageError(f"spte {address:#x}: lies in no table of this VM")
    index = (physical & 4095) // 8
    entries = vm.state.entries
    inside = entries.of(row)
    at = inside.start + int(np.searchsorted(entries.index[inside], index))
    is_there = at < inside.stop and int(entries.index[at]) == index
    return {
        "address": hex(base + (physical & ~7)),
        "spte": _spte(seen, at)
        if is_there
        else {"page": int(vm.state.ids[row]), "index": index, "kind": "empty"},
        "page": _page(seen, row),
        "above": _above(seen, row),
    }


def ask_page(vm: LiveVm, gfn: int) -> dict[str, Any]:
    """Find the shadow pages and tables of a guest frame.

    Args:
        vm: the VM.
        gfn: as the page has it: the guest's table that it shadows, or the first frame that it maps.

    Returns:
        Each with role, parents, entries and the way up.

    Raises:
        UsageError: there is none.
    """
    seen = Seen(vm.state)
    rows = np.flatnonzero(seen.pages.gfn == np.uint64(_number("gfn", gfn, 52)))
    if not len(rows):
        raise UsageError(f"page {gfn:#x}: no shadow page or table of this VM is of that gfn")
    pages = []
    for row in rows[:MAX_LISTED].tolist():
        inside = vm.state.entries.of(row)
        shown = range(inside.start, min(inside.stop, inside.start + MAX_LISTED))
        pages.append(
            {
                **_page(seen, row),
                "above": _above(seen, row),
                "nr_sptes": inside.stop - inside.start,
                "sptes": [_spte(seen, at) for at in shown],
            }
        )
    return {"gfn": hex(gfn), "nr_pages": len(rows), "pages": pages}


def _number(what: str, value: int, bits: int) -> int:
    if not 0 <= value < 1 << bits:
        raise UsageError(f"{what} {value:#x}: expected at most {bits} bits")
    return value


def _spte(seen: Seen, at: int) -> dict[str, Any]:
    state = seen.c
    row, raw = int(seen.page[at]), int(seen.entries.raw[at])
    kind = (
        "mmio"
        if seen.is_mmio[at]
        else "link"
        if seen.is_link[at]
        else "leaf"
        if seen.is_leaf[at]
        else "other"
    )
    found: dict[str, Any] = {
        "page": int(state.ids[row]),
        "index": int(seen.index[at]),
        "level": int(seen.level[at]),
        "space": int(seen.space[at]),
        "address": hex(int(seen.sptep[at])),
        "spte": hex(raw),
        "gfn": hex(int(seen.entries.gfn[at])),
        "kind": kind,
        "words": state.facts.codec.phrase(raw, int(seen.level[at])),
    }
    if kind == "mmio":
        now = state.spaces[found["space"]].generation if found["space"] < len(state.spaces) else 0
        found["fresh"] = bool(state.facts.codec.decode_mmio(raw, now)["fresh"])
    return found


def _page(seen: Seen, row: int) -> dict[str, Any]:
    state, pages = seen.c, seen.pages
    role = int(pages.role[row])
    said = decode_role(role, state.facts.row.profile)
    return {
        "id": int(state.ids[row]),
        "gfn": hex(int(pages.gfn[row])),
        "role": hex(role),
        "level": int(pages.level[row]),
        "words": "; ".join(
            bit[4] for bit in said["bits"] if bit[2] in ("level", "direct", "access", "smm", "invalid")
        ),
        "address": hex(int(pages.addresses[row])),
        "table": hex(int(pages.table[row])),
        "root_count": int(pages.column("root_count")[row]),
        "unsync": int(pages.column("unsync")[row]),
        "is_tdp": row >= state.nr_shadow,
    }


def _above(seen: Seen, row: int) -> list[str]:
    """The way up, a step a line, by the first parent of each page."""
    steps = []
    seen_rows = {row}
    for _ in range(MAX_STEPS):
        up = seen.c.parents.get(row)
        if up is None or not len(up):
            break
        more = f" and {len(up) - 1} more" if len(up) > 1 else ""
        steps.append(f"from {seen.place_name(int(up[0]))}{more}")
        row = int(seen.pages.at_table(up[:1] - np.uint64(seen.pages.direct_map))[0])
        if row < 0 or row in seen_rows:
            break
        seen_rows.add(row)
    holders = [
        vcpu.id for vcpu in seen.c.vcpus if _is_root(seen, row, vcpu.mmu.root_hpa, vcpu.mmu.pae_entries)
    ]
    if row >= 0 and holders:
        steps.append("root of vCPU " + ", ".join(map(str, holders)))
    return steps


def _is_root(seen: Seen, row: int, hpa: int, pae: list[int] | None) -> bool:
    if row < 0:
        return False
    table = int(seen.pages.table[row])
    return hpa == table or any(entry & 1 and entry & (1 << 52) - 1 & ~0xFFF == table for entry in pae or ())


def lines_of(answer: dict[str, Any]) -> list[str]:
    """An answer as lines for a person."""
    lines: list[str] = []
    if "address" in answer:
        lines.append(f"SPTE at {answer['address']}")
        lines += _spte_lines(answer["spte"]) + _page_lines(answer["page"])
        return lines + [f"  {step}" for step in answer["above"]]
    lines.append(f"gfn {answer['gfn']}")
    for slot in answer.get("slots", ()):
        lines.append(
            f"  slot {slot['id']} of address space {slot['space']}, host address {slot['hva']}"
            + (f", writes tracked {slot['tracked']} times" if slot["tracked"] else "")
            + "".join(
                f", large pages of level {k} forbidden {v} times"
                for k, v in slot["large_forbidden"].items()
                if v
            )
            + ("" if slot["dirty"] is None else ", marked dirty" if slot["dirty"] else ", not marked dirty")
        )
    if "slots" in answer and not answer["slots"]:
        lines.append("  in no memslot")
    for spte in answer.get("sptes", ()):
        lines += _spte_lines(spte)
    if answer.get("nr_sptes") == 0:
        lines.append("  no SPTE maps it")
    for page in answer.get("tables", answer.get("pages", ())):
        lines += _page_lines(page) + [f"  {step}" for step in page.get("above", ())]
        for spte in page.get("sptes", ()):
            lines += _spte_lines(spte)
    return lines


def _spte_lines(spte: dict[str, Any]) -> list[str]:
    if spte["kind"] == "empty":
        return [f"  page {spte['page']}[{spte['index']}]: empty"]
    space = "" if spte["space"] == 0 else f", address space {spte['space']}"
    fresh = "" if "fresh" not in spte else ", fresh" if spte["fresh"] else ", stale"
    return [
        f"  page {spte['page']}[{spte['index']}], level {spte['level']}{space}: {spte['spte']} {spte['words']}{fresh}"
    ]


def _page_lines(page: dict[str, Any]) -> list[str]:
    kind = "table of the TDP MMU" if page["is_tdp"] else "shadow page"
    count = f", root count {page['root_count']}" if page["root_count"] else ""
    unsync = ", out of sync" if page["unsync"] else ""
    return [f"{kind} {page['id']}, gfn {page['gfn']}, role {page['role']}{count}{unsync}: {page['words']}"]
