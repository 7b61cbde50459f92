//! Memslot arrays: order, lookup, the arrays of a slot, and what a facade refuses.

use proptest::prelude::*;

use super::{put, vm};
use crate::mmu::addr::Gfn;
use crate::mmu::slots::{AddressSpace, SlotBody};
use crate::mmu::{Error, SlotChange, SlotSpec};

const fn spec(id: u32, base: u64, npages: u64) -> SlotSpec {
    SlotSpec { id, base, npages, hva: base << 12, flags: 0 }
}

#[test]
fn vetoes_at_the_edges_are_assigned() {
    let body = SlotBody::new(&spec(0, 0, 1024));
    assert_eq!(body.disallow, [vec![0, 0], vec![1]]);
    let body = SlotBody::new(&spec(0, 3, 1024));
    assert_eq!(body.disallow, [vec![1, 0, 1], vec![1]]);
    let body = SlotBody::new(&SlotSpec { hva: 0x1000, ..spec(0, 0, 1024) });
    assert_eq!(body.disallow, [vec![1, 1], vec![1]]);
}

#[test]
fn logging_keeps_and_drops_its_bitmap() {
    let mut space = AddressSpace::default();
    space.put(SlotSpec { flags: 1, ..spec(7, 0, 100) });
    space.body_mut(0).mark_dirty(99);
    space.put(SlotSpec { flags: 1 | 1 << 16, ..spec(7, 0, 100) });
    space.put(SlotSpec { flags: 1, ..spec(7, 5, 100) });
    assert_eq!(space.body(0).dirty, Some(vec![0, 1 << 35]));
    space.put(SlotSpec { flags: 0, ..spec(7, 5, 100) });
    assert_eq!(space.body(0).dirty, None);
    space.put(SlotSpec { flags: 1, ..spec(7, 5, 100) });
    assert_eq!(space.body(0).dirty, Some(vec![0, 0]));
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
    let words = usize::try_from(((1_u64 << 31) - 1).div_ceil(64)).expect("it fits");
    assert_eq!(mmu.get_dirty_log(0, 0, false).map(|(ret, log)| (ret, log.len())), Ok((-2, words)));
}

proptest! {
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
