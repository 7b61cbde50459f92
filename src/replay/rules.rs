//! What a lane is told: which event is what, how this kernel words its outputs, which bits are compared.
//!
//! Owns no rule itself. A recorder's Python side, the wording of a kernel and the masks of a host fill these values.

use crate::ftrace::Kind;

/// How many kinds of events there are.
pub const KINDS: usize = Kind::ALL.len();

/// A set of kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kinds([bool; KINDS]);

impl Kinds {
    /// None of them.
    pub const NONE: Self = Self([false; KINDS]);

    /// Adds one.
    pub const fn insert(&mut self, kind: Kind) {
        self.0[kind as usize] = true;
    }

    /// Whether it is one of them.
    #[must_use]
    #[inline]
    pub const fn has(&self, kind: Kind) -> bool {
        self.0[kind as usize]
    }
}

/// What an event is to a replay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Deed {
    /// Nothing.
    #[default]
    Ignored,
    /// An output: compared if the recording had it switched on.
    Output,
    /// A fault of a vCPU. Where the host's answer comes as a request, this is its first half.
    Fault,
    /// The request to map: the second half.
    Request,
    /// A vCPU drops its roots.
    FreeRoots,
    /// A vCPU loads its roots.
    Load,
    /// Reclaim.
    ZapOldest,
    /// A memslot array is published, where nothing else shows updates.
    Publication,
    /// A change of a memslot: news only where no marker announced it.
    SlotChange,
    /// The MMU is called with a fault: news only where no exit has told of it.
    MmuFault,
    /// An exit: it may be a misconfiguration, whose address a later line tells.
    Exit,
    /// A line that tells that address.
    Address,
    /// A marker.
    Marker,
    /// The caller deals with it.
    Handed,
    /// A recording that has it is left to the slow way.
    Foreign,
}

impl Deed {
    /// Its name in what Python hands over.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Some(match name {
            "ignored" => Self::Ignored,
            "output" => Self::Output,
            "fault" => Self::Fault,
            "request" => Self::Request,
            "free_roots" => Self::FreeRoots,
            "load" => Self::Load,
            "zap_oldest" => Self::ZapOldest,
            "publication" => Self::Publication,
            "slot_change" => Self::SlotChange,
            "mmu_fault" => Self::MmuFault,
            "exit" => Self::Exit,
            "address" => Self::Address,
            "marker" => Self::Marker,
            "handed" => Self::Handed,
            "foreign" => Self::Foreign,
            _ => return None,
        })
    }
}

/// The bits of an SPTE that a comparison must tell apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpteWords {
    /// Set by the processor; 0: there is none.
    pub accessed: u64,
    /// Set by the processor; 0: there is none.
    pub dirty: u64,
    /// What the host said of a frame.
    pub host_writable: u64,
    /// Mask and value of an MMIO entry.
    pub mmio: (u64, u64),
    /// Mask and value of an executable one.
    pub executable: (u64, u64),
    /// For the user.
    pub user: u64,
}

/// How a kernel words its outputs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is one fact of a wording")]
pub struct PageWording {
    /// The valid generation is printed.
    pub has_gen: bool,
    /// The size of a guest entry is printed in place of ` pae`.
    pub gpte_bytes: bool,
    /// Role bit 4 is set for entries of 4 bytes.
    pub bit4_is_four: bool,
    /// Access bits of a role from its bit 8 on, and the letters they print.
    pub access: Vec<(u32, u8)>,
    /// Role bit of an invalid page; the one above it says nxe.
    pub invalid: u32,
    /// Bits of an error code that have a name, in the order of the text.
    pub flags: Vec<(u64, String)>,
    /// Bits of an error code that are printed.
    pub error_mask: u64,
    /// What the probe on `try_unsync` calls `can_unsync` says the opposite.
    pub try_unsync_inverted: bool,
    /// Addresses of entries are printed, so that an entry's place in its table is known.
    pub says_places: bool,
    /// Whether a lock-free fault was spurious or fixed follows from the W bits.
    pub fast_by_writable: bool,
}

/// The name of an operation, and its fields, each with what it is where it lacks (None: it must be there).
pub type Numeric = (Vec<u8>, Vec<(Vec<u8>, Option<u64>)>);

/// Everything a lane is told before it begins.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is one fact of a recorder")]
pub struct Rules {
    /// What each kind is.
    pub deeds: [Deed; KINDS],
    /// Outputs that the recording had switched on.
    pub compared: Kinds,
    /// Outputs that the model tells of.
    pub told: Kinds,
    /// The recorder's markers are `OP n ...`, not JSON objects.
    pub numbered: bool,
    /// Operations that the caller wants to hear of.
    pub heard: Vec<Vec<u8>>,
    /// The one of them whose fields are all the caller wants; and for each field what it is where it lacks (None: it must
    /// be there).
    pub numeric: Numeric,
    /// Operations at which the current vCPU enters the guest. For a number of more than before in their field of this name
    /// the caller is asked.
    pub enters: Vec<Vec<u8>>,
    /// That field; empty: none.
    pub news_field: Vec<u8>,
    /// An entry of the guest by an operation loads roots that no probe tells of.
    pub enter_loads: bool,
    /// The vCPU enters before and after each fault, and the model answers for the host.
    pub is_whole_fault: bool,
    /// Where a fault prints an exit qualification: bits of it, and the bits of the error code if one of them is set, and if
    /// none is. Empty: it prints the error code.
    pub qualification: Vec<(u64, u64, u64)>,
    /// The error code of a misconfiguration.
    pub misconfiguration: u64,
    /// Task and its vCPU, where no operation chooses one.
    pub tasks: Vec<(Vec<u8>, u16)>,
    /// What host memory answered is taken from the leaves behind a request.
    pub answers: bool,
    /// Masks for those answers.
    pub answer_words: SpteWords,
    /// Largest level of a request.
    pub level_max: u8,
    /// How far one publication of memslots moves their generation on.
    pub publication_step: u64,
    /// A fault that makes room asks for no more pages than this.
    pub refill_pages: u64,
    /// gfns looked at around a mapping.
    pub group: u64,
    /// The recording is of a TDP MMU.
    pub is_tdp: bool,
    /// Large leaves are never executable there.
    pub has_nx_huge_pages: bool,
    /// The processor logs dirty pages: which leaves it wrote, only their changes tell.
    pub has_pml: bool,
    /// Some yields of this kernel no probe shows.
    pub yields_unseen: bool,
    /// Notes behind operations that the caller wants to hear of.
    pub notes: Vec<Vec<u8>>,
    /// Masks of the comparison.
    pub words: SpteWords,
    /// Wording of the kernel.
    pub wording: PageWording,
}
