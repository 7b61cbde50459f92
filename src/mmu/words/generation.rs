//! How a memslot generation is kept inside an MMIO SPTE: the layout, as data. What a generation *is* (first value, step,
//! wrap) is not known here; that is the caller's policy.
//!
//! Models the generation bits of v5.0 `generation_mmio_spte_mask` and of v5.1-v5.10, known bug included.

use serde::{Deserialize, Serialize};

use crate::mmu::words::error::{Error, Result};

/// One run of bits copied from the generation into the SPTE and OR-ed back when reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationField {
    /// Lowest bit of the generation that is copied.
    pub gen_shift: u8,
    /// How many bits.
    pub bits: u8,
    /// Where the lowest of them lands in the SPTE.
    pub spte_shift: u8,
    /// How many bits are read back; v5.0 does not mask its high field, so bits 62 and 63 of a foreign word come along.
    pub read_bits: u8,
}

impl GenerationField {
    const fn low_mask(self) -> u64 {
        if self.bits >= 64 { u64::MAX } else { (1 << self.bits) - 1 }
    }

    const fn read_mask(self) -> u64 {
        if self.read_bits >= 64 { u64::MAX } else { (1 << self.read_bits) - 1 }
    }

    const fn spte_mask(self) -> u64 {
        self.low_mask() << self.spte_shift
    }
}

/// How the generation is compared and where its bits lie in an MMIO SPTE.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationLayout {
    /// The value compared is the generation modulo 2^width.
    pub width: u8,
    /// Bits that mark an update in progress.
    pub in_progress: u64,
    /// While those bits are set: nothing enters the vCPU's MMIO cache and no MMIO SPTE is fresh (v5.1 and later).
    pub refuse_in_progress: bool,
    /// The fields, each OR-ed in and OR-ed back.
    pub fields: Vec<GenerationField>,
}

impl GenerationLayout {
    /// v5.0: 20 bits of which bit 0 is not stored; bits 1-9 in SPTE bits 3-11, bits 10-19 in 52-61.
    #[must_use]
    pub fn v5_0() -> Self {
        Self {
            width: 20,
            in_progress: 1,
            refuse_in_progress: false,
            fields: vec![
                GenerationField { gen_shift: 1, bits: 9, spte_shift: 3, read_bits: 9 },
                GenerationField { gen_shift: 10, bits: 10, spte_shift: 52, read_bits: 12 },
            ],
        }
    }

    /// v5.1 to v5.10: 19 bits; the high field holds generation bits 0-9 again instead of 9-18 (the kernel's known bug).
    #[must_use]
    pub fn v5_2() -> Self {
        Self {
            width: 19,
            in_progress: 1 << 63,
            refuse_in_progress: true,
            fields: vec![
                GenerationField { gen_shift: 0, bits: 9, spte_shift: 3, read_bits: 9 },
                GenerationField { gen_shift: 0, bits: 10, spte_shift: 52, read_bits: 10 },
            ],
        }
    }

    /// v6.1 and v6.12: 19 bits; bits 0-7 in SPTE bits 3-10, bits 8-18 in 52-62.
    #[must_use]
    pub fn v6_1() -> Self {
        Self {
            fields: vec![
                GenerationField { gen_shift: 0, bits: 8, spte_shift: 3, read_bits: 8 },
                GenerationField { gen_shift: 8, bits: 11, spte_shift: 52, read_bits: 11 },
            ],
            ..Self::v5_2()
        }
    }

    /// v5.10: 18 bits; bits 0-8 in SPTE bits 3-11, bits 9-17 in 54-62.
    #[must_use]
    pub fn v5_10() -> Self {
        Self {
            width: 18,
            fields: vec![
                GenerationField { gen_shift: 0, bits: 9, spte_shift: 3, read_bits: 9 },
                GenerationField { gen_shift: 9, bits: 9, spte_shift: 54, read_bits: 9 },
            ],
            ..Self::v5_2()
        }
    }

    /// v7.2 and later: 18 bits; bits 0-6 in SPTE bits 3-9, bits 7-17 in 52-62.
    #[must_use]
    pub fn v7_2() -> Self {
        Self {
            width: 18,
            fields: vec![
                GenerationField { gen_shift: 0, bits: 7, spte_shift: 3, read_bits: 7 },
                GenerationField { gen_shift: 7, bits: 11, spte_shift: 52, read_bits: 11 },
            ],
            ..Self::v5_2()
        }
    }

    /// Refuses a layout whose fields leave the word or touch the bits an MMIO SPTE needs for itself.
    pub fn check(&self) -> Result<()> {
        self.check_up_to(61)
    }

    /// The same for a kernel that leaves the bits up to `top` to the generation.
    pub fn check_up_to(&self, top: u8) -> Result<()> {
        if self.width == 0 || self.width > 63 {
            return Err(Error::Layout("the width must be 1 to 63"));
        }
        for field in &self.fields {
            if field.bits == 0 || field.spte_shift < 3 || u16::from(field.spte_shift) + u16::from(field.bits) > 63 {
                return Err(Error::Layout("a field must have bits and lie in SPTE bits 3 to 62"));
            }
            if u16::from(field.gen_shift) + u16::from(field.bits) > 64 {
                return Err(Error::Layout("a field reads past bit 63 of the generation"));
            }
            let low = u16::from(field.spte_shift);
            let high = low + u16::from(field.bits);
            if low < 52 && high > 12 {
                return Err(Error::Layout("a field overlaps the address bits 12 to 51"));
            }
            if high > u16::from(top) + 1 {
                return Err(Error::Layout("a field overlaps the highest bit that is the kernel's own"));
            }
        }
        Ok(())
    }

    /// The value two generations are compared by.
    #[must_use]
    pub const fn compared(&self, slots_gen: u64) -> u64 {
        slots_gen & ((1 << self.width) - 1)
    }

    /// Whether this generation says that an update is in flight and the kernel refuses to cache meanwhile.
    #[must_use]
    pub const fn is_refused(&self, slots_gen: u64) -> bool {
        self.refuse_in_progress && slots_gen & self.in_progress != 0
    }

    /// SPTE bits that hold the generation.
    #[must_use]
    pub fn spte_mask(&self) -> u64 {
        self.fields.iter().fold(0, |mask, field| mask | field.spte_mask())
    }

    /// The generation's bits of an MMIO SPTE.
    #[must_use]
    pub fn encode(&self, mmio_gen: u64) -> u64 {
        self.fields
            .iter()
            .fold(0, |spte, field| spte | ((mmio_gen >> field.gen_shift) & field.low_mask()) << field.spte_shift)
    }

    /// The generation read back from an MMIO SPTE.
    #[must_use]
    pub fn decode(&self, spte: u64) -> u64 {
        self.fields
            .iter()
            .fold(0, |mmio_gen, field| mmio_gen | ((spte >> field.spte_shift) & field.read_mask()) << field.gen_shift)
    }
}

/// What the MMIO codec asks of a layout.
pub trait GenerationBits {
    /// The value two generations are compared by.
    fn compared(&self, slots_gen: u64) -> u64;
    /// Whether this generation says that an update is in flight and the kernel refuses to cache meanwhile.
    fn is_refused(&self, slots_gen: u64) -> bool;
    /// SPTE bits that hold the generation.
    fn spte_mask(&self) -> u64;
    /// The generation's bits of an MMIO SPTE.
    fn encode(&self, mmio_gen: u64) -> u64;
    /// The generation read back from an MMIO SPTE.
    fn decode(&self, spte: u64) -> u64;
}

impl GenerationBits for GenerationLayout {
    fn compared(&self, slots_gen: u64) -> u64 {
        self.compared(slots_gen)
    }

    fn is_refused(&self, slots_gen: u64) -> bool {
        self.is_refused(slots_gen)
    }

    fn spte_mask(&self) -> u64 {
        self.spte_mask()
    }

    fn encode(&self, mmio_gen: u64) -> u64 {
        self.encode(mmio_gen)
    }

    fn decode(&self, spte: u64) -> u64 {
        self.decode(spte)
    }
}

/// One field, ready for use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct ReadyField {
    gen_shift: u32,
    low_mask: u64,
    read_mask: u64,
    spte_shift: u32,
}

impl ReadyField {
    const fn encode(self, mmio_gen: u64) -> u64 {
        (mmio_gen.wrapping_shr(self.gen_shift) & self.low_mask).wrapping_shl(self.spte_shift)
    }

    const fn decode(self, spte: u64) -> u64 {
        (spte.wrapping_shr(self.spte_shift) & self.read_mask).wrapping_shl(self.gen_shift)
    }
}

/// A checked layout in the form the fault path uses: masks computed, the usual two fields at hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GenerationCodec {
    compared: u64,
    refused: u64,
    spte_mask: u64,
    two: [ReadyField; 2],
    rest: Vec<ReadyField>,
}

impl GenerationCodec {
    /// Prepares a layout.
    #[must_use]
    pub fn new(layout: &GenerationLayout) -> Self {
        let mut ready = layout.fields.iter().map(|field| ReadyField {
            gen_shift: field.gen_shift.into(),
            low_mask: field.low_mask(),
            read_mask: field.read_mask(),
            spte_shift: field.spte_shift.into(),
        });
        Self {
            compared: layout.compared(u64::MAX),
            refused: if layout.refuse_in_progress { layout.in_progress } else { 0 },
            spte_mask: layout.spte_mask(),
            two: [ready.next().unwrap_or_default(), ready.next().unwrap_or_default()],
            rest: ready.collect(),
        }
    }
}

impl GenerationBits for GenerationCodec {
    #[inline]
    fn compared(&self, slots_gen: u64) -> u64 {
        slots_gen & self.compared
    }

    #[inline]
    fn is_refused(&self, slots_gen: u64) -> bool {
        slots_gen & self.refused != 0
    }

    #[inline]
    fn spte_mask(&self) -> u64 {
        self.spte_mask
    }

    #[inline]
    fn encode(&self, mmio_gen: u64) -> u64 {
        let two = self.two[0].encode(mmio_gen) | self.two[1].encode(mmio_gen);
        self.rest.iter().fold(two, |spte, field| spte | field.encode(mmio_gen))
    }

    #[inline]
    fn decode(&self, spte: u64) -> u64 {
        let two = self.two[0].decode(spte) | self.two[1].decode(spte);
        self.rest.iter().fold(two, |mmio_gen, field| mmio_gen | field.decode(spte))
    }
}
