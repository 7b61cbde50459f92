//! Addresses as types, so that a guest frame is never taken for a host frame. All arithmetic wraps deliberately: guest
//! addresses reach 2^64.

use serde::{Deserialize, Serialize};

use crate::mmu::words::level::{PAGE_SHIFT, level_shift};

/// A guest frame number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Gfn(pub u64);

impl Gfn {
    /// The frame of a guest physical address.
    #[must_use]
    pub const fn of_gpa(gpa: u64) -> Self {
        Self(gpa >> PAGE_SHIFT)
    }

    /// Its first address.
    #[must_use]
    pub const fn gpa(self) -> u64 {
        self.0 << PAGE_SHIFT
    }

    /// The first gfn of the mapping of this level that holds it.
    #[must_use]
    pub const fn align_down(self, level: u8) -> Self {
        Self(self.0 >> level_shift(level) << level_shift(level))
    }

    /// So many frames further.
    #[must_use]
    pub const fn plus(self, npages: u64) -> Self {
        Self(self.0.wrapping_add(npages))
    }
}

/// A host frame number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Pfn(pub u64);

impl Pfn {
    /// The frame behind a host virtual address: the model's host maps one to one.
    #[must_use]
    pub const fn of_hva(hva: u64) -> Self {
        Self(hva >> PAGE_SHIFT)
    }

    /// The address of the frame.
    #[must_use]
    pub const fn hva(self) -> u64 {
        self.0 << PAGE_SHIFT
    }

    /// The first frame of the mapping of this level that holds it.
    #[must_use]
    pub const fn align_down(self, level: u8) -> Self {
        Self(self.0 >> level_shift(level) << level_shift(level))
    }

    /// So many frames further.
    #[must_use]
    pub const fn plus(self, npages: u64) -> Self {
        Self(self.0.wrapping_add(npages))
    }
}
