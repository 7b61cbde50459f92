//! Guest accesses: entry of the vCPU, the processor's walk, the fault, and the walk again, page by page.

use std::hint::black_box;

use kvm_mmu::mmu::{AccessKind, GfnHash, Mmu};

use crate::{Timed, timed_on, vm};

fn write_all(mmu: &mut Mmu, npages: u64) {
    for gfn in 0..npages {
        black_box(mmu.access(0, gfn << 12, AccessKind::Write).expect("vcpu 0 exists"));
    }
}

/// The same as an array of addresses, the first write to each.
///
/// # Panics
/// If the core refuses vcpu 0.
#[must_use]
pub fn access_many(kernel: &str, gib: u64) -> Timed {
    let npages = gib << 18;
    let mut mmu = vm(kernel, npages, 0, GfnHash::Kernel);
    let gpas: Vec<u64> = (0..npages).map(|gfn| gfn << 12).collect();
    timed_on(&mut mmu, npages, |mmu| {
        mmu.access_many(0, &gpas, AccessKind::Write, |done| drop(black_box(done))).expect("vcpu 0 exists");
    })
}

/// A write to every page of a slot in ascending order; each faults, or none does any more.
#[must_use]
pub fn access(kernel: &str, gib: u64, is_mapped: bool) -> Timed {
    let npages = gib << 18;
    let mut mmu = vm(kernel, npages, 0, GfnHash::Kernel);
    if is_mapped {
        write_all(&mut mmu, npages);
    }
    timed_on(&mut mmu, npages, |mmu| write_all(mmu, npages))
}
