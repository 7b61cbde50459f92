//! One run over the text of a recording: its inputs drive the model, its outputs are compared, and at whatever the caller
//! must decide the lane stops.
//!
//! Owns the order of things: what a line is by the [`Rules`], and what becomes of the model's events. Faults have a file of
//! their own. The model is the caller's and is given anew for
//! each run; what the caller did to it between two runs is told by [`Lane::take`].

use std::collections::VecDeque;
use std::ops::Range;

use super::Unsure;
use super::comparison::Comparison;
use super::faults::{Fault, PAGE_SHIFT, note_huge};
use super::host_pages::HostPages;
use super::marker::{Marker, Value, index_of};
use super::operations::Operations;
use super::output::{predicted, recorded};
use super::rules::{Deed, Rules};
use super::tdp;
use super::text::{Next, Text};
use crate::ftrace::event::Outcome;
use crate::ftrace::{Event, Kind, Line};
use crate::mmu::{self, Mmu};

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
    /// An operation of which the caller wants no more than these fields.
    Numbers(Vec<u64>),
    /// A fault of a page that the caller must look at: address and error code.
    Fault(u64, u64),
    /// Published arrays that no marker announced wait, and the line that comes now tells what they were.
    Quiet,
}

/// A recording on its way through a model.
#[expect(clippy::struct_excessive_bools, reason = "what came by, and what is still waited for")]
#[derive(Debug)]
pub struct Lane {
    pub(super) rules: Rules,
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
    /// The caller waits for what the processor wrote before it does something.
    pub is_waiting: bool,
    /// Flushes that the model says now are not told from those of yields.
    pub hides_flushes: bool,
    /// The dirty log went off, and its operation is not over.
    pub(super) is_collapsing: bool,
    most_news: u64,
    pub(super) fault: Option<Fault>,
    /// vCPUs with a violation whose call of the MMU has not come by yet.
    pub(super) violations: Vec<u16>,
    /// Tasks whose last exit is a misconfiguration, as long as no line has told its address.
    pub(super) misconfigured: Vec<Vec<u8>>,
    /// A probe tells the address.
    pub(super) has_probe: bool,
    /// Calls of reclaim made by the model whose probe has not come by yet.
    pub(super) expected_scans: i64,
    comparison: Comparison,
    /// Outputs that were predicted.
    pub nr_predicted: u64,
    /// Answers of host memory that were used.
    pub nr_answers: u64,
}

pub(super) fn refused(_: mmu::Error) -> Unsure {
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
            is_waiting: false,
            hides_flushes: false,
            is_collapsing: false,
            most_news: 0,
            fault: None,
            violations: Vec::new(),
            misconfigured: Vec::new(),
            has_probe: false,
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
            if self.rules.is_tdp {
                match self.passes_over(kind, deed, text, end)? {
                    None => return Ok(Stop::NeedText),
                    Some(true) => {
                        *at = end;
                        continue;
                    }
                    Some(false) => {}
                }
            }
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
                    let is_input = !matches!(deed, Deed::Publication | Deed::Exit | Deed::Address);
                    if self.pending.0 > 0 && is_input {
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
        if self.rules.is_tdp {
            Self::refuse_recovery(line.task)?;
        }
        read(line, values)?;
        let output = recorded(values, &self.rules).ok_or(Unsure("an output has another text"))?;
        self.comparison.add_recorded(kind, output, &self.rules.words)
    }

    /// An input; a stop before which it is not done is [`Stop::NeedText`].
    #[expect(clippy::too_many_lines, reason = "one arm for each kind of input")]
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
        if deed == Deed::Exit {
            self.note_exit(line.task, values.texts());
            return Ok(None);
        }
        let misconfigured = match deed {
            Deed::Address | Deed::Request => self.misconfigured.iter().position(|task| task == line.task),
            _ => None,
        };
        if deed == Deed::Address && misconfigured.is_none() {
            return Ok(None);
        }
        if let Some((_, vcpu)) = self.rules.tasks.iter().find(|(task, _)| task == line.task) {
            self.current = *vcpu;
        }
        if let Some(at) = misconfigured {
            if self.pending.0 > 0 {
                return Err(Unsure("updates without a marker before a misconfiguration"));
            }
            self.misconfigured.swap_remove(at);
            let gpa = match (kind, numbers) {
                (Kind::SpteRequested, &[gfn, ..]) => gfn << PAGE_SHIFT,
                (Kind::VcpuMatchMmio, &[_, gpa]) | (Kind::Mmio, &[_, gpa, _]) => gpa,
                _ => return Err(Unsure("an input has another text")),
            };
            self.first_half(gpa, self.rules.misconfiguration, mmu)?;
        }
        if matches!(deed, Deed::Fault | Deed::MmuFault | Deed::Load) && !self.is_begun {
            return Err(Unsure("it starts in the middle of a VM"));
        }
        match (deed, numbers) {
            (Deed::Fault, &[gpa, error_code]) if self.rules.is_whole_fault => {
                return self.whole_fault(gpa, error_code, mmu);
            }
            (Deed::Fault, &[vcpu, _, gpa, error_code]) if !self.rules.is_whole_fault => {
                self.current = u16::try_from(vcpu).map_err(|_| Unsure("a vCPU of a large number"))?;
                let error_code = self.error_code(error_code);
                self.first_half(gpa, error_code, mmu)?;
            }
            (Deed::MmuFault, &[gpa, error_code]) => {
                self.has_probe = true;
                if let Some(at) = self.violations.iter().position(|vcpu| *vcpu == self.current) {
                    self.violations.swap_remove(at);
                } else {
                    self.first_half(gpa, error_code, mmu)?;
                }
            }
            // The address was looked at above.
            (Deed::Address, _) => {}
            (Deed::Request, &[_, frame, level, ..]) => {
                let level = u8::try_from(level).unwrap_or(u8::MAX);
                if level == 0 || level > self.rules.level_max {
                    return Err(Unsure("a request of a level that is not possible"));
                }
                let mut answer = None;
                if self.rules.answers {
                    answer = if self.rules.is_tdp {
                        self.look_ahead_for_leaf(text, end)?
                    } else {
                        self.look_ahead(text, end)?
                    };
                    if answer.is_none() {
                        return Ok(Some(Stop::NeedText));
                    }
                    self.nr_answers += 1;
                }
                if let Some(fault) = self.fault.take() {
                    self.second_half(fault, (frame, level), answer, mmu)?;
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
            (Deed::Handed, _) if self.asks_processor(kind) => {
                let Some(leaves) = self.look_ahead_for_leaves(text, end)? else { return Ok(Some(Stop::NeedText)) };
                self.nr_answers += 1;
                for (as_id, gfns) in leaves {
                    mmu.processor_sets(as_id, &gfns, kind != Kind::AgeHva).map_err(refused)?;
                }
                self.take(mmu, false)?;
                return Ok(Some(Stop::Input { name: kind.name(), body: line.body.to_vec() }));
            }
            (Deed::SlotChange | Deed::Handed, _) => {
                return Ok(Some(Stop::Input { name: kind.name(), body: line.body.to_vec() }));
            }
            _ => return Err(Unsure("an input has another text")),
        }
        Ok(None)
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
            None => match marker.get(b"ev") {
                Some(Value::Text(b"toggle")) => return told(),
                Some(Value::Text(note)) if self.rules.notes.iter().any(|heard| heard == note) => return told(),
                _ => return Ok(None),
            },
        };
        let is_heard = self.rules.heard.iter().any(|heard| heard == name);
        if self.pending.0 > 0 && !is_heard {
            return Ok(Some(Stop::Quiet));
        }
        (self.fault, self.is_announced) = (None, false);
        if is_heard {
            return self.numbers_of(name, &marker).map_or_else(told, |numbers| Ok(Some(Stop::Numbers(numbers))));
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

    /// The fields of an operation of which the caller wants no more; None: it is another, or the caller must read it.
    fn numbers_of(&self, name: &[u8], marker: &Marker<'_>) -> Option<Vec<u64>> {
        let (wanted, fields) = &self.rules.numeric;
        let number = |(key, lacking): &(Vec<u8>, Option<u64>)| match marker.get(key) {
            Some(value) => value.number(),
            None => *lacking,
        };
        if wanted == name { fields.iter().map(number).collect() } else { None }
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
    pub(super) fn take_events(
        &mut self,
        mmu: &mut Mmu,
        is_expected: bool,
        is_second_half: bool,
    ) -> Result<bool, Unsure> {
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
            if self.rules.is_tdp
                && let Some((kind, output, n)) = tdp::predicted(event, &self.rules)
            {
                let is_hidden = self.hides_flushes && tdp::is_flush(kind);
                if self.rules.told.has(kind) && !is_hidden {
                    self.nr_predicted += u64::from(n);
                    if self.rules.compared.has(kind) {
                        self.comparison.add_predicted_run(kind, output, n, &self.rules.words)?;
                    }
                }
                continue;
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
pub(super) fn read<'a>(line: &Line<'a>, values: &mut Event<'a>) -> Result<(), Unsure> {
    let is_read = values.read(line.event, line.body) == Outcome::Known;
    if is_read && !values.wording().kernels.starts_with("raw") {
        Ok(())
    } else {
        Err(Unsure("a line has another text"))
    }
}
