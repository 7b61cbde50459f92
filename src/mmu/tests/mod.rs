//! Tests of the nouns against naive models, of the audit against planted corruption, and of the whole facade against
//! itself: any sequence of calls leaves a state whose audit is clean.

mod audit;
mod facade;
mod guest_walk;
mod judge;
mod newer;
mod nouns;
mod shadow_paging;
mod slices;
mod slots;
mod tdp;
mod words;
mod zap_plan;

use super::*;

/// A VM of a kernel with one vCPU, events kept, a limit that never binds and no slot.
fn vm(kernel: &str) -> Mmu {
    vm_with(kernel, |_| ())
}

/// The same, with the configuration changed.
fn vm_with(kernel: &str, change: impl FnOnce(&mut Config)) -> Mmu {
    let mut config = Config::new(Kernel::by_name(kernel).expect("a known kernel"));
    change(&mut config);
    let mut mmu = Mmu::new(config).expect("a valid configuration");
    mmu.set_max_raw(1 << 20);
    mmu
}

/// Puts a slot under the next even generation.
fn put(mmu: &mut Mmu, id: u32, base: u64, npages: u64, flags: u32) {
    let generation = mmu.generation(0).expect("space 0").wrapping_add(4);
    let spec = SlotSpec { id, base, npages, hva: 0x2_0000_0000 + (base << 12), flags };
    mmu.install_slot(0, generation, SlotChange::Put(spec)).expect("a valid slot");
}

/// A write to a gfn; it must hit or be emulated.
fn touch(mmu: &mut Mmu, gfn: u64) {
    let result = mmu.access(0, gfn << 12, AccessKind::Write).expect("vcpu 0 exists");
    assert!(matches!(result.outcome, Outcome::Hit | Outcome::Emulate), "{result:?}");
}

/// Runs a task to its end through every lock break.
fn finish(mmu: &mut Mmu, task: Task) -> RunReport {
    let mut progress = mmu.start(task).expect("a valid task");
    loop {
        match progress {
            Progress::Done(report) => return report,
            Progress::LockBreak(run) | Progress::Slice(run) => progress = mmu.resume(run).expect("the run waits"),
        }
    }
}

/// A zap of the whole list by a plan.
const fn zap(plan: ZapPlan) -> Task {
    Task::Zap { plan, slot: None, range: None }
}

#[track_caller]
fn assert_clean(mmu: &Mmu) {
    assert_eq!(mmu.audit(), Vec::new());
}
