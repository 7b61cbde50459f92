//! Outputs of a VM with a TDP MMU, as a recording prints them and as the model predicts them, and what only such a recording
//! makes a lane do: runs of equal changes, frames of leaves, flushes that a yield made, and the level at which the host maps.
//!
//! Owns the masks: of a link its table's address is taken out of both sides, of an entry's address its place stays, leaves
//! are compared with their frames. One tolerance: of a leaf the recording may have accessed and dirty bits, which the
//! processor sets behind KVM's back.

use std::collections::BTreeMap;

use super::Unsure;
use super::faults::Answer;
use super::host_pages::HostPages;
use super::lane::{Lane, read};
use super::output::{Output, access_of, error_of, letters, place_of};
use super::rules::{Deed, Rules, SpteWords};
use super::text::{Next, Text};
use crate::ftrace::event::Event as Recorded;
use crate::ftrace::wording::Kind;
use crate::mmu::{Event as Predicted, HostHuge, Mmu, PageFacts, SlotSpec};

const FRAME: u64 = 0x000f_ffff_ffff_f000;
const PLACE: u64 = 0xfff;
/// Of an SPTE of these kernels: present for KVM, and a large leaf above level 1.
const PRESENT: u64 = 1 << 11;
const LARGE: u64 = 1 << 7;
const BITS_A_LEVEL: u64 = 9;
const FIXED: u8 = 1;
const SPURIOUS: u8 = 2;
const PAGES_2M: u64 = 512;
const LOG_DIRTY: u32 = 1 << 0;
const FETCH: u64 = 1 << 4;
/// The thread that recovers huge pages, by the name of its task.
const RECOVERY_TASK: &[u8] = b"kvm-nx-";

/// What may stand between a question and its answer.
const PASSES: [&[u8]; 2] = [b"cond_resched", b"slot_wrprot"];
/// An answer is looked for in so many lines behind its question.
const ANSWER_WITHIN: usize = 1 << 20;

/// A value without the address of the table that it links.
const fn without_table(spte: u64, level: u64) -> u64 {
    if level > 1 && spte & (PRESENT | LARGE) == PRESENT { spte & !FRAME } else { spte }
}

/// Whether two entries are the same, but for bits of a leaf that the processor sets: the recording may have more.
pub(super) const fn is_same_leaf(recorded: u64, predicted: u64, level: u64, words: &SpteWords) -> bool {
    if recorded == predicted {
        return true;
    }
    let set_by_processor = words.accessed | words.dirty;
    if predicted & !recorded != 0 || (recorded ^ predicted) & !set_by_processor != 0 {
        return false;
    }
    let is_leaf = predicted & PRESENT != 0 && (level == 1 || predicted & LARGE != 0);
    is_leaf && predicted & words.mmio.0 != words.mmio.1
}

/// The neighbour of an output in a run of equal ones.
pub(super) const fn step_on(output: &mut Output) {
    if let Output::Change { gfn, level, .. } = output {
        *gfn = gfn.wrapping_add(1 << (BITS_A_LEVEL * (level.saturating_sub(1))));
    }
}

/// A recorded output; None: its text is none of a kernel's, or the lane of other recordings reads it.
pub(super) fn recorded(event: &Recorded<'_>, rules: &Rules) -> Option<Output> {
    Some(match (event.kind, event.numbers()) {
        (Kind::TdpMmuSpteChanged, &[as_id, gfn, level, old, new]) => {
            Output::Change { as_id, gfn, level, old: without_table(old, level), new: without_table(new, level) }
        }
        (Kind::SplitHugePage, &[gfn, spte, level, errno]) => Output::Split { gfn, spte, level, errno },
        (Kind::SetSpte, &[gfn, spte, level, at]) => {
            Output::Leaf { gfn, spte, access: letters(event.texts().first()?)?, level, place: at & PLACE }
        }
        (Kind::FastPageFault, &[vcpu, gva, old, new, spurious, fixed]) => {
            let &[error_code, sptep] = event.texts() else { return None };
            let (error_code, place) = (error_of(error_code, &rules.wording)?, place_of(sptep)?);
            Output::FastChange { vcpu, gva, error_code, place, old, new, spurious, fixed }
        }
        (Kind::FlushRemoteTlbs, []) => Output::Plain([0; 4]),
        (Kind::FlushRemoteTlbsRange, &[gfn, pages]) => Output::Plain([gfn, pages, 0, 0]),
        _ => return None,
    })
}

/// What a kernel would print for an event of the model, where it is not as on shadow pages, and how many neighbours it is
/// about.
pub(super) fn predicted(event: &Predicted, rules: &Rules) -> Option<(Kind, Output, u32)> {
    let place = |index: u16| u64::from(index) << 3;
    let (kind, output) = match *event {
        Predicted::Spte { as_id, gfn, level, old, new, n, .. } => {
            let change = Output::Change { as_id: as_id.into(), gfn, level: level.into(), old, new };
            return Some((Kind::TdpMmuSpteChanged, change, n));
        }
        Predicted::Split { gfn, spte, level, errno } => {
            let errno = i64::from(errno).cast_unsigned();
            (Kind::SplitHugePage, Output::Split { gfn, spte, level: level.into(), errno })
        }
        Predicted::SetSpte { index, gfn, spte, level, .. } => {
            let access = access_of(spte, &rules.words);
            (Kind::SetSpte, Output::Leaf { gfn, spte, access, level: level.into(), place: place(index) })
        }
        Predicted::FastPf { vcpu, addr, error_code, index, old, new, handled, .. } => {
            let change = Output::FastChange {
                vcpu: vcpu.into(),
                gva: addr,
                error_code: error_code & rules.wording.error_mask,
                place: place(index),
                old,
                new,
                spurious: u64::from(handled & SPURIOUS != 0),
                fixed: u64::from(handled & FIXED != 0),
            };
            (Kind::FastPageFault, change)
        }
        Predicted::Flush => (Kind::FlushRemoteTlbs, Output::Plain([0; 4])),
        Predicted::FlushRemoteTlbsRange { gfn, pages } => {
            (Kind::FlushRemoteTlbsRange, Output::Plain([gfn, pages, 0, 0]))
        }
        _ => return None,
    };
    Some((kind, output, 1))
}

/// A table as its text tells it: whoever uses it, of no generation.
pub(super) const fn told_page(page: PageFacts) -> PageFacts {
    PageFacts { root_count: 0, valid_gen: 0, ..page }
}

/// Leaves by address space.
pub(super) type Leaves = BTreeMap<u8, Vec<u64>>;

pub(super) const fn is_flush(kind: Kind) -> bool {
    matches!(kind, Kind::FlushRemoteTlbs | Kind::FlushRemoteTlbsRange)
}

/// Whether a flush before `at` was made by a yield: the lock is dropped right after it. None: more text is needed.
fn is_flush_of_yield(text: &Text, at: usize) -> Result<Option<bool>, Unsure> {
    Ok(match text.next_from(at)? {
        Next::Event(line, _) => Some(line.event.starts_with(b"cond_resched")),
        Next::NeedText => None,
        Next::Ended => Some(false),
    })
}

impl Lane {
    /// Whether a line is none of the comparison's: a flush that a yield made, or may have made. None: more text is needed.
    pub(super) fn passes_over(
        &mut self,
        kind: Kind,
        deed: Deed,
        text: &Text,
        end: usize,
    ) -> Result<Option<bool>, Unsure> {
        if self.rules.yields_unseen {
            self.is_collapsing = kind == Kind::ZapCollapsible || (self.is_collapsing && kind != Kind::Marker);
        }
        let passes_wait =
            matches!(deed, Deed::Ignored | Deed::Output | Deed::SlotChange) || kind == Kind::SlotClearDirty;
        if self.is_waiting && !passes_wait {
            return Err(Unsure("nothing tells what the processor wrote"));
        }
        if !is_flush(kind) {
            return Ok(Some(false));
        }
        if self.is_collapsing { Ok(Some(true)) } else { is_flush_of_yield(text, end) }
    }

    /// The recovery of huge pages is an input that no line tells.
    pub(super) fn refuse_recovery(task: &[u8]) -> Result<(), Unsure> {
        if task.starts_with(RECOVERY_TASK) { Err(Unsure("huge pages are recovered")) } else { Ok(()) }
    }

    /// Whether an input is a question which leaves the processor has used or written.
    pub(super) const fn asks_processor(&self, kind: Kind) -> bool {
        self.rules.is_tdp
            && match kind {
                Kind::AgeHva => self.rules.answers,
                Kind::DirtyMasked | Kind::SlotClearDirty => self.rules.has_pml,
                _ => false,
            }
    }

    /// The outputs behind a question, up to the next input; None: more text is needed.
    fn outputs_behind<'a>(
        &self,
        text: &'a Text,
        mut at: usize,
        mut note: impl FnMut(Kind, &Recorded<'a>) -> Result<(), Unsure>,
    ) -> Result<Option<()>, Unsure> {
        for _ in 0..ANSWER_WITHIN {
            let (line, end) = match text.next_from(at)? {
                Next::Event(line, end) => (line, end),
                Next::NeedText => return Ok(None),
                Next::Ended => return Ok(Some(())),
            };
            at = end;
            let kind = Kind::by_name(line.event);
            let is_output = kind.is_some_and(|kind| self.rules.deeds[kind as usize] == Deed::Output);
            if let Some(kind @ (Kind::TdpMmuSpteChanged | Kind::SetSpte)) = kind {
                let mut values = Recorded::default();
                read(&line, &mut values)?;
                note(kind, &values)?;
            } else if !is_output && !PASSES.iter().any(|passed| line.event.starts_with(passed)) {
                return Ok(Some(()));
            }
        }
        Err(Unsure("an answer is far from its question"))
    }

    /// What host memory answered to the request before `at`, by the leaf behind it; None: more text is needed.
    pub(super) fn look_ahead_for_leaf(&self, text: &Text, at: usize) -> Result<Option<Answer>, Unsure> {
        let host_writable = self.rules.answer_words.host_writable;
        let mut answer = Answer { writable: true, found: Vec::new(), is_written: Some(false) };
        let (mut changed, mut is_open) = (Vec::new(), true);
        let found = self.outputs_behind(text, at, |kind, values| {
            match (kind, values.numbers()) {
                (Kind::TdpMmuSpteChanged, &[_, gfn, level, ..]) => changed.push((gfn, level)),
                (Kind::SetSpte, &[gfn, spte, level, ..]) if is_open => {
                    answer.writable = spte & host_writable != 0;
                    answer.is_written = Some(changed.contains(&(gfn, level)));
                    is_open = false;
                }
                (Kind::SetSpte, _) => {}
                _ => return Err(Unsure("a leaf has another text")),
            }
            Ok(())
        })?;
        Ok(found.map(|()| answer))
    }

    /// Which leaves the processor had used or written when it was asked, by their changes; None: more text is needed.
    pub(super) fn look_ahead_for_leaves(&self, text: &Text, at: usize) -> Result<Option<Leaves>, Unsure> {
        let mut leaves = Leaves::new();
        let found = self.outputs_behind(text, at, |kind, values| {
            match (kind, values.numbers()) {
                (Kind::TdpMmuSpteChanged, &[as_id, gfn, ..]) if as_id < 2 => {
                    leaves.entry(u8::from(as_id == 1)).or_default().push(gfn);
                }
                (Kind::SetSpte, _) => {}
                _ => return Err(Unsure("a leaf has another text")),
            }
            Ok(())
        })?;
        Ok(found.map(|()| leaves))
    }

    /// What a request says of the host's page; a level that was forced says nothing.
    pub(super) fn note_level(&mut self, slot: &SlotSpec, gfn: u64, level: u8, error_code: u64, mmu: &mut Mmu) {
        let page = (slot.hva >> 12).wrapping_add(gfn.wrapping_sub(slot.base));
        if let Some(start) = self.pages.note_fault(page) {
            note(mmu, start, HostHuge::Thp);
        }
        if level > 1 {
            if let Some(start) = self.pages.note_2m_again(page) {
                note(mmu, start, HostHuge::Thp);
            }
            return;
        }
        let start = gfn & !(PAGES_2M - 1);
        let is_aligned = (gfn ^ page).is_multiple_of(PAGES_2M);
        let is_inside = slot.base <= start && start + PAGES_2M <= slot.base + slot.npages;
        let is_forced = slot.flags & LOG_DIRTY != 0 || (error_code & FETCH != 0 && self.rules.has_nx_huge_pages);
        if is_aligned
            && is_inside
            && !is_forced
            && let Some(start) = self.pages.note_4k(page)
        {
            note(mmu, start, HostHuge::None);
        }
    }

    /// The host took pages away: where they were part of 2 MiB, it no longer maps these at once.
    pub fn unmap_pages(&mut self, mmu: &mut Mmu, first: u64, end: u64) {
        for start in self.pages.unmap(first, end) {
            note(mmu, start, HostHuge::None);
        }
    }
}

fn note(mmu: &mut Mmu, start: u64, kind: HostHuge) {
    mmu.set_host_huge(start << 12, PAGES_2M, kind);
}

impl HostPages {
    /// A fault touched a page, be it with a read: the first one gets the whole 2 MiB where that can be.
    pub(super) fn note_fault(&mut self, page: u64) -> Option<u64> {
        let start = page & !(PAGES_2M - 1);
        let may_be_huge = self.is_huge(page) && !self.split.contains(&start);
        (may_be_huge && self.mapped_2m.insert(start)).then_some(start)
    }

    /// A fault was told that the host maps this page with 2 MiB, which it may have mapped with less before.
    pub(super) fn note_2m_again(&mut self, page: u64) -> Option<u64> {
        if self.is_hugetlb(page) {
            return None;
        }
        let start = page & !(PAGES_2M - 1);
        let is_mended = self.split.remove(&start);
        let is_new = self.note_2m(page).is_some();
        (is_mended || is_new).then_some(start)
    }

    /// A fault was told that the host maps this page with 4 KiB.
    pub(super) fn note_4k(&mut self, page: u64) -> Option<u64> {
        let start = page & !(PAGES_2M - 1);
        (self.is_huge(page) && self.split.insert(start)).then_some(start)
    }

    fn unmap(&mut self, first: u64, end: u64) -> Vec<u64> {
        let ranges: Vec<(u64, u64)> =
            self.huge_backings().map(|(from, to)| (first.max(from) & !(PAGES_2M - 1), end.min(to))).collect();
        let mut found = Vec::new();
        for (mut start, end) in ranges {
            while start < end {
                found.extend(self.note_4k(start));
                start += PAGES_2M;
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recording_may_have_more_bits_of_a_leaf_and_of_nothing_else() {
        let words = SpteWords { accessed: 0x20, dirty: 0x40, mmio: (0x1_0000, 0x1_0000), ..SpteWords::default() };
        let leaf = 0x1000 | PRESENT | 7;
        assert!(is_same_leaf(leaf | 0x60, leaf, 1, &words) && !is_same_leaf(leaf, leaf | 0x40, 1, &words));
        assert!(!is_same_leaf(leaf | 0x60, leaf, 2, &words), "a link");
        assert!(is_same_leaf(leaf | LARGE | 0x20, leaf | LARGE, 2, &words));
        assert!(!is_same_leaf(leaf | 0x2000, leaf, 1, &words), "another frame");
        assert!(!is_same_leaf(0x60, 0, 1, &words) && is_same_leaf(0, 0, 1, &words));
        assert_eq!((without_table(leaf, 2), without_table(leaf, 1)), (leaf & !FRAME, leaf));
    }

    #[test]
    fn a_run_goes_from_neighbour_to_neighbour() {
        let mut change = Output::Change { as_id: 0, gfn: 0x400, level: 2, old: 0, new: 0x5a0 };
        step_on(&mut change);
        assert_eq!(change, Output::Change { as_id: 0, gfn: 0x600, level: 2, old: 0, new: 0x5a0 });
    }

    #[test]
    fn what_the_host_maps_with_2_mib_may_change() {
        let mut pages = HostPages::default();
        pages.add(0x1000, 0x400, true, false);
        pages.add_hugetlb(0x10_0000, 0x4_0000);
        assert_eq!((pages.note_fault(0x1001), pages.note_fault(0x1002)), (Some(0x1000), None));
        assert_eq!(
            (pages.note_4k(0x1003), pages.note_4k(0x1003), pages.note_fault(0x1003)),
            (Some(0x1000), None, None)
        );
        assert_eq!((pages.note_2m_again(0x1003), pages.note_2m_again(0x1003)), (Some(0x1000), None));
        assert_eq!(pages.unmap(0x11ff, 0x1201), [0x1000, 0x1200]);
        assert!(pages.is_resident(0x10_0001) && !pages.is_resident(0x1001));
        assert_eq!((pages.note_2m_again(0x10_0000), pages.note_4k(0x10_0000)), (None, None));
    }
}
