//! The TDP MMU: its list of roots, its iterator against a naive walk, and what its verbs leave behind.

use proptest::prelude::*;

use super::{assert_clean, finish, put, touch, vm_with, zap};
use crate::mmu::pages::page_arena::PageIdx;
use crate::mmu::pages::walk::{child_of, is_last, is_shadow_present};
use crate::mmu::tdp::root_list::RootList;
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::level::pages_per;
use crate::mmu::{AccessKind, Config, Event, Family, HostHuge, Mmu, Progress, RunReport, SlotWalk, Task, ZapPlan};

const HVA: u64 = 0x2_0000_0000;

fn tdp(kernel: &str, change: impl FnOnce(&mut Config)) -> Mmu {
    vm_with(kernel, |config| {
        config.tdp_mmu = true;
        config.family = Family::Npt;
        change(config);
    })
}

/// The fast zap, as for the removal of a slot.
fn fast_zap(mmu: &mut Mmu) -> RunReport {
    let plan = mmu.plans().wrap;
    finish(mmu, zap(plan))
}

#[test]
fn a_root_is_listed_while_it_is_held() {
    let mut roots = RootList::default();
    let (old, new) = (PageIdx(1), PageIdx(2));
    roots.push_head(old);
    roots.push_head(new);
    assert_eq!(roots.iter().map(|root| root.page).collect::<Vec<_>>(), [new, old]);
    assert_eq!(roots.after(PageIdx::NONE).count(), 2);
    assert_eq!(roots.after(new).map(|root| root.page).collect::<Vec<_>>(), [old]);
    assert!(!roots.put(old));
    roots.get(old);
    assert!(!roots.put(old) && roots.put(old));
    assert_eq!(roots.len(), 1);
    assert!(!roots.put(old), "it is gone");
}

#[test]
fn a_mark_is_taken_once() {
    let mut roots = RootList::default();
    roots.push_head(PageIdx(1));
    assert!(!roots.unschedule(PageIdx(1)));
    for root in roots.iter_mut() {
        root.is_scheduled = true;
    }
    assert!(roots.unschedule(PageIdx(1)) && !roots.unschedule(PageIdx(1)));
}

/// Every entry that a walk comes to, written down from its definition: an entry that overlaps the range, before its
/// children.
fn naive(mmu: &Mmu, table: PageIdx, base: u64, span: (u64, u64), least: u8, found: &mut Vec<(u64, u8)>) {
    let level = mmu.state.arena.key(table).role.level();
    let pages = pages_per(level);
    for index in 0..512_u16 {
        let gfn = base + u64::from(index) * pages;
        if gfn >= span.1 || gfn + pages <= span.0 {
            continue;
        }
        found.push((gfn, level));
        let spte = mmu.state.arena.spte(table.sptep(index));
        if level > least && is_shadow_present(&mmu.state.masks, spte) && !is_last(spte, level) {
            naive(mmu, child_of(spte), gfn, span, least, found);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn the_iterator_comes_to_what_overlaps(
        touched in prop::collection::vec(0_u64..4096, 1..12),
        start in 0_u64..4096, len in 0_u64..4096, least in 1_u8..5, yields in prop::collection::vec(any::<bool>(), 64),
    ) {
        let mut mmu = tdp("v6.12", |_| ());
        put(&mut mmu, 0, 0, 4096, 0);
        for gfn in touched {
            touch(&mut mmu, gfn);
        }
        let root = mmu.state.vcpus[0].root;
        let mut expected = Vec::new();
        naive(&mmu, root, 0, (start, start + len), least, &mut expected);
        let mut found = Vec::new();
        let mut iter = mmu.state.tdp_iter(root, Gfn(start), Gfn(start + len), least);
        let mut asked = yields.into_iter().cycle();
        while iter.is_valid() {
            if iter.has_advanced() && asked.next() == Some(true) {
                iter.is_yielded = true;
            } else if !found.contains(&(iter.gfn.0, iter.level)) {
                found.push((iter.gfn.0, iter.level));
            }
            mmu.state.tdp_next(&mut iter);
        }
        // An empty range has no entry, unless one that covers its place begins before it.
        if len > 0 {
            prop_assert_eq!(found, expected);
        }
    }
}

#[test]
fn a_zap_of_a_root_leaves_it_to_its_vcpu() {
    for kernel in ["v6.1", "v6.12", "v6.18", "v7.3"] {
        let mut mmu = tdp(kernel, |config| config.vcpus = 2);
        put(&mut mmu, 0, 0, 2048, 0);
        touch(&mut mmu, 1);
        mmu.access(1, 600 << 12, AccessKind::Write).expect("vcpu 1");
        assert_eq!(mmu.state.tdp.nr_tables, 4);
        let report = fast_zap(&mut mmu);
        assert_eq!((mmu.state.tdp.nr_tables, mmu.state.tdp.roots.len()), (0, 1), "{kernel}");
        assert_eq!(report.work.pages_zapped, 4);
        assert_clean(&mmu);
        mmu.enter(0).expect("vcpu 0");
        assert_eq!(mmu.state.tdp.roots.len(), 2, "{kernel}: the old one is held by vcpu 1");
        mmu.enter(1).expect("vcpu 1");
        assert_eq!(mmu.state.tdp.roots.len(), 1, "{kernel}");
        assert_clean(&mmu);
    }
}

#[test]
fn a_walk_holds_its_root_over_a_lock_break() {
    let mut mmu = tdp("v6.12", |_| ());
    put(&mut mmu, 0, 0, 2048, 0);
    touch(&mut mmu, 1);
    touch(&mut mmu, 700);
    mmu.set_lock_break(0, 3);
    let progress = mmu.start(Task::UnmapHva { start: HVA, end: HVA + (2048 << 12), may_block: true }).expect("a task");
    let Progress::LockBreak(run) = progress else { panic!("{progress:?}") };
    mmu.set_lock_break(0, 0);
    fast_zap(&mut mmu);
    mmu.enter(0).expect("vcpu 0");
    assert_eq!(mmu.state.tdp.roots.len(), 2, "the walk stands on the old one");
    assert!(matches!(mmu.resume(run), Ok(Progress::Done(_))));
    mmu.finish_unmap(HVA, HVA + (2048 << 12));
    assert_eq!(mmu.state.tdp.roots.len(), 1);
    assert_clean(&mmu);
}

#[test]
fn a_zap_that_is_given_up_is_carried_out() {
    let mut mmu = tdp("v6.12", |_| ());
    put(&mut mmu, 0, 0, 2048, 0);
    touch(&mut mmu, 1);
    mmu.set_lock_break(0, 2);
    let progress = mmu.start(zap(ZapPlan::V5_4_FAST)).expect("a task");
    let Progress::LockBreak(run) = progress else { panic!("{progress:?}") };
    mmu.abandon(run).expect("it waits");
    assert_eq!(mmu.state.tdp.nr_tables, 0);
    assert_clean(&mmu);
}

#[test]
fn equal_changes_of_neighbours_are_one_event() {
    let mut mmu = tdp("v6.12", |_| ());
    put(&mut mmu, 0, 0, 512, 0);
    touch(&mut mmu, 1);
    mmu.clear_events();
    fast_zap(&mut mmu);
    let runs: Vec<u32> = mmu
        .events()
        .filter_map(|event| if let Event::Spte { level: 1, n, .. } = event { Some(*n) } else { None })
        .collect();
    assert_eq!(runs, [1, 512]);
    assert_eq!(mmu.stats().spte_changed, 4 + 1 + 3 * 513);
}

#[test]
fn a_collapsed_table_keeps_what_its_leaves_knew() {
    for (kernel, is_in_place) in [("v6.12", false), ("v6.18", true)] {
        let mut mmu = tdp(kernel, |_| ());
        put(&mut mmu, 0, 0, 512, 0);
        touch(&mut mmu, 1);
        mmu.set_host_huge(HVA, 512, HostHuge::Thp);
        finish(&mut mmu, Task::SlotWalk { as_id: 0, id: 0, what: SlotWalk::ZapCollapsible });
        let (level, spte) = mmu.translate(0, 0).expect("vcpu 0").expect("a root");
        assert_eq!((level, spte != 0), (2, is_in_place), "{kernel}: {spte:#x}");
        if is_in_place {
            let dirty = mmu.masks().dirty;
            assert_ne!(spte & dirty, 0, "D of the small leaf");
        }
        assert_clean(&mmu);
    }
}

#[test]
fn a_split_that_finds_no_change_costs_no_table() {
    let mut mmu = tdp("v6.12", |_| ());
    put(&mut mmu, 0, 0, 1024, 0);
    mmu.set_host_huge(HVA, 1024, HostHuge::Thp);
    touch(&mut mmu, 1);
    let before = mmu.memory();
    finish(&mut mmu, Task::SlotWalk { as_id: 0, id: 0, what: SlotWalk::Split { to: 1 } });
    assert_eq!(mmu.state.tdp.nr_tables, 3);
    assert!(mmu.memory().tables >= before.tables + 4096);
    finish(&mut mmu, Task::SlotWalk { as_id: 0, id: 0, what: SlotWalk::Split { to: 1 } });
    assert_eq!(mmu.state.tdp.nr_tables, 3);
    assert_clean(&mmu);
}

#[test]
fn plans_of_shadow_pages_leave_the_roots_alone() {
    for (name, plan, _) in ZapPlan::NAMED {
        let mut mmu = tdp("v6.12", |_| ());
        put(&mut mmu, 0, 0, 512, 0);
        touch(&mut mmu, 1);
        finish(&mut mmu, Task::Zap { plan, slot: Some((0, 0)), range: Some((0, 512)) });
        assert_clean(&mmu);
        let is_mapped = mmu.translate(0, 1 << 12).expect("vcpu 0").is_some_and(|(_, spte)| spte != 0);
        let spares = matches!(plan, ZapPlan::List(list) if list.only == crate::mmu::Only::MmioCached);
        assert_eq!(is_mapped, spares && !plan.bump_valid_gen(), "{name}");
    }
}

#[test]
fn plans_of_roots_are_the_same_by_slices_and_say_how_the_lock_was_held() {
    for (name, plan, _) in ZapPlan::NAMED.into_iter().filter(|(_, plan, _)| matches!(plan, ZapPlan::Roots(_))) {
        let made = || {
            let mut mmu = tdp("v6.12", |config| config.vcpus = 2);
            put(&mut mmu, 0, 0, 2048, 0);
            for gfn in (0..1200).step_by(7) {
                touch(&mut mmu, gfn);
            }
            mmu.set_lock_break(0, 50);
            mmu
        };
        let task = Task::Zap { plan, slot: Some((0, 0)), range: None };
        let mut whole = made();
        let report = finish(&mut whole, task.clone());
        let is_shared = name == "tdp-fast";
        assert_eq!(report.shared_units, if is_shared { report.work.units() } else { 0 }, "{name}");
        let (held, other) = if is_shared {
            (report.longest_shared_hold, report.longest_hold)
        } else {
            (report.longest_hold, report.longest_shared_hold)
        };
        assert!(other == 0 && held > 0 && held < report.work.units() && report.lock_breaks > 0, "{name}: {report:?}");
        for steps in [1, 7, 100] {
            let mut cut = made();
            cut.set_slice(steps);
            assert_eq!(finish(&mut cut, task.clone()), report, "{name} by {steps}");
            assert_eq!((cut.digest(), cut.events_json_rich()), (whole.digest(), whole.events_json_rich()), "{name}");
        }
        assert_clean(&whole);
    }
}

#[test]
fn a_plan_of_roots_asks_for_a_reload_when_it_says_so() {
    let words = |reload| [("walk", "roots"), ("only", "obsolete"), ("bump_valid_gen", "yes"), ("reload_roots", reload)];
    for (reload, is_asked) in [("no", false), ("before", true), ("after", true)] {
        let mut mmu = tdp("v6.12", |_| ());
        put(&mut mmu, 0, 0, 512, 0);
        touch(&mut mmu, 1);
        let before = mmu.stats().reload;
        finish(&mut mmu, zap(ZapPlan::of(&words(reload)).expect("a plan")));
        assert_eq!(mmu.stats().reload > before, is_asked, "{reload}");
        // Without it the vCPU goes on with what its TLB holds, and the audit says so.
        let broken: Vec<_> = mmu.audit().iter().map(|finding| finding.invariant).collect();
        assert_eq!(broken.is_empty(), is_asked, "{reload}: {broken:?}");
    }
}
