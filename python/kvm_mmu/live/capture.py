"""One VM, read whole: pages, tables, slots, vCPUs, counters, and what was busy while it was read.

Owns: `Capture`, plain columns and values; nothing of it reads memory any more. Invariant: what could not be read is in
`faults`, in words, and never silently missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from kvm_mmu.errors import LiveError
from kvm_mmu.live.chains import Faults, list_nodes
from kvm_mmu.live.kernel_facts import KernelFacts
from kvm_mmu.live.page_store import ACTIVE, HASH, TDP, TDP_ROOT, ZAPPED, PageStore
from kvm_mmu.live.pages import Entries, Pages, Words, read_entries
from kvm_mmu.live.program import Opened
from kvm_mmu.live.rmaps import PteLists
from kvm_mmu.live.slots import SlotReader, Space
from kvm_mmu.live.tdp import BackPointers, TdpTables, read_tdp
from kvm_mmu.live.vcpus import READING, VcpuReader, VcpuState

I64 = npt.NDArray[np.int64]
IN_PROGRESS = 1 << 63
#: Low bits of a mutex's owner that are flags.
_MUTEX_FLAGS = 7
#: What is told of progress: what is being read, how much of it is there.
Progress = Callable[[str, int], None]


def silent(_what: str, _count: int) -> None:
    """Tell nobody."""


@dataclass
class Capture:
    """A VM as it was read.

    Args:
        kvm: address of `struct kvm`.
        pid: of the process that made it.
        raw: the bytes of `struct kvm`.
        pages: active newest first, then off the list, then those of the TDP MMU.
        nr_active: how many are on the active list.
        nr_shadow: how many are no tables of the TDP MMU.
        ids: the number of each page: 1 for the oldest on the active list.
        where: where each page was met (`page_store.WHERE`).
        back: what `struct page` of each table says.
        parents: by row, the addresses of the SPTEs that lead to it, as the page itself says.
        counters: of `struct kvm`, by the names of `names.NAMES`; those that this kernel has.
        busy: what was going on, in words.
    """

    facts: KernelFacts
    words: Words
    kvm: int
    pid: int
    raw: bytes
    pages: Pages
    nr_active: int
    nr_shadow: int
    ids: I64
    where: I64
    entries: Entries
    back: npt.NDArray[np.uint64]
    parents: dict[int, npt.NDArray[np.uint64]]
    store: PageStore
    tdp: TdpTables
    spaces: list[Space]
    vcpus: list[VcpuState]
    counters: dict[str, int]
    nx_list: list[int] | None
    tdp_mmu: bool
    stats: dict[str, Any]
    busy: list[str] = field(default_factory=list)
    faults: Faults = field(default_factory=Faults)
    with_rmaps: bool = True
    #: Whether nothing moved between the first and the last look (None: the source does not move).
    settled: bool | None = None
    tries: int = 1

    def page_named(self, row: int) -> str:
        """A page in words."""
        return f"page {int(self.ids[row])}"


class Reader:
    """Reads VMs of one kernel.

    Args:
        opened: the source.
        facts: of its kernel.
    """

    def __init__(self, opened: Opened, facts: KernelFacts) -> None:
        self._opened, self._facts = opened, facts
        self._memory, self._layout = opened.memory, opened.layout
        self._words = Words(facts)
        self._slots = SlotReader(self._memory, self._layout)
        self._vcpus = VcpuReader(self._memory, self._layout)
        self._back = BackPointers(self._memory, facts, self._layout["page.private"].offset)
        self._lists = PteLists(self._memory, self._layout)
        self._size = self._layout.size("struct kvm")

    def addresses(self, faults: Faults) -> list[int]:
        """The VMs of the kernel, in the order of its list."""
        offset = self._layout["kvm.vm_list"].offset
        nodes = list_nodes(self._memory, self._facts.vm_list, "the list of VMs", faults, 1 << 16)
        return [node.address - offset for node in nodes]

    def pid(self, kvm: int) -> int:
        """The process that made a VM."""
        place = self._layout["kvm.pid"]
        return int.from_bytes(
            self._memory.read(kvm + place.offset, place.size, "a VM"), "little", signed=place.is_signed
        )

    def look(self, kvm: int) -> tuple[bytes, tuple[bytes, ...]]:
        """What must be the same before and after: the bytes of the VM and of its vCPUs' statistics."""
        raw = self._memory.read(kvm, self._size, "a VM", "struct kvm")
        return raw, tuple(vcpu.stat for vcpu in self._vcpus.vcpus(raw, Faults()))

    def capture(self, kvm: int, with_rmaps: bool = True, progress: Progress = silent) -> Capture:
        """Read a VM.

        Args:
            kvm: its address.
            with_rmaps: also the reverse maps.
            progress: told what is read.

        Returns:
            The VM.

        Raises:
            LiveError: not even `struct kvm` can be read.
        """
        memory, layout, facts = self._memory, self._layout, self._facts
        raw = memory.read(kvm, self._size, "a VM", "struct kvm")
        faults = Faults()
        store = PageStore(memory, layout, faults)
        counters = self._counters(raw)
        progress("shadow pages", 0)
        active = store.walk_list(kvm + layout["kvm.active"].offset, "the list of active pages", ACTIVE)
        active = list(dict.fromkeys(active))
        zapped_head = layout.find("kvm.zapped")
        zapped = (
            store.walk_list(kvm + zapped_head.offset, "the list of zapped pages", ZAPPED)
            if zapped_head
            else []
        )
        try:
            off_list = store.walk_hash(kvm, raw)
        except LiveError as error:
            faults.add(error)
            off_list = []
        is_tdp = self._tdp_mmu(raw)
        tdp = read_tdp(
            store, facts, self._words, self._back, kvm, raw, lambda n: progress("tables of the TDP MMU", n)
        )
        known = set(active)
        off_list = [address for address in dict.fromkeys(off_list + zapped) if address not in known]
        order = active + off_list + tdp.order
        pages = Pages(layout, order, [store.raw[address] for address in order], memory.direct_map)
        store.raw.clear()  # `Pages` has the bytes now
        ids = np.arange(1, len(order) + 1)
        ids[: len(active)] = np.arange(len(active), 0, -1)
        if not active and not off_list:
            ids = np.arange(1, len(order) + 1)
        progress("entries", len(order))
        entries = read_entries(memory, pages, self._words, facts.codec, faults)
        back = self._back_pointers(pages, faults)
        where = np.array([store.where[address] for address in order], np.int64)
        progress("memslots", len(entries))
        spaces = self._slots.spaces(kvm, raw, faults, with_rmaps)
        vcpus = self._vcpus.vcpus(raw, faults)
        return Capture(
            facts,
            self._words,
            kvm,
            self.pid(kvm),
            raw,
            pages,
            len(active),
            len(active) + len(off_list),
            ids,
            where,
            entries,
            back,
            self._parents(pages, len(active) + len(off_list), faults),
            store,
            tdp,
            spaces,
            vcpus,
            counters,
            self._nx_list(kvm, faults),
            is_tdp,
            self._stats(raw),
            self._busy(counters, spaces, vcpus),
            faults,
            with_rmaps,
        )

    def _counters(self, raw: bytes) -> dict[str, int]:
        found = {}
        for key in (
            "used requested max indirect valid_gen nr_memslot_pages manual_dirty_log dirty_ring_size invalidate_seq "
            "invalidate_in_progress active_invalidate mmu_rwlock mmu_spinlock slots_lock slots_arch_lock quirks"
        ).split():
            place = self._layout.find(f"kvm.{key}")
            if place is not None:
                found[key] = int.from_bytes(raw[place.offset : place.offset + place.size], "little")
        return found

    def _tdp_mmu(self, raw: bytes) -> bool:
        """Whether the TDP MMU serves the guest: the VM says it, or the module for all of them."""
        place = self._layout.find("kvm.tdp_mmu_on")
        if place is not None:
            return bool(raw[place.offset])
        return self._facts.tdp_enabled and bool(self._facts.variable("tdp_mmu_enabled"))

    def _back_pointers(self, pages: Pages, faults: Faults) -> npt.NDArray[np.uint64]:
        found = np.zeros(len(pages), np.uint64)
        for row, physical in enumerate(pages.table.tolist()):
            if physical >> 52:
                continue  # not in the direct map, which was said
            try:
                found[row] = self._back.of(physical)
            except LiveError as error:
                faults.add(error)
        return found

    def _parents(self, pages: Pages, nr_shadow: int, faults: Faults) -> dict[int, npt.NDArray[np.uint64]]:
        value = pages.unsigned("parents")
        found = {row: value[row : row + 1] for row in range(nr_shadow, len(pages)) if value[row]}
        rows = np.flatnonzero(value[:nr_shadow])
        heads = self._lists.expand(rows, value[rows], "parents of pages", faults)
        ends = np.searchsorted(heads.head, rows, "right").tolist()
        first = 0
        for row, last in zip(rows.tolist(), ends, strict=True):
            found[row] = heads.sptep[first:last]
            first = last
        return found

    def _nx_list(self, kvm: int, faults: Faults) -> list[int] | None:
        head, link = self._layout.find("kvm.nx_list"), self._layout.find("mmu_page.nx_link")
        if head is None or link is None:
            return None
        nodes = list_nodes(self._memory, kvm + head.offset, "the list of NX huge pages", faults)
        return [node.address - link.offset for node in nodes]

    def _stats(self, raw: bytes) -> dict[str, Any]:
        place = self._layout["kvm.stat"]
        whole = self._layout.type("struct kvm_vm_stat")
        if whole is None:
            return {}
        found = _numbers(whole, raw[place.offset : place.offset + place.size], 0)
        return found if isinstance(found, dict) else {}

    def _busy(self, counters: dict[str, int], spaces: list[Space], vcpus: list[VcpuState]) -> list[str]:
        found = []
        if counters.get("mmu_rwlock", counters.get("mmu_spinlock", 0)):
            found.append("mmu_lock is held")
        for key in ("slots_lock", "slots_arch_lock"):
            if counters.get(key, 0) & ~_MUTEX_FLAGS:
                found.append(f"{key} is held")
        found += [
            f"an update of address space {number} is in flight"
            for number, space in enumerate(spaces)
            if space.generation & IN_PROGRESS
        ]
        if counters.get("invalidate_in_progress", 0) or counters.get("active_invalidate", 0):
            found.append("the host takes memory back")
        found += [f"vCPU {vcpu.id} walks without the lock" for vcpu in vcpus if vcpu.mode == READING]
        return found


def _numbers(whole: Any, raw: bytes, depth: int) -> Any:
    """A structure of numbers as plain data: nested structures as dicts, arrays as lists."""
    import drgn

    kind = whole.kind
    while kind == drgn.TypeKind.TYPEDEF and depth < 32:
        whole, depth = whole.type, depth + 1
        kind = whole.kind
    if depth >= 32:
        raise LiveError("the VM's statistics: structures in each other without an end")
    if kind in (drgn.TypeKind.STRUCT, drgn.TypeKind.UNION):
        found: dict[str, Any] = {}
        for member in whole.members or ():
            value = _numbers(member.type, raw[member.bit_offset // 8 :], depth + 1)
            if member.name is None:
                found.update(value if isinstance(value, dict) else {})
            else:
                found[member.name] = value
        return found
    if kind == drgn.TypeKind.ARRAY:
        size = drgn.sizeof(whole.type)
        length = min(whole.length or 0, len(raw) // max(size, 1))
        return [_numbers(whole.type, raw[size * number :], depth + 1) for number in range(length)]
    if kind in (drgn.TypeKind.INT, drgn.TypeKind.BOOL):
        return int.from_bytes(raw[: whole.size], "little", signed=bool(getattr(whole, "is_signed", False)))
    return None


__all__ = ["HASH", "TDP", "TDP_ROOT", "Capture", "Reader"]
