"""The generator for guests with page tables of their own: small worlds in which tables, their frames and what they map
collide.

Owns nothing beyond `Generator`'s state; the same seed gives the same operations. A world is one slot that holds every
table, a second that comes and goes, and gfns without a slot; the guest has two roots, and frames that are tables of
more than one level or mode. System management mode is entered only where both spaces have the slot of the tables: the
modelled kernels crash on a table in a space without a slot.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kvm_mmu.testing.operations import MIB2, Generator, Op, Universe

#: Frames that are tables: two roots, upper tables, page tables.
ROOTS = (0x1000, 0x5000)
UPPER = (0x2000, 0x3000, 0x6000)
LEAVES = (0x4000, 0x7000, 0x8000)
TABLES = (*ROOTS, *UPPER, *LEAVES)
#: What entries may say beside an address: present, write, user, accessed, dirty; large; no execution.
FLAGS = (
    0x67,
    0x27,
    0x65,
    0x63,
    0x25,
    0x07,
    0x61,
    0xE7,
    0xA7,
    0x8000_0000_0000_0067,
    0x8000_0000_0000_0025,
    0x0800_0000_0000_0067,
    0x1000_0000_0000_0067,
    0x66,
    0,
)
#: Frames that entries lead to: plain memory, tables, the second slot, none.
TARGETS = (
    *range(0x10_0000, 0x11_0000, 0x1000),
    *TABLES,
    *(0x20_0000, 0x40_0000, 0x40_3000, 0x60_0000, 0xFEE0_0000, 0x80_0000_0000),
)
INDICES = (0, 1, 2, 3, 4, 7, 8, 15, 511)

LONG = {"cr0": "0x80010001", "cr4": "0x20", "efer": "0xd00"}
PAE = {"cr0": "0x80010001", "cr4": "0x20", "efer": "0x800"}
P32 = {"cr0": "0x80010001", "cr4": "0x10", "efer": "0x0"}
NONE = {"cr0": "0x10001", "cr4": "0x0", "efer": "0x0"}
#: Registers of each mode, with write protection off, SMEP, SMAP and without NX besides.
MODES: dict[str, tuple[dict[str, str], ...]] = {
    "long": (
        LONG,
        LONG,
        {**LONG, "cr0": "0x80000001"},
        {**LONG, "cr0": "0x80000001", "cr4": "0x100020"},
        {**LONG, "cr4": "0x300020"},
        {**LONG, "efer": "0x500"},
        {**LONG, "cr4": "0x400020"},
        {**LONG, "cr0": "0x80000001", "cr4": "0x400020"},
    ),
    "pae": (PAE, PAE, {**PAE, "cr0": "0x80000001"}, {**PAE, "cr4": "0x200020"}, {**PAE, "efer": "0x0"}),
    "p32": (P32, P32, {**P32, "cr0": "0x80000001"}, {**P32, "cr4": "0x0"}, {**P32, "cr4": "0x100010"}),
    "none": (NONE, NONE, {**NONE, "cr0": "0x1"}),
}
MODES["mixed"] = (*MODES["long"], *MODES["pae"][:2], *MODES["p32"][:2], NONE)

WORLD = Universe(
    places=(
        (0x40_0000, MIB2, 0x2_4000_0000),
        (0x60_0000, 0x1_0000, 0x2_8000_0000),
        (0x40_0000, 0x8000, 0x2_C000_0000),
    ),
    slot_ids=(1, 2),
    gpas=(*TABLES, 0x10_0000, 0x10_3000, 0x40_0000, 0x60_0000, 0xFEE0_0000),
    with_plans=False,
)


class PagingGenerator(Generator):
    """Draws operations for a guest with page tables of its own.

    Args:
        seed: any integer; printed in every failure.
        kernel: whose operations.
        config: the header's; its vCPUs are those of the operations.
        mode: the guest's: `long`, `pae`, `p32`, `none`, or `mixed` with all of them over the same frames.
        with_smm: the tables' memory is there in both address spaces, and vCPUs enter system management mode.
    """

    def __init__(
        self, seed: int, kernel: str, config: dict[str, Any], mode: str = "long", *, with_smm: bool = False
    ) -> None:
        universe = Universe(
            vcpus=int(config.get("vcpus", 1)),
            places=WORLD.places,
            slot_ids=WORLD.slot_ids,
            gpas=WORLD.gpas,
            with_plans=False,
            with_made_up_plans=False,
        )
        super().__init__(seed, universe, kernel)
        self._modes = MODES[mode]
        self._with_smm = with_smm
        gone = {"access", "access_again", "smm", "set_regs", "raw_fault"}
        self._weighted = [(weight, make) for weight, make in self._weighted if make.__name__ not in gone]
        self._weighted += [
            (45, self.vaccess),
            (12, self.gwrite),
            (14, self.poke),
            (8, self.emul_write),
            (6, self.set_cr3),
            (8, self.invlpg),
            (3, self.unprotect),
            (2, self.paging_regs),
            (2, self.set_pkru),
            # After INIT in SMM a kernel goes on with roots of the other space.
            (0 if with_smm else 1, self.init),
            (2, self.guest_fault),
            (1, self.limit),
            (4 if with_smm else 0, self.smm),
            (1, self.peek),
        ]
        self._total = sum(weight for weight, _ in self._weighted)

    def beginning(self) -> Iterator[Op]:
        """The first operations: memory, tables, and the vCPUs in the guest's mode."""
        tables = {
            "op": "set_memslot",
            "id": 0,
            "gpa": "0x0",
            "size": "0x400000",
            "hva": "0x200000000",
            "flags": 0,
        }
        yield tables
        if self._with_smm:
            yield {**tables, "as": 1}
        for table, child in zip(
            (*ROOTS, 0x2000, 0x3000, 0x6000), (0x2000, 0x2000, 0x3000, 0x4000, 0x7000), strict=True
        ):
            yield {"op": "poke", "gpa": hex(table), "val": hex(child | 0x67)}
        for index in range(16):
            yield {"op": "poke", "gpa": hex(0x4000 + 8 * index), "val": hex(0x10_0000 + (index << 12) | 0x67)}
            yield {"op": "poke", "gpa": hex(0x7000 + 8 * index), "val": hex(TABLES[index % 8] | 0x67)}
        for vcpu in range(self.universe.vcpus):
            yield {"op": "set_regs", "vcpu": vcpu, **self._modes[0], "cr3": hex(ROOTS[0])}

    def _as_id(self) -> int:
        return 0

    def _gva(self) -> int:
        one = self._one
        top = one((0, 0, 0, 0, 1 << 39, 1 << 30, 0xC000_0000))
        return int(top + one((0, 0, 0, MIB2, 2 * MIB2)) + (one(INDICES) << 12) + one((0, 0, 8, 0xFF8)))

    def _entry(self) -> tuple[int, int, int]:
        """Where an entry lies, what it is, and its bytes."""
        one = self._one
        size = one((8, 8, 8, 4))
        table = one(TABLES)
        is_upper = table not in LEAVES and self.random.randrange(4) != 0
        target = one(TABLES) if is_upper else one(TARGETS)
        return table + one(INDICES) * size, (target | one(FLAGS)) & ((1 << 8 * size) - 1), size

    def vaccess(self) -> Op:
        """A guest access by guest-virtual address."""
        return {
            "op": "vaccess",
            "vcpu": self._vcpu(),
            "gva": hex(self._gva()),
            "kind": self._one("rrwwwx"),
            "user": self.random.randrange(2),
        }

    def access(self) -> Op:
        """What happens in lock breaks is by guest-virtual address, too."""
        return self.vaccess()

    def access_again(self) -> Op:
        """The same."""
        return self.vaccess()

    def gwrite(self) -> Op:
        """A write of an entry through some address."""
        gpa, value, size = self._entry()
        op = {**self.vaccess(), "op": "gwrite", "gpa": hex(gpa), "val": hex(value), "bytes": size}
        del op["kind"]
        return op

    def poke(self) -> Op:
        """An entry changes unseen; an upper one seldom does, for a kernel cannot see that."""
        gpa, value, size = self._entry()
        if gpa & ~0xFFF not in LEAVES:
            gpa = self._one(LEAVES) + (gpa & 0xFFF)
        return {"op": "poke", "gpa": hex(gpa), "val": hex(value), "bytes": size}

    def peek(self) -> Op:
        """An entry is read."""
        return {
            "op": "peek",
            "gpa": hex(self._one(TABLES) + 8 * self._one(INDICES)),
            "bytes": self._one((1, 2, 4, 8)),
        }

    def emul_write(self) -> Op:
        """An entry changes, and the MMU is told; now and then a part of it, or across two."""
        gpa, value, size = self._entry()
        if self.random.randrange(6) == 0:
            size = self._one((1, 2, 4, 8))
            gpa += self._one((0, 1, 2, 4))
            value &= (1 << 8 * size) - 1
        return {"op": "emul_write", "vcpu": self._vcpu(), "gpa": hex(gpa), "val": hex(value), "bytes": size}

    def set_cr3(self) -> Op:
        """CR3 is written: one of two roots mostly, other low bits, another table, or no memory."""
        cr3 = self._one((*ROOTS, *ROOTS, 0x1018, 0x5000, 0x2000, 0x4000, 0xFEE0_0000))
        return {"op": "set_cr3", "vcpu": self._vcpu(), "cr3": hex(cr3)}

    def invlpg(self) -> Op:
        """INVLPG of an address."""
        return {"op": "invlpg", "vcpu": self._vcpu(), "gva": hex(self._gva() & ~7)}

    def unprotect(self) -> Op:
        """A table is given up."""
        return {"op": "unprotect", "gfn": self._one(TABLES) >> 12}

    def paging_regs(self) -> Op:
        """Registers of one of the world's modes."""
        return {
            "op": "set_regs",
            "vcpu": self._vcpu(),
            **self._one(self._modes),
            "ac": self.random.randrange(2),
        }

    def set_pkru(self) -> Op:
        """Rights of protection keys: of key 0, of another one, of all."""
        return {
            "op": "set_pkru",
            "vcpu": self._vcpu(),
            "pkru": hex(self._one((0, 0, 1, 2, 8, 0x20, 0x5555_5554))),
        }

    def init(self) -> Op:
        """INIT; registers of the world's modes come after it, sooner or later."""
        return {"op": "init", "vcpu": self._vcpu()}

    def limit(self) -> Op:
        """The limit of pages, seldom one that leaves no room."""
        return {"op": "set_max_raw", "n": self._one((0, 1, 3, 5, 8, 64, 64, 64))}

    def guest_fault(self) -> Op:
        """A page fault without an entry before it."""
        code = self._one((0, 2, 4, 6, 0x14, 3, 7, 9, 0xD))
        return {"op": "fault", "vcpu": self._vcpu(), "gpa": hex(self._gva() & 0xFFFF_FFFF), "err": hex(code)}
