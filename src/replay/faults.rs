//! Faults of a recording: their two halves, what host memory answered between them, and the reclaims they make.
//!
//! Owns what becomes of a fault until it maps, and the address of a misconfiguration, which a line behind its exit tells.

use super::Unsure;
use super::lane::{Lane, Stop, read, refused};
use super::text::{Next, Text};
use crate::ftrace::{Event, Kind};
use crate::mmu::{HostHuge, HostLookup, Mmu, SlotSpec};

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const RESERVED: u64 = 1 << 3;
const READONLY: u32 = 1 << 1;
pub(super) const PAGE_SHIFT: u32 = 12;
const PAGES_2M: u64 = 512;
/// Frames that a host of 52 bits has.
const FRAMES: u64 = 1 << 40;
/// An answer of host memory is looked for in so many lines behind its request.
const ANSWER_WITHIN: usize = 1 << 14;

/// A fault between its exit and its request to map.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    pub(super) vcpu: u16,
    gpa: u64,
    error_code: u64,
    /// The probe on reclaim came by.
    is_reclaimed: bool,
}

/// What host memory answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) writable: bool,
    pub(super) found: Vec<u64>,
    pub(super) is_written: Option<bool>,
}

impl Lane {
    /// What a fault prints as the error code that the MMU gets; a qualification is one of a violation.
    pub(super) fn error_code(&mut self, printed: u64) -> u64 {
        if self.rules.qualification.is_empty() {
            return printed;
        }
        if !self.violations.contains(&self.current) {
            self.violations.push(self.current);
        }
        let bits =
            self.rules.qualification.iter().map(|&(mask, set, clear)| if printed & mask != 0 { set } else { clear });
        bits.fold(0, |code, bit| code | bit)
    }

    pub(super) fn note_exit(&mut self, task: &[u8], texts: &[&[u8]]) {
        self.misconfigured.retain(|known| known != task);
        if texts.first() == Some(&&b"EPT_MISCONFIG"[..]) && !self.has_probe {
            self.misconfigured.push(task.to_vec());
        }
    }

    /// A fault to which the host says nothing yet.
    pub(super) fn first_half(&mut self, gpa: u64, error_code: u64, mmu: &mut Mmu) -> Result<(), Unsure> {
        let vcpu = self.current;
        mmu.fault_with(vcpu, gpa, error_code, &HostLookup::Retry).map_err(refused)?;
        let is_answered = self.take(mmu, false)?;
        self.fault = (!is_answered).then_some(Fault { vcpu, gpa, error_code, is_reclaimed: false });
        let slot = find_slot(mmu, vcpu, gpa >> PAGE_SHIFT)?;
        if let (false, Some(slot), true) = (is_answered, slot, error_code & WRITE != 0)
            && slot.flags & READONLY == 0
        {
            // Whether the fault maps or is told to come again: the host page is resident and writable from here on.
            let page = page_of(&slot, gpa >> PAGE_SHIFT);
            if !self.pages.is_resident(page) {
                self.touch(mmu, page);
            }
        }
        Ok(())
    }

    /// The request to map, without the bits of the error code that the first half has dealt with.
    pub(super) fn second_half(
        &mut self,
        fault: Fault,
        (frame, level): (u64, u8),
        answer: Option<Answer>,
        mmu: &mut Mmu,
    ) -> Result<(), Unsure> {
        let Fault { vcpu, gpa, error_code, is_reclaimed } = fault;
        let gfn = gpa >> PAGE_SHIFT;
        let slot = find_slot(mmu, vcpu, gfn)?;
        if self.rules.is_tdp {
            if let Some(slot) = slot {
                if frame >= FRAMES {
                    return Err(Unsure("a request of a frame that is none"));
                }
                self.note_level(&slot, gfn, level, error_code, mmu);
            }
            let (writable, is_written) = match (slot, answer) {
                (None, _) => (false, None),
                (Some(_), Some(answer)) => (answer.writable, answer.is_written),
                (Some(slot), None) => (slot.flags & READONLY == 0 && self.pages.is_resident(page_of(&slot, gfn)), None),
            };
            let frame = slot.map(|_| frame);
            let host = HostLookup::Found { level, writable, neighbours: None, is_written, frame };
            mmu.fault_with(vcpu, gpa, error_code & !(PRESENT | RESERVED), &host).map_err(refused)?;
            return self.take_events(mmu, true, true).map(|_| ());
        }
        if let Some(slot) = slot
            && level > 1
            && let Some(start) = self.pages.note_2m(page_of(&slot, gfn))
        {
            note_huge(mmu, start);
        }
        let answer = match (slot, answer) {
            (None, _) => Answer { writable: false, found: Vec::new(), is_written: None },
            (Some(_), Some(answer)) => answer,
            (Some(slot), None) => self.answer_by_residency(vcpu, gfn, &slot, mmu)?,
        };
        let host = HostLookup::Found {
            level,
            writable: answer.writable,
            neighbours: Some(answer.found),
            is_written: answer.is_written,
            frame: None,
        };
        mmu.fault_with(vcpu, gpa, error_code & !(PRESENT | RESERVED), &host).map_err(refused)?;
        self.take_events(mmu, true, true)?;
        // A reclaim of this fault whose probe came before the request.
        self.expected_scans -= i64::from(is_reclaimed);
        Ok(())
    }

    fn answer_by_residency(&self, vcpu: u16, gfn: u64, slot: &SlotSpec, mmu: &Mmu) -> Result<Answer, Unsure> {
        let writable = slot.flags & READONLY == 0 && self.pages.is_resident(page_of(slot, gfn));
        let mut found = Vec::new();
        let first = gfn - gfn % self.rules.group;
        for near in first..first + self.rules.group {
            let own = if is_in(slot, near) { Some(*slot) } else { find_slot(mmu, vcpu, near)? };
            if own.is_some_and(|own| self.pages.is_resident(page_of(&own, near))) {
                found.push(near);
            }
        }
        Ok(Answer { writable, found, is_written: None })
    }

    /// What host memory answered to the request before `at`, by the leaves behind it; None: more text is needed.
    pub(super) fn look_ahead(&self, text: &Text, mut at: usize) -> Result<Option<Answer>, Unsure> {
        let words = &self.rules.answer_words;
        let mut answer = Answer { writable: true, found: Vec::new(), is_written: Some(false) };
        for _ in 0..ANSWER_WITHIN {
            let (line, end) = match text.next_from(at)? {
                Next::Event(line, end) => (line, end),
                Next::NeedText => return Ok(None),
                Next::Ended => return Ok(Some(answer)),
            };
            at = end;
            match Kind::by_name(line.event) {
                Some(
                    Kind::PageFault
                    | Kind::Marker
                    | Kind::Entry
                    | Kind::SpteRequested
                    | Kind::PageFaultRet
                    | Kind::Invlpg,
                ) => return Ok(Some(answer)),
                Some(Kind::SetSpte) => {
                    let mut values = Event::default();
                    read(&line, &mut values)?;
                    let &[gfn, spte, ..] = values.numbers() else { return Err(Unsure("a leaf has another text")) };
                    if words.accessed == 0 || spte & words.accessed != 0 {
                        (answer.writable, answer.is_written) = (spte & words.host_writable != 0, Some(true));
                    } else {
                        answer.found.push(gfn);
                    }
                }
                _ => {}
            }
        }
        Err(Unsure("an answer of host memory is far from its request"))
    }

    /// A fault where the vCPU enters before and after it and the model answers for the host.
    pub(super) fn whole_fault(&mut self, gpa: u64, error_code: u64, mmu: &mut Mmu) -> Result<Option<Stop>, Unsure> {
        let gfn = gpa >> PAGE_SHIFT;
        let page = mmu.find_slot(0, gfn).map_err(refused)?.map(|slot| page_of(&slot, gfn));
        if page.is_some_and(|page| self.odd_pages.iter().any(|&(first, end)| (first..end).contains(&page))) {
            return Ok(Some(Stop::Fault(gpa, error_code)));
        }
        self.enter(mmu)?;
        mmu.fault(self.current, gpa, error_code).map_err(refused)?;
        self.take(mmu, false)?;
        self.enter(mmu)?;
        Ok(None)
    }

    pub(super) fn zap_oldest(&mut self, wanted: u64, mmu: &mut Mmu) -> Result<(), Unsure> {
        if let Some(fault) = &mut self.fault
            && !fault.is_reclaimed
            && wanted <= self.rules.refill_pages
        {
            fault.is_reclaimed = true;
        } else if self.expected_scans > 0 {
            self.expected_scans -= 1;
        } else {
            mmu.zap_oldest(wanted).map_err(refused)?;
            self.take(mmu, false)?;
        }
        Ok(())
    }

    pub(super) fn enter(&mut self, mmu: &mut Mmu) -> Result<(), Unsure> {
        mmu.enter(self.current).map_err(refused)?;
        self.take(mmu, true).map(|_| ())
    }
}

fn find_slot(mmu: &Mmu, vcpu: u16, gfn: u64) -> Result<Option<SlotSpec>, Unsure> {
    mmu.as_id(vcpu).and_then(|as_id| mmu.find_slot(as_id, gfn)).map_err(refused)
}

const fn is_in(slot: &SlotSpec, gfn: u64) -> bool {
    gfn.wrapping_sub(slot.base) < slot.npages
}

/// Host page of a gfn of a slot.
const fn page_of(slot: &SlotSpec, gfn: u64) -> u64 {
    (slot.hva >> PAGE_SHIFT).wrapping_add(gfn.wrapping_sub(slot.base))
}

pub(super) fn note_huge(mmu: &mut Mmu, start: u64) {
    mmu.set_host_huge(start << PAGE_SHIFT, PAGES_2M, HostHuge::Thp);
}
