//! A memslot update, step by step, with what waits between: the order of publications, wrap check, zaps and walks that the
//! kernel's facts give.
//!
//! Models `__kvm_set_memory_region` and the commit hooks of v5.0 to v7.3; the same steps as the machine layer of the Python
//! package makes, which a test holds beside them.

use super::policy::Policy;
use crate::kernels::LogOnFlush;
use crate::mmu::{Kernel, Mmu, Progress, Result, RunId, SlotChange, SlotSpec, SlotWalk, Task};

const LOG: u32 = 1;
const READONLY: u32 = 2;
const INVALID: u32 = 1 << 16;
const MIN_PAGES: u64 = 64;
const PERMILLE: u64 = 20;

/// A step of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The array is visible with a generation in flight.
    Install(SlotChange),
    /// Its generation is looked at for a wrap.
    CheckWrap,
    /// Its generation is visible.
    Publish,
    /// The slot is zapped.
    Removal,
    /// The automatic limit.
    Limit,
    /// vCPUs switch the processor's log.
    CpuLog,
    /// A walk over the slot.
    Walk(SlotWalk),
    /// The slot is flushed.
    Flush,
}

/// An update under way.
#[derive(Clone, Debug)]
pub struct Update {
    /// Address space.
    pub as_id: u8,
    /// Slot id.
    pub id: u32,
    steps: Vec<Step>,
    at: usize,
    generation: (u64, u64, bool),
    run: Option<RunId>,
}

/// Where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stand {
    /// It has returned.
    Over,
    /// It waits: a window, or the lock.
    Waits,
    /// The policy's table has ended.
    Cut,
}

/// What an update is made of.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Large leaves are split when a log starts.
    pub splits_eagerly: bool,
    /// Page-modification logging is on.
    pub is_pml: bool,
    /// It stops after each publication.
    pub has_windows: bool,
}

impl Update {
    /// An update that was checked: what the slot was, and what it is to be.
    #[must_use]
    pub fn new(
        mmu: &Mmu,
        as_id: u8,
        old: Option<SlotSpec>,
        new: Option<SlotSpec>,
        policy: &Policy,
        rules: Rules,
    ) -> Self {
        let kernel = mmu.config().kernel;
        let id = old.or(new).map_or(0, |slot| slot.id);
        let mut steps = Vec::new();
        let swap = |steps: &mut Vec<Step>, change| {
            steps.push(Step::Install(change));
            steps.extend(if policy.is_checked_first {
                [Step::CheckWrap, Step::Publish]
            } else {
                [Step::Publish, Step::CheckWrap]
            });
        };
        let is_taken = old.is_some_and(|old| new.is_none_or(|new| new.base != old.base));
        if let Some(old) = old.filter(|_| is_taken) {
            swap(&mut steps, SlotChange::Put(SlotSpec { flags: old.flags | INVALID, ..old }));
            steps.push(Step::Removal);
        }
        swap(&mut steps, new.map_or(SlotChange::Remove(id), SlotChange::Put));
        if !kernel.limit_on_resize || old.is_none() || new.is_none() {
            steps.push(Step::Limit);
        }
        let flags = (old.map_or(0, |slot| slot.flags), new.map_or(0, |slot| slot.flags));
        if kernel.pml_while_logging && (flags.0 ^ flags.1) & LOG != 0 {
            steps.push(Step::CpuLog);
        }
        if let Some(new) = new {
            let is_initially_set = mmu.is_dirty_log_initially_set();
            steps.extend(Self::walks(&kernel, old, new, is_taken, is_initially_set, rules));
        }
        Self { as_id, id, steps, at: 0, generation: (0, 0, false), run: None }
    }

    /// What follows from the flags.
    fn walks(
        kernel: &Kernel,
        old: Option<SlotSpec>,
        new: SlotSpec,
        is_taken: bool,
        is_initially_set: bool,
        rules: Rules,
    ) -> Vec<Step> {
        let (was_logged, is_logged) = (old.is_some_and(|old| old.flags & LOG != 0), new.flags & LOG != 0);
        let protect: &[SlotWalk] = if rules.is_pml {
            &[SlotWalk::LeafClearDirty, SlotWalk::LargepageRemoveWriteAccess]
        } else {
            &[SlotWalk::RemoveWriteAccess]
        };
        let mut steps: Vec<Step> = Vec::new();
        let is_readonly = new.flags & READONLY != 0;
        if kernel.walk_on_log_change {
            if old.is_none() || is_taken || is_readonly || was_logged == is_logged {
                return steps;
            }
            if !is_logged {
                steps.push(Step::Walk(SlotWalk::ZapCollapsible));
            } else if !is_initially_set {
                if rules.splits_eagerly {
                    steps.push(Step::Walk(SlotWalk::Split { to: 1 }));
                }
                steps.extend(protect.iter().map(|&walk| Step::Walk(walk)));
                if kernel.log_on_flush == LogOnFlush::Always {
                    steps.push(Step::Flush);
                }
            }
            return steps;
        }
        if was_logged && !is_logged {
            steps.push(Step::Walk(SlotWalk::ZapCollapsible));
        }
        if is_readonly {
            steps.push(Step::Walk(SlotWalk::RemoveWriteAccess));
        } else if is_logged {
            steps.extend(protect.iter().map(|&walk| Step::Walk(walk)));
        } else if rules.is_pml {
            steps.push(Step::Walk(SlotWalk::SetDirty));
        }
        steps
    }

    /// Adds what decides about the rest of it.
    pub fn add_to(&self, mut add: impl FnMut(u64)) {
        add(u64::from(self.as_id) << 32 | u64::from(self.id));
        add((self.steps.len() - self.at) as u64);
        add(self.steps.len() as u64 | u64::from(self.run.is_some()) << 32 | u64::from(self.generation.2) << 33);
    }

    /// Whether it waits for the lock, and not in a window.
    #[must_use]
    pub const fn is_at_lock(&self) -> bool {
        self.run.is_some()
    }

    /// Goes on until it waits or has returned.
    pub fn go_on(&mut self, mmu: &mut Mmu, policy: &Policy, rules: Rules) -> Result<Stand> {
        if let Some(run) = self.run.take()
            && self.is_waiting(mmu.resume(run)?)
        {
            return Ok(Stand::Waits);
        }
        while let Some(&step) = self.steps.get(self.at) {
            self.at += 1;
            match step {
                Step::Install(change) => {
                    let Some(generation) = policy.update(mmu.generation(self.as_id)?) else { return Ok(Stand::Cut) };
                    self.generation = generation;
                    mmu.install_slot(self.as_id, generation.0, change)?;
                    if rules.has_windows {
                        return Ok(Stand::Waits);
                    }
                }
                Step::Publish => {
                    mmu.set_generation(self.as_id, self.generation.1)?;
                    if rules.has_windows && self.at < self.steps.len() && self.steps[self.at] != Step::Limit {
                        return Ok(Stand::Waits);
                    }
                }
                Step::CheckWrap => {
                    let kernel = &mmu.config().kernel;
                    let is_zapped = kernel.wrap_zaps_without_caching || mmu.masks().mmio_mask != 0;
                    if self.generation.2 && is_zapped {
                        let plan = mmu.plans().wrap;
                        if self.is_waiting(mmu.start(Task::Zap { plan, slot: None, range: None })?) {
                            return Ok(Stand::Waits);
                        }
                    }
                }
                Step::Removal => {
                    let plan = mmu.plans().slot_removal;
                    let slot = Some((self.as_id, self.id));
                    if self.is_waiting(mmu.start(Task::Zap { plan, slot, range: None })?) {
                        return Ok(Stand::Waits);
                    }
                }
                Step::Limit => {
                    if mmu.requested_mmu_pages() == 0 {
                        let pages = mmu.total_slot_pages() * PERMILLE / 1000;
                        mmu.change_mmu_pages(pages.max(MIN_PAGES))?;
                    }
                }
                Step::CpuLog => {
                    if rules.is_pml {
                        mmu.request_cpu_dirty_logging();
                    }
                }
                Step::Walk(what) => {
                    let task = Task::SlotWalk { as_id: self.as_id, id: self.id, what };
                    if self.is_waiting(mmu.start(task)?) {
                        return Ok(Stand::Waits);
                    }
                }
                Step::Flush => {
                    mmu.flush_slot_tlbs(self.as_id, self.id)?;
                }
            }
        }
        Ok(Stand::Over)
    }

    fn is_waiting(&mut self, progress: Progress) -> bool {
        match progress {
            Progress::Done(_) => false,
            Progress::LockBreak(run) | Progress::Slice(run) => {
                self.run = Some(run);
                true
            }
        }
    }
}
