"""Where a kernel keeps what a capture reads: one row a thing, its names newest first.

Owns: the names, and nothing else; offsets come from the kernel's own types. A row that is not needed may be missing
in a kernel (the last column says so). A new name of an old thing is put in front of its row.
"""

from __future__ import annotations

from typing import NamedTuple


class Name(NamedTuple):
    """One thing: the structure it is in, its names there newest first, and whether a capture can do without."""

    structure: str
    paths: tuple[str, ...]
    is_needed: bool = True


def _rows(structure: str, **paths: str) -> dict[str, Name]:
    """Rows of one structure; names are split by blanks, a `?` in front says that it may be missing."""
    short = structure.removeprefix("struct ").removeprefix("kvm_") or structure
    return {
        f"{short}.{key}": Name(structure, tuple(text.removeprefix("?").split()), not text.startswith("?"))
        for key, text in paths.items()
    }


#: By what it is called here: `STRUCTURE.THING`.
NAMES: dict[str, Name] = {
    **_rows(
        "struct kvm",
        vm_list="vm_list",
        mm="mm",
        pid="userspace_pid",
        memslots="memslots",
        nr_memslot_pages="?nr_memslot_pages",
        vcpu_array="?vcpu_array",
        vcpus="?vcpus",
        online_vcpus="online_vcpus.counter",
        stat="stat",
        manual_dirty_log="?manual_dirty_log_protect",
        dirty_ring_size="?dirty_ring_size",
        invalidate_seq="?mmu_invalidate_seq mmu_notifier_seq",
        invalidate_in_progress="?mmu_invalidate_in_progress mmu_notifier_count",
        active_invalidate="?mn_active_invalidate_count",
        mmu_rwlock="?mmu_lock.raw_lock.cnts.counter",
        mmu_spinlock="?mmu_lock.rlock.raw_lock.val.counter",
        slots_lock="?slots_lock.owner.counter",
        slots_arch_lock="?slots_arch_lock.owner.counter",
        used="arch.n_used_mmu_pages",
        requested="arch.n_requested_mmu_pages",
        max="arch.n_max_mmu_pages",
        indirect="arch.indirect_shadow_pages",
        valid_gen="?arch.mmu_valid_gen",
        hash="arch.mmu_page_hash",
        active="arch.active_mmu_pages",
        zapped="?arch.zapped_obsolete_pages",
        nx_list="?arch.possible_nx_huge_pages arch.lpage_disallowed_mmu_pages",
        tdp_mmu_on="?arch.tdp_mmu_enabled",
        tdp_roots="?arch.tdp_mmu_roots",
        tdp_pages="?arch.tdp_mmu_pages",
        pre_fault="?arch.pre_fault_allowed",
        quirks="?arch.disabled_quirks",
    ),
    **_rows(
        "struct kvm_memslots",
        generation="generation",
        id_hash="?id_hash",
        node_idx="?node_idx",
        slots="?memslots",
        used_slots="?used_slots",
    ),
    **_rows(
        "struct kvm_memory_slot",
        id_node="?id_node",
        base="base_gfn",
        npages="npages",
        dirty="dirty_bitmap",
        hva="userspace_addr",
        flags="flags",
        id="id",
        as_id="?as_id",
        rmap="arch.rmap",
        lpage_info="arch.lpage_info",
        track="?arch.gfn_write_track arch.gfn_track",
    ),
    **_rows(
        "struct kvm_mmu_page",
        link="link",
        hash_link="hash_link",
        is_tdp="?tdp_mmu_page",
        unsync="?unsync",
        valid_gen="?mmu_valid_gen",
        mmio_cached="?mmio_cached",
        nx_huge="?nx_huge_page_disallowed lpage_disallowed",
        nx_link="?possible_nx_huge_page_link lpage_disallowed_link",
        role="role.word",
        gfn="gfn",
        spt="spt",
        translation="shadowed_translation gfns",
        root_count="root_count",
        unsync_children="unsync_children",
        parents="parent_ptes.val",
        unsync_bitmap="unsync_child_bitmap",
        flood="?write_flooding_count.counter",
    ),
    **_rows(
        "struct kvm_vcpu",
        id="vcpu_id",
        mode="mode",
        requests="requests",
        stat="stat",
        cr3="arch.cr3",
        mmu="arch.mmu",
        root_mmu="arch.root_mmu",
        guest_mmu="?arch.guest_mmu",
        mmio_gva="arch.mmio_gva",
        mmio_access="arch.mmio_access",
        mmio_gfn="arch.mmio_gfn",
        mmio_gen="arch.mmio_gen",
    ),
    **_rows(
        "struct kvm_mmu",
        root_hpa="root.hpa root_hpa",
        root_pgd="?root.pgd root_cr3",
        prev_roots="prev_roots",
        pae_root="pae_root",
        pml4_root="?pml4_root lm_root",
        pml5_root="?pml5_root",
        role="root_role.word mmu_role.base.word",
    ),
    **_rows("struct kvm_mmu_root_info", pgd="pgd cr3", hpa="hpa"),
    **_rows("struct pte_list_desc", sptes="sptes", more="more", count="?spte_count"),
    **_rows("struct kvm_lpage_info", disallow="disallow_lpage"),
    **_rows("struct kvm_host_values", phys_bits="?maxphyaddr"),
    **_rows("struct cpuinfo_x86", phys_bits="?x86_phys_bits"),
    **_rows("struct page", private="private"),
    **_rows("struct xarray", head="?xa_head"),
    **_rows("struct xa_node", shift="?shift", slots="?slots"),
    **_rows("struct mm_struct", pgd="?pgd"),
}

#: Variables of kvm.ko, vmlinux and what they say; those that a capture cannot do without.
NEEDED_SYMBOLS = ("vm_list",)
#: Masks of SPTEs, by the name of the variable behind `shadow_`.
MASKS = tuple(
    "host_writable mmu_writable nx x user accessed dirty mmio_value mmio mmio_access present memtype me_value me "
    "acc_track nonpresent_or_rsvd nonpresent_or_rsvd_lower_gfn".split()
)
#: Numbers, with their size in bytes where the symbol has none.
VARIABLES = {
    "page_offset_base": 8,
    "vmemmap_base": 8,
    "shadow_phys_bits": 1,
    "enable_mmio_caching": 1,
    "tdp_enabled": 1,
    "tdp_mmu_enabled": 1,
    "max_huge_page_level": 4,
    "max_tdp_level": 4,
    "tdp_root_level": 4,
    "nx_huge_pages": 4,
}
#: Structures that hold such a number.
HOLDERS = {"kvm_host": "struct kvm_host_values", "boot_cpu_data": "struct cpuinfo_x86"}


def symbol_names() -> list[str]:
    """Every symbol that a capture may ask for."""
    masks = [f"shadow_{name}{'' if name.endswith('value') else '_mask'}" for name in MASKS]
    return [*NEEDED_SYMBOLS, *VARIABLES, *HOLDERS, *masks]
