//! Zapping everything, and what the kernels and plans do when the MMIO generation wraps.

use std::hint::black_box;

use kvm_mmu::mmu::{GfnHash, Mmu, Task, ZapPlan};

use crate::{HOLE, READ, TABLE, Timed, WRITE, fault, finish, timed_on, vm};

/// A VM of so many level-1 tables with so many leaves each.
#[must_use]
pub fn tables(kernel: &str, tables: u64, leaves: u64, hash: GfnHash) -> Mmu {
    let mut mmu = vm(kernel, tables * TABLE, 0, hash);
    for table in 0..tables {
        (0..leaves).for_each(|at| fault(&mut mmu, table * TABLE + at, WRITE));
    }
    mmu
}

fn zap(mmu: &mut Mmu, plan: ZapPlan) {
    black_box(finish(mmu, Task::Zap { plan, slot: None, range: None }));
}

/// Everything zapped by the kernel's flush-all, commit included. Counts level-1 tables.
#[must_use]
pub fn everything(kernel: &str, nr_tables: u64, leaves: u64) -> Timed {
    let mut mmu = tables(kernel, nr_tables, leaves, GfnHash::Kernel);
    let plan = mmu.plans().flush_all;
    timed_on(&mut mmu, nr_tables, |mmu| zap(mmu, plan))
}

/// A VM of so many tables, so many per cent of them with MMIO entries, evenly spread, the others with leaves: so many a
/// table.
#[must_use]
pub fn mmio_mix(kernel: &str, nr_tables: u64, percent: u64, entries: u64) -> Mmu {
    let mut mmu = vm(kernel, nr_tables * TABLE, 0, GfnHash::Kernel);
    for table in 0..nr_tables {
        for at in 0..entries {
            if table % (100 / percent) == 0 {
                fault(&mut mmu, HOLE + table * TABLE + at, READ);
            } else {
                fault(&mut mmu, table * TABLE + at, WRITE);
            }
        }
    }
    mmu
}

/// One generation wrap under a plan.
///
/// # Panics
/// If there is no such plan.
#[must_use]
pub fn mmio_wrap(kernel: &str, nr_tables: u64, percent: u64, entries: u64, plan: &str) -> Timed {
    let plan = ZapPlan::named(plan).expect("a named plan");
    let mut mmu = mmio_mix(kernel, nr_tables, percent, entries);
    timed_on(&mut mmu, 1, |mmu| zap(mmu, plan))
}

/// Bytes of header, links and table per shadow page, where each table has so many leaves.
#[must_use]
pub fn bytes_per_page(leaves: u64) -> u64 {
    tables("v5.0", 4096, leaves, GfnHash::Kernel).memory().bytes_per_page()
}
