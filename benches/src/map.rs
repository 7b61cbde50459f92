//! Mapping, write-protecting and making writable again the 4 KiB pages of a slot.

use std::hint::black_box;

use kvm_mmu::mmu::{GfnHash, Mmu, SlotWalk, Task};

use crate::{Timed, WRITE, WRITE_PRESENT, fault, finish, permutation, timed_on, vm};

/// Order in which a slot's pages are touched.
#[derive(Clone, Copy, Debug)]
pub enum Order {
    Ascending,
    Random,
    Descending,
}

/// Whether a write to the page needs no fault any more.
#[inline]
fn is_mapped(mmu: &Mmu, gfn: u64) -> bool {
    matches!(mmu.translate(0, gfn << 12), Ok(Some((1, spte))) if spte & 7 == 7)
}

#[inline]
fn touch(mmu: &mut Mmu, gfn: u64) {
    if !is_mapped(mmu, gfn) {
        fault(mmu, gfn, WRITE);
    }
}

/// Every page of a slot faulted in by a write; one that is there already is skipped, that check included.
///
/// Prefetch is kept out by a slot that logs dirty pages.
#[must_use]
pub fn map(kernel: &str, gib: u64, order: Order, prefetch: bool) -> Timed {
    let npages = gib << 18;
    let mut mmu = vm(kernel, npages, u32::from(!prefetch), GfnHash::Kernel);
    let shuffled = matches!(order, Order::Random).then(|| permutation(npages));
    timed_on(&mut mmu, npages, |mmu| match order {
        Order::Ascending => (0..npages).for_each(|gfn| touch(mmu, gfn)),
        Order::Random => shuffled.iter().flatten().for_each(|&gfn| touch(mmu, gfn)),
        Order::Descending => (0..npages).rev().for_each(|gfn| touch(mmu, gfn)),
    })
}

const PROTECTED: u64 = 1 << 18;
const PROTECT: Task = Task::SlotWalk { as_id: 0, id: 0, what: SlotWalk::RemoveWriteAccess };

fn mapped(kernel: &str) -> Mmu {
    let mut mmu = vm(kernel, PROTECTED, 0, GfnHash::Kernel);
    (0..PROTECTED).for_each(|gfn| fault(&mut mmu, gfn, WRITE));
    mmu
}

/// Write-protecting a fully mapped slot, its entries writable or not any more.
#[must_use]
pub fn write_protect(kernel: &str, again: bool) -> Timed {
    let mut mmu = mapped(kernel);
    if again {
        finish(&mut mmu, PROTECT);
    }
    timed_on(&mut mmu, PROTECTED, |mmu| {
        black_box(finish(mmu, PROTECT));
    })
}

/// Making each entry of a write-protected slot writable again, by the lock-free path.
#[must_use]
pub fn fast_page_fault(kernel: &str) -> Timed {
    let mut mmu = mapped(kernel);
    finish(&mut mmu, PROTECT);
    timed_on(&mut mmu, PROTECTED, |mmu| (0..PROTECTED).for_each(|gfn| fault(mmu, gfn, WRITE_PRESENT)))
}
