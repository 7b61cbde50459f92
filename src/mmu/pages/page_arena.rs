//! `PageArena`: where shadow pages live. An index names a page; a page's number in order of creation (`id`) is never
//! reused, its index is. Index 0 is no page.
//!
//! A page is kept in four arrays by how its parts are used together: the key (what a hash walk reads), the list links
//! (what a list walk reads), the rest of the header, and the table. Invariant: a free index has an empty table, no parents
//! and stands on no list.
//!
//! A copy of a VM shares the arrays until one of both writes to them.

use serde::{Deserialize, Serialize};

use rustc_hash::FxHashMap;

use crate::mmu::pages::indirect_page::Indirect;
use crate::mmu::pages::pte_list::PteHead;
use crate::mmu::pages::spte_table::SpteTable;
use crate::mmu::vm::shared::Shared;
use crate::mmu::vm::shared_array::SharedArray;
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::level::level_shift;
use crate::mmu::words::role::Role;

/// Most pages at a time: an `Sptep` and a tag must fit 32 bits.
pub const MAX_PAGES: usize = 1 << 22;

/// Index of a page in the arena.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PageIdx(pub u32);

impl PageIdx {
    /// No page.
    pub const NONE: Self = Self(0);

    /// As an array index.
    #[inline]
    #[must_use]
    pub const fn at(self) -> usize {
        self.0 as usize
    }

    /// `None` for no page.
    #[must_use]
    pub const fn some(self) -> Option<Self> {
        if self.0 == 0 { None } else { Some(self) }
    }

    /// The place of one of its entries.
    #[must_use]
    #[inline]
    pub const fn sptep(self, index: u16) -> Sptep {
        Sptep(self.0 << 9 | index as u32 & 0x1ff)
    }
}

/// The place of an SPTE: page and index in its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Sptep(pub u32);

impl Sptep {
    /// The page that holds it.
    #[must_use]
    #[inline]
    pub const fn page(self) -> PageIdx {
        PageIdx(self.0 >> 9)
    }

    /// Its index in the table.
    #[must_use]
    #[inline]
    pub const fn index(self) -> u16 {
        (self.0 & 0x1ff) as u16
    }
}

/// What a hash walk compares, with the bucket's links.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct PageKey {
    /// First gfn the page maps.
    pub gfn: Gfn,
    /// The VM's valid generation when it was made.
    pub valid_gen: u64,
    /// Its role; `invalid` is set by the first zap.
    pub role: Role,
    /// Number in order of creation.
    pub id: u32,
    /// Next in the hash bucket.
    pub hash_next: PageIdx,
    /// Previous in the hash bucket.
    pub hash_prev: PageIdx,
}

impl PageKey {
    /// The gfn that an entry of a direct page maps.
    #[inline]
    #[must_use]
    pub fn gfn_of(&self, index: u16) -> Gfn {
        self.gfn.plus(u64::from(index) << level_shift(self.role.level()))
    }
}

/// Which list a page stands on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// None: the index is free.
    #[default]
    Free,
    /// The active list.
    Active,
    /// An invalid list, waiting for its flush.
    Invalid,
    /// None: zapped while in use as root, and gone when its last user is.
    Root,
    /// None: a table or root of the TDP MMU.
    Tdp,
}

/// The rest of a shadow page's header.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct ShadowPage {
    /// vCPUs that use the page as root.
    pub root_count: u32,
    /// The entries that link to it.
    pub parents: PteHead,
    /// How many of its children are unsync (shadow paging).
    pub unsync_children: u32,
    /// Neighbour on the list of MMIO-caching pages.
    pub mmio_next: PageIdx,
    /// Neighbour on the list of MMIO-caching pages.
    pub mmio_prev: PageIdx,
    /// Made for an instruction fetch while large leaves are not executable: no large leaf takes its place.
    pub nx_huge_page_disallowed: bool,
    /// The guest may change the table it shadows unseen (shadow paging).
    pub unsync: bool,
    /// Which list it stands on.
    pub place: Place,
}

/// Every shadow page of a VM.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PageArena {
    keys: SharedArray<PageKey, 64>,
    pages: SharedArray<ShadowPage, 64>,
    tables: SharedArray<SpteTable, 16>,
    /// What only pages that shadow a guest's table have; shorter than the others, and empty where no guest pages.
    indirect: SharedArray<Option<Box<Indirect>>, 16>,
    free: Shared<Vec<PageIdx>>,
    #[serde(skip)]
    by_id: Shared<FxHashMap<u32, PageIdx>>,
    next_id: u32,
}

fn as_pages(indices: Vec<usize>) -> Vec<PageIdx> {
    indices.into_iter().filter_map(|at| u32::try_from(at).ok().map(PageIdx)).collect()
}

impl Default for PageArena {
    fn default() -> Self {
        Self {
            keys: vec![PageKey::default()].into(),
            pages: vec![ShadowPage::default()].into(),
            tables: vec![SpteTable::Empty].into(),
            indirect: SharedArray::default(),
            free: Shared::default(),
            by_id: Shared::default(),
            next_id: 1,
        }
    }
}

impl PageArena {
    /// A new page with an empty table, or nothing if the arena is full.
    pub fn alloc(&mut self, gfn: Gfn, role: Role, valid_gen: u64) -> Option<PageIdx> {
        let id = self.next_id;
        let next_id = id.checked_add(1)?;
        let page = match self.free.own().pop() {
            Some(page) => page,
            None if self.keys.len() < MAX_PAGES => {
                self.reserve();
                let page = PageIdx(u32::try_from(self.keys.len()).ok()?);
                self.keys.push(PageKey::default());
                self.pages.push(ShadowPage::default());
                self.tables.push(SpteTable::Empty);
                page
            }
            None => return None,
        };
        self.next_id = next_id;
        *self.keys.at_mut(page.at()) =
            PageKey { gfn, valid_gen, role, id, hash_next: PageIdx::NONE, hash_prev: PageIdx::NONE };
        *self.pages.at_mut(page.at()) = ShadowPage::default();
        self.by_id.own().insert(id, page);
        if !role.direct() {
            self.add_indirect(page);
        }
        Some(page)
    }

    #[cold]
    fn add_indirect(&mut self, page: PageIdx) {
        while self.indirect.len() <= page.at() {
            self.indirect.push(None);
        }
        *self.indirect.at_mut(page.at()) = Some(Box::default());
    }

    /// What only a page that shadows a guest's table has.
    #[inline]
    #[must_use]
    pub fn indirect(&self, page: PageIdx) -> Option<&Indirect> {
        self.indirect.get(page.at())?.as_deref()
    }

    /// The same, to change.
    #[inline]
    pub fn indirect_mut(&mut self, page: PageIdx) -> Option<&mut Indirect> {
        // A direct page has none, and nothing is taken back for it.
        self.indirect.get(page.at())?.as_ref()?;
        self.indirect.at_mut(page.at()).as_deref_mut()
    }

    /// Grows by a quarter, not by half: headers count in what a page costs.
    fn reserve(&mut self) {
        let more = (self.keys.len() / 4).max(64);
        self.keys.reserve(more);
        self.pages.reserve(more);
        self.tables.reserve(more);
    }

    /// Gives an index back; only `zap` calls this, after the flush.
    pub fn release(&mut self, page: PageIdx) {
        self.by_id.own().remove(&self.keys.at(page.at()).id);
        *self.tables.at_mut(page.at()) = SpteTable::Empty;
        *self.pages.at_mut(page.at()) = ShadowPage::default();
        if page.at() < self.indirect.len() {
            *self.indirect.at_mut(page.at()) = None;
        }
        self.free.own().push(page);
    }

    /// The page with this id, while it lives.
    #[must_use]
    pub fn find_id(&self, id: u32) -> Option<PageIdx> {
        self.by_id.get(&id).copied()
    }

    /// What a hash walk compares.
    #[inline]
    #[must_use]
    pub fn key(&self, page: PageIdx) -> &PageKey {
        self.keys.at(page.at())
    }

    /// The same, to change.
    #[inline]
    pub fn key_mut(&mut self, page: PageIdx) -> &mut PageKey {
        self.keys.at_mut(page.at())
    }

    /// The rest of the header.
    #[inline]
    #[must_use]
    pub fn page(&self, page: PageIdx) -> &ShadowPage {
        self.pages.at(page.at())
    }

    /// The same, to change.
    #[inline]
    pub fn page_mut(&mut self, page: PageIdx) -> &mut ShadowPage {
        self.pages.at_mut(page.at())
    }

    /// The table.
    #[inline]
    #[must_use]
    pub fn table(&self, page: PageIdx) -> &SpteTable {
        self.tables.at(page.at())
    }

    /// The same, to change; only `spte_write` calls this.
    #[inline]
    pub fn table_mut(&mut self, page: PageIdx) -> &mut SpteTable {
        self.tables.at_mut(page.at())
    }

    /// The word at a place.
    #[inline]
    #[must_use]
    pub fn spte(&self, sptep: Sptep) -> u64 {
        self.tables.at(sptep.page().at()).get(sptep.index())
    }

    /// Whether the index was ever used.
    #[must_use]
    pub fn has(&self, page: PageIdx) -> bool {
        page != PageIdx::NONE && page.at() < self.keys.len()
    }

    /// Every index ever used, free ones included.
    pub fn indices(&self) -> impl Iterator<Item = PageIdx> + use<> {
        (1..u32::try_from(self.keys.len()).unwrap_or(u32::MAX)).map(PageIdx)
    }

    /// How many indices there are, the one that means none included.
    #[must_use]
    pub fn nr_indices(&self) -> usize {
        self.keys.len()
    }

    /// Indices of live pages.
    pub fn live(&self) -> impl Iterator<Item = PageIdx> + '_ {
        self.indices().filter(|page| self.page(*page).place != Place::Free)
    }

    /// Finds live pages by id again, after they were read from bytes.
    pub fn index_ids(&mut self) {
        self.by_id = Shared::Own(self.live().map(|page| (self.key(page).id, page)).collect());
    }

    /// Whether lengths agree, every link is an index, levels are levels and no hash chain or id stands twice.
    #[must_use]
    pub fn is_well_formed(&self) -> bool {
        let len = self.keys.len();
        let within = |page: PageIdx| page.at() < len;
        let mut after = vec![false; len];
        let mut ids = rustc_hash::FxHashSet::default();
        (1..=MAX_PAGES).contains(&len)
            && self.pages.len() == len
            && self.tables.len() == len
            && self.free.iter().all(|page| within(*page) && page.some().is_some())
            && self.keys.iter().all(|key| within(key.hash_next) && within(key.hash_prev))
            && self.pages.iter().all(|page| within(page.mmio_next) && within(page.mmio_prev))
            && self.live().all(|page| {
                let key = self.key(page);
                (1..=5).contains(&key.role.level())
                    && self.indirect(page).map_or(key.role.direct(), Indirect::is_well_formed)
                    && key.gfn.0 >> 52 == 0
                    && key.id < self.next_id
                    && ids.insert(key.id)
                    && (key.hash_next.some().is_none() || !std::mem::replace(&mut after[key.hash_next.at()], true))
            })
    }

    /// Which pages' headers may differ from what they were, those of `more` included; nothing if that is not known.
    #[must_use]
    pub fn headers_changed_since(&self, known: &Self, more: Vec<usize>) -> Option<Vec<PageIdx>> {
        let mut changed = more;
        changed.extend(self.keys.changed_since(&known.keys)?);
        changed.extend(self.pages.changed_since(&known.pages)?);
        changed.sort_unstable();
        changed.dedup();
        Some(as_pages(changed))
    }

    /// The same of their tables.
    #[must_use]
    pub fn tables_changed_since(&self, known: &Self) -> Option<Vec<PageIdx>> {
        self.tables.changed_since(&known.tables).map(as_pages)
    }

    /// The same of what only pages of a guest's tables have.
    #[must_use]
    pub fn indirect_changed_since(&self, known: &Self) -> Option<Vec<PageIdx>> {
        self.indirect.changed_since(&known.indirect).map(as_pages)
    }

    /// Makes its arrays vectors again, where nobody else has them any more.
    pub fn settle(&mut self) {
        self.keys.settle();
        self.pages.settle();
        self.tables.settle();
        self.indirect.settle();
    }

    /// Makes all of it common, so that a clone copies none of it.
    pub fn lend(&mut self) {
        self.keys.lend();
        self.pages.lend();
        self.tables.lend();
        self.indirect.lend();
        self.free.lend();
        self.by_id.lend();
    }

    /// Bytes of headers and of tables.
    #[must_use]
    pub fn size_bytes(&self) -> (usize, usize) {
        let headers = self.keys.size_bytes()
            + self.pages.size_bytes()
            + self.free.capacity() * size_of::<PageIdx>()
            + self.by_id.capacity() * size_of::<(u32, PageIdx)>();
        let tables = self.tables.size_bytes()
            + self.tables.iter().map(SpteTable::heap_bytes).sum::<usize>()
            + self.indirect.size_bytes()
            + self.indirect.iter().flatten().map(|indirect| indirect.size_bytes()).sum::<usize>();
        (headers, tables)
    }
}
