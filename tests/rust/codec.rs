//! The MMIO codec against the recorded values of the kernel's own code; says so and passes where they are absent.

use std::fs;

use kvm_mmu::mmu::words::spte::mmio::{is_fresh, is_mmio, make_mmio_spte, mmio_access, mmio_gen, mmio_gfn};
use kvm_mmu::mmu::{Family, GenerationLayout, Kernel, Masks};

use super::shared_root;

/// The text of a value in one flat JSON line.
fn field<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let start = line.find(&format!("\"{key}\":"))? + key.len() + 3;
    let rest = &line[start..];
    let end = rest.find([',', '}']).unwrap_or(rest.len());
    Some(rest[..end].trim_matches('"'))
}

fn number(line: &str, key: &str) -> Option<u64> {
    let text = field(line, key)?;
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

#[test]
fn every_recorded_value_is_equal() {
    let Some(root) = shared_root() else { return };
    let text = fs::read_to_string(root.join("vectors/mmio_codec.jsonl")).expect("the file is readable");
    let mut codec: Option<(Masks, GenerationLayout)> = None;
    let mut values = 0;
    for (at, line) in text.lines().enumerate() {
        if line.starts_with("{\"config\"") {
            let variant = field(line, "variant").expect("a variant");
            let kernel = Kernel::by_name(if variant == "seed" { "v5.0-seed" } else { variant });
            let family = match field(line, "family").map(|name| name.trim_end_matches('}')) {
                Some("ept") => Family::EptAd,
                // The legacy masks are those of nested paging.
                _ => Family::Npt,
            };
            let phys_bits = u8::try_from(number(line, "phys_bits").expect("a width")).expect("a small width");
            let masks = Masks::new(family, phys_bits, true);
            assert_eq!(Some(masks.mmio_mask), number(line, "mmio_mask"), "line {at}");
            assert_eq!(Some(masks.mmio_value), number(line, "mmio_value"), "line {at}");
            assert_eq!(Some(masks.nonpresent_or_rsvd), number(line, "nonpresent_or_rsvd"), "line {at}");
            assert_eq!(Some(masks.lower_gfn), number(line, "lower_gfn"), "line {at}");
            codec = Some((masks, kernel.expect("a known kernel").generation_layout.layout()));
            continue;
        }
        values += 1;
        let (masks, layout) = codec.as_ref().expect("a configuration comes first");
        let spte = if let Some(raw) = number(line, "raw") {
            raw
        } else {
            let gfn = number(line, "gfn").expect("a gfn");
            let slots_gen = number(line, "gen").expect("a generation");
            let access = u32::try_from(number(line, "access").expect("an access")).expect("a small access");
            let spte = make_mmio_spte(masks, layout, gfn, access, slots_gen);
            assert_eq!(Some(spte), number(line, "spte"), "line {at}: {line}");
            assert_eq!(Some(layout.compared(slots_gen)), number(line, "kvm_gen"), "line {at}");
            let fresh = |slots_gen| Some(u64::from(is_fresh(masks, layout, spte, slots_gen)));
            assert_eq!(fresh(slots_gen), number(line, "check_same"), "line {at}: {line}");
            assert_eq!(fresh(slots_gen.wrapping_add(2)), number(line, "check_next"), "line {at}: {line}");
            spte
        };
        let is = is_mmio(masks, spte);
        assert_eq!(Some(u64::from(is)), number(line, "is_mmio"), "line {at}: {line}");
        assert_eq!(Some(u64::from(spte != 0 && !is)), number(line, "shadow_present"), "line {at}: {line}");
        assert_eq!(Some(mmio_gfn(masks, spte)), number(line, "dec_gfn"), "line {at}: {line}");
        assert_eq!(Some(mmio_access(masks, layout, spte).into()), number(line, "dec_access"), "line {at}: {line}");
        assert_eq!(Some(mmio_gen(masks, layout, spte)), number(line, "dec_gen"), "line {at}: {line}");
    }
    assert_eq!(values, 3151, "the file holds 3,151 values");
}
