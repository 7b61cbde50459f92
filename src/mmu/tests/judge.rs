//! Every property of the judge is broken on purpose once, by hand, and the judge says its name: none of them is empty.

use super::{put, touch, vm_with};
use crate::mmu::ghost::memory::Ghost;
use crate::mmu::ghost::operations::OpKind;
use crate::mmu::pages::page_arena::{PageIdx, Place};
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::config::Family;
use crate::mmu::words::spte::layout::WRITABLE;
use crate::mmu::words::views::HostState;
use crate::mmu::{AccessKind, GuestWork, HostHuge, Mmu, PROPERTIES};

/// What the search says of an operation, and no state shows.
const OF_THE_SEARCH: [&str; 4] = ["progress", "no_bug", "slot_bounds", "walk_depth"];
const TABLE: u64 = 0x67;
const READ_ONLY: u64 = 0x65;
const CLEAN: u64 = 0x27;

/// A root, two upper tables, one page table with leaves of gfns 1 and 2, and one with an MMIO entry; the vCPU is in the guest.
fn direct() -> MmuState {
    let mut mmu = vm_with("v6.12", |_| ());
    mmu.set_judged(true);
    put(&mut mmu, 0, 0, 512, 0);
    for gfn in [1, 2, 512] {
        touch(&mut mmu, gfn);
    }
    mmu.enter(0).expect("vcpu 0");
    judged(mmu)
}

/// A leaf of 2 MiB.
fn large(is_tdp: bool) -> MmuState {
    let mut mmu = vm_with("v6.12", |config| config.tdp_mmu = is_tdp);
    mmu.set_judged(true);
    put(&mut mmu, 0, 0, 512, 0);
    mmu.set_host_huge(0x2_0000_0000, 512, HostHuge::Thp);
    mmu.access(0, 1 << 12, AccessKind::Exec).expect("vcpu 0");
    judged(mmu)
}

/// A guest in long mode whose table of gfn 4 maps its first pages, twice, and itself at 0x10000.
fn guest() -> MmuState {
    let mut mmu = vm_with("v6.12", |config| config.family = Family::Shadow);
    mmu.set_judged(true);
    put(&mut mmu, 0, 0, 4096, 0);
    for (at, to) in [(0x1000, 0x2000), (0x2000, 0x3000), (0x3000, 0x4000)] {
        mmu.poke(0, at, to | TABLE, 8).expect("vcpu 0");
    }
    mmu.poke(0, 0x3008, 0x4000 | TABLE, 8).expect("vcpu 0");
    // Not written yet: mapped for a read it does not fall out of sync.
    mmu.poke(0, 0x4080, 0x4000 | CLEAN, 8).expect("vcpu 0");
    for page in 0..4 {
        mmu.poke(0, 0x4000 + page * 8, (0x10_0000 + (page << 12)) | TABLE, 8).expect("vcpu 0");
    }
    for (gva, kind) in [(0x2000, AccessKind::Write), (0x20_2000, AccessKind::Read), (0x1_0000, AccessKind::Read)] {
        mmu.guest(0, GuestWork::Access { gva, kind, is_user: false }).expect("vcpu 0");
    }
    judged(mmu)
}

fn judged(mmu: Mmu) -> MmuState {
    assert_eq!(mmu.judge(), Vec::new());
    assert_eq!(mmu.audit(), Vec::new());
    mmu.state
}

fn page(state: &MmuState, id: u32) -> PageIdx {
    state.arena.find_id(id).expect("the page lives")
}

fn ghost(state: &mut MmuState) -> &mut Ghost {
    state.ghost.as_mut().expect("it is judged")
}

/// Breaks a property of a guest's tables, behind everybody's back.
fn break_guest(state: &mut MmuState, property: &str) -> bool {
    let write = |state: &mut MmuState, gpa, value| assert_eq!(state.write_guest(0, gpa, value, 8), 0);
    match property {
        "guest_rights" => write(state, 0x4010, 0x10_2000 | READ_ONLY),
        "leaf_gfn" => write(state, 0x4010, 0x10_3000 | TABLE),
        "child_expected" => write(state, 0x3000, 0x5000 | TABLE),
        "bounded_parents" => state.config.kernel.max_parents = 1,
        "tables_protected" => {
            let sptep = page(state, 4).sptep(16);
            let spte = state.arena.spte(sptep);
            assert_eq!(spte & WRITABLE, 0);
            state.spte_set(sptep, spte | WRITABLE);
        }
        _ => return false,
    }
    true
}

fn break_large(state: &mut MmuState, property: &str) {
    match property {
        "nx_exec" => state.config.nx_huge_pages = true,
        "tdp_shape" => {
            let frozen = state.masks.frozen;
            state.spte_set(page(state, 3).sptep(5), frozen);
        }
        other => panic!("no way is known to break {other}"),
    }
}

/// Breaks what the ghost is told of as it happens, or remembers.
fn break_ghost(state: &mut MmuState, property: &str) -> bool {
    let table = page(state, 4);
    match property {
        "stale_ram" | "mmio_as_ram" => {
            let backing = &mut ghost(state).backing;
            if property == "stale_ram" {
                backing.slots[0].since = u64::MAX;
            } else {
                backing.slots.clear();
            }
            backing.settle();
        }
        "host_taken" => ghost(state).host_takes(0x20_0001, 1),
        "stale_mmio" => state.tell_mmio(0, Gfn(1), true),
        "lost_dirty" => {
            let ghost = ghost(state);
            ghost.guest_wrote(1, table.sptep(1).0, Some((0, 0, 1, true)));
            ghost.harvested(0, 0, &[], true);
        }
        "tracked_all_spaces" => ghost(state).tracked(0, 1, true),
        "tracked_write" => {
            ghost(state).tracked(0, 1, true);
            ghost(state).guest_wrote(1, table.sptep(1).0, None);
        }
        "freed_reachable" => ghost(state).freed(table.0, false),
        "debt_overdue" => {
            ghost(state).begin(OpKind::Unmap, &[]);
            state.spte_set(table.sptep(1), 0);
            ghost(state).end();
        }
        "debt_shared" => {
            ghost(state).begin(OpKind::Zap, &[]);
            state.spte_set(table.sptep(1), 0);
            ghost(state).park(1);
            ghost(state).begin(OpKind::Unmap, &[(0, 1, 1)]);
            ghost(state).end();
        }
        _ => return false,
    }
    true
}

fn break_direct(state: &mut MmuState, property: &str) {
    let (root, upper, table, mmio) = (page(state, 1), page(state, 3), page(state, 4), page(state, 5));
    let (leaf, mark) = (state.arena.spte(table.sptep(1)), state.arena.spte(mmio.sptep(0)));
    match property {
        "unlogged_write" => {
            let mut mmu = Mmu { state: state.clone(), summed: None };
            put(&mut mmu, 0, 0, 512, 1);
            *state = mmu.state;
        }
        "readonly_write" => {
            state.host.set_state(crate::mmu::words::addr::Pfn(0x20_0009), 1, HostState::ReadOnly);
            state.spte_set(table.sptep(9), leaf + (8 << 12));
        }
        "active_valid" => state.arena.key_mut(table).role.set_invalid(true),
        "no_page_under_invalid" => state.arena.key_mut(upper).role.set_invalid(true),
        "mmio_cache_space" => {
            let slots_gen = state.spaces[0].slots_gen;
            (state.vcpus[0].mmio.gfn, state.vcpus[0].mmio.slots_gen) = (Gfn(1), slots_gen);
        }
        "rooted_kept" => {
            let header = state.arena.page_mut(table);
            (header.place, header.root_count) = (Place::Invalid, 1);
        }
        "one_place" => state.zapped_obsolete.push(table),
        "recount" => state.used += 1,
        "obsolete_unused" => state.arena.key_mut(root).role.set_invalid(true),
        "mmio_place" => state.spte_set(table.sptep(9), mark),
        "root_role" => state.vcpus[0].role = state.vcpus[0].role.with_smm(1),
        "present_dropped_first" => state.spte_set(table.sptep(1), mark),
        "ghost_agrees" => state.arena.table_mut(table).set(9, leaf),
        other => panic!("no way is known to break {other}"),
    }
}

#[test]
fn every_property_is_found_broken_by_name() {
    for (property, sentence, _) in PROPERTIES {
        if OF_THE_SEARCH.contains(&property) {
            continue;
        }
        let mut state = guest();
        if !break_guest(&mut state, property) {
            state = direct();
            if matches!(property, "nx_exec" | "tdp_shape") {
                state = large(property == "tdp_shape");
                break_large(&mut state, property);
            } else if !break_ghost(&mut state, property) {
                break_direct(&mut state, property);
            }
        }
        let found: Vec<&str> = state.judge().into_iter().map(|finding| finding.invariant).collect();
        assert!(found.contains(&property), "{property} ({sentence}) was broken; found {found:?}");
        assert!(found.iter().all(|name| PROPERTIES.iter().any(|(known, ..)| known == name)), "{found:?}");
    }
}

#[test]
fn what_is_changed_behind_the_back_is_not_said_of_a_guest() {
    let mut mmu = Mmu { state: guest(), summed: None };
    mmu.poke(0, 0x4010, 0x10_2000 | READ_ONLY, 8).expect("vcpu 0");
    assert_eq!(mmu.judge(), Vec::new());
}
