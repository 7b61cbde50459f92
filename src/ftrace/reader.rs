//! Reading a trace of any length from chunks of bytes, with constant memory, and counting what is in it.
//!
//! Owns: the cutting into lines (a line may be split over chunks), line numbers, the limit on a line's length, and the
//! counts. Invariant: every line is counted in exactly one of events, opaque, not understood, notes, blank, overlong.

use std::collections::BTreeMap;

use super::columns::Columns;
use super::event::{Event, Outcome};
use super::kernel::Eras;
use super::line::{Line, lost_events};
use super::parts::parts;
use super::scan::trim_end;
use super::wording::Kind;

/// Longest line that is read; a longer one is counted and skipped.
pub const LINE_MAX: usize = 1 << 20;
/// How many lines that were not understood are kept as examples, and how much of each.
const EXAMPLES: usize = 8;
const EXAMPLE_BYTES: usize = 200;
/// Names of other events that are counted apart; beyond these they share one count.
const OPAQUE_NAMES: usize = 1024;

/// Why a line was not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// Number of the line, from 1.
    pub line: u64,
    /// The beginning of its text.
    pub text: Vec<u8>,
}

/// What a trace held.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Lines read, the last one counted when it has no line feed.
    pub lines: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Understood events by kind.
    pub events: [u64; Kind::ALL.len()],
    /// Events of other groups by name.
    pub opaque: BTreeMap<Vec<u8>, u64>,
    /// Lines with a known event whose text is none of its wordings, and lines that are no ftrace text.
    pub not_understood: u64,
    /// The first of them.
    pub examples: Vec<Example>,
    /// Headers and comments.
    pub notes: u64,
    /// Blank lines.
    pub blank: u64,
    /// Lines longer than [`LINE_MAX`].
    pub overlong: u64,
    /// Number of the first of them, 0 when there is none.
    pub first_overlong: u64,
    /// Notes about lost events, and how many events they say (0: a note did not say).
    pub lost_notes: u64,
    /// Events lost as far as the notes say.
    pub lost: u64,
    /// Trace time of the first and of the last event, nanoseconds.
    pub span_ns: Option<(u64, u64)>,
    /// Events of `trace-cmd report -R`: fields in place of the kernel's text.
    pub raw: u64,
    /// Events in the text of libtraceevent's KVM plugin, which prints the role by an old layout.
    pub plugin: u64,
    /// Kernels that can have printed it.
    pub eras: Eras,
    /// Of each kind, the wordings that `eras` was told of, a bit each.
    told: [u16; Kind::ALL.len()],
    /// The names of `opaque` in the order of the text, and how many are counted apart.
    opaque_names: Vec<Vec<u8>>,
    opaque_max: usize,
}

impl Default for Summary {
    fn default() -> Self {
        Self {
            lines: 0,
            bytes: 0,
            events: [0; Kind::ALL.len()],
            opaque: BTreeMap::new(),
            not_understood: 0,
            examples: Vec::new(),
            notes: 0,
            blank: 0,
            overlong: 0,
            first_overlong: 0,
            lost_notes: 0,
            lost: 0,
            span_ns: None,
            raw: 0,
            plugin: 0,
            eras: Eras::default(),
            told: [0; Kind::ALL.len()],
            opaque_names: Vec::new(),
            opaque_max: OPAQUE_NAMES,
        }
    }
}

/// One understood event with where it stood.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Number of its line, from 1.
    pub number: u64,
    /// The split line.
    pub line: &'a Line<'a>,
    /// Its event; None when it is of another group.
    pub event: Option<&'a Event<'a>>,
}

/// Reads chunks; give it every chunk in order, then [`Reader::finish`].
#[derive(Clone, Debug, Default)]
pub struct Reader {
    /// What was read so far.
    pub summary: Summary,
    carry: Vec<u8>,
    skipping: bool,
}

impl Reader {
    /// A reader at the beginning of a trace.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Read the next chunk; `sink` gets every line that names an event.
    pub fn feed(&mut self, chunk: &[u8], sink: &mut impl FnMut(&Record<'_>)) {
        self.summary.bytes += chunk.len() as u64;
        let mut values = Event::default();
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', chunk) {
            let text = &chunk[start..end];
            start = end + 1;
            if self.skipping {
                self.skipping = false;
            } else if self.carry.is_empty() {
                self.line(&mut values, text, sink);
            } else {
                self.keep(text);
                self.flush_carry(sink);
            }
        }
        self.keep(&chunk[start..]);
    }

    /// As [`Reader::feed`] into columns, the whole lines of the chunk split by so many threads. The result is the same.
    pub fn feed_parts(&mut self, chunk: &[u8], threads: usize, columns: &mut Option<Columns>) {
        let sink = |columns: &mut Option<Columns>, record: &Record<'_>| {
            if let Some(columns) = columns.as_mut() {
                columns.push(record);
            }
        };
        if threads < 2 {
            return self.feed(chunk, &mut |record| sink(columns, record));
        }
        let is_in_line = self.skipping || !self.carry.is_empty();
        let from = if is_in_line { memchr::memchr(b'\n', chunk).map_or(chunk.len(), |end| end + 1) } else { 0 };
        let (before, rest) = chunk.split_at(from);
        let (lines, behind) = rest.split_at(memchr::memrchr(b'\n', rest).map_or(0, |end| end + 1));
        self.feed(before, &mut |record| sink(columns, record));
        let has_columns = columns.is_some();
        let read = |part: &[u8]| {
            let mut reader = Reader::new();
            reader.summary.opaque_max = usize::MAX;
            let mut own = has_columns.then(Columns::of_part);
            reader.feed(part, &mut |record| {
                if let Some(own) = own.as_mut() {
                    own.push(record);
                }
            });
            (reader.summary, own)
        };
        let parts = parts(lines, threads);
        let read: Vec<_> = std::thread::scope(|scope| {
            let running: Vec<_> = parts.iter().map(|part| scope.spawn(|| read(part))).collect();
            running.into_iter().map(|one| one.join().unwrap_or_else(|err| std::panic::resume_unwind(err))).collect()
        });
        for (summary, own) in read {
            if let (Some(columns), Some(own)) = (columns.as_mut(), own) {
                columns.absorb(own, self.summary.lines);
            }
            self.summary.absorb(&summary);
        }
        self.feed(behind, &mut |record| sink(columns, record));
    }

    /// Read what is left when the trace ends without a line feed.
    pub fn finish(&mut self, sink: &mut impl FnMut(&Record<'_>)) {
        self.skipping = false;
        if !self.carry.is_empty() {
            self.flush_carry(sink);
        }
    }

    /// Keep a part of a line until its end comes, unless it has grown too long.
    fn keep(&mut self, part: &[u8]) {
        if self.skipping || part.is_empty() {
            return;
        }
        if self.carry.len() + part.len() > LINE_MAX {
            self.carry.clear();
            self.skipping = true;
            self.summary.lines += 1;
            self.summary.too_long();
            return;
        }
        self.carry.extend_from_slice(part);
    }

    fn flush_carry(&mut self, sink: &mut impl FnMut(&Record<'_>)) {
        if self.skipping {
            // The last part made it too long: it is counted, and its end was just seen.
            self.skipping = false;
            return;
        }
        let text = std::mem::take(&mut self.carry);
        self.line(&mut Event::default(), &text, sink);
        self.carry = text;
        self.carry.clear();
    }

    #[inline]
    fn line<'a>(&mut self, values: &mut Event<'a>, text: &'a [u8], sink: &mut impl FnMut(&Record<'_>)) {
        let summary = &mut self.summary;
        summary.lines += 1;
        if text.len() > LINE_MAX {
            summary.too_long();
            return;
        }
        let number = summary.lines;
        let Some(line) = Line::parse(text) else {
            summary.other_line(number, text);
            return;
        };
        let event = match values.read(line.event, line.body) {
            Outcome::Known => {
                summary.events[values.kind as usize] += 1;
                summary.note_era(values);
                if values.wording_index() > 0 || values.kind.wordings()[0].kernels == "raw" {
                    summary.note_wording(values.wording().kernels);
                }
                Some(&*values)
            }
            Outcome::NotUnderstood => {
                summary.not_understood(number, text);
                return;
            }
            Outcome::Opaque => {
                summary.opaque(line.event, 1);
                None
            }
        };
        let first = summary.span_ns.map_or(line.timestamp_ns, |(first, _)| first);
        summary.span_ns = Some((first, line.timestamp_ns));
        sink(&Record { number, line: &line, event });
    }
}

impl Summary {
    /// Count of one kind.
    #[must_use]
    pub fn count(&self, kind: Kind) -> u64 {
        self.events[kind as usize]
    }

    /// The line just counted is longer than any that is read.
    fn too_long(&mut self) {
        self.overlong += 1;
        if self.first_overlong == 0 {
            self.first_overlong = self.lines;
        }
    }

    fn not_understood(&mut self, line: u64, text: &[u8]) {
        self.not_understood += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(Example { line, text: text[..text.len().min(EXAMPLE_BYTES)].to_vec() });
        }
    }

    /// A wording tells of eras once, but for those whose values tell, too.
    #[inline]
    fn note_era(&mut self, event: &Event<'_>) {
        let told = &mut self.told[event.kind as usize];
        let bit = 1_u16 << event.wording_index().min(15);
        if *told & bit == 0 || event.kind == Kind::FastPageFault || event.page().is_some() {
            *told |= bit;
            self.eras.note(event);
        }
    }

    /// Every kind's first wording is a kernel's text, but for markers and the like.
    fn note_wording(&mut self, kernels: &str) {
        self.raw += u64::from(kernels.starts_with("raw"));
        self.plugin += u64::from(kernels.starts_with("plugin"));
    }

    fn opaque(&mut self, name: &[u8], times: u64) {
        if let Some(count) = self.opaque.get_mut(name) {
            *count += times;
        } else if self.opaque_names.len() < self.opaque_max {
            self.opaque_names.push(name.to_vec());
            self.opaque.insert(name.to_vec(), times);
        } else {
            *self.opaque.entry(b"(others)".to_vec()).or_default() += times;
        }
    }

    /// Take in what was counted of the part that comes next.
    fn absorb(&mut self, part: &Summary) {
        if self.first_overlong == 0 && part.first_overlong > 0 {
            self.first_overlong = self.lines + part.first_overlong;
        }
        for example in part.examples.iter().take(EXAMPLES - self.examples.len()) {
            self.examples.push(Example { line: self.lines + example.line, text: example.text.clone() });
        }
        self.lines += part.lines;
        self.bytes += part.bytes;
        for (mine, theirs) in self.events.iter_mut().zip(part.events) {
            *mine += theirs;
        }
        for name in &part.opaque_names {
            self.opaque(name, part.opaque.get(name).copied().unwrap_or_default());
        }
        self.not_understood += part.not_understood;
        self.notes += part.notes;
        self.blank += part.blank;
        self.overlong += part.overlong;
        self.lost_notes += part.lost_notes;
        self.lost = self.lost.saturating_add(part.lost);
        self.span_ns = match (self.span_ns, part.span_ns) {
            (Some((first, _)), Some((_, last))) => Some((first, last)),
            (mine, theirs) => mine.or(theirs),
        };
        self.raw += part.raw;
        self.plugin += part.plugin;
        self.eras.exclude(part.eras);
    }

    /// A line that names no event.
    fn other_line(&mut self, number: u64, text: &[u8]) {
        let trimmed = trim_end(text);
        if trimmed.is_empty() {
            self.blank += 1;
        } else if let Some(lost) = lost_events(trimmed) {
            self.lost_notes += 1;
            self.lost = self.lost.saturating_add(lost);
        } else if is_note(trimmed) {
            self.notes += 1;
        } else {
            self.not_understood(number, text);
        }
    }
}

/// `# ...` of tracefs, `cpus=2`, `CPU 0 is empty`, `version = 6` of trace-cmd.
fn is_note(text: &[u8]) -> bool {
    text.starts_with(b"#")
        || text.starts_with(b"cpus=")
        || text.starts_with(b"version =")
        || (text.starts_with(b"CPU ") && text.ends_with(b" is empty"))
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Summary {
        /// What was told of eras is no result.
        fn without_told(&self) -> Summary {
            Summary { told: [0; Kind::ALL.len()], ..self.clone() }
        }
    }

    const TRACE: &[u8] = b"# tracer: nop\n\n            init-1     [000] ....     2.120776: kvm_page_fault: address 100000 error_code 6\r\n\
CPU:0 [LOST 42 EVENTS]\n            init-1     [000] .N..     2.133073: kvm_mmu_get_page: sp gen 0 gfn 0 l3 q0 direct wux nxe ad root 0 sync\0 new\n\
            init-1     [000] ....     2.2: sched_switch: whatever\n            init-1     [000] ....     2.3: kvm_page_fault: addr\n\
garbage\n            init-1     [000] ....     2.412345: kvm_mmu_set_accessed_bit: gpa 1090a0";

    fn read(trace: &[u8], chunk: usize) -> (Summary, Vec<(u64, Option<Kind>)>) {
        let mut reader = Reader::new();
        let mut seen = Vec::new();
        let mut sink = |record: &Record<'_>| seen.push((record.number, record.event.map(|event| event.kind)));
        for part in trace.chunks(chunk) {
            reader.feed(part, &mut sink);
        }
        reader.finish(&mut sink);
        (reader.summary, seen)
    }

    #[test]
    fn every_line_is_counted_once_however_it_is_cut() {
        for chunk in [1, 2, 7, 64, 4096] {
            let (summary, seen) = read(TRACE, chunk);
            assert_eq!(summary.lines, 9);
            assert_eq!(summary.bytes, TRACE.len() as u64);
            assert_eq!((summary.notes, summary.blank, summary.lost_notes, summary.lost), (1, 1, 1, 42));
            assert_eq!(summary.not_understood, 2);
            assert_eq!(summary.examples.iter().map(|example| example.line).collect::<Vec<_>>(), [7, 8]);
            assert_eq!(summary.opaque.get(&b"sched_switch"[..]), Some(&1));
            assert_eq!(summary.span_ns, Some((2_120_776_000, 2_412_345_000)));
            assert_eq!(summary.eras.iter().map(super::super::kernel::Era::name).collect::<Vec<_>>(), ["v5.0"]);
            let kinds =
                [(3, Some(Kind::PageFault)), (5, Some(Kind::GetPage)), (6, None), (9, Some(Kind::SetAccessedBit))];
            assert_eq!(seen, kinds);
        }
    }

    #[test]
    fn threads_do_not_matter() {
        let mut trace = TRACE.to_vec();
        trace.push(b'\n');
        for i in 0..1100 {
            let name = i % 1050;
            trace.extend_from_slice(format!("            t-{i}     [000] ....     2.4: event_{name}: x\n").as_bytes());
        }
        trace.extend_from_slice(TRACE);
        let read = |size: usize, threads: usize| {
            let (mut reader, mut columns) = (Reader::new(), Some(Columns::default()));
            for part in trace.chunks(size) {
                reader.feed_parts(part, threads, &mut columns);
            }
            let mut columns = columns.expect("columns");
            reader.finish(&mut |record| columns.push(record));
            let tasks = columns.tasks().to_vec();
            format!("{:?} {:?} {tasks:?}", reader.summary.without_told(), columns.take())
        };
        let whole = read(trace.len(), 1);
        for size in [trace.len(), 40_000, 8192, 1000, 77] {
            for threads in [2, 3, 7] {
                assert_eq!(read(size, threads), whole, "{size} {threads}");
            }
        }
    }

    #[test]
    fn a_line_of_ten_megabytes_is_counted_and_not_kept() {
        let mut trace = vec![b'x'; 10 << 20];
        trace.push(b'\n');
        trace.extend_from_slice(b"            init-1     [000] ....     2.4: kvm_mmu_set_accessed_bit: gpa 1090a0\n");
        for chunk in [1000, 1 << 16, 64 << 20] {
            let (summary, seen) = read(&trace, chunk);
            assert_eq!((summary.lines, summary.overlong, summary.not_understood), (2, 1, 0));
            assert_eq!(summary.first_overlong, 1);
            assert_eq!(seen, [(2, Some(Kind::SetAccessedBit))]);
        }
        let mut reader = Reader::new();
        for part in trace.chunks(1 << 16) {
            reader.feed(part, &mut |_| ());
            assert!(reader.carry.capacity() <= 2 * LINE_MAX);
        }
    }

    #[test]
    fn lost_events_beyond_any_number_are_many() {
        let text = b"CPU:0 [LOST 18446744073709551615 EVENTS]\nCPU:1 [LOST 42 EVENTS]\n";
        let (summary, _) = read(text, 64);
        assert_eq!((summary.lost_notes, summary.lost, summary.not_understood), (2, u64::MAX, 0));
    }

    #[test]
    fn names_of_other_events_are_bounded() {
        let mut trace = Vec::new();
        for i in 0..3000 {
            trace.extend_from_slice(format!("            init-1     [000] ....     2.4: event_{i}: x\n").as_bytes());
        }
        let (summary, _) = read(&trace, 4096);
        assert_eq!(summary.opaque.len(), OPAQUE_NAMES + 1);
        assert_eq!(summary.opaque.values().sum::<u64>(), 3000);
    }
}
