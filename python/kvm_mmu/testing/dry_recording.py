"""A made-up recording of v6.1 or v6.12 by a seed: text as ftrace prints it, with everything a replay needs.

Owns: which operations a made-up VM manager does (slots in both address spaces, several vCPUs, SMM, dirty logs, limits,
notifier ranges, the shrinker), which accesses its guests make, and which lines an event set keeps. What happens is
said by `dry_mmu`, which knows nothing of core, reference or replay. Not a line of it was recorded.

The same seed always gives the same recording.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kvm_mmu.testing.dry_host import DryBacking, DryHost
from kvm_mmu.testing.dry_mmu import DryMmu
from kvm_mmu.testing.dry_pages import DryFacts
from kvm_mmu.testing.dry_slots import LOG_DIRTY, READONLY

_MIB, _GIB = 1 << 20, 1 << 30
_TRACEPOINTS = frozenset(
    "kvm_mmu_get_page kvm_mmu_prepare_zap_page kvm_mmu_set_spte mark_mmio_spte check_mmio_spte kvm_mmu_zap_all_fast"
    " handle_mmio_page_fault fast_page_fault kvm_mmu_spte_requested kvm_page_fault kvm_unmap_hva_range"
    " tracing_mark_write".split()
)
_MODEL_PROBES = frozenset(
    "memslots_updated change_mmu_pages flush_shadow_memslot commit_zap zap_oldest zap_oldest_ret slot_wrprot"
    " zap_collapsible free_roots free_obsolete_roots mmu_load dirty_masked".split()
)
_PLAIN = _TRACEPOINTS | {"kvm_smm_transition", "kvm_entry"}
_NPAGES = (1, 2, 3, 4, 5, 7, 12, 511, 512, 512, 700, 1024)
_ACCESSES_MAX = 8
_CLEARED = (0xFF, 0x81, 0x10)


@dataclass
class DryRecording:
    """A recording being made; `write` puts it into a folder."""

    seed: int
    facts: DryFacts = field(init=False)
    lines: list[str] = field(default_factory=lambda: ["# tracer: nop"])
    operations: list[str] = field(default_factory=list)
    #: kinds of lines that occurred, whether or not the event set keeps them
    said: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._random = chance = random.Random(self.seed)
        npt = chance.random() < 0.8
        self.facts = DryFacts(
            kernel=chance.choice(("6.1", "6.12")),
            npt=npt,
            la57=chance.random() < 0.3,
            nx_huge_pages=chance.random() < 0.3,
            mmio_caching=chance.random() < 0.85,
        )
        self.event_set = chance.choice(("full", "full", "model", "core"))
        self.mode = chance.choice(("long", "flat") if npt else ("flat", "real"))
        self.op("begin", scenario="dry", mode=self.mode, seed=self.seed)
        for _ in range(chance.choice((1, 1, 2))):
            _DryVm(self, chance).run(chance.randrange(30, 150))

    def say(self, event: str, body: str) -> None:
        """A line of the trace, if the event set has it."""
        self.said.add(event)
        is_kept = self.event_set == "full" or event in _TRACEPOINTS
        is_kept |= self.event_set == "model" and event in _MODEL_PROBES
        if not is_kept or (event == "zap_all_fast_enter" and self.facts.kernel == "6.12"):
            return
        probe = "" if event in _PLAIN else f"({event}+0x0/0x10 [kvm]) "
        time = 10 + len(self.lines) / 1e5
        self.lines.append(f"             vmm-777     [000] .....  {time:10.6f}: {event}: {probe}{body}")

    def op(self, name: str, /, **fields: object) -> None:
        """An operation, as its marker."""
        text = json.dumps({"i": len(self.operations), "op": name, **fields}, separators=(",", ":"))
        self.operations.append(text)
        self.say("tracing_mark_write", text)

    def host(self) -> dict[str, object]:
        """The facts that no line shows."""
        return {
            "kernel": self.facts.kernel,
            "mmu": "npt" if self.facts.npt else "shadow",
            "tdp_mmu": 0,
            "phys_bits": 51,
            "la57": int(self.facts.la57),
            "l1tf_mask": 0,
            "nx_huge_pages": int(self.facts.nx_huge_pages),
            "mmio_caching": int(self.facts.mmio_caching),
            "event_set": self.event_set,
            "guest_mode": self.mode,
        }

    def write(self, folder: Path) -> Path:
        """The trace and what belongs beside it, in a folder."""
        (folder / "host.json").write_text(json.dumps(self.host()))
        (folder / "ops.jsonl").write_text("\n".join(self.operations) + "\n")
        trace = folder / "trace.txt"
        trace.write_text("\n".join(self.lines) + "\n")
        return trace


class _DryVm:
    """One VM of a recording: random operations, with the MMU following."""

    def __init__(self, out: DryRecording, chance: random.Random):
        self._out, self._random = out, chance
        self._host = DryHost()
        self._mmu = DryMmu(out.facts, self._host, out.say)
        out.op("create_vm")
        self._areas: list[tuple[int, int]] = []
        for number, name in enumerate(("data", "pool", "churn")):
            size, hva = 4 * _MIB, 0x7F0000000000 + number * 64 * _MIB
            hva += chance.choice((0, 0, 0, 0, chance.randrange(512))) << 12
            thp = name != "pool" and chance.random() < 0.7
            out.op("backing", name=name, gpa="0x0", size=hex(size), hva=hex(hva), thp=int(thp))
            self._host.add(DryBacking(name, hva >> 12, size >> 12, thp, written=name != "pool"))
            self._areas.append((hva, size))
        top = 32 if not out.facts.npt else 51 if out.facts.la57 else 48
        marks = (0, 16 * _MIB, _GIB, 4 * _GIB - 8 * _MIB, 1 << 39, (1 << 48) - 2 * _MIB, 1 << 50)
        self._marks = [mark for mark in marks if mark + 16 * _MIB < 1 << top]
        self._gpa_max = 1 << top
        self._vcpu = self._mmu.add_vcpu()
        out.op("create_vcpu", id=0)

    def run(self, steps: int) -> None:
        """The VM's life."""
        actions: list[tuple[Callable[[], None], int]] = [
            (self._run_guest, 55), (self._change_slot, 13), (self._switch_vcpu, 8), (self._set_limit, 3),
            (self._dirty_log, 10), (self._set_registers, 3), (self._smm, 4),
            (self._unmap, 3), (self._shrink, 4),
        ]  # fmt: skip
        for _ in range(3):
            self._change_slot()
        if self._random.random() < 0.4:
            self._log_large_leaves()
        for action in self._random.choices([a for a, _ in actions], [w for _, w in actions], k=steps):
            action()
        self._out.op("end", rc=0)
        self._mmu.end()

    def _run_guest(self) -> None:
        self._out.op("guest_run", ncmds=1)
        self._mmu.enter(self._vcpu)
        self._accesses()

    def _log_large_leaves(self) -> None:
        """Logging turned on and off over 4 MiB that the host maps large, with writes between."""
        chance = self._random
        hva = self._areas[0][0] + 0x1FFFFF & -0x200000
        base = chance.choice(self._marks) + 2 * _MIB >> 12
        if base + 1024 << 12 > self._gpa_max:
            return
        flags = chance.choice((0, 0, READONLY))
        self._manual_protect()
        self._set_memslot(100, 0, flags, base, 1024, hva)
        for _ in range(chance.randrange(2, 5)):
            self._touch_large(base, flags)
            flags ^= LOG_DIRTY
            self._set_memslot(100, 0, flags, base, 1024, hva)
            if flags & LOG_DIRTY:
                self._touch_large(base, flags)
                self._out.op("clear_dirty_log", slot=100, first=0, num=1024, bytepattern="0xff")
                self._mmu.clear_dirty_log(100, 0, 1024, 0xFF)

    def _touch_large(self, base: int, flags: int) -> None:
        self._out.op("guest_run", ncmds=1)
        self._mmu.enter(self._vcpu)
        for _ in range(3):
            gfn = base + self._random.choice((0, 1, 511, 512, 700))
            self._access(gfn << 12, "r" if flags & READONLY else self._random.choice("rwwx"))

    def _access(self, gpa: int, kind: str) -> None:
        for _ in range(_ACCESSES_MAX):
            if self._mmu.access(self._vcpu, gpa, kind):
                break

    def _accesses(self) -> None:
        for _ in range(self._random.randrange(1, 8)):
            gpa, kind = self._gpa(), self._random.choice("rrwwxt" if self._out.facts.npt else "rrwwx")
            slot = self._mmu.find(self._vcpu.smm, gpa >> 12)
            if kind == "t" and slot is not None and slot.flags & READONLY:
                kind = "r"  # a guest cannot walk tables that it cannot mark as accessed
            self._access(gpa, kind)

    def _gpa(self) -> int:
        chance = self._random
        if self._mmu.slots and chance.random() < 0.85:
            slot = chance.choice(self._mmu.slots)
            inside = chance.randrange(slot.npages), chance.randrange(min(slot.npages, 16))
            gfn = slot.base + chance.choice((0, 0, slot.npages - 1, *inside, -1, slot.npages))
            return min(max(gfn, 0) << 12 | chance.choice((0, 8, 0xFF8)), self._gpa_max - 8)
        return chance.choice(self._marks) + chance.choice((0, 0x1000, 0x2010, 3 * _MIB))

    def _change_slot(self) -> None:
        chance, as_id = self._random, int(self._random.random() < 0.25)
        mine = [slot for slot in self._mmu.slots if slot.as_id == as_id]
        if not mine or chance.random() < 0.3:
            free = [n for n in range(40) if n not in {slot.id for slot in mine}]
            self._make_slot(chance.choice(free), as_id, [slot.base + slot.npages for slot in mine])
            return
        slot = chance.choice(mine)
        base, npages, hva, flags = slot.base, slot.npages, slot.hva, slot.flags
        match chance.choice(("delete", "move", "flags", "flags", "resize", "other host", "other access")):
            case "delete":
                npages = 0
            case "move":
                base = (chance.choice(self._marks) >> 12) + chance.choice((0, 3, 512))
            case "flags":
                flags ^= LOG_DIRTY
            case "resize":
                npages += 1
            case "other host":
                hva += 4096
            case _:
                flags ^= READONLY
        self._set_memslot(slot.id, as_id, flags, base, npages, hva)

    def _make_slot(self, slot_id: int, as_id: int, ends: list[int]) -> None:
        chance, npages = self._random, self._random.choice(_NPAGES)
        hva, size = chance.choice(self._areas)
        base = (chance.choice(self._marks) >> 12) + chance.choice((0, 0, 1, 4, 512, 515))
        if ends and chance.random() < 0.4:
            base = chance.choice(ends)
        offset = chance.randrange((size >> 12) - npages + 1)
        if chance.random() < 0.7:
            aligned = offset & -512 | base & 511
            offset = aligned if aligned + npages <= size >> 12 else offset & -512
        flags = chance.choice((0, 0, 0, LOG_DIRTY, READONLY, LOG_DIRTY | READONLY))
        self._set_memslot(slot_id, as_id, flags, base, npages, hva + (offset << 12))

    def _set_memslot(self, slot_id: int, as_id: int, flags: int, base: int, npages: int, hva: int) -> None:
        gpa, size = base << 12, npages << 12
        fields = {"slot": slot_id, "as_id": as_id, "flags": flags}
        self._out.op("set_memslot", **fields, gpa=hex(gpa), size=hex(size), hva=hex(hva))
        self._mmu.set_memslot(slot_id, as_id, flags, gpa, size, hva)

    def _switch_vcpu(self) -> None:
        vcpus = self._mmu.vcpus
        if len(vcpus) < 3 and self._random.random() < 0.4:
            self._out.op("create_vcpu", id=len(vcpus))
            self._vcpu = self._mmu.add_vcpu()
        else:
            self._vcpu = self._random.choice(vcpus)
            self._out.op("use_vcpu", id=self._vcpu.id)

    def _set_limit(self) -> None:
        n = self._random.choice((10, 64, 65, 80, max(64, self._mmu.used - 2)))
        self._out.op("set_nr_mmu_pages", n=n)
        self._mmu.set_nr_mmu_pages(n)

    def _manual_protect(self) -> None:
        self._mmu.manual = self._random.choice((0, 1, 3))
        self._out.op("enable_cap", cap=168, arg0=self._mmu.manual, rc=0)

    def _dirty_log(self) -> None:
        if self._random.random() < 0.3:
            self._manual_protect()
        logged = [s for s in self._mmu.slots if s.as_id == 0 and s.flags & LOG_DIRTY]
        if not logged:
            return
        slot = self._random.choice(logged)
        first = 64 * self._random.randrange(slot.npages // 64 + 1)
        num = slot.npages - first & -64
        if self._random.random() < 0.6 or not num:
            self._out.op("get_dirty_log", slot=slot.id)
            self._mmu.get_dirty_log(slot.id)
            return
        pattern = self._random.choice(_CLEARED)
        self._out.op("clear_dirty_log", slot=slot.id, first=first, num=num, bytepattern=hex(pattern))
        self._mmu.clear_dirty_log(slot.id, first, num, pattern)

    def _set_registers(self) -> None:
        cr3 = self._random.randrange(1, 1 << 20) << 12
        self._out.op("host_set_crs", cr0="0x33", cr3=hex(cr3), cr4="0x20")
        self._mmu.reset(self._vcpu)

    def _smm(self) -> None:
        if self._out.event_set != "full":
            return
        self._out.op("smi", rc=0)
        self._out.op("guest_run", ncmds=1)
        self._mmu.switch_smm(self._vcpu, 1)
        self._mmu.enter(self._vcpu)
        self._accesses()
        self._mmu.switch_smm(self._vcpu, 0)

    def _unmap(self) -> None:
        hva, size = self._random.choice(self._areas)
        start = hva + self._random.randrange(size >> 12) * 4096
        self._mmu.unmap(start, start + self._random.choice((1, 3, 512, 600)) * 4096)

    def _shrink(self) -> None:
        self._out.op("drop_caches", value=2)
        if self._out.event_set != "core":
            self._mmu.zap_oldest(self._random.choice((1, 2, 3, 128)))
