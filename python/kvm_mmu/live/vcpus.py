"""vCPUs: their roots, their memory of the last MMIO access, and what they are doing.

Owns: `VcpuState`. Below: the array of vCPUs of either age (an xarray, before it a plain array).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from kvm_mmu.errors import LiveError
from kvm_mmu.live.chains import Faults
from kvm_mmu.live.layout import Layout
from kvm_mmu.live.memory import Memory

#: More vCPUs than a VM may have; the depth of an xarray that holds so many.
MAX_VCPUS, _MAX_DEPTH = 1 << 14, 8
NO_ROOT = (1 << 64) - 1
#: The mode in which a vCPU walks shadow pages without the lock.
READING = 3
_PAE_ENTRIES = 4


class MmuState(NamedTuple):
    """One `struct kvm_mmu`: the root in use (physical, all ones for none), its CR3, previous ones, the role.

    `pae_entries` are the four entries of the PAE root where the root in use leads there, or None. `special` are the
    pages that are no shadow pages: `pae_root`, `pml4_root`, `pml5_root` by name, physical.
    """

    name: str
    root_hpa: int
    root_pgd: int
    prev_roots: list[tuple[int, int]]
    role: int
    special: dict[str, int]
    pae_entries: list[int] | None


@dataclass
class VcpuState:
    """One vCPU.

    Args:
        mmus: `root_mmu` and, where there is one, `guest_mmu`.
        mmio: address, gfn, access and generation of the last MMIO access.
        stat: the bytes of its statistics.
    """

    address: int
    id: int
    mode: int
    requests: int
    cr3: int
    mmus: list[MmuState]
    current: str
    mmio: tuple[int, int, int, int]
    stat: bytes

    @property
    def mmu(self) -> MmuState:
        """The MMU in use."""
        return next((mmu for mmu in self.mmus if mmu.name == self.current), self.mmus[0])


class VcpuReader:
    """Reads the vCPUs of VMs of one kernel."""

    def __init__(self, memory: Memory, layout: Layout) -> None:
        self._memory, self._layout = memory, layout

    def vcpus(self, raw: bytes, faults: Faults) -> list[VcpuState]:
        """The vCPUs of a VM, by the bytes of its `struct kvm`."""
        found = []
        for address in self._addresses(raw, faults):
            try:
                found.append(self._vcpu(address, faults))
            except LiveError as error:
                faults.add(error)
        return found

    def _addresses(self, raw: bytes, faults: Faults) -> Iterator[int]:
        layout = self._layout
        online = layout["kvm.online_vcpus"]
        count = int.from_bytes(raw[online.offset : online.offset + online.size], "little")
        if count > MAX_VCPUS:
            faults.add(f"{count:,} vCPUs online, expected at most {MAX_VCPUS:,}")
            return
        array = layout.find("kvm.vcpu_array")
        if array is None:
            plain = layout["kvm.vcpus"]
            for number in range(min(count, plain.length)):
                at = plain.offset + 8 * number
                yield int.from_bytes(raw[at : at + 8], "little")
            return
        at = array.offset + layout["xarray.head"].offset
        try:
            # A vCPU that is made stands in the array before it is counted as online.
            entries = self._xarray(int.from_bytes(raw[at : at + 8], "little"), 0)
            for _, address in zip(range(count), entries, strict=False):
                yield address
        except LiveError as error:
            faults.add(error)

    def _xarray(self, entry: int, depth: int) -> Iterator[int]:
        """The entries of an xarray in order: a node has bits 1:0 = 2, an entry of ours is an aligned address."""
        if entry == 0:
            return
        if entry & 3 == 0:
            yield entry
            return
        if entry & 3 != 2 or entry <= 4096 or depth > _MAX_DEPTH:
            raise LiveError(f"the array of vCPUs: entry {entry:#x}, expected an address")
        slots = self._layout["xa_node.slots"]
        for value in self._memory.words(
            entry - 2 + slots.offset, max(1, slots.length), "the array of vCPUs"
        ).tolist():
            yield from self._xarray(value, depth + 1)

    def _vcpu(self, address: int, faults: Faults) -> VcpuState:
        layout = self._layout
        raw = self._memory.read(address, layout.size("struct kvm_vcpu"), "a vCPU", "struct kvm_vcpu")

        def number(key: str) -> int:
            place = layout[f"vcpu.{key}"]
            return int.from_bytes(
                raw[place.offset : place.offset + place.size], "little", signed=place.is_signed
            )

        mmus = []
        in_use = number("mmu")
        current = "root_mmu"
        for name in ("root_mmu", "guest_mmu"):
            place = layout.find(f"vcpu.{name}")
            if place is not None:
                mmus.append(self._mmu(name, raw[place.offset : place.offset + place.size], faults))
                if in_use == address + place.offset:
                    current = name
        stat = layout["vcpu.stat"]
        return VcpuState(
            address,
            number("id"),
            number("mode"),
            number("requests"),
            number("cr3"),
            mmus,
            current,
            (number("mmio_gva"), number("mmio_gfn"), number("mmio_access"), number("mmio_gen")),
            raw[stat.offset : stat.offset + stat.size],
        )

    def _mmu(self, name: str, raw: bytes, faults: Faults) -> MmuState:
        layout = self._layout

        def number(key: str) -> int:
            place = layout.find(f"mmu.{key}")
            if place is None:
                return 0
            return int.from_bytes(raw[place.offset : place.offset + place.size], "little")

        info = layout.size("struct kvm_mmu_root_info")
        prev = layout["mmu.prev_roots"]
        pgd, hpa = layout["mmu_root_info.pgd"], layout["mmu_root_info.hpa"]
        previous = []
        for at in range(prev.offset, prev.offset + prev.size, info):
            previous.append(
                (
                    int.from_bytes(raw[at + hpa.offset : at + hpa.offset + 8], "little"),
                    int.from_bytes(raw[at + pgd.offset : at + pgd.offset + 8], "little"),
                )
            )
        special = {}
        for key in ("pae_root", "pml4_root", "pml5_root"):
            value = number(key)
            if value:
                try:
                    special[key] = self._memory.physical(value, key)
                except LiveError as error:
                    faults.add(error)
        root = number("root_hpa")
        entries = None
        if root in special.values() and "pae_root" in special:
            try:
                data = self._memory.read_physical(special["pae_root"], 8 * _PAE_ENTRIES, "a PAE root")
                entries = [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8)]
            except LiveError as error:
                faults.add(error)
        return MmuState(name, root, number("root_pgd"), previous, number("role"), special, entries)
