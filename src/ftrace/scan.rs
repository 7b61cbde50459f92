//! A cursor over the bytes of one line: literals and numbers, nothing else.
//!
//! Invariant: the position never leaves the slice; a failed step leaves it where it was.

/// A position in a line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor<'a> {
    rest: &'a [u8],
}

/// Value of a hexadecimal digit, 0xff for any other byte.
const HEX: [u8; 256] = {
    let mut table = [0xff_u8; 256];
    let mut digit = 0_u8;
    while digit < 10 {
        table[(b'0' + digit) as usize] = digit;
        digit += 1;
    }
    let mut letter = 0_u8;
    while letter < 6 {
        table[(b'a' + letter) as usize] = 10 + letter;
        table[(b'A' + letter) as usize] = 10 + letter;
        letter += 1;
    }
    table
};

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// What has not been read.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Step over these exact bytes.
    #[inline]
    pub(super) fn literal(&mut self, expected: &[u8]) -> Option<()> {
        self.rest = self.rest.strip_prefix(expected)?;
        Some(())
    }

    /// Step over these bytes if they are next.
    #[inline]
    pub(super) fn has(&mut self, expected: &[u8]) -> bool {
        self.literal(expected).is_some()
    }

    /// A hexadecimal number of 1 to 16 digits, without `0x`.
    #[inline]
    pub(super) fn hex(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        let mut digits = 0;
        for &byte in self.rest {
            let digit = HEX[usize::from(byte)];
            if digit == 0xff {
                break;
            }
            value = value << 4 | u64::from(digit);
            digits += 1;
        }
        self.take_number(value, digits, 16)
    }

    /// A hexadecimal number behind `0x`.
    #[inline]
    pub(super) fn hex_after_0x(&mut self) -> Option<u64> {
        self.literal(b"0x")?;
        self.hex()
    }

    /// Hexadecimal behind `0x`, else decimal.
    #[inline]
    pub(super) fn raw(&mut self) -> Option<u64> {
        if self.has(b"0x") { self.hex() } else { self.decimal() }
    }

    /// A decimal number that fits 64 bits.
    #[inline]
    pub(super) fn decimal(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        let mut digits = 0;
        for &byte in self.rest {
            let digit = byte.wrapping_sub(b'0');
            if digit > 9 {
                break;
            }
            // 19 digits always fit; only the ones behind them have to be watched.
            value = if digits < 19 {
                value * 10 + u64::from(digit)
            } else {
                value.checked_mul(10)?.checked_add(u64::from(digit))?
            };
            digits += 1;
        }
        self.take_number(value, digits, 20)
    }

    /// A decimal number that may be negative, in two's complement.
    #[inline]
    pub(super) fn signed(&mut self) -> Option<u64> {
        let mut ahead = *self;
        let negative = ahead.has(b"-");
        let value = ahead.decimal()?;
        if value > i64::MAX as u64 {
            return None;
        }
        *self = ahead;
        Some(if negative { value.wrapping_neg() } else { value })
    }

    /// The bytes up to (not including) the next occurrence of `end`; all that is left when `end` is empty.
    #[inline]
    pub(super) fn until(&mut self, end: &[u8]) -> Option<&'a [u8]> {
        let at = match end {
            [] => self.rest.len(),
            [byte] => memchr::memchr(*byte, self.rest)?,
            // Texts are short: a searcher made for each of them costs more than it finds.
            [byte, ..] => memchr::memchr_iter(*byte, self.rest).find(|&at| self.rest[at..].starts_with(end))?,
        };
        let (text, rest) = self.rest.split_at(at);
        self.rest = rest;
        Some(text)
    }

    /// Take this many bytes; all that is left when there are fewer.
    #[inline]
    pub(super) fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(len.min(self.rest.len()));
        self.rest = rest;
        taken
    }

    /// Step over decimal digits.
    pub(super) fn digits(&mut self) {
        while let [b'0'..=b'9', rest @ ..] = self.rest {
            self.rest = rest;
        }
    }

    /// Step over blanks.
    #[inline]
    pub(super) fn blanks(&mut self) {
        while let [b' ' | b'\t', rest @ ..] = self.rest {
            self.rest = rest;
        }
    }

    #[inline]
    fn take_number(&mut self, value: u64, digits: usize, most: usize) -> Option<u64> {
        if digits == 0 || digits > most {
            return None;
        }
        self.rest = &self.rest[digits..];
        Some(value)
    }
}

/// The bytes without blanks, NUL and carriage return at their end.
#[inline]
pub(super) fn trim_end(mut bytes: &[u8]) -> &[u8] {
    while let [rest @ .., b' ' | b'\t' | b'\0' | b'\r'] = bytes {
        bytes = rest;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stop_at_the_first_other_byte() {
        let mut cursor = Cursor::new(b"fff6e 42 -1x");
        assert_eq!(cursor.hex(), Some(0xfff6e));
        cursor.blanks();
        assert_eq!(cursor.decimal(), Some(42));
        cursor.blanks();
        assert_eq!(cursor.signed(), Some(u64::MAX));
        assert_eq!(cursor.rest(), b"x");
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused_and_nothing_is_consumed() {
        let mut cursor = Cursor::new(b"10000000000000000");
        assert_eq!(cursor.hex(), None);
        let mut cursor = Cursor::new(b"18446744073709551616");
        assert_eq!(cursor.decimal(), None);
        assert_eq!(cursor.rest().len(), 20);
        assert_eq!(Cursor::new(b"18446744073709551615").decimal(), Some(u64::MAX));
        assert_eq!(Cursor::new(b"").hex(), None);
        assert_eq!(Cursor::new(b"-").signed(), None);
    }
}
