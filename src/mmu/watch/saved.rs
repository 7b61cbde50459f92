//! A VM's MMU as bytes and back: magic, schema, crate version, profile, a note of the caller's, the state, a checksum.
//!
//! What comes back is not trusted: lengths and indices are checked before anything follows them, chains must be free of
//! cycles, and the audit must be clean. Events, and what can be computed again, are not saved. Ours; no kernel has it.

use serde::{Deserialize, Serialize};

use crate::mmu::pages::page_arena::{PageArena, PageIdx, Sptep};
use crate::mmu::pages::pte_list::PteLists;
use crate::mmu::pages::walk::{child_of, is_last, is_shadow_present};
use crate::mmu::shadow::active_pages::ActivePages;
use crate::mmu::shadow::invalid_list::InvalidList;
use crate::mmu::shadow::mmio_pages::MmioPages;
use crate::mmu::shadow::page_hash::PageHash;
use crate::mmu::vm::debt::Debt;
use crate::mmu::vm::guest_memory::GuestMemory;
use crate::mmu::vm::host_memory::HostMemory;
use crate::mmu::vm::invalidation::Invalidation;
use crate::mmu::vm::lock_polls::LockPolls;
use crate::mmu::vm::nx_list::NxList;
use crate::mmu::vm::slots::AddressSpace;
use crate::mmu::vm::state::{MmuState, TdpMmu};
use crate::mmu::vm::vcpu_mmu::VcpuMmu;
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::config::Config;
use crate::mmu::words::error::{Error, Result};
use crate::mmu::words::stats::Stats;
use crate::mmu::words::work::Work;

const MAGIC: &[u8; 8] = b"KVMMMU\x1a\n";
const SCHEMA: u16 = 8;
const CHECKSUM: usize = 4;

/// What is before the state.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    schema: u16,
    version: String,
    profile: String,
    note: String,
}

/// The state, without what can be computed again.
#[derive(Serialize, Deserialize)]
struct Body {
    config: Config,
    arena: PageArena,
    hash: PageHash,
    active: ActivePages,
    mmio_pages: MmioPages,
    pte_lists: PteLists,
    spaces: [AddressSpace; 2],
    vcpus: Vec<VcpuMmu>,
    host: HostMemory,
    guest_memory: GuestMemory,
    polls: LockPolls,
    stats: Stats,
    work: Work,
    numbers: [u64; 6],
    zapped_obsolete: InvalidList,
    aliased: Vec<(Sptep, Gfn)>,
    invalidation: Invalidation,
    nx_list: NxList,
    facts: [bool; 4],
    owed: Debt,
    tdp: TdpMmu,
}

/// A kernel travels by its text, name and changed facts: what a kernel does is this crate's to say.
pub(in crate::mmu) mod by_name {
    use serde::{Deserialize, Deserializer, Serializer, de};

    use crate::kernels::Kernel;

    pub fn serialize<S: Serializer>(profile: &Kernel, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&profile.text())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Kernel, D::Error> {
        let name = String::deserialize(from)?;
        Kernel::by_name(&name).map_err(de::Error::custom)
    }
}

fn refuse<T>(why: impl Into<String>) -> Result<T> {
    Err(Error::Saved(why.into()))
}

impl MmuState {
    /// The state as bytes, with a note of the caller's in front.
    pub(in crate::mmu) fn to_bytes(&self, note: &str) -> Result<Vec<u8>> {
        if !self.is_idle() {
            return refuse("a run or batch is in progress; finish it first");
        }
        let twin = self.clone();
        let head = Head {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            profile: self.config.kernel.text(),
            note: note.to_owned(),
        };
        let body = Body {
            config: twin.config,
            arena: twin.arena,
            hash: twin.hash,
            active: twin.active,
            mmio_pages: twin.mmio_pages,
            pte_lists: twin.pte_lists,
            spaces: twin.spaces,
            vcpus: twin.vcpus,
            host: twin.host,
            guest_memory: twin.guest_memory,
            polls: twin.polls,
            stats: twin.stats,
            work: twin.work,
            numbers: [twin.valid_gen, twin.used, twin.max, twin.requested, twin.nr_indirect, twin.tlbs_dirty],
            zapped_obsolete: twin.zapped_obsolete,
            aliased: twin.aliased.into_iter().collect(),
            invalidation: twin.invalidation,
            nx_list: twin.nx_list,
            facts: [twin.is_root_leaked, twin.is_log_initially_set, twin.has_dangling, twin.is_bugged],
            owed: twin.owed,
            tdp: twin.tdp,
        };
        let failed = |error: postcard::Error| Error::Saved(format!("cannot be written: {error}"));
        let mut bytes = MAGIC.to_vec();
        bytes.extend(postcard::to_stdvec(&head).map_err(failed)?);
        bytes.extend(postcard::to_stdvec(&body).map_err(failed)?);
        let sum = crc32fast::hash(&bytes);
        bytes.extend(sum.to_le_bytes());
        Ok(bytes)
    }

    /// The state of such bytes, and the note.
    pub(in crate::mmu) fn from_bytes(bytes: &[u8]) -> Result<(Self, String)> {
        let Some(rest) = bytes.strip_prefix(MAGIC) else {
            return refuse("these bytes are not a snapshot of this package");
        };
        let Some((rest, sum)) = rest.split_last_chunk::<CHECKSUM>() else {
            return refuse("the snapshot is cut short");
        };
        let (head, rest): (Head, &[u8]) =
            postcard::take_from_bytes(rest).map_err(|_| Error::Saved("the snapshot's head is damaged".to_owned()))?;
        if head.schema != SCHEMA {
            return refuse(format!(
                "the snapshot has schema {} (written by version {}), this version reads {SCHEMA}",
                head.schema, head.version
            ));
        }
        let whole = bytes.len() - CHECKSUM;
        if crc32fast::hash(&bytes[..whole]) != u32::from_le_bytes(*sum) {
            return refuse("the snapshot is damaged or cut short: its checksum does not fit");
        }
        let (body, rest): (Body, &[u8]) = postcard::take_from_bytes(rest)
            .map_err(|error| Error::Saved(format!("the snapshot is damaged: {error}")))?;
        if !rest.is_empty() {
            return refuse("the snapshot has bytes after its end");
        }
        let mut state = Self::new(body.config)?;
        state.arena = body.arena;
        state.hash = body.hash;
        state.active = body.active;
        state.mmio_pages = body.mmio_pages;
        state.pte_lists = body.pte_lists;
        state.spaces = body.spaces;
        state.vcpus = body.vcpus;
        state.host = body.host;
        state.guest_memory = body.guest_memory;
        state.polls = body.polls;
        state.stats = body.stats;
        state.work = body.work;
        [state.valid_gen, state.used, state.max, state.requested, state.nr_indirect, state.tlbs_dirty] = body.numbers;
        state.zapped_obsolete = body.zapped_obsolete;
        state.aliased = body.aliased.into_iter().collect();
        state.invalidation = body.invalidation;
        state.nx_list = body.nx_list;
        state.tdp = body.tdp;
        [state.is_root_leaked, state.is_log_initially_set, state.has_dangling, state.is_bugged] = body.facts;
        state.owed = body.owed;
        state.check_saved()?;
        let is_high = |page| state.arena.key(page).gfn.0 >> state.root_gfn_bits != 0;
        state.has_high_pages = state.arena.live().any(is_high);
        state.arena.index_ids();
        if let Some(found) = state.audit().first() {
            return refuse(format!("the snapshot's state is broken: {}: {}", found.invariant, found.detail));
        }
        Ok((state, head.note))
    }

    /// Refuses indices that lead nowhere and chains without an end, so that nothing below can go astray.
    pub(in crate::mmu::watch) fn check_saved(&self) -> Result<()> {
        let len = self.arena.nr_indices();
        let within = |page: PageIdx| page.at() < len;
        let fine = self.arena.is_well_formed()
            && self.hash.is_well_formed(&within)
            && self.active.is_well_formed(len)
            && self.mmio_pages.is_well_formed(&self.arena)
            && self.zapped_obsolete.iter().all(within)
            && self.nx_list.is_well_formed(len)
            && self.tdp.roots.iter().all(|root| within(root.page) && root.page.some().is_some() && root.refs > 0)
            && self.vcpus.len() == usize::from(self.config.vcpus)
            && self.vcpus.iter().all(|vcpu| vcpu.roots().all(within) && vcpu.tlb.is_well_formed())
            && self.vcpus.iter().flat_map(|vcpu| &vcpu.prev_roots).all(|prev| within(prev.root))
            && self.aliased.keys().all(|sptep| within(sptep.page()))
            && self.spaces.iter().all(AddressSpace::is_well_formed);
        if !fine {
            return refuse("the snapshot is damaged: an index or a length does not fit");
        }
        let heads = self
            .spaces
            .iter()
            .flat_map(AddressSpace::heads)
            .chain(self.arena.live().map(|page| self.arena.page(page).parents));
        if !self.pte_lists.is_well_formed(heads, &within) {
            return refuse("the snapshot is damaged: a reverse map or parent list leads nowhere");
        }
        for page in self.arena.live() {
            let level = self.arena.key(page).role.level();
            for (_, spte) in self.arena.table(page).iter() {
                if is_shadow_present(&self.masks, spte) && !is_last(spte, level) && !within(child_of(spte)) {
                    return refuse("the snapshot is damaged: an entry links to no page");
                }
            }
        }
        Ok(())
    }
}
