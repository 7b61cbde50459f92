//! What the processor does: the walk of the nested page tables, their accessed and dirty bits, the page-modification log,
//! and the loop of a guest access that faults until it hits.
//!
//! Models no kernel function: this is the environment of the vectors. The TLB is filled but never asked.

use crate::mmu::pages::last_path::LastHardware;
use crate::mmu::pages::page_arena::{PageIdx, Sptep};
use crate::mmu::pages::walk::{child_of, is_last};
use crate::mmu::vm::events::Event;
use crate::mmu::vm::slots::{AddressSpace, MEM_LOG_DIRTY_PAGES};
use crate::mmu::vm::state::MmuState;
use crate::mmu::vm::tlb::Translation;
use crate::mmu::words::access::{PFERR_FETCH, PFERR_GUEST_FINAL, PFERR_PRESENT, PFERR_RSVD, PFERR_USER, PFERR_WRITE};
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::config::Family;
use crate::mmu::words::error::Result;
use crate::mmu::words::level::table_index;
use crate::mmu::words::mutants::{Mutant, is_chosen};
use crate::mmu::words::spte::layout::WRITABLE;
use crate::mmu::words::views::{AccessKind, AccessResult, Outcome};

const MAX_FAULTS: u8 = 8;
const READABLE: u64 = 1;
const EXECUTABLE: u64 = 1 << 2;
const EPT_PERMISSIONS: u64 = READABLE | WRITABLE | EXECUTABLE;

/// Where each level of a successful walk went.
struct HardwarePath {
    places: [Sptep; 5],
    len: usize,
    leaf: u64,
    level: u8,
}

impl MmuState {
    /// A guest access by physical address: entry, walk, fault, again, until it hits or ends.
    pub(in crate::mmu) fn access(&mut self, vcpu: usize, gpa: u64, kind: AccessKind) -> Result<AccessResult> {
        let mut faults = 0;
        let mut ret = 0;
        let outcome = loop {
            if faults == MAX_FAULTS {
                break Outcome::Stuck;
            }
            if self.vcpus[vcpu].requests != 0 || self.vcpus[vcpu].root == PageIdx::NONE {
                let entered = self.enter(vcpu)?;
                if entered < 0 {
                    ret = entered;
                    break Outcome::Error;
                }
            }
            let Err(error_code) = self.walk_nearby(vcpu, gpa, kind) else { break Outcome::Hit };
            faults += 1;
            let number = u16::try_from(vcpu).unwrap_or(u16::MAX);
            self.events.push(|| Event::Fault { vcpu: number, addr: gpa, error_code });
            let answer = self.page_fault(vcpu, gpa, error_code)?;
            ret = answer.ret;
            self.events.push(|| Event::Ret { ret });
            if ret < 0 {
                break Outcome::Error;
            }
            if answer.is_emulated {
                break Outcome::Emulate;
            }
        };
        Ok(AccessResult { outcome, faults, ret })
    }

    /// Walks as the processor does. Within the 2 MiB where it came last, only the leaf is looked at.
    #[inline]
    fn walk_nearby(&mut self, vcpu: usize, gpa: u64, kind: AccessKind) -> std::result::Result<(), u64> {
        let table = self.last_hardware.get().table(self.vcpus[vcpu].root, gpa);
        let Some(table) = table.filter(|_| self.ghost.is_none()) else {
            return self.hardware_walk(vcpu, gpa, kind);
        };
        let sptep = table.sptep(table_index(gpa, 1));
        let leaf = self.arena.spte(sptep);
        self.allows_through(kind, leaf)?;
        self.set_accessed_dirty(vcpu, gpa, kind, &[sptep], leaf);
        self.vcpus[vcpu].tlb.fill(Translation { gfn: Gfn::of_gpa(gpa), leaf, level: 1 });
        Ok(())
    }

    /// Whether the processor lets an access through a leaf of level 1; the error code if not.
    #[inline]
    pub(super) fn allows_through(&self, kind: AccessKind, spte: u64) -> std::result::Result<(), u64> {
        let reserved = self.masks.reserved_address;
        match self.config.family {
            Family::Npt | Family::Shadow => self.allows_npt(kind, reserved, spte),
            Family::EptAd | Family::EptNoad => self.allows_ept(kind, reserved, spte),
        }
    }

    /// Walks from the root as the processor does; the error code of the fault if it fails.
    #[inline(never)]
    fn hardware_walk(&mut self, vcpu: usize, gpa: u64, kind: AccessKind) -> std::result::Result<(), u64> {
        let root = self.root_for(vcpu, gpa);
        let path = match self.config.family {
            Family::Npt | Family::Shadow => self.walk_npt(root, gpa, kind),
            Family::EptAd | Family::EptNoad => self.walk_ept(root, gpa, kind),
        }?;
        self.set_accessed_dirty(vcpu, gpa, kind, &path.places[..path.len], path.leaf);
        // Links of shadow paging do not allow all access.
        if path.level == 1 && self.config.family != Family::Shadow {
            self.last_hardware.set(LastHardware::new(root, gpa, path.places[path.len.wrapping_sub(1) % 5].page()));
        }
        let (leaf, level) = (path.leaf, path.level);
        self.vcpus[vcpu].tlb.fill(Translation { gfn: Gfn::of_gpa(gpa), leaf, level });
        if kind == AccessKind::Write {
            self.tell_guest_write(vcpu, Gfn::of_gpa(gpa), &path);
        }
        Ok(())
    }

    /// The guest wrote through a leaf.
    fn tell_guest_write(&mut self, vcpu: usize, gfn: Gfn, path: &HardwarePath) {
        let leaf = path.places[..path.len].last().copied().unwrap_or(Sptep(0));
        self.tell_written(vcpu, gfn, leaf);
    }

    /// The guest wrote a gfn through the leaf at a place.
    pub(super) fn tell_written(&mut self, vcpu: usize, gfn: Gfn, leaf: Sptep) {
        if self.ghost.is_none() {
            return;
        }
        let slot = self.find_slot(self.vcpus[vcpu].as_id(), gfn).map(|at| {
            let (spec, body) = (self.slot_spec(at), self.slot_body(at));
            (at.as_id, spec.id, gfn.0 - spec.base, body.dirty.is_some())
        });
        if let Some(ghost) = &mut self.ghost {
            ghost.guest_wrote(gfn.0, leaf.0, slot);
        }
    }

    fn walk_ept(&self, root: PageIdx, gpa: u64, kind: AccessKind) -> std::result::Result<HardwarePath, u64> {
        self.walk_hardware(root, gpa, |reserved, spte| self.allows_ept(kind, reserved, spte))
    }

    fn walk_npt(&self, root: PageIdx, gpa: u64, kind: AccessKind) -> std::result::Result<HardwarePath, u64> {
        self.walk_hardware(root, gpa, |reserved, spte| self.allows_npt(kind, reserved, spte))
    }

    /// Whether an entry with EPT masks lets an access through; the error code if not.
    #[inline]
    fn allows_ept(&self, kind: AccessKind, reserved: u64, spte: u64) -> std::result::Result<(), u64> {
        let (needed, code) = match kind {
            AccessKind::Read => (READABLE, PFERR_USER),
            AccessKind::Write => (WRITABLE, PFERR_WRITE),
            AccessKind::Exec => (EXECUTABLE, PFERR_FETCH),
        };
        let code = code | PFERR_GUEST_FINAL;
        let permissions = spte & EPT_PERMISSIONS;
        if permissions == 0 {
            return Err(code);
        }
        let is_misconfigured = permissions & (READABLE | WRITABLE) == WRITABLE
            || permissions == EXECUTABLE && !self.config.execonly
            || spte & reserved != 0;
        if is_misconfigured {
            return Err(PFERR_RSVD);
        }
        if spte & needed == 0 { Err(code | PFERR_PRESENT) } else { Ok(()) }
    }

    /// The same with the masks of ordinary page tables.
    #[inline]
    fn allows_npt(&self, kind: AccessKind, reserved: u64, spte: u64) -> std::result::Result<(), u64> {
        // A guest without paging on shadow tables runs as supervisor, and there is only one translation.
        let is_shadow = self.config.family == Family::Shadow;
        let code = if is_shadow { 0 } else { PFERR_USER | PFERR_GUEST_FINAL }
            | match kind {
                AccessKind::Read => 0,
                AccessKind::Write => PFERR_WRITE,
                AccessKind::Exec => PFERR_FETCH,
            };
        if spte & READABLE == 0 {
            return Err(code);
        }
        if spte & reserved != 0 {
            return Err(code | PFERR_PRESENT | PFERR_RSVD);
        }
        let is_refused = kind == AccessKind::Write && spte & WRITABLE == 0
            || kind == AccessKind::Exec && spte & self.masks.nx != 0
            || spte & self.masks.user == 0;
        if is_refused { Err(code | PFERR_PRESENT) } else { Ok(()) }
    }

    /// Down from the root; `check` judges every entry.
    #[inline]
    fn walk_hardware(
        &self,
        root: PageIdx,
        gpa: u64,
        check: impl Fn(u64, u64) -> std::result::Result<(), u64>,
    ) -> std::result::Result<HardwarePath, u64> {
        let mut page = root;
        let mut level = self.arena.key(root).role.level();
        let mut path = HardwarePath { places: [Sptep(0); 5], len: 0, leaf: 0, level };
        loop {
            let sptep = page.sptep(table_index(gpa, level));
            let spte = self.arena.spte(sptep);
            // A link holds an arena index where the host would have an address of its own; only leaves are judged by it.
            let reserved = if level == 1 || is_last(spte, level) { self.masks.reserved_address } else { 0 };
            check(reserved, spte)?;
            if let Some(place) = path.places.get_mut(path.len) {
                *place = sptep;
                path.len += 1;
            }
            if is_last(spte, level) {
                path.leaf = spte;
                path.level = level;
                return Ok(path);
            }
            page = child_of(spte);
            level -= 1;
        }
    }

    /// Whether the processor logs dirty pages now.
    fn is_page_logged_by_cpu(&self) -> bool {
        !self.config.kernel.pml_while_logging
            || self.spaces.iter().flat_map(AddressSpace::specs).any(|spec| spec.flags & MEM_LOG_DIRTY_PAGES != 0)
    }

    #[inline]
    pub(super) fn set_accessed_dirty(&mut self, vcpu: usize, gpa: u64, kind: AccessKind, places: &[Sptep], leaf: u64) {
        if self.masks.accessed == 0 {
            return;
        }
        let accessed = self.masks.accessed;
        for &sptep in places {
            self.spte_set_by_hardware(sptep, accessed);
        }
        if kind == AccessKind::Write
            && leaf & self.masks.dirty == 0
            && let Some(&sptep) = places.last()
        {
            let dirty = self.masks.dirty;
            self.spte_set_by_hardware(sptep, dirty);
            if self.config.pml && self.is_page_logged_by_cpu() {
                let gfn = Gfn::of_gpa(gpa);
                self.events.push(|| Event::Pml { gfn: gfn.0 });
                let slot = self.find_slot(self.vcpus[vcpu].as_id(), gfn);
                if !is_chosen(Mutant::PmlNotLogged) {
                    self.mark_page_dirty(slot, gfn);
                }
            }
        }
    }
}
