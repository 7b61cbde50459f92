//! Who did what when: the vCPUs of a trace, and of its other events those that work on the MMU is made of.
//!
//! Owns: which events may change what a task is in the middle of, so that whoever puts pieces of work together is given
//! only these. The names come from there ([`Names`]). Invariant: an event is passed over only if it would change nothing:
//! a task without open work goes on to something else, or goes on with work that it has not begun. What a fault is for
//! is told late, before the next event of its task that is passed on.
//!
//! Lines are split by threads, part by part; what they say is taken in in the order of the text, so that the result does
//! not depend on the parts.

use rustc_hash::FxHashMap;

use super::line::{Line, lost_events};
pub use super::meanings::Names;
use super::meanings::{
    BEGINS, CHANGED, CONTINUES, COUNTED, Class, Classes, ELSEWHERE, ENTRY, EXIT, FAULT, GET_PAGE, MARKED_UPDATE,
    MARKER, RETURNS, SLOT, ZAP,
};
use super::parts::{Cutter, parts};
use super::scan::trim_end;
use super::vcpus::Vcpus;
pub use super::window::Window;

/// Text below this is not worth threads.
const PART_MIN: usize = 1 << 16;

/// A line as far as it counts here.
enum Said<'a> {
    Event { number: u64, line: Line<'a>, class: Class },
    Lost,
    Other,
}

/// What is taken in later, by whom the work is put together.
pub const IS_OUTSIDE: u8 = 1;
/// Events were lost here.
pub const IS_LOST: u8 = 1 << 1;
/// Passed on because it is counted: it changes no work.
pub const IS_COUNTED_ONLY: u8 = 1 << 2;
/// The host is an Intel one, as far as is known by then.
pub const IS_EPT: u8 = 1 << 3;

/// An event that is passed on; texts are places in [`Passed::text`].
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// Number of its line, from 1.
    pub number: u64,
    /// Its task.
    pub task: u32,
    /// Nanoseconds.
    pub time_ns: u64,
    /// `IS_...`.
    pub flags: u8,
    name: (usize, usize),
    body: (usize, usize),
}

/// Events that are passed on, in order.
#[derive(Clone, Debug, Default)]
pub struct Passed {
    /// The events.
    pub events: Vec<Event>,
    text: Vec<u8>,
}

impl Passed {
    /// The name of an event of these.
    #[must_use]
    pub fn name(&self, event: &Event) -> &[u8] {
        &self.text[event.name.0..event.name.1]
    }

    /// The text of an event of these.
    #[must_use]
    pub fn body(&self, event: &Event) -> &[u8] {
        &self.text[event.body.0..event.body.1]
    }

    fn push(&mut self, number: u64, task: u32, time_ns: u64, flags: u8, name: &[u8], body: &[u8]) {
        let name = self.keep(name);
        let body = self.keep(body);
        self.events.push(Event { number, task, time_ns, flags, name, body });
    }

    fn keep(&mut self, text: &[u8]) -> (usize, usize) {
        let from = self.text.len();
        self.text.extend_from_slice(text);
        (from, self.text.len())
    }
}

/// The last event that said what a task does, not yet passed on.
#[derive(Clone, Debug)]
struct Untold {
    number: u64,
    time_ns: u64,
    flags: u8,
    name: &'static [u8],
    body: Vec<u8>,
}

#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
struct Task {
    name: String,
    is_inside: bool,
    is_recovery: bool,
    /// It may be in the middle of work.
    is_open: bool,
    /// Functions that it may be in, of which returns may tell.
    functions: u64,
    is_in_fault: bool,
    is_ending: bool,
    untold: Option<Untold>,
}

/// The activity of a trace, chunk by chunk.
#[derive(Clone, Debug)]
pub struct Activity {
    /// Its vCPUs.
    pub vcpus: Vcpus,
    /// Events inside the window, and outside.
    pub events: u64,
    /// Events outside the window.
    pub outside: u64,
    /// Lines that are neither events nor comments.
    pub other_lines: u64,
    /// Trace time of the earliest and the latest event, nanoseconds.
    pub span_ns: Option<(u64, u64)>,
    classes: Classes,
    window: Option<Window>,
    cutter: Cutter,
    lines: u64,
    tasks: Vec<Task>,
    task_numbers: FxHashMap<Vec<u8>, u32>,
    last_task: u32,
    /// Functions whose return was seen.
    returned: u64,
    is_ept: bool,
    passed: Passed,
}

impl Activity {
    /// Nothing read yet.
    #[must_use]
    pub fn new(names: Names, window: Option<Window>) -> Self {
        Self {
            vcpus: Vcpus::default(),
            events: 0,
            outside: 0,
            other_lines: 0,
            span_ns: None,
            classes: Classes::new(names),
            window,
            cutter: Cutter::default(),
            lines: 0,
            tasks: Vec::new(),
            task_numbers: FxHashMap::default(),
            last_task: 0,
            returned: 0,
            is_ept: false,
            passed: Passed::default(),
        }
    }

    /// Read the next chunk, split by so many threads; gives the events that are passed on.
    pub fn feed(&mut self, chunk: &[u8], threads: usize) -> Passed {
        let mut cutter = std::mem::take(&mut self.cutter);
        cutter.feed(chunk, &mut |lines| self.take_in(lines, threads));
        self.cutter = cutter;
        std::mem::take(&mut self.passed)
    }

    /// The trace ends: reads what is left of its last line.
    pub fn finish(&mut self) -> Passed {
        let mut cutter = std::mem::take(&mut self.cutter);
        cutter.finish(&mut |lines| self.take_in(lines, 1));
        self.vcpus.finish();
        std::mem::take(&mut self.passed)
    }

    /// Names of the tasks, by number.
    pub fn tasks(&self) -> impl Iterator<Item = &str> {
        self.tasks.iter().map(|task| task.name.as_str())
    }

    fn take_in(&mut self, lines: &[u8], threads: usize) {
        let threads = if lines.len() < PART_MIN { 1 } else { threads };
        let parts = parts(lines, threads);
        let classes = &self.classes;
        let said: Vec<(u64, Vec<Said<'_>>)> = if let [part] = parts[..] {
            vec![split(classes, part)]
        } else {
            std::thread::scope(|scope| {
                let running: Vec<_> = parts.iter().map(|part| scope.spawn(|| split(classes, part))).collect();
                running.into_iter().map(|one| one.join().unwrap_or_else(|err| std::panic::resume_unwind(err))).collect()
            })
        };
        for (count, part) in said {
            for one in &part {
                match one {
                    Said::Event { number, line, class } => self.line(self.lines + number, line, *class),
                    Said::Lost => self.lost(),
                    Said::Other => self.other_lines += 1,
                }
            }
            self.lines += count;
        }
    }

    fn lost(&mut self) {
        self.vcpus.lost();
        for task in &mut self.tasks {
            task.is_open = false;
            task.functions = 0;
        }
        self.passed.push(0, 0, 0, IS_LOST, b"", b"");
    }

    fn line(&mut self, number: u64, line: &Line<'_>, class: Class) {
        let task = self.task(line.task);
        let time = line.timestamp_ns;
        if let Some(window) = &self.window
            && !(self.tasks[task as usize].is_inside && window.has(line.cpu, time))
        {
            self.outside += 1;
            if class.is(MARKER | SLOT) {
                self.passed.push(number, task, time, IS_OUTSIDE, line.event, line.body);
            }
            return;
        }
        self.events += 1;
        let (first, last) = self.span_ns.unwrap_or((time, time));
        self.span_ns = Some((first.min(time), last.max(time)));
        self.work(number, task, time, line, class);
        self.vcpus.event(task, class.sign(), number, time, line.body);
    }

    /// Pass the event on, if it may change what its task is in the middle of.
    fn work(&mut self, number: u64, task: u32, time: u64, line: &Line<'_>, class: Class) {
        if class.is(EXIT) && !self.is_ept {
            self.is_ept = memchr::memmem::find(line.body, b"reason EPT_").is_some();
        }
        let flags = if self.is_ept { IS_EPT } else { 0 };
        let now = &mut self.tasks[task as usize];
        if class.is(FAULT | ENTRY | EXIT) {
            now.is_in_fault = class.is(FAULT);
        }
        let is_passed = if class.is(RETURNS) {
            self.returned |= class.function;
            now.functions &= !class.function;
            true
        } else if class.is(MARKER) && marks_return(&self.classes.names, line.body) {
            now.functions &= !MARKED_UPDATE;
            true
        } else if class.is(MARKER) {
            if memchr::memmem::find(line.body, b"memslot").is_some() {
                now.is_open = true;
                now.functions |= MARKED_UPDATE;
                let returns = line.body.starts_with(self.classes.names.returning_mark.as_bytes());
                self.returned |= if returns { MARKED_UPDATE } else { 0 };
            } else if now.functions & self.returned == 0 {
                now.is_open = false;
                now.functions = 0;
            }
            now.is_ending |=
                self.classes.names.ends.iter().any(|word| memchr::memmem::find(line.body, word.as_bytes()).is_some());
            now.is_in_fault = false;
            true
        } else if class.is(BEGINS) {
            now.is_open = true;
            now.functions |= class.function;
            true
        } else if class.is(CONTINUES) {
            let begins = class.is(ZAP)
                || (class.is(CHANGED)
                    && (now.is_recovery || now.is_ending || (now.is_in_fault && splits_large_leaf(line.body))));
            let is_passed = now.is_open || begins;
            now.is_open = is_passed;
            is_passed
        } else if class.is(GET_PAGE) {
            now.is_open
        } else if class.is(ELSEWHERE) {
            let is_passed = now.is_open && now.functions & self.returned == 0;
            if is_passed {
                now.is_open = false;
                now.functions = 0;
            } else if class.is(FAULT | ENTRY | EXIT) {
                let name: &[u8] = if class.is(FAULT) { b"kvm_page_fault" } else { b"kvm_entry" };
                let body = if class.is(FAULT) { line.body.to_vec() } else { Vec::new() };
                now.untold = Some(Untold { number, time_ns: time, flags, name, body });
            }
            is_passed
        } else {
            false
        };
        if is_passed {
            if let Some(untold) = now.untold.take() {
                self.passed.push(untold.number, task, untold.time_ns, untold.flags, untold.name, &untold.body);
            }
            self.passed.push(number, task, time, flags, line.event, line.body);
        } else if class.is(COUNTED) {
            self.passed.push(number, task, time, flags | IS_COUNTED_ONLY, line.event, line.body);
        }
    }

    fn task(&mut self, name: &[u8]) -> u32 {
        // Lines of one task come in rows.
        if let Some(last) = self.tasks.get(self.last_task as usize)
            && last.name.as_bytes() == name
        {
            return self.last_task;
        }
        self.last_task = if let Some(number) = self.task_numbers.get(name) { *number } else { self.new_task(name) };
        self.last_task
    }

    fn new_task(&mut self, name: &[u8]) -> u32 {
        let text = String::from_utf8_lossy(name).into_owned();
        // Names that differ in what is no text are one.
        let number = match self.task_numbers.get(text.as_bytes()) {
            Some(number) => *number,
            None => u32::try_from(self.tasks.len()).unwrap_or(u32::MAX),
        };
        if number as usize == self.tasks.len() {
            let is_inside = self.window.as_ref().is_none_or(|window| window.has_task(name));
            self.tasks.push(Task {
                is_recovery: text.starts_with(&self.classes.names.recovery_task),
                name: text.clone(),
                is_inside,
                is_open: false,
                functions: 0,
                is_in_fault: false,
                is_ending: false,
                untold: None,
            });
            self.task_numbers.insert(text.into_bytes(), number);
        }
        self.task_numbers.insert(name.to_vec(), number);
        number
    }
}

/// A recorder's marker says that the update it told of has returned.
fn marks_return(names: &Names, body: &[u8]) -> bool {
    body.strip_prefix(names.returning_mark.as_bytes()).is_some_and(|rest| {
        let digits = rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
        (1..=15).contains(&digits) && rest[digits..].starts_with(names.return_of_mark.as_bytes())
    })
}

/// The change of an entry above level 1 from a large leaf to something else.
fn splits_large_leaf(body: &[u8]) -> bool {
    const LEVEL: &[u8] = b" level ";
    const OLD: &[u8] = b" old_spte ";
    const PRESENT_LARGE: u64 = 1 << 11 | 1 << 7;
    let Some(at) = memchr::memmem::find(body, LEVEL) else { return false };
    let rest = &body[at + LEVEL.len()..];
    let [level, rest @ ..] = rest else { return false };
    let Some(rest) = rest.strip_prefix(OLD) else { return true };
    let mut cursor = super::scan::Cursor::new(rest);
    *level != b'1' && cursor.hex().is_none_or(|old| old & PRESENT_LARGE == PRESENT_LARGE)
}

/// Lines one by one, as far as they count; how many there are.
fn split<'a>(classes: &Classes, text: &'a [u8]) -> (u64, Vec<Said<'a>>) {
    let mut said = Vec::with_capacity(text.len() / 100);
    let mut number = 0;
    let mut start = 0;
    while start < text.len() {
        let end = memchr::memchr(b'\n', &text[start..]).map_or(text.len(), |at| start + at);
        let line = &text[start..end];
        start = end + 1;
        number += 1;
        if let Some(line) = Line::parse(line) {
            let line = marker_of_print(line);
            let class = classes.of(line.event);
            said.push(Said::Event { number, line, class });
            continue;
        }
        let trimmed = trim_end(line);
        if lost_events(trimmed).is_some() {
            said.push(Said::Lost);
        } else if !trimmed.trim_ascii().is_empty() && !trimmed.starts_with(b"#") {
            said.push(Said::Other);
        }
    }
    (number, said)
}

/// `trace-cmd report` calls what a program wrote into the trace `print`.
fn marker_of_print(line: Line<'_>) -> Line<'_> {
    if line.event != b"print" {
        return line;
    }
    let body = line.body;
    let marker = body.strip_prefix(b"tracing_mark_write: ").or_else(|| {
        let rest = body.strip_prefix(b"ip=0x")?;
        let digits = rest.iter().position(|byte| !byte.is_ascii_digit() && !(b'a'..=b'f').contains(byte))?;
        rest[digits..].strip_prefix(b" buf=").filter(|_| digits > 0)
    });
    marker.map_or(line, |body| Line { event: b"tracing_mark_write", body, ..line })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        let all = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        Names {
            begins: all("set_memslot memslots_updated"),
            continues: all("kvm_mmu_prepare_zap_page commit_zap kvm_tdp_mmu_spte_changed"),
            returns: vec![("set_memslot_ret".to_owned(), "set_memslot".to_owned())],
            elsewhere: all("kvm_ tracing_mark_write mark_mmio"),
            not_elsewhere: all("kvm_mmu_prepare kvm_mmu_sync_page"),
            of_fault: all("kvm_mmu_ mark_mmio"),
            counted: Vec::new(),
            returning_mark: "{\"i\":".to_owned(),
            return_of_mark: ",\"ev\":\"set_memslot_ret\"".to_owned(),
            ends: all("\"end\" destroy_vm"),
            recovery_task: "kvm-nx-".to_owned(),
        }
    }

    const TEXT: &[u8] = b"            a-1     [000] ....     1.000001: kvm_entry: vcpu 0, rip 0x1\n\
            a-1     [000] ....     1.000002: kvm_exit: vcpu 0 reason EPT_VIOLATION rip 0x1\n\
            a-1     [000] ....     1.000003: kvm_page_fault: vcpu 0 rip 0x1 address 0x1 error_code 0x4\n\
            b-2     [001] ....     1.000004: set_memslot: (kvm_set_memslot+0x0/0x640 [kvm]) change=1\n\
            a-1     [000] ....     1.000005: kvm_mmu_set_spte: x\n\
            a-1     [000] ....     1.000006: commit_zap: (x+0x0/0x1)\n\
            b-2     [001] ....     1.000007: commit_zap: (x+0x0/0x1)\n\
            a-1     [000] ....     1.000008: kvm_mmu_prepare_zap_page: sp\n\
            b-2     [001] ....     1.000009: kvm_mmio: x\n\
            b-2     [001] ....     1.000010: commit_zap: (x+0x0/0x1)\n\
garbage\n\
            a-1     [000] ....     1.000011: kvm_entry: vcpu 0, rip 0x1";

    fn read(size: usize, threads: usize) -> (Activity, Vec<(u64, String, u8)>) {
        let mut activity = Activity::new(names(), None);
        let mut seen = Vec::new();
        let mut take = |passed: &Passed| {
            for event in &passed.events {
                seen.push((event.number, String::from_utf8_lossy(passed.name(event)).into_owned(), event.flags));
            }
        };
        for chunk in TEXT.chunks(size) {
            take(&activity.feed(chunk, threads));
        }
        take(&activity.finish());
        (activity, seen)
    }

    #[test]
    fn only_what_changes_work_is_passed_on() {
        let (activity, seen) = read(TEXT.len(), 1);
        let seen: Vec<_> = seen.iter().map(|(number, name, flags)| (*number, name.as_str(), *flags)).collect();
        let expected = [
            (4, "set_memslot", IS_EPT),
            (7, "commit_zap", IS_EPT),
            (3, "kvm_page_fault", IS_EPT),
            (8, "kvm_mmu_prepare_zap_page", IS_EPT),
            (9, "kvm_mmio", IS_EPT),
            (11 + 1, "kvm_entry", IS_EPT),
        ];
        assert_eq!(seen, expected);
        assert_eq!((activity.events, activity.other_lines, activity.vcpus.waits.len()), (11, 1, 1));
        assert_eq!(activity.span_ns, Some((1_000_001_000, 1_000_011_000)));
        assert_eq!(activity.tasks().collect::<Vec<_>>(), ["a-1", "b-2"]);
    }

    #[test]
    fn chunks_and_parts_do_not_matter() {
        let (whole, seen) = read(TEXT.len(), 1);
        for size in 1..200 {
            let (activity, other) = read(size, 3);
            assert_eq!(other, seen, "{size}");
            assert_eq!(activity.vcpus.waits, whole.vcpus.waits);
        }
        let classes = Classes::new(names());
        for count in 2..20 {
            let mut all = 0;
            for part in parts(TEXT, count) {
                all += split(&classes, part).0;
            }
            assert_eq!(all, 12);
        }
    }
}
