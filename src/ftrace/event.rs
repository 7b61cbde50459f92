//! An event of a line: what kind it is, which wording it had, its values.
//!
//! Values are kept in the order of the wording's fields, numbers apart from texts; what they mean is in
//! [`super::wording`]. Nothing is copied: texts borrow from the line.

use super::page_text::PageText;
use super::wording::{Field, Kind, Token, Wording};

/// Most numbers an event has.
pub const MAX_NUMBERS: usize = 9;
/// Most texts an event has.
pub const MAX_TEXTS: usize = 3;

/// The values of one event. One is filled again and again while a trace is read.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// What it is.
    pub kind: Kind,
    wording: &'static Wording,
    wording_index: usize,
    page: PageText,
    numbers: [u64; MAX_NUMBERS],
    texts: [&'a [u8]; MAX_TEXTS],
}

/// What the body of a line turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An event with a known wording.
    Known,
    /// The name is known, the text is not a wording of it.
    NotUnderstood,
    /// An event of another group: kept as it is.
    Opaque,
}

/// `trace-cmd report` calls what a program wrote into the trace `print`, as it calls the prints of kernel functions.
fn renamed(name: &[u8], body: &[u8]) -> Option<Kind> {
    let is_marker = name == b"print" && (body.starts_with(b"tracing_mark_write: ") || body.starts_with(b"ip="));
    is_marker.then_some(Kind::Marker)
}

/// The raw fields that libtraceevent prints where it cannot read the kernel's format.
fn raw_fields(body: &[u8]) -> Option<&[u8]> {
    body.strip_prefix(b"[FAILED TO PARSE]").map(<[u8]>::trim_ascii_start)
}

impl Default for Event<'_> {
    fn default() -> Self {
        let kind = Kind::Marker;
        let wording = &kind.wordings()[0];
        Self {
            kind,
            wording,
            wording_index: 0,
            page: PageText::default(),
            numbers: [0; MAX_NUMBERS],
            texts: [b""; MAX_TEXTS],
        }
    }
}

impl<'a> Event<'a> {
    /// Match the body of a line against the wordings of the event's name; fills this event if one fits.
    #[inline]
    pub fn read(&mut self, name: &[u8], body: &'a [u8]) -> Outcome {
        let Some(kind) = Kind::by_name(name).or_else(|| renamed(name, body)) else { return Outcome::Opaque };
        self.kind = kind;
        if self.matches(body) || raw_fields(body).is_some_and(|fields| self.matches(fields)) {
            return Outcome::Known;
        }
        Outcome::NotUnderstood
    }

    #[inline]
    fn matches(&mut self, body: &'a [u8]) -> bool {
        for (index, candidate) in self.kind.wordings().iter().enumerate() {
            self.wording = candidate;
            self.wording_index = index;
            if (candidate.read)(self, body).is_some() {
                return true;
            }
        }
        false
    }

    /// The description of a shadow page, for the events that have one.
    #[must_use]
    #[inline]
    pub fn page(&self) -> Option<&PageText> {
        matches!(self.wording.tokens.first(), Some(Token::Page)).then_some(&self.page)
    }

    /// The wording it had.
    #[must_use]
    pub fn wording(&self) -> &'static Wording {
        self.wording
    }

    /// Which of its kind's wordings that is.
    #[must_use]
    pub fn wording_index(&self) -> usize {
        self.wording_index
    }

    /// Numbers in the order of the wording's numeric fields.
    #[must_use]
    pub fn numbers(&self) -> &[u64] {
        &self.numbers[..self.wording.nr_numbers()]
    }

    /// Texts in the order of the wording's text fields.
    #[must_use]
    pub fn texts(&self) -> &[&'a [u8]] {
        &self.texts[..self.wording.nr_texts()]
    }

    /// A number by the name of its field.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u64> {
        let fields = self.wording.fields().filter(Field::is_number);
        fields.zip(self.numbers).find(|(field, _)| field.name() == name).map(|(_, value)| value)
    }

    /// A text by the name of its field.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&'a [u8]> {
        let fields = self.wording.fields().filter(|field| matches!(field, Field::Text(_)));
        fields.zip(self.texts).find(|(field, _)| field.name() == name).map(|(_, value)| value)
    }

    pub(super) fn set_page(&mut self, page: PageText) {
        self.page = page;
    }

    #[inline]
    pub(super) fn set_number(&mut self, index: usize, value: u64) -> Option<()> {
        *self.numbers.get_mut(index)? = value;
        Some(())
    }

    #[inline]
    pub(super) fn set_text(&mut self, index: usize, value: &'a [u8]) -> Option<()> {
        *self.texts.get_mut(index)? = value;
        Some(())
    }
}
