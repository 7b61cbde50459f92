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
    /// v5.4: before entries and exits had the instruction pointer and the vCPU.
    V54,
    /// v5.10: before the wider page-fault text.
    V510,
    /// v6.1 and later releases with its wording.
    V61,
    /// v6.12: wider error codes.
    V612,
    /// v6.18 and v7.1: entries with what is injected, exits with the requests.
    V618,
    /// v7.2 and later: reading is an access of its own.
    V72,
}

impl Era {
    /// All, oldest first.
    pub const ALL: [Era; 9] =
        [Era::V50, Era::V51To52, Era::V53, Era::V54, Era::V510, Era::V61, Era::V612, Era::V618, Era::V72];

    /// How people call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Era::V50 => "v5.0",
            Era::V51To52 => "v5.1-v5.2",
            Era::V53 => "v5.3",
            Era::V54 => "v5.4",
            Era::V510 => "v5.10",
            Era::V61 => "v6.1",
            Era::V612 => "v6.12",
            Era::V618 => "v6.18-v7.1",
            Era::V72 => "v7.2",
        }
    }

    const fn bit(self) -> u16 {
        1 << (self as u16)
    }
}

/// The eras that are still possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Eras(u16);

impl Default for Eras {
    fn default() -> Self {
        Self((1 << Era::ALL.len()) - 1)
    }
}

const fn set(eras: &[Era]) -> u16 {
    let mut bits = 0;
    let mut i = 0;
    while i < eras.len() {
        bits |= eras[i].bit();
        i += 1;
    }
    bits
}

/// Two eras and those between.
const fn between(first: Era, last: Era) -> u16 {
    (last.bit() << 1) - first.bit()
}

/// An era and the later ones.
const fn from(first: Era) -> u16 {
    between(first, Era::ALL[Era::ALL.len() - 1])
}

impl Eras {
    /// Take what an event's text excludes.
    #[inline]
    pub fn note(&mut self, event: &Event<'_>) {
        let allowed = match event.kind {
            Kind::GetPage | Kind::PrepareZapPage | Kind::SyncPage | Kind::UnsyncPage => match event.page() {
                Some(page) => match (page.valid_gen, page.gpte_size) {
                    _ if page.says_read => set(&[Era::V72]),
                    (Some(_), GpteSize::Unsaid | GpteSize::Pae) => set(&[Era::V50]),
                    (None, _) => set(&[Era::V51To52, Era::V53]),
                    (Some(_), _) => between(Era::V54, Era::V618),
                },
                None => match event.wording().kernels {
                    "raw" => set(&[Era::V50]) | from(Era::V54),
                    "raw, v5.1-v5.3" => set(&[Era::V51To52, Era::V53]),
                    _ => return,
                },
            },
            Kind::InvalidateZapAllPages => set(&[Era::V50]),
            Kind::ZapAllFast => from(Era::V54),
            Kind::SpteRequested if event.number("access").is_some() => set(&[Era::V72]),
            Kind::SpteRequested => between(Era::V53, Era::V618),
            Kind::SetSpte => from(Era::V53),
            Kind::PageFault if event.number("vcpu").is_some() => from(Era::V61),
            Kind::PageFault => between(Era::V50, Era::V510),
            Kind::Entry if event.number("intr_info").is_some() => from(Era::V618),
            Kind::Entry if event.number("immediate_exit").is_some() => between(Era::V61, Era::V612),
            Kind::Entry if event.number("rip").is_some() => between(Era::V510, Era::V612),
            Kind::Exit if event.number("requests").is_some() => from(Era::V618),
            Kind::Exit if event.number("vcpu").is_some() => between(Era::V510, Era::V612),
            Kind::Entry | Kind::Exit => between(Era::V50, Era::V54),
            Kind::SetSpteHva => between(Era::V50, Era::V61),
            Kind::FastPageFault if event.text("error_code").is_some_and(|text| text.contains(&b'x')) => from(Era::V612),
            _ => return,
        };
        self.0 &= allowed;
    }

    /// Take what others exclude.
    pub(super) fn exclude(&mut self, others: Eras) {
        self.0 &= others.0;
    }

    /// Those that are left; none when the trace contradicts itself.
    pub fn iter(self) -> impl Iterator<Item = Era> {
        Era::ALL.into_iter().filter(move |era| self.0 & era.bit() != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::event::Outcome;
    use super::*;

    /// The eras that one event of this text leaves.
    fn left(name: &str, text: &str) -> Vec<&'static str> {
        let mut event = Event::default();
        assert_eq!(event.read(name.as_bytes(), text.as_bytes()), Outcome::Known, "{name}: {text}");
        let mut eras = Eras::default();
        eras.note(&event);
        eras.iter().map(Era::name).collect()
    }

    #[test]
    fn what_a_text_leaves() {
        assert_eq!(left("kvm_page_fault", "address 2000 error_code 14").last(), Some(&"v5.10"));
        assert_eq!(left("kvm_entry", "vcpu 0, rip 0x2000"), ["v5.10", "v6.1", "v6.12"]);
        assert_eq!(
            left("kvm_entry", "vcpu 0, rip 0x2000 intr_info 0x00000000 error_code 0x00000000"),
            ["v6.18-v7.1", "v7.2"]
        );
        assert_eq!(left("kvm_mmu_spte_requested", "gfn 1 pfn 2 level 1 access f"), ["v7.2"]);
        assert_eq!(
            left("kvm_mmu_get_page", "sp gen 0 gfn 0 l3 8-byte q0 direct wux nxe ad root 0 sync new"),
            ["v5.4", "v5.10", "v6.1", "v6.12", "v6.18-v7.1"]
        );
        assert_eq!(left("kvm_mmu_zap_all_fast", "kvm-mmu-valid-gen 1 used_pages e").first(), Some(&"v5.4"));
    }
}
