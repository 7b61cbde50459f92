"""The generator: random scenario operations in a small universe, so that they collide.

The same seed gives the same operations everywhere. A universe is a handful of slots, gfns and host ranges; numbers are
drawn from short lists on purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from kvm_mmu.machine.profiles import kernels
from kvm_mmu.machine.zap_plan import ZapPlan

Op = dict[str, Any]

PAGE = 4096
MIB2 = 1 << 21


@dataclass(frozen=True)
class Universe:
    """What operations choose from: slot ids and where slots may lie (gpa, size, hva; bytes), addresses, vCPUs."""

    vcpus: int = 2
    places: tuple[tuple[int, int, int], ...] = (
        (0, 0x40_0000, 0x2_0000_0000),
        (0x40_0000, 0x20_0000, 0x2_4000_0000),
        (0x60_0000, 0x1_0000, 0x2_8000_0000),
        (0x60_8000, 0x20_0000, 0x2_C000_8000),
        (0x4000_0000, 0x40_0000, 0x3_0000_0000),
        (0xFEE0_0000, 0x1000, 0x3_4000_0000),
        (0x60_0000, 0x20_1000, 0x3_8000_0000),
    )
    slot_ids: tuple[int, ...] = (0, 1, 2, 3)
    gpas: tuple[int, ...] = (
        0,
        0x1000,
        0x2000,
        0x3000,
        0x7000,
        0x8000,
        0x1F_F000,
        0x20_0000,
        0x20_1000,
        0x3F_F000,
        0x40_0000,
        0x40_5000,
        0x5F_F000,
        0x60_0000,
        0x60_8000,
        0x60_F000,
        0x61_0000,
        0x80_0000,
        0x4000_0000,
        0x4000_3000,
        0x4020_0000,
        0xFEE0_0000,
        0xFEE0_1000,
        0xFEE0_7000,
        0x1_0000_0000,
        0x80_0000_0000,
    )
    plans: tuple[str, ...] = ("seed", "v3.10-mmio", "v5.0-fast", "merged", "zap-all", "v5.3-fast", "indexed")
    with_plans: bool = True
    with_made_up_plans: bool = True
    with_breaks: bool = True


class Generator:
    """Draws operations from a seed.

    Args:
        seed: any integer; printed in every failure. universe: what to choose from.
        generation_step: step of the generation of the kernel under test, to park it near its wrap.
    """

    def __init__(self, seed: int, universe: Universe | None = None, kernel: str = "v5.0") -> None:
        self.random = Random(seed)
        self.universe = universe or Universe()
        self._generations = kernels[kernel].generation()
        self._last_gpa = 0
        self._plan_space = (
            [plan.to_dict() for plan in ZapPlan.space()] if self.universe.with_made_up_plans else []
        )
        self._weighted: list[tuple[int, Callable[[], Op]]] = [
            (28, self.access),
            (8, self.access_again),
            (10, self.set_memslot),
            (2, self.raw_fault),
            (2, self.smm),
            (2, self.unload),
            (1, self.enter),
            (3, self.set_regs),
            (2, self.dirty_log),
            (1, self.clear_dirty_log),
            (4, self.slot_walk),
            (2, self.pt_masked),
            (2, self.track),
            (1, self.gfn_write_protect),
            (2, self.limits),
            (1, self.shrink),
            (2, self.zap_all),
            (2, self.zap_gfn_range),
            (3, self.unmap_hva),
            (3, self.age),
            (int(bool(kernels[kernel].facts["has_change_pte"])), self.change_pte),
            (2, self.set_generation),
            (1, self.invalidate_mmio),
            (2, self.host),
            (1, self.clear_mmio_info),
        ]
        if self.universe.with_plans:
            self._weighted.append((3, self.zap))
        self._total = sum(weight for weight, _ in self._weighted)
        self._breaks = self.universe.with_breaks

    def __iter__(self) -> Generator:
        return self

    def __next__(self) -> Op:
        """The next operation."""
        if self._breaks and self.random.randrange(40) == 0:
            return self.lock_break()
        pick = self.random.randrange(self._total)
        for weight, make in self._weighted:
            if pick < weight:
                return make()
            pick -= weight
        raise AssertionError("weights add up")

    def _one(self, of: Sequence[Any]) -> Any:
        return of[self.random.randrange(len(of))]

    def _vcpu(self) -> int:
        return self.random.randrange(self.universe.vcpus)

    def _as_id(self) -> int:
        return 1 if self.random.randrange(8) == 0 else 0

    def _range(self) -> tuple[int, int]:
        _, size, hva = self._one(self.universe.places)
        start = hva + self.random.randrange(max(1, size // PAGE)) * PAGE
        return start, start + self._one((1, 2, 8, 64, 512, 600)) * PAGE

    def access(self) -> Op:
        """A guest access."""
        self._last_gpa = self._one(self.universe.gpas)
        return self.access_again()

    def access_again(self) -> Op:
        """An access where the last one was: by the same vCPU its MMIO cache may answer, by another the tables do."""
        return {
            "op": "access",
            "vcpu": self._vcpu(),
            "gpa": hex(self._last_gpa),
            "kind": self._one(("r", "w", "w", "x")),
        }

    def raw_fault(self) -> Op:
        """The fault entry with an error code of its own."""
        code = self._one(
            (0, 2, 3, 4, 5, 7, 8, 9, 0xB, 0xC, 0xD, 0x10, 0x11, 0x14, 0x17, (1 << 32) | 4, (1 << 33) | 3)
        )
        return {
            "op": "fault",
            "vcpu": self._vcpu(),
            "gpa": hex(self._one(self.universe.gpas)),
            "err": hex(code),
        }

    def set_memslot(self, nested: bool = False) -> Op:
        """Create, delete, move, change flags, or something that is refused."""
        gpa, size, hva = self._one(self.universe.places)
        op: Op = {"op": "set_memslot", "as": self._as_id(), "id": self._one(self.universe.slot_ids)}
        kind = self.random.randrange(10)
        if kind < 3:
            gpa = size = hva = 0
        elif kind == 3:
            gpa = (gpa + self._one((0x20_0000, 0x1000, 0x4000_0000))) & ((1 << 52) - 1)
        op |= {
            "gpa": hex(gpa),
            "size": hex(size),
            "hva": hex(hva),
            "flags": self._one((0, 0, 0, 1, 1, 2, 3, 4)),
        }
        if not nested and self._breaks and self.random.randrange(6) == 0:
            op["during"] = [self._some() for _ in range(1 + self.random.randrange(2))]
        return op

    def _some(self) -> list[Op]:
        """What can happen while a lock is dropped or a publication is awaited: nothing that takes slots_lock."""
        rare = (self.clear_mmio_info, self.unmap_hva, self.age, self.shrink, self.unload, self.enter)
        common = (self.access,) * 14 + (self.access_again,) * 4
        return [self._one(common + rare)() for _ in range(self.random.randrange(4))]

    def lock_break(self) -> Op:
        """Break the lock now and then, with operations inside."""
        return {
            "op": "lock_break",
            "cond": self._one((0, 0, 1, 2, 5)),
            # 1 would livelock a plan that polls before each page: it never gets to one.
            "need": self._one((0, 2, 7, 50, 300)),
            "do": [self._some() for _ in range(self.random.randrange(4))],
        }

    def enter(self) -> Op:
        """vCPU entry."""
        return {"op": "enter", "vcpu": self._vcpu()}

    def unload(self) -> Op:
        """Drop the root."""
        return {"op": "unload", "vcpu": self._vcpu()}

    def smm(self) -> Op:
        """Enter or leave SMM."""
        return {"op": "smm", "vcpu": self._vcpu(), "on": self.random.randrange(2)}

    def set_regs(self) -> Op:
        """Registers that change the base role."""
        return {
            "op": "set_regs",
            "vcpu": self._vcpu(),
            "cr0": self._one(("0x80010001", "0x80000001")),
            "cr4": "0x20",
            "efer": self._one(("0xd00", "0x500")),
            "smm": self.random.randrange(2),
        }

    def dirty_log(self) -> Op:
        """Get the dirty log, or switch manual protection."""
        if self.random.randrange(5) == 0:
            return {"op": "manual_protect", "on": self.random.randrange(2)}
        return {"op": "get_dirty_log", "as": self._as_id(), "id": self._one(self.universe.slot_ids)}

    def clear_dirty_log(self) -> Op:
        """Clear part of the dirty log, also with lengths the kernel refuses."""
        return {
            "op": "clear_dirty_log",
            "as": self._as_id(),
            "id": self._one(self.universe.slot_ids),
            "first": self._one((0, 64, 128, 960, 3)),
            "num": self._one((64, 128, 16, 1024, 0)),
            "mask": [hex(self._one(((1 << 64) - 1, 0xF, 0, 1 << 63))) for _ in range(16)],
        }

    def slot_walk(self) -> Op:
        """A walk over a whole slot."""
        what = (
            "remove_write_access",
            "leaf_clear_dirty",
            "largepage_remove_write_access",
            "set_dirty",
            "zap_collapsible",
            "flush_shadow_memslot",
        )
        return {
            "op": "slot",
            "as": self._as_id(),
            "id": self._one(self.universe.slot_ids),
            "what": self._one(what),
        }

    def pt_masked(self) -> Op:
        """Write-protect or clean up to 64 pages of a slot."""
        return {
            "op": "pt_masked",
            "as": 0,
            "id": self._one(self.universe.slot_ids),
            "offset": self._one((0, 0, 8)),
            "mask": hex(self._one((1, 0xFF, 0x10E))),
            "what": self._one(("write_protect", "clear_dirty")),
        }

    def track(self) -> Op:
        """Write tracking on or off, also where it is off already and where there is no slot."""
        return {
            "op": "track",
            "as": self._as_id(),
            "gfn": self._one((0, 1, 2, 0x200, 0x400, 0x8_0000)),
            "on": self._one((1, 1, 0)),
        }

    def gfn_write_protect(self) -> Op:
        """Write-protect one gfn."""
        return {
            "op": "gfn_write_protect",
            "as": self._as_id(),
            "gfn": self._one((0, 1, 2, 0x200, 0x401, 0x40003)),
        }

    def limits(self) -> Op:
        """Change the limit of shadow pages."""
        name = self._one(("change_mmu_pages", "change_mmu_pages", "set_nr_mmu_pages", "set_max_raw"))
        usual = (6, 20, 40, 64, 64, 200, 200, 500)
        # Too few to make progress, and more than 32 bits hold.
        extreme = (0, 1, 4, 5, (1 << 31) + 3, (1 << 32) - 1)
        return {"op": name, "n": self._one(extreme if self.random.randrange(6) == 0 else usual)}

    def shrink(self) -> Op:
        """A shrinker scan."""
        return {"op": "shrink", "n": self._one((0, 1, 5, 128))}

    def zap_all(self) -> Op:
        """Flush all shadow pages."""
        return {"op": "zap_all"}

    def zap_gfn_range(self) -> Op:
        """Zap the mappings of some gfns."""
        start = self._one((0, 1, 8, 0x200, 0x600, 0x40000))
        return {"op": "zap_gfn_range", "start": start, "end": start + self._one((1, 8, 512, 0x4_0000, 0))}

    def unmap_hva(self) -> Op:
        """MMU notifier: host pages go away."""
        start, end = self._range()
        return {"op": "unmap_hva", "start": hex(start), "end": hex(end)}

    def age(self) -> Op:
        """MMU notifier: age host pages, or look at one."""
        start, end = self._range()
        if self.random.randrange(3) == 0:
            return {"op": "test_age_hva", "hva": hex(start)}
        return {"op": "age_hva", "start": hex(start), "end": hex(end), "flush": self.random.randrange(2)}

    def change_pte(self) -> Op:
        """MMU notifier: a host page changed."""
        start, _ = self._range()
        return {
            "op": "change_pte",
            "hva": hex(start),
            "pfn": start // PAGE + 0x100,
            "write": self.random.randrange(2),
        }

    def set_generation(self) -> Op:
        """Park the generation a little before its wrap."""
        as_id = self.random.randrange(2)
        k = self._one((1, 2, 3, 6))
        policy = self._generations
        step = policy.next(policy.begin(0))
        gen = (1 << policy.layout.width) - step * k + policy.initial(as_id) % 2
        return {"op": "set_generation", "as": as_id, "gen": hex(gen)}

    def invalidate_mmio(self) -> Op:
        """The wrap check with the current generation."""
        return {"op": "invalidate_mmio", "as": self.random.randrange(2)}

    def host(self) -> Op:
        """Change what host memory says or how it is mapped."""
        _, size, hva = self._one(self.universe.places)
        if self.random.randrange(2):
            return {
                "op": "host_state",
                "hva": hex(hva + self._one((0, 0, 0x1000, 0x8000))),
                "npages": self._one((1, 2, 16)),
                "state": self._one(("rw", "rw", "cow", "fault", "hwpoison")),
            }
        return {
            "op": "host_huge",
            "hva": hex(hva & ~(MIB2 - 1)),
            "npages": max(512, size // PAGE),
            "kind": self._one(("thp", "thp", "hugetlb2m", "hugetlb1g", "none")),
        }

    def clear_mmio_info(self) -> Op:
        """Forget a vCPU's cached MMIO address."""
        return {"op": "clear_mmio_info", "vcpu": self._vcpu()}

    def zap(self) -> Op:
        """A zap plan by name, or one nobody has thought of yet."""
        kind = self.random.randrange(8)
        if kind < 4 or not self._plan_space:
            return {"op": "zap", "plan": self._one(self.universe.plans)}
        if kind == 4:
            slot_plan = dict(self._one(SLOT_PLANS))
            return {
                "op": "zap",
                "plan": slot_plan,
                "as": self._as_id(),
                "id": self._one(self.universe.slot_ids),
            }
        plan = dict(self._one(self._plan_space))
        if kind == 5:
            start = self._one((0, 1, 0x200, 0x400, 0x40000))
            return {
                "op": "zap",
                "plan": {**plan, **GFN_RANGE},
                "start": start,
                "end": start + self._one((1, 0x201, 0x600)),
            }
        return {"op": "zap", "plan": plan}


#: Plans for the pages of one slot, beside what the kernels did.
SLOT_PLANS: tuple[Op, ...] = (
    {"walk": "slot", "only": "slot", "offer": "each_page", "before_drop": "commit"},
    {"walk": "slot", "only": "slot", "offer": "never", "reload_roots": "after"},
    {"walk": "slot", "only": "slot", "offer": "each_page", "before_drop": "keep", "reload_roots": "before"},
    {
        "walk": "head",
        "only": "slot",
        "skip": "invalid_in_use",
        "offer": "each_page",
        "restart": ["on_lock_drop"],
    },
    {"walk": "tail", "only": "slot", "skip": "invalid", "offer": "when_wanted", "before_drop": "commit"},
)
#: What makes a plan of the list walks one for a gfn range. It must not step the generation: v5.4 and later have one bit
#: of it, and a second step would make what the first left behind look valid again.
GFN_RANGE: Op = {"walk": "head", "only": "gfn_range", "stop": "none", "bump_valid_gen": False}
