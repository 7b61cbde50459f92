//! The workloads behind the speed table: each makes its state, then times only the named work.
//!
//! Owns the definitions of the rows as code; the names are those of the kernel's own figures. Two-dimensional paging,
//! `ept_ad`, 46 physical bits, one vCPU, one slot, 4 KiB pages, events off. Time is this thread's processor time, so that
//! a busy machine does not count; what it does to the caches still does.

pub mod guest;
pub mod lists;
pub mod machine;
pub mod map;
pub mod mmio;
pub mod rows;
pub mod shadow;
pub mod whole;
pub mod zap;

use std::hint::black_box;

use kvm_mmu::mmu::{
    Config, EventMode, Family, GfnHash, Kernel, Mmu, Progress, RunReport, SlotChange, SlotSpec, Task, Work,
};
use rustix::time::{ClockId, clock_gettime};

/// Guest pages of a 2 MiB table.
pub const TABLE: u64 = 512;
/// First gfn of a region without a slot.
pub const HOLE: u64 = 1 << 28;

const FINAL: u64 = 1 << 32;
pub(crate) const READ: u64 = FINAL | 4;
pub(crate) const WRITE: u64 = FINAL | 2;
pub(crate) const WRITE_PRESENT: u64 = FINAL | 3;
pub(crate) const RSVD: u64 = 8;

/// What a row measured.
#[derive(Clone, Copy, Debug)]
pub struct Timed {
    /// Operations timed.
    pub count: u64,
    /// Seconds for all of them.
    pub seconds: f64,
    /// What the core counted meanwhile, where a VM did the work.
    pub work: Option<Work>,
}

impl Timed {
    /// Nanoseconds an operation.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    pub fn ns(&self) -> f64 {
        self.seconds * 1e9 / self.count as f64
    }
}

#[expect(clippy::cast_precision_loss, reason = "seconds of a process, nanoseconds of a second")]
fn thread_seconds() -> f64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 * 1e-9
}

/// Times `work`, which does `count` operations.
pub fn timed(count: u64, work: impl FnOnce()) -> Timed {
    let start = thread_seconds();
    work();
    Timed { count, seconds: thread_seconds() - start, work: None }
}

/// Times what is done to a VM, and takes its own counts of that.
pub fn timed_on(mmu: &mut Mmu, count: u64, work: impl FnOnce(&mut Mmu)) -> Timed {
    let before = mmu.work();
    let done = timed(count, || work(mmu));
    Timed { work: Some(mmu.work().since(&before)), ..done }
}

/// A VM with one slot from gfn 0, its vCPU entered, its limit out of the way. `v6.12-tdp` is v6.12 with the TDP MMU.
///
/// # Panics
/// If the core refuses the configuration.
#[must_use]
pub fn vm(kernel: &str, npages: u64, flags: u32, gfn_hash: GfnHash) -> Mmu {
    let (name, tdp_mmu) = kernel.strip_suffix("-tdp").map_or((kernel, false), |name| (name, true));
    let profile = Kernel::by_name(name).expect("a known kernel");
    let config = Config { family: Family::EptAd, events: EventMode::Off, gfn_hash, tdp_mmu, ..Config::new(profile) };
    let mut mmu = Mmu::new(config).expect("a valid configuration");
    let spec = SlotSpec { id: 0, base: 0, npages, hva: 0x10_0000_0000, flags };
    mmu.install_slot(0, 2, SlotChange::Put(spec)).expect("the slot is valid");
    mmu.set_max_raw(1 << 30);
    mmu.enter(0).expect("vcpu 0 exists");
    mmu
}

/// The page-fault entry.
#[inline]
pub(crate) fn fault(mmu: &mut Mmu, gfn: u64, error_code: u64) {
    black_box(mmu.fault(0, gfn << 12, error_code).expect("vcpu 0 exists"));
}

/// Runs a task to its end.
pub(crate) fn finish(mmu: &mut Mmu, task: Task) -> RunReport {
    match mmu.start(task).expect("the task is valid") {
        Progress::Done(report) => report,
        Progress::LockBreak(_) | Progress::Slice(_) => unreachable!("no lock breaks are set"),
    }
}

/// Numbers that look random and are the same every time.
#[derive(Clone, Debug)]
pub struct Lcg(u64);

impl Lcg {
    /// Starts from a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number below a bound.
    pub const fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// A permutation of `0..n`.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "a few million at most")]
pub fn permutation(n: u64) -> Vec<u64> {
    let mut order: Vec<u64> = (0..n).collect();
    let mut random = Lcg::new(1);
    for at in (1..n).rev() {
        order.swap(at as usize, random.below(at + 1) as usize);
    }
    order
}
