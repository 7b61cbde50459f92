//! What must be known of a recording before its first line drives a model: which events there are, how many vCPUs, and which
//! task is which of them.
//!
//! Owns the first pass. It is sure of recordings whose every line the second pass would read as the slow way does, as far as
//! it looks at them.

use std::ops::Range;

use memchr::memmem;

use super::Unsure;
use super::marker::{Marker, Value, index_of};
use super::operations::Operations;
use super::rules::Kinds;
use super::text::{Next, Text};
use crate::ftrace::event::Outcome;
use crate::ftrace::{Event, Kind, Line};

/// vCPUs that are modelled.
const VCPUS_MAX: u64 = 256;
/// Tasks that are told apart.
const TASKS_MAX: usize = 1 << 10;

/// The first pass.
#[derive(Debug)]
pub struct Survey {
    text: Text,
    operations: Option<Operations>,
    is_numbered: bool,
    is_tdp: bool,
    texts: Vec<Range<usize>>,
    /// Kinds of events that occur.
    pub seen: Kinds,
    /// The highest number of a vCPU.
    pub highest_vcpu: u64,
    /// Task, and its vCPU where its faults are all of one.
    tasks: Vec<(Vec<u8>, Option<u64>)>,
    has_choice: bool,
}

impl Survey {
    /// A pass over a recording with `OP n` markers or with JSON ones, and for those with the operations in full.
    #[must_use]
    pub fn new(is_numbered: bool, operations: Option<Operations>) -> Self {
        Self {
            text: Text::default(),
            operations,
            is_numbered,
            is_tdp: false,
            texts: Vec::new(),
            seen: Kinds::NONE,
            highest_vcpu: 0,
            tasks: Vec::new(),
            has_choice: false,
        }
    }

    /// The recording is known to be of a TDP MMU.
    #[must_use]
    pub const fn of_tdp(mut self) -> Self {
        self.is_tdp = true;
        self
    }

    /// Reads the next chunk.
    pub fn feed(&mut self, chunk: &[u8]) -> Result<(), Unsure> {
        self.text.feed(chunk);
        self.read()
    }

    /// The recording ends.
    pub fn finish(&mut self) -> Result<(), Unsure> {
        self.text.finish();
        self.read()?;
        if self.seen.has(Kind::Marker) { Ok(()) } else { Err(Unsure("no operation of the VM in it")) }
    }

    /// Task and vCPU, where no operation chooses one.
    #[must_use]
    pub fn tasks(&self) -> Vec<(Vec<u8>, u64)> {
        let of_one = self.tasks.iter().filter(|_| !self.has_choice);
        of_one.filter_map(|(task, vcpu)| Some((task.clone(), (*vcpu)?))).collect()
    }

    fn read(&mut self) -> Result<(), Unsure> {
        let mut text = std::mem::take(&mut self.text);
        let mut at = text.at;
        let mut values = Event::default();
        let answer = loop {
            match text.next_from(at) {
                Ok(Next::Event(line, end)) => {
                    at = end;
                    if let Err(unsure) = self.line(&line, &mut values) {
                        break Err(unsure);
                    }
                }
                Ok(Next::NeedText | Next::Ended) => break Ok(()),
                Err(unsure) => break Err(unsure),
            }
        };
        text.at = at;
        self.text = text;
        answer
    }

    #[inline]
    fn line<'a>(&mut self, line: &Line<'a>, values: &mut Event<'a>) -> Result<(), Unsure> {
        let Some(kind) = Kind::by_name(line.event) else {
            return if line.event == b"print" { Err(Unsure("text of trace-cmd")) } else { Ok(()) };
        };
        self.seen.insert(kind);
        match kind {
            Kind::TdpMmuSpteChanged if self.is_tdp => Ok(()),
            Kind::TdpMmuSpteChanged | Kind::HostAnswer => Err(Unsure("the TDP MMU, or answers in the text")),
            Kind::PageFault => {
                let is_read = values.read(line.event, line.body) == Outcome::Known;
                if !is_read || values.wording_index() != usize::from(self.is_numbered) {
                    return Err(Unsure("a fault has another text"));
                }
                if !self.is_numbered {
                    self.note_task(line.task, values.numbers()[0])?;
                }
                Ok(())
            }
            Kind::SmmTransition => {
                if values.read(line.event, line.body) != Outcome::Known || values.wording_index() != 0 {
                    return Err(Unsure("a change of mode has another text"));
                }
                self.note_task(line.task, values.numbers()[0])
            }
            Kind::Marker => self.marker(line.body),
            _ => Ok(()),
        }
    }

    fn note_task(&mut self, task: &[u8], vcpu: u64) -> Result<(), Unsure> {
        self.note_vcpu(vcpu)?;
        match self.tasks.iter().position(|(name, _)| name == task) {
            Some(at) if self.tasks[at].1 != Some(vcpu) => self.tasks[at].1 = None,
            Some(_) => {}
            None if self.tasks.len() < TASKS_MAX => self.tasks.push((task.to_vec(), Some(vcpu))),
            None => return Err(Unsure("very many tasks")),
        }
        Ok(())
    }

    fn note_vcpu(&mut self, vcpu: u64) -> Result<(), Unsure> {
        self.highest_vcpu = self.highest_vcpu.max(vcpu);
        if vcpu < VCPUS_MAX { Ok(()) } else { Err(Unsure("more vCPUs than are modelled")) }
    }

    fn marker(&mut self, body: &[u8]) -> Result<(), Unsure> {
        if body.starts_with(if self.is_numbered { b"{\"i\":" } else { b"OP " }) {
            return Err(Unsure("another recorder's marker"));
        }
        let mut texts = std::mem::take(&mut self.texts);
        let mut operations = self.operations.take();
        let index = index_of(body).filter(|_| !self.is_numbered);
        let is_known = match (index, &mut operations) {
            (Some((number, _)), Some(known)) => known.upto(number, &mut texts),
            _ => false,
        };
        let answer = match &operations {
            Some(known) if is_known => texts.drain(..).try_for_each(|text| self.operation(known.text(text))),
            _ => self.operation(body),
        };
        (self.texts, self.operations) = (texts, operations);
        answer
    }

    /// Only operations that name a vCPU are looked at.
    fn operation(&mut self, text: &[u8]) -> Result<(), Unsure> {
        if memmem::find(text, b"_vcpu\"").is_none() {
            return Ok(());
        }
        let (key, marker) = if self.is_numbered {
            (&b"n"[..], Marker::parse_numbered(text).map(|(_, marker)| marker))
        } else {
            (&b"id"[..], Marker::parse(text))
        };
        let marker = marker.ok_or(Unsure("an operation on a vCPU has another text"))?;
        let Some(Value::Text(name @ (b"create_vcpu" | b"use_vcpu" | b"add_vcpu"))) = marker.get(b"op") else {
            return Ok(());
        };
        self.has_choice |= name == b"use_vcpu";
        match marker.get(key).and_then(|value| value.number()) {
            Some(vcpu) => self.note_vcpu(vcpu),
            None => Err(Unsure("an operation on a vCPU does not say which")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survey(is_numbered: bool, body: &str) -> (Survey, Result<(), Unsure>) {
        let mut survey = Survey::new(is_numbered, None);
        let answer = survey.feed(body.as_bytes()).and_then(|()| survey.finish());
        (survey, answer)
    }

    #[test]
    fn vcpus_and_tasks() {
        let fault = |task: &str, vcpu: u64| {
            format!(
                "            {task}    [000] .....  1.0: kvm_page_fault: vcpu {vcpu} rip 0x1000 address 0x0000000000001000 error_code 0x4\n"
            )
        };
        let create =
            "            vmm-1    [000] .....  1.0: tracing_mark_write: {\"i\":0,\"op\":\"create_vcpu\",\"id\":3}\n";
        let all = [create.to_owned(), fault("vmm-1", 0), fault("vmm-2", 1), fault("vmm-2", 2)].concat();
        let (found, answer) = survey(false, &all);
        assert_eq!(answer, Ok(()));
        assert_eq!((found.highest_vcpu, found.tasks()), (3, vec![(b"vmm-1".to_vec(), 0)]));
        assert!(found.seen.has(Kind::PageFault) && !found.seen.has(Kind::Entry));
        assert!(survey(true, &all).1.is_err());
        assert!(survey(false, &fault("vmm-1", 0)).1.is_err());
    }

    #[test]
    fn numbered_markers() {
        let text = "            init-1    [000] ....  1.0: tracing_mark_write: OP 3 \"op\":\"add_vcpu\",\"n\":2\n";
        let (found, answer) = survey(true, text);
        assert_eq!((answer, found.highest_vcpu), (Ok(()), 2));
    }
}
