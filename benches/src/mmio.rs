//! Faults on gfns without a slot: the first one, a hit, a stale entry.

use kvm_mmu::mmu::{GfnHash, Mmu};

use crate::{HOLE, READ, RSVD, TABLE, Timed, fault, permutation, timed_on, vm};

const GFNS: u64 = 65_536;

fn marked(kernel: &str) -> Mmu {
    let mut mmu = vm(kernel, TABLE, 0, GfnHash::Kernel);
    (HOLE..HOLE + GFNS).for_each(|gfn| fault(&mut mmu, gfn, READ));
    mmu
}

/// The first fault on each of 65,536 consecutive gfns.
#[must_use]
pub fn first(kernel: &str) -> Timed {
    let mut mmu = vm(kernel, TABLE, 0, GfnHash::Kernel);
    timed_on(&mut mmu, GFNS, |mmu| (HOLE..HOLE + GFNS).for_each(|gfn| fault(mmu, gfn, READ)))
}

/// Reserved-bit faults on current MMIO SPTEs, another gfn each time.
#[must_use]
pub fn hit(kernel: &str, random: bool) -> Timed {
    let mut mmu = marked(kernel);
    let order = if random { permutation(GFNS) } else { (0..GFNS).collect() };
    timed_on(&mut mmu, GFNS * 8, |mmu| {
        for _ in 0..8 {
            order.iter().for_each(|at| fault(mmu, HOLE + at, RSVD));
        }
    })
}

/// The same gfn again and again: the vCPU's cache answers.
#[must_use]
pub fn cached(kernel: &str) -> Timed {
    let mut mmu = vm(kernel, TABLE, 0, GfnHash::Kernel);
    fault(&mut mmu, HOLE, READ);
    timed_on(&mut mmu, 1 << 22, |mmu| (0..1 << 22).for_each(|_| fault(mmu, HOLE, RSVD)))
}

/// Reserved-bit faults after the generation changed: slow path, entry rewritten.
///
/// # Panics
/// If the core refuses a generation.
#[must_use]
pub fn stale(kernel: &str) -> Timed {
    let mut mmu = marked(kernel);
    mmu.set_generation(0, 6).expect("address space 0 exists");
    timed_on(&mut mmu, GFNS, |mmu| (HOLE..HOLE + GFNS).for_each(|gfn| fault(mmu, gfn, RSVD)))
}
