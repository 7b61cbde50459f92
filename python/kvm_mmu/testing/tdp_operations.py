"""The generator for VMs with the TDP MMU, in scenarios of format 6: small worlds with yields, SMM and several vCPUs.

Owns nothing beyond `Generator`'s state; the same seed gives the same operations. A world is a few slots of few MiB,
one of which lies askew to the host's large pages, and gfns without a slot; a GiB that one page can map comes on demand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvm_mmu.machine.profiles import kernels
from kvm_mmu.testing.operations import MIB2, PAGE, Generator, Op, Universe

GIB = 1 << 30

WORLD = Universe(
    places=(
        (0, 2 * MIB2, 0x2_0000_0000),
        (2 * MIB2, MIB2, 0x2_4000_0000),
        (3 * MIB2, 0x1_0000, 0x2_8000_0000),
        (3 * MIB2 + 0x8000, MIB2, 0x2_C000_8000),
        (GIB, 2 * MIB2, 0x4_0000_0000),
    ),
    slot_ids=(0, 1, 2),
    gpas=(
        *(0, 0x1000, 0x2000, 0x1F_F000, MIB2, MIB2 + 0x1000, 2 * MIB2, 2 * MIB2 + 0x5000, 0x5F_F000),
        *(3 * MIB2, 3 * MIB2 + 0x8000, 3 * MIB2 + 0xF000, 0x61_0000, 0x80_0000),
        *(GIB, GIB + 0x3000, GIB + MIB2, 0xFEE0_0000, 0xFEE0_1000, 0x80_0000_0000),
    ),
    with_plans=False,
)
#: A slot that one page of a GiB can map whole; walks over it have all its 2-MiB entries to come to.
GIB_PLACE = (2 * GIB, GIB, 0x8_0000_0000)
GIB_GPAS = (2 * GIB, 2 * GIB + 0x1000, 2 * GIB + MIB2, 3 * GIB - PAGE)
SLOT_WORK = (
    *("remove_write_access", "leaf_clear_dirty", "largepage_remove_write_access", "zap_collapsible"),
    *("flush_shadow_memslot", "split_4k", "split_2m"),
)


class TdpGenerator(Generator):
    """Draws operations of format 6 for a VM with the TDP MMU.

    Args:
        seed: any integer; printed in every failure.
        kernel: whose operations; one that has no change_pte or prefault is asked for them now and then all the same.
        config: the header's; its vCPUs are those of the operations.
        with_gib: whether there is a slot of one GiB too, whose walks take long.
    """

    def __init__(self, seed: int, kernel: str, config: dict[str, Any], with_gib: bool = False) -> None:
        places, gpas = WORLD.places, WORLD.gpas
        if with_gib:
            places, gpas = (*places, GIB_PLACE, GIB_PLACE), (*gpas, *GIB_GPAS)
        universe = Universe(
            vcpus=int(config.get("vcpus", 1)),
            places=places,
            slot_ids=WORLD.slot_ids,
            gpas=gpas,
            with_plans=False,
            with_made_up_plans=False,
        )
        super().__init__(seed, universe, kernel)
        gone = {self.track, self.limits, self.shrink, self.zap, self.change_pte}
        self._weighted = [(weight, make) for weight, make in self._weighted if make not in gone]
        facts = kernels[kernel].facts
        self._weighted += [
            (3, self.smm),
            (2, self.set_nx),
            (3, self.nx_recover),
            (1, self.eager_split),
            (1, self.quirk),
            (3 if facts["has_prefault"] else 1, self.prefault),
            (1, self.flush_shadow_all),
            (2, self.manual_protect),
            (1, self.change_pte),
            (1, self.zap_roots),
        ]
        self._total = sum(weight for weight, _ in self._weighted)

    def __next__(self) -> Op:
        """The next operation; one in thirty changes how the lock breaks."""
        if self.random.randrange(30) == 0:
            return self.lock_break()
        return super().__next__()

    def set_memslot(self, nested: bool = False) -> Op:
        """Create, delete, move, change flags, or something that is refused; the log is often wanted."""
        op = super().set_memslot(nested)
        if op["size"] != "0x0" and self.random.randrange(2):
            op["flags"] = self._one((0, 1))
        return op

    def _some(self) -> list[Op]:
        """What can happen while the lock is dropped, also what takes roots away under a walk."""
        rare: tuple[Callable[[], Op], ...] = (
            *(self.clear_mmio_info, self.unmap_hva, self.age, self.unload, self.enter, self.smm),
            *(self.zap_all, self.zap_gfn_range, self.slot_walk, self.pt_masked, self.nx_recover),
        )
        common = (self.access,) * 16 + (self.access_again,) * 4
        return [self._one(common + rare)() for _ in range(self.random.randrange(4))]

    def lock_break(self) -> Op:
        """Breaks at polls, by contention and where a split allocates, with operations inside."""
        return {
            "op": "lock_break",
            "cond": self._one((0, 0, 0, 1, 2)),
            "need": self._one((0, 0, 0, 0, 0, 5, 60, 60, 300, 300, 700)),
            "contend": self._one((0, 0, 0, 0, 90, 500)),
            "alloc": self._one((0, 0, 1, 2)),
            "do": [self._some() for _ in range(self.random.randrange(5))],
        }

    def slot_walk(self) -> Op:
        """A walk over a whole slot, a split or its removal."""
        return {
            "op": "slot",
            "as": self._as_id(),
            "id": self._one(self.universe.slot_ids),
            "what": self._one(SLOT_WORK),
        }

    def pt_masked(self) -> Op:
        """Write-protect or clean up to 64 pages of a slot, or all that reading the log does to them."""
        return {
            "op": "pt_masked",
            "as": self._as_id(),
            "id": self._one(self.universe.slot_ids),
            "offset": self._one((0, 0, 64, 448, 512)),
            "mask": hex(self._one((1, 0xFF, 0x10E, 1 << 63, 1 << 63 | 1, (1 << 64) - 1))),
            "what": self._one(("write_protect", "clear_dirty", "enable_log_dirty")),
        }

    def gfn_write_protect(self) -> Op:
        """Write-protect one gfn, from a level on."""
        return super().gfn_write_protect() | {"level": self._one((1, 1, 2, 3))}

    def unmap_hva(self) -> Op:
        """MMU notifier: host pages go away; it may block, and a fault may come between."""
        op = super().unmap_hva() | {"block": self._one((1, 1, 1, 0))}
        if self.random.randrange(4) == 0:
            op["during"] = [[self.access() for _ in range(1 + self.random.randrange(2))]]
        return op

    def zap_gfn_range(self) -> Op:
        """Zap the mappings of some gfns in both address spaces."""
        start = self._one((0, 1, 8, 0x200, 0x400, 0x600, 0x40000))
        return {"op": "zap_gfn_range", "start": start, "end": start + self._one((1, 8, 512, 0x4_0000))}

    def host(self) -> Op:
        """Change what host memory says or how it is mapped: all that the language has."""
        op = super().host()
        if op["op"] == "host_state":
            states = ("rw", "rw", "cow", "cow_copy", "absent", "ro", "fault", "hwpoison")
            op["state"] = self._one(states)
        return op

    def set_nx(self) -> Op:
        """The parameter nx_huge_pages."""
        return {"op": "set_nx", "on": self.random.randrange(2)}

    def nx_recover(self) -> Op:
        """One run of the recovery."""
        return {"op": "nx_recover", "ratio": self._one((0, 1, 2, 60))}

    def eager_split(self) -> Op:
        """The parameter eager_page_split."""
        return {"op": "eager_split", "on": self.random.randrange(2)}

    def quirk(self) -> Op:
        """Whether a slot's removal zaps everything."""
        return {"op": "quirk", "slot_zap_all": self._one((0, 0, 1))}

    def prefault(self) -> Op:
        """KVM_PRE_FAULT_MEMORY."""
        return {
            "op": "prefault",
            "vcpu": self._vcpu(),
            "gpa": hex(self._one(self.universe.gpas)),
            "size": hex(self._one((PAGE, MIB2))),
        }

    def flush_shadow_all(self) -> Op:
        """What the end of the VM does to its mappings."""
        return {"op": "flush_shadow_all"}

    def zap_roots(self) -> Op:
        """A plan that walks roots: one of the kernels, or one that nobody has."""
        kind = self.random.randrange(8)
        if kind < 3:
            op: Op = {"op": "zap", "plan": ("tdp-fast", "tdp-all", "tdp-slot")[kind]}
        else:
            only = self._one(("obsolete", "obsolete", "all", "slot"))
            plan: Op = {
                "walk": "roots",
                "only": only,
                "offer": self._one(("never", "when_wanted")),
                "bump_valid_gen": only == "obsolete",
                # Roots made invalid without it stay in use, and TLBs with them.
                "reload_roots": self._one(("before", "after")),
            }
            if only == "obsolete":
                plan["lock"] = self._one(("exclusive", "shared"))
            if only == "slot":
                plan["before_drop"] = self._one(("keep", "commit"))
            op = {"op": "zap", "plan": plan}
        if "slot" in str(op["plan"]):
            op |= {"as": self._as_id(), "id": self._one(self.universe.slot_ids)}
        return op

    def manual_protect(self) -> Op:
        """Manual protection, also with bitmaps that start full."""
        return {"op": "manual_protect", "on": self._one((0, 1, 3))}
