//! What is done to a VM as a whole: a copy of it, its digest, its digest again after one step.

use std::hint::black_box;

use kvm_mmu::mmu::GfnHash;

use crate::zap::tables;
use crate::{HOLE, READ, TABLE, Timed, WRITE_PRESENT, fault, timed};

/// A copy of a VM of so many tables with so many leaves each; its own time, without that of dropping it.
#[must_use]
pub fn clone(kernel: &str, nr_tables: u64, leaves: u64) -> Timed {
    let mmu = tables(kernel, nr_tables, leaves, GfnHash::Kernel);
    let mut copy = None;
    timed(1, || copy = Some(black_box(&mmu).clone()))
}

/// A copy that shares what nobody writes to; its own time. With `is_again` there was one before, and it is gone.
#[must_use]
pub fn fork(kernel: &str, nr_tables: u64, leaves: u64, is_again: bool) -> Timed {
    let mut mmu = tables(kernel, nr_tables, leaves, GfnHash::Kernel);
    if is_again {
        drop(mmu.fork());
    }
    let mut copy = None;
    timed(1, || copy = Some(black_box(&mut mmu).fork()))
}

/// Such a copy, and a fault on one present page of it, or on an absent one that needs a table.
#[must_use]
pub fn fork_and_step(kernel: &str, nr_tables: u64, leaves: u64, is_new: bool) -> Timed {
    let mut mmu = tables(kernel, nr_tables, leaves, GfnHash::Kernel);
    let mut copy = None;
    timed(1, || {
        let mut one = black_box(&mut mmu).fork();
        if is_new {
            fault(&mut one, HOLE, READ);
        } else {
            fault(&mut one, nr_tables / 2 * TABLE, WRITE_PRESENT);
        }
        copy = Some(one);
    })
}

/// A copy of a VM, and one page of it mapped anew: what a step on a copy costs.
#[must_use]
pub fn clone_and_step(kernel: &str, nr_tables: u64, leaves: u64) -> Timed {
    let mmu = tables(kernel, nr_tables, leaves, GfnHash::Kernel);
    let mut copy = None;
    timed(1, || {
        let mut one = black_box(&mmu).clone();
        fault(&mut one, nr_tables / 2 * TABLE, WRITE_PRESENT);
        copy = Some(one);
    })
}

/// The fingerprint of a VM of so many tables with so many leaves each; after a step, if it was taken before.
#[must_use]
pub fn fingerprint(kernel: &str, nr_tables: u64, leaves: u64, is_again: bool) -> Timed {
    let mut mmu = tables(kernel, nr_tables, leaves, GfnHash::Kernel);
    if is_again {
        black_box(mmu.fingerprint());
        fault(&mut mmu, nr_tables / 2 * TABLE, WRITE_PRESENT);
        fault(&mut mmu, HOLE, READ);
    }
    timed(1, || {
        black_box(mmu.fingerprint());
    })
}

/// The digest of a VM of so many tables with so many leaves each; again after a step, if it was taken before.
#[must_use]
pub fn digest(kernel: &str, nr_tables: u64, leaves: u64, is_again: bool) -> Timed {
    let mut mmu = tables(kernel, nr_tables, leaves, GfnHash::Kernel);
    if is_again {
        black_box(mmu.digest());
        fault(&mut mmu, nr_tables / 2 * TABLE, WRITE_PRESENT);
    }
    timed(1, || {
        black_box(mmu.digest());
    })
}
