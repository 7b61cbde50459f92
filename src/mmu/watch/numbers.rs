//! Numbers as text, for dumps of millions of them.
//!
//! Ours. What `write!` with `{}` and `{:#x}` would write, in a fifth of the time; digits are put together backwards.

/// Digits of the largest number, decimal.
const MOST: usize = 20;

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "a digit is below 16")]
fn put_digits<const BASE: u64>(out: &mut String, value: u64) {
    let mut digits = [0_u8; MOST];
    let mut at = MOST;
    let mut left = value;
    while at > 0 {
        at -= 1;
        let digit = (left % BASE) as u8;
        digits[at] = if digit < 10 { b'0' + digit } else { b'a' - 10 + digit };
        left /= BASE;
        if left == 0 {
            break;
        }
    }
    out.push_str(std::str::from_utf8(&digits[at..]).unwrap_or_default());
}

/// A decimal number.
#[inline]
pub(in crate::mmu) fn put_decimal(out: &mut String, value: u64) {
    put_digits::<10>(out, value);
}

/// Texts with a number behind each, and a last text.
#[inline]
pub(in crate::mmu) fn put_fields(out: &mut String, fields: &[(&str, u64)], end: &str) {
    for &(text, value) in fields {
        out.push_str(text);
        put_decimal(out, value);
    }
    out.push_str(end);
}

/// A hexadecimal number behind `0x`.
#[inline]
pub(in crate::mmu) fn put_hex(out: &mut String, value: u64) {
    out.push_str("0x");
    put_digits::<16>(out, value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_what_formatting_writes() {
        let around = |value: u64| [value.wrapping_sub(1), value, value.wrapping_add(1)];
        let shifts = (0..64).flat_map(|shift| around(1 << shift));
        let tens = (0..20).flat_map(|power| around(10_u64.wrapping_pow(power)));
        for value in shifts.chain(tens) {
            let (mut decimal, mut hex) = (String::new(), String::new());
            put_decimal(&mut decimal, value);
            put_hex(&mut hex, value);
            assert_eq!((decimal, hex), (format!("{value}"), format!("{value:#x}")));
        }
    }
}
