//! Zap plans: the kernels' counts on the small witness, lock breaks, stale next entries, the caller's own loops.

use proptest::prelude::*;

use super::{assert_clean, finish, put, touch, vm, zap};
use crate::mmu::{
    Error, ListPlan, Mmu, Offer, Only, Progress, RestartRules, RunOutcome, RunReport, Skip, Task, Walk, ZapPlan,
};

/// Twenty-four pages of which five cache MMIO: the root, two upper tables and 21 page tables, newest at the head.
fn witness(kernel: &str) -> Mmu {
    let mut mmu = vm(kernel);
    put(&mut mmu, 0, 0, 16 * 512, 0);
    for table in 0..21 {
        // Tables 16 to 20 lie behind the slot.
        touch(&mut mmu, table * 512);
    }
    mmu.clear_events();
    mmu
}

fn run(mmu: &Mmu, plan: &str) -> (RunReport, Mmu) {
    let mut mmu = mmu.clone();
    let report = finish(&mut mmu, zap(ZapPlan::named(plan).expect("a named plan")));
    assert_clean(&mmu);
    (report, mmu)
}

#[test]
fn named_plans_zap_what_they_say() {
    let mmu = witness("v5.2");
    assert_eq!(mmu.used_mmu_pages(), 24);
    let (seed, after_seed) = run(&mmu, "seed");
    let (merged, after_merged) = run(&mmu, "merged");
    let (indexed, after_indexed) = run(&mmu, "indexed");
    for report in [&seed, &merged, &indexed] {
        assert_eq!((report.nr_zapped, report.work.flushes), (5, 1));
    }
    assert_eq!((seed.work.walk_starts, merged.work.walk_starts, indexed.work.walk_starts), (6, 1, 1));
    assert_eq!((merged.work.walk_visited, indexed.work.walk_visited), (24, 5));
    assert_eq!(after_seed.digest(), after_merged.digest());
    assert_eq!(after_indexed.digest(), after_merged.digest());
    let (fast, after_fast) = run(&mmu, "v5.0-fast");
    assert_eq!((fast.work.pages_zapped, fast.nr_zapped, after_fast.used_mmu_pages()), (24, 23, 1));
    let (all, _) = run(&mmu, "zap-all");
    assert_eq!(all.work.pages_zapped, 24);
}

#[test]
fn a_plan_that_needs_a_slot_or_range_says_so() {
    let mut mmu = witness("v5.2");
    let slot = Task::Zap { plan: ZapPlan::V5_2_SLOT, slot: None, range: None };
    assert_eq!(mmu.start(slot), Err(Error::PlanNeeds("a slot")));
    let missing = Task::Zap { plan: ZapPlan::V5_2_SLOT, slot: Some((0, 9)), range: None };
    assert_eq!(mmu.start(missing), Err(Error::NoSlot { as_id: 0, id: 9 }));
    let range = ZapPlan::List(ListPlan { only: Only::GfnRange, ..ListPlan::ZAP_ALL });
    assert_eq!(mmu.start(zap(range)), Err(Error::PlanNeeds("a gfn range")));
    let half = Task::Zap { plan: range, slot: None, range: Some((512, 1024)) };
    assert_eq!(finish(&mut mmu, half).nr_zapped, 1);
    assert_clean(&mmu);
}

#[test]
fn the_slot_plan_leaves_the_rest() {
    let mut mmu = witness("v5.2");
    put(&mut mmu, 1, 100 * 512, 512, 0);
    touch(&mut mmu, 100 * 512);
    let task = Task::Zap { plan: ZapPlan::V5_2_SLOT, slot: Some((0, 1)), range: None };
    let report = finish(&mut mmu, task);
    assert_eq!((report.nr_zapped, mmu.used_mmu_pages()), (1, 24));
    assert_clean(&mmu);
}

#[test]
fn a_stale_next_is_named() {
    let mut mmu = witness("v5.2");
    let plan = ZapPlan::List(ListPlan { restart: RestartRules::default(), only: Only::All, ..ListPlan::MERGED });
    mmu.set_lock_break(1, 0);
    let Ok(Progress::LockBreak(waiting)) = mmu.start(zap(plan)) else { panic!("the lock is dropped after one page") };
    // The page noted as next goes while the lock is dropped.
    let next = mmu.active_page_ids()[0];
    let batch = mmu.batch_begin();
    mmu.batch_prepare(batch, next).expect("it is active");
    mmu.batch_commit(batch).expect("the batch is open");
    let Ok(Progress::Done(report)) = mmu.resume(waiting) else { panic!("the walk cannot go on") };
    assert_eq!(report.outcome, RunOutcome::StaleNext { page: next, step: 2 });
    assert_clean(&mmu);
}

#[test]
fn a_page_given_to_another_is_stale_too() {
    let mut mmu = witness("v5.2");
    let plan = ZapPlan::List(ListPlan { restart: RestartRules::default(), only: Only::All, ..ListPlan::MERGED });
    mmu.set_lock_break(1, 0);
    let Ok(Progress::LockBreak(waiting)) = mmu.start(zap(plan)) else { panic!("the lock is dropped after one page") };
    let next = mmu.active_page_ids()[0];
    let batch = mmu.batch_begin();
    mmu.batch_prepare(batch, next).expect("it is active");
    mmu.batch_commit(batch).expect("the batch is open");
    touch(&mut mmu, 3);
    touch(&mut mmu, 19 * 512);
    let Ok(Progress::Done(report)) = mmu.resume(waiting) else { panic!("the walk cannot go on") };
    assert_eq!(report.outcome, RunOutcome::StaleNext { page: next, step: 2 });
    assert_clean(&mmu);
}

#[test]
fn an_abandoned_run_commits() {
    let mut mmu = witness("v5.0");
    mmu.set_lock_break(0, 0);
    let plan = ZapPlan::List(ListPlan { offer: Offer::EachPage, ..ListPlan::ZAP_ALL });
    mmu.set_lock_break(2, 0);
    let Ok(Progress::LockBreak(waiting)) = mmu.start(zap(plan)) else { panic!("the lock is dropped") };
    assert_clean(&mmu);
    let report = mmu.abandon(waiting).expect("it waits");
    assert_eq!((report.outcome, report.work.pages_freed), (RunOutcome::Abandoned, 2));
    assert_eq!(mmu.resume(waiting), Err(Error::Run(waiting.0)));
    assert_clean(&mmu);
}

#[test]
fn a_batch_is_closed_once() {
    let mut mmu = witness("v5.2");
    let batch = mmu.batch_begin();
    let newest = mmu.active_page_ids()[0];
    let prepared = mmu.batch_prepare(batch, newest).expect("it is active");
    assert_eq!((prepared.nr_children, prepared.nr_zapped, prepared.is_list_unstable), (0, 1, false));
    assert_eq!(mmu.batch_prepare(batch, newest), Err(Error::Page(newest)));
    assert_clean(&mmu);
    assert_eq!(mmu.batch_commit(batch).expect("open").work.pages_freed, 1);
    assert_eq!(mmu.batch_commit(batch), Err(Error::Batch(batch.0)));
    assert_eq!(mmu.batch_prepare(batch, newest), Err(Error::Batch(batch.0)));
    assert_clean(&mmu);
}

/// Every plan whose walk is over a list.
fn list_plans() -> impl Strategy<Value = ListPlan> {
    let walk = prop_oneof![Just(Walk::Head), Just(Walk::Tail), Just(Walk::Index)];
    let only = prop_oneof![Just(Only::All), Just(Only::MmioCached), Just(Only::Obsolete)];
    let stop = prop_oneof![Just(crate::mmu::Stop::None), Just(crate::mmu::Stop::FirstNotObsolete)];
    // Without a skip rule a restart after each drop zaps the root in use for ever, as the kernel once did.
    let skip = prop_oneof![Just(Skip::Invalid), Just(Skip::InvalidInUse)];
    let offer = prop_oneof![
        Just(Offer::Never),
        Just(Offer::EachPage),
        Just(Offer::WhenWanted),
        (0_u32..4).prop_map(Offer::Batch)
    ];
    let rules = (any::<bool>(), any::<bool>(), any::<bool>())
        .prop_map(|(on_nonzero, on_unstable, on_lock_drop)| RestartRules { on_nonzero, on_unstable, on_lock_drop });
    let commit = prop_oneof![Just(crate::mmu::BeforeDrop::Keep), Just(crate::mmu::BeforeDrop::Commit)];
    let reload = prop_oneof![
        Just(crate::mmu::ReloadRoots::No),
        Just(crate::mmu::ReloadRoots::Before),
        Just(crate::mmu::ReloadRoots::After)
    ];
    (walk, only, stop, skip, offer, rules, commit, any::<bool>(), reload).prop_map(
        |(walk, only, stop, skip, offer, restart, before_drop, bump_valid_gen, reload_roots)| ListPlan {
            walk,
            only,
            stop,
            skip,
            restart,
            offer,
            before_drop,
            bump_valid_gen,
            reload_roots,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn any_plan_keeps_the_invariants(plan in list_plans(), kernel in 0..3_usize, cond in 0_u64..4, need in 0_u64..4, gfns in prop::collection::vec(0_u64..24, 0..6)) {
        let mut mmu = witness(["v5.0", "v5.0-seed", "v5.2"][kernel]);
        mmu.set_lock_break(cond, need);
        let mut progress = mmu.start(zap(ZapPlan::List(plan))).expect("a list plan needs nothing");
        let mut gfns = gfns.into_iter();
        let mut rounds = 0;
        while let Progress::LockBreak(waiting) = progress {
            prop_assert_eq!(mmu.audit(), Vec::new());
            // Others fault in a few pages while the lock is dropped, then the run is left alone.
            if let Some(table) = gfns.next() {
                let _ = mmu.access(0, table << 21, crate::mmu::AccessKind::Read).expect("vcpu 0 exists");
            } else if rounds > 64 {
                mmu.set_lock_break(0, 0);
            }
            rounds += 1;
            progress = mmu.resume(waiting).expect("it waits");
        }
        prop_assert_eq!(mmu.audit(), Vec::new());
        // Whatever was zapped can be built again.
        for table in 0..21 {
            touch(&mut mmu, table * 512);
        }
        prop_assert_eq!(mmu.audit(), Vec::new());
    }

    #[test]
    fn mmio_pages_never_make_the_list_unstable(plan in list_plans()) {
        let mut mmu = witness("v5.2");
        let batch = mmu.batch_begin();
        let ids = mmu.active_page_ids();
        for id in ids {
            if mmu.page(id).is_some_and(|page| page.mmio_cached) {
                let prepared = mmu.batch_prepare(batch, id).expect("active");
                prop_assert!(!prepared.is_list_unstable && prepared.nr_children == 0);
            }
        }
        mmu.batch_commit(batch).expect("open");
        finish(&mut mmu, zap(ZapPlan::List(ListPlan { offer: Offer::Never, ..plan })));
        prop_assert_eq!(mmu.audit(), Vec::new());
    }
}
