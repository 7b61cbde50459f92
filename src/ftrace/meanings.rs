//! What the names of events mean to who follows the work on the MMU: told by whoever puts the work together.
//!
//! Owns: the classes of names, each a few bits, and the functions that begin and return, a bit each.

use rustc_hash::FxHashMap;

use super::vcpus::Sign;

/// No more names of functions than bits.
const FUNCTIONS_MAX: usize = 63;

/// What the names of events mean to work on the MMU.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Events that begin work.
    pub begins: Vec<String>,
    /// Events that go on with it.
    pub continues: Vec<String>,
    /// A probe on the return of a function, and the event that began it.
    pub returns: Vec<(String, String)>,
    /// How names begin of events that show that a task went on to something else, and of those that do not.
    pub elsewhere: Vec<String>,
    /// Exceptions of `elsewhere`.
    pub not_elsewhere: Vec<String>,
    /// How names begin of events of the part of a fault that handles the MMU.
    pub of_fault: Vec<String>,
    /// Events that are passed on in any case.
    pub counted: Vec<String>,
    /// A recorder's marker of such a beginning says that a memslot update begins and that its return comes.
    pub returning_mark: String,
    /// What stands behind the number in the marker of that return.
    pub return_of_mark: String,
    /// A recorder's marker of this word says that the VM ends.
    pub ends: Vec<String>,
    /// How the names of tasks begin whose changes of entries are work always.
    pub recovery_task: String,
}

pub(super) const BEGINS: u16 = 1;
pub(super) const CONTINUES: u16 = 1 << 1;
pub(super) const RETURNS: u16 = 1 << 2;
pub(super) const FUNCTION: u16 = 1 << 3;
pub(super) const ELSEWHERE: u16 = 1 << 4;
pub(super) const MMU: u16 = 1 << 5;
pub(super) const COUNTED: u16 = 1 << 6;
pub(super) const MARKER: u16 = 1 << 7;
pub(super) const ZAP: u16 = 1 << 8;
pub(super) const CHANGED: u16 = 1 << 9;
pub(super) const GET_PAGE: u16 = 1 << 10;
pub(super) const SLOT: u16 = 1 << 11;
pub(super) const ENTRY: u16 = 1 << 12;
pub(super) const EXIT: u16 = 1 << 13;
pub(super) const FAULT: u16 = 1 << 14;
pub(super) const USER_SPACE: u16 = 1 << 15;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Class {
    bits: u16,
    /// The function that it begins or ends, as a bit.
    pub(super) function: u64,
}

impl Class {
    pub(super) const fn is(self, bits: u16) -> bool {
        self.bits & bits != 0
    }

    pub(super) fn sign(self) -> Sign {
        match self.bits {
            bits if bits & ENTRY != 0 => Sign::Entry,
            bits if bits & EXIT != 0 => Sign::Exit,
            bits if bits & FAULT != 0 => Sign::Fault,
            bits if bits & USER_SPACE != 0 => Sign::UserSpace,
            bits if bits & MMU != 0 => Sign::Mmu,
            _ => Sign::Other,
        }
    }
}

/// The names by class; a memslot update that a marker begins is the first function.
#[derive(Clone, Debug)]
pub(super) struct Classes {
    named: FxHashMap<Vec<u8>, Class>,
    pub(super) names: Names,
}

pub(super) const MARKED_UPDATE: u64 = 1;

impl Classes {
    pub(super) fn new(names: Names) -> Self {
        let mut named: FxHashMap<Vec<u8>, Class> = FxHashMap::default();
        let mut add = |name: &str, bits: u16, function: u64| {
            let class = named.entry(name.as_bytes().to_vec()).or_default();
            class.bits |= bits;
            class.function |= function;
        };
        for name in &names.begins {
            add(name, BEGINS | MMU, 0);
        }
        for name in &names.continues {
            add(name, CONTINUES | MMU, 0);
        }
        for (at, (name, begun_by)) in names.returns.iter().take(FUNCTIONS_MAX).enumerate() {
            add(name, RETURNS | MMU, MARKED_UPDATE << (at + 1));
            add(begun_by, FUNCTION, MARKED_UPDATE << (at + 1));
        }
        for name in &names.counted {
            add(name, COUNTED, 0);
        }
        for (name, bits) in [
            ("tracing_mark_write", MARKER),
            ("kvm_mmu_prepare_zap_page", ZAP),
            ("kvm_tdp_mmu_spte_changed", CHANGED),
            ("kvm_mmu_get_page", GET_PAGE),
            ("set_memory_region", SLOT),
            ("set_memory_region_ret", SLOT),
            ("kvm_entry", ENTRY),
            ("kvm_exit", EXIT),
            ("kvm_page_fault", FAULT),
            ("kvm_userspace_exit", USER_SPACE),
        ] {
            add(name, bits, 0);
        }
        let mut made = Self { named: FxHashMap::default(), names };
        for (name, class) in named {
            let bits = class.bits | made.by_beginning(&name);
            made.named.insert(name, Class { bits, ..class });
        }
        made
    }

    pub(super) fn of(&self, name: &[u8]) -> Class {
        self.named.get(name).copied().unwrap_or_else(|| Class { bits: self.by_beginning(name), function: 0 })
    }

    fn by_beginning(&self, name: &[u8]) -> u16 {
        let begins = |with: &[String]| with.iter().any(|text| name.starts_with(text.as_bytes()));
        let mut bits = if begins(&self.names.of_fault) { MMU } else { 0 };
        if begins(&self.names.elsewhere) && !begins(&self.names.not_elsewhere) {
            bits |= ELSEWHERE;
        }
        bits
    }
}
