//! Reading the whole state: the vectors' dump as canonical JSON, its digest, and copies of single pages and vCPUs.
//!
//! Canonical: keys sorted, no blanks, ASCII, so that the digest is that of the text.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use crate::mmu::pages::indirect_page::Indirect;
use crate::mmu::pages::page_arena::PageIdx;
use crate::mmu::pages::pte_list::PteHead;
use crate::mmu::pages::walk::{child_of, is_last, is_shadow_present};
use crate::mmu::vm::slot_array::Span;
use crate::mmu::vm::slots::{AddressSpace, SlotBody};
use crate::mmu::vm::state::MmuState;
use crate::mmu::vm::vcpu_mmu::VcpuMmu;
use crate::mmu::watch::numbers::{put_fields, put_hex};
use crate::mmu::words::config::Family;
use crate::mmu::words::error::{Error, Result};
use crate::mmu::words::spte::layout::PFN_FIELD;
use crate::mmu::words::views::{MemoryReport, PageView, SlotSpec, VcpuView};

/// Writes into a string; formatting into a `String` cannot fail.
macro_rules! put {
    ($out:expr, $($arg:tt)*) => {
        let _ = write!($out, $($arg)*);
    };
}

pub(in crate::mmu) fn put_list<T>(
    out: &mut String,
    items: impl Iterator<Item = T>,
    mut put_item: impl FnMut(&mut String, T),
) {
    out.push('[');
    for (at, item) in items.enumerate() {
        if at > 0 {
            out.push(',');
        }
        put_item(out, item);
    }
    out.push(']');
}

pub(in crate::mmu) fn put_optional(out: &mut String, value: Option<u64>) {
    match value {
        Some(value) => {
            put!(out, "{value}");
        }
        None => out.push_str("null"),
    }
}

impl MmuState {
    /// The dump of the vectors.
    pub(in crate::mmu) fn state_json(&self) -> String {
        if self.config.is_stepped() {
            return self.stepped_json();
        }
        let mut out = String::with_capacity(4096);
        out.push_str(r#"{"active":"#);
        put_list(&mut out, self.active.iter(), |out, page| self.put_page(out, page));
        out.push_str(r#","as":"#);
        put_list(&mut out, self.spaces.iter(), |out, space| self.put_space(out, space));
        put!(out, r#","indirect":{},"max":{},"mmu_valid_gen":"#, self.nr_indirect, self.max);
        put_optional(&mut out, self.config.kernel.has_valid_gen.then_some(self.valid_gen));
        put!(out, r#","requested":{}"#, self.requested);
        if self.config.tdp_mmu {
            out.push_str(r#","roots":"#);
            self.put_roots(&mut out);
            self.put_tables(&mut out);
        }
        put!(out, r#","used":{},"vcpus":"#, self.used);
        put_list(&mut out, self.vcpus.iter(), |out, vcpu| self.put_vcpu(out, vcpu));
        out.push_str(r#","zapped_obsolete":"#);
        if self.config.kernel.has_zapped_obsolete {
            put_list(&mut out, self.zapped_obsolete.iter(), |out, page| {
                put!(out, "{}", self.arena.key(page).id);
            });
        } else {
            out.push_str("null");
        }
        out.push('}');
        out
    }

    /// First sixteen hex digits of the dump's SHA-256.
    pub(in crate::mmu) fn digest(&self) -> String {
        let hash = Sha256::digest(self.state_json().as_bytes());
        hash.iter().take(8).fold(String::new(), |mut out, byte| {
            put!(out, "{byte:02x}");
            out
        })
    }

    fn put_page(&self, out: &mut String, page: PageIdx) {
        let key = self.arena.key(page);
        let header = self.arena.page(page);
        let role = key.role;
        let fields = [
            (r#"{"access":"#, role.access().into()),
            (r#","ad_disabled":"#, role.ad_disabled().into()),
            (r#","direct":"#, role.direct().into()),
        ];
        put_fields(out, &fields, ",");
        self.put_flood(out, page);
        let fields = [
            (r#""gfn":"#, key.gfn.0),
            (r#","id":"#, key.id.into()),
            (r#","invalid":"#, role.invalid().into()),
            (r#","level":"#, role.level().into()),
        ];
        put_fields(out, &fields, r#","mmio_cached":"#);
        let is_mmio_cached = u64::from(self.active.is_mmio_cached(page));
        put_optional(out, self.config.kernel.has_mmio_cached.then_some(is_mmio_cached));
        out.push_str(r#","parents":"#);
        self.put_places(out, header.parents);
        out.push_str(r#","role":""#);
        put_hex(out, self.config.kernel.role_layout.pack(role).into());
        let fields = [(r#"","root_count":"#, header.root_count.into()), (r#","smm":"#, role.smm().into())];
        put_fields(out, &fields, r#","sptes":"#);
        put_list(out, self.arena.table(page).iter(), |out, (index, spte)| {
            let link = self.is_link(spte, role.level());
            put_fields(out, &[("[", index.into())], ",\"");
            put_hex(out, if link { spte & !PFN_FIELD } else { spte });
            if link {
                put_fields(out, &[("\",", self.arena.key(child_of(spte)).id.into())], "]");
            } else {
                out.push_str("\"]");
            }
        });
        put_fields(out, &[(r#","unsync":"#, header.unsync.into())], ",");
        self.put_unsync_bitmap(out, page);
        put_fields(out, &[(r#""unsync_children":"#, header.unsync_children.into())], r#","valid_gen":"#);
        put_optional(out, self.config.kernel.has_valid_gen.then_some(key.valid_gen));
        out.push('}');
    }

    /// The key `flood`, where the guest's tables are shadowed.
    pub(in crate::mmu) fn put_flood(&self, out: &mut String, page: PageIdx) {
        if self.config.shadows_guest() {
            put!(out, r#""flood":{},"#, self.arena.indirect(page).map_or(0, |indirect| indirect.flood));
        }
    }

    /// The key `unsync_bitmap`, where the guest's tables are shadowed.
    pub(in crate::mmu) fn put_unsync_bitmap(&self, out: &mut String, page: PageIdx) {
        if self.config.shadows_guest() {
            out.push_str(r#""unsync_bitmap":"#);
            let marked = self.arena.indirect(page).into_iter().flat_map(Indirect::unsync_children);
            put_list(out, marked, |out, index| {
                put!(out, "{index}");
            });
            out.push(',');
        }
    }

    /// The key `prev_roots`.
    pub(in crate::mmu) fn put_prev_roots(&self, out: &mut String, vcpu: &VcpuMmu) {
        out.push_str(r#""prev_roots":"#);
        put_list(out, vcpu.prev_roots.iter(), |out, prev| {
            if prev.root == PageIdx::NONE {
                out.push_str("null");
            } else {
                put!(out, r#"["{:#x}",{}]"#, prev.cr3, self.arena.key(prev.root).id);
            }
        });
    }

    /// The key `pae_roots`, where four roots are loaded that are told apart.
    pub(in crate::mmu) fn put_pae_roots(&self, out: &mut String, vcpu: &VcpuMmu) {
        if self.config.shadows_guest() && vcpu.has_four_roots {
            out.push_str(r#""pae_roots":"#);
            put_list(out, std::iter::once(vcpu.root).chain(vcpu.pae_roots), |out, root| {
                put_optional(out, root.some().map(|root| u64::from(self.arena.key(root).id)));
            });
            out.push(',');
        }
    }

    fn put_space(&self, out: &mut String, space: &AddressSpace) {
        put!(out, r#"{{"gen":"{:#x}","slots":"#, space.slots_gen);
        put_list(out, space.specs().iter().enumerate(), |out, (at, spec)| {
            self.put_slot(out, spec, space.body(at));
        });
        out.push('}');
    }

    fn put_slot(&self, out: &mut String, spec: &SlotSpec, body: &SlotBody) {
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
            let vetoed = counts.spans().filter(|span| span.value != 0);
            vetoed.flat_map(move |span| (0..span.count).map(move |at| (level, span.first + at, span.value)))
        });
        put_list(out, vetoes, |out, (level, at, count)| {
            put!(out, "[{level},{at},{count}]");
        });
        put!(
            out,
            r#","flags":{},"hva":"{:#x}","id":{},"npages":{},"rmap":"#,
            spec.flags,
            spec.hva,
            spec.id,
            spec.npages
        );
        self.put_rmap(out, body);
        out.push_str(r#","track":"#);
        put_list(out, body.track.iter(), |out, (at, count)| {
            put!(out, "[{at},{count}]");
        });
        out.push('}');
    }

    /// The reverse maps of a slot that are not empty.
    pub(in crate::mmu) fn put_rmap(&self, out: &mut String, body: &SlotBody) {
        let heads =
            (1_u8..).zip(&body.rmap).flat_map(|(level, heads)| heads.iter().map(move |(at, head)| (level, at, head)));
        put_list(out, heads, |out, (level, at, head)| {
            put_fields(out, &[("[", level.into()), (",", at)], ",");
            self.put_places(out, head);
            out.push(']');
        });
    }

    /// The places that a list names: id of the page, index.
    pub(in crate::mmu) fn put_places(&self, out: &mut String, head: PteHead) {
        put_list(out, self.pte_lists.iter(head), |out, sptep| {
            let id = self.arena.key(sptep.page()).id;
            put_fields(out, &[("[", id.into()), (",", sptep.index().into())], "]");
        });
    }

    pub(in crate::mmu) fn put_vcpu(&self, out: &mut String, vcpu: &VcpuMmu) {
        put!(
            out,
            r#"{{"cr3":"{:#x}","mmio":["{:#x}",{},{},"{:#x}"],"#,
            vcpu.cr3,
            vcpu.mmio.gva,
            vcpu.mmio.gfn.0,
            vcpu.mmio.access,
            vcpu.mmio.slots_gen
        );
        self.put_pae_roots(out, vcpu);
        self.put_prev_roots(out, vcpu);
        put!(out, r#","requests":"{:#x}","root":"#, vcpu.requests);
        if self.config.shadows_guest() && vcpu.has_four_roots {
            out.push_str("null");
        } else if self.config.family == Family::Shadow && !self.config.guest_paging && vcpu.root != PageIdx::NONE {
            put_list(out, vcpu.roots(), |out, root| {
                put!(out, "{}", self.arena.key(root).id);
            });
        } else {
            put_optional(out, vcpu.root.some().map(|root| u64::from(self.arena.key(root).id)));
        }
        put!(out, r#","smm":{}}}"#, u8::from(vcpu.smm));
    }

    fn is_link(&self, spte: u64, level: u8) -> bool {
        is_shadow_present(&self.masks, spte) && !is_last(spte, level)
    }

    /// A copy of a page, while it lives.
    pub(in crate::mmu) fn page_view(&self, id: u32) -> Option<PageView> {
        let page = self.arena.find_id(id)?;
        let key = self.arena.key(page);
        let header = self.arena.page(page);
        let level = key.role.level();
        Some(PageView {
            id,
            gfn: key.gfn.0,
            role: self.config.kernel.role_layout.pack(key.role),
            level,
            root_count: header.root_count,
            unsync: header.unsync,
            unsync_children: header.unsync_children,
            valid_gen: key.valid_gen,
            mmio_cached: self.active.is_mmio_cached(page),
            invalid: key.role.invalid(),
            parents: self
                .pte_lists
                .iter(header.parents)
                .map(|sptep| (self.arena.key(sptep.page()).id, sptep.index()))
                .collect(),
            sptes: self
                .arena
                .table(page)
                .iter()
                .map(|(index, spte)| {
                    if self.is_link(spte, level) {
                        (index, spte & !PFN_FIELD, Some(self.arena.key(child_of(spte)).id))
                    } else {
                        (index, spte, None)
                    }
                })
                .collect(),
        })
    }

    /// A copy of a vCPU.
    pub(in crate::mmu) fn vcpu_view(&self, vcpu: u16) -> Result<VcpuView> {
        let Some(vcpu) = self.vcpus.get(usize::from(vcpu)) else {
            return Err(Error::Vcpu { vcpu, vcpus: self.config.vcpus });
        };
        Ok(VcpuView {
            root: vcpu.root.some().map(|root| self.arena.key(root).id),
            requests: vcpu.requests,
            smm: vcpu.smm,
            cr0: vcpu.cr0,
            cr3: vcpu.cr3,
            cr4: vcpu.cr4,
            efer: vcpu.efer,
            role: self.config.kernel.role_layout.pack(vcpu.role),
            mmio_gva: vcpu.mmio.gva,
            mmio_gfn: vcpu.mmio.gfn.0,
            mmio_access: vcpu.mmio.access,
            mmio_gen: vcpu.mmio.slots_gen,
            tlb: vcpu.tlb.iter().map(|line| (line.gfn.0, line.leaf)).collect(),
        })
    }

    /// Bytes held, by kind.
    pub(in crate::mmu) fn memory(&self) -> MemoryReport {
        let bytes = |size: usize| size as u64;
        let (headers, tables) = self.arena.size_bytes();
        let (slots, rmap) =
            self.spaces.iter().map(AddressSpace::size_bytes).fold((0, 0), |sum, size| (sum.0 + size.0, sum.1 + size.1));
        MemoryReport {
            shadow_pages: self.hash.len() as u64,
            tdp_tables: self.tdp.nr_tables + self.tdp.roots.len() as u64,
            headers: bytes(headers + self.active.size_bytes()),
            tables: bytes(tables),
            hash: bytes(self.hash.size_bytes()),
            pte_list_descs: bytes(self.pte_lists.size_bytes()),
            rmap: bytes(rmap),
            slots: bytes(slots),
            events: bytes(self.events.size_bytes()),
            other: bytes(self.vcpus.capacity() * size_of::<VcpuMmu>() + self.guest_memory.size_bytes()),
        }
    }
}

/// Runs of set bits: first and count.
pub(in crate::mmu) fn dirty_runs(words: impl Iterator<Item = Span<u64>>, npages: u64) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let mut put = |first: u64, count: u64| match runs.last_mut() {
        Some((start, before)) if *start + *before == first => *before += count,
        _ => runs.push((first, count)),
    };
    for Span { first, count, value } in words {
        if value == u64::MAX {
            put(first * 64, (count * 64).min(npages - first * 64));
            continue;
        }
        for word in first..if value == 0 { first } else { first + count } {
            let mut left = value;
            while left != 0 {
                let page = word * 64 + u64::from(left.trailing_zeros());
                left &= left - 1;
                if page < npages {
                    put(page, 1);
                }
            }
        }
    }
    runs
}
