"""The nouns: everything one VM consists of, as plain data.

Owns the dataclasses `Kvm`, `Vcpu`, `ShadowPage`, `ActiveList`, `KvmMemslots`, `KvmMemorySlot`, `HostMemory`
and `LockBreaks`; no logic beyond their empty forms. Links between pages are page ids, so a VM is a tree of plain
values that can be copied whole. A shadow page's physical address is its id shifted by a page, which no dump shows.

Invariants kept by the modules that write them: a page is in `pages` from its creation to its free; it is in the
hash as long; it is on the active list until it is prepared for a zap with no root reference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .kernels import KernelRules
from .masks import Masks
from .pte_list import PteList
from .work import WORK_MEANING

if TYPE_CHECKING:
    from .zap_plan import ZapPlan

Event = list[Any]
Op = dict[str, Any]

# The counters of a scenario line, under the names the lines use.
CTR_NAMES = (
    "flush reload lock_breaks cond_resched need_resched warn zapped recycled cache_miss created lpages"
    " max_collisions pfn_accessed pfn_dirty walk_starts walk_visited"
).split()
CTR_NAMES_6 = (
    "flush flush_range lock_breaks cond_resched need_resched needbreak zapped created freed spte_changed pfn_accessed"
    " pfn_dirty srcu_sync tdp_walks tdp_steps warn"
).split()
# The kernel's own statistics of a VM and of a vCPU, under its names.
VM_STATS = (
    "mmu_shadow_zapped mmu_recycled mmu_cache_miss mmu_unsync pages_4k pages_2m pages_1g nx_lpage_splits"
    " max_mmu_page_hash_collisions remote_tlb_flush remote_tlb_flush_requests"
).split()
VCPU_STATS = "pf_taken pf_fixed pf_emulate pf_spurious pf_fast pf_mmio_spte_created".split()


@dataclass(frozen=True, slots=True)
class Config:
    """The header configuration; the defaults are those of the scenario language."""

    family: str = "ept_ad"
    phys_bits: int = 46
    execonly: int = 1
    pml: int = 0
    tdp_level: int = 4
    lpage_level: int = 3
    vcpus: int = 1
    flush_range: int = 0
    l1tf: int = 1  # the CPU has the bug; v6.1 and later default to 0, as they ask the CPU
    nx_huge_pages: int = 0
    mmio_caching: int = 1
    guest_paging: int = 1  # 0: the guest has no page tables of its own
    eager_split: int = 1
    slot_zap_all: int = 1  # the quirk: a slot's removal zaps everything
    tdp_mmu: int = 0  # the guest has the TDP MMU, else shadow pages
    traced: int = 0  # events say all that tracepoints say: of pages and of walks of guest tables


@dataclass(slots=True)
class ShadowPage:
    """struct kvm_mmu_page. `sptes` holds the non-zero entries only."""

    id: int
    gfn: int
    role: int
    mmu_valid_gen: int
    sptes: dict[int, int] = field(default_factory=dict)
    parent_ptes: PteList = field(default_factory=PteList)
    root_count: int = 0
    mmio_cached: bool = False
    nx_huge_page_disallowed: bool = False
    is_possible_nx_huge_page: bool = False  # on the list of the recovery
    ptep: tuple[int, int] | None = None  # TDP MMU: the entry that links the table, as table id and index
    tdp_mmu_scheduled_root_to_zap: bool = False
    aliased: dict[int, int] = field(default_factory=dict)  # leaf -> its gfn, where its place says another
    shadowed_access: dict[int, int] = field(default_factory=dict)  # leaf -> the access it was made with
    unsync: bool = False  # the guest may write the table that this page shadows
    unsync_child_bitmap: set[int] = field(default_factory=set)
    write_flooding_count: int = 0


@dataclass(slots=True)
class ActiveList:
    """active_mmu_pages: a ring through id 0, which is the list head; head is newest."""

    next: dict[int, int] = field(default_factory=lambda: {0: 0})
    prev: dict[int, int] = field(default_factory=lambda: {0: 0})


@dataclass(slots=True)
class KvmMemorySlot:
    """struct kvm_memory_slot with its x86 arrays; all arrays are sparse, keyed from the slot's base."""

    id: int
    base_gfn: int
    npages: int
    userspace_addr: int
    flags: int
    dirty_bitmap: set[int] | None = None
    rmap: dict[int, dict[int, PteList]] = field(default_factory=lambda: {1: {}, 2: {}, 3: {}})
    disallow_lpage: dict[int, dict[int, int]] = field(default_factory=lambda: {2: {}, 3: {}})
    lpage_entries: dict[int, int] = field(default_factory=lambda: {2: 0, 3: 0})  # length of the veto arrays
    gfn_track: dict[int, int] = field(default_factory=dict)
    as_id: int = 0
    placed: int = 0  # the number of the update that put it into its address space


@dataclass(slots=True)
class KvmMemslots:
    """One address space: its generation and its slots in descending base order."""

    generation: int
    memslots: list[KvmMemorySlot] = field(default_factory=list)
    placements: int = 0


@dataclass(frozen=True, slots=True)
class GuestMode:
    """How a vCPU's guest translates addresses: what its MMU context was built for.

    `name` is none, p32, pae or long. `rsvd` holds the reserved bits of an entry, by its PS bit and then by its level.
    `signature` is what the context must be built anew for when it changes.
    """

    name: str
    root_level: int
    entry_size: int
    index_bits: int
    address_mask: int
    nx: bool
    wp: bool
    smep: bool
    smap: bool
    pse: bool
    pke: bool
    keys_obey_wp: bool  # a supervisor's writes obey protection keys
    rsvd: tuple[dict[int, int], dict[int, int]]
    signature: tuple[int, ...]


@dataclass(slots=True)
class Vcpu:
    id: int
    cr0: int = 0x80010001
    cr4: int = 0x20
    efer: int = 0xD00
    cr3: int = 0x1000
    smm: int = 0
    roots: list[int] = field(default_factory=list)  # one, or four without two-dimensional paging
    requests: int = 0
    base_role: int = 0
    mmio_gva: int = 0
    mmio_gfn: int = 0
    mmio_access: int = 0
    mmio_gen: int = 0
    # Shadow paging only.
    ac: int = 0  # EFLAGS.AC
    pkru: int = 0  # two bits a protection key: no access, no write
    pdptrs: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    root_cr3: int = 0  # what the loaded root was made for
    prev_roots: list[tuple[int, int] | None] = field(
        default_factory=lambda: [None, None, None]
    )  # (CR3, page)
    mode: GuestMode | None = None
    is_fault_injected: bool = False  # the last page fault became one of the guest
    stat: dict[str, int] = field(default_factory=lambda: dict.fromkeys(VCPU_STATS, 0))


@dataclass(slots=True)
class HostMemory:
    """Ranges of host pages with another state or page size; the latest matching range wins.

    `frames`: host pages whose frame is another than their own number. `memory`: zero where it has no page.
    """

    states: list[tuple[int, int, str]] = field(default_factory=list)
    huge: list[tuple[int, int, str]] = field(default_factory=list)
    frames: dict[int, int] = field(default_factory=dict)
    memory: dict[int, bytearray] = field(default_factory=dict)  # what the guest stored, by host page


@dataclass(slots=True)
class Invalidation:
    """What the notifiers tell faults: how many invalidations are open, over which range, how many have ended.

    The range is of host addresses or of gfns, by the kernel; `start` is None while an open one has no range yet.
    """

    sequence: int = 0
    in_progress: int = 0
    start: int | None = None
    end: int = 0


@dataclass(slots=True)
class LockBreaks:
    """The test aid that decides when a poll is true and when an offer of the lock breaks it."""

    cond: int = 0
    need: int = 0
    contend: int = 0
    alloc: int = 0
    do: list[list[Op]] = field(default_factory=list)
    breaks: int = 0
    armed: bool = False
    cond_calls: int = 0  # the running numbers
    need_polls: int = 0
    contend_polls: int = 0
    allocations: int = 0
    is_nested: bool = False  # operations of a break run now


@dataclass(slots=True)
class Kvm:
    """One VM."""

    rules: KernelRules
    config: Config
    masks: Masks
    plans: dict[str, ZapPlan]
    run_nested: Callable[[Kvm, Op], None]
    run_invalidation: Callable[[Kvm, int, int], None]  # the host takes a range of addresses away
    memslots: list[KvmMemslots]
    vcpus: list[Vcpu]
    filters_obsolete: bool
    format: int = 1
    pages: dict[int, ShadowPage] = field(default_factory=dict)
    pages_created: int = 0
    page_hash: dict[int, list[int]] = field(default_factory=dict)
    active: ActiveList = field(default_factory=ActiveList)
    mmio_pages: dict[int, None] = field(default_factory=dict)  # oldest mark first
    zapped_obsolete_pages: list[int] = field(default_factory=list)
    n_used_mmu_pages: int = 0
    n_max_mmu_pages: int = 0
    n_requested_mmu_pages: int = 0
    indirect_shadow_pages: int = 0
    has_dangling: bool = False  # reverse maps may name entries that map nothing, or another gfn
    is_bugged: bool = False  # dead
    tlbs_dirty: int = 0  # entries that a sync dropped since the last full flush
    mmu_valid_gen: int = 0
    nx_huge_pages: bool = False
    possible_nx_huge_pages: list[int] = field(default_factory=list)  # oldest first
    possible_nx_count: int = 0  # what the recovery takes for their number
    slot_zap_all: bool = True
    eager_page_split: bool = True
    tdp_mmu_roots: list[int] = field(default_factory=list)  # newest first
    tdp_mmu_pages: int = 0  # tables of the TDP MMU that are no roots
    rcu_frees: int = 0  # tables that wait until no walker can hold them
    invalidation: Invalidation = field(default_factory=Invalidation)
    manual_dirty_log_protect: bool = False
    dirty_log_initially_set: bool = False
    host: HostMemory = field(default_factory=HostMemory)
    lock: LockBreaks = field(default_factory=LockBreaks)
    events: list[Event] = field(default_factory=list)
    nested: list[dict[str, Any]] = field(default_factory=list)
    ctr: dict[str, int] = field(default_factory=lambda: dict.fromkeys([*CTR_NAMES, *CTR_NAMES_6], 0))
    stat: dict[str, int] = field(default_factory=lambda: dict.fromkeys(VM_STATS, 0))
    work: dict[str, int] = field(default_factory=lambda: dict.fromkeys(WORK_MEANING, 0))
