//! Levels, roles, masks, generation layouts, SPTE construction.

use proptest::prelude::*;

use crate::mmu::pages::walk::{is_access_track, is_accessed, is_dirty, is_shadow_present, pfn_of};
use crate::mmu::words::generation::{GenerationBits, GenerationCodec};
use crate::mmu::words::level::{level_shift, pages_per, table_index};
use crate::mmu::words::spte::layout::SpteLayout;
use crate::mmu::words::spte::make::{Leaf, make_access_track, make_leaf, make_link, restore_access_track};
use crate::mmu::words::spte::masks::Host;
use crate::mmu::words::spte::mmio::{is_mmio, make_mmio_spte, mmio_gen, mmio_gfn};
use crate::mmu::{Error, Family, GenerationField, GenerationLayout, Kernel, Masks, Role, ZapPlan};

const FAMILIES: [Family; 3] = [Family::Npt, Family::EptAd, Family::EptNoad];

/// A field that reads back as many bits as it stores.
const fn field(gen_shift: u8, bits: u8, spte_shift: u8) -> GenerationField {
    GenerationField { gen_shift, bits, spte_shift, read_bits: bits }
}

#[test]
fn levels_number_mappings() {
    assert_eq!([1, 2, 3, 4].map(level_shift), [0, 9, 18, 27]);
    assert_eq!([1, 2, 3].map(pages_per), [1, 512, 262_144]);
    let addr = 1 << 39 | 2 << 30 | 3 << 21 | 4 << 12 | 5;
    assert_eq!([4, 3, 2, 1].map(|level| table_index(addr, level)), [1, 2, 3, 4]);
}

#[test]
fn role_words_are_the_kernels() {
    let role = Role::from_bits(0x3781);
    assert_eq!((role.level(), role.direct(), role.access(), role.nxe(), role.cr0_wp()), (1, true, 7, true, true));
    assert!(!role.gpte_is_8_bytes() && !role.invalid() && !role.ad_disabled());
    assert_eq!(role.with_gpte_is_8_bytes(true).into_bits(), 0x3791);
    assert_eq!(role.with_invalid(true).into_bits(), 0x3f81);
    assert_eq!(role.with_smm(1).into_bits(), 0x0100_3781);
}

#[test]
fn known_mmio_words() {
    let masks = Masks::new(Family::Npt, 40, true);
    let v5_0 = GenerationLayout::v5_0();
    assert_eq!(make_mmio_spte(&masks, &v5_0, 0xe0000, 6, 0xfff6a), 0x7ff8_00f8_e000_0daf);
    let v5_2 = GenerationLayout::v5_2();
    assert_eq!(make_mmio_spte(&masks, &v5_2, 0xe0000, 6, 2), 0x4028_00f8_e000_0017);
    let spte = make_mmio_spte(&masks, &v5_2, 0xe0000, 6, 0x7_fffe);
    assert_eq!((spte, mmio_gen(&masks, &v5_2, spte)), (0x7fe8_00f8_e000_0ff7, 0x3fe));
}

#[test]
fn names_lead_to_values_and_back() {
    for profile in Kernel::ALL {
        assert_eq!(Kernel::by_name(profile.name), Ok(profile));
    }
    for (name, plan, _) in ZapPlan::NAMED {
        assert_eq!(ZapPlan::named(name), Ok(plan));
    }
    assert_eq!(ZapPlan::named("zap"), Err(Error::UnknownPlan("zap".to_owned())));
    assert!(Family::by_name("mips").is_err());
}

#[test]
fn layouts_that_cannot_be_are_refused() {
    let with = |gen_shift, bits, spte_shift| GenerationLayout {
        fields: vec![field(gen_shift, bits, spte_shift)],
        ..GenerationLayout::v5_0()
    };
    assert_eq!(with(0, 4, 3).check(), Ok(()));
    for (gen_shift, bits, spte_shift) in [(0, 0, 3), (0, 4, 2), (0, 12, 3), (0, 11, 52), (60, 9, 3), (255, 255, 255)] {
        assert!(with(gen_shift, bits, spte_shift).check().is_err(), "{gen_shift} {bits} {spte_shift}");
    }
    assert!(GenerationLayout { width: 0, ..GenerationLayout::v5_0() }.check().is_err());
    assert!(GenerationLayout { width: 64, ..GenerationLayout::v5_0() }.check().is_err());
}

proptest! {
    #[test]
    fn v5_0_forgets_only_bit_0(slots_gen: u64) {
        let layout = GenerationLayout::v5_0();
        prop_assert_eq!(layout.decode(layout.encode(layout.compared(slots_gen))), slots_gen & 0xf_fffe);
    }

    #[test]
    fn v5_2_reads_back_ten_bits(slots_gen: u64) {
        let layout = GenerationLayout::v5_2();
        prop_assert_eq!(layout.decode(layout.encode(layout.compared(slots_gen))), slots_gen & 0x3ff);
    }

    #[test]
    fn the_prepared_layout_is_the_layout(word: u64, which in 0..3_usize) {
        let mut layout = if which == 0 { GenerationLayout::v5_0() } else { GenerationLayout::v5_2() };
        if which == 2 {
            layout.fields = vec![
                field(0, 3, 3),
                field(3, 4, 7),
                field(7, 2, 55),
            ];
        }
        prop_assert_eq!(layout.check(), Ok(()));
        let codec = GenerationCodec::new(&layout);
        prop_assert_eq!(codec.encode(word), layout.encode(word));
        prop_assert_eq!(codec.decode(word), layout.decode(word));
        prop_assert_eq!(codec.compared(word), layout.compared(word));
        prop_assert_eq!(codec.is_refused(word), layout.is_refused(word));
        prop_assert_eq!(codec.spte_mask(), layout.spte_mask());
    }

    #[test]
    fn an_mmio_spte_keeps_its_gfn(gfn in 0_u64..1 << 36, slots_gen: u64, access in 0_u32..8, family in 0..3_usize, bits in 48_u8..52) {
        let masks = Masks::new(FAMILIES[family], bits, true);
        let layout = GenerationLayout::v5_0();
        let spte = make_mmio_spte(&masks, &layout, gfn, access, slots_gen);
        prop_assert!(is_mmio(&masks, spte));
        prop_assert!(!is_shadow_present(&masks, spte));
        prop_assert_eq!(mmio_gfn(&masks, spte), gfn);
    }

    #[test]
    fn leaves_and_links_are_present(pfn in 0_u64..1 << 40, level in 1_u8..4, family in 0..3_usize, execonly: bool, flags in 0..8_u8) {
        let masks = Masks::new(FAMILIES[family], 46, execonly);
        let ad_disabled = masks.accessed == 0 || flags & 4 != 0 && masks.acc_track != 0;
        let leaf = Leaf {
            access: 7,
            level,
            pfn: crate::mmu::words::addr::Pfn(pfn),
            speculative: flags & 1 != 0,
            host_writable: flags & 2 != 0,
            ad_disabled,
        };
        let spte = make_leaf(&masks, &leaf);
        prop_assert!(is_shadow_present(&masks, spte));
        prop_assert_eq!(pfn_of(spte).0, pfn);
        prop_assert!(is_shadow_present(&masks, make_link(&masks, 1, ad_disabled)));
        let tracked = make_access_track(&masks, spte);
        prop_assert!(is_shadow_present(&masks, tracked));
        prop_assert!(!is_accessed(&masks, tracked) || masks.accessed == 0 && masks.acc_track == 0);
        if is_access_track(&masks, tracked) {
            prop_assert!(!is_dirty(&masks, tracked));
            prop_assert_eq!(restore_access_track(&masks, tracked), spte);
        }
    }
}

#[test]
fn from_v6_1_on_only_the_mmus_own_mark_says_present() {
    let host = Host { family: Family::Npt, phys_bits: 46, execonly: true, l1tf: false, mmio_caching: true };
    let marked = [SpteLayout::V5_4, SpteLayout::V6_1].map(|layout| Masks::of(&layout, host));
    assert_eq!(marked.map(|masks| is_shadow_present(&masks, u64::MAX)), [false, true]);
    assert_eq!(marked.map(|masks| is_shadow_present(&masks, masks.mmio_value)), [false, false]);
}
