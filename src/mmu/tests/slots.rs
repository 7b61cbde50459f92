//! Memslot arrays: order, lookup, the arrays of a slot, and what a facade refuses.

use proptest::prelude::*;

use super::{put, vm};
use crate::mmu::vm::slot_array::SlotArray;
use crate::mmu::vm::slots::{AddressSpace, SlotBody};
use crate::mmu::words::addr::Gfn;
use crate::mmu::{DirtyLog, Error, SlotChange, SlotSpec};

const fn spec(id: u32, base: u64, npages: u64) -> SlotSpec {
    SlotSpec { id, base, npages, hva: base << 12, flags: 0 }
}

fn values<T: Copy + PartialEq>(array: &SlotArray<T>) -> Vec<T> {
    array.spans().flat_map(|span| (0..span.count).map(move |_| span.value)).collect()
}

fn vetoes(body: &SlotBody) -> [Vec<i32>; 2] {
    [values(&body.disallow[0]), values(&body.disallow[1])]
}

#[test]
fn vetoes_at_the_edges_are_assigned() {
    let body = SlotBody::new(&spec(0, 0, 1024));
    assert_eq!(vetoes(&body), [vec![0, 0], vec![1]]);
    let body = SlotBody::new(&spec(0, 3, 1024));
    assert_eq!(vetoes(&body), [vec![1, 0, 1], vec![1]]);
    let body = SlotBody::new(&SlotSpec { hva: 0x1000, ..spec(0, 0, 1024) });
    assert_eq!(vetoes(&body), [vec![1, 1], vec![1]]);
}

#[test]
fn logging_keeps_and_drops_its_bitmap() {
    let mut space = AddressSpace::default();
    space.put(SlotSpec { flags: 1, ..spec(7, 0, 100) });
    space.body_mut(0).mark_dirty(99);
    space.put(SlotSpec { flags: 1 | 1 << 16, ..spec(7, 0, 100) });
    space.put(SlotSpec { flags: 1, ..spec(7, 5, 100) });
    assert_eq!(space.body(0).dirty.as_ref().map(values), Some(vec![0, 1 << 35]));
    space.put(SlotSpec { flags: 0, ..spec(7, 5, 100) });
    assert!(space.body(0).dirty.is_none());
    space.put(SlotSpec { flags: 1, ..spec(7, 5, 100) });
    assert_eq!(space.body(0).dirty.as_ref().map(values), Some(vec![0, 0]));
}

#[test]
fn a_move_grows_the_arrays() {
    let mut space = AddressSpace::default();
    space.put(spec(0, 0, 512));
    space.put(SlotSpec { base: 100, ..spec(0, 0, 512) });
    assert_eq!(space.body(0).disallow[0].len(), 2);
    assert!(space.body_mut(0).rmap[1].get_mut(1).is_some());
}

#[test]
fn what_cannot_be_stored_is_refused() {
    let mut mmu = vm("v5.0");
    put(&mut mmu, 0, 0, 16, 0);
    let before = mmu.digest();
    for wrong in [
        spec(512, 100, 1),
        spec(u32::MAX, 100, 1),
        spec(1, 100, 0),
        spec(1, 100, 1 << 31),
        spec(1, 100, u64::MAX),
        spec(1, u64::MAX, 1),
        spec(1, (1 << 52) - 1, 2),
        spec(0, 0, 17),
    ] {
        assert!(matches!(mmu.install_slot(0, 8, SlotChange::Put(wrong)), Err(Error::Slot { .. })), "{wrong:?}");
    }
    assert_eq!(mmu.install_slot(2, 8, SlotChange::Put(spec(1, 100, 1))), Err(Error::AddressSpace(2)));
    assert_eq!(mmu.install_slot(0, 8, SlotChange::Remove(3)), Err(Error::NoSlot { as_id: 0, id: 3 }));
    assert_eq!(mmu.digest(), before);
}

#[test]
fn the_largest_slot_costs_little() {
    let mut mmu = vm("v5.2");
    put(&mut mmu, 0, 0, (1 << 31) - 1, 0);
    assert_eq!(mmu.total_slot_pages(), (1 << 31) - 1);
    let nr_words = ((1_u64 << 31) - 1).div_ceil(64);
    assert_eq!(mmu.get_dirty_log(0, 0, false), Ok(DirtyLog { ret: -2, nr_words, spans: vec![] }));
    put(&mut mmu, 0, 0, (1 << 31) - 1, 1);
    assert_eq!(mmu.get_dirty_log(0, 0, false), Ok(DirtyLog { ret: 0, nr_words, spans: vec![] }));
    assert!(mmu.memory().slots + mmu.memory().rmap < 1 << 20);
}

#[test]
fn a_log_that_starts_full_is_two_spans() {
    let mut mmu = vm("v6.1");
    mmu.set_dirty_log_initially_set(true);
    put(&mut mmu, 0, 0, (1 << 31) - 1, 1);
    let nr_words = 1 << 25;
    let spans = vec![(0, nr_words - 1, u64::MAX), (nr_words - 1, 1, u64::MAX >> 1)];
    assert_eq!(mmu.get_dirty_log(0, 0, false), Ok(DirtyLog { ret: 0, nr_words, spans }));
    assert_eq!(mmu.get_dirty_log(0, 0, false), Ok(DirtyLog { ret: 0, nr_words, spans: vec![] }));
    assert!(mmu.memory().slots < 1 << 20);
}

proptest! {
    #[test]
    fn an_array_is_a_vector(len in 1_u64..100_000, writes in prop::collection::vec((0_u64..110_000, 0_i32..3), 0..30), fill in prop::option::of((0_usize..30, 0_i32..3)), more in 0_u64..70_000) {
        let mut array = SlotArray::new(len, 0);
        let mut plain = vec![0; usize::try_from(len).expect("it fits")];
        for (at, (index, value)) in writes.into_iter().enumerate() {
            if let Some((when, value)) = fill && when == at {
                array.fill(value);
                plain.fill(value);
            }
            array.set(index, value);
            if let Some(place) = plain.get_mut(usize::try_from(index).expect("it fits")) {
                *place = value;
            }
        }
        // A copy that shares what is written to later stays as it is.
        array.lend();
        let (copy, as_it_was) = (array.clone(), plain.clone());
        for (index, value) in [(0, 7), (len / 2, 7), (len - 1, 8)] {
            array.set(index, value);
            plain[usize::try_from(index).expect("it fits")] = value;
        }
        prop_assert_eq!(values(&copy), as_it_was);
        drop(copy);
        array.set(len / 2, 9);
        plain[usize::try_from(len / 2).expect("it fits")] = 9;
        array.grow(len + more);
        let before = plain.len();
        plain.resize(usize::try_from(len + more).expect("it fits"), array.get(u64::MAX));
        prop_assert_eq!(&values(&array), &plain);
        prop_assert!((0_u64..).zip(&plain).all(|(at, &value)| array.get(at) == value));
        let absent = array.absent_from(before as u64);
        prop_assert!(absent >= more || before % 64 != 0);
        prop_assert!((0..absent.min(more)).all(|at| array.get(before as u64 + at) == array.get(u64::MAX)));
        let used: Vec<(u64, i32)> = (0_u64..).zip(plain.iter().copied()).filter(|&(_, value)| value != array.get(u64::MAX)).collect();
        prop_assert_eq!(array.iter().collect::<Vec<_>>(), used);
        let bytes = postcard::to_stdvec(&array).expect("it is written");
        let back: SlotArray<i32> = postcard::from_bytes(&bytes).expect("it is read");
        prop_assert_eq!(values(&back), plain);
    }

    #[test]
    fn lookup_is_a_linear_search(bases in prop::collection::btree_set(0_u64..64, 0..10), asked in prop::collection::vec(0_u64..80, 0..40)) {
        let mut space = AddressSpace::default();
        let bases: Vec<u64> = bases.into_iter().collect();
        for (id, window) in (0..).zip(bases.windows(2)) {
            // Some slots touch their neighbour, some leave a hole.
            let len = if id % 2 == 0 { window[1] - window[0] } else { 1 };
            space.put(spec(id, window[0], len));
        }
        let sorted = space.specs().windows(2).all(|pair| pair[0].base > pair[1].base);
        prop_assert!(sorted);
        for gfn in asked {
            let expected = space.specs().iter().position(|slot| slot.base <= gfn && gfn < slot.base + slot.npages);
            prop_assert_eq!(space.find(Gfn(gfn)), expected);
        }
    }
}
