"""A live VM's snapshot as the rows that the core fills a new `Vm` with: `Vm.from_snapshot`.

Owns: the reading of that form (`kvm_mmu.live`, or its JSON). What is not in a snapshot and the model needs is taken as
the kernel starts with it. Source: docs/reference/live-json.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvm_mmu.errors import SnapshotError, UsageError
from kvm_mmu.machine.profiles import KernelProfile, kernel_profile

ACTIVE, ZAPPED_ROOT, TDP_ROOT, TDP_TABLE = range(4)
#: Levels under which arrays of a slot go to the core: of write tracking, and of the dirty log.
_TRACK, _DIRTY = 0, 4
_ADDRESS = (1 << 52) - 1 & ~0xFFF


def plain(live: object) -> Mapping[str, Any]:
    """A snapshot as a mapping: what is given, or what its `snapshot()` gives.

    Raises:
        SnapshotError: neither.
    """
    found = live.snapshot() if hasattr(live, "snapshot") else live
    if not isinstance(found, Mapping):
        raise SnapshotError(f"a live VM's snapshot is a mapping, found {type(found).__name__}")
    if found.get("error"):
        raise SnapshotError(f"this VM could not be read: {found['error']}")
    return found


def profile_of(found: Mapping[str, Any], kernel: str | KernelProfile | None) -> KernelProfile:
    """The kernel of a snapshot, or the one that is asked for.

    Raises:
        SnapshotError: it has words that the model keeps otherwise.
    """
    try:
        profile = kernel_profile(kernel if kernel is not None else str(found.get("row") or found["kernel"]))
    except (UsageError, KeyError) as error:
        raise SnapshotError(f"{error}; give one as kernel=") from None
    if profile.facts["role_layout"] not in ("v5.0", "v5.1", "v6.1"):
        raise SnapshotError(
            f"{profile.name}: roles of its pages are laid out otherwise, they cannot be taken over"
        )
    return profile


def config_of(found: Mapping[str, Any], profile: KernelProfile) -> dict[str, Any]:
    """The arguments of `Vm` but the kernel. A kernel whose guests' own tables are not modelled goes on without them."""
    family = str(found["family"])
    pages = _pages(found)
    return {
        "family": family,
        "phys_bits": int(found["phys_bits"]),
        "tdp_level": 5 if any(page["level"] == 5 for page, _ in pages) else 4,
        "lpage_level": int(found.get("lpage_level") or 3),
        "vcpus": max(1, len(found["vcpus"])),
        "nx_huge_pages": bool(found.get("nx_huge_pages", False)),
        "mmio_caching": bool(found.get("mmio_caching", True)),
        "guest_paging": family != "shadow" or bool(profile.facts.get("has_guest_tables", False)),
        "tdp_mmu": bool(found["tdp_mmu"]),
    }


def _pages(found: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], int]]:
    """Pages in the order that numbers them: the active list from its oldest, then others, with where each was."""
    active = [(page, ACTIVE) for page in reversed(found["active"])]
    off = [(page, ZAPPED_ROOT) for page in found.get("off_list", ())]
    tdp = [(page, TDP_ROOT if "tdp_root" in page["where"] else TDP_TABLE) for page in found.get("tdp") or ()]
    return active + off + tdp


def rows_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """Everything but the slots themselves, as `_core.Mmu.restore` takes it.

    Raises:
        SnapshotError: an entry leads to nothing, or a key is missing.
    """
    pages = _pages(found)
    number = {page["id"]: at for at, (page, _) in enumerate(pages, 1)}
    by_id = {page["id"]: page for page, _ in pages}
    mapped = {
        (named[0], named[1]): (slot["base"] >> 9 * (level - 1)) + index << 9 * (level - 1)
        for space in found["as"]
        for slot in space["slots"]
        for level, index, chain in slot["rmap"]
        for named in chain
    }
    rows: dict[str, Any] = {key: [] for key in ("pages", "entries", "parents", "marks", "rmaps", "arrays")}
    for page, place in pages:
        own = number[page["id"]]
        valid_gen = 0 if place in (TDP_ROOT, TDP_TABLE) else int(page["valid_gen"])
        row = (page["gfn"], int(page["role"], 16), valid_gen, page["root_count"], place, bool(page["unsync"]))
        rows["pages"].append(row)
        rows["marks"] += [(own, index) for index in _marks(page, by_id)]
        shift = 9 * (page["level"] - 1)
        for spte in page["sptes"]:
            child = 0
            if len(spte) > 2:
                child = number.get(spte[2], 0)
                if not child:
                    raise SnapshotError(f"page {page['id']}[{spte[0]}]: a link to no page of this snapshot")
            gfn = mapped.get((page["id"], spte[0]), page["gfn"] + (spte[0] << shift))
            rows["entries"].append((own, spte[0], int(spte[1], 16), gfn, child))
        for parent, index in page["parents"]:
            if parent not in number:
                raise SnapshotError(f"page {page['id']}: a parent in no page of this snapshot")
            rows["parents"].append((own, number[parent], index))
    for as_id, space in enumerate(found["as"]):
        for slot in space["slots"]:
            _slot_rows(rows, as_id, slot, number)
    tables = _by_table(found)
    rows["vcpus"] = [_vcpu(vcpu, found, number, tables) for vcpu in found["vcpus"]]
    if not rows["vcpus"]:
        rows["vcpus"] = [([0, 0, 0, 0], [0, 0, 0], 0, False, 0, 0, (0, 0, 0, 0))]
    rows["numbers"] = [found["mmu_valid_gen"] or 0, found["used"], found["max"], found["requested"]]
    return rows


def _marks(page: Mapping[str, Any], by_id: Mapping[int, Mapping[str, Any]]) -> list[int]:
    """The entries that are marked as leading to unsync pages: as the page says, or those that do."""
    if "unsync_bitmap" in page:
        return list(page["unsync_bitmap"])
    below = ((spte[0], by_id[spte[2]]) for spte in page["sptes"] if len(spte) > 2 and spte[2] in by_id)
    return [index for index, child in below if child["unsync"] or child["unsync_children"]]


def _slot_rows(rows: dict[str, Any], as_id: int, slot: Mapping[str, Any], number: Mapping[int, int]) -> None:
    for level, index, chain in slot["rmap"]:
        for page, entry in chain:
            if page not in number:
                raise SnapshotError(f"slot {slot['id']}: a reverse map leads into no page of this snapshot")
            rows["rmaps"].append(((as_id, slot["id"], level, index, 0), number[page], entry))
    rows["arrays"] += [(as_id, slot["id"], level, index, count) for level, index, count in slot["disallow"]]
    rows["arrays"] += [(as_id, slot["id"], _TRACK, index, count) for index, count in slot["track"]]
    words: dict[int, int] = {}
    for page in slot["dirty"] or ():
        words[page // 64] = words.get(page // 64, 0) | 1 << page % 64
    rows["arrays"] += [(as_id, slot["id"], _DIRTY, index, word) for index, word in sorted(words.items())]


def _by_table(found: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    """The pages by the physical address of their table: a link says one, and so how far all of them are from it."""
    pages = [page for page, _ in _pages(found)]
    by_id = {page["id"]: page for page in pages}
    for page in pages:
        for spte in page["sptes"]:
            if len(spte) > 2 and spte[2] in by_id:
                distance = int(by_id[spte[2]]["spt"], 16) - (int(spte[1], 16) & _ADDRESS)
                return {int(page["spt"], 16) - distance: page for page in pages}
    return {}


def _vcpu(
    vcpu: Mapping[str, Any],
    found: Mapping[str, Any],
    number: Mapping[int, int],
    tables: Mapping[int, Mapping[str, Any]],
) -> tuple[Any, ...]:
    roots = [0, 0, 0, 0]
    role = int(vcpu["root_role"], 16)
    if vcpu["root"] is not None:
        roots[0] = number[vcpu["root"]]
        role = next(int(page["role"], 16) for page, _ in _pages(found) if page["id"] == vcpu["root"])
    elif vcpu["pae_entries"]:
        for at, entry in enumerate(vcpu["pae_entries"]):
            page = tables.get(entry & _ADDRESS)
            if entry & 1 and page is not None:
                roots[at] = number[page["id"]]
                role = int(page["role"], 16)
    gva, gfn, access, generation = vcpu["mmio"]
    mmio = (int(gva, 16), gfn, access, int(generation, 16))
    prev_roots = [number.get(page, 0) for page in vcpu["prev_roots"]][:3]
    prev_roots += [0] * (3 - len(prev_roots))
    return roots, prev_roots, role, bool(vcpu["smm"]), int(vcpu["cr3"], 16), int(vcpu["requests"], 16), mmio
