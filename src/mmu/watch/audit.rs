//! `audit`: recomputes from scratch what the structures claim, and names every broken invariant. Changes nothing and is
//! never part of an operation.

use std::collections::{BTreeMap, BTreeSet};

use crate::kernels::StaleTest;
use crate::mmu::ghost::memory::Ghost;
use crate::mmu::pages::indirect_page::Indirect;
use crate::mmu::pages::page_arena::{PageIdx, Place, Sptep};
use crate::mmu::pages::walk::{child_of, is_last, is_shadow_present, pfn_of};
use crate::mmu::vm::state::MmuState;
use crate::mmu::vm::tlb::Translation;
use crate::mmu::vm::vcpu_mmu::{REQ_MMU_RELOAD, REQ_TLB_FLUSH, VcpuMmu};
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::level::{PAGE_TABLE, pages_per};
use crate::mmu::words::spte::layout::WRITABLE;
use crate::mmu::words::spte::mmio::is_mmio;
use crate::mmu::words::views::Finding;

/// Every invariant the audit knows, with its sentence.
pub const INVARIANTS: [(&str, &str); 28] = [
    ("active_links", "the active list reads the same from both ends and has the length it says"),
    ("active_place", "exactly the pages on the active list are marked as on it"),
    ("used_pages", "used_mmu_pages is the number of pages on the active list, and of zapped roots that left it (v6.1)"),
    (
        "invalid_lists",
        "every page off the active list waits on exactly one invalid list, or is a zapped root in use (v6.1)",
    ),
    ("invalid_empty", "a page that waits for its flush has no entries and no parents"),
    ("page_id", "ids are unique and lead to their page"),
    ("page_balance", "pages made less pages freed are the pages there are"),
    ("hash_bucket", "every live page stands once in the bucket of its gfn, and nothing else does"),
    ("valid_gen", "no page is of a later generation than the VM"),
    ("link_level", "a link leads to a live table one level below"),
    ("link_parent", "every link stands once among its child's parents"),
    ("parent_link", "every parent entry is a link to the page"),
    ("leaf_rmap", "every present leaf stands once in the reverse map of its gfn"),
    ("rmap_leaf", "every reverse-map entry is a present leaf of that gfn and level"),
    ("leaf_gfn", "a leaf of a direct page maps the gfn that its place says"),
    ("pte_list_descs", "every descriptor in use belongs to a list"),
    (
        "unsync_marks",
        "a page out of sync, or with one below it, is marked in each of its parents, and a page counts its marks",
    ),
    ("indirect_pages", "indirect shadow pages are counted until they are zapped the first time"),
    ("root_alive", "a vCPU's root is on the active list, or zapped in use (v6.1), and is of the vCPU's role"),
    ("root_count", "a root's count is the number of vCPUs that hold it"),
    ("mmio_flag", "a page that holds an MMIO SPTE is flagged mmio_cached and of level 1"),
    ("mmio_index", "the MMIO list holds exactly the flagged pages that were not zapped"),
    ("spte_writable", "a writable leaf is host-writable, MMU-writable and not write-tracked"),
    ("slot_order", "slots are sorted by descending base, do not overlap and have one id each"),
    ("tdp_refs", "a root of the TDP MMU is held by its vCPUs, by walks, and by the MMU until it is invalid and zapped"),
    (
        "tdp_tree",
        "the tables of the TDP MMU are those reachable from its roots, each linked once, at its gfn and level",
    ),
    ("tdp_nx_list", "the tables that NX recovery would zap are live tables with the mark"),
    ("tlb_stale", "what a TLB holds without a flush pending is what the tables say"),
];

/// Collects findings.
struct Report(Vec<Finding>);

impl Report {
    fn check(&mut self, holds: bool, invariant: &'static str, detail: impl FnOnce() -> String) {
        if !holds {
            self.0.push(Finding { invariant, detail: detail() });
        }
    }
}

impl MmuState {
    /// Every broken invariant.
    pub(in crate::mmu) fn audit(&self) -> Vec<Finding> {
        let mut report = Report(Vec::new());
        let active = self.audit_active(&mut report);
        self.audit_places(&mut report, &active);
        self.audit_hash(&mut report);
        let mut descs = 0;
        self.audit_links(&mut report, &mut descs);
        self.audit_rmaps(&mut report, &mut descs);
        let used = self.pte_lists.used_descs();
        report.check(descs == used, "pte_list_descs", || format!("{used} descriptors in use, {descs} reachable"));
        self.audit_shadowing(&mut report);
        self.audit_roots(&mut report);
        self.audit_mmio(&mut report);
        self.audit_slots(&mut report);
        self.audit_tdp(&mut report);
        self.audit_tlbs(&mut report);
        report.0
    }

    fn live_pages(&self) -> impl Iterator<Item = PageIdx> + '_ {
        self.arena.indices().filter(|&page| self.arena.page(page).place != Place::Free)
    }

    fn id(&self, page: PageIdx) -> u32 {
        self.arena.key(page).id
    }

    fn audit_active(&self, report: &mut Report) -> BTreeSet<PageIdx> {
        let most = self.active.len() + 1;
        let forward: Vec<PageIdx> = self.active.iter().take(most).collect();
        let mut backward: Vec<PageIdx> =
            std::iter::successors(self.active.tail().some(), |&page| self.active.prev(page).some())
                .take(most)
                .collect();
        backward.reverse();
        report.check(forward == backward, "active_links", || {
            format!("{} pages from the head, {} from the tail, or another order", forward.len(), backward.len())
        });
        let len = self.active.len();
        report.check(forward.len() == len, "active_links", || format!("length {len}, {} pages", forward.len()));
        let used = self.used;
        let zapped_roots = self.live_pages().filter(|&page| self.arena.page(page).place == Place::Root).count();
        report.check(used == (forward.len() + zapped_roots) as u64, "used_pages", || {
            format!("used {used}, {} on the list", forward.len())
        });
        forward.into_iter().collect()
    }

    fn audit_places(&self, report: &mut Report, active: &BTreeSet<PageIdx>) {
        let mut waiting: BTreeMap<PageIdx, u32> = BTreeMap::new();
        for page in self.zapped_obsolete.iter().chain(self.prepared_elsewhere()) {
            *waiting.entry(page).or_default() += 1;
        }
        for page in self.arena.indices() {
            let header = self.arena.page(page);
            let id = self.id(page);
            let is_active = header.place == Place::Active;
            report.check(is_active == active.contains(&page), "active_place", || {
                format!("page {id} is marked {:?}", header.place)
            });
            let lists = waiting.get(&page).copied().unwrap_or(0);
            let expected = u32::from(header.place == Place::Invalid);
            report.check(lists == expected, "invalid_lists", || {
                format!("page {id}, marked {:?}, is on {lists} invalid lists", header.place)
            });
            // Without a test for its root, a fault still maps below one that was zapped in use (v5.10).
            let is_mapped_into = header.place == Place::Root && self.config.kernel.stale_test == StaleTest::None;
            if matches!(header.place, Place::Invalid | Place::Root) && !is_mapped_into {
                let is_empty = self.arena.table(page).is_empty() && header.parents.is_empty();
                report.check(is_empty, "invalid_empty", || format!("page {id} still has entries or parents"));
            }
            if header.place != Place::Free {
                report.check(self.arena.find_id(id) == Some(page), "page_id", || format!("id {id} leads elsewhere"));
                let valid_gen = self.arena.key(page).valid_gen;
                let most = if self.config.kernel.valid_gen_toggles { 1 } else { self.valid_gen };
                report.check(valid_gen <= most, "valid_gen", || {
                    format!("page {id} has {valid_gen}, the VM {}", self.valid_gen)
                });
            }
        }
        let live = self.live_pages().count() as u64;
        let balance = self.work.get_page_created.wrapping_sub(self.work.pages_freed);
        report.check(balance == live, "page_balance", || {
            format!("{} made, {} freed, {live} live", self.work.get_page_created, self.work.pages_freed)
        });
    }

    fn audit_hash(&self, report: &mut Report) {
        let mut seen: BTreeMap<PageIdx, u32> = BTreeMap::new();
        let most = self.hash.len() + 1;
        for (bucket, head) in self.hash.heads().enumerate() {
            let mut previous = PageIdx::NONE;
            let mut page = head;
            let mut steps = 0;
            while page != PageIdx::NONE && steps <= most {
                let key = self.arena.key(page);
                *seen.entry(page).or_default() += 1;
                let is_right = self.hash.bucket_of(key.gfn) == bucket && key.hash_prev == previous;
                report.check(is_right, "hash_bucket", || format!("page {} in bucket {bucket}", key.id));
                previous = page;
                page = key.hash_next;
                steps += 1;
            }
        }
        for page in self.arena.indices() {
            let expected = u32::from(!matches!(self.arena.page(page).place, Place::Free | Place::Tdp));
            let found = seen.get(&page).copied().unwrap_or(0);
            report.check(found == expected, "hash_bucket", || {
                format!("page {} is hashed {found} times, not {expected}", self.id(page))
            });
        }
    }

    /// Of pages that shadow a guest's tables: their number, and the marks that lead to those out of sync.
    fn audit_shadowing(&self, report: &mut Report) {
        let mut nr_indirect = 0;
        for page in self.live_pages() {
            let (key, header) = (self.arena.key(page), self.arena.page(page));
            let marked: Vec<u16> = self.arena.indirect(page).into_iter().flat_map(Indirect::unsync_children).collect();
            nr_indirect += u64::from(!key.role.direct() && !key.role.invalid());
            report.check(marked.len() == header.unsync_children as usize, "unsync_marks", || {
                format!("page {} counts {} children, {} are marked", key.id, header.unsync_children, marked.len())
            });
            if header.unsync || header.unsync_children != 0 {
                for sptep in self.pte_lists.iter(header.parents) {
                    let above = self.arena.indirect(sptep.page());
                    report.check(
                        above.is_some_and(|above| above.is_unsync_child(sptep.index())),
                        "unsync_marks",
                        || format!("page {} is not marked in page {}", key.id, self.id(sptep.page())),
                    );
                }
            }
        }
        report.check(nr_indirect == self.nr_indirect, "indirect_pages", || {
            format!("{} counted, {nr_indirect} are there", self.nr_indirect)
        });
    }

    fn audit_links(&self, report: &mut Report, descs: &mut usize) {
        for page in self.live_pages() {
            let level = self.arena.key(page).role.level();
            for (index, spte) in self.arena.table(page).iter() {
                if !is_shadow_present(&self.masks, spte) || is_last(spte, level) {
                    continue;
                }
                let child = child_of(spte);
                let at = || format!("page {} entry {index}", self.id(page));
                let is_table = child != PageIdx::NONE
                    && self.arena.has(child)
                    && matches!(self.arena.page(child).place, Place::Active | Place::Tdp)
                    && self.arena.key(child).role.level() + 1 == level;
                report.check(is_table, "link_level", at);
                if is_table {
                    let sptep = page.sptep(index);
                    let times = self.pte_lists.iter(self.arena.page(child).parents).filter(|&p| p == sptep).count();
                    report.check(times == 1, "link_parent", at);
                }
            }
            let parents = self.arena.page(page).parents;
            *descs += self.pte_lists.descs_of(parents);
            for sptep in self.pte_lists.iter(parents) {
                let spte = self.arena.spte(sptep);
                let above = self.arena.key(sptep.page()).role.level();
                let is_link = is_shadow_present(&self.masks, spte) && !is_last(spte, above) && child_of(spte) == page;
                report.check(is_link, "parent_link", || {
                    format!("page {}: parent page {} entry {}", self.id(page), self.id(sptep.page()), sptep.index())
                });
            }
        }
    }

    fn audit_rmaps(&self, report: &mut Report, descs: &mut usize) {
        let mut listed: BTreeMap<Sptep, u32> = BTreeMap::new();
        for (as_id, space) in (0_u8..).zip(&self.spaces) {
            for (at, spec) in space.specs().iter().enumerate() {
                for (level, heads) in (PAGE_TABLE..).zip(&space.body(at).rmap) {
                    for (index, head) in heads.iter() {
                        *descs += self.pte_lists.descs_of(head);
                        for sptep in self.pte_lists.iter(head) {
                            *listed.entry(sptep).or_default() += 1;
                            let role = self.arena.key(sptep.page()).role;
                            let spte = self.arena.spte(sptep);
                            let is_leaf = self.arena.page(sptep.page()).place != Place::Free
                                && is_shadow_present(&self.masks, spte)
                                && is_last(spte, role.level())
                                && role.level() == level
                                && role.as_id() == as_id
                                && spec.index(self.gfn_of(sptep), level) == index;
                            report.check(is_leaf, "rmap_leaf", || {
                                format!(
                                    "slot {} of space {as_id}, level {level}, index {index}: page {} entry {}",
                                    spec.id,
                                    self.id(sptep.page()),
                                    sptep.index()
                                )
                            });
                        }
                    }
                }
            }
        }
        for page in self.live_pages() {
            let role = self.arena.key(page).role;
            for (index, spte) in self.arena.table(page).iter() {
                if is_shadow_present(&self.masks, spte) && is_last(spte, role.level()) {
                    let sptep = page.sptep(index);
                    let times = listed.get(&sptep).copied().unwrap_or(0);
                    let expected = u32::from(self.arena.page(page).place != Place::Tdp);
                    report.check(times == expected, "leaf_rmap", || {
                        format!("page {} entry {index} is listed {times} times", self.id(page))
                    });
                    report.check(!self.is_misplaced(sptep), "leaf_gfn", || {
                        format!("page {} entry {index} maps gfn {:#x}", self.id(page), self.gfn_of(sptep).0)
                    });
                    self.audit_writable(report, sptep, spte);
                }
            }
        }
    }

    /// Whether a leaf maps another gfn than its direct page has there, where both are in reach of the roots.
    pub(in crate::mmu) fn is_misplaced(&self, sptep: Sptep) -> bool {
        let is_near = |gfn: Gfn| gfn.0 >> self.root_gfn_bits == 0;
        self.aliased.get(&sptep).is_some_and(|&gfn| is_near(gfn) && is_near(self.arena.key(sptep.page()).gfn))
    }

    fn audit_writable(&self, report: &mut Report, sptep: Sptep, spte: u64) {
        if spte & WRITABLE == 0 {
            return;
        }
        let both = self.masks.host_writeable | self.masks.mmu_writeable;
        let role = self.arena.key(sptep.page()).role;
        let slot = self.find_slot(role.as_id(), self.gfn_of(sptep));
        // What the other address space tracks keeps new leaves read-only, and leaves those that are there alone.
        let is_tracked = role.level() == PAGE_TABLE
            && slot.is_some_and(|slot| {
                let index = self.slot_spec(slot).index(self.gfn_of(sptep), PAGE_TABLE);
                self.slot_body(slot).track.contains_key(&index)
            });
        let is_exempt = self.ghost.as_ref().is_some_and(|ghost| ghost.is_exempt(sptep.0));
        report.check(spte & both == both && (!is_tracked || is_exempt), "spte_writable", || {
            format!("page {} entry {}: {spte:#x}", self.id(sptep.page()), sptep.index())
        });
    }

    fn audit_roots(&self, report: &mut Report) {
        let mut held: BTreeMap<PageIdx, u32> = BTreeMap::new();
        for (number, vcpu) in self.vcpus.iter().enumerate() {
            let cached = vcpu.prev_roots.iter().filter_map(|prev| prev.root.some());
            for root in cached {
                *held.entry(root).or_default() += 1;
                let is_listed = matches!(self.arena.page(root).place, Place::Active | Place::Root);
                report.check(is_listed, "root_alive", || format!("vcpu {number}: cached root {}", self.id(root)));
            }
            for root in vcpu.roots() {
                *held.entry(root).or_default() += 1;
                let role = self.arena.key(root).role.with_invalid(false);
                let is_listed = matches!(self.arena.page(root).place, Place::Active | Place::Root | Place::Tdp);
                // Of four roots each has a level or a quadrant of its own.
                let is_its = (self.config.shadows_guest() || role.with_quadrant(0) == vcpu.role.with_quadrant(0))
                    && role.as_id() == vcpu.as_id();
                report.check(is_listed && is_its, "root_alive", || format!("vcpu {number}: root {}", self.id(root)));
            }
        }
        for page in self.live_pages().filter(|&page| self.arena.page(page).place != Place::Tdp) {
            let count = self.arena.page(page).root_count;
            let holders = held.get(&page).copied().unwrap_or(0);
            let is_right = if self.is_root_leaked { count >= holders } else { count == holders };
            report.check(is_right, "root_count", || {
                format!("page {} has count {count}, {holders} vCPUs hold it", self.id(page))
            });
        }
    }

    fn audit_mmio(&self, report: &mut Report) {
        let most = self.mmio_pages.len() + 1;
        let next = |&page: &PageIdx| self.arena.page(page).mmio_next.some();
        let indexed: Vec<PageIdx> = std::iter::successors(self.mmio_pages.head().some(), next).take(most).collect();
        let len = self.mmio_pages.len();
        report.check(indexed.len() == len, "mmio_index", || format!("length {len}, {} pages", indexed.len()));
        let indexed: BTreeSet<PageIdx> = indexed.into_iter().collect();
        for page in self.live_pages().filter(|&page| self.arena.page(page).place != Place::Tdp) {
            let key = self.arena.key(page);
            let is_flagged = self.active.is_mmio_cached(page);
            let is_expected = is_flagged && !key.role.invalid() && self.arena.page(page).place == Place::Active;
            report.check(indexed.contains(&page) == is_expected, "mmio_index", || {
                format!("page {} is{} on the list", key.id, if is_expected { " not" } else { "" })
            });
            let holds = self.arena.table(page).iter().any(|(_, spte)| is_mmio(&self.masks, spte));
            report.check(!holds || is_flagged && key.role.level() == PAGE_TABLE, "mmio_flag", || {
                format!("page {} of level {}", key.id, key.role.level())
            });
        }
    }

    fn audit_slots(&self, report: &mut Report) {
        for (as_id, space) in self.spaces.iter().enumerate() {
            for pair in space.specs().windows(2) {
                let (high, low) = (&pair[0], &pair[1]);
                report.check(low.base + low.npages <= high.base, "slot_order", || {
                    format!("slots {} and {} of space {as_id}", high.id, low.id)
                });
            }
            let ids: BTreeSet<u32> = space.specs().iter().map(|spec| spec.id).collect();
            report.check(ids.len() == space.specs().len(), "slot_order", || {
                format!("an id stands twice in space {as_id}")
            });
        }
    }

    fn audit_tdp(&self, report: &mut Report) {
        let live = self.live_pages().filter(|&page| self.arena.page(page).place == Place::Tdp).count();
        let mut reached: BTreeSet<PageIdx> = BTreeSet::new();
        for root in self.tdp.roots.iter() {
            let holders = self.vcpus.iter().flat_map(VcpuMmu::roots).filter(|&held| held == root.page).count();
            let is_invalid = self.arena.key(root.page).role.invalid();
            let own = u32::from(!is_invalid || root.is_scheduled);
            let least = u32::try_from(holders).unwrap_or(u32::MAX).saturating_add(own);
            let is_exact = !(self.is_root_leaked || self.has_unfinished_runs());
            report.check(root.refs == least || !is_exact && root.refs >= least, "tdp_refs", || {
                format!("root {} has {} references, {least} are known", self.id(root.page), root.refs)
            });
            for table in self.tdp_tables(root.page) {
                let is_new = reached.insert(table);
                let parent = self.pte_lists.first(self.arena.page(table).parents);
                let is_placed = parent.map_or(table == root.page, |sptep| {
                    let above = self.arena.key(sptep.page());
                    child_of(self.arena.spte(sptep)) == table
                        && above.role.level() == self.arena.key(table).role.level() + 1
                        && above.gfn_of(sptep.index()) == self.arena.key(table).gfn
                        || above.gfn.0 >> self.root_gfn_bits != 0
                });
                report.check(is_new && is_placed, "tdp_tree", || format!("table {}", self.id(table)));
            }
        }
        report.check(reached.len() == live, "tdp_tree", || format!("{live} tables, {} reachable", reached.len()));
        let roots = self.tdp.roots.len() as u64;
        report.check(self.tdp.nr_tables + roots == live as u64, "tdp_tree", || {
            format!("{} tables counted, {roots} roots, {live} live", self.tdp.nr_tables)
        });
        if self.config.tdp_mmu {
            for table in self.nx_list.iter() {
                let is_marked = reached.contains(&table) && self.arena.page(table).nx_huge_page_disallowed;
                report.check(is_marked, "tdp_nx_list", || format!("table {}", self.id(table)));
            }
        }
    }

    /// Prepared pages and a flush left to the caller allow a TLB to lag behind: without a ghost nothing is said then, with
    /// one only what no debt accounts for.
    fn audit_tlbs(&self, report: &mut Report) {
        // A guest with tables of its own is owed no more than it asks for.
        let is_owed = !self.owed.is_none() || !self.zapped_obsolete.is_empty() || self.has_unfinished_runs();
        if self.config.shadows_guest() || is_owed && self.ghost.is_none() {
            return;
        }
        for (number, vcpu) in self.vcpus.iter().enumerate() {
            if vcpu.root == PageIdx::NONE {
                continue;
            }
            if vcpu.requests & (REQ_TLB_FLUSH | REQ_MMU_RELOAD) != 0 {
                continue;
            }
            for line in vcpu.tlb.iter() {
                let gfn = line.gfn.align_down(line.level).0;
                let is_known = |ghost: &Ghost| ghost.is_owed_to(number, gfn, pages_per(line.level));
                if self.ghost.as_deref().is_some_and(is_known) {
                    continue;
                }
                report.check(
                    self.is_translation_backed(self.root_for(number, line.gfn.gpa()), line),
                    "tlb_stale",
                    || format!("vcpu {number}, gfn {:#x}: the TLB has {:#x}", line.gfn.0, line.leaf),
                );
            }
        }
    }

    fn is_translation_backed(&self, root: PageIdx, line: Translation) -> bool {
        let walked = self.walk_from(root, root, line.gfn.gpa(), PAGE_TABLE);
        let now = walked.spte;
        if !is_shadow_present(&self.masks, now) || !is_last(now, walked.level) {
            return false;
        }
        let keeps_write = line.leaf & WRITABLE == 0 || now & WRITABLE != 0;
        let frame = |spte, level| pfn_of(spte).align_down(level).plus(line.gfn.0 & (pages_per(level) - 1));
        keeps_write && frame(now, walked.level) == frame(line.leaf, line.level)
    }
}
