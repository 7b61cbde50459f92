//! A state of the search: the VM with its ghost, and the operations that wait. Applying a choice gives the next one, and
//! what the judge found on the way.

use super::update::{Rules, Stand, Update};
use super::world::{Action, Choice, GO_ON, World};
use crate::mmu::{
    AccessKind, AccessResult, DirtyLogTask, Error, Finding, GuestWork, Hash128, Mmu, Outcome, Premises, Progress,
    Registers, Result, RunId, SlotSpec, Task,
};

/// An operation that waits.
#[derive(Clone, Debug)]
enum Waiting {
    /// A memslot update.
    Update(Update),
    /// A run at a lock break; whether it holds `slots_lock`.
    Run { run: RunId, has_slots_lock: bool, range: Option<(u64, u64)> },
    /// A vCPU that is entered, and waits at a lock break.
    Guest { run: RunId, vcpu: u16 },
    /// A notifier whose mappings are gone, and the memory not yet.
    Notifier { start: u64, end: u64 },
}

/// What waits, and how much happened since.
#[derive(Clone, Debug)]
struct Paused {
    what: Waiting,
    inside: u8,
}

/// A state.
#[derive(Clone, Debug)]
pub struct State {
    /// The VM.
    pub mmu: Mmu,
    paused: Vec<Paused>,
}

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Name of the property.
    pub property: &'static str,
    /// Where and how.
    pub detail: String,
    /// Whose operation is to blame.
    pub owner: &'static str,
}

/// What a choice led to.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// What was found as it happened.
    pub violations: Vec<Violation>,
    /// Goals that were met, a bit each.
    pub goals: u32,
    /// The world ends here: the policy's table is over.
    pub is_cut: bool,
}

/// Names of the goals, by bit.
pub const GOALS: [&str; 24] = [
    "a slot with leaves is removed, and no wrap is in it",
    "the generation wraps in space 0",
    "the generation wraps in space 1",
    "MMIO is answered",
    "the lock is dropped in an operation",
    "an operation runs inside another",
    "a flush is owed while the lock is dropped",
    "a guest write hits",
    "a dirty log is read",
    "pages are zapped",
    "a page is freed",
    "a guest access hits without a fault",
    "a guest access is emulated",
    "a root is dropped at entry",
    "a leaf larger than a page is there",
    "both address spaces have roots",
    "a gfn is tracked while it is mapped",
    "a notifier takes mapped memory",
    "a fault meets a notifier",
    "an MMIO entry is stale",
    "the guest gets a page fault of its own",
    "a write to a table is emulated",
    "a table is out of sync",
    "a table is synced",
];

impl State {
    /// The state a world begins with.
    #[must_use]
    pub fn new(start: &Mmu) -> Self {
        Self { mmu: start.clone(), paused: Vec::new() }
    }

    /// Whether nothing waits.
    #[must_use]
    pub const fn is_quiet(&self) -> bool {
        self.paused.is_empty()
    }

    /// What may happen next, in order.
    pub fn choices(&self, world: &World, to: &mut Vec<Choice>) {
        to.clear();
        if !self.paused.is_empty() {
            for poll in 0..=self.polls_of(world) {
                to.push(Choice { action: GO_ON, poll });
            }
        }
        let is_full = self.paused.len() > usize::from(world.nesting)
            || self.paused.last().is_some_and(|paused| paused.inside >= world.inside);
        if is_full {
            return;
        }
        for (number, action) in (0_u8..GO_ON).zip(&world.actions) {
            if !self.is_legal(action) {
                continue;
            }
            let may_pause = world.nesting > 0 && self.paused.len() < usize::from(world.nesting);
            let polls = if may_pause && has_polls(action) { world.polls } else { 0 };
            for poll in 0..=polls {
                to.push(Choice { action: number, poll });
            }
        }
    }

    fn polls_of(&self, world: &World) -> u8 {
        match self.paused.last().map(|paused| &paused.what) {
            Some(Waiting::Notifier { .. }) | None => 0,
            _ => world.polls,
        }
    }

    fn slot(&self, as_id: u8, id: u32) -> Option<SlotSpec> {
        self.mmu.slots(as_id).ok()?.into_iter().find(|slot| slot.id == id)
    }

    /// Whether an operation may happen now.
    fn is_legal(&self, action: &Action) -> bool {
        // No array is published while a notifier is between its start and its end.
        let is_updating = self.paused.iter().any(|paused| {
            let is_held = matches!(paused.what, Waiting::Run { has_slots_lock: true, .. });
            is_held
                || matches!(
                    paused.what,
                    Waiting::Update(_) | Waiting::Run { range: Some(_), .. } | Waiting::Notifier { .. }
                )
        });
        match *action {
            Action::SetSlot { as_id, id, base, npages, hva, flags } => {
                if is_updating {
                    return false;
                }
                let Ok(slots) = self.mmu.slots(as_id) else { return false };
                let is_free = slots
                    .iter()
                    .all(|slot| slot.id == id || base >= slot.base + slot.npages || slot.base >= base + npages);
                let old = slots.iter().find(|slot| slot.id == id);
                is_free
                    && old.is_none_or(|old| {
                        old.hva == hva
                            && old.npages == npages
                            && (old.flags ^ flags) & 2 == 0
                            && (old.base, old.flags) != (base, flags)
                    })
            }
            Action::Delete { as_id, id } => !is_updating && self.slot(as_id, id).is_some(),
            Action::GetLog { as_id, id } | Action::ClearLog { as_id, id } => {
                !is_updating && self.slot(as_id, id).is_some_and(|slot| slot.flags & 1 != 0)
            }
            Action::Track { as_id, gfn, on } => {
                self.mmu.is_tracked(as_id, gfn).is_some_and(|is_tracked| is_tracked != on)
            }
            Action::Smm { vcpu, on } => self.mmu.as_id(vcpu).is_ok_and(|as_id| (as_id == 1) != on),
            Action::Unload { vcpu } => self.mmu.has_root(vcpu),
            Action::SetNx { on } => self.mmu.config().nx_huge_pages != on && !is_updating,
            Action::ZapAll => !is_updating,
            Action::SetMax { pages } => self.mmu.max_mmu_pages() != pages,
            Action::SetLimit { pages } => self.mmu.requested_mmu_pages() != pages && !is_updating,
            Action::Unmap { start, end } => !self.paused.iter().any(|paused| match paused.what {
                Waiting::Notifier { start: from, end: to } | Waiting::Run { range: Some((from, to)), .. } => {
                    from < end && start < to
                }
                _ => false,
            }),
            Action::Poke { vcpu, gpa, value } => self.mmu.peek(vcpu, gpa, 8).is_ok_and(|now| now != Some(value)),
            Action::EmulWrite { vcpu, gpa, value } => {
                self.mmu.peek(vcpu, gpa, 8).is_ok_and(|now| now.is_some_and(|now| now != value))
            }
            Action::Gwrite { vcpu, gva, gpa, value } => {
                !self.is_entered(vcpu)
                    && self.mmu.find_gpa(vcpu, gva).is_ok_and(|leads_to| leads_to == Some(gpa))
                    && self.mmu.peek(vcpu, gpa, 8).is_ok_and(|now| now != Some(value))
            }
            Action::Vaccess { vcpu, .. } | Action::Invlpg { vcpu, .. } | Action::SyncRoots { vcpu } => {
                !self.is_entered(vcpu)
            }
            Action::SetCr3 { vcpu, .. } | Action::Init { vcpu } => !self.is_entered(vcpu),
            Action::SetRegs { vcpu, cr0, cr4, efer } => {
                let is_other = |now: Registers| (now.cr0, now.cr4, now.efer) != (cr0, cr4, efer);
                !self.is_entered(vcpu) && self.mmu.registers(vcpu).is_ok_and(is_other)
            }
            Action::ChangePte { .. } => self.mmu.config().kernel.has_change_pte,
            Action::Shrink { .. } => self.mmu.config().kernel.has_shrinker,
            _ => true,
        }
    }

    /// How many operations wait, and what the one begun last waits for: 1 the end of a window, 2 the lock, 3 the host.
    #[must_use]
    pub fn waits(&self) -> (u8, u8) {
        let depth = u8::try_from(self.paused.len()).unwrap_or(u8::MAX);
        let kind = match self.paused.last().map(|paused| &paused.what) {
            None => 0,
            Some(Waiting::Update(update)) if !update.is_at_lock() => 1,
            Some(Waiting::Update(_) | Waiting::Run { .. } | Waiting::Guest { .. }) => 2,
            Some(Waiting::Notifier { .. }) => 3,
        };
        (depth, kind)
    }

    /// Adds the canonical state to a hash.
    #[must_use]
    pub fn hash(&self, world: &World) -> u128 {
        let mut to = Hash128::default();
        self.mmu.canonical(&mut to, world.has_accessed);
        for paused in &self.paused {
            to.add(u64::from(paused.inside));
            match &paused.what {
                Waiting::Update(update) => update.add_to(|word| to.add(word)),
                Waiting::Run { has_slots_lock, range, .. } => {
                    to.add(u64::from(*has_slots_lock) | 2);
                    to.add(range.map_or(0, |range| range.0));
                }
                Waiting::Guest { vcpu, .. } => to.add(u64::from(*vcpu) << 2 | 1),
                Waiting::Notifier { start, end } => {
                    to.add(*start);
                    to.add(*end);
                }
            }
        }
        to.value()
    }

    /// What the judge finds in the state itself.
    #[must_use]
    pub fn judge(&self) -> (Vec<Violation>, Premises) {
        let (mut found, premises) = self.mmu.judge_state();
        found.extend(self.mmu.audit());
        let found =
            found.into_iter().map(|Finding { invariant, detail }| Violation { property: invariant, detail, owner: "" });
        (found.collect(), premises)
    }

    /// Applies a choice.
    pub fn apply(&mut self, world: &World, choice: Choice) -> Applied {
        let before = (self.mmu.work(), self.mmu.premises(), self.mmu.nr_unsync());
        let mut applied = Applied::default();
        let poll = u64::from(choice.poll);
        self.mmu.set_lock_break(poll, poll);
        self.mmu.set_contended(poll);
        let is_nested = !self.paused.is_empty() && choice.action != GO_ON;
        let done = if choice.action == GO_ON {
            self.go_on(world, &mut applied)
        } else {
            if let Some(paused) = self.paused.last_mut() {
                paused.inside += 1;
            }
            match world.actions.get(usize::from(choice.action)) {
                Some(&action) => self.act(world, action, &mut applied),
                None => Ok(()),
            }
        };
        match done {
            Ok(()) => {}
            Err(error @ Error::OutsideSlot { .. }) => {
                applied.violations.push(Violation {
                    property: "slot_bounds",
                    detail: error.to_string(),
                    owner: "slot walk",
                });
            }
            Err(error @ Error::WalkDepth { .. }) => {
                applied.violations.push(Violation { property: "walk_depth", detail: error.to_string(), owner: "" });
            }
            Err(error) => {
                applied.violations.push(Violation { property: "no_bug", detail: error.to_string(), owner: "" });
            }
        }
        let broken = self.mmu.take_broken();
        applied.violations.extend(broken.into_iter().map(|broken| Violation {
            property: broken.property,
            detail: broken.detail,
            owner: broken.owner,
        }));
        let (work, premises) = (self.mmu.work(), self.mmu.premises());
        applied.note(3, premises.mmio > before.1.mmio);
        applied.note(4, !self.paused.is_empty());
        applied.note(5, is_nested);
        applied.note(6, !self.paused.is_empty() && self.mmu.owes_flush());
        applied.note(7, premises.writes > before.1.writes);
        applied.note(8, premises.harvests > before.1.harvests);
        applied.note(9, work.pages_zapped > before.0.pages_zapped);
        applied.note(10, work.pages_freed > before.0.pages_freed);
        let unsync = self.mmu.nr_unsync();
        applied.note(22, unsync > 0);
        applied.note(23, unsync < before.2);
        applied
    }

    fn go_on(&mut self, world: &World, applied: &mut Applied) -> Result<()> {
        let Some(paused) = self.paused.pop() else { return Ok(()) };
        match paused.what {
            Waiting::Update(update) => self.drive(world, update, applied),
            Waiting::Run { run, has_slots_lock, range } => {
                let progress = self.mmu.resume(run)?;
                self.settle(world, progress, has_slots_lock, range);
                Ok(())
            }
            Waiting::Guest { run, vcpu } => {
                let progress = self.mmu.resume(run)?;
                self.settle_guest(vcpu, progress, applied).map(drop)
            }
            Waiting::Notifier { start, end } => {
                self.mmu.finish_unmap(start, end);
                Ok(())
            }
        }
    }

    /// Whether a vCPU is entered already, and waits.
    fn is_entered(&self, vcpu: u16) -> bool {
        self.paused.iter().any(|paused| matches!(paused.what, Waiting::Guest { vcpu: other, .. } if other == vcpu))
    }

    /// A vCPU is entered for something; how that ended, unless it waits.
    fn guest(&mut self, vcpu: u16, work: GuestWork, applied: &mut Applied) -> Result<Option<Outcome>> {
        let progress = self.mmu.start(Task::Guest { vcpu, work })?;
        self.settle_guest(vcpu, progress, applied)
    }

    fn settle_guest(&mut self, vcpu: u16, progress: Progress, applied: &mut Applied) -> Result<Option<Outcome>> {
        if let Progress::LockBreak(run) | Progress::Slice(run) = progress {
            self.paused.push(Paused { what: Waiting::Guest { run, vcpu }, inside: 0 });
            return Ok(None);
        }
        let done = self.mmu.take_guest_result()?;
        self.note_access(vcpu, done, applied);
        Ok(Some(done.outcome))
    }

    /// How an access ended.
    fn note_access(&self, vcpu: u16, done: AccessResult, applied: &mut Applied) {
        applied.note(11, done.outcome == Outcome::Hit && done.faults == 0);
        applied.note(12, done.outcome == Outcome::Emulate);
        let is_disturbed = self.paused.iter().any(|paused| !matches!(paused.what, Waiting::Run { range: None, .. }));
        applied.note(18, is_disturbed && done.faults > 1);
        if done.outcome == Outcome::Stuck && !is_disturbed {
            let detail = format!("vCPU {vcpu}: eight faults, and none got through");
            applied.violations.push(Violation { property: "progress", detail, owner: "access" });
        }
    }

    fn drive(&mut self, world: &World, mut update: Update, applied: &mut Applied) -> Result<()> {
        let rules = rules_of(world, self.paused.len());
        match update.go_on(&mut self.mmu, &world.policy, rules)? {
            Stand::Over => self.mmu.end_update(),
            Stand::Waits => self.paused.push(Paused { what: Waiting::Update(update), inside: 0 }),
            Stand::Cut => {
                self.mmu.end_update();
                applied.is_cut = true;
            }
        }
        Ok(())
    }

    fn settle(&mut self, world: &World, progress: Progress, has_slots_lock: bool, range: Option<(u64, u64)>) {
        match progress {
            Progress::LockBreak(run) | Progress::Slice(run) => {
                self.paused.push(Paused { what: Waiting::Run { run, has_slots_lock, range }, inside: 0 });
            }
            Progress::Done(_) => {
                if let Some((start, end)) = range {
                    if world.has_windows && self.paused.len() < usize::from(world.nesting) {
                        self.paused.push(Paused { what: Waiting::Notifier { start, end }, inside: 0 });
                    } else {
                        self.mmu.finish_unmap(start, end);
                    }
                }
            }
        }
    }

    fn update(
        &mut self,
        world: &World,
        as_id: u8,
        old: Option<SlotSpec>,
        new: Option<SlotSpec>,
        applied: &mut Applied,
    ) -> Result<()> {
        let rules = rules_of(world, self.paused.len());
        let update = Update::new(&self.mmu, as_id, old, new, &world.policy, rules);
        let is_taken = old.is_some_and(|old| new.is_none_or(|new| new.base != old.base));
        let id = update.id;
        let generation = self.mmu.generation(as_id)?;
        let leaves = if is_taken { self.mmu.count_mappings(as_id, id, u32::MAX)? } else { 0 };
        self.mmu.begin_update(as_id, id, is_taken);
        self.drive(world, update, applied)?;
        let wraps = world.policy.update(generation).is_some_and(|update| update.2);
        applied.note(0, leaves > 0 && !wraps);
        applied.note(1 + u8::from(as_id == 1), wraps);
        Ok(())
    }

    /// What only a guest with tables of its own does, and INIT.
    fn act_in_guest(&mut self, action: Action, applied: &mut Applied) -> Result<()> {
        match action {
            Action::Vaccess { vcpu, gva, kind, is_user } => {
                let ended = self.guest(vcpu, GuestWork::Access { gva, kind, is_user }, applied)?;
                applied.note(20, ended == Some(Outcome::GuestFault));
            }
            Action::Poke { vcpu, gpa, value } => {
                self.mmu.poke(vcpu, gpa, value, 8)?;
            }
            Action::EmulWrite { vcpu, gpa, value } => {
                self.mmu.emulate_write(vcpu, gpa, value, 8)?;
            }
            Action::Gwrite { vcpu, gva, gpa, value } => {
                let work = GuestWork::Access { gva, kind: AccessKind::Write, is_user: false };
                match self.guest(vcpu, work, applied)? {
                    Some(Outcome::Hit) => {
                        self.mmu.poke(vcpu, gpa, value, 8)?;
                    }
                    Some(Outcome::Emulate) => {
                        self.mmu.emulate_write(vcpu, gpa, value, 8)?;
                        applied.note(21, true);
                    }
                    _ => {}
                }
            }
            Action::Invlpg { vcpu, gva } => {
                self.guest(vcpu, GuestWork::Invlpg { gva }, applied)?;
            }
            Action::SetCr3 { vcpu, cr3 } => {
                let ret = self.mmu.set_cr3(vcpu, cr3)?;
                if ret == 1 && !self.mmu.config().kernel.is_role_fixed {
                    self.guest(vcpu, GuestWork::SyncRoots, applied)?;
                }
            }
            Action::SyncRoots { vcpu } => {
                self.mmu.request_sync(vcpu)?;
                self.guest(vcpu, GuestWork::Enter, applied)?;
            }
            Action::Init { vcpu } => self.mmu.init(vcpu)?,
            Action::SetRegs { vcpu, cr0, cr4, efer } => {
                self.mmu.set_regs(vcpu, Some(cr0), Some(cr4), Some(efer), None)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn act(&mut self, world: &World, action: Action, applied: &mut Applied) -> Result<()> {
        match action {
            Action::Vaccess { .. }
            | Action::Poke { .. }
            | Action::EmulWrite { .. }
            | Action::Gwrite { .. }
            | Action::Invlpg { .. }
            | Action::SetCr3 { .. }
            | Action::SyncRoots { .. }
            | Action::Init { .. }
            | Action::SetRegs { .. } => return self.act_in_guest(action, applied),
            Action::Access { vcpu, gpa, kind } => {
                let done = self.mmu.access(vcpu, gpa, kind)?;
                self.note_access(vcpu, done, applied);
            }
            Action::SetSlot { as_id, id, base, npages, hva, flags } => {
                let old = self.slot(as_id, id);
                return self.update(world, as_id, old, Some(SlotSpec { id, base, npages, hva, flags }), applied);
            }
            Action::Delete { as_id, id } => {
                let old = self.slot(as_id, id);
                return self.update(world, as_id, old, None, applied);
            }
            Action::Unmap { start, end } => {
                let progress = self.mmu.start(Task::UnmapHva { start, end, may_block: true })?;
                self.settle(world, progress, false, Some((start, end)));
            }
            Action::Age { start, end } => {
                self.mmu.age_hva(start, end, true);
            }
            Action::ChangePte { hva, pfn, write } => self.mmu.change_pte(hva, pfn, write)?,
            Action::HostState { hva, npages, state } => self.mmu.set_host_state(hva, npages, state),
            Action::HostHuge { hva, npages, kind } => self.mmu.set_host_huge(hva, npages, kind),
            Action::GetLog { as_id, id } => {
                let what = DirtyLogTask::Get { manual: false };
                let progress = self.mmu.start(Task::DirtyLog { as_id, id, what })?;
                self.settle(world, progress, true, None);
            }
            Action::ClearLog { as_id, id } => {
                let num = self.slot(as_id, id).map_or(0, |slot| slot.npages.min(64));
                let what = DirtyLogTask::Clear { first: 0, num, mask: vec![u64::MAX] };
                let progress = self.mmu.start(Task::DirtyLog { as_id, id, what })?;
                self.settle(world, progress, true, None);
            }
            Action::Track { as_id, gfn, on } => {
                self.mmu.track(as_id, gfn, on)?;
            }
            Action::Smm { vcpu, on } => self.mmu.set_smm(vcpu, on)?,
            Action::Unload { vcpu } => self.mmu.unload(vcpu)?,
            Action::Enter { vcpu } => {
                self.mmu.enter(vcpu)?;
            }
            Action::ZapAll => {
                let plan = self.mmu.plans().flush_all;
                let progress = self.mmu.start(Task::Zap { plan, slot: None, range: None })?;
                self.settle(world, progress, true, None);
            }
            Action::SetNx { on } => {
                self.mmu.set_nx_huge_pages(on);
                let plan = self.mmu.plans().wrap;
                let progress = self.mmu.start(Task::Zap { plan, slot: None, range: None })?;
                self.settle(world, progress, true, None);
            }
            Action::Recover => {
                let progress = self.mmu.start(Task::NxRecover { ratio: 1 })?;
                self.settle(world, progress, false, None);
            }
            Action::Shrink { pages } => {
                self.mmu.shrink(pages);
            }
            Action::SetMax { pages } => self.mmu.set_max_raw(pages),
            Action::SetLimit { pages } => {
                self.mmu.change_mmu_pages(pages)?;
                self.mmu.set_requested_mmu_pages(pages);
            }
        }
        Ok(())
    }
}

impl Applied {
    const fn note(&mut self, goal: u8, is_met: bool) {
        if is_met {
            self.goals |= 1 << goal;
        }
    }
}

const fn rules_of(world: &World, waiting: usize) -> Rules {
    Rules {
        splits_eagerly: world.splits_eagerly,
        is_pml: world.is_pml,
        has_windows: world.has_windows && waiting < world.nesting as usize,
    }
}

/// Whether an operation polls for the lock.
const fn has_polls(action: &Action) -> bool {
    matches!(
        action,
        Action::SetSlot { .. }
            | Action::Delete { .. }
            | Action::Unmap { .. }
            | Action::GetLog { .. }
            | Action::ClearLog { .. }
            | Action::ZapAll
            | Action::SetNx { .. }
            | Action::Recover
            | Action::Vaccess { .. }
            | Action::SyncRoots { .. }
    )
}
