//! A run that comes back after every few steps does what one at a stretch does, and can be given up at any of them.

use super::*;

const KERNELS: [&str; 7] = ["v5.0", "v5.0-seed", "v5.2", "v5.3", "v5.4", "v6.1", "v6.12"];

/// Two slots, memory and MMIO in turn, a page in SMM, and a lock that is taken away now and then.
fn busy(kernel: &str) -> Mmu {
    let mut mmu = vm_with(kernel, |config| config.vcpus = 2);
    put(&mut mmu, 0, 0, 2048, 0);
    put(&mut mmu, 1, 4096, 1500, 1);
    for at in 0..12 {
        touch(&mut mmu, at * 170);
        touch(&mut mmu, 4096 + at * 120);
        touch(&mut mmu, 0xfe_0000 + at * 300);
    }
    mmu.set_smm(1, true).expect("vcpu 1 exists");
    mmu.access(1, 0xfee0_0000, AccessKind::Read).expect("vcpu 1 exists");
    mmu.set_lock_break(3, 5);
    mmu.clear_events();
    mmu
}

fn tasks() -> Vec<Task> {
    let of_shadow_pages = ZapPlan::NAMED.iter().filter(|(_, plan, _)| !matches!(plan, ZapPlan::Roots(_)));
    let plans = of_shadow_pages.map(|(_, plan, _)| Task::Zap { plan: *plan, slot: Some((0, 1)), range: None });
    let walks = [
        SlotWalk::RemoveWriteAccess,
        SlotWalk::LeafClearDirty,
        SlotWalk::LargepageRemoveWriteAccess,
        SlotWalk::SetDirty,
        SlotWalk::ZapCollapsible,
    ];
    let walks = walks.map(|what| Task::SlotWalk { as_id: 0, id: 1, what });
    plans.chain(walks).chain([Task::ZapGfnRange { start: 100, end: 5000 }]).collect()
}

#[test]
fn slices_change_no_count_no_event_and_no_state() {
    for kernel in KERNELS {
        for task in tasks() {
            let mut whole = busy(kernel);
            let report = finish(&mut whole, task.clone());
            for steps in [1, 2, 7, 60] {
                let mut cut = busy(kernel);
                cut.set_slice(steps);
                assert_eq!(finish(&mut cut, task.clone()), report, "{kernel} {task:?} by {steps}");
                assert_eq!(cut.events_json_rich(), whole.events_json_rich(), "{kernel} {task:?} by {steps}");
                assert_eq!((cut.digest(), cut.work()), (whole.digest(), whole.work()), "{kernel} {task:?} by {steps}");
            }
        }
    }
}

#[test]
fn a_run_given_up_at_a_slice_leaves_the_vm_whole() {
    for kernel in KERNELS {
        for task in tasks() {
            let mut mmu = busy(kernel);
            mmu.set_slice(40);
            let mut step = 0;
            while let Ok(Progress::Slice(run) | Progress::LockBreak(run)) = mmu.start(task.clone()) {
                let mut progress = Progress::Slice(run);
                for _ in 0..step {
                    let (Progress::Slice(run) | Progress::LockBreak(run)) = progress else { break };
                    progress = mmu.resume(run).expect("the run waits");
                }
                let (Progress::Slice(run) | Progress::LockBreak(run)) = progress else { break };
                assert_eq!(mmu.abandon(run).map(|report| report.outcome), Ok(RunOutcome::Abandoned));
                assert_clean(&mmu);
                assert_eq!(mmu.nr_paused_runs(), 0);
                touch(&mut mmu, 170 * (step % 12));
                step += 2;
            }
            assert_clean(&mmu);
        }
    }
}

#[test]
fn what_one_bit_made_obsolete_is_gone_when_the_run_is_given_up() {
    for kernel in ["v5.4", "v6.1", "v6.12"] {
        let mut mmu = busy(kernel);
        mmu.set_lock_break(0, 0);
        mmu.set_slice(1);
        let Ok(Progress::Slice(run)) = mmu.start(zap(ZapPlan::V5_4_FAST)) else { panic!("there are many pages") };
        mmu.abandon(run).expect("the run waits");
        let left: Vec<u32> = mmu.active_page_ids();
        assert!(left.iter().all(|&id| mmu.page_facts(id).is_some_and(|[_, invalid, _, _]| invalid)), "{kernel}");
        assert_clean(&mmu);
    }
}
