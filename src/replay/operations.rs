//! The full texts of a recording's operations (`ops.jsonl`), asked for in the order of its markers.
//!
//! Owns the rule of Python's `OperationsFile`: a marker whose number is in the file and above the last one stands for all
//! operations behind the last one up to its own; any other marker stays as it is. The file is held whole.

use std::ops::Range;

use memchr::memchr;

use super::Unsure;
use super::marker::index_of;

/// A position in the file.
#[derive(Clone, Copy, Debug, Default)]
struct Cursor(usize);

impl Cursor {
    /// The next line with a number, its number and its text.
    fn next(&mut self, bytes: &[u8]) -> Option<(u64, Range<usize>)> {
        while self.0 < bytes.len() {
            let start = self.0;
            let len = memchr(b'\n', &bytes[start..]).unwrap_or(bytes.len() - start);
            self.0 = start + len + 1;
            let text = bytes[start..start + len].trim_ascii_end();
            if let Some((number, rest)) = index_of(text)
                && rest.first() == Some(&b',')
            {
                return Some((number, start..start + text.len()));
            }
        }
        None
    }
}

/// Operations in the order of their numbers.
#[derive(Debug, Default)]
pub struct Operations {
    bytes: Vec<u8>,
    /// Goes ahead and looks whether a number is there; the other one gives the texts.
    ahead: Cursor,
    texts: Cursor,
    found: Option<u64>,
    last: Option<u64>,
}

impl Operations {
    /// The operations of a file; `Unsure` where their numbers do not ascend.
    pub fn new(bytes: Vec<u8>) -> Result<Self, Unsure> {
        let (mut cursor, mut last) = (Cursor::default(), None);
        while let Some((number, _)) = cursor.next(&bytes) {
            if last.is_some_and(|last| number <= last) {
                return Err(Unsure("numbers of operations do not ascend"));
            }
            last = Some(number);
        }
        let mut made = Self { bytes, ..Self::default() };
        made.found = made.ahead.next(&made.bytes).map(|(number, _)| number);
        Ok(made)
    }

    /// Puts the texts that a marker of this number stands for into `texts`; false: the marker stays as it is.
    pub fn upto(&mut self, number: u64, texts: &mut Vec<Range<usize>>) -> bool {
        while self.found.is_some_and(|found| found < number) {
            self.found = self.ahead.next(&self.bytes).map(|(number, _)| number);
        }
        if self.found != Some(number) || self.last.is_some_and(|last| number <= last) {
            return false;
        }
        self.last = Some(number);
        while let Some((found, text)) = self.texts.next(&self.bytes) {
            texts.push(text);
            if found == number {
                break;
            }
        }
        true
    }

    /// A text.
    #[must_use]
    pub fn text(&self, range: Range<usize>) -> &[u8] {
        self.bytes.get(range).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upto(known: &mut Operations, number: u64) -> Option<Vec<String>> {
        let mut texts = Vec::new();
        let is_known = known.upto(number, &mut texts);
        is_known.then(|| texts.into_iter().map(|text| String::from_utf8_lossy(known.text(text)).into_owned()).collect())
    }

    #[test]
    fn texts_up_to_a_marker() {
        let file =
            b"{\"i\":0,\"op\":\"a\"}\nnote\n{\"i\":2,\"op\":\"b\"}\r\n{\"i\":3,\"op\":\"c\"}\n{\"i\":9,\"op\":\"d\"}"
                .to_vec();
        let mut known = Operations::new(file).expect("ascend");
        assert_eq!(upto(&mut known, 0), Some(vec![r#"{"i":0,"op":"a"}"#.to_owned()]));
        assert_eq!(upto(&mut known, 1), None);
        let both = [r#"{"i":2,"op":"b"}"#, r#"{"i":3,"op":"c"}"#].map(str::to_owned).to_vec();
        assert_eq!(upto(&mut known, 3), Some(both));
        assert_eq!(upto(&mut known, 3), None);
        assert_eq!(upto(&mut known, 10), None);
    }

    #[test]
    fn numbers_must_ascend() {
        assert!(Operations::new(b"{\"i\":1,}\n{\"i\":1,}\n".to_vec()).is_err());
    }
}
