//! Which layout of SPTEs, generations and roles a kernel has: names for the layouts of `mmu`.

use super::facts::{Value, Valued, words};
use crate::mmu::{GenerationLayout, SpteLayout};

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
