//! The text of a recorder's marker: one flat JSON object, or `OP n` and the inside of one.
//!
//! Owns a reader that is sure or says that it is not: nested values, escapes, fractions, repeated keys and bytes beyond
//! ASCII are left to the reader of JSON in Python, which also says what is wrong with a text that is none.

use smallvec::SmallVec;

/// A value, as far as it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// A text without escapes.
    Text(&'a [u8]),
    /// A number of at most 64 bits.
    Number(u64),
    /// A negative number, true, false or null.
    Other,
}

impl Value<'_> {
    /// A number, or hexadecimal text, with or without `0x`.
    #[must_use]
    pub fn number(&self) -> Option<u64> {
        match self {
            Self::Number(value) => Some(*value),
            Self::Text(text) => {
                let digits = text.strip_prefix(b"0x").unwrap_or(text);
                let is_plain = (1..=16).contains(&digits.len()) && digits.iter().all(u8::is_ascii_hexdigit);
                let digits = std::str::from_utf8(digits).ok().filter(|_| is_plain)?;
                u64::from_str_radix(digits, 16).ok()
            }
            Self::Other => None,
        }
    }
}

/// The fields of an object.
#[derive(Debug, Default)]
pub struct Marker<'a> {
    fields: SmallVec<[(&'a [u8], Value<'a>); 12]>,
}

impl<'a> Marker<'a> {
    /// Reads `{"key":value,...}`; None: not sure.
    #[must_use]
    pub fn parse(text: &'a [u8]) -> Option<Self> {
        Self::fields(text.strip_prefix(b"{")?, b"}")
    }

    /// Reads `OP n "key":value,...`: the number, and the fields; None: not sure.
    #[must_use]
    pub fn parse_numbered(text: &'a [u8]) -> Option<(u64, Self)> {
        let (number, rest) = digits(text.strip_prefix(b"OP ")?)?;
        Some((number, Self::fields(rest.strip_prefix(b" ")?, b"")?))
    }

    /// A field.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<Value<'a>> {
        self.fields.iter().find(|(name, _)| *name == key).map(|(_, value)| *value)
    }

    fn fields(mut rest: &'a [u8], end: &[u8]) -> Option<Self> {
        let mut marker = Self::default();
        loop {
            let (key, after) = text(rest)?;
            let (value, after) = value(after.strip_prefix(b":")?.trim_ascii_start())?;
            if marker.get(key).is_some() {
                return None;
            }
            marker.fields.push((key, value));
            match after.strip_prefix(b",") {
                Some(more) => rest = more.trim_ascii_start(),
                None => return (after == end).then_some(marker),
            }
        }
    }
}

/// The number of a marker `{"i":N` or of a line of operations, if it begins like one.
#[must_use]
pub fn index_of(text: &[u8]) -> Option<(u64, &[u8])> {
    digits(text.strip_prefix(b"{\"i\":")?)
}

/// At most 15 digits, and what stands behind them.
fn digits(text: &[u8]) -> Option<(u64, &[u8])> {
    let len = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let value = text[..len].iter().take(15).fold(0_u64, |value, digit| value * 10 + u64::from(digit - b'0'));
    (1..=15).contains(&len).then_some((value, &text[len..]))
}

/// `"..."`: what is inside and what is behind.
fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let inside = bytes.strip_prefix(b"\"")?;
    let len = inside.iter().position(|byte| *byte == b'"' || *byte == b'\\' || !(b' '..=b'~').contains(byte))?;
    let rest = inside[len..].strip_prefix(b"\"")?;
    Some((&inside[..len], rest))
}

fn value(bytes: &[u8]) -> Option<(Value<'_>, &[u8])> {
    if bytes.first() == Some(&b'"') {
        return text(bytes).map(|(text, rest)| (Value::Text(text), rest));
    }
    for word in [&b"true"[..], b"false", b"null"] {
        if let Some(rest) = bytes.strip_prefix(word) {
            return Some((Value::Other, rest));
        }
    }
    let (is_negative, number) = bytes.strip_prefix(b"-").map_or((false, bytes), |rest| (true, rest));
    let len = number.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(number.len());
    let is_plain = (1..=19).contains(&len) && (len == 1 || number[0] != b'0');
    let (digits, rest) = number.split_at(len);
    if !is_plain || matches!(rest.first(), Some(b'.' | b'e' | b'E')) {
        return None;
    }
    let value =
        digits.iter().try_fold(0_u64, |value, digit| value.checked_mul(10)?.checked_add((digit - b'0').into()))?;
    Some((if is_negative { Value::Other } else { Value::Number(value) }, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_objects() {
        let marker =
            Marker::parse(br#"{"i":28,"op":"guest_run", "ncmds":3,"gpa":"0x1f000","x":-1,"y":null}"#).expect("sure");
        assert_eq!(marker.get(b"op"), Some(Value::Text(b"guest_run")));
        assert_eq!(marker.get(b"ncmds"), Some(Value::Number(3)));
        assert_eq!(marker.get(b"gpa").and_then(|value| value.number()), Some(0x1f000));
        assert_eq!(
            (marker.get(b"x"), marker.get(b"y"), marker.get(b"z")),
            (Some(Value::Other), Some(Value::Other), None)
        );
        let (number, marker) = Marker::parse_numbered(br#"OP 250 "op":"read8","a":"0x40007000","n":7"#).expect("sure");
        assert_eq!((number, marker.get(b"n")), (250, Some(Value::Number(7))));
    }

    #[test]
    fn not_sure() {
        for text in [
            &br#"{"i":1,"op":"a""#[..],
            br#"{"i":1,"i":2}"#,
            br#"{"i":1.5}"#,
            br#"{"i":01}"#,
            br#"{"a":[1]}"#,
            br#"{"a":{}}"#,
            br#"{"a":"\n"}"#,
            br#"{"a":"1"} x"#,
            b"{\"a\":\"\xff\"}",
            br"{}",
            br#"{"a":99999999999999999999}"#,
        ] {
            assert!(Marker::parse(text).is_none(), "{}", String::from_utf8_lossy(text));
        }
        assert!(Marker::parse_numbered(b"OP x \"op\":1").is_none());
    }

    #[test]
    fn numbers_of_markers() {
        assert_eq!(index_of(b"{\"i\":12,\"op\"").map(|found| found.0), Some(12));
        assert_eq!(index_of(b"{\"i\":1234567890123456,"), None);
        assert_eq!(index_of(b"{\"j\":1"), None);
    }
}
