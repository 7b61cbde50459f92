//! The description of a shadow page that the page events share: role, root count, sync state, as text and as values.
//!
//! | kernels | text |
//! |---|---|
//! | v5.0 | `sp gen HEX gfn HEX lN[ pae] qN[ direct] ACC[ invalid] [!]nxe [!]ad root N sync` |
//! | v5.1-v5.3 | `sp gfn HEX lN 8-byte qN ...` |
//! | v5.4+ | `sp gen DEC gfn HEX lN 8-byte qN ...` |
//! | v7.2+ | the same, ACC with a letter for reading: `rwux` for `wux` |
//!
//! `kvm_mmu_get_page` appends ` new` or ` existing`. Some kernels print a NUL byte after the sync state.

use super::scan::Cursor;

/// The bit for reading in `PageText::access`.
const READ: u8 = 8;

/// Size of a guest entry as the text has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GpteSize {
    /// Nothing printed (v5.0, not PAE).
    #[default]
    Unsaid,
    /// ` pae` (v5.0).
    Pae,
    /// ` 4-byte`.
    Four,
    /// ` 8-byte`.
    Eight,
}

/// What a page event says about its page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is one word of the text")]
pub struct PageText {
    /// Valid generation; None where the text has none. Hexadecimal in v5.0, decimal from v5.4 on (where it is 0 or 1).
    pub valid_gen: Option<u64>,
    /// First guest frame.
    pub gfn: u64,
    /// Level, 1 to 5.
    pub level: u8,
    /// Size of a guest entry.
    pub gpte_size: GpteSize,
    /// Quadrant, 0 to 3.
    pub quadrant: u8,
    /// Maps guest physical memory directly.
    pub direct: bool,
    /// Access: 1 execute, 2 write, 4 user, 8 read (all that the text says, whatever the kernel's own bits).
    pub access: u8,
    /// The text has a letter for reading (v7.2 and later).
    pub says_read: bool,
    /// Marked invalid.
    pub invalid: bool,
    /// Role bit `nxe`.
    pub nxe: bool,
    /// Accessed/dirty bits are used.
    pub ad: bool,
    /// Users that hold it as a root.
    pub root_count: i32,
    /// Not in sync with its guest table.
    pub unsync: bool,
    /// `new` or `existing`, where the event says it.
    pub created: Option<bool>,
}

impl PageText {
    /// Read the whole text.
    #[must_use]
    pub fn parse(body: &[u8]) -> Option<PageText> {
        let mut cursor = Cursor::new(body);
        cursor.literal(b"sp ")?;
        let valid_gen = if cursor.has(b"gen ") {
            let value = cursor.hex()?;
            cursor.literal(b" ")?;
            Some(value)
        } else {
            None
        };
        cursor.literal(b"gfn ")?;
        let gfn = cursor.hex()?;
        cursor.literal(b" l")?;
        let level = small(&mut cursor, 9)?;
        let gpte_size = gpte_size(&mut cursor);
        cursor.literal(b" q")?;
        let quadrant = small(&mut cursor, 3)?;
        let direct = cursor.has(b" direct");
        cursor.literal(b" ")?;
        let (access, says_read) = access(&mut cursor)?;
        let invalid = cursor.has(b" invalid");
        cursor.literal(b" ")?;
        let nxe = !cursor.has(b"!");
        cursor.literal(b"nxe ")?;
        let ad = !cursor.has(b"!");
        cursor.literal(b"ad root ")?;
        let root_count = i32::try_from(cursor.signed()?.cast_signed()).ok()?;
        cursor.literal(b" ")?;
        let unsync = cursor.has(b"un");
        cursor.literal(b"sync")?;
        cursor.has(b"\0");
        let created = created(&mut cursor)?;
        let page = PageText {
            valid_gen,
            gfn,
            level,
            gpte_size,
            quadrant,
            direct,
            access,
            says_read,
            invalid,
            nxe,
            ad,
            root_count,
            unsync,
            created,
        };
        Some(page)
    }

    /// Write it as the kernel does, without the NUL byte.
    pub fn write(&self, out: &mut Vec<u8>) {
        const ACCESS: [&str; 8] = ["---", "--x", "w--", "w-x", "-u-", "-ux", "wu-", "wux"];
        use std::io::Write;
        let size = match self.gpte_size {
            GpteSize::Unsaid => "",
            GpteSize::Pae => " pae",
            GpteSize::Four => " 4-byte",
            GpteSize::Eight => " 8-byte",
        };
        out.extend_from_slice(b"sp ");
        if let Some(value) = self.valid_gen {
            // Where it is decimal it is 0 or 1, so that both bases print the same.
            let _ = write!(out, "gen {value:x} ");
        }
        let _ = write!(
            out,
            "gfn {:x} l{}{size} q{}{} {}{}{} {}nxe {}ad root {} {}sync{}",
            self.gfn,
            self.level,
            self.quadrant,
            if self.direct { " direct" } else { "" },
            match (self.says_read, self.access & READ != 0) {
                (false, _) => "",
                (true, true) => "r",
                (true, false) => "-",
            },
            ACCESS[usize::from(self.access & 7)],
            if self.invalid { " invalid" } else { "" },
            if self.nxe { "" } else { "!" },
            if self.ad { "" } else { "!" },
            self.root_count,
            if self.unsync { "un" } else { "" },
            match self.created {
                None => "",
                Some(true) => " new",
                Some(false) => " existing",
            }
        );
    }
}

fn small(cursor: &mut Cursor<'_>, most: u8) -> Option<u8> {
    u8::try_from(cursor.decimal()?).ok().filter(|value| *value <= most)
}

fn gpte_size(cursor: &mut Cursor<'_>) -> GpteSize {
    for (text, size) in [(&b" 8-byte"[..], GpteSize::Eight), (b" 4-byte", GpteSize::Four), (b" pae", GpteSize::Pae)] {
        if cursor.has(text) {
            return size;
        }
    }
    GpteSize::Unsaid
}

/// `wux` or `rwux` with a dash for what is missing; whether the letter for reading was there.
fn access(cursor: &mut Cursor<'_>) -> Option<(u8, bool)> {
    const LETTERS: [(&[u8], u8); 4] = [(b"r", READ), (b"w", 2), (b"u", 4), (b"x", 1)];
    // Three letters and a dash at most before the fourth: a blank behind the third says that there is none.
    let says_read = cursor.rest().get(3) != Some(&b' ');
    let mut bits = 0;
    for (letter, bit) in &LETTERS[usize::from(!says_read)..] {
        if cursor.has(letter) {
            bits |= bit;
        } else {
            cursor.literal(b"-")?;
        }
    }
    Some((bits, says_read))
}

/// Nothing, ` new` or ` existing`, and then the end.
#[expect(clippy::option_option, reason = "the outer one is the failure to parse")]
fn created(cursor: &mut Cursor<'_>) -> Option<Option<bool>> {
    let created = if cursor.is_empty() {
        None
    } else {
        cursor.literal(b" ")?;
        if cursor.has(b"new") {
            Some(true)
        } else {
            cursor.literal(b"existing")?;
            Some(false)
        }
    };
    cursor.is_empty().then_some(created)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXTS: [&[u8]; 8] = [
        b"sp gen 0 gfn 0 l4 q0 direct wux nxe ad root 0 sync new",
        b"sp gen 1f gfn 10a l1 pae q3 -u- invalid !nxe !ad root 12 unsync",
        b"sp gfn f7ffe00 l1 8-byte q0 direct wux nxe ad root 0 sync",
        b"sp gfn 10b l1 4-byte q2 --- !nxe ad root 0 unsync existing",
        b"sp gen 1 gfn 100 l4 8-byte q0 w-x nxe ad root 1 sync",
        b"sp gfn 0 l5 8-byte q0 direct --x nxe ad root -1 sync new",
        b"sp gen 0 gfn 0 l4 8-byte q0 direct rwux nxe ad root 0 sync new",
        b"sp gen 0 gfn 105 l1 8-byte q0 r-u- invalid nxe ad root 0 unsync",
    ];

    #[test]
    fn text_to_values_and_back() {
        for text in TEXTS {
            let page = PageText::parse(text).expect("parses");
            let mut out = Vec::new();
            page.write(&mut out);
            assert_eq!(String::from_utf8_lossy(&out), String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn values() {
        let page = PageText::parse(TEXTS[1]).expect("parses");
        assert_eq!((page.valid_gen, page.gfn, page.level, page.gpte_size), (Some(0x1f), 0x10a, 1, GpteSize::Pae));
        assert_eq!((page.quadrant, page.direct, page.access, page.invalid), (3, false, 4, true));
        assert_eq!((page.nxe, page.ad, page.root_count, page.unsync, page.created), (false, false, 12, true, None));
    }

    #[test]
    fn reading_is_a_letter_of_its_own() {
        let page = |at: usize| PageText::parse(TEXTS[at]).expect("parses");
        assert_eq!((page(6).access, page(7).access), (0b1111, 0b1100));
        assert!(page(6).says_read && !page(0).says_read);
    }

    #[test]
    fn a_nul_behind_the_sync_state_is_no_text() {
        let page = PageText::parse(b"sp gfn 0 l4 8-byte q0 direct wux nxe ad root 0 sync\0 new").expect("parses");
        assert_eq!(page.created, Some(true));
    }

    #[test]
    fn cut_anywhere_it_is_refused() {
        for text in TEXTS {
            for end in 0..text.len() {
                let cut = &text[..end];
                // Two cuts leave a whole text: that of an event without new/existing.
                if !cut.ends_with(b"sync") {
                    assert_eq!(PageText::parse(cut), None, "{}", String::from_utf8_lossy(cut));
                }
            }
        }
    }
}
