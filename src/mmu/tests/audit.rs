//! Every invariant is broken on purpose once, and the audit says its name.

use super::{put, touch, vm, vm_with};
use crate::mmu::pages::page_arena::{PageIdx, Place};
use crate::mmu::vm::state::MmuState;
use crate::mmu::watch::audit::INVARIANTS;
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::spte::layout::WRITABLE;
use crate::mmu::{AccessKind, HostHuge, Mmu, SlotSpec};

/// A root, two upper tables, one page table with two RAM leaves and one with an MMIO entry.
fn state() -> MmuState {
    let mut mmu: Mmu = vm("v5.0");
    put(&mut mmu, 0, 0, 512, 0);
    touch(&mut mmu, 1);
    touch(&mut mmu, 2);
    touch(&mut mmu, 512);
    assert_eq!(mmu.audit(), Vec::new());
    mmu.state
}

/// The same tables under the TDP MMU, the page table made for an instruction fetch.
fn tdp_state() -> MmuState {
    let mut mmu = vm_with("v6.12", |config| {
        config.tdp_mmu = true;
        config.nx_huge_pages = true;
    });
    put(&mut mmu, 0, 0, 512, 0);
    mmu.set_host_huge(0x2_0000_0000, 512, HostHuge::Thp);
    mmu.access(0, 1 << 12, AccessKind::Exec).expect("vcpu 0");
    touch(&mut mmu, 512);
    assert_eq!(mmu.audit(), Vec::new());
    assert_eq!(mmu.state.nx_list.len(), 1);
    mmu.state
}

fn corrupt_tdp(state: &mut MmuState, invariant: &str) -> bool {
    let (root, upper, table) = (page(state, 1), page(state, 3), page(state, 4));
    match invariant {
        "tdp_refs" => state.tdp.roots.get(root),
        "tdp_tree" => state.spte_set(upper.sptep(0), 0),
        "tdp_nx_list" => state.arena.page_mut(table).nx_huge_page_disallowed = false,
        _ => return false,
    }
    true
}

/// The page with an id: 1 is the root, 4 the page table, 5 the one with MMIO.
fn page(state: &MmuState, id: u32) -> PageIdx {
    state.arena.find_id(id).expect("the page lives")
}

fn corrupt(state: &mut MmuState, invariant: &str) {
    let (root, upper, table, mmio) = (page(state, 1), page(state, 3), page(state, 4), page(state, 5));
    match invariant {
        "active_links" => state.active.set_len_for_test(3),
        "active_place" => state.active.remove(table),
        "used_pages" => state.used += 1,
        "invalid_lists" => state.zapped_obsolete.push(table),
        "invalid_empty" => state.arena.page_mut(table).place = Place::Invalid,
        "page_id" => state.arena.key_mut(table).id = 99,
        "page_balance" => state.work.pages_freed += 1,
        "hash_bucket" => state.hash.remove(&mut state.arena, table),
        "valid_gen" => state.arena.key_mut(table).valid_gen = 7,
        "link_level" => state.arena.key_mut(table).role.set_level(2),
        "link_parent" => state.arena.page_mut(table).parents = crate::mmu::pages::pte_list::PteHead::EMPTY,
        "parent_link" => state.spte_set(upper.sptep(0), 0),
        "leaf_rmap" => state.rmap_remove(table.sptep(1)),
        "rmap_leaf" => state.spte_set(table.sptep(1), 0),
        "leaf_gfn" => drop(state.aliased.insert(table.sptep(1), Gfn(5))),
        "pte_list_descs" => {
            let mut head = crate::mmu::pages::pte_list::PteHead::EMPTY;
            for index in 0..2 {
                state.pte_lists.add(&mut head, table.sptep(index));
            }
        }
        "unsync_marks" => state.arena.page_mut(table).unsync_children = 1,
        "indirect_pages" => state.nr_indirect = 1,
        "root_alive" => state.vcpus[0].root = table,
        "root_count" => state.arena.page_mut(root).root_count = 2,
        "mmio_flag" => {
            let spte = state.arena.spte(mmio.sptep(0));
            state.spte_set(table.sptep(9), spte);
        }
        "mmio_index" => state.mmio_pages.remove(&mut state.arena, mmio),
        "spte_writable" => {
            let spte = state.arena.spte(table.sptep(1));
            assert_ne!(spte & WRITABLE, 0);
            let mmu_writeable = state.masks.mmu_writeable;
            state.spte_set(table.sptep(1), spte & !mmu_writeable);
        }
        "slot_order" => state.spaces[0].put(SlotSpec { id: 3, base: 100, npages: 8, hva: 0, flags: 0 }),
        "tlb_stale" => {
            state.vcpus[0].requests = 0;
            state.drop_spte(table.sptep(2));
        }
        other => panic!("no corruption is known for {other}"),
    }
}

#[test]
fn every_invariant_is_found_broken_by_name() {
    for (invariant, sentence) in INVARIANTS {
        let mut state = tdp_state();
        if !corrupt_tdp(&mut state, invariant) {
            state = self::state();
            corrupt(&mut state, invariant);
        }
        let findings = state.audit();
        assert!(
            findings.iter().any(|finding| finding.invariant == invariant),
            "{invariant} ({sentence}) was broken; found {findings:?}"
        );
        assert!(findings.iter().all(|finding| INVARIANTS.iter().any(|(name, _)| *name == finding.invariant)));
    }
}

#[test]
fn names_are_unique() {
    let mut names = INVARIANTS.map(|(name, _)| name);
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
}

#[test]
fn a_gfn_of_a_leaf_is_its_tables() {
    let state = state();
    assert_eq!(state.gfn_of(page(&state, 4).sptep(2)), Gfn(2));
}
