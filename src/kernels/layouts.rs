//! Which layout of SPTEs, generations and roles a kernel has: names for the layouts of `mmu`.

use super::facts::{Value, Valued, words};
use crate::mmu::{GenerationLayout, Role, SpteLayout};

words! {
    /// Where the kernel's own bits lie in an SPTE.
    SpteKind {
        /// As in v5.0.
        V5_0 = "v5.0",
        /// As in v5.4.
        V5_4 = "v5.4",
        /// As in v5.10.
        V5_10 = "v5.10",
        /// As in v6.1.
        V6_1 = "v6.1",
        /// As in v6.12.
        V6_12 = "v6.12",
        /// As in v7.2.
        V7_2 = "v7.2",
    }
    /// How the generation lies in an MMIO SPTE.
    GenerationKind {
        /// As in v5.0.
        V5_0 = "v5.0",
        /// As in v5.1.
        V5_1 = "v5.1",
        /// As in v5.10.
        V5_10 = "v5.10",
        /// As in v6.1.
        V6_1 = "v6.1",
        /// As in v7.2.
        V7_2 = "v7.2",
    }
    /// How a page role is packed.
    RoleLayout {
        /// As in v5.0.
        V5_0 = "v5.0",
        /// As in v5.1.
        V5_1 = "v5.1",
        /// As in v6.1.
        V6_1 = "v6.1",
        /// As in v7.2.
        V7_2 = "v7.2",
    }
}

impl SpteKind {
    /// The bits themselves.
    #[must_use]
    pub const fn layout(self) -> &'static SpteLayout {
        match self {
            Self::V5_0 => &SpteLayout::V5_0,
            Self::V5_4 => &SpteLayout::V5_4,
            Self::V5_10 => &SpteLayout::V5_10,
            Self::V6_1 => &SpteLayout::V6_1,
            Self::V6_12 => &SpteLayout::V6_12,
            Self::V7_2 => &SpteLayout::V7_2,
        }
    }
}

impl RoleLayout {
    /// The role word as this kernel packs it. The model's own access is execute 1, write 2, user 4.
    #[must_use]
    pub const fn pack(self, role: Role) -> u32 {
        let word = role.into_bits();
        if !matches!(self, Self::V7_2) {
            return word;
        }
        // A bit for reading, execute above it: what lies higher moves up by one; SMEP has a place of its own.
        let low = word & 0xff;
        let access = rwux(role.access());
        let above = word >> 11 & 0b111;
        let smap = word >> 15 & 0b111;
        let smep = word >> 14 & 1;
        low | access << 8 | above << 12 | smap << 15 | smep << 20 | (word & 0xff00_0000)
    }

    /// The role of a word.
    #[must_use]
    pub const fn unpack(self, word: u32) -> Role {
        if !matches!(self, Self::V7_2) {
            return Role::from_bits(word);
        }
        let access = (word >> 8 & 0b110) | (word >> 11 & 1);
        let packed = (word & 0xff) | access << 8 | (word >> 12 & 0b111) << 11 | (word >> 15 & 0b111) << 15;
        Role::from_bits(packed | (word >> 20 & 1) << 14 | (word & 0xff00_0000))
    }
}

/// Execute 1, write 2, user 4 as read 1, write 2, user 4, execute 8; reading is always allowed.
#[must_use]
pub const fn rwux(access: u8) -> u32 {
    1 | (access & 0b110) as u32 | ((access & 1) as u32) << 3
}

impl GenerationKind {
    /// The fields themselves.
    #[must_use]
    pub fn layout(self) -> GenerationLayout {
        match self {
            Self::V5_0 => GenerationLayout::v5_0(),
            Self::V5_1 => GenerationLayout::v5_2(),
            Self::V5_10 => GenerationLayout::v5_10(),
            Self::V6_1 => GenerationLayout::v6_1(),
            Self::V7_2 => GenerationLayout::v7_2(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_of_v7_2_has_a_bit_for_reading() {
        let root = Role::new().with_level(4).with_direct(true).with_access(7).with_nxe(true).with_cr0_wp(true);
        assert_eq!(RoleLayout::V6_1.pack(root), 0x3784);
        assert_eq!(RoleLayout::V7_2.pack(root), 0x6f84);
        let smm = root.with_smm(1).with_invalid(true).with_ad_disabled(true).with_access(5);
        for layout in [RoleLayout::V5_0, RoleLayout::V6_1, RoleLayout::V7_2] {
            assert_eq!(layout.unpack(layout.pack(smm)), smm);
        }
    }
}
