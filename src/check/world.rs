//! A world: the operations that may happen to a VM, and how far they may interrupt each other.

use super::policy::Policy;
use crate::mmu::{AccessKind, HostHuge, HostState};

/// An operation of a world.
#[allow(missing_docs, reason = "the fields of the operation of the scenario language")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A guest access.
    Access { vcpu: u16, gpa: u64, kind: AccessKind },
    /// A guest with tables of its own touches an address.
    Vaccess { vcpu: u16, gva: u64, kind: AccessKind, is_user: bool },
    /// Guest memory is changed without the MMU being told.
    Poke { vcpu: u16, gpa: u64, value: u64 },
    /// The guest writes memory at an address that leads there.
    Gwrite { vcpu: u16, gva: u64, gpa: u64, value: u64 },
    /// The guest writes memory, and the emulator does it.
    EmulWrite { vcpu: u16, gpa: u64, value: u64 },
    /// The guest invalidates an address.
    Invlpg { vcpu: u16, gva: u64 },
    /// The guest writes CR3.
    SetCr3 { vcpu: u16, cr3: u64 },
    /// The roots of a vCPU are synced.
    SyncRoots { vcpu: u16 },
    /// INIT of a vCPU.
    Init { vcpu: u16 },
    /// Control registers are set.
    SetRegs { vcpu: u16, cr0: u64, cr4: u64, efer: u64 },
    /// A memslot is created, moved or gets other flags.
    SetSlot { as_id: u8, id: u32, base: u64, npages: u64, hva: u64, flags: u32 },
    /// A memslot is deleted.
    Delete { as_id: u8, id: u32 },
    /// The host takes memory.
    Unmap { start: u64, end: u64 },
    /// The host ages memory.
    Age { start: u64, end: u64 },
    /// The host maps another frame.
    ChangePte { hva: u64, pfn: u64, write: bool },
    /// Host pages get another state.
    HostState { hva: u64, npages: u64, state: HostState },
    /// Host pages are mapped otherwise.
    HostHuge { hva: u64, npages: u64, kind: HostHuge },
    /// The dirty log is read.
    GetLog { as_id: u8, id: u32 },
    /// The first word of the dirty log is cleared.
    ClearLog { as_id: u8, id: u32 },
    /// A gfn is tracked, or not any more.
    Track { as_id: u8, gfn: u64, on: bool },
    /// A vCPU enters or leaves SMM.
    Smm { vcpu: u16, on: bool },
    /// A vCPU drops its root.
    Unload { vcpu: u16 },
    /// A vCPU enters the guest.
    Enter { vcpu: u16 },
    /// Everything is zapped.
    ZapAll,
    /// Large leaves are not executable, or may be.
    SetNx { on: bool },
    /// Tables made for that are zapped.
    Recover,
    /// The shrinker looks at so many pages.
    Shrink { pages: u64 },
    /// The limit is stored.
    SetMax { pages: u64 },
    /// The limit is set, and kept.
    SetLimit { pages: u64 },
}

/// What may happen.
#[expect(clippy::struct_excessive_bools, reason = "what a world has and has not")]
#[derive(Clone, Debug)]
pub struct World {
    /// Operations, by number.
    pub actions: Vec<Action>,
    /// How generations step.
    pub policy: Policy,
    /// Memslot updates stop after each publication, and notifiers before the memory is gone.
    pub has_windows: bool,
    /// The lock may be dropped at each of the first so many polls of a run.
    pub polls: u8,
    /// Operations inside a pause.
    pub inside: u8,
    /// Operations that wait at the same time.
    pub nesting: u8,
    /// Accessed bits decide about something.
    pub has_accessed: bool,
    /// A dirty log that starts splits large leaves.
    pub splits_eagerly: bool,
    /// Page-modification logging is on.
    pub is_pml: bool,
}

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Choice {
    /// An operation's number, or 255: the one that waits, the last begun first.
    pub action: u8,
    /// The lock is dropped at this poll of it; 0: at none.
    pub poll: u8,
}

/// The operation that waits goes on.
pub const GO_ON: u8 = u8::MAX;
