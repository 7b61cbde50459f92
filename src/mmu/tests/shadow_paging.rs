//! A guest with page tables of its own, step by step: what a fault builds, what falls out of sync, and what brings it back.

use super::{put, vm_with};
use crate::mmu::words::config::Family;
use crate::mmu::{AccessKind, Event, GuestWork, Mmu, Outcome};

const TABLE: u64 = 0x67;
/// P, W, U, A and D.
const PAGE: u64 = 0x67;

/// A guest in long mode with a table for its first 2 MiB at 0x4000, whose root is at 0x1000.
fn guest(kernel: &str) -> Mmu {
    let mut mmu = vm_with(kernel, |config| config.family = Family::Shadow);
    put(&mut mmu, 0, 0, 4096, 0);
    for (at, to) in [(0x1000, 0x2000), (0x2000, 0x3000), (0x3000, 0x4000)] {
        assert_eq!(mmu.poke(0, at, to | TABLE, 8).expect("vcpu 0"), 0);
    }
    for page in 0..16 {
        mmu.poke(0, 0x4000 + page * 8, (0x10_0000 + (page << 12)) | PAGE, 8).expect("vcpu 0");
    }
    // The table itself, at 0x10000.
    mmu.poke(0, 0x4000 + 16 * 8, 0x4000 | PAGE, 8).expect("vcpu 0");
    mmu
}

fn touch(mmu: &mut Mmu, gva: u64, kind: AccessKind) -> Outcome {
    let outcome = mmu.guest(0, GuestWork::Access { gva, kind, is_user: true }).expect("vcpu 0").outcome;
    assert_eq!(mmu.audit(), Vec::new(), "after {gva:#x}");
    outcome
}

fn nr_unsync(mmu: &Mmu) -> usize {
    mmu.state.arena.live().filter(|&page| mmu.state.arena.page(page).unsync).count()
}

const KERNELS: [&str; 5] = ["v5.0", "v5.0-seed", "v5.2", "v6.1", "v6.12"];

#[test]
fn a_fault_shadows_every_table_of_the_walk() {
    for kernel in KERNELS {
        let mut mmu = guest(kernel);
        assert_eq!(touch(&mut mmu, 0x2000, AccessKind::Write), Outcome::Hit, "{kernel}");
        assert_eq!((mmu.used_mmu_pages(), mmu.state.nr_indirect), (4, 4), "{kernel}");
        // Neighbours were mapped ahead, what the guest does not map is its own affair.
        assert_eq!(touch(&mut mmu, 0x3000, AccessKind::Read), Outcome::Hit);
        assert_eq!(touch(&mut mmu, 0x20_0000, AccessKind::Read), Outcome::GuestFault);
    }
}

#[test]
fn a_table_that_is_written_falls_out_of_sync_and_a_switch_brings_it_back() {
    for kernel in KERNELS {
        let mut mmu = guest(kernel);
        touch(&mut mmu, 0x2000, AccessKind::Write);
        assert_eq!(touch(&mut mmu, 0x1_0000, AccessKind::Write), Outcome::Hit, "{kernel}");
        assert_eq!(nr_unsync(&mmu), 1, "{kernel}");
        mmu.poke(0, 0x4000 + 2 * 8, 0, 8).expect("vcpu 0");
        assert_eq!(touch(&mut mmu, 0x2000, AccessKind::Read), Outcome::Hit, "the processor still has it");
        if mmu.set_cr3(0, 0x1000).expect("vcpu 0") == 1 {
            mmu.guest(0, GuestWork::SyncRoots).expect("vcpu 0");
        }
        assert_eq!(touch(&mut mmu, 0x2000, AccessKind::Read), Outcome::GuestFault, "{kernel}");
        assert_eq!(nr_unsync(&mmu), 0, "{kernel}");
        assert!(mmu.state.events.iter().any(|event| matches!(event, Event::Sync { .. })));
    }
}

#[test]
fn invlpg_looks_at_one_entry() {
    for kernel in KERNELS {
        let mut mmu = guest(kernel);
        touch(&mut mmu, 0x2000, AccessKind::Write);
        touch(&mut mmu, 0x1_0000, AccessKind::Write);
        mmu.poke(0, 0x4000 + 2 * 8, 0, 8).expect("vcpu 0");
        mmu.poke(0, 0x4000 + 3 * 8, 0, 8).expect("vcpu 0");
        mmu.guest(0, GuestWork::Invlpg { gva: 0x2000 }).expect("vcpu 0");
        assert_eq!(nr_unsync(&mmu), 1, "{kernel}");
        assert_eq!(touch(&mut mmu, 0x3000, AccessKind::Read), Outcome::Hit, "{kernel}");
        assert_eq!(touch(&mut mmu, 0x2000, AccessKind::Read), Outcome::GuestFault, "{kernel}");
    }
}

#[test]
fn an_upper_table_goes_at_the_third_emulated_write() {
    for kernel in KERNELS {
        let mut mmu = guest(kernel);
        touch(&mut mmu, 0x2000, AccessKind::Write);
        let before = mmu.used_mmu_pages();
        for writes in 1..=3 {
            assert_eq!(mmu.emulate_write(0, 0x3000 + 8 * 100, 0, 8).expect("vcpu 0"), 0);
            assert_eq!(mmu.used_mmu_pages(), before - u64::from(writes == 3), "{kernel}");
            assert_eq!(mmu.audit(), Vec::new());
        }
        assert_eq!(mmu.emulate_write(0, 1 << 40, 0, 8).expect("vcpu 0"), -14, "no memory there");
    }
}

#[test]
fn a_root_of_another_cr3_is_kept() {
    for kernel in KERNELS {
        let mut mmu = guest(kernel);
        mmu.poke(0, 0x5000, 0x2000 | TABLE, 8).expect("vcpu 0");
        touch(&mut mmu, 0x2000, AccessKind::Write);
        assert_eq!(mmu.set_cr3(0, 0x5000).expect("vcpu 0"), 0);
        touch(&mut mmu, 0x2000, AccessKind::Write);
        let used = mmu.used_mmu_pages();
        assert_eq!(mmu.set_cr3(0, 0x1000).expect("vcpu 0"), 0);
        assert_eq!(touch(&mut mmu, 0x2000, AccessKind::Read), Outcome::Hit);
        assert_eq!(mmu.used_mmu_pages(), used, "{kernel}");
        assert_eq!(mmu.state.vcpus[0].prev_roots[0].cr3, 0x5000, "{kernel}");
    }
}

#[test]
fn a_vm_with_shadowed_tables_is_written_down_and_read_again() {
    let mut mmu = guest("v6.12");
    touch(&mut mmu, 0x2000, AccessKind::Write);
    touch(&mut mmu, 0x1_0000, AccessKind::Write);
    let (twin, _) = Mmu::from_bytes(&mmu.to_bytes("").expect("idle")).expect("whole");
    assert_eq!(twin.digest(), mmu.digest());
    assert_eq!(nr_unsync(&twin), 1);
}

#[test]
fn others_have_no_such_operations() {
    let mut mmu = vm_with("v6.12", |_| ());
    assert!(mmu.set_cr3(0, 0).is_err() && mmu.unprotect(0).is_err() && mmu.emulate_write(0, 0, 0, 8).is_err());
    assert!(mmu.guest(0, GuestWork::Enter).is_err());
}
