//! Publishing a memslot array. Which change, in which steps and under which generation is the caller's policy.
//!
//! Models the array swap of v5.0/v5.2 `install_new_memslots`, without its generation arithmetic.

use crate::mmu::vm::events::Event;
use crate::mmu::vm::slots::{MAX_SLOT_PAGES, MEM_LOG_DIRTY_PAGES, SlotBody};
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::addr::Pfn;
use crate::mmu::words::error::{Error, Result};
use crate::mmu::words::views::{SlotChange, SlotSpec};

impl MmuState {
    /// Publishes the change under a generation.
    pub(in crate::mmu) fn install_slot(&mut self, as_id: u8, slots_gen: u64, change: SlotChange) -> Result<()> {
        match change {
            SlotChange::Put(spec) => {
                self.check_spec(as_id, &spec)?;
                let was_logged = |state: &Self| {
                    state
                        .find_slot_id(as_id, spec.id)
                        .is_ok_and(|at| at.is_some_and(|at| state.slot_body(at).dirty.is_some()))
                };
                let is_kept = !self.is_log_initially_set || was_logged(self);
                let is_renewed = self.config.kernel.move_renews_arrays;
                if let Some(old) = self.space_mut(as_id)?.put_anew(spec, is_renewed) {
                    self.free_rmaps(&old);
                }
                if !is_kept && let Some(slot) = self.find_slot_id(as_id, spec.id)? {
                    self.slot_body_mut(slot).fill_dirty(spec.npages);
                }
            }
            SlotChange::Remove(id) => {
                let body = self.space_mut(as_id)?.remove(id).ok_or(Error::NoSlot { as_id, id })?;
                self.free_rmaps(&body);
            }
        }
        self.tell_published(as_id, change);
        self.space_mut(as_id)?.slots_gen = slots_gen;
        self.stats.srcu_sync += 1;
        self.events.push(|| Event::SrcuSync);
        Ok(())
    }

    /// A slot is visible, or not any more: one marked for removal is not.
    fn tell_published(&mut self, as_id: u8, change: SlotChange) {
        let Some(ghost) = &mut self.ghost else { return };
        match change {
            SlotChange::Put(spec) => {
                let at = (spec.base, spec.npages, Pfn::of_hva(spec.hva).0);
                let is_logged = spec.flags & MEM_LOG_DIRTY_PAGES != 0;
                ghost.published(as_id, spec.id, (!spec.is_invalid()).then_some(at), is_logged);
            }
            SlotChange::Remove(id) => ghost.published(as_id, id, None, false),
        }
    }

    fn check_spec(&self, as_id: u8, spec: &SlotSpec) -> Result<()> {
        let refuse = |why| Err(Error::Slot { id: spec.id, why });
        if spec.id >= self.config.max_memslots {
            return refuse("the id is not below the number of memslots of the kernel");
        }
        if spec.npages == 0 || spec.npages > MAX_SLOT_PAGES {
            return refuse("the number of pages is not 1 to 2^31-1");
        }
        if spec.base.checked_add(spec.npages).is_none_or(|end| end > 1 << 52) {
            return refuse("the last page is beyond 2^64");
        }
        if spec.hva.checked_add(spec.npages << 12).is_none_or(|end| end > 1 << 51) {
            return refuse("the host memory is beyond 2^51");
        }
        if let Some(at) = self.space(as_id)?.find_id(spec.id)
            && self.space(as_id)?.specs()[at].npages != spec.npages
        {
            return refuse("the size of a live slot cannot change");
        }
        Ok(())
    }

    /// A slot's arrays go; what still stands in them was left by a removal that did not zap.
    fn free_rmaps(&mut self, body: &SlotBody) {
        for heads in &body.rmap {
            for (_, mut head) in heads.iter() {
                self.pte_lists.clear(&mut head);
            }
        }
    }
}
