//! The walk of the guest's own tables over real memslots, in every paging mode.

use super::*;
use crate::mmu::words::access::{PFERR_FETCH, PFERR_USER, PFERR_WRITE};

const P: u64 = 0x27;
const LARGE: u64 = 0x80;

/// A VM with a slot of 64 MiB whose vCPU pages as these registers say.
fn guest(cr0: u64, cr3: u64, cr4: u64, efer: u64) -> Mmu {
    let mut mmu = vm("v6.1");
    put(&mut mmu, 1, 0, 0x4000, 0);
    mmu.set_regs(0, Some(cr0), Some(cr4), Some(efer), None).expect("vcpu 0 exists");
    mmu.state.vcpus[0].cr3 = cr3;
    mmu
}

fn long_mode() -> Mmu {
    guest(0x8001_0001, 0x1000, 0x20, 0xd00)
}

fn poke(mmu: &mut Mmu, gpa: u64, value: u64, size: u8) {
    assert_eq!(mmu.poke(0, gpa, value, size), Ok(0));
}

/// Tables at 0x1000 and up: the gva `0x1234_5000` leads to gfn 0x77 with this leaf.
fn map_long(mmu: &mut Mmu, leaf: u64) {
    poke(mmu, 0x1000, 0x2000 | P, 8);
    poke(mmu, 0x2000, 0x3000 | P, 8);
    poke(mmu, 0x3000 + 8 * 0x91, 0x4000 | P, 8);
    poke(mmu, 0x4000 + 8 * 0x145, 0x7_7000 | leaf, 8);
}

fn walk(mmu: &mut Mmu, gva: u64, error_code: u64) -> GuestWalk {
    mmu.walk_guest(0, gva, error_code).expect("vcpu 0 exists")
}

#[test]
fn long_mode_walks_four_levels_and_marks_them() {
    let mut mmu = long_mode();
    map_long(&mut mmu, 7);
    let found = walk(&mut mmu, 0x1234_5678, PFERR_WRITE);
    assert_eq!((found.error_code, found.top_level, found.level, found.gfn), (None, 4, 1, Gfn(0x77)));
    assert_eq!((found.pt_access, found.pte_access), (7, 7));
    assert_eq!([4, 3, 2, 1].map(|level| found.entry(level).table.0), [1, 2, 3, 4]);
    assert_eq!(mmu.peek(0, 0x4000 + 8 * 0x145, 8), Ok(Some(0x7_7067)));
    assert_eq!(found.entry(1).value, 0x7_7067);
    // A read of a clean leaf gives no write.
    map_long(&mut mmu, 7);
    let found = walk(&mut mmu, 0x1234_5000, 0);
    assert_eq!((found.pt_access, found.pte_access), (7, 5));
    assert_eq!(mmu.peek(0, 0x4000 + 8 * 0x145, 8), Ok(Some(0x7_7027)));
}

#[test]
fn access_is_what_all_entries_give() {
    let mut mmu = long_mode();
    map_long(&mut mmu, 0x67);
    poke(&mut mmu, 0x2000, 0x3000 | 0x25, 8); // no W
    poke(&mut mmu, 0x3000 + 8 * 0x91, 0x4000 | P | 1 << 63, 8); // no X
    let found = walk(&mut mmu, 0x1234_5000, PFERR_USER);
    assert_eq!([4, 3, 2, 1].map(|level| found.entry(level).access_above), [7, 7, 5, 4]);
    assert_eq!((found.pt_access, found.pte_access), (4, 4));
    assert_eq!(walk(&mut mmu, 0x1234_5000, PFERR_FETCH).error_code, Some(0x11));
    assert_eq!(walk(&mut mmu, 0x1234_5000, PFERR_WRITE | PFERR_USER).error_code, Some(7));
}

#[test]
fn a_fault_tells_its_reason_and_writes_nothing() {
    let mut mmu = long_mode();
    map_long(&mut mmu, 7);
    poke(&mut mmu, 0x2000, 0x3003, 8);
    assert_eq!(walk(&mut mmu, 0x1234_5000, PFERR_USER).error_code, Some(5));
    assert_eq!(walk(&mut mmu, 0x1234_6000, PFERR_WRITE).error_code, Some(2));
    poke(&mut mmu, 0x2000, 0x1083, 8); // a large leaf with bit 12, which is free

    assert_eq!(walk(&mut mmu, 0x1234_5000, 0).error_code, None);
    poke(&mut mmu, 0x2000, 0x2083, 8); // and one with bit 13, which is not
    assert_eq!(walk(&mut mmu, 0x1234_5000, 0).error_code, Some(9));
    poke(&mut mmu, 0x1000, 0x2083, 8);
    assert_eq!(walk(&mut mmu, 0x1234_5000, PFERR_FETCH).error_code, Some(0x19));
    assert_eq!(mmu.peek(0, 0x1000, 8), Ok(Some(0x2083)));
    // A table that lies in no slot.
    poke(&mut mmu, 0x1000, 0x4000_0007, 8);
    assert_eq!(walk(&mut mmu, 0x1234_5000, PFERR_WRITE).error_code, Some(2));
    assert_eq!(mmu.poke(0, 0x4000_0000, 1, 8), Ok(-14));
    assert_eq!(mmu.peek(0, 0x4000_0000, 8), Ok(None));
}

#[test]
fn large_pages_reach_as_far_as_their_level() {
    let mut mmu = long_mode();
    map_long(&mut mmu, 7);
    poke(&mut mmu, 0x3000 + 8 * 0x91, 0x80_0000 | P | LARGE, 8);
    let found = walk(&mut mmu, 0x1234_5678, 0);
    assert_eq!((found.level, found.gfn), (2, Gfn(0x945)));
    poke(&mut mmu, 0x2000, 0x4000_0000 | P | LARGE, 8);
    let found = walk(&mut mmu, 0x1234_5678, 0);
    assert_eq!((found.level, found.gfn), (3, Gfn(0x4_0000 + 0x1_2345)));
}

#[test]
fn five_levels_begin_one_higher() {
    let mut mmu = guest(0x8001_0001, 0x5000, 0x1020, 0xd00);
    map_long(&mut mmu, 7);
    poke(&mut mmu, 0x5000, 0x1000 | P, 8);
    let found = walk(&mut mmu, 0x1234_5000, 0);
    assert_eq!((found.top_level, found.level, found.gfn, found.entry(5).table), (5, 1, Gfn(0x77), Gfn(5)));
}

#[test]
fn pae_begins_at_the_kept_pdpte() {
    let mut mmu = guest(0x8001_0001, 0x1000, 0x20, 0x800);
    poke(&mut mmu, 0x2000 + 8 * 3, 0x3000 | P, 8);
    poke(&mut mmu, 0x3000 + 8 * 4, 0x7_7000 | P, 8);
    mmu.state.vcpus[0].pdptes = [0, 0x2001, 0, 0];
    let found = walk(&mut mmu, 0x4060_4000, 0);
    assert_eq!((found.error_code, found.top_level, found.level, found.gfn), (None, 2, 1, Gfn(0x77)));
    // The PDPTE takes no part in the access.
    assert_eq!(found.pt_access, 7);
    assert_eq!(walk(&mut mmu, 0x8060_4000, PFERR_WRITE).error_code, Some(2));
}

#[test]
fn two_levels_of_4_byte_entries() {
    let mut mmu = guest(0x8001_0001, 0x1000, 0x10, 0);
    poke(&mut mmu, 0x1000 + 4 * 0x201, 0x2000 | P, 4);
    poke(&mut mmu, 0x2000 + 4 * 0x3ff, 0x7_7000 | P, 4);
    let found = walk(&mut mmu, 0x807f_f123, PFERR_WRITE | PFERR_USER);
    assert_eq!((found.error_code, found.level, found.gfn), (None, 1, Gfn(0x77)));
    assert_eq!(mmu.peek(0, 0x2000 + 4 * 0x3ff, 4), Ok(Some(0x7_7067)));
    // PSE36: address bits 32 to 35 lie in bits 13 to 16.
    poke(&mut mmu, 0x1000 + 4 * 0x201, 0x0080_0000 | P | LARGE | 3 << 13, 4);
    let found = walk(&mut mmu, 0x8065_4123, 0);
    assert_eq!((found.level, found.gfn), (2, Gfn(0x30_0800 | 0x254)));
    // Without PSE the bit says nothing.
    mmu.set_regs(0, None, Some(0), None, None).expect("vcpu 0 exists");
    assert_eq!(walk(&mut mmu, 0x8065_4123, 0).level, 1);
}

#[test]
fn a_guest_without_paging_walks_nothing() {
    let mut mmu = guest(1, 0, 0, 0);
    let found = walk(&mut mmu, 0x1234_5678, PFERR_WRITE);
    assert_eq!((found.error_code, found.top_level, found.gfn), (None, 0, Gfn(0x1_2345)));
}

#[test]
fn a_read_only_table_keeps_its_bits() {
    let mut mmu = long_mode();
    map_long(&mut mmu, 7);
    let base = 0x4000;
    put(&mut mmu, 2, base, 0x10, 0);
    poke(&mut mmu, 0x3000 + 8 * 0x91, base << 12 | P, 8);
    poke(&mut mmu, (base << 12) + 8 * 0x145, 0x7_7007, 8);
    put(&mut mmu, 2, base, 0x10, 2);
    let found = walk(&mut mmu, 0x1234_5000, PFERR_WRITE);
    assert_eq!((found.error_code, found.gfn), (None, Gfn(0x77)));
    assert_eq!(mmu.peek(0, (base << 12) + 8 * 0x145, 8), Ok(Some(0x7_7007)));
}

#[test]
fn a_marked_table_is_dirty_in_its_log() {
    let mut mmu = long_mode();
    put(&mut mmu, 1, 0, 0x4000, 1);
    map_long(&mut mmu, 7);
    poke(&mut mmu, 0x1000, 0x2007, 8);
    walk(&mut mmu, 0x1234_5000, 0);
    let slot = mmu.state.find_slot(0, Gfn(1)).expect("the slot is there");
    let dirty = mmu.state.slot_body(slot).dirty.as_ref().expect("it logs");
    assert_eq!(dirty.get(0), 1 << 1 | 1 << 4);
}

#[test]
fn a_walk_that_meets_its_own_marks_begins_anew() {
    let mut mmu = long_mode();
    // One page is the table of every level; the entry that it is walked through is marked once.
    poke(&mut mmu, 0x1000, 0x1007, 8);
    let found = walk(&mut mmu, 0, PFERR_WRITE);
    assert_eq!((found.error_code, found.level, found.gfn), (None, 1, Gfn(1)));
    assert_eq!(mmu.peek(0, 0x1000, 8), Ok(Some(0x1067)));
    assert_eq!([4, 3, 2, 1].map(|level| found.entry(level).value), [0x1027, 0x1027, 0x1027, 0x1067]);
}

#[test]
fn the_log_of_format_6_has_the_steps() {
    let mut mmu = long_mode();
    map_long(&mut mmu, 7);
    poke(&mut mmu, 0x1000, 0x2007, 8);
    mmu.state.events.clear();
    walk(&mut mmu, 0x1234_5000, PFERR_WRITE);
    walk(&mut mmu, 0x1234_6000, PFERR_WRITE);
    let log = mmu.state.events.json(Event::write_json_stepped);
    let first = r#"[["walk",305418240,"0x2"],["walk_pte","0x2007",4],["walk_pte","0x3027",3],["walk_pte","0x4027",2],"#;
    let marks = r#"["walk_pte","0x77007",1],["set_accessed",4096],["set_accessed",18984],["set_dirty",18984],"#;
    assert!(log.starts_with(&format!("{first}{marks}")), "{log}");
    assert!(log.ends_with(r#"["walk_pte","0x0",1],["walk_error","0x2"]]"#), "{log}");
    assert_eq!(mmu.state.events.json(Event::write_json), "[]");
}
