//! The small parts: reverse-map and parent lists, and finding a page by its hash.

use std::hint::black_box;

use kvm_mmu::mmu::GfnHash;
use kvm_mmu::mmu::pages::page_arena::PageIdx;
use kvm_mmu::mmu::pages::pte_list::{PteHead, PteLists};

use crate::zap::tables;
use crate::{Lcg, TABLE, Timed, timed, timed_on};

const ENTRIES: u32 = 4096;
const ROUNDS: u64 = 64;

/// Adding 4,096 entries to lists of a length, and removing them in the order of insertion, or in the reverse of it: the
/// pair.
#[must_use]
pub fn pte_list(length: u32, is_reverse: bool) -> (Timed, Timed) {
    let heads = ENTRIES / length;
    let mut lists = PteLists::default();
    let (mut added, mut removed) = (0.0, 0.0);
    for _ in 0..ROUNDS {
        let mut all = vec![PteHead::EMPTY; heads as usize];
        let each = |is_reverse: bool, visit: &mut dyn FnMut(usize, u32)| {
            for at in 0..length {
                let at = if is_reverse { length - 1 - at } else { at };
                for head in 0..heads {
                    visit(head as usize, at * heads + head);
                }
            }
        };
        let place = |number: u32| PageIdx(1 + number / 512).sptep((number % 512) as u16);
        let add = timed(0, || {
            each(false, &mut |head, number| {
                black_box(lists.add(&mut all[head], place(number)));
            });
        });
        let remove = timed(0, || {
            each(is_reverse, &mut |head, number| {
                black_box(lists.remove(&mut all[head], place(number)));
            });
        });
        added += add.seconds;
        removed += remove.seconds;
    }
    let count = u64::from(ENTRIES) * ROUNDS;
    (Timed { count, seconds: added, work: None }, Timed { count, seconds: removed, work: None })
}

/// Finding a random level-1 page among so many; the random generator's time is subtracted.
///
/// # Panics
/// If a page that was made is not found.
#[must_use]
pub fn get_page(kernel: &str, nr_tables: u64, hash: GfnHash) -> Timed {
    let mut mmu = tables(kernel, nr_tables, 1, hash);
    let newest = mmu.active_page_ids()[0];
    let role = mmu.page(newest).expect("the page lives").role;
    let count = 1 << 18;
    let mut random = Lcg::new(7);
    let blank = timed(count, || {
        (0..count).for_each(|_| {
            black_box(random.below(nr_tables));
        });
    });
    let mut random = Lcg::new(7);
    let found = timed_on(&mut mmu, count, |mmu| {
        for _ in 0..count {
            let id = mmu.find_page(random.below(nr_tables) * TABLE, role);
            assert!(black_box(id).is_some());
        }
    });
    Timed { seconds: (found.seconds - blank.seconds).max(0.0), ..found }
}

/// Taking each leaf of a full slot out of its gfn's reverse map and putting it back.
#[must_use]
pub fn rmap(kernel: &str) -> Timed {
    let nr_tables = 128;
    let mut mmu = tables(kernel, nr_tables, TABLE, GfnHash::Kernel);
    let pages = mmu.active_page_ids();
    let rounds = 16;
    timed_on(&mut mmu, nr_tables * TABLE * rounds, |mmu| {
        for _ in 0..rounds {
            for &page in &pages {
                black_box(mmu.rmap_remove_and_add(page));
            }
        }
    })
}
