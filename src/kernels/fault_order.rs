//! The order in which a page fault of a direct MMU goes through its steps: data that follows from the facts of a row.
//!
//! Owns the list. Two kernels that differ in the order differ in one fact each way: `is_level_requested`, `retry_before_pin`,
//! `invalid_slot_retries`, `stale_test`. What a step does is `mmu::fault`'s.

use super::facts::{Kernel, StaleTest};

/// A step of a page fault. Each may end it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultStep {
    /// A write to a present entry of a gfn that is tracked is emulated.
    Track,
    /// The level that the slot and the host's tables allow, before anything else is looked at.
    Level,
    /// The lock-free path, down to that level.
    FastAtLevel,
    /// The lock-free path, down to the leaf.
    Fast,
    /// A slot that is being removed: the fault comes again.
    SlotGoing,
    /// The host takes the page away, or took one since the fault began: the fault comes again.
    Invalidated,
    /// The host's page is pinned.
    Host,
    /// What no slot has: the vCPU's MMIO cache is filled, and where no MMIO SPTE can be made the emulator is called.
    NoSlot,
    /// The lock is taken. A host answer that a recording gave may say that the fault comes again.
    Lock,
    /// A vCPU without a root.
    HasRoot,
    /// A vCPU whose root is obsolete, or gone.
    Stale,
    /// Room for the tables is made.
    Room,
    /// Tables and leaf at the level found; the host's huge page may still make it larger.
    MapAtLevel,
    /// The level is asked for, then tables and leaf are made.
    Map,
}

impl FaultStep {
    /// The word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Track => "track",
            Self::Level => "level",
            Self::FastAtLevel => "fast_at_level",
            Self::Fast => "fast",
            Self::SlotGoing => "slot_going",
            Self::Invalidated => "invalidated",
            Self::Host => "host",
            Self::NoSlot => "no_slot",
            Self::Lock => "lock",
            Self::HasRoot => "has_root",
            Self::Stale => "stale",
            Self::Room => "room",
            Self::MapAtLevel => "map_at_level",
            Self::Map => "map",
        }
    }
}

/// The steps that come before the host is asked, up to v5.4 and from v5.10 on.
const LEVEL_FIRST: &[FaultStep] = &[FaultStep::Track, FaultStep::Level, FaultStep::FastAtLevel];
const LEVEL_LAST: &[FaultStep] = &[FaultStep::Track, FaultStep::Fast];
/// Most steps that an order has.
const MOST: usize = 12;

/// The steps of a kernel, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultOrder {
    steps: [FaultStep; MOST],
    len: usize,
    /// Where the guest's own tables have said which gfn it is: a fault of such a guest goes on from here.
    pub after_guest_walk: usize,
}

impl FaultOrder {
    /// The order of a kernel.
    #[must_use]
    pub fn of(kernel: &Kernel) -> Self {
        use FaultStep::{HasRoot, Host, Invalidated, Lock, Map, MapAtLevel, NoSlot, Room, SlotGoing, Stale};
        let mut order = Self { steps: [Map; MOST], len: 0, after_guest_walk: 0 };
        order.extend(if kernel.is_level_requested { LEVEL_LAST } else { LEVEL_FIRST });
        order.after_guest_walk = order.len;
        if !kernel.is_level_requested {
            order.extend(&[Host, NoSlot, Room, MapAtLevel]);
            return order;
        }
        if kernel.invalid_slot_retries {
            order.extend(&[SlotGoing]);
        }
        order.extend(if kernel.retry_before_pin { &[Invalidated, Host, NoSlot, Invalidated] } else { &[Host, NoSlot] });
        order.extend(match kernel.stale_test {
            StaleTest::None => &[Lock, Invalidated, HasRoot, Room],
            StaleTest::BeforeReclaim => &[Lock, Invalidated, Stale, Room],
            StaleTest::AfterReclaim => &[Lock, Room, Invalidated, Stale],
        });
        order.extend(&[Map]);
        order
    }

    fn extend(&mut self, steps: &[FaultStep]) {
        for &step in steps {
            self.steps[self.len] = step;
            self.len += 1;
        }
    }

    /// The step at a place; nothing at the end.
    #[must_use]
    #[inline]
    pub fn get(&self, at: usize) -> Option<FaultStep> {
        self.steps[..self.len].get(at).copied()
    }

    /// Every step.
    #[must_use]
    pub fn steps(&self) -> &[FaultStep] {
        &self.steps[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(name: &str) -> String {
        let order = FaultOrder::of(&Kernel::by_name(name).expect("a kernel"));
        order.steps().iter().map(|step| step.word()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_order_is_the_rows() {
        let before = words("v6.12.0");
        assert_eq!(words("v5.2"), "track level fast_at_level host no_slot room map_at_level");
        assert_eq!(words("v5.10"), "track fast host no_slot lock invalidated has_root room map");
        assert_eq!(
            before,
            "track fast slot_going invalidated host no_slot invalidated lock invalidated stale room map"
        );
        assert_eq!(words("v6.12"), before.replace("invalidated stale room", "room invalidated stale"));
        assert_eq!(words("v6.12.0:stale_test=after_reclaim"), words("v6.12"));
    }

    #[test]
    fn every_order_fits_and_ends_in_a_mapping() {
        for kernel in Kernel::ALL {
            let order = FaultOrder::of(&kernel);
            let ends = |step: &FaultStep| matches!(step, FaultStep::Map | FaultStep::MapAtLevel);
            assert_eq!(order.steps().iter().position(ends), Some(order.steps().len() - 1), "{}", kernel.name);
            assert_eq!(order.get(order.steps().len()), None);
        }
    }
}
