//! Which kernels can have printed a trace, as far as the wording tells: never a guess, always a set.
//!
//! Owns the hints (generation in the page text, size of a guest entry, events that came or went) and their meaning.

use super::event::Event;
use super::page_text::GpteSize;
use super::wording::Kind;

/// A range of kernels whose wording is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Era {
    /// v5.0: generation, no size of a guest entry.
    V50,
    /// v5.1 and v5.2: no generation.
    V51To52,
    /// v5.3: no generation, `kvm_mmu_spte_requested` exists.
    V53,
    /// v5.4 and later, before the wider page-fault text.
    V54,
    /// v6.1 and later releases with its wording.
    V61,
    /// v6.12: wider error codes.
    V612,
}

impl Era {
    /// All, oldest first.
    pub const ALL: [Era; 6] = [Era::V50, Era::V51To52, Era::V53, Era::V54, Era::V61, Era::V612];

    /// How people call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Era::V50 => "v5.0",
            Era::V51To52 => "v5.1-v5.2",
            Era::V53 => "v5.3",
            Era::V54 => "v5.4",
            Era::V61 => "v6.1",
            Era::V612 => "v6.12",
        }
    }

    const fn bit(self) -> u8 {
        1 << (self as u8)
    }
}

/// The eras that are still possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Eras(u8);

impl Default for Eras {
    fn default() -> Self {
        Self((1 << Era::ALL.len()) - 1)
    }
}

const fn set(eras: &[Era]) -> u8 {
    let mut bits = 0;
    let mut i = 0;
    while i < eras.len() {
        bits |= eras[i].bit();
        i += 1;
    }
    bits
}

impl Eras {
    /// Take what an event's text excludes.
    #[inline]
    pub fn note(&mut self, event: &Event<'_>) {
        let allowed = match event.kind {
            Kind::GetPage | Kind::PrepareZapPage | Kind::SyncPage | Kind::UnsyncPage => match event.page() {
                Some(page) => match (page.valid_gen, page.gpte_size) {
                    (Some(_), GpteSize::Unsaid | GpteSize::Pae) => set(&[Era::V50]),
                    (None, _) => set(&[Era::V51To52, Era::V53]),
                    (Some(_), _) => set(&[Era::V54, Era::V61, Era::V612]),
                },
                None => match event.wording().kernels {
                    "raw" => set(&[Era::V50, Era::V54, Era::V61, Era::V612]),
                    "raw, v5.1-v5.3" => set(&[Era::V51To52, Era::V53]),
                    _ => return,
                },
            },
            Kind::InvalidateZapAllPages => set(&[Era::V50]),
            Kind::ZapAllFast => set(&[Era::V54, Era::V61, Era::V612]),
            Kind::SpteRequested | Kind::SetSpte => set(&[Era::V53, Era::V54, Era::V61, Era::V612]),
            Kind::PageFault => match event.number("vcpu") {
                Some(_) => set(&[Era::V61, Era::V612]),
                None => set(&[Era::V50, Era::V51To52, Era::V53, Era::V54]),
            },
            Kind::SetSpteHva => set(&[Era::V50, Era::V51To52, Era::V53, Era::V54, Era::V61]),
            Kind::FastPageFault if event.text("error_code").is_some_and(|text| text.contains(&b'x')) => {
                set(&[Era::V612])
            }
            _ => return,
        };
        self.0 &= allowed;
    }

    /// Those that are left; none when the trace contradicts itself.
    pub fn iter(self) -> impl Iterator<Item = Era> {
        Era::ALL.into_iter().filter(move |era| self.0 & era.bit() != 0)
    }
}
