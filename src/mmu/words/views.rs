//! What the facade hands out: plain values copied from the state, and the small enums of its arguments and results.

use serde::{Deserialize, Serialize};

use crate::mmu::words::spte::masks::Masks;
use crate::mmu::words::work::Work;

/// How a guest touches memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "plain")]
pub enum AccessKind {
    Read,
    Write,
    Exec,
}

/// How a guest access ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The hardware walk found a usable translation.
    Hit,
    /// The emulator was called.
    Emulate,
    /// The handler returned an error.
    Error,
    /// Eight faults without progress.
    Stuck,
    /// The guest got a page fault of its own.
    GuestFault,
}

impl Outcome {
    /// The vectors' word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Emulate => "emulate",
            Self::Error => "error",
            Self::Stuck => "stuck",
            Self::GuestFault => "guest_fault",
        }
    }
}

/// A guest access and what it cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessResult {
    /// How it ended.
    pub outcome: Outcome,
    /// Faults taken.
    pub faults: u8,
    /// What the last handler returned: 1 resume, 0 exit to user space, negative errno.
    pub ret: i32,
}

/// What reading the dirty log gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirtyLog {
    /// 0, or a negative errno.
    pub ret: i32,
    /// Words of 64 pages that the bitmap has.
    pub nr_words: u64,
    /// The words that are not zero: the first word of equal ones, how many there are, and what each is.
    pub spans: Vec<(u64, u64, u64)>,
}

/// A memslot as user space described it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotSpec {
    /// Slot id, 0 to 511.
    pub id: u32,
    /// First gfn.
    pub base: u64,
    /// Number of 4 KiB pages.
    pub npages: u64,
    /// Host virtual address of the first.
    pub hva: u64,
    /// Bit 0 log dirty pages, bit 1 read-only, bit 16 invalid.
    pub flags: u32,
}

/// One change of a memslot array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotChange {
    /// Create the slot, or change its flags or place; its arrays stay.
    Put(SlotSpec),
    /// Take the slot away, with its arrays.
    Remove(u32),
}

/// One of two updates of a slot's flags that take turns: the slot as it is published, and what follows from that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlagUpdate {
    /// The slot.
    pub spec: SlotSpec,
    /// Every vCPU is to switch its processor's own dirty log, before the walks.
    pub switches_cpu_log: bool,
    /// Walks of its reverse maps, in order.
    pub walks: Vec<SlotWalk>,
    /// Its gfns are flushed behind them.
    pub is_flushed: bool,
}

/// What host memory says about a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum HostState {
    /// Present and writable.
    Rw,
    /// Copy-on-write: a read pins it read-only, a write request makes it `Rw`.
    Cow,
    /// Cannot be pinned.
    Fault,
    /// Poisoned.
    Hwpoison,
    /// Not yet touched: becomes `Rw` by a write and `Zero` by a read.
    Absent,
    /// The zero page: as `Cow`.
    Zero,
    /// The mapping forbids writing: a read pins it, a write fails.
    ReadOnly,
    /// Not there yet: any touch makes it `Rw`.
    OnDemand,
    /// Copy-on-write where a write takes another frame: the old mapping is invalidated first.
    CowCopy,
}

/// How host memory is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "plain")]
pub enum HostHuge {
    None,
    Thp,
    Hugetlb2m,
    Hugetlb1g,
}

/// What the host's page lookup said, where the caller of a fault knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HostLookup {
    /// Not known: the model of host memory answers.
    #[default]
    Ask,
    /// It failed, or the range was invalidated meanwhile: nothing is mapped.
    Retry,
    /// It found the page.
    Found {
        /// The level asked for, 1 to 3.
        level: u8,
        /// The host maps it writable.
        writable: bool,
        /// gfns, ascending, that the lookup of neighbours finds; without it the model of host memory answers.
        neighbours: Option<Vec<u64>>,
        /// Whether the kernel wrote the leaf, for where a processor that sets accessed and dirty bits decides it; without
        /// it the model's own bits do.
        is_written: Option<bool>,
        /// The frame of the page, where it is not the one of the model of host memory.
        frame: Option<u64>,
    },
}

/// What a whole-slot walk does to each reverse-map head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the kernel's own names")]
pub enum SlotWalk {
    RemoveWriteAccess,
    LeafClearDirty,
    LargepageRemoveWriteAccess,
    SetDirty,
    ZapCollapsible,
    /// Large leaves are split down to a level, 1 or 2 (the TDP MMU only).
    Split {
        to: u8,
    },
}

/// What is done to the gfns of a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the kernel's own names")]
pub enum PtMasked {
    WriteProtect,
    ClearDirty,
    EnableLogDirty,
}

/// What is done to a dirty log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DirtyLogTask {
    /// `KVM_GET_DIRTY_LOG`; with manual protection it only copies.
    Get {
        /// Manual protection is on.
        manual: bool,
    },
    /// `KVM_CLEAR_DIRTY_LOG`.
    Clear {
        /// First page.
        first: u64,
        /// Pages.
        num: u64,
        /// Words of the bits to clear, from their own start.
        mask: Vec<u64>,
    },
    /// What either does to up to 64 pages, without the flush.
    Masked {
        /// First page.
        offset: u64,
        /// Which of the 64 from there.
        mask: u64,
    },
}

/// Work that may drop the lock on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Zap by a plan; slot plans need the slot, range plans the range (end exclusive).
    Zap {
        /// The plan.
        plan: crate::mmu::words::plan::ZapPlan,
        /// Address space and slot id.
        slot: Option<(u8, u32)>,
        /// First gfn and the one after the last.
        range: Option<(u64, u64)>,
    },
    /// Walk the reverse maps of a whole slot.
    SlotWalk {
        /// Address space.
        as_id: u8,
        /// Slot id.
        id: u32,
        /// What is done.
        what: SlotWalk,
    },
    /// One recovery of NX huge pages, of one in `ratio` of the tables listed.
    NxRecover {
        /// 0: none.
        ratio: u64,
    },
    /// The host takes memory back: drop every mapping of the host addresses.
    UnmapHva {
        /// First address.
        start: u64,
        /// The one after the last.
        end: u64,
        /// The lock may be dropped on the way.
        may_block: bool,
    },
    /// Read, clear or protect a dirty log.
    DirtyLog {
        /// Address space.
        as_id: u8,
        /// Slot id.
        id: u32,
        /// What of it.
        what: DirtyLogTask,
    },
    /// A vCPU whose guest has page tables of its own is entered; what became of it is kept until it is taken.
    Guest {
        /// The vCPU.
        vcpu: u16,
        /// What it does then.
        work: GuestWork,
    },
    /// Drop every mapping of the gfns, in both address spaces.
    ZapGfnRange {
        /// First gfn.
        start: u64,
        /// The one after the last.
        end: u64,
    },
}

/// What a vCPU's guest does, where that begins with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestWork {
    /// Nothing else.
    Enter,
    /// Only the roots are loaded.
    Load,
    /// It touches memory.
    Access {
        /// The guest-virtual address.
        gva: u64,
        /// How.
        kind: AccessKind,
        /// From privilege level 3.
        is_user: bool,
    },
    /// It invalidates an address.
    Invlpg {
        /// The guest-virtual address.
        gva: u64,
    },
    /// It writes CR3 with the value it has.
    SyncRoots,
}

/// Names a run that waits at a lock break or the end of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId(pub u32);

/// Names a batch begun by the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchId(pub u32);

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
#[expect(clippy::large_enum_variant, reason = "one at a time, and never stored")]
pub enum Progress {
    /// It ended.
    Done(RunReport),
    /// The lock is dropped; do what others would do and resume.
    LockBreak(RunId),
    /// It has been long, and holds the lock: look for signals, then resume or abandon, and do nothing else to the VM.
    Slice(RunId),
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunOutcome {
    /// As planned.
    Done,
    /// The page noted as next had left the list, and the plan does not restart.
    StaleNext {
        /// Its id.
        page: u32,
        /// Which visit of the run (from 1) would have been its.
        step: u64,
    },
    /// The plan met roots in use again and again and freed nothing.
    Livelock,
    /// Given up by the caller; what was prepared has been committed.
    Abandoned,
}

/// What a run did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunReport {
    /// What the kernel function returns (slot walks: 1 if a flush was needed), else 0.
    pub ret: i64,
    /// How it ended.
    pub outcome: RunOutcome,
    /// Counters of this run alone, without what ran inside its lock breaks.
    pub work: Work,
    /// Most work units between taking and dropping the lock.
    pub longest_hold: u64,
    /// Work done while the lock was held for reading, in units: faults went on beside it.
    pub shared_units: u64,
    /// The longest stretch of that without a break.
    pub longest_shared_hold: u64,
    /// Real drops of the lock.
    pub lock_breaks: u64,
    /// Sum of what prepare returned.
    pub nr_zapped: u64,
}

/// What one prepare did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prepared {
    /// Unsync children zapped with the page.
    pub nr_children: u32,
    /// Those plus the page itself if it left the active list.
    pub nr_zapped: u32,
    /// Whether a walk's cached next may have gone.
    pub is_list_unstable: bool,
}

/// A copy of one shadow page.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the dump's own names")]
pub struct PageView {
    pub id: u32,
    pub gfn: u64,
    pub role: u32,
    pub level: u8,
    pub root_count: u32,
    pub unsync: bool,
    pub unsync_children: u32,
    pub valid_gen: u64,
    pub mmio_cached: bool,
    pub invalid: bool,
    /// Page id and index of every parent entry, in list order.
    pub parents: Vec<(u32, u16)>,
    /// Index, raw word (without address for links), child id.
    pub sptes: Vec<(u16, u64, Option<u32>)>,
}

/// A copy of one vCPU.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the dump's own names")]
pub struct VcpuView {
    pub root: Option<u32>,
    pub requests: u64,
    pub smm: bool,
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub role: u32,
    pub mmio_gva: u64,
    pub mmio_gfn: u64,
    pub mmio_access: u32,
    pub mmio_gen: u64,
    /// Translations the modelled TLB holds: gfn, raw leaf.
    pub tlb: Vec<(u64, u64)>,
}

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its name.
    pub invariant: &'static str,
    /// Where and how.
    pub detail: String,
}

/// Bytes held, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "plain")]
pub struct MemoryReport {
    pub shadow_pages: u64,
    /// Tables of the TDP MMU, roots included.
    pub tdp_tables: u64,
    pub headers: u64,
    pub tables: u64,
    pub hash: u64,
    pub pte_list_descs: u64,
    pub rmap: u64,
    pub slots: u64,
    pub events: u64,
    pub other: u64,
}

impl MemoryReport {
    /// All of it.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.headers + self.tables + self.hash + self.pte_list_descs + self.rmap + self.slots + self.events + self.other
    }

    /// Header, links and table of one shadow page, on average.
    #[must_use]
    pub const fn bytes_per_page(&self) -> u64 {
        match (self.headers + self.tables).checked_div(self.shadow_pages + self.tdp_tables) {
            Some(bytes) => bytes,
            None => 0,
        }
    }
}

/// Named masks, as the header of the vectors of v6.1 and v6.12 shows them.
#[must_use]
pub const fn stepped_masks(masks: &Masks, has_memtype: bool) -> [Option<(&'static str, u64)>; 19] {
    let is_made = masks.mmio_mask != 0;
    let is_ept = masks.acc_track != 0;
    let memtype = if is_ept { 0x78 } else { 0 };
    [
        Some(("mmio_value", if is_made { masks.mmio_value } else { 0 })),
        Some(("mmio", masks.mmio_mask)),
        Some(("mmio_access", masks.mmio_access as u64)),
        Some(("user", masks.user)),
        Some(("accessed", masks.accessed)),
        Some(("dirty", masks.dirty)),
        Some(("nx", masks.nx)),
        Some(("x", masks.x)),
        Some(("present", masks.present | masks.suppress_ve)),
        Some(("acc_track", masks.acc_track)),
        Some(("host_writable", masks.host_writeable)),
        Some(("mmu_writable", masks.mmu_writeable)),
        Some(("nonpresent_or_rsvd", masks.nonpresent_or_rsvd)),
        Some(("me", masks.me)),
        Some(("me_value", masks.me)),
        if has_memtype { Some(("memtype", memtype)) } else { None },
        Some(("nonpresent", masks.nonpresent)),
        Some(("frozen", masks.frozen)),
        Some(("lower_gfn", masks.lower_gfn)),
    ]
}

/// Named masks, as the vectors' header shows them.
#[must_use]
pub const fn named_masks(masks: &Masks) -> [(&'static str, u64); 12] {
    [
        ("user", masks.user),
        ("accessed", masks.accessed),
        ("dirty", masks.dirty),
        ("nx", masks.nx),
        ("x", masks.x),
        ("present", masks.present),
        ("acc_track", masks.acc_track),
        ("mmio_mask", masks.mmio_mask),
        ("mmio_value", masks.mmio_value & masks.mmio_mask),
        ("nonpresent_or_rsvd", masks.nonpresent_or_rsvd),
        ("lower_gfn", masks.lower_gfn),
        ("me", masks.me),
    ]
}
