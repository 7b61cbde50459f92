"""The state of a VM in the dump format, and its digest.

Reads everything, changes nothing. The digest is the first 16 hex digits of SHA-256 over the canonical JSON of the
state.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from .common import spte as word
from .common.constants import (
    ACC_ALL,
    KVM_REQ_MMU_FREE_OBSOLETE_ROOTS,
    KVM_REQ_MMU_RELOAD,
    PAGE_SHIFT,
    PT64_BASE_ADDR_MASK,
    kvm_pages_per_hpage,
)
from .common.page_table import has_guest_tables, root_role
from .common.pte_list import pte_list_entries
from .common.role import (
    role_access,
    role_is_ad_disabled,
    role_is_direct,
    role_is_invalid,
    role_level,
    role_smm,
    shown_role,
)
from .common.state import Kvm, KvmMemorySlot, ShadowPage, Vcpu
from .shadow.active_list import list_pages
from .shadow.guest_mode import shadow_page_role
from .verbs.roots import root_level


def dump_state(kvm: Kvm) -> dict[str, Any]:
    """The whole state as JSON values; what the modelled kernel does not have is null."""
    if kvm.format == 6:
        return dump_state_6(kvm)
    return {
        "as": [
            {"gen": hex(memslots.generation), "slots": [dump_slot(slot) for slot in memslots.memslots]}
            for memslots in kvm.memslots
        ],
        "used": kvm.n_used_mmu_pages,
        "max": kvm.n_max_mmu_pages,
        "requested": kvm.n_requested_mmu_pages,
        "indirect": kvm.indirect_shadow_pages,
        "mmu_valid_gen": kvm.mmu_valid_gen if kvm.rules.has_valid_gen else None,
        "zapped_obsolete": list(kvm.zapped_obsolete_pages) if kvm.rules.has_zapped_obsolete else None,
        "active": [dump_page(kvm, kvm.pages[page_id]) for page_id in list_pages(kvm.active)],
        "vcpus": [dump_vcpu(kvm, vcpu) for vcpu in kvm.vcpus],
        **(dump_tdp(kvm) if kvm.config.tdp_mmu else {}),
    }


def dump_runs(pages: set[int]) -> list[list[int]]:
    """Set bits as runs [first, count]."""
    runs: list[list[int]] = []
    for page in sorted(pages):
        if runs and page == runs[-1][0] + runs[-1][1]:
            runs[-1][1] += 1
        else:
            runs.append([page, 1])
    return runs


def dump_slot(slot: KvmMemorySlot) -> dict[str, Any]:
    dumped: dict[str, Any] = {
        "id": slot.id,
        "base": slot.base_gfn,
        "npages": slot.npages,
        "hva": hex(slot.userspace_addr),
        "flags": slot.flags,
        "rmap": [
            [level, index, [list(sptep) for sptep in pte_list_entries(slot.rmap[level][index])]]
            for level in sorted(slot.rmap)
            for index in sorted(slot.rmap[level])
        ],
        "disallow": [
            [level, index, count]
            for level, counts in sorted(slot.disallow_lpage.items())
            for index, count in sorted(counts.items())
            if count
        ],
        "track": [[index, count] for index, count in sorted(slot.gfn_track.items()) if count],
    }
    if slot.dirty_bitmap is not None:
        dumped["dirty"] = dump_runs(slot.dirty_bitmap)
    return dumped


def dump_page(kvm: Kvm, sp: ShadowPage) -> dict[str, Any]:
    return {
        "id": sp.id,
        "gfn": sp.gfn,
        "role": hex(shown_role(kvm.rules, sp.role)),
        "level": role_level(sp.role),
        "direct": int(role_is_direct(sp.role)),
        "access": role_access(sp.role),
        "smm": role_smm(sp.role),
        "invalid": int(role_is_invalid(sp.role)),
        "ad_disabled": int(role_is_ad_disabled(sp.role)),
        "root_count": sp.root_count,
        "unsync": int(sp.unsync),
        "unsync_children": len(sp.unsync_child_bitmap),
        **dump_write_state(kvm, sp),
        "valid_gen": sp.mmu_valid_gen if kvm.rules.has_valid_gen else None,
        "mmio_cached": int(sp.mmio_cached) if kvm.rules.has_mmio_cached else None,
        "parents": [list(sptep) for sptep in pte_list_entries(sp.parent_ptes)],
        "sptes": dump_sptes(kvm, sp),
    }


def dump_write_state(kvm: Kvm, sp: ShadowPage) -> dict[str, Any]:
    """What is known of the guest's writes to tables, where it has any."""
    if not has_guest_tables(kvm):
        return {}
    return {"flood": sp.write_flooding_count, "unsync_bitmap": sorted(sp.unsync_child_bitmap)}


def dump_sptes(kvm: Kvm, sp: ShadowPage) -> list[list[Any]]:
    """Leaves and MMIO entries whole; entries that point to a table with its id in place of its address."""
    if role_level(sp.role) == 1:
        return [[index, hex(spte)] for index, spte in sorted(sp.sptes.items())]
    dumped: list[list[Any]] = []
    for index, spte in sorted(sp.sptes.items()):
        is_present = word.is_shadow_present_pte(kvm.masks, spte)
        if is_present and not word.is_last_spte(spte, role_level(sp.role)):
            dumped.append([index, hex(spte & ~PT64_BASE_ADDR_MASK), word.spte_to_pfn(spte)])
        else:
            dumped.append([index, hex(spte)])
    return dumped


def dump_vcpu(kvm: Kvm, vcpu: Vcpu) -> dict[str, Any]:
    has_four = has_guest_tables(kvm) and len(vcpu.roots) > 1
    four: dict[str, Any] = {"pae_roots": [page_id or None for page_id in vcpu.roots]} if has_four else {}
    root = vcpu.roots[0] if len(vcpu.roots) == 1 else list(vcpu.roots) or None
    return {
        "root": None if has_four else root,
        **four,
        "cr3": hex(vcpu.cr3),
        "prev_roots": [p if p is None else [hex(p[0]), p[1]] for p in vcpu.prev_roots],
        "requests": hex(vcpu.requests),
        "smm": vcpu.smm,
        "mmio": [hex(vcpu.mmio_gva), vcpu.mmio_gfn, vcpu.mmio_access, hex(vcpu.mmio_gen)],
    }


def dump_state_6(kvm: Kvm) -> dict[str, Any]:
    """The state of format 6: the statistics too, equal neighbours as runs."""
    return {
        "as": [
            {"gen": hex(memslots.generation), "slots": [dump_slot_6(kvm, slot) for slot in memslots.memslots]}
            for memslots in kvm.memslots
        ],
        "used": kvm.n_used_mmu_pages,
        "max": kvm.n_max_mmu_pages,
        "requested": kvm.n_requested_mmu_pages,
        "indirect": kvm.indirect_shadow_pages,
        "valid_gen": kvm.mmu_valid_gen,
        "zapped_obsolete": len(kvm.zapped_obsolete_pages),
        "nx_list": list(kvm.possible_nx_huge_pages),
        **dump_tdp(kvm),
        "active": [dump_page_6(kvm, kvm.pages[page_id]) for page_id in list_pages(kvm.active)],
        "vcpus": [dump_vcpu_6(kvm, vcpu) for vcpu in kvm.vcpus],
        "stat": dict(kvm.stat),
        "invalidate": [kvm.invalidation.sequence, kvm.invalidation.in_progress],
        "vm_bugged": int(kvm.is_bugged),
    }


def dump_tdp(kvm: Kvm) -> dict[str, Any]:
    """The roots, newest first, and every table below them, depth first."""
    if not kvm.config.tdp_mmu:
        return {"tdp_pages": None, "roots": None, "tdp": None}
    roots = [kvm.pages[root_id] for root_id in kvm.tdp_mmu_roots]
    return {
        "tdp_pages": kvm.tdp_mmu_pages,
        "roots": [
            {
                "id": root.id,
                "refs": root.root_count,
                "invalid": int(role_is_invalid(root.role)),
                "scheduled": int(root.tdp_mmu_scheduled_root_to_zap),
                "role": hex(shown_role(kvm.rules, root.role)),
            }
            for root in roots
        ],
        "tdp": [dumped for root in roots for dumped in dump_tdp_tables(kvm, root)],
    }


def dump_tdp_tables(kvm: Kvm, sp: ShadowPage) -> Iterator[dict[str, Any]]:
    entries = dump_sptes_6(kvm, sp)
    yield {
        "id": sp.id,
        "gfn": sp.gfn,
        "role": hex(shown_role(kvm.rules, sp.role)),
        "level": role_level(sp.role),
        "nx_disallowed": int(sp.nx_huge_page_disallowed),
        "nx_listed": int(sp.is_possible_nx_huge_page),
        "sptes": entries,
    }
    for entry in entries:
        if len(entry) == 3:
            yield from dump_tdp_tables(kvm, kvm.pages[entry[2]])


def dump_slot_6(kvm: Kvm, slot: KvmMemorySlot) -> dict[str, Any]:
    dumped = dump_slot(slot)
    if kvm.config.tdp_mmu:
        dumped["rmap"] = None
    if not has_guest_tables(kvm):
        dumped["track"] = None  # no counters: the VM never had a shadow root
    vetoes: list[list[int]] = []
    for level, index, count in dumped["disallow"]:
        last = vetoes[-1] if vetoes else None
        if last is not None and last[0] == level and last[1] + last[3] == index and last[2] == count:
            last[3] += 1
        else:
            vetoes.append([level, index, count, 1])
    dumped["disallow"] = [veto if veto[3] > 1 else veto[:3] for veto in vetoes]
    return dumped


def dump_page_6(kvm: Kvm, sp: ShadowPage) -> dict[str, Any]:
    return {
        "id": sp.id,
        "gfn": sp.gfn,
        "role": hex(shown_role(kvm.rules, sp.role)),
        "level": role_level(sp.role),
        "root_count": sp.root_count,
        "unsync": int(sp.unsync),
        "unsync_children": len(sp.unsync_child_bitmap),
        **dump_write_state(kvm, sp),
        "valid_gen": sp.mmu_valid_gen,
        "nx_disallowed": int(sp.nx_huge_page_disallowed),
        "nx_listed": int(sp.is_possible_nx_huge_page),
        "parents": [list(sptep) for sptep in pte_list_entries(sp.parent_ptes)],
        "sptes": dump_sptes_6(kvm, sp),
    }


def dump_sptes_6(kvm: Kvm, sp: ShadowPage) -> list[list[Any]]:
    """Links with the child's id; leaves that follow one another, each a page of their level higher, as one run."""
    level = role_level(sp.role)
    step = kvm_pages_per_hpage(level) << PAGE_SHIFT
    dumped: list[list[Any]] = []
    run_next = (-1, 0)  # the index and the value that would lengthen the last run
    for index, spte in sorted(sp.sptes.items()):
        is_present = word.is_shadow_present_pte(kvm.masks, spte)
        if is_present and not word.is_last_spte(spte, level):
            dumped.append([index, hex(spte & ~PT64_BASE_ADDR_MASK), word.spte_to_pfn(spte)])
            run_next = (-1, 0)
        elif is_present and run_next == (index, spte):
            last = dumped[-1]
            dumped[-1] = [*last[:2], None, last[3] + 1 if len(last) > 3 else 2]
            run_next = (index + 1, spte + step)
        else:
            dumped.append([index, hex(spte)])
            run_next = (index + 1, spte + step) if is_present else (-1, 0)
    return dumped


#: Of the table of four roots.
PT32E_ROOT_LEVEL = 3


def vcpu_root_role(kvm: Kvm, vcpu: Vcpu) -> int:
    """The role that the vCPU's root has or gets; four roots count as one of level 3."""
    if vcpu.mode is None:
        return root_role(kvm, vcpu, root_level(kvm))
    level = vcpu.mode.root_level if vcpu.mode.name == "long" else PT32E_ROOT_LEVEL
    return shadow_page_role(kvm, vcpu, 0, level, vcpu.mode.name == "none", ACC_ALL)


def dump_vcpu_6(kvm: Kvm, vcpu: Vcpu) -> dict[str, Any]:
    requests = vcpu.requests
    if requests & KVM_REQ_MMU_RELOAD:
        requests ^= KVM_REQ_MMU_RELOAD | KVM_REQ_MMU_FREE_OBSOLETE_ROOTS
    dumped = dump_vcpu(kvm, vcpu)
    dumped["role"] = hex(shown_role(kvm.rules, vcpu_root_role(kvm, vcpu)))
    dumped["requests"] = hex(requests)
    dumped["stat"] = dict(vcpu.stat)
    return dumped


def digest_of(state: dict[str, Any]) -> str:
    canonical = json.dumps(state, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:16]
