//! A text in pieces of whole lines: chunks as they come are cut behind line feeds, and pieces into parts for threads.
//!
//! Owns: what of a line waits for its end, and how much of a line without an end is kept ([`LINE_MAX`]). Invariant: the
//! pieces in order are the text, but for what of a line is beyond that.

use super::reader::LINE_MAX;

/// Cuts chunks into whole lines.
#[derive(Clone, Debug, Default)]
pub struct Cutter {
    carry: Vec<u8>,
}

impl Cutter {
    /// Gives what of the text so far are whole lines; each piece ends with a line feed.
    pub fn feed(&mut self, chunk: &[u8], visit: &mut impl FnMut(&[u8])) {
        let mut rest = chunk;
        if !self.carry.is_empty() {
            let Some(end) = memchr::memchr(b'\n', rest) else { return self.keep(rest) };
            self.keep(&rest[..end]);
            rest = &rest[end + 1..];
            self.carry.push(b'\n');
            visit(&self.carry);
            self.carry.clear();
        }
        let whole = memchr::memrchr(b'\n', rest).map_or(0, |end| end + 1);
        if whole > 0 {
            visit(&rest[..whole]);
        }
        self.keep(&rest[whole..]);
    }

    /// The text ends: gives its last line, if it has no line feed.
    pub fn finish(&mut self, visit: &mut impl FnMut(&[u8])) {
        if !self.carry.is_empty() {
            visit(&self.carry);
            self.carry.clear();
        }
    }

    /// A line of more than `LINE_MAX` bytes is known by one byte more.
    fn keep(&mut self, part: &[u8]) {
        let room = (LINE_MAX + 1).saturating_sub(self.carry.len());
        self.carry.extend_from_slice(&part[..part.len().min(room)]);
    }
}

/// Whole lines as so many parts of about one size, each of whole lines; fewer where there are not so many lines.
#[must_use]
pub fn parts(lines: &[u8], count: usize) -> Vec<&[u8]> {
    let size = lines.len() / count.max(1) + 1;
    let (mut found, mut rest) = (Vec::new(), lines);
    while !rest.is_empty() {
        let from = size.min(rest.len()) - 1;
        let end = memchr::memchr(b'\n', &rest[from..]).map_or(rest.len(), |at| from + at + 1);
        let (part, behind) = rest.split_at(end);
        found.push(part);
        rest = behind;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_the_text_and_end_with_lines() {
        let text = b"one\ntwo\n\nthree\nfour";
        for size in 1..=text.len() {
            let (mut cutter, mut pieces) = (Cutter::default(), Vec::new());
            for chunk in text.chunks(size) {
                cutter.feed(chunk, &mut |piece| pieces.push(piece.to_vec()));
            }
            assert!(pieces.iter().all(|piece| piece.ends_with(b"\n")), "{size}");
            cutter.finish(&mut |piece| pieces.push(piece.to_vec()));
            assert_eq!(pieces.concat(), text, "{size}");
        }
    }

    #[test]
    fn parts_are_the_lines_at_any_count() {
        let text = b"one\ntwo\n\nthree\nfour\n";
        for count in 0..30 {
            let found = parts(text, count);
            assert_eq!(found.concat(), text);
            assert!(found.iter().all(|part| part.ends_with(b"\n")));
            assert!(found.len() <= count.max(1));
        }
        assert!(parts(b"", 4).is_empty());
    }

    #[test]
    fn a_line_without_an_end_is_not_kept_whole() {
        let mut cutter = Cutter::default();
        for _ in 0..40 {
            cutter.feed(&vec![b'x'; 1 << 16], &mut |_| panic!("no line has ended"));
        }
        let mut length = 0;
        cutter.finish(&mut |piece| length = piece.len());
        assert_eq!(length, LINE_MAX + 1);
    }
}
