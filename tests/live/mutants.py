"""One corruption of memory each, and the check that must notice it. The memory is a real kernel's, reduced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from memory_of import Changeable

SHADOW, NPT, TDP, P32 = "6.1.192/npt0", "6.1.192/npt1tdp0", "6.1.192/npt1tdp1", "6.12.117/npt0_p32"
OBSOLETE, NX, LA57, NPT12 = (
    "6.12.117/npt0_obsolete",
    "6.1.192/nx_npt1tdp0",
    "6.1.192/la57_npt0",
    "6.12.117/npt1tdp0",
)
MANUAL = "6.1.192/manual_npt1tdp1"


@dataclass(frozen=True)
class Mutant:
    """A corruption: its name, the dump it is made in, the check that notices it, what it changes."""

    name: str
    case: str
    check: str
    change: Callable[[Changeable], None]


MUTANTS: list[Mutant] = []


def mutant(case: str, check: str) -> Callable[[Callable[[Changeable], None]], Callable[[Changeable], None]]:
    """Register a corruption under its function's name."""

    def register(change: Callable[[Changeable], None]) -> Callable[[Changeable], None]:
        MUTANTS.append(Mutant(change.__name__, case, check, change))
        return change

    return register


# -- lists and counters ---------------------------------------------------------------------------------------------


@mutant(SHADOW, "active_links")
def prev_of_a_page_leads_elsewhere(m: Changeable) -> None:
    m.write(m.page(5, "link") + 8, 8, m.page(9, "link"))


@mutant(NPT12, "active_links")
def head_s_prev_is_not_the_last_page(m: Changeable) -> None:
    m.write(m.kvm("active") + 8, 8, m.page(3, "link"))


@mutant(SHADOW, "active_links")
def active_list_runs_in_a_circle(m: Changeable) -> None:
    m.write(m.page(20, "link"), 8, m.page(10, "link"))


@mutant(NPT, "active_links")
def active_list_ends_in_nothing(m: Changeable) -> None:
    m.write(m.page(4, "link"), 8, 0)


@mutant(SHADOW, "used_pages")
def one_page_too_many_is_counted(m: Changeable) -> None:
    m.add(m.kvm("used"), 8, 1)


@mutant(NPT, "page_limit")
def limit_is_not_that_of_the_slots(m: Changeable) -> None:
    m.add(m.kvm("max"), 8, 7)


@mutant(P32, "page_limit")
def memory_of_the_slots_is_miscounted(m: Changeable) -> None:
    m.add(m.kvm("nr_memslot_pages"), 8, -1)


@mutant(SHADOW, "hash_bucket")
def gfn_of_a_page_changes_under_the_hash(m: Changeable) -> None:
    m.add(m.page(7, "gfn"), 8, 1)


@mutant(NPT12, "hash_bucket")
def page_is_missing_in_the_hash(m: Changeable) -> None:
    node = m.page(3, "hash_link")
    at = m.read(node + 8, 8)  # pprev: the place that leads here
    m.write(at, 8, m.read(node, 8))


@mutant(OBSOLETE, "hash_bucket")
def zapped_root_is_not_marked_invalid(m: Changeable) -> None:
    m.add(m.page(m.state.nr_active, "role"), 4, -(1 << 11))


@mutant(P32, "hash_unique")
def two_pages_of_one_gfn_and_role(m: Changeable) -> None:
    first = next(row for row in range(m.state.nr_active) if m.state.pages.level[row] == 1)
    second = next(
        row
        for row in range(first + 1, m.state.nr_active)
        if m.state.pages.role[row] == m.state.pages.role[first]
    )
    m.write(m.page(second, "gfn"), 8, int(m.state.pages.gfn[first]))


@mutant(OBSOLETE, "valid_gen")
def page_of_an_old_generation_stays(m: Changeable) -> None:
    m.write(m.page(6, "valid_gen"), 1, 0)


@mutant(NPT, "page_back_pointer")
def struct_page_of_a_table_leads_elsewhere(m: Changeable) -> None:
    facts = m.clean.facts
    frame = int(m.state.pages.table[2]) >> 12
    m.write(
        facts.vmemmap + frame * facts.page_size + m.field("page.private").offset,
        8,
        int(m.state.pages.addresses[3]),
    )


# -- links ----------------------------------------------------------------------------------------------------------


@mutant(SHADOW, "link_level")
def link_leads_to_no_table(m: Changeable) -> None:
    at = m.entries("link", 2)[0]
    m.write(m.sptep(at), 8, m.raw(at) & ~0xFFFFFFF000 | 0x1000)


@mutant(SHADOW, "link_level")
def link_skips_a_level(m: Changeable) -> None:
    high, low = m.entries("link", 4)[0], m.entries("link", 2)[0]
    m.write(m.sptep(high), 8, m.raw(low))


@mutant(NPT, "link_child")
def two_links_are_swapped(m: Changeable) -> None:
    one, two = m.entries("link", 2)[:2]
    m.write(m.sptep(one), 8, m.raw(two))
    m.write(m.sptep(two), 8, m.raw(one))


@mutant(NPT12, "link_parent")
def child_forgets_its_parent(m: Changeable) -> None:
    row = next(row for row in range(m.state.nr_active) if row in m.state.parents)
    m.write(m.page(row, "parents"), 8, 0)


@mutant(SHADOW, "parent_link")
def parent_is_no_link_any_more(m: Changeable) -> None:
    m.write(m.sptep(m.entries("link", 2)[3]), 8, 0)


@mutant(P32, "unsync_marks")
def count_of_unsync_children_is_off(m: Changeable) -> None:
    row = int(np.flatnonzero(m.state.pages.column("unsync_children"))[0])
    m.add(m.page(row, "unsync_children"), 4, 1)


@mutant(SHADOW, "unsync_marks")
def unsync_page_has_no_mark_in_its_parent(m: Changeable) -> None:
    row = int(np.flatnonzero(m.state.pages.column("unsync_children"))[-1])
    m.write(m.page(row, "unsync_children"), 4, 0)
    for word in range(8):
        m.write(m.page(row, "unsync_bitmap") + 8 * word, 8, 0)


# -- leaves ---------------------------------------------------------------------------------------------------------


@mutant(SHADOW, "leaf_rmap")
def leaf_is_in_no_reverse_map(m: Changeable) -> None:
    slot = m.state.spaces[0].slots[1]
    heads = m.read(slot.address + m.field("memory_slot.rmap").offset, 8)
    m.write(heads + 8 * int(slot.rmap[1].head[0]), 8, 0)


@mutant(NPT12, "rmap_leaf")
def leaf_goes_and_its_reverse_map_stays(m: Changeable) -> None:
    m.write(m.sptep(m.entries("leaf", 1)[0]), 8, 1 << 63)


@mutant(NPT, "rmap_leaf")
def reverse_map_is_of_the_next_gfn(m: Changeable) -> None:
    slot = m.state.spaces[0].slots[1]
    heads = m.read(slot.address + m.field("memory_slot.rmap").offset, 8)
    at = int(slot.rmap[1].head[0])
    one, two = m.read(heads + 8 * at, 8), m.read(heads + 8 * (at + 1), 8)
    m.write(heads + 8 * at, 8, two)
    m.write(heads + 8 * (at + 1), 8, one)


@mutant(P32, "leaf_rmap")
def chain_of_a_reverse_map_is_shorter(m: Changeable) -> None:
    slot = m.state.spaces[0].slots[1]
    heads = m.read(slot.address + m.field("memory_slot.rmap").offset, 8)
    chain = m.read(heads + 8 * int(slot.rmap[1].head[0]), 8) & ~7
    m.add(chain + m.field("pte_list_desc.count").offset, m.field("pte_list_desc.count").size, -1)


@mutant(TDP, "page_stats")
def statistics_of_small_pages_are_off(m: Changeable) -> None:
    whole = m.clean.opened.layout.type("struct kvm_vm_stat")
    m.add(m.kvm("stat") + whole.member("pages_4k").bit_offset // 8, 8, 1)


@mutant(NPT, "page_stats")
def statistics_of_large_pages_are_off(m: Changeable) -> None:
    whole = m.clean.opened.layout.type("struct kvm_vm_stat")
    m.add(m.kvm("stat") + whole.member("pages_2m").bit_offset // 8, 8, -1)


@mutant(NPT, "spte_writable")
def leaf_is_writable_where_the_mmu_forbids_it(m: Changeable) -> None:
    at = m.entries("leaf", 1, writable=True)[0]
    m.write(m.sptep(at), 8, m.raw(at) & ~m.clean.facts.mmu_writable)


@mutant(TDP, "spte_writable")
def leaf_is_writable_where_the_host_forbids_it(m: Changeable) -> None:
    at = m.entries("leaf", 2, writable=True)[0]
    m.write(m.sptep(at), 8, m.raw(at) & ~m.clean.facts.host_writable)


@mutant(NPT12, "spte_bits")
def leaf_has_an_unknown_bit(m: Changeable) -> None:
    at = m.entries("leaf", 1)[3]
    m.write(m.sptep(at), 8, m.raw(at) | 1 << 61)


@mutant(TDP, "spte_bits")
def address_is_above_the_width_of_the_host(m: Changeable) -> None:
    at = m.entries("leaf", 1)[5]
    m.write(m.sptep(at), 8, m.raw(at) | 1 << 45)


@mutant(SHADOW, "spte_bits")
def entry_is_neither_present_nor_mmio(m: Changeable) -> None:
    at = m.entries("leaf", 1)[7]
    m.write(m.sptep(at), 8, 0x7000)


@mutant(TDP, "spte_bits")
def entry_stays_frozen(m: Changeable) -> None:
    m.write(m.sptep(m.entries("leaf", 1)[9]), 8, 0x5A0)


@mutant(SHADOW, "write_protected_tables")
def guest_may_write_to_a_shadowed_table(m: Changeable) -> None:
    state = m.state
    row = next(
        row
        for row in range(state.nr_active)
        if not state.pages.role[row] >> 7 & 1 and not state.pages.column("unsync")[row]
    )
    at = next(
        at
        for at in m.entries("leaf", 1, writable=True)
        if not state.pages.role[state.entries.page[at]] >> 7 & 1
        and state.pages.space[state.entries.page[at]] == state.pages.space[row]
    )
    kept = int(state.pages.unsigned("translation")[state.entries.page[at]])
    m.write(kept + 8 * int(state.entries.index[at]), 8, int(state.pages.gfn[row]) << 12 | 7)


@mutant(NPT, "dirty_log")
def logged_page_is_writable_and_not_marked(m: Changeable) -> None:
    slot = next(slot for slot in m.state.spaces[0].slots if slot.id == 1)
    at = next(
        at
        for at in m.entries("leaf", 1, writable=False)
        if slot.base <= int(m.state.entries.gfn[at]) < slot.end
        and not slot.is_dirty[int(m.state.entries.gfn[at]) - slot.base]
        and m.state.pages.space[m.state.entries.page[at]] == 0
    )
    m.write(m.sptep(at), 8, m.raw(at) | 2)


@mutant(MANUAL, "dirty_log")
def bit_of_the_dirty_log_is_lost(m: Changeable) -> None:
    slot = next(slot for slot in m.state.spaces[0].slots if slot.dirty is not None)
    at = next(
        at
        for at in m.entries("leaf", 1, writable=True)
        if slot.base <= int(m.state.entries.gfn[at]) < slot.end
        and slot.is_dirty[int(m.state.entries.gfn[at]) - slot.base]
        and m.state.pages.space[m.state.entries.page[at]] == 0
    )
    offset = int(m.state.entries.gfn[at]) - slot.base
    bitmap = m.read(slot.address + m.field("memory_slot.dirty").offset, 8)
    place = bitmap + offset // 8
    m.write(place, 1, m.read(place, 1) & ~(1 << offset % 8))


# -- roots ----------------------------------------------------------------------------------------------------------


@mutant(NPT, "root_count")
def root_is_counted_once_too_often(m: Changeable) -> None:
    row = int(np.flatnonzero(m.state.pages.column("root_count"))[0])
    m.add(m.page(row, "root_count"), 4, 1)


@mutant(P32, "root_count")
def entry_of_a_pae_root_is_lost(m: Changeable) -> None:
    mmu = m.state.vcpus[1].mmu
    m.write(m.clean.opened.memory.direct_map + mmu.root_hpa, 8, 0)


@mutant(TDP, "tdp_refs")
def tdp_root_has_lost_a_reference(m: Changeable) -> None:
    row = next(row for row in range(len(m.state.pages)) if m.state.pages.column("root_count")[row] == 3)
    m.add(m.page(row, "root_count"), 4, -1)


@mutant(SHADOW, "root_alive")
def vcpu_runs_on_a_page_that_is_no_table(m: Changeable) -> None:
    place = m.vcpu(0, "root_mmu") + m.field("mmu.root_hpa").offset
    m.write(place, 8, m.read(place, 8) + (64 << 12))


@mutant(LA57, "root_alive")
def vcpu_runs_on_a_table_of_another_level(m: Changeable) -> None:
    row = next(row for row in range(m.state.nr_active) if m.state.pages.level[row] == 3)
    m.write(m.vcpu(0, "root_mmu") + m.field("mmu.root_hpa").offset, 8, int(m.state.pages.table[row]))


# -- what is tracked, MMIO, slots -----------------------------------------------------------------------------------


@mutant(SHADOW, "tracked_tables")
def shadowed_tables_are_miscounted(m: Changeable) -> None:
    m.add(m.kvm("indirect"), 4, 1)


@mutant(P32, "tracked_tables")
def write_tracking_of_a_gfn_is_lost(m: Changeable) -> None:
    slot = m.state.spaces[0].slots[0]
    array = m.read(slot.address + m.field("memory_slot.track").offset, 8)
    m.add(array + 2 * int(slot.track[0][0]), 2, -1)


@mutant(SHADOW, "tracked_tables")
def large_page_is_allowed_over_a_table(m: Changeable) -> None:
    slot = m.state.spaces[0].slots[0]
    array = m.read(slot.address + m.field("memory_slot.lpage_info").offset, 8)
    m.write(array, 4, 0)


@mutant(TDP, "tracked_tables")
def large_page_is_forbidden_for_no_reason(m: Changeable) -> None:
    array = m.read(m.slot(3, "lpage_info"), 8)
    m.add(array, 4, 1)


@mutant(NPT, "mmio_sptes")
def mmio_spte_is_of_another_gfn(m: Changeable) -> None:
    at = m.entries("mmio", 1)[0]
    m.write(m.sptep(at), 8, m.raw(at) + (1 << 12))


@mutant(NPT12, "mmio_sptes")
def mmio_spte_above_level_one(m: Changeable) -> None:
    at = m.entries("mmio", 1)[0]
    m.write(m.sptep(m.entries("link", 2)[0]) + 8 * 7, 8, m.raw(at))


@mutant(NPT, "mmio_sptes")
def fresh_mmio_spte_covers_a_memslot(m: Changeable) -> None:
    slot = m.state.spaces[0].slots[0]
    at = next(
        at
        for at in m.entries("leaf", 1)
        if slot.base <= int(m.state.entries.gfn[at]) < slot.end
        and m.state.pages.space[m.state.entries.page[at]] == 0
    )
    gfn, generation = int(m.state.entries.gfn[at]), m.state.spaces[0].generation
    m.write(m.sptep(at), 8, m.clean.codec.make_mmio_spte(gfn, 6, generation))


@mutant(SHADOW, "mmio_cache")
def vcpu_remembers_memory_as_mmio(m: Changeable) -> None:
    m.write(m.vcpu(0, "mmio_gfn"), 8, m.state.spaces[0].slots[0].base + 5)


@mutant(NX, "nx_huge_pages")
def page_for_a_large_one_is_not_on_the_list(m: Changeable) -> None:
    row = int(np.flatnonzero(m.state.pages.column("nx_huge"))[0])
    m.write(m.page(row, "nx_huge"), 1, 0)


@mutant(NX, "nx_huge_pages")
def statistics_of_nx_huge_pages_are_off(m: Changeable) -> None:
    whole = m.clean.opened.layout.type("struct kvm_vm_stat")
    m.add(m.kvm("stat") + whole.member("nx_lpage_splits").bit_offset // 8, 8, 1)


@mutant(TDP, "tdp_tree")
def tdp_table_says_another_parent(m: Changeable) -> None:
    row = next(row for row in range(len(m.state.pages)) if row in m.state.parents)
    m.add(m.page(row, "parents"), 8, 8)


@mutant(TDP, "tdp_tree")
def tdp_table_is_not_reached_any_more(m: Changeable) -> None:
    at = next(at for at in m.entries("link", 2) if int(m.state.entries.index[at]) == 65)
    m.write(m.sptep(at), 8, 0)


@mutant(TDP, "tdp_tree")
def tdp_table_is_linked_twice(m: Changeable) -> None:
    at = next(at for at in m.entries("link", 2) if int(m.state.entries.index[at]) == 65)
    m.write(m.sptep(at) + 8 * 9, 8, m.raw(at))


@mutant(TDP, "tdp_tree")
def tdp_table_is_not_marked_as_one(m: Changeable) -> None:
    m.write(m.page(len(m.state.pages) - 1, "is_tdp"), 1, 0)


@mutant(SHADOW, "memslots")
def generation_is_of_the_other_address_space(m: Changeable) -> None:
    memslots = m.read(m.kvm("memslots"), 8)
    m.add(memslots + m.field("memslots.generation").offset, 8, 1)


@mutant(NPT, "memslots")
def dirty_log_is_gone_and_its_flag_stays(m: Changeable) -> None:
    m.write(m.slot(1, "dirty"), 8, 0)


@mutant(NPT12, "memslots")
def slot_is_still_marked_invalid(m: Changeable) -> None:
    m.write(m.slot(3, "flags"), 4, 1 << 16)


@mutant(TDP, "slot_order")
def two_slots_overlap(m: Changeable) -> None:
    m.write(m.slot(3, "base"), 8, 4096 + 8)


@mutant(NPT, "slot_order")
def two_slots_have_one_id(m: Changeable) -> None:
    m.write(m.slot(6, "id"), 2, 2)


@mutant(TDP, "memslots")
def slot_says_that_it_is_of_the_other_address_space(m: Changeable) -> None:
    m.write(m.slot(2, "as_id"), 2, 1)
