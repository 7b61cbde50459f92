//! One run over the text of a recording: its inputs drive the model, its outputs are compared, and at whatever the caller
//! must decide the lane stops.
//!
//! Owns the order of things: what a line is by the [`Rules`], the two halves of a fault, which reclaims of the model a probe
//! has still to tell of, and the look ahead for what host memory answered. The model is the caller's and is given anew for
//! each run; what the caller did to it between two runs is told by [`Lane::take`].

use std::collections::VecDeque;
use std::ops::Range;

use super::Unsure;
use super::comparison::Comparison;
use super::host_pages::HostPages;
use super::marker::{Marker, Value, index_of};
use super::operations::Operations;
use super::output::{predicted, recorded};
use super::rules::{Deed, Rules};
use super::text::{Next, Text};
use crate::ftrace::event::Outcome;
use crate::ftrace::{Event, Kind, Line};
use crate::mmu::{self, HostHuge, HostLookup, Mmu, SlotSpec};

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const RESERVED: u64 = 1 << 3;
const READONLY: u32 = 1 << 1;
const PAGE_SHIFT: u32 = 12;
const PAGES_2M: u64 = 512;
/// An answer of host memory is looked for in so many lines behind its request.
const ANSWER_WITHIN: usize = 1 << 14;

/// Why a run stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The chunk is used up.
    NeedText,
    /// The recording has ended.
    Ended,
    /// An operation of the recorder, its text.
    Operation(Vec<u8>),
    /// An input that the caller deals with: name and text, and the task.
    Input {
        /// Name of the event.
        name: &'static str,
        /// Its text.
        body: Vec<u8>,
    },
    /// A fault of a page that the caller must look at: address and error code.
    Fault(u64, u64),
    /// Published arrays that no marker announced wait, and the line that comes now tells what they were.
    Quiet,
}

/// A fault between its exit and its request to map.
#[derive(Clone, Copy, Debug)]
struct Fault {
    vcpu: u16,
    gpa: u64,
    error_code: u64,
    /// The probe on reclaim came by.
    is_reclaimed: bool,
}

/// What host memory answered.
#[derive(Debug)]
struct Answer {
    writable: bool,
    found: Vec<u64>,
    is_written: Option<bool>,
}

/// A recording on its way through a model.
#[derive(Debug)]
pub struct Lane {
    rules: Rules,
    text: Text,
    operations: Option<Operations>,
    /// Operations whose marker was read, the next one first.
    waiting: VecDeque<Range<usize>>,
    /// Host pages that the recorder has touched.
    pub pages: HostPages,
    /// Host pages, first and end, at which the caller looks itself.
    pub odd_pages: Vec<(u64, u64)>,
    /// The vCPU that lines without one are about.
    pub current: u16,
    /// A marker of an update came and the probe on it not yet.
    pub is_announced: bool,
    /// Number of the last `OP n` marker.
    pub last_number: i64,
    /// Arrays that came by and that no marker announced, and the address space of the last.
    pub pending: (u64, u8),
    /// There is a VM.
    pub is_begun: bool,
    most_news: u64,
    fault: Option<Fault>,
    /// Calls of reclaim made by the model whose probe has not come by yet.
    expected_scans: i64,
    comparison: Comparison,
    /// Outputs that were predicted.
    pub nr_predicted: u64,
    /// Answers of host memory that were used.
    pub nr_answers: u64,
}

fn refused(_: mmu::Error) -> Unsure {
    Unsure("the model refuses an input")
}

impl Lane {
    /// A lane at the beginning of a recording.
    #[must_use]
    pub fn new(rules: Rules, operations: Option<Operations>) -> Self {
        Self {
            rules,
            text: Text::default(),
            operations,
            waiting: VecDeque::new(),
            pages: HostPages::default(),
            odd_pages: Vec::new(),
            current: 0,
            is_announced: false,
            last_number: -1,
            pending: (0, 0),
            is_begun: false,
            most_news: 0,
            fault: None,
            expected_scans: 0,
            comparison: Comparison::default(),
            nr_predicted: 0,
            nr_answers: 0,
        }
    }

    /// Gives it the next chunk.
    pub fn feed(&mut self, chunk: &[u8]) {
        self.text.feed(chunk);
    }

    /// No chunk comes any more.
    pub const fn finish(&mut self) {
        self.text.finish();
    }

    /// A new VM begins: nothing of the one before it matters.
    pub fn begin_vm(&mut self) {
        self.pages = HostPages::default();
        self.odd_pages.clear();
        self.fault = None;
        (self.current, self.expected_scans, self.most_news) = (0, 0, 0);
        self.is_begun = true;
    }

    /// Outputs of each kind, all of them equal; both sides have ended.
    pub fn equal_outputs(&self) -> Result<Vec<(&'static str, u64)>, Unsure> {
        self.comparison.finish()?;
        let counts = Kind::ALL.iter().map(|kind| (kind.name(), self.comparison.counts[*kind as usize]));
        Ok(counts.filter(|(_, count)| *count > 0).collect())
    }

    /// Takes what the caller did to the model into the comparison; `is_expected`: its reclaims come by as probes of their
    /// own. Returns whether a lock-free path or the emulator answered.
    pub fn take(&mut self, mmu: &mut Mmu, is_expected: bool) -> Result<bool, Unsure> {
        self.take_events(mmu, is_expected, false)
    }

    /// A write of the recorder made a host page resident.
    pub fn touch(&mut self, mmu: &mut Mmu, page: u64) {
        if let Some(start) = self.pages.touch(page) {
            note_huge(mmu, start);
        }
    }

    /// Goes on to the next stop.
    pub fn run(&mut self, mmu: &mut Mmu) -> Result<Stop, Unsure> {
        let mut text = std::mem::take(&mut self.text);
        let mut at = text.at;
        let stop = self.go(&text, &mut at, mmu);
        text.at = at;
        self.text = text;
        stop
    }

    fn go(&mut self, text: &Text, at: &mut usize, mmu: &mut Mmu) -> Result<Stop, Unsure> {
        let mut values = Event::default();
        loop {
            if let Some(operation) = self.waiting.front().cloned() {
                let known = self.operations.take();
                let stop = self.operation(known.as_ref().map_or(&b""[..], |known| known.text(operation)), mmu);
                self.operations = known;
                match stop? {
                    Some(Stop::Quiet) => return Ok(Stop::Quiet),
                    stop => {
                        self.waiting.pop_front();
                        if let Some(stop) = stop {
                            return Ok(stop);
                        }
                    }
                }
                continue;
            }
            let (line, end) = match text.next_from(*at)? {
                Next::Event(line, end) => (line, end),
                Next::NeedText => return Ok(Stop::NeedText),
                Next::Ended => return Ok(Stop::Ended),
            };
            let Some(kind) = Kind::by_name(line.event) else {
                *at = end;
                continue;
            };
            let deed = self.rules.deeds[kind as usize];
            match deed {
                Deed::Ignored => {}
                Deed::Foreign => return Err(Unsure("an event that the lane does not know what to do with")),
                Deed::Output => self.output(kind, &line, &mut values)?,
                Deed::Marker => match self.marker(line.body, mmu)? {
                    None => {}
                    Some(Stop::Quiet) => return Ok(Stop::Quiet),
                    stop @ Some(_) => {
                        *at = end;
                        return Ok(stop.unwrap_or(Stop::Quiet));
                    }
                },
                _ => {
                    if self.pending.0 > 0 && deed != Deed::Publication {
                        return Ok(Stop::Quiet);
                    }
                    match self.input(deed, kind, &line, &mut values, (text, end), mmu)? {
                        None => {}
                        Some(Stop::NeedText) => return Ok(Stop::NeedText),
                        Some(stop) => {
                            *at = end;
                            return Ok(stop);
                        }
                    }
                }
            }
            *at = end;
        }
    }

    #[inline]
    fn output<'a>(&mut self, kind: Kind, line: &Line<'a>, values: &mut Event<'a>) -> Result<(), Unsure> {
        if !self.rules.compared.has(kind) {
            return Ok(());
        }
        read(line, values)?;
        let output = recorded(values, &self.rules).ok_or(Unsure("an output has another text"))?;
        self.comparison.add_recorded(kind, output, &self.rules.words)
    }

    /// An input; a stop before which it is not done is [`Stop::NeedText`].
    fn input<'a>(
        &mut self,
        deed: Deed,
        kind: Kind,
        line: &Line<'a>,
        values: &mut Event<'a>,
        (text, end): (&'a Text, usize),
        mmu: &mut Mmu,
    ) -> Result<Option<Stop>, Unsure> {
        read(line, values)?;
        let numbers = values.numbers();
        if let Some((_, vcpu)) = self.rules.tasks.iter().find(|(task, _)| task == line.task) {
            self.current = *vcpu;
        }
        if matches!(deed, Deed::Fault | Deed::Load) && !self.is_begun {
            return Err(Unsure("it starts in the middle of a VM"));
        }
        match (deed, numbers) {
            (Deed::Fault, &[gpa, error_code]) if self.rules.is_whole_fault => {
                return self.whole_fault(gpa, error_code, mmu);
            }
            (Deed::Fault, &[vcpu, _, gpa, error_code]) if !self.rules.is_whole_fault => {
                self.current = u16::try_from(vcpu).map_err(|_| Unsure("a vCPU of a large number"))?;
                self.first_half(gpa, error_code, mmu)?;
            }
            (Deed::Request, &[_, _, level, ..]) => {
                let level = u8::try_from(level).unwrap_or(u8::MAX);
                if level == 0 || level > self.rules.level_max {
                    return Err(Unsure("a request of a level that is not possible"));
                }
                let mut answer = None;
                if self.rules.answers {
                    answer = self.look_ahead(text, end)?;
                    if answer.is_none() {
                        return Ok(Some(Stop::NeedText));
                    }
                    self.nr_answers += 1;
                }
                if let Some(fault) = self.fault.take() {
                    self.second_half(fault, level, answer, mmu)?;
                }
            }
            (Deed::FreeRoots, &[mask]) => {
                if mask & 1 != 0 {
                    mmu.unload(self.current).map_err(refused)?;
                    self.take(mmu, false)?;
                }
            }
            (Deed::Load, _) => {
                // Over before its vCPU enters again: a reclaim from here on is not its own.
                self.fault = self.fault.filter(|fault| fault.vcpu != self.current);
                self.enter(mmu)?;
            }
            (Deed::ZapOldest, &[wanted]) => self.zap_oldest(wanted, mmu)?,
            (Deed::Publication, &[value]) => {
                let as_id = u8::from(value & 1 != 0);
                // One that the model has not made yet.
                let steps = value.wrapping_sub(mmu.generation(as_id).map_err(refused)?);
                if steps == self.rules.publication_step.saturating_mul(1 + self.pending.0) {
                    self.pending = (self.pending.0 + 1, as_id);
                }
            }
            (Deed::SlotChange, _) if self.is_announced => self.is_announced = false,
            (Deed::SlotChange | Deed::Handed, _) => {
                return Ok(Some(Stop::Input { name: kind.name(), body: line.body.to_vec() }));
            }
            _ => return Err(Unsure("an input has another text")),
        }
        Ok(None)
    }

    // ---- faults ----

    /// A fault to which the host says nothing yet.
    fn first_half(&mut self, gpa: u64, error_code: u64, mmu: &mut Mmu) -> Result<(), Unsure> {
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
    fn second_half(&mut self, fault: Fault, level: u8, answer: Option<Answer>, mmu: &mut Mmu) -> Result<(), Unsure> {
        let Fault { vcpu, gpa, error_code, is_reclaimed } = fault;
        let gfn = gpa >> PAGE_SHIFT;
        let slot = find_slot(mmu, vcpu, gfn)?;
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
    fn look_ahead(&self, text: &Text, mut at: usize) -> Result<Option<Answer>, Unsure> {
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
    fn whole_fault(&mut self, gpa: u64, error_code: u64, mmu: &mut Mmu) -> Result<Option<Stop>, Unsure> {
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

    fn zap_oldest(&mut self, wanted: u64, mmu: &mut Mmu) -> Result<(), Unsure> {
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

    fn enter(&mut self, mmu: &mut Mmu) -> Result<(), Unsure> {
        mmu.enter(self.current).map_err(refused)?;
        self.take(mmu, true).map(|_| ())
    }

    // ---- markers ----

    fn marker(&mut self, body: &[u8], mmu: &mut Mmu) -> Result<Option<Stop>, Unsure> {
        if body.starts_with(if self.rules.numbered { b"{\"i\":" } else { b"OP " }) {
            return Err(Unsure("another recorder's marker"));
        }
        if self.rules.numbered {
            return self.numbered(body, mmu);
        }
        if let (Some((number, _)), Some(known)) = (index_of(body), &mut self.operations) {
            let mut texts = Vec::new();
            if known.upto(number, &mut texts) {
                self.waiting.extend(texts);
                return Ok(None);
            }
        }
        self.operation(body, mmu)
    }

    /// An operation in JSON; before [`Stop::Quiet`] nothing is done.
    fn operation(&mut self, text: &[u8], mmu: &mut Mmu) -> Result<Option<Stop>, Unsure> {
        if !text.starts_with(b"{\"i\":") {
            return if text.starts_with(b"QUIET ") { Err(Unsure("another recorder's marker")) } else { Ok(None) };
        }
        let told = || Ok(Some(Stop::Operation(text.to_vec())));
        let Some(marker) = Marker::parse(text) else { return told() };
        let name = match marker.get(b"op") {
            Some(Value::Text(name)) => name,
            Some(_) => return told(),
            None if marker.get(b"ev") == Some(Value::Text(b"toggle")) => return told(),
            None => return Ok(None),
        };
        let is_heard = self.rules.heard.iter().any(|heard| heard == name);
        if self.pending.0 > 0 && !is_heard {
            return Ok(Some(Stop::Quiet));
        }
        (self.fault, self.is_announced) = (None, false);
        if is_heard {
            return told();
        }
        if self.rules.enters.iter().any(|enters| enters == name) {
            match marker.get(&self.rules.news_field).map(|value| value.number()) {
                Some(None) => return told(),
                Some(Some(news)) if news > self.most_news => {
                    self.most_news = news;
                    return told();
                }
                _ => {}
            }
            if self.rules.enter_loads {
                self.enter(mmu)?;
            }
        }
        Ok(None)
    }

    /// An `OP n` marker; what is none is for the caller, or nothing.
    fn numbered(&mut self, text: &[u8], mmu: &mut Mmu) -> Result<Option<Stop>, Unsure> {
        let told = || Ok(Some(Stop::Operation(text.to_vec())));
        if !text.starts_with(b"OP ") {
            return if text.starts_with(b"QUIET ") { told() } else { Ok(None) };
        }
        let Some((number, marker)) = Marker::parse_numbered(text) else { return told() };
        let (Some(Value::Text(name)), None) = (marker.get(b"op"), marker.get(b"i")) else { return told() };
        let number = i64::try_from(number).unwrap_or(i64::MAX);
        let is_next = number <= self.last_number.saturating_add(1);
        if !self.is_begun || !is_next || !self.rules.enters.iter().any(|enters| enters == name) {
            return told();
        }
        self.last_number = number;
        self.enter(mmu)?;
        Ok(None)
    }

    // ---- the model's events ----

    #[inline]
    fn take_events(&mut self, mmu: &mut Mmu, is_expected: bool, is_second_half: bool) -> Result<bool, Unsure> {
        let mut is_answered = false;
        for event in mmu.events() {
            match event {
                mmu::Event::ZapOldestRet { .. } => self.expected_scans += i64::from(is_expected),
                mmu::Event::Emulate { .. } => is_answered = true,
                // Without accessed bits the lock-free path looks at absent entries, too: the first half has told of that.
                mmu::Event::FastPf { .. } if is_second_half => continue,
                mmu::Event::FastPf { handled, .. } => is_answered |= *handled != 0,
                _ => {}
            }
            if let Some((kind, output)) = predicted(event, &self.rules)
                && self.rules.told.has(kind)
            {
                self.nr_predicted += 1;
                if self.rules.compared.has(kind) {
                    self.comparison.add_predicted(kind, output, &self.rules.words)?;
                }
            }
        }
        mmu.clear_events();
        Ok(is_answered)
    }
}

/// Fills the values of a line; its text must be a kernel's.
#[inline]
fn read<'a>(line: &Line<'a>, values: &mut Event<'a>) -> Result<(), Unsure> {
    let is_read = values.read(line.event, line.body) == Outcome::Known;
    if is_read && !values.wording().kernels.starts_with("raw") {
        Ok(())
    } else {
        Err(Unsure("a line has another text"))
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

fn note_huge(mmu: &mut Mmu, start: u64) {
    mmu.set_host_huge(start << PAGE_SHIFT, PAGES_2M, HostHuge::Thp);
}
