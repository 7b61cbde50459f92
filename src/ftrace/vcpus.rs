//! When each vCPU was in the guest, halted, or out of it, from the events of its task.
//!
//! Owns: what counts as a vCPU that waits. A vCPU is known by its task and its number, since several VMs have a vCPU 0;
//! a halted vCPU does not wait. A wait ends at the vCPU's next entry; in a trace without entries, at the next event of
//! its task that is no work of the MMU. What lost events cut, and what ends before it begins, is only counted.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use super::scan::Cursor;

/// What an event is to a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// `kvm_entry`.
    Entry,
    /// `kvm_exit`.
    Exit,
    /// `kvm_page_fault`.
    Fault,
    /// `kvm_userspace_exit`.
    UserSpace,
    /// Work of the MMU, or of the part of a fault that handles it.
    Mmu,
    /// Anything else.
    Other,
}

/// A vCPU that was in one state for some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its number; None where no event names it.
    pub vcpu: Option<u32>,
    /// Its task.
    pub task: u32,
    /// Nanoseconds.
    pub start_ns: u64,
    /// Nanoseconds.
    pub end_ns: u64,
    /// Of a wait, the line that it began with.
    pub line: u64,
    /// Of a wait, which of the reasons; 0 otherwise.
    pub reason: u32,
}

#[derive(Clone, Debug, Default)]
struct Lane {
    vcpu: Option<u32>,
    waiting: Option<Span>,
    halted: Option<u64>,
    entered: Option<u64>,
}

#[derive(Clone, Debug, Default)]
struct Task {
    /// The vCPU that it ran last: v5.x names it at entries only.
    vcpu: Option<u32>,
    lanes: Vec<Lane>,
}

impl Task {
    fn lane(&mut self) -> &mut Lane {
        let vcpu = self.vcpu;
        let at = self.lanes.iter().position(|lane| lane.vcpu == vcpu).unwrap_or_else(|| {
            self.lanes.push(Lane { vcpu, ..Lane::default() });
            self.lanes.len() - 1
        });
        &mut self.lanes[at]
    }
}

/// The vCPUs of a trace.
#[derive(Clone, Debug)]
pub struct Vcpus {
    /// Out of the guest, from the exit (or fault) to the next entry.
    pub waits: Vec<Span>,
    /// In the guest.
    pub runs: Vec<Span>,
    /// Halted.
    pub halts: Vec<Span>,
    /// Waits, runs and halts that lost events or disorder cut.
    pub cut: u64,
    /// The trace has entries to the guest.
    pub has_entries: bool,
    /// Which tasks have a vCPU of this number.
    pub tasks_of: BTreeMap<u32, Vec<u32>>,
    reasons: Vec<String>,
    reason_numbers: FxHashMap<Vec<u8>, u32>,
    tasks: Vec<Task>,
}

const PAGE_FAULT: u32 = 0;
const USER_SPACE: u32 = 1;

impl Default for Vcpus {
    fn default() -> Self {
        Self {
            waits: Vec::new(),
            runs: Vec::new(),
            halts: Vec::new(),
            cut: 0,
            has_entries: false,
            tasks_of: BTreeMap::new(),
            reasons: vec!["page_fault".to_owned(), "user space".to_owned(), "exit".to_owned()],
            reason_numbers: FxHashMap::default(),
            tasks: Vec::new(),
        }
    }
}

/// Where nothing says why.
const EXIT: u32 = 2;

impl Vcpus {
    /// Take in an event.
    pub fn event(&mut self, task: u32, sign: Sign, number: u64, time: u64, body: &[u8]) {
        let at = task as usize;
        if at >= self.tasks.len() {
            self.tasks.resize_with(at + 1, Task::default);
        }
        match sign {
            Sign::Entry | Sign::Exit | Sign::Fault => {}
            Sign::Mmu => return,
            Sign::UserSpace | Sign::Other => {
                if sign == Sign::UserSpace
                    && let Some(wait) = &mut self.tasks[at].lane().waiting
                {
                    wait.reason = USER_SPACE;
                }
                if !self.has_entries {
                    self.resume(at, time);
                }
                return;
            }
        }
        if let Some(vcpu) = vcpu_of(body) {
            self.tasks[at].vcpu = Some(vcpu);
            let tasks = self.tasks_of.entry(vcpu).or_default();
            if !tasks.contains(&task) {
                tasks.push(task);
            }
        }
        let lane = self.tasks[at].lane();
        let vcpu = lane.vcpu;
        if sign == Sign::Entry {
            let halted = lane.halted.take();
            // An entry without an exit before it: nothing is known of the time between.
            lane.entered = Some(time);
            self.has_entries = true;
            self.resume(at, time);
            let span = halted.and_then(|start| self.span(vcpu, task, start, time));
            self.halts.extend(span);
            return;
        }
        let entered = lane.entered.take();
        let span = entered.and_then(|start| self.span(vcpu, task, start, time));
        self.runs.extend(span);
        if sign == Sign::Fault && !self.has_entries {
            self.resume(at, time);
        }
        let said = if sign == Sign::Exit { reason_of(body) } else { None };
        if said.is_some_and(is_halted) {
            self.tasks[at].lane().halted = Some(time);
            return;
        }
        let reason = match said {
            _ if sign == Sign::Fault => PAGE_FAULT,
            Some(said) => self.reason(said),
            None => EXIT,
        };
        let lane = self.tasks[at].lane();
        let wait = lane.waiting.get_or_insert(Span { vcpu, task, start_ns: time, end_ns: time, line: number, reason });
        if sign == Sign::Fault {
            wait.reason = PAGE_FAULT;
        }
    }

    /// Events were lost: how long anything lasts is not known.
    pub fn lost(&mut self) {
        for lane in self.tasks.iter_mut().flat_map(|task| &mut task.lanes) {
            let cut = [lane.waiting.take().is_some(), lane.halted.take().is_some(), lane.entered.take().is_some()];
            self.cut += cut.into_iter().map(u64::from).sum::<u64>();
        }
    }

    /// The trace ends: the waits come in order of time.
    pub fn finish(&mut self) {
        self.waits.sort_by_key(|wait| (wait.start_ns, wait.line));
    }

    /// How many vCPUs wait now.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        self.tasks.iter().flat_map(|task| &task.lanes).filter(|lane| lane.waiting.is_some()).count()
    }

    /// Why vCPUs were out of the guest, by number.
    #[must_use]
    pub fn reasons(&self) -> &[String] {
        &self.reasons
    }

    fn reason(&mut self, said: &[u8]) -> u32 {
        if let Some(number) = self.reason_numbers.get(said) {
            return *number;
        }
        let number = u32::try_from(self.reasons.len()).unwrap_or(EXIT);
        self.reasons.push(String::from_utf8_lossy(said).to_lowercase());
        self.reason_numbers.insert(said.to_vec(), number);
        number
    }

    fn span(&mut self, vcpu: Option<u32>, task: u32, start_ns: u64, end_ns: u64) -> Option<Span> {
        if start_ns > end_ns {
            self.cut += 1;
            return None;
        }
        Some(Span { vcpu, task, start_ns, end_ns, line: 0, reason: 0 })
    }

    fn resume(&mut self, at: usize, time: u64) {
        let Some(wait) = self.tasks[at].lane().waiting.take() else { return };
        if wait.start_ns > time {
            self.cut += 1;
            return;
        }
        self.waits.push(Span { end_ns: time, ..wait });
    }
}

fn is_halted(reason: &[u8]) -> bool {
    [&b"hlt"[..], b"mwait", b"halt"].iter().any(|halted| reason.eq_ignore_ascii_case(halted))
}

/// The number behind `vcpu ` or `vcpu_id=`.
fn vcpu_of(body: &[u8]) -> Option<u32> {
    places(body, b"vcpu").find_map(|rest| {
        let mut cursor = Cursor::new(rest);
        if !cursor.has(b" ") {
            cursor.literal(b"_id=")?;
        }
        let before = cursor.rest().len();
        let number = cursor.decimal()?;
        let is_whole = before - cursor.rest().len() <= 9 && !cursor.rest().first().is_some_and(|byte| is_word(*byte));
        u32::try_from(number).ok().filter(|_| is_whole)
    })
}

/// The word behind `reason `, without `kvm_`.
fn reason_of(body: &[u8]) -> Option<&[u8]> {
    places(body, b"reason ").find_map(|rest| {
        let end = rest.iter().position(u8::is_ascii_whitespace).unwrap_or(rest.len());
        let word = &rest[..end];
        let bare = word.strip_prefix(b"kvm_").filter(|bare| !bare.is_empty()).unwrap_or(word);
        (!bare.is_empty()).then_some(bare)
    })
}

/// What stands behind each place where a word begins so.
fn places<'a>(body: &'a [u8], word: &'static [u8]) -> impl Iterator<Item = &'a [u8]> {
    memchr::memmem::find_iter(body, word)
        .filter(|&at| at == 0 || !is_word(body[at - 1]))
        .map(move |at| &body[at + word.len()..])
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_body() {
        assert_eq!(vcpu_of(b"vcpu 3, rip 0x1000"), Some(3));
        assert_eq!(vcpu_of(b"guest_rip=0x1 vcpu_id=12 x"), Some(12));
        assert_eq!(vcpu_of(b"xvcpu 3 vcpu 1234567890 vcpu 4x vcpu 5"), Some(5));
        assert_eq!(vcpu_of(b"vcpu"), None);
        assert_eq!(reason_of(b"vcpu 0 reason kvm_npf rip"), Some(&b"npf"[..]));
        assert_eq!(reason_of(b"reason kvm_"), Some(&b"kvm_"[..]));
        assert_eq!(reason_of(b"unreason x reason "), None);
        assert!(is_halted(b"HLT") && !is_halted(b"hlt2"));
    }

    #[test]
    fn a_wait_lasts_from_exit_to_entry() {
        let mut vcpus = Vcpus::default();
        vcpus.event(0, Sign::Entry, 1, 10, b"vcpu 0, rip 0x1");
        vcpus.event(0, Sign::Exit, 2, 30, b"reason npf rip 0x1");
        vcpus.event(0, Sign::Fault, 3, 31, b"address 1 error_code 4");
        vcpus.event(0, Sign::Other, 4, 35, b"");
        vcpus.event(0, Sign::Entry, 5, 40, b"vcpu 0, rip 0x1");
        vcpus.event(0, Sign::Exit, 6, 50, b"reason hlt rip 0x1");
        vcpus.event(0, Sign::Entry, 7, 45, b"vcpu 0, rip 0x1");
        vcpus.finish();
        let wait = Span { vcpu: Some(0), task: 0, start_ns: 30, end_ns: 40, line: 2, reason: PAGE_FAULT };
        assert_eq!(vcpus.waits, [wait]);
        assert_eq!(vcpus.runs.iter().map(|run| (run.start_ns, run.end_ns)).collect::<Vec<_>>(), [(10, 30), (40, 50)]);
        assert_eq!((vcpus.halts.len(), vcpus.cut, vcpus.unfinished()), (0, 1, 0));
    }

    #[test]
    fn without_entries_the_next_event_ends_a_wait() {
        let mut vcpus = Vcpus::default();
        vcpus.event(4, Sign::Fault, 1, 10, b"address 1 error_code 4");
        vcpus.event(4, Sign::Mmu, 2, 12, b"");
        vcpus.event(4, Sign::Other, 3, 20, b"");
        vcpus.event(4, Sign::Fault, 4, 30, b"address 1 error_code 4");
        vcpus.lost();
        assert_eq!(vcpus.waits.iter().map(|wait| (wait.start_ns, wait.end_ns)).collect::<Vec<_>>(), [(10, 20)]);
        assert_eq!((vcpus.cut, vcpus.unfinished()), (1, 0));
    }
}
