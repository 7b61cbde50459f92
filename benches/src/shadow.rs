//! A guest with page tables of its own: the fault that shadows them, a table out of sync and back, roots, emulated writes.
//!
//! The guest is in long mode and maps its pages one to one with 4 KiB entries, 512 to a table.

use std::hint::black_box;

use kvm_mmu::mmu::{
    AccessKind, Config, EventMode, Family, GfnHash, GuestWork, Kernel, Mmu, Outcome, SlotChange, SlotSpec,
};

use crate::{TABLE, Timed, timed_on};

const ENTRY: u64 = 0x67;
const ROOT: u64 = 0x1000;
const DIRECTORY: u64 = 0x3000;
const TABLES: u64 = 0x10_0000;
/// What the guest's addresses lead to begins here.
const DATA: u64 = 1 << 30;
/// Where the guest maps its own tables.
const OWN: u64 = 1 << 30;

fn put(mmu: &mut Mmu, gpa: u64, entry: u64) {
    assert_eq!(mmu.poke(0, gpa, entry, 8).expect("vcpu 0 exists"), 0, "{gpa:#x}");
}

/// A guest that maps so many tables full of pages from address 0 on, and its tables from 1 GiB on; roots at 0x1000 and at
/// the three pages from 0x5000 on.
///
/// # Panics
/// If the core refuses the configuration.
#[must_use]
pub fn guest(kernel: &str, nr_tables: u64) -> Mmu {
    let profile = Kernel::by_name(kernel).expect("a known kernel");
    let gfn_hash = GfnHash::Kernel;
    let config = Config { family: Family::Shadow, events: EventMode::Off, gfn_hash, ..Config::new(profile) };
    let mut mmu = Mmu::new(config).expect("a valid configuration");
    let npages = (DATA >> 12) + nr_tables * TABLE;
    let spec = SlotSpec { id: 0, base: 0, npages, hva: 0x10_0000_0000, flags: 0 };
    mmu.install_slot(0, 2, SlotChange::Put(spec)).expect("the slot is valid");
    mmu.set_max_raw(1 << 30);
    for root in [ROOT, 0x5000, 0x6000, 0x7000] {
        put(&mut mmu, root, 0x2000 | ENTRY);
    }
    put(&mut mmu, 0x2000, DIRECTORY | ENTRY);
    put(&mut mmu, 0x2008, 0x4000 | ENTRY);
    put(&mut mmu, 0x4000, 0x8000 | ENTRY);
    for table in 0..nr_tables {
        let at = TABLES + (table << 12);
        put(&mut mmu, DIRECTORY + table * 8, at | ENTRY);
        for page in 0..TABLE {
            put(&mut mmu, at + page * 8, DATA + ((table * TABLE + page) << 12) | ENTRY);
        }
    }
    for table in 0..nr_tables.min(TABLE) {
        put(&mut mmu, 0x8000 + table * 8, TABLES + (table << 12) | ENTRY);
    }
    mmu
}

fn touch(mmu: &mut Mmu, gva: u64) {
    let done = mmu.guest(0, GuestWork::Access { gva, kind: AccessKind::Write, is_user: true }).expect("vcpu 0 exists");
    assert_eq!(black_box(done).outcome, Outcome::Hit, "{gva:#x}");
}

/// The guest writes the CR3 that it has: its tables are in sync again.
fn flush(mmu: &mut Mmu, cr3: u64) {
    if mmu.set_cr3(0, cr3).expect("vcpu 0 exists") == 1 {
        mmu.guest(0, GuestWork::SyncRoots).expect("vcpu 0 exists");
    }
}

/// A write to each page of so many guest tables in order: entry, walk, fault, walk.
#[must_use]
pub fn fault(kernel: &str, nr_tables: u64) -> Timed {
    let mut mmu = guest(kernel, nr_tables);
    timed_on(&mut mmu, nr_tables * TABLE, |mmu| {
        (0..nr_tables * TABLE).for_each(|page| touch(mmu, page << 12));
    })
}

/// Rounds of: the guest writes a table of its own, which falls out of sync, changes an entry of it, and writes CR3, which
/// brings it back.
#[must_use]
pub fn unsync_and_sync(kernel: &str) -> Timed {
    let (rounds, nr_tables) = (1 << 12, 16);
    let mut mmu = guest(kernel, nr_tables);
    (0..nr_tables * TABLE).for_each(|page| touch(&mut mmu, page << 12));
    timed_on(&mut mmu, rounds, |mmu| {
        for round in 0..rounds {
            let table = round % nr_tables;
            let page = round % TABLE;
            touch(mmu, OWN + (table << 12));
            put(mmu, TABLES + (table << 12) + page * 8, DATA + ((table * TABLE + (page ^ (round >> 9 & 1))) << 12) | ENTRY);
            flush(mmu, ROOT);
        }
    })
}

/// A switch to another CR3, whose root the vCPU has kept, and the entry behind it: one of four in turn.
#[must_use]
pub fn switch(kernel: &str) -> Timed {
    let count: usize = 1 << 14;
    let roots = [ROOT, 0x5000, 0x6000, 0x7000];
    let mut mmu = guest(kernel, 1);
    let go = |mmu: &mut Mmu, cr3: u64| {
        flush(mmu, cr3);
        mmu.guest(0, GuestWork::Enter).expect("vcpu 0 exists");
    };
    for root in roots {
        go(&mut mmu, root);
        touch(&mut mmu, 0);
    }
    timed_on(&mut mmu, count as u64, |mmu| (0..count).for_each(|at| go(mmu, roots[at % roots.len()])))
}

/// The emulator writes an entry of a guest's last-level table, which is write-protected.
#[must_use]
pub fn emulated_write(kernel: &str) -> Timed {
    let count = 1 << 14;
    let mut mmu = guest(kernel, 1);
    (0..TABLE).for_each(|page| touch(&mut mmu, page << 12));
    timed_on(&mut mmu, count, |mmu| {
        for at in 0..count {
            let page = at % TABLE;
            let entry = DATA + ((page ^ (at >> 9 & 1)) << 12) | ENTRY;
            black_box(mmu.emulate_write(0, TABLES + page * 8, entry, 8).expect("vcpu 0 exists"));
        }
    })
}
