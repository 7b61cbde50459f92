//! The text of a recording in chunks, line by line, with the rest of a chunk kept for the next one.
//!
//! Owns the cutting. A line that the slow way might read otherwise is refused: one that is very long, has a bracket in its
//! first columns, where a task's name has them, or is neither an event as kernels print them nor a comment.

use memchr::memchr;

use super::Unsure;
use crate::ftrace::Line;

/// Longest line; the reader of lines in Python cuts longer ones.
const LINE_MAX: usize = 1 << 20;
/// A task's column has so many characters at least.
const TASK_MIN: usize = 16;

/// What comes next.
#[derive(Debug)]
pub enum Next<'a> {
    /// A line that names an event, and where the one behind it begins.
    Event(Line<'a>, usize),
    /// The chunk is used up.
    NeedText,
    /// So is the recording.
    Ended,
}

/// Bytes that have not been read.
#[derive(Debug, Default)]
pub struct Text {
    bytes: Vec<u8>,
    /// Where the next line begins.
    pub at: usize,
    is_last: bool,
}

impl Text {
    /// Appends a chunk; what was read goes.
    pub fn feed(&mut self, chunk: &[u8]) {
        self.bytes.drain(..self.at);
        self.at = 0;
        self.bytes.extend_from_slice(chunk);
    }

    /// No chunk comes any more.
    pub const fn finish(&mut self) {
        self.is_last = true;
    }

    /// The next line from a position on that names an event; comments and blank lines are passed over.
    pub fn next_from(&self, mut at: usize) -> Result<Next<'_>, Unsure> {
        loop {
            let rest = self.bytes.get(at..).unwrap_or_default();
            let (text, end) = match memchr(b'\n', rest) {
                Some(len) => (&rest[..len], at + len + 1),
                None if !self.is_last && rest.len() > LINE_MAX => return Err(Unsure("a line is very long")),
                None if !self.is_last => return Ok(Next::NeedText),
                None if rest.is_empty() => return Ok(Next::Ended),
                None => (rest, at + rest.len()),
            };
            if text.len() > LINE_MAX {
                return Err(Unsure("a line is very long"));
            }
            if memchr(b'[', &text[..text.len().min(TASK_MIN + 1)]).is_some() {
                return Err(Unsure("a bracket stands in the column of the task, or events were lost"));
            }
            if let Some(line) = Line::parse(text) {
                // The other reader wants a blank before the name.
                let name_at = line.event.as_ptr().addr() - text.as_ptr().addr();
                if !matches!(text[..name_at].last(), Some(b' ' | b'\t')) {
                    return Err(Unsure("no blank stands before the name of an event"));
                }
                return Ok(Next::Event(line, end));
            }
            let is_comment = text.starts_with(b"#") && memchr(b'[', text).is_none();
            if !is_comment && !text.trim_ascii().is_empty() {
                return Err(Unsure("a line is neither an event nor a comment"));
            }
            at = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &[u8] =
        b"# tracer: nop\n             vmm-1    [000] .....  1.0: a: x\n\n             vmm-1    [000] .....  1.0: b: y";

    fn names(chunk: usize) -> Vec<Vec<u8>> {
        let (mut text, mut found, mut chunks) = (Text::default(), Vec::new(), LINES.chunks(chunk));
        loop {
            let (name, end) = match text.next_from(text.at).expect("readable") {
                Next::Event(line, end) => (line.event.to_vec(), end),
                Next::NeedText => {
                    match chunks.next() {
                        Some(chunk) => text.feed(chunk),
                        None => text.finish(),
                    }
                    continue;
                }
                Next::Ended => return found,
            };
            found.push(name);
            text.at = end;
        }
    }

    #[test]
    fn lines_are_the_same_however_they_are_cut() {
        for chunk in [1, 2, 7, 40, 4096] {
            assert_eq!(names(chunk), [b"a".to_vec(), b"b".to_vec()]);
        }
    }

    #[test]
    fn what_the_slow_way_may_read_otherwise_is_refused() {
        for text in [
            &b"CPU:0 [LOST 42 EVENTS]\n"[..],
            b"a [x] [000] 1.0: a: x\n",
            b"             vmm-1    [000] .....  1.0:a: x\n",
            b"             vmm-1    [000] .....  1.0123456789: a: x\n",
            b"#            vmm-1    [000] 1.0 a\n",
            b"cpus=1\n",
        ] {
            let mut all = Text::default();
            all.feed(text);
            assert!(all.next_from(0).is_err());
        }
        let mut all = Text::default();
        all.feed(&vec![b'x'; LINE_MAX + 2]);
        assert!(all.next_from(0).is_err());
    }
}
