//! The state in the form of the vectors of v6.1 and v6.12, as canonical JSON: keys sorted, no blanks, ASCII.
//!
//! Runs are folded: neighbouring leaves of neighbouring frames, equal vetoes. The numbers of mapped pages are counted here
//! and not kept, for a leaf that is present is one that the kernel has counted.

use std::fmt::Write as _;

use crate::mmu::pages::page_arena::{PageIdx, Place};
use crate::mmu::pages::walk::{child_of, is_last, is_shadow_present};
use crate::mmu::tdp::root_list::Root;
use crate::mmu::vm::slots::{AddressSpace, SlotBody};
use crate::mmu::vm::state::MmuState;
use crate::mmu::vm::vcpu_mmu::{REQ_MMU_RELOAD, VcpuMmu};
use crate::mmu::watch::snapshot::{dirty_runs, put_list, put_optional};
use crate::mmu::words::level::pages_per;
use crate::mmu::words::spte::layout::PFN_FIELD;
use crate::mmu::words::views::SlotSpec;

/// The request that v6.1 and later make where older kernels ask for a reload.
const REQ_FREE_OBSOLETE_ROOTS: u64 = 1 << 39;

macro_rules! put {
    ($out:expr, $($arg:tt)*) => {
        let _ = write!($out, $($arg)*);
    };
}

impl MmuState {
    /// The dump of the vectors of v6.1 and v6.12.
    pub(in crate::mmu) fn stepped_json(&self) -> String {
        let mut out = String::with_capacity(4096);
        out.push_str(r#"{"active":"#);
        put_list(&mut out, self.active.iter(), |out, page| self.put_stepped_page(out, page));
        out.push_str(r#","as":"#);
        put_list(&mut out, self.spaces.iter(), |out, space| self.put_stepped_space(out, space));
        let invalidation = &self.invalidation;
        put!(
            out,
            r#","indirect":{},"invalidate":[{},{}],"max":{},"nx_list":"#,
            self.nr_indirect,
            invalidation.seq,
            invalidation.in_progress,
            self.max
        );
        put_list(&mut out, self.nx_list.iter(), |out, page| {
            put!(out, "{}", self.arena.key(page).id);
        });
        put!(out, r#","requested":{},"roots":"#, self.requested);
        self.put_roots(&mut out);
        out.push_str(r#","stat":"#);
        self.put_stepped_stat(&mut out);
        self.put_tables(&mut out);
        put!(out, r#","used":{},"valid_gen":{},"vcpus":"#, self.used, self.valid_gen);
        put_list(&mut out, self.vcpus.iter(), |out, vcpu| self.put_stepped_vcpu(out, vcpu));
        let is_bugged = u8::from(self.is_bugged);
        put!(out, r#","vm_bugged":{is_bugged},"zapped_obsolete":{}}}"#, self.zapped_obsolete.iter().count());
        out
    }

    /// The roots of the TDP MMU, newest first.
    pub(in crate::mmu) fn put_roots(&self, out: &mut String) {
        if self.config.tdp_mmu {
            put_list(out, self.tdp.roots.iter(), |out, root| self.put_root(out, root));
        } else {
            out.push_str("null");
        }
    }

    /// The keys `tdp`, the tables below the roots, and `tdp_pages`, how many are no roots.
    pub(in crate::mmu) fn put_tables(&self, out: &mut String) {
        out.push_str(r#","tdp":"#);
        if self.config.tdp_mmu {
            let tables = self.tdp.roots.iter().flat_map(|root| self.tdp_tables(root.page));
            put_list(out, tables, |out, table| self.put_tdp_table(out, table));
        } else {
            out.push_str("null");
        }
        out.push_str(r#","tdp_pages":"#);
        put_optional(out, self.config.tdp_mmu.then_some(self.tdp.nr_tables));
    }

    fn put_root(&self, out: &mut String, root: &Root) {
        let key = self.arena.key(root.page);
        put!(
            out,
            r#"{{"id":{},"invalid":{},"refs":{},"role":"{:#x}","scheduled":{}}}"#,
            key.id,
            u8::from(key.role.invalid()),
            root.refs,
            self.config.kernel.role_layout.pack(key.role),
            u8::from(root.is_scheduled)
        );
    }

    /// A root and all tables below it, parents before children, entries ascending.
    pub(in crate::mmu) fn tdp_tables(&self, root: PageIdx) -> Vec<PageIdx> {
        let mut found = vec![root];
        let level = self.arena.key(root).role.level();
        for (_, spte) in self.arena.table(root).iter() {
            if is_shadow_present(&self.masks, spte) && !is_last(spte, level) {
                found.extend(self.tdp_tables(child_of(spte)));
            }
        }
        found
    }

    fn put_tdp_table(&self, out: &mut String, table: PageIdx) {
        let key = self.arena.key(table);
        let is_marked = self.arena.page(table).nx_huge_page_disallowed;
        put!(
            out,
            r#"{{"gfn":{},"id":{},"level":{},"nx_disallowed":{},"nx_listed":{},"role":"{:#x}","sptes":"#,
            key.gfn.0,
            key.id,
            key.role.level(),
            u8::from(is_marked),
            u8::from(is_marked && self.nx_list.contains(table)),
            self.config.kernel.role_layout.pack(key.role)
        );
        self.put_stepped_sptes(out, table);
        out.push('}');
    }

    fn put_stepped_page(&self, out: &mut String, page: PageIdx) {
        let key = self.arena.key(page);
        let header = self.arena.page(page);
        out.push('{');
        self.put_flood(out, page);
        put!(
            out,
            r#""gfn":{},"id":{},"level":{},"nx_disallowed":{},"nx_listed":{},"parents":"#,
            key.gfn.0,
            key.id,
            key.role.level(),
            u8::from(header.nx_huge_page_disallowed),
            u8::from(header.nx_huge_page_disallowed && self.nx_list.contains(page))
        );
        self.put_places(out, header.parents);
        put!(
            out,
            r#","role":"{:#x}","root_count":{},"sptes":"#,
            self.config.kernel.role_layout.pack(key.role),
            header.root_count
        );
        self.put_stepped_sptes(out, page);
        put!(out, r#","unsync":{},"#, u8::from(header.unsync));
        self.put_unsync_bitmap(out, page);
        put!(out, r#""unsync_children":{},"valid_gen":{}}}"#, header.unsync_children, key.valid_gen);
    }

    fn put_stepped_sptes(&self, out: &mut String, page: PageIdx) {
        let level = self.arena.key(page).role.level();
        let step = pages_per(level) << 12;
        let entries: Vec<(u16, u64)> = self.arena.table(page).iter().collect();
        let is_leaf = |spte: u64| is_shadow_present(&self.masks, spte) && is_last(spte, level);
        let mut at = 0;
        out.push('[');
        while let Some(&(index, spte)) = entries.get(at) {
            if at > 0 {
                out.push(',');
            }
            let mut run = 1;
            if is_leaf(spte) {
                let is_next = |run: usize| {
                    let nth = run as u64;
                    entries.get(at + run).is_some_and(|&(other, word)| {
                        u64::from(other) == u64::from(index) + nth
                            && word & PFN_FIELD == (spte & PFN_FIELD).wrapping_add(step.wrapping_mul(nth)) & PFN_FIELD
                            && word & !PFN_FIELD == spte & !PFN_FIELD
                    })
                };
                while is_next(run) {
                    run += 1;
                }
            }
            if is_shadow_present(&self.masks, spte) && !is_last(spte, level) {
                put!(out, r#"[{index},"{:#x}",{}]"#, spte & !PFN_FIELD, self.arena.key(child_of(spte)).id);
            } else if run > 1 {
                put!(out, r#"[{index},"{spte:#x}",null,{run}]"#);
            } else {
                put!(out, r#"[{index},"{spte:#x}"]"#);
            }
            at += run;
        }
        out.push(']');
    }

    fn put_stepped_space(&self, out: &mut String, space: &AddressSpace) {
        put!(out, r#"{{"gen":"{:#x}","slots":"#, space.slots_gen);
        put_list(out, space.specs().iter().enumerate(), |out, (at, spec)| {
            self.put_stepped_slot(out, spec, space.body(at));
        });
        out.push('}');
    }

    fn put_stepped_slot(&self, out: &mut String, spec: &SlotSpec, body: &SlotBody) {
        put!(out, r#"{{"base":{},"#, spec.base);
        if let Some(words) = &body.dirty {
            out.push_str(r#""dirty":"#);
            put_list(out, dirty_runs(words.spans(), spec.npages).into_iter(), |out, (first, count)| {
                put!(out, "[{first},{count}]");
            });
            out.push(',');
        }
        out.push_str(r#""disallow":"#);
        let vetoes = (2_u8..).zip(&body.disallow).flat_map(|(level, counts)| {
            counts.runs().into_iter().map(move |run| (level, run.first, run.value, run.count))
        });
        put_list(out, vetoes.filter(|&(_, _, count, _)| count != 0), |out, (level, at, count, run)| {
            if run > 1 {
                put!(out, "[{level},{at},{count},{run}]");
            } else {
                put!(out, "[{level},{at},{count}]");
            }
        });
        put!(
            out,
            r#","flags":{},"hva":"{:#x}","id":{},"npages":{},"rmap":"#,
            spec.flags,
            spec.hva,
            spec.id,
            spec.npages
        );
        if self.config.tdp_mmu {
            // Reverse maps are made for the first shadow page.
            out.push_str("null");
        } else {
            self.put_rmap(out, body);
        }
        out.push_str(r#","track":"#);
        if self.config.shadows_guest() {
            put_list(out, body.track.iter(), |out, (at, count)| {
                put!(out, "[{at},{count}]");
            });
            out.push('}');
        } else {
            // Two-dimensional paging has no counters of write tracking.
            out.push_str("null}");
        }
    }

    fn put_stepped_vcpu(&self, out: &mut String, vcpu: &VcpuMmu) {
        let mut requests = vcpu.requests & !REQ_MMU_RELOAD;
        if vcpu.requests & REQ_MMU_RELOAD != 0 {
            requests |= REQ_FREE_OBSOLETE_ROOTS;
        }
        let mmio = &vcpu.mmio;
        put!(
            out,
            r#"{{"cr3":"{:#x}","mmio":["{:#x}",{},{},"{:#x}"],"#,
            vcpu.cr3,
            mmio.gva,
            mmio.gfn.0,
            mmio.access,
            mmio.slots_gen
        );
        self.put_pae_roots(out, vcpu);
        self.put_prev_roots(out, vcpu);
        put!(out, r#","requests":"{requests:#x}""#);
        put!(out, r#","role":"{:#x}","root":"#, self.config.kernel.role_layout.pack(vcpu.role));
        let id =
            if vcpu.has_dummy_root { Some(0) } else { vcpu.root.some().map(|root| u64::from(self.arena.key(root).id)) };
        put_optional(out, id.filter(|_| !(self.config.shadows_guest() && vcpu.has_four_roots)));
        let faults = &vcpu.faults;
        put!(
            out,
            r#","smm":{},"stat":{{"pf_emulate":{},"pf_fast":{},"pf_fixed":{},"pf_mmio_spte_created":{},"pf_spurious":{},"pf_taken":{}}}}}"#,
            u8::from(vcpu.smm),
            faults.emulate,
            faults.fast,
            faults.fixed,
            faults.mmio_spte_created,
            faults.spurious,
            faults.taken
        );
    }

    fn put_stepped_stat(&self, out: &mut String) {
        let mut pages = [0_u64; 3];
        for page in self.arena.indices().filter(|&page| self.arena.page(page).place != Place::Free) {
            let level = self.arena.key(page).role.level();
            let is_leaf = |spte: u64| is_shadow_present(&self.masks, spte) && is_last(spte, level);
            if let Some(count) = pages.get_mut(usize::from(level).wrapping_sub(1)) {
                *count += self.arena.table(page).iter().filter(|&(_, spte)| is_leaf(spte)).count() as u64;
            }
        }
        let stats = &self.stats;
        put!(
            out,
            r#"{{"max_mmu_page_hash_collisions":{},"mmu_cache_miss":{},"mmu_recycled":{},"mmu_shadow_zapped":{},"mmu_unsync":{}"#,
            stats.max_collisions,
            stats.cache_miss,
            stats.recycled,
            // Tables of the TDP MMU are not counted.
            if self.config.tdp_mmu { 0 } else { stats.zapped },
            self.arena.live().filter(|&page| self.arena.page(page).unsync).count()
        );
        put!(
            out,
            r#","nx_lpage_splits":{},"pages_1g":{},"pages_2m":{},"pages_4k":{}"#,
            self.nx_list.len(),
            pages[2],
            pages[1],
            pages[0]
        );
        put!(out, r#","remote_tlb_flush":0,"remote_tlb_flush_requests":{}}}"#, stats.flush);
    }
}
