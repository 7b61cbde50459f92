//! An output as a recording prints it and as the model predicts it: one value, without what the model cannot know.
//!
//! Owns the masks per event. Frames, and the accessed bit that the processor sets, are taken out of both sides; of an entry's
//! address its place in the table stays; MMIO entries are compared whole. One tolerance: a recording may have the dirty bit,
//! which the processor adds to a writable leaf behind KVM's back.

use super::rules::{PageWording, Rules, SpteWords};
use super::tdp::{self, is_same_leaf};
use crate::ftrace::event::Event as Recorded;
use crate::ftrace::page_text::{GpteSize, PageText};
use crate::ftrace::wording::Kind;
use crate::mmu::{Event as Predicted, PageFacts};

const FRAME: u64 = 0x000f_ffff_ffff_f000;
/// Address bits of an entry within its table.
const PLACE: u64 = 0xfff;
const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const FIXED: u8 = 1;
const SPURIOUS: u8 = 2;
const ROLE_DIRECT: u32 = 1 << 7;
const ROLE_AD_DISABLED: u32 = 1 << 16;

/// What is compared of one output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields of the events")]
pub enum Output {
    Page {
        page: PageText,
    },
    SetSpte {
        gfn: u64,
        bits: u64,
        access: [bool; 4],
        level: u64,
        place: u64,
    },
    PageZapPte {
        place: u64,
        spte: u64,
    },
    MarkMmio {
        place: Option<u64>,
        gfn: u64,
        access: u64,
        mmio_gen: u64,
    },
    FastPageFault {
        vcpu: u64,
        gva: u64,
        error_code: u64,
        old: u64,
        new: u64,
        spurious: u64,
        fixed: u64,
    },
    /// Numbers that are compared as they are.
    Plain([u64; 4]),
    /// Of the TDP MMU.
    Change {
        as_id: u64,
        gfn: u64,
        level: u64,
        old: u64,
        new: u64,
    },
    Split {
        gfn: u64,
        spte: u64,
        level: u64,
        errno: u64,
    },
    Leaf {
        gfn: u64,
        spte: u64,
        access: [bool; 4],
        level: u64,
        place: u64,
    },
    FastChange {
        vcpu: u64,
        gva: u64,
        error_code: u64,
        place: u64,
        old: u64,
        new: u64,
        spurious: u64,
        fixed: u64,
    },
}

impl Output {
    /// Whether a recorded output is the predicted one.
    #[must_use]
    pub fn is_like(&self, predicted: &Self, words: &SpteWords) -> bool {
        let is_same = |theirs: u64, mine: u64| theirs == mine || theirs == mine | words.dirty;
        match (*self, *predicted) {
            (Self::PageZapPte { place, spte }, Self::PageZapPte { place: own_place, spte: own }) => {
                place == own_place && is_same(spte, own)
            }
            (Self::FastPageFault { old, new, .. }, Self::FastPageFault { old: own_old, new: own_new, .. }) => {
                let mut own = *predicted;
                if let Self::FastPageFault { old: own_old, new: own_new, .. } = &mut own {
                    (*own_old, *own_new) = (old, new);
                }
                *self == own && is_same(old, own_old) && is_same(new, own_new)
            }
            (
                Self::Change { as_id, gfn, level, old, new },
                Self::Change { as_id: own_space, gfn: own_gfn, level: own_level, old: own_old, new: own_new },
            ) => {
                (as_id, gfn, level) == (own_space, own_gfn, own_level)
                    && is_same_leaf(old, own_old, level, words)
                    && is_same_leaf(new, own_new, level, words)
            }
            (
                Self::Split { gfn, spte, level, errno },
                Self::Split { gfn: own_gfn, spte: own, level: own_level, errno: own_errno },
            ) => (gfn, level, errno) == (own_gfn, own_level, own_errno) && is_same_leaf(spte, own, level, words),
            (Self::FastChange { old, new, .. }, Self::FastChange { old: own_old, new: own_new, .. }) => {
                let mut own = *predicted;
                if let Self::FastChange { old: own_old, new: own_new, .. } = &mut own {
                    (*own_old, *own_new) = (old, new);
                }
                *self == own && is_same_leaf(old, own_old, 1, words) && is_same_leaf(new, own_new, 1, words)
            }
            _ => self == predicted,
        }
    }
}

/// A recorded output; None: its text is none of a kernel's.
#[must_use]
pub fn recorded(event: &Recorded<'_>, rules: &Rules) -> Option<Output> {
    let wording = event.wording().kernels;
    if wording.starts_with("raw") || wording.starts_with("plugin") {
        return None;
    }
    if rules.is_tdp
        && let Some(output) = tdp::recorded(event, rules)
    {
        return Some(output);
    }
    let words = &rules.words;
    Some(match (event.kind, event.numbers()) {
        (Kind::GetPage | Kind::PrepareZapPage, _) => Output::Page { page: *event.page()? },
        (Kind::SetSpte, &[gfn, spte, level, at]) => {
            let access = letters(event.texts().first()?)?;
            Output::SetSpte { gfn, bits: spte & !FRAME, access, level, place: at & PLACE }
        }
        (Kind::PageZapPte, &[sptep, spte]) => Output::PageZapPte { place: sptep & PLACE, spte: masked(spte, words) },
        (Kind::MarkMmioSpte, &[gfn, access, mmio_gen]) => {
            Output::MarkMmio { place: place_of(event.texts().first()?), gfn, access, mmio_gen }
        }
        (Kind::CheckMmioSpte, &[spte, kvm_gen, spte_gen, valid]) => Output::Plain([spte, kvm_gen, spte_gen, valid]),
        (Kind::FastPageFault, &[vcpu, gva, old, new, spurious, fixed]) => {
            let error_code = error_of(event.texts().first()?, &rules.wording)?;
            let (old, new) = (masked(old, words), masked(new, words));
            Output::FastPageFault { vcpu, gva, error_code, old, new, spurious, fixed }
        }
        (kind, numbers) if is_plain(kind) && numbers.len() <= 4 => plain(numbers),
        _ => return None,
    })
}

/// What a kernel would print for an event of the model; None: it has no tracepoint.
#[must_use]
pub fn predicted(event: &Predicted, rules: &Rules) -> Option<(Kind, Output)> {
    let (words, wording) = (&rules.words, &rules.wording);
    let place = |index: u16| u64::from(index) << 3;
    Some(match *event {
        Predicted::GetPage { page, created } if rules.is_tdp => {
            (Kind::GetPage, page_output(&tdp::told_page(page), Some(created), wording))
        }
        Predicted::PrepareZap { page } if rules.is_tdp => {
            (Kind::PrepareZapPage, page_output(&tdp::told_page(page), None, wording))
        }
        Predicted::GetPage { page, created } => (Kind::GetPage, page_output(&page, Some(created), wording)),
        Predicted::PrepareZap { page } => (Kind::PrepareZapPage, page_output(&page, None, wording)),
        Predicted::SetSpte { index, gfn, spte, level, .. } => {
            let access = access_of(spte, words);
            let leaf = Output::SetSpte { gfn, bits: spte & !FRAME, access, level: level.into(), place: place(index) };
            (Kind::SetSpte, leaf)
        }
        Predicted::PageZapPte { index, spte, .. } => {
            (Kind::PageZapPte, Output::PageZapPte { place: place(index), spte: masked(spte, words) })
        }
        Predicted::MarkMmio { index, gfn, access, mmio_gen, .. } => {
            let place = wording.says_places.then(|| place(index));
            (Kind::MarkMmioSpte, Output::MarkMmio { place, gfn, access: access.into(), mmio_gen })
        }
        Predicted::FastPf { vcpu, addr, error_code, old, new, handled, .. } => {
            let (spurious, fixed) = if wording.fast_by_writable {
                (handled != 0 && old & WRITABLE != 0, handled != 0 && new & WRITABLE != 0)
            } else {
                (handled & SPURIOUS != 0, handled & FIXED != 0)
            };
            let fault = Output::FastPageFault {
                vcpu: vcpu.into(),
                gva: addr,
                error_code: error_code & wording.error_mask,
                old: masked(old, words),
                new: masked(new, words),
                spurious: spurious.into(),
                fixed: fixed.into(),
            };
            (Kind::FastPageFault, fault)
        }
        Predicted::CheckMmio { spte, kvm_gen, spte_gen } => {
            (Kind::CheckMmioSpte, plain(&[spte, kvm_gen, spte_gen, u64::from(kvm_gen == spte_gen)]))
        }
        Predicted::HandleMmio { addr, gfn, access } => (Kind::HandleMmioPageFault, plain(&[addr, gfn, access.into()])),
        Predicted::InvalidateZapAll { valid_gen, used } => (Kind::InvalidateZapAllPages, plain(&[valid_gen, used])),
        Predicted::ZapAllFast { valid_gen, used } => (Kind::ZapAllFast, plain(&[valid_gen, used])),
        Predicted::CommitZap => (Kind::CommitZap, plain(&[])),
        Predicted::FlushShadowMemslot => (Kind::FlushShadowMemslot, plain(&[])),
        Predicted::ZapAllFastEnter => (Kind::ZapAllFastEnter, plain(&[])),
        Predicted::MakeMmioSpte { gfn, access } => (Kind::MakeMmioSpte, plain(&[gfn, access.into()])),
        Predicted::MakeMmioSpteRet { spte } => (Kind::MakeMmioSpteRet, plain(&[spte])),
        Predicted::TryUnsync { gfn, can_unsync, prefetch } => {
            let said = can_unsync != wording.try_unsync_inverted;
            (Kind::TryUnsync, plain(&[gfn, said.into(), prefetch.into()]))
        }
        Predicted::TryUnsyncRet { ret } => (Kind::TryUnsyncRet, plain(&[i64::from(ret).cast_unsigned()])),
        Predicted::ZapOldestRet { nr_zapped } => (Kind::ZapOldestRet, plain(&[nr_zapped])),
        Predicted::ChangeMmuPages { goal } => (Kind::ChangeMmuPages, plain(&[goal])),
        Predicted::MemslotsUpdated { slots_gen } => (Kind::MemslotsUpdated, plain(&[slots_gen])),
        Predicted::InvalidateMmio { slots_gen } => (Kind::InvalidateMmio, plain(&[slots_gen])),
        _ => return None,
    })
}

/// Outputs whose numbers say everything.
const fn is_plain(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::HandleMmioPageFault
            | Kind::InvalidateZapAllPages
            | Kind::ZapAllFast
            | Kind::CommitZap
            | Kind::FlushShadowMemslot
            | Kind::ZapAllFastEnter
            | Kind::MakeMmioSpte
            | Kind::MakeMmioSpteRet
            | Kind::TryUnsync
            | Kind::TryUnsyncRet
            | Kind::ZapOldestRet
            | Kind::ChangeMmuPages
            | Kind::MemslotsUpdated
            | Kind::InvalidateMmio
    )
}

fn plain(numbers: &[u64]) -> Output {
    let mut all = [0; 4];
    for (at, number) in numbers.iter().enumerate().take(4) {
        all[at] = *number;
    }
    Output::Plain(all)
}

/// A raw value without its frame and without what the processor sets.
const fn masked(spte: u64, words: &SpteWords) -> u64 {
    if spte & words.mmio.0 == words.mmio.1 { spte } else { spte & !FRAME & !words.accessed }
}

fn page_output(page: &PageFacts, created: Option<bool>, wording: &PageWording) -> Output {
    let role = page.role;
    let bit4 = role & 1 << 4 != 0;
    let gpte_size = match (wording.gpte_bytes, bit4) {
        (true, _) if bit4 == wording.bit4_is_four => GpteSize::Four,
        (true, _) => GpteSize::Eight,
        (false, true) => GpteSize::Pae,
        (false, false) => GpteSize::Unsaid,
    };
    let (mut access, mut says_read) = (0, false);
    for &(bit, letter) in &wording.access {
        says_read |= letter == b'r';
        if role >> 8 & bit != 0 {
            access |= match letter {
                b'r' => 8,
                b'w' => 2,
                b'u' => 4,
                _ => 1,
            };
        }
    }
    let text = PageText {
        valid_gen: wording.has_gen.then_some(page.valid_gen),
        gfn: page.gfn,
        level: u8::try_from(role & 0xf).unwrap_or(u8::MAX),
        gpte_size,
        quadrant: u8::try_from(role >> 5 & 3).unwrap_or(u8::MAX),
        direct: role & ROLE_DIRECT != 0,
        access,
        says_read,
        invalid: role & wording.invalid != 0,
        nxe: role & wording.invalid << 1 != 0,
        ad: role & ROLE_AD_DISABLED == 0,
        root_count: i32::try_from(page.root_count).unwrap_or(i32::MAX),
        unsync: page.unsync,
        created,
    };
    Output::Page { page: text }
}

/// What a leaf allows, in the order of its letters.
pub(super) const fn access_of(spte: u64, words: &SpteWords) -> [bool; 4] {
    let (mask, wanted) = words.executable;
    [spte & PRESENT != 0, spte & WRITABLE != 0, spte & mask == wanted, spte & words.user != 0]
}

/// `rwxu`, a dash for each that is missing.
pub(super) fn letters(text: &[u8]) -> Option<[bool; 4]> {
    let text: [u8; 4] = text.try_into().ok()?;
    let mut access = [false; 4];
    for (at, letter) in b"rwxu".iter().enumerate() {
        access[at] = text[at] == *letter;
        if !access[at] && text[at] != b'-' {
            return None;
        }
    }
    Some(access)
}

/// The place of an entry whose address is printed; None where a kernel hides it.
pub(super) fn place_of(sptep: &[u8]) -> Option<u64> {
    let is_address = sptep.len() == 16 && sptep.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let text = std::str::from_utf8(sptep).ok().filter(|_| is_address)?;
    Some(u64::from_str_radix(text, 16).ok()? & PLACE)
}

/// `P|W|0x100000000`: names in their order, then what has no name as one number.
pub(super) fn error_of(text: &[u8], wording: &PageWording) -> Option<u64> {
    let (mut code, mut rest) = (0, text);
    for (bit, name) in &wording.flags {
        let Some(after) = rest.strip_prefix(name.as_bytes()) else { continue };
        rest = match after.strip_prefix(b"|") {
            Some(more) if !more.is_empty() => more,
            None if after.is_empty() => after,
            _ => continue,
        };
        code |= bit;
    }
    if rest.is_empty() {
        return Some(code);
    }
    let digits = std::str::from_utf8(rest.strip_prefix(b"0x")?).ok()?;
    let number = u64::from_str_radix(digits, 16).ok().filter(|_| digits.as_bytes()[0].is_ascii_hexdigit())?;
    let named: u64 = wording.flags.iter().map(|(bit, _)| bit).sum();
    (number != 0 && number & named == 0).then_some(code | number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wording() -> PageWording {
        let flags = [(1, "P"), (2, "W"), (4, "U"), (32, "PK"), (8, "RSVD"), (16, "F")];
        PageWording { flags: flags.map(|(bit, name)| (bit, name.to_owned())).to_vec(), ..PageWording::default() }
    }

    #[test]
    fn error_codes() {
        let code = |text: &[u8]| error_of(text, &wording());
        assert_eq!(code(b"P|W|U|0x100000000"), Some(0x1_0000_0007));
        assert_eq!(
            (code(b"PK|F"), code(b"P|PK"), code(b""), code(b"0x200000000")),
            (Some(48), Some(33), Some(0), Some(1 << 33))
        );
        for text in [&b"W|P"[..], b"P|", b"P|0x1", b"X", b"0x", b"0x+1", b"P W"] {
            assert_eq!(code(text), None, "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn a_recording_may_have_the_dirty_bit_and_not_the_other_way_round() {
        let words = SpteWords { dirty: 0x40, ..SpteWords::default() };
        let entry = |spte| Output::PageZapPte { place: 8, spte };
        assert!(entry(0x867).is_like(&entry(0x827), &words) && !entry(0x827).is_like(&entry(0x867), &words));
        let fault =
            |old, fixed| Output::FastPageFault { vcpu: 0, gva: 1, error_code: 7, old, new: 3, spurious: 0, fixed };
        assert!(fault(0x65, 1).is_like(&fault(0x25, 1), &words) && !fault(0x65, 1).is_like(&fault(0x25, 0), &words));
        assert!(!entry(0x827).is_like(&Output::Plain([0; 4]), &words));
    }

    #[test]
    fn places_and_letters() {
        assert_eq!((place_of(b"ffff8881668a9038"), place_of(b"(____ptrval____)")), (Some(0x38), None));
        assert_eq!(
            (letters(b"rw-u"), letters(b"rwx"), letters(b"urwx")),
            (Some([true, true, false, true]), None, None)
        );
    }
}
