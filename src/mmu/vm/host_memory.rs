//! Host memory as the MMU sees it: ranges of host pages with a state and a kind of mapping; the latest word on a page
//! wins. A host frame is the page's address, unless the host moved the page.

use serde::{Deserialize, Serialize};

use std::collections::BTreeMap;

use crate::mmu::words::addr::Pfn;
use crate::mmu::words::level::{MAX_LEAF, PAGE_TABLE, pages_per};
use crate::mmu::words::views::{HostHuge, HostState};

/// Disjoint ranges with a value each; pages in none have the default.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct RangeMap<T> {
    ranges: BTreeMap<u64, (u64, T)>,
}

impl<T> Default for RangeMap<T> {
    fn default() -> Self {
        Self { ranges: BTreeMap::new() }
    }
}

impl<T: Copy + PartialEq> RangeMap<T> {
    #[inline]
    fn get(&self, at: u64) -> Option<T> {
        if self.ranges.is_empty() {
            return None;
        }
        let (_, &(end, value)) = self.ranges.range(..=at).next_back()?;
        (at < end).then_some(value)
    }

    fn set(&mut self, start: u64, len: u64, value: Option<T>) {
        let end = start.saturating_add(len);
        if start >= end {
            return;
        }
        let over: Vec<(u64, u64, T)> = self
            .ranges
            .range(..end)
            .rev()
            .take_while(|&(_, &(other_end, _))| other_end > start)
            .map(|(&other, &(other_end, old))| (other, other_end, old))
            .collect();
        for (other, other_end, old) in over {
            self.ranges.remove(&other);
            if other < start {
                self.ranges.insert(other, (start, old));
            }
            if other_end > end {
                self.ranges.insert(end, (other_end, old));
            }
        }
        if let Some(value) = value {
            self.ranges.insert(start, (end, value));
        }
    }
}

/// How a range of host pages was said to be mapped; a huge page lies wholly inside it or is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct HugeRange {
    kind: HostHuge,
    first: u64,
    end: u64,
}

/// What host memory says.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct HostMemory {
    state: RangeMap<HostState>,
    huge: RangeMap<HugeRange>,
    /// Pages whose frame is not their address.
    moved: BTreeMap<u64, u64>,
}

/// A page frame lookup's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pinned {
    /// Pinned; whether the host may write to it.
    Frame {
        /// Bit 10 of the entry.
        host_writable: bool,
    },
    /// Nothing can be pinned.
    Fault,
    /// Poisoned memory.
    Poison,
}

impl HostMemory {
    /// Sets the state of host pages.
    pub fn set_state(&mut self, start: Pfn, npages: u64, state: HostState) {
        self.state.set(start.0, npages, (state != HostState::Rw).then_some(state));
    }

    /// All of it, number by number.
    pub fn add_to(&self, mut add: impl FnMut(u64)) {
        for (&start, &(end, state)) in &self.state.ranges {
            add(start);
            add(end << 8 | state as u64);
        }
        for (&start, &(end, range)) in &self.huge.ranges {
            add(start);
            add(end << 8 | range.kind as u64);
        }
        for (&page, &frame) in &self.moved {
            add(page);
            add(frame);
        }
    }

    /// Sets how host pages are mapped.
    pub fn set_huge(&mut self, start: Pfn, npages: u64, kind: HostHuge) {
        let range = HugeRange { kind, first: start.0, end: start.0.saturating_add(npages) };
        self.huge.set(start.0, npages, (kind != HostHuge::None).then_some(range));
    }

    /// Whether anything is mapped wider than 4 KiB.
    #[inline]
    #[must_use]
    pub fn has_huge(&self) -> bool {
        !self.huge.ranges.is_empty()
    }

    /// Whether every page is readable and writable, mapped by 4 KiB, and its own frame.
    #[inline]
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.state.ranges.is_empty() && self.huge.ranges.is_empty() && self.moved.is_empty()
    }

    /// State of a page.
    #[inline]
    #[must_use]
    pub fn state(&self, pfn: Pfn) -> HostState {
        self.state.get(pfn.0).unwrap_or(HostState::Rw)
    }

    /// How a page is mapped.
    #[inline]
    #[must_use]
    pub fn huge(&self, pfn: Pfn) -> HostHuge {
        self.huge.get(pfn.0).map_or(HostHuge::None, |range| range.kind)
    }

    /// The largest level at which the host maps a page, where a huge page counts only if it lies wholly in its range.
    #[must_use]
    pub fn level(&self, page: Pfn) -> u8 {
        let Some(range) = self.huge.get(page.0) else { return PAGE_TABLE };
        let most = if range.kind == HostHuge::Hugetlb1g { MAX_LEAF } else { 2 };
        let is_whole = |level: u8| {
            let first = page.align_down(level).0;
            range.first <= first && first.saturating_add(pages_per(level)) <= range.end
        };
        (2..=most).rev().find(|&level| is_whole(level)).unwrap_or(PAGE_TABLE)
    }

    /// The frame of a page.
    #[inline]
    #[must_use]
    pub fn frame(&self, page: Pfn) -> Pfn {
        if self.moved.is_empty() { page } else { self.moved.get(&page.0).map_or(page, |&frame| Pfn(frame)) }
    }

    /// The host gives a page another frame.
    pub fn move_page(&mut self, page: Pfn, frame: Pfn) {
        self.moved.insert(page.0, frame.0);
    }

    /// Whether the frame is part of a compound page: a transparent huge page or one of hugetlbfs.
    #[inline]
    #[must_use]
    pub fn is_compound(&self, pfn: Pfn) -> bool {
        self.huge(pfn) != HostHuge::None
    }

    /// Pins without sleeping, for writing.
    #[inline]
    #[must_use]
    pub fn pin_atomic(&self, pfn: Pfn) -> bool {
        self.state(pfn) == HostState::Rw
    }

    /// Pins a page; breaks copy-on-write for a write.
    #[inline]
    pub fn pin(&mut self, pfn: Pfn, is_write: bool, is_readonly: bool) -> Pinned {
        let state = self.state(pfn);
        if state == HostState::Rw {
            return Pinned::Frame { host_writable: !is_readonly };
        }
        self.pin_slow(pfn, state, is_write, is_readonly)
    }

    fn pin_slow(&mut self, pfn: Pfn, state: HostState, is_write: bool, is_readonly: bool) -> Pinned {
        match state {
            HostState::Fault => Pinned::Fault,
            HostState::Hwpoison => Pinned::Poison,
            HostState::ReadOnly if is_write => Pinned::Fault,
            HostState::Absent | HostState::Zero | HostState::Cow | HostState::CowCopy if is_write => {
                self.set_state(pfn, 1, HostState::Rw);
                Pinned::Frame { host_writable: !is_readonly }
            }
            HostState::OnDemand => {
                self.set_state(pfn, 1, HostState::Rw);
                Pinned::Frame { host_writable: !is_readonly }
            }
            HostState::Absent => {
                self.set_state(pfn, 1, HostState::Zero);
                Pinned::Frame { host_writable: false }
            }
            HostState::Rw => Pinned::Frame { host_writable: !is_readonly },
            HostState::Zero | HostState::Cow | HostState::CowCopy | HostState::ReadOnly => {
                Pinned::Frame { host_writable: false }
            }
        }
    }
}
