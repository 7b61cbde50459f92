//! Tables, lists, hash, host memory, lock polls: each against a model that is too simple to be wrong.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use crate::mmu::pages::page_arena::{PageArena, PageIdx, Sptep};
use crate::mmu::pages::pte_list::{PteCursor, PteHead, PteLists};
use crate::mmu::pages::spte_table::SpteTable;
use crate::mmu::shadow::active_pages::ActivePages;
use crate::mmu::shadow::page_hash::PageHash;
use crate::mmu::vm::host_memory::{HostMemory, Pinned};
use crate::mmu::vm::lock_polls::LockPolls;
use crate::mmu::words::addr::{Gfn, Pfn};
use crate::mmu::{GfnHash, HostHuge, HostState, Role};

proptest! {
    #[test]
    fn a_table_is_512_words(writes in prop::collection::vec((0_u16..512, prop_oneof![Just(0_u64), any::<u64>()]), 0..64)) {
        let mut table = SpteTable::default();
        let mut model = [0_u64; 512];
        for (at, word) in writes {
            table.set(at, word);
            model[usize::from(at)] = word;
            prop_assert_eq!(table.get(at), word);
            let first = usize::from(at) & !7;
            let odd = (0..8).filter(|bit| model[first + bit] % 2 == 1).fold(0, |bits, bit| bits | 1 << bit);
            prop_assert_eq!(table.which_of_eight(at, |word| word % 2 == 1), odd);
        }
        let entries: Vec<(u16, u64)> = table.iter().collect();
        let expected: Vec<(u16, u64)> = (0..512).zip(model).filter(|&(_, word)| word != 0).collect();
        prop_assert_eq!(table.is_empty(), expected.is_empty());
        prop_assert_eq!(entries, expected);
    }
}

/// The kernel's list, as a list of descriptors of at most three.
#[derive(Default)]
struct NaiveList {
    single: Option<u32>,
    descs: Vec<Vec<u32>>,
}

impl NaiveList {
    fn add(&mut self, sptep: u32) -> u32 {
        if self.descs.is_empty() {
            return match self.single.take() {
                None => {
                    self.single = Some(sptep);
                    0
                }
                Some(first) => {
                    self.descs.push(vec![first, sptep]);
                    1
                }
            };
        }
        let mut count = 0;
        let mut at = 0;
        while self.descs[at].len() == 3 && at + 1 < self.descs.len() {
            count += 3;
            at += 1;
        }
        if self.descs[at].len() == 3 {
            self.descs.push(Vec::new());
            at += 1;
        }
        count += u32::try_from(self.descs[at].len()).expect("at most three");
        self.descs[at].push(sptep);
        count
    }

    fn remove(&mut self, sptep: u32) -> bool {
        if self.single == Some(sptep) {
            self.single = None;
            return true;
        }
        for at in 0..self.descs.len() {
            if let Some(hole) = self.descs[at].iter().position(|&other| other == sptep) {
                self.descs[at].swap_remove(hole);
                if self.descs[at].is_empty() {
                    self.descs.remove(at);
                }
                return true;
            }
        }
        false
    }

    fn all(&self) -> Vec<u32> {
        self.single.into_iter().chain(self.descs.iter().flatten().copied()).collect()
    }
}

fn place(number: u32) -> Sptep {
    PageIdx(1 + number / 512).sptep(u16::try_from(number % 512).expect("below 512"))
}

#[test]
fn removing_the_first_gives_a_c_b() {
    let mut lists = PteLists::default();
    let mut head = PteHead::EMPTY;
    for number in 0..3 {
        lists.add(&mut head, place(number));
    }
    let mut order = Vec::new();
    while let Some(first) = lists.first(head) {
        order.push(first);
        lists.remove(&mut head, first);
    }
    assert_eq!(order, [0, 2, 1].map(place));
    assert_eq!(lists.used_descs(), 0);
}

#[test]
fn an_appended_descriptor_undercounts() {
    let mut lists = PteLists::default();
    let mut head = PteHead::EMPTY;
    let counts: Vec<u32> = (0..8).map(|number| lists.add(&mut head, place(number))).collect();
    assert_eq!(counts, [0, 1, 2, 0, 4, 5, 3, 7]);
}

proptest! {
    #[test]
    fn a_list_is_the_kernels(ops in prop::collection::vec((any::<bool>(), 0_u32..24), 0..200)) {
        let mut lists = PteLists::default();
        let mut head = PteHead::EMPTY;
        let mut model = NaiveList::default();
        for (is_add, number) in ops {
            let is_there = model.all().contains(&place(number).0);
            if is_add && !is_there {
                prop_assert_eq!(lists.add(&mut head, place(number)), model.add(place(number).0));
            } else {
                prop_assert_eq!(lists.remove(&mut head, place(number)), model.remove(place(number).0));
            }
            let found: Vec<u32> = lists.iter(head).map(|sptep| sptep.0).collect();
            prop_assert_eq!(&found, &model.all());
            let mut cursor = PteCursor::default();
            let walked: Vec<u32> = std::iter::from_fn(|| lists.at(head, &mut cursor)).map(|sptep| sptep.0).collect();
            prop_assert_eq!(&walked, &found);
            prop_assert_eq!(lists.first(head).map(|sptep| sptep.0), found.first().copied());
            prop_assert_eq!(head.is_empty(), found.is_empty());
            prop_assert_eq!(lists.used_descs(), lists.descs_of(head));
        }
        lists.clear(&mut head);
        prop_assert_eq!(lists.used_descs(), 0);
    }

    #[test]
    fn the_active_list_is_a_deque(ops in prop::collection::vec((0_u8..3, 1_u32..20), 0..120)) {
        let mut active = ActivePages::default();
        let mut model: VecDeque<u32> = VecDeque::new();
        for (op, number) in ops {
            let page = PageIdx(number);
            match (op, model.iter().position(|&other| other == number)) {
                (0, None) => {
                    active.push_head(page);
                    model.push_front(number);
                }
                (1, Some(at)) => {
                    active.remove(page);
                    model.remove(at);
                }
                (2, Some(at)) => {
                    active.move_to_head(page);
                    model.remove(at);
                    model.push_front(number);
                }
                _ => {}
            }
            prop_assert_eq!(active.iter().map(|page| page.0).collect::<Vec<_>>(), Vec::from(model.clone()));
            prop_assert_eq!(active.len(), model.len());
            prop_assert_eq!(active.tail().0, model.back().copied().unwrap_or(0));
        }
    }

    #[test]
    fn pages_of_a_gfn_are_found_newest_first(gfns in prop::collection::vec(0_u64..40, 0..80), removed in prop::collection::vec(any::<prop::sample::Index>(), 0..20)) {
        for kind in [GfnHash::Kernel, GfnHash::Wide] {
            let mut arena = PageArena::default();
            let mut hash = PageHash::new(kind);
            let mut model: BTreeMap<u64, Vec<PageIdx>> = BTreeMap::new();
            for &gfn in &gfns {
                let page = arena.alloc(Gfn(gfn), Role::new(), 0).expect("room");
                hash.insert(&mut arena, page);
                model.entry(gfn).or_default().insert(0, page);
            }
            for pick in &removed {
                let live: Vec<PageIdx> = model.values().flatten().copied().collect();
                if live.is_empty() {
                    break;
                }
                let page = live[pick.index(live.len())];
                model.get_mut(&arena.key(page).gfn.0).expect("there").retain(|&other| other != page);
                hash.remove(&mut arena, page);
                arena.release(page);
            }
            for (&gfn, pages) in &model {
                let mut found = Vec::new();
                let mut page = hash.first(Gfn(gfn));
                while page != PageIdx::NONE {
                    if arena.key(page).gfn == Gfn(gfn) {
                        found.push(page);
                    }
                    page = arena.key(page).hash_next;
                }
                prop_assert_eq!(&found, pages);
            }
            prop_assert_eq!(hash.len(), model.values().map(Vec::len).sum::<usize>());
        }
    }

    #[test]
    fn the_latest_word_on_a_host_page_wins(ops in prop::collection::vec((0_u64..40, 0_u64..12, 0_u8..4), 0..40)) {
        let states = [HostState::Rw, HostState::Cow, HostState::Fault, HostState::Hwpoison];
        let kinds = [HostHuge::None, HostHuge::Thp, HostHuge::Hugetlb2m, HostHuge::Hugetlb1g];
        let mut host = HostMemory::default();
        let mut model = [0_usize; 64];
        for (start, len, which) in ops {
            host.set_state(Pfn(start), len, states[usize::from(which)]);
            host.set_huge(Pfn(start), len, kinds[usize::from(which)]);
            for at in start..start + len {
                model[usize::try_from(at).expect("small")] = usize::from(which);
            }
            for (at, &which) in (0..).zip(&model) {
                prop_assert_eq!(host.state(Pfn(at)), states[which]);
                prop_assert_eq!(host.huge(Pfn(at)), kinds[which]);
                prop_assert_eq!(host.pin_atomic(Pfn(at)), which == 0);
            }
        }
    }

    #[test]
    fn many_polls_are_so_many_polls(every in 0_u64..9, before in 0_u64..20, most in 0_u64..40) {
        let mut one = LockPolls::default();
        one.set(0, every);
        for _ in 0..before {
            one.need_resched();
        }
        let mut many = one;
        let mut made = 0;
        let mut wanted = false;
        while made < most && !wanted {
            wanted = one.need_resched();
            made += 1;
        }
        prop_assert_eq!(many.need_resched_many(most), (made, wanted));
        prop_assert_eq!(many.cond_resched(), one.cond_resched());
    }
}

#[test]
fn pinning_follows_the_host() {
    let mut host = HostMemory::default();
    for (at, state) in [HostState::Cow, HostState::Fault, HostState::Hwpoison, HostState::Absent, HostState::Zero]
        .into_iter()
        .enumerate()
    {
        host.set_state(Pfn(at as u64), 1, state);
    }
    let frame = |host_writable| Pinned::Frame { host_writable };
    assert_eq!(host.pin(Pfn(0), false, false), frame(false));
    assert_eq!(host.pin(Pfn(0), true, false), frame(true));
    assert_eq!(host.state(Pfn(0)), HostState::Rw);
    assert_eq!(host.pin(Pfn(1), false, false), Pinned::Fault);
    assert_eq!(host.pin(Pfn(2), true, false), Pinned::Poison);
    assert_eq!(host.pin(Pfn(3), false, false), frame(false));
    assert_eq!(host.state(Pfn(3)), HostState::Zero);
    assert_eq!(host.pin(Pfn(4), true, false), frame(true));
    assert_eq!(host.pin(Pfn(9), false, true), frame(false));
    host.set_state(Pfn(u64::MAX), u64::MAX, HostState::Fault);
    assert_eq!(host.state(Pfn(9)), HostState::Rw);
}

#[test]
fn an_armed_poll_is_used_once() {
    let mut polls = LockPolls::default();
    polls.set(3, 2);
    assert!(!polls.need_resched() && polls.need_resched());
    assert_eq!([polls.cond_resched(), polls.cond_resched(), polls.cond_resched()], [true, false, true]);
    assert_eq!(polls.breaks(), 2);
}

#[test]
fn the_wide_hash_grows_in_order() {
    let mut arena = PageArena::default();
    let mut hash = PageHash::new(GfnHash::Wide);
    let mut pages = Vec::new();
    for number in 0..20_000_u64 {
        let page = arena.alloc(Gfn(number % 10_000), Role::new(), 0).expect("room");
        hash.insert(&mut arena, page);
        pages.push(page);
    }
    assert!(hash.heads().count() >= 16_384);
    for gfn in 0..10_000_u64 {
        let mut found = Vec::new();
        let mut page = hash.first(Gfn(gfn));
        while page != PageIdx::NONE {
            if arena.key(page).gfn == Gfn(gfn) {
                found.push(page);
            }
            page = arena.key(page).hash_next;
        }
        let at = usize::try_from(gfn).expect("small");
        assert_eq!(found, [pages[at + 10_000], pages[at]]);
    }
}

#[test]
fn gfns_hash_as_in_the_kernel() {
    let hash = PageHash::new(GfnHash::Kernel);
    let known = [
        (0, 0),
        (1, 1564),
        (2, 3129),
        (3, 597),
        (0x100, 3208),
        (0x101, 676),
        (0x1000, 2182),
        (0x12345, 1210),
        (0xe0000, 1405),
        (0xfffff, 41),
    ];
    for (gfn, bucket) in known {
        assert_eq!(hash.bucket_of(Gfn(gfn)), bucket, "gfn {gfn:#x}");
    }
}
