//! Lines of some events, and everything between them as it is: for whoever writes a text again, changed in places.
//!
//! Owns: the grammar of a line's prefix as the line reader of the Python layer has it, position by position, and which
//! lines are left to that reader: those that are no plain text, that may hold raw fields, or that have grown too long.

use rustc_hash::FxHashMap;

use super::parts::Cutter;
use super::reader::LINE_MAX;

/// No task is named in fewer columns.
const TASK_MIN: usize = 16;
const PREFIX_MAX: usize = 512;

/// A line that names an event; positions in its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// Where its task stands.
    pub task: (usize, usize),
    /// Where the event's name begins and ends.
    pub event: (usize, usize),
    /// Where the event's text begins.
    pub body_at: usize,
}

/// A piece of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// So many lines of other events, with their ends.
    Others(u64, &'a [u8]),
    /// A line of one of the events, by number, without its end.
    Named(usize, Prefix, &'a [u8]),
    /// A line that the line reader must look at, without its end; the flag: it is cut.
    Unread(&'a [u8], bool),
}

/// Cuts a text, chunk by chunk.
#[derive(Clone, Debug, Default)]
pub struct NamedLines {
    /// Events that come one by one, by number; None: events that are left out.
    names: FxHashMap<Vec<u8>, Option<usize>>,
    cutter: Cutter,
}

impl NamedLines {
    /// For events of these names; lines of the others are left out.
    #[must_use]
    pub fn new(names: &[String], dropped: &[String]) -> Self {
        let dropped = dropped.iter().map(|name| (name.as_bytes().to_vec(), None));
        let named = names.iter().enumerate().map(|(at, name)| (name.as_bytes().to_vec(), Some(at)));
        Self { names: dropped.chain(named).collect(), cutter: Cutter::default() }
    }

    /// Gives the pieces of the next chunk, as far as its lines have ended.
    pub fn feed(&mut self, chunk: &[u8], visit: &mut dyn FnMut(Piece<'_>)) {
        let mut cutter = std::mem::take(&mut self.cutter);
        cutter.feed(chunk, &mut |lines| self.pieces(lines, visit));
        self.cutter = cutter;
    }

    /// The text ends: gives its last line, if it has no line feed.
    pub fn finish(&mut self, visit: &mut dyn FnMut(Piece<'_>)) {
        let mut cutter = std::mem::take(&mut self.cutter);
        cutter.finish(&mut |lines| self.pieces(lines, visit));
    }

    fn pieces(&self, text: &[u8], visit: &mut dyn FnMut(Piece<'_>)) {
        let (mut start, mut others_from, mut others) = (0, 0, 0);
        while start < text.len() {
            let end = memchr::memchr(b'\n', &text[start..]).map(|at| start + at);
            let line = &text[start..end.unwrap_or(text.len())];
            let look = match self.look(line) {
                // The last line of a text is given as one, since it has no end that others could have.
                Look::Other if end.is_none() => Look::Piece(Piece::Unread(line, false)),
                look => look,
            };
            let behind = end.map_or(text.len(), |end| end + 1);
            if matches!(look, Look::Other) {
                others += 1;
            } else {
                if others > 0 {
                    visit(Piece::Others(others, &text[others_from..start]));
                }
                if let Look::Piece(piece) = look {
                    visit(piece);
                }
                (others_from, others) = (behind, 0);
            }
            start = behind;
        }
        if others > 0 {
            visit(Piece::Others(others, &text[others_from..]));
        }
    }

    fn look<'a>(&self, line: &'a [u8]) -> Look<'a> {
        let unread = |line: &'a [u8], is_cut| Look::Piece(Piece::Unread(line, is_cut));
        if line.len() > LINE_MAX {
            return unread(&line[..LINE_MAX], true);
        }
        if !line.is_ascii() || line.last() == Some(&b'\r') {
            return unread(line, false);
        }
        let Some(prefix) = Prefix::parse(line) else { return Look::Other };
        let (from, to) = prefix.event;
        let body = &line[prefix.body_at..];
        if !matches!(body.first(), None | Some(b'(' | b'{')) && memchr::memchr(b'=', body).is_some() {
            return unread(line, false);
        }
        let name = &line[from..to];
        if name == b"print" {
            return unread(line, false);
        }
        match self.names.get(name) {
            None => Look::Other,
            Some(None) => Look::Dropped,
            Some(Some(number)) => Look::Piece(Piece::Named(*number, prefix, line)),
        }
    }
}

/// What becomes of a line.
enum Look<'a> {
    Other,
    Dropped,
    Piece(Piece<'a>),
}

impl Prefix {
    /// Split a line of plain text.
    #[must_use]
    pub fn parse(line: &[u8]) -> Option<Prefix> {
        let head = &line[..line.len().min(PREFIX_MAX)];
        let from = TASK_MIN + 1;
        let brackets = memchr::memchr_iter(b'[', head.get(from..)?);
        brackets.map(|at| from + at).filter(|at| is_space(line[at - 1])).find_map(|at| {
            let (event, body_at) = behind_bracket(&line[..line.len().min(at + PREFIX_MAX)], at)?;
            let before = &line[..at];
            let task_from = before.iter().position(|byte| !is_space(*byte)).unwrap_or(at);
            let task_to = before.iter().rposition(|byte| !is_space(*byte)).map_or(task_from, |last| last + 1);
            Some(Prefix { task: (task_from, task_to), event, body_at })
        })
    }
}

/// `[CPU] [FLAGS] TIME: EVENT: `: where the event's name and its text are.
fn behind_bracket(text: &[u8], bracket: usize) -> Option<((usize, usize), usize)> {
    let at = some(text, bracket + 1, |byte| byte.is_ascii_digit())?;
    let at = some(text, byte_at(text, at, b']')?, is_space)?;
    // What stands before the time may be a word that looks like one.
    let with_flags = some(text, at, |byte| !is_space(byte)).and_then(|at| some(text, at, is_space));
    with_flags.and_then(|at| time_and_event(text, at)).or_else(|| time_and_event(text, at))
}

fn time_and_event(text: &[u8], at: usize) -> Option<((usize, usize), usize)> {
    let at = some(text, at, |byte| byte.is_ascii_digit())?;
    let at = some(text, byte_at(text, at, b'.')?, |byte| byte.is_ascii_digit())?;
    let from = some(text, byte_at(text, at, b':')?, is_space)?;
    let to = some(text, from, |byte| byte.is_ascii_alphanumeric() || byte == b'_')?;
    let body = byte_at(text, to, b':')?;
    Some(((from, to), body + usize::from(text.get(body).is_some_and(|byte| is_space(*byte)))))
}

/// Behind at least one byte of that kind.
fn some(text: &[u8], at: usize, is_one: impl Fn(u8) -> bool) -> Option<usize> {
    let rest = text.get(at..)?;
    let count = rest.iter().position(|byte| !is_one(*byte)).unwrap_or(rest.len());
    (count > 0).then_some(at + count)
}

fn byte_at(text: &[u8], at: usize, byte: u8) -> Option<usize> {
    (text.get(at) == Some(&byte)).then_some(at + 1)
}

/// What Python takes for a blank among plain text.
const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | 9..=13 | 28..=31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"# tracer: nop\n\
CPU 0/KVM long-4711 [000] .... 1.000001: kvm_entry: vcpu 0, rip 0x1\n\
CPU 0/KVM long-4711 [000] .... 1.000002: kvm_mmio: mmio\n\
CPU 0/KVM long-4711 [000] .... 1.000002: kvm_exit: left out\n\
\n\
CPU 0/KVM long-4711 [000] .... 1.000003: kvm_entry: vcpu_id=0\n\
CPU 0/KVM long-4711 [000] .... 1.000004: kvm_entry: vcpu 0\r\n\
CPU 0/KVM long-4711 [000] .... 1.000005: kvm_mmio: \xff\n\
CPU 0/KVM long-4711 [000] .... 1.000006: kvm_mmio: mmio";

    fn said(size: usize) -> Vec<String> {
        let mut lines = NamedLines::new(&["kvm_entry".to_owned()], &["kvm_exit".to_owned()]);
        let mut found: Vec<String> = Vec::new();
        let mut visit = |piece: Piece<'_>| match piece {
            Piece::Others(count, text) => {
                // Chunks cut what stands between.
                assert_eq!(memchr::memchr_iter(b'\n', text).count() as u64, count);
                found.extend((0..count).map(|_| "other".to_owned()));
            }
            Piece::Named(number, prefix, line) => {
                let name = String::from_utf8_lossy(&line[prefix.event.0..prefix.event.1]).into_owned();
                let body = String::from_utf8_lossy(&line[prefix.body_at..]).into_owned();
                found.push(format!("{number} {name} {body}"));
            }
            Piece::Unread(line, is_cut) => found.push(format!("unread {} {is_cut}", line.len())),
        };
        for chunk in TEXT.chunks(size) {
            lines.feed(chunk, &mut visit);
        }
        lines.finish(&mut visit);
        found
    }

    #[test]
    fn pieces() {
        let expected = [
            "other",
            "0 kvm_entry vcpu 0, rip 0x1",
            "other",
            "other",
            "unread 61 false",
            "unread 59 false",
            "unread 52 false",
            "unread 55 false",
        ];
        for size in 1..=TEXT.len() {
            assert_eq!(said(size), expected, "{size}");
        }
    }

    #[test]
    fn prefixes() {
        let parse = |text: &str| {
            Prefix::parse(text.as_bytes()).map(|found| {
                (
                    text[found.task.0..found.task.1].to_owned(),
                    text[found.event.0..found.event.1].to_owned(),
                    text[found.body_at..].to_owned(),
                )
            })
        };
        let said = |task: &str, event: &str, body: &str| Some((task.to_owned(), event.to_owned(), body.to_owned()));
        assert_eq!(parse("            a [b]-1   [000] .N..  1.5: x: y: z"), said("a [b]-1", "x", "y: z"));
        assert_eq!(parse("            a-1       [000]  1.5: x:y"), said("a-1", "x", "y"));
        assert_eq!(parse("            a-1       [000]  1.5: 2.5: x:  y"), said("a-1", "x", " y"));
        assert_eq!(parse("a-1  [000] ....  1.5: x: y"), None);
        assert_eq!(parse("            a-1       [000] ....  1.5:x: y"), None);
    }
}
