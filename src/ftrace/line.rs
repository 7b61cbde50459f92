//! One line of ftrace text, split without copying: `TASK-PID [CPU] FLAGS TIMESTAMP: event: body`.
//!
//! Reads the layouts of tracefs (`trace`, `trace_pipe`) and of `trace-cmd report`, which has no flags by default and pads
//! the event's name. A line that is not of this form is `None`: a header, a comment, a note about lost events.

use super::scan::{Cursor, trim_end};

/// The prefix is short; a hostile line costs no more than this to refuse.
const PREFIX_MAX: usize = 512;
/// So is an event's name (kernels: below 64), and names are kept to be counted.
const EVENT_MAX: usize = 255;

/// A line that names an event. All slices borrow from the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// `comm-pid`, as printed.
    pub task: &'a [u8],
    /// Number of the CPU.
    pub cpu: u32,
    /// Context flags (`d..1`), empty where the layout has none.
    pub flags: &'a [u8],
    /// Trace time in nanoseconds (what the text resolves, usually microseconds).
    pub timestamp_ns: u64,
    /// Name of the event.
    pub event: &'a [u8],
    /// Text of the event, without blanks, NUL and carriage return at its end.
    pub body: &'a [u8],
}

impl<'a> Line<'a> {
    /// Split a line (without its line feed).
    #[must_use]
    pub fn parse(text: &'a [u8]) -> Option<Line<'a>> {
        let head = &text[..text.len().min(PREFIX_MAX)];
        // A task's name may hold brackets itself: try each one until the rest of the prefix fits.
        for bracket in memchr::memchr_iter(b'[', head) {
            if let Some(line) = Self::parse_from(text, bracket) {
                return Some(line);
            }
        }
        None
    }

    #[inline]
    fn parse_from(text: &'a [u8], bracket: usize) -> Option<Line<'a>> {
        let (before, after) = text.split_at(bracket);
        let task = trim_ascii_space(before)?;
        let mut cursor = Cursor::new(after);
        cursor.literal(b"[")?;
        let cpu = u32::try_from(cursor.decimal()?).ok()?;
        cursor.literal(b"]")?;
        let before_blanks = cursor.rest().len();
        cursor.blanks();
        if cursor.rest().len() == before_blanks {
            return None;
        }
        let (flags, timestamp_ns) = flags_and_time(&mut cursor)?;
        cursor.literal(b":")?;
        cursor.blanks();
        let event = event_name(&mut cursor)?;
        cursor.literal(b":")?;
        cursor.blanks();
        Some(Line { task, cpu, flags, timestamp_ns, event, body: trim_end(cursor.rest()) })
    }

    /// The process id behind the last dash of the task, where it is one.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        let dash = memchr::memrchr(b'-', self.task)?;
        let mut cursor = Cursor::new(&self.task[dash + 1..]);
        let pid = cursor.decimal()?;
        u32::try_from(pid).ok()
    }
}

/// How many events a line says were lost (`CPU:0 [LOST 42 EVENTS]`), 0 when it does not say how many.
#[must_use]
pub fn lost_events(text: &[u8]) -> Option<u64> {
    let mut cursor = Cursor::new(text);
    cursor.literal(b"CPU:")?;
    cursor.decimal()?;
    cursor.literal(b" [LOST ")?;
    // A number that does not fit is one that nobody knows.
    let lost = cursor.decimal().unwrap_or(0);
    cursor.digits();
    cursor.blanks();
    cursor.literal(b"EVENTS]")?;
    Some(lost)
}

/// Flags are one word before the timestamp, or missing.
#[inline]
fn flags_and_time<'a>(cursor: &mut Cursor<'a>) -> Option<(&'a [u8], u64)> {
    if cursor.rest().first().is_some_and(u8::is_ascii_digit)
        && let Some(time) = timestamp(cursor)
    {
        return Some((&[], time));
    }
    // Flags are a few letters: a search made for longer texts costs more than it finds.
    let head = &cursor.rest()[..cursor.rest().len().min(PREFIX_MAX)];
    let len = head.iter().position(|byte| *byte == b' ')?;
    let flags = cursor.take(len);
    cursor.blanks();
    Some((flags, timestamp(cursor)?))
}

/// Nanoseconds of the last digit of a fraction of so many digits.
const SCALES: [u64; 10] = [1_000_000_000, 100_000_000, 10_000_000, 1_000_000, 100_000, 10_000, 1_000, 100, 10, 1];

/// Bytes of which names of events are made.
const IN_NAMES: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0_u8;
    while byte < u8::MAX {
        table[byte as usize] = byte.is_ascii_alphanumeric() || byte == b'_';
        byte += 1;
    }
    table
};

/// `seconds.fraction` in nanoseconds; the colon behind it must follow.
#[inline]
fn timestamp(cursor: &mut Cursor<'_>) -> Option<u64> {
    let mut ahead = *cursor;
    let seconds = ahead.decimal()?;
    ahead.literal(b".")?;
    let before = ahead.rest().len();
    let fraction = ahead.decimal()?;
    let digits = before - ahead.rest().len();
    if digits > 9 || ahead.rest().first() != Some(&b':') {
        return None;
    }
    let time = seconds.checked_mul(1_000_000_000)?.checked_add(fraction * SCALES[digits])?;
    *cursor = ahead;
    Some(time)
}

#[inline]
fn event_name<'a>(cursor: &mut Cursor<'a>) -> Option<&'a [u8]> {
    let rest = cursor.rest();
    // Look no further than a name may reach: a hostile line could make it be read again for each of its brackets.
    let head = &rest[..rest.len().min(EVENT_MAX + 1)];
    let len = head.iter().position(|byte| !IN_NAMES[usize::from(*byte)])?;
    (len > 0).then(|| cursor.take(len))
}

/// Without blanks around it; None when nothing is left or no blank separates it from what follows.
#[inline]
fn trim_ascii_space(bytes: &[u8]) -> Option<&[u8]> {
    let [_, .., b' ' | b'\t'] = bytes else { return None };
    let trimmed = bytes.trim_ascii();
    (!trimmed.is_empty()).then_some(trimmed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tracefs_layout() {
        let line = Line::parse(
            b"            init-1     [000] .N..     2.133073: kvm_page_fault: address 1000 error_code 14\r",
        );
        let line = line.expect("parses");
        assert_eq!(line.task, b"init-1");
        assert_eq!((line.cpu, line.flags, line.timestamp_ns), (0, &b".N.."[..], 2_133_073_000));
        assert_eq!((line.event, line.body), (&b"kvm_page_fault"[..], &b"address 1000 error_code 14"[..]));
        assert_eq!(line.pid(), Some(1));
    }

    #[test]
    fn trace_cmd_layout_without_flags_and_with_a_bracket_in_the_name() {
        let line = Line::parse(b" CPU 0/KVM [x]-4711  [012] 12345.678901234: kvm_entry:            vcpu 0, rip 0x1000");
        let line = line.expect("parses");
        assert_eq!((line.task, line.pid()), (&b"CPU 0/KVM [x]-4711"[..], Some(4711)));
        assert_eq!((line.cpu, line.flags, line.timestamp_ns), (12, &b""[..], 12_345_678_901_234));
        assert_eq!((line.event, line.body), (&b"kvm_entry"[..], &b"vcpu 0, rip 0x1000"[..]));
    }

    #[test]
    fn names_of_events_are_short() {
        let line = |len: usize| [b"a-1 [000] 1.0: ", &vec![b'x'; len][..], b": y"].concat();
        assert_eq!(Line::parse(&line(EVENT_MAX)).map(|line| line.event.len()), Some(EVENT_MAX));
        assert_eq!(Line::parse(&line(EVENT_MAX + 1)), None);
    }

    #[test]
    fn flags_are_a_short_word_or_missing() {
        for (text, flags) in
            [(&b"a-1 [000] 1.0: x: y"[..], Some(&b""[..])), (b"a-1 [000] 1N..1 1.0: x: y", Some(b"1N..1"))]
        {
            assert_eq!(Line::parse(text).map(|line| line.flags), flags);
        }
        assert_eq!(Line::parse(&[b"a-1 [000] ", &[b'.'; PREFIX_MAX][..], b" 1.0: x: y"].concat()), None);
    }

    #[test]
    fn what_is_no_event_line() {
        for text in
            [&b"# tracer: nop"[..], b"", b"cpus=2", b"CPU:0 [LOST 42 EVENTS]", b"[000] 1.0: x: y", b"a [000] 1.0: x"]
        {
            assert_eq!(Line::parse(text), None, "{}", String::from_utf8_lossy(text));
        }
        assert_eq!(lost_events(b"CPU:0 [LOST 42 EVENTS]"), Some(42));
        assert_eq!(lost_events(b"CPU:3 [LOST EVENTS]"), Some(0));
        assert_eq!(lost_events(b"CPU:3 [LOST 99999999999999999999999 EVENTS]"), Some(0));
        assert_eq!(lost_events(b"CPU 0 is empty"), None);
    }
}
