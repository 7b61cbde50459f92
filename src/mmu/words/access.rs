//! Access bits of a role and bits of a page-fault error code.

/// All of exec, write and user.
pub const ACC_ALL: u8 = 7;
/// May be executed.
pub const ACC_EXEC: u8 = 1;
/// May be written.
pub const ACC_WRITE: u8 = 2;
/// May be reached by the guest at all (two-dimensional paging).
pub const ACC_USER: u8 = 4;

/// An entry was there and forbade it.
pub const PFERR_PRESENT: u64 = 1;
/// The access was a write.
pub const PFERR_WRITE: u64 = 1 << 1;
/// The access came from user mode; a read in EPT's codes.
pub const PFERR_USER: u64 = 1 << 2;
/// An entry had a reserved bit set: an MMIO SPTE, or a misconfiguration.
pub const PFERR_RSVD: u64 = 1 << 3;
/// The access was an instruction fetch.
pub const PFERR_FETCH: u64 = 1 << 4;
/// A protection key forbade it.
pub const PFERR_PK: u64 = 1 << 5;
/// The final translation faulted, not the walk of a guest table.
pub const PFERR_GUEST_FINAL: u64 = 1 << 32;
/// The walk of a guest table faulted.
pub const PFERR_GUEST_PAGE: u64 = 1 << 33;
/// A write to a guest page table that is mapped read-only.
pub const PFERR_NESTED_GUEST_PAGE: u64 = PFERR_GUEST_PAGE | PFERR_WRITE | PFERR_PRESENT;
