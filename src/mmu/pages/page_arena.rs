//! `PageArena`: where shadow pages live. An index names a page; a page's number in order of creation (`id`) is never
//! reused, its index is. Index 0 is no page.
//!
//! A page is kept in four arrays by how its parts are used together: the key (what a hash walk reads), the list links
//! (what a list walk reads), the rest of the header, and the table. Invariant: a free index has an empty table, no parents
//! and stands on no list.

use serde::{Deserialize, Serialize};

use rustc_hash::FxHashMap;

use crate::mmu::pages::indirect_page::Indirect;
use crate::mmu::pages::pte_list::PteHead;
use crate::mmu::pages::spte_table::SpteTable;
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
    keys: Vec<PageKey>,
    pages: Vec<ShadowPage>,
    tables: Vec<SpteTable>,
    /// What only pages that shadow a guest's table have; shorter than the others, and empty where no guest pages.
    indirect: Vec<Option<Box<Indirect>>>,
    free: Vec<PageIdx>,
    #[serde(skip)]
    by_id: FxHashMap<u32, PageIdx>,
    next_id: u32,
}

impl Default for PageArena {
    fn default() -> Self {
        Self {
            keys: vec![PageKey::default()],
            pages: vec![ShadowPage::default()],
            tables: vec![SpteTable::Empty],
            indirect: Vec::new(),
            free: Vec::new(),
            by_id: FxHashMap::default(),
            next_id: 1,
        }
    }
}

impl PageArena {
    /// A new page with an empty table, or nothing if the arena is full.
    pub fn alloc(&mut self, gfn: Gfn, role: Role, valid_gen: u64) -> Option<PageIdx> {
        let id = self.next_id;
        let next_id = id.checked_add(1)?;
        let page = match self.free.pop() {
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
        self.keys[page.at()] = PageKey { gfn, valid_gen, role, id, hash_next: PageIdx::NONE, hash_prev: PageIdx::NONE };
        self.pages[page.at()] = ShadowPage::default();
        self.by_id.insert(id, page);
        if !role.direct() {
            self.add_indirect(page);
        }
        Some(page)
    }

    #[cold]
    fn add_indirect(&mut self, page: PageIdx) {
        if self.indirect.len() <= page.at() {
            self.indirect.resize_with(page.at() + 1, || None);
        }
        self.indirect[page.at()] = Some(Box::default());
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
        self.indirect.get_mut(page.at())?.as_deref_mut()
    }

    /// Grows by a quarter, not by half: headers count in what a page costs.
    fn reserve(&mut self) {
        if self.keys.len() == self.keys.capacity() {
            let more = (self.keys.len() / 4).max(64);
            self.keys.reserve_exact(more);
            self.pages.reserve_exact(more);
            self.tables.reserve_exact(more);
        }
    }

    /// Gives an index back; only `zap` calls this, after the flush.
    pub fn release(&mut self, page: PageIdx) {
        self.by_id.remove(&self.keys[page.at()].id);
        self.tables[page.at()] = SpteTable::Empty;
        self.pages[page.at()] = ShadowPage::default();
        if let Some(indirect) = self.indirect.get_mut(page.at()) {
            *indirect = None;
        }
        self.free.push(page);
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
        &self.keys[page.at()]
    }

    /// The same, to change.
    #[inline]
    pub fn key_mut(&mut self, page: PageIdx) -> &mut PageKey {
        &mut self.keys[page.at()]
    }

    /// The rest of the header.
    #[inline]
    #[must_use]
    pub fn page(&self, page: PageIdx) -> &ShadowPage {
        &self.pages[page.at()]
    }

    /// The same, to change.
    #[inline]
    pub fn page_mut(&mut self, page: PageIdx) -> &mut ShadowPage {
        &mut self.pages[page.at()]
    }

    /// The table.
    #[inline]
    #[must_use]
    pub fn table(&self, page: PageIdx) -> &SpteTable {
        &self.tables[page.at()]
    }

    /// The same, to change; only `spte_write` calls this.
    #[inline]
    pub fn table_mut(&mut self, page: PageIdx) -> &mut SpteTable {
        &mut self.tables[page.at()]
    }

    /// The word at a place.
    #[inline]
    #[must_use]
    pub fn spte(&self, sptep: Sptep) -> u64 {
        self.tables[sptep.page().at()].get(sptep.index())
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
    pub const fn nr_indices(&self) -> usize {
        self.keys.len()
    }

    /// Indices of live pages.
    pub fn live(&self) -> impl Iterator<Item = PageIdx> + '_ {
        self.indices().filter(|page| self.page(*page).place != Place::Free)
    }

    /// Finds live pages by id again, after they were read from bytes.
    pub fn index_ids(&mut self) {
        self.by_id = self.live().map(|page| (self.key(page).id, page)).collect();
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

    /// Bytes of headers and of tables.
    #[must_use]
    pub fn size_bytes(&self) -> (usize, usize) {
        let headers = self.keys.capacity() * size_of::<PageKey>()
            + self.pages.capacity() * size_of::<ShadowPage>()
            + self.free.capacity() * size_of::<PageIdx>()
            + self.by_id.capacity() * size_of::<(u32, PageIdx)>();
        let tables = self.tables.capacity() * size_of::<SpteTable>()
            + self.indirect.capacity() * size_of::<Option<Box<Indirect>>>()
            + self.indirect.iter().flatten().map(|indirect| indirect.size_bytes()).sum::<usize>()
            + self.tables.iter().map(SpteTable::heap_bytes).sum::<usize>();
        (headers, tables)
    }
}
