"""Events to the text a kernel prints for them.

Owns: the wording of each kernel (tracepoints of group kvmmmu). Values come in, text goes out; a
pointer that the model does not have is printed as the kernel prints one it hides.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from kvm_mmu.errors import TraceError
from kvm_mmu.machine.numbers import shown

HIDDEN_POINTER = "(____ptrval____)"
_LEVEL, _SIZE_BIT, _DIRECT, _AD_DISABLED = 0xF, 1 << 4, 1 << 7, 1 << 16
_ACCESS_SHIFT = 8
_RELEASE = re.compile(r"v?(\d+)\.(\d+)")
_USUAL_FLAGS = ((1, "P"), (2, "W"), (4, "U"), (8, "RSVD"), (16, "F"))
_MORE_FLAGS = ((1, "P"), (2, "W"), (4, "U"), (32, "PK"), (64, "SS"), (1 << 15, "SGX"), (8, "RSVD"), (16, "F"))


@dataclass(frozen=True)
class Wording:
    """How the kernels from one release on print their events, until the next row.

    Args:
        gen: base of the valid generation in page texts (None: not printed).
        gpte_bytes: the size of a guest entry is printed in place of ` pae`. bit4_is_four: role bit 4 is set for entries
            of 4 bytes, not for those of 8.
        access: letters of the access bits of a role, from its bit 8 on, in the order of the text. The bits behind them
            say invalid and nxe.
        flags: bits of an error code that have a name, in the order of the text. error_mask: the bits that are printed.
        fast_returns: what fast_page_fault's `ret` is when spurious, and when fixed.
        has_leaves: kvm_mmu_set_spte exists.
        has_requests: kvm_mmu_spte_requested is an input of a replay, as in the recordings with JSON markers.
        try_unsync_inverted: what the probe on try_unsync calls can_unsync says the opposite.
        yields_unseen: the TDP MMU yields under the shared lock where no probe shows it, while it recovers huge pages;
            so flushes there cannot be told from those of yields.
        unprobed: outputs that are probes and whose function or value this kernel does not have. unsaid: those
            of them that have no value, so that nobody could print them.
    """

    gen: str | None
    gpte_bytes: bool
    bit4_is_four: bool = False
    access: tuple[tuple[int, str], ...] = ((2, "w"), (4, "u"), (1, "x"))
    flags: tuple[tuple[int, str], ...] = _USUAL_FLAGS
    error_mask: int = 0xFFFFFFFF
    fast_returns: tuple[int, int] | None = None
    has_leaves: bool = False
    has_requests: bool = False
    try_unsync_inverted: bool = False
    yields_unseen: bool = False
    unprobed: frozenset[str] = frozenset()
    unsaid: frozenset[str] = frozenset()

    @property
    def invalid(self) -> int:
        """The role bit of an invalid page."""
        return 1 << _ACCESS_SHIFT + len(self.access)

    def page(self, gfn: int, role: int, root_count: int, unsync: bool, valid_gen: int) -> str:
        """The text that all page events share."""
        gen = "" if self.gen is None else f"gen {valid_gen:{self.gen}} "
        bit4 = bool(role & _SIZE_BIT)
        size = f" {8 if bit4 != self.bit4_is_four else 4}-byte" if self.gpte_bytes else " pae" if bit4 else ""
        allowed = role >> _ACCESS_SHIFT
        access = "".join(letter if allowed & bit else "-" for bit, letter in self.access)
        return (
            f"sp {gen}gfn {gfn:x} l{role & _LEVEL}{size} q{role >> 5 & 3}{' direct' if role & _DIRECT else ''} "
            f"{access}{' invalid' if role & self.invalid else ''} "
            f"{'' if role & self.invalid << 1 else '!'}nxe {'!' if role & _AD_DISABLED else ''}ad root {root_count} "
            f"{'unsync' if unsync else 'sync'}"
        )

    def error_text(self, error_code: int) -> str:
        """An error code as the kernel prints it: the bits that have a name, and what is left as one number."""
        code = error_code & self.error_mask
        rest = code & ~sum(bit for bit, _ in self.flags)
        names = [name for bit, name in self.flags if code & bit]
        return "|".join([*names, *([f"{rest:#x}"] if rest else [])])

    @staticmethod
    def mark_mmio(gfn: int, access: int, gen: int) -> str:
        """mark_mmio_spte"""
        return f"sptep:{HIDDEN_POINTER} gfn {gfn:x} access {access:x} gen {gen:x}"

    @staticmethod
    def check_mmio(spte: int, kvm_gen: int, spte_gen: int) -> str:
        """check_mmio_spte"""
        return f"spte {spte:x} kvm_gen {kvm_gen:x} spte-gen {spte_gen:x} valid {int(kvm_gen == spte_gen)}"

    @staticmethod
    def handle_mmio(addr: int, gfn: int, access: int) -> str:
        """handle_mmio_page_fault"""
        return f"addr:{addr:x} gfn {gfn:x} access {access:x}"

    def fast_page_fault(
        self, vcpu: int, addr: int, error_code: int, old: int, new: int, handled: bool
    ) -> str:
        """fast_page_fault up to v5.7: spurious and fixed both follow from the W bits."""
        spurious, fixed = int(handled and bool(old & 2)), int(handled and bool(new & 2))
        return (
            f"vcpu {vcpu} gva {addr:x} error_code {self.error_text(error_code)} sptep {HIDDEN_POINTER} "
            f"old {old:#x} new {new:x} spurious {spurious} fixed {fixed}"
        )

    @staticmethod
    def set_spte(gfn: int, value: int, level: int, place: int) -> str:
        """kvm_mmu_set_spte (v5.3 and later, legacy masks); `place` stands in for the address of the entry."""
        allowed = "".join(letter if value & bit else "-" for letter, bit in (("r", 1), ("w", 2)))
        allowed += ("-" if value >> 63 else "x") + ("u" if value & 4 else "-")
        return f"gfn {gfn:x} spte {value:x} ({allowed}) level {level} at {place:x}"

    @staticmethod
    def invalidate_zap_all(valid_gen: int, used: int) -> str:
        """kvm_mmu_invalidate_zap_all_pages"""
        return f"kvm-mmu-valid-gen {valid_gen:x} used_pages {used:x}"


_V5_0 = Wording(gen="x", gpte_bytes=False)
_V5_1 = replace(_V5_0, gen=None, gpte_bytes=True)
_V5_3 = replace(_V5_1, has_leaves=True)
_V5_4 = replace(_V5_3, gen="d")
_V5_10 = replace(
    _V5_4,
    fast_returns=(4, 3),
    has_requests=True,
    unprobed=frozenset({"try_unsync", "try_unsync_ret", "kvm_mmu_split_huge_page"}),
    unsaid=frozenset({"try_unsync", "try_unsync_ret"}),
)
_V6_1 = replace(_V5_10, bit4_is_four=True, fast_returns=(5, 4), unprobed=frozenset(), unsaid=frozenset())
_V6_12 = replace(
    _V6_1, error_mask=(1 << 64) - 1, fast_returns=(6, 5), unprobed=frozenset({"zap_all_fast_enter"})
)
_V6_18 = replace(
    _V6_12,
    flags=_MORE_FLAGS,
    try_unsync_inverted=True,
    yields_unseen=True,
    unprobed=frozenset({"zap_all_fast_enter", "zap_oldest_ret"}),
    unsaid=frozenset({"zap_oldest_ret"}),
)
_V7_2 = replace(_V6_18, access=((1, "r"), (2, "w"), (4, "u"), (8, "x")))
#: The first release of each wording, oldest first.
_ROWS = {
    (5, 0): _V5_0,
    (5, 1): _V5_1,
    (5, 3): _V5_3,
    (5, 4): _V5_4,
    (5, 10): _V5_10,
    (6, 1): _V6_1,
    (6, 12): _V6_12,
    (6, 18): _V6_18,
    (7, 2): _V7_2,
}


def wording_of(kernel: str) -> Wording:
    """The wording of a kernel: that of the last release that changed it.

    Raises:
        TraceError: no wording is known for it.
    """
    found = _RELEASE.match(kernel)
    rows = (
        []
        if found is None
        else [row for first, row in _ROWS.items() if first <= (int(found[1]), int(found[2]))]
    )
    if not rows:
        raise TraceError(f"kernel {shown(kernel)}: its wording is not known: expected v5.0 or later")
    return rows[-1]


def has_requests(kernel: str) -> bool:
    """Whether requests to map are inputs of a replay; so for a kernel that is not said or not known, too."""
    try:
        return wording_of(kernel).has_requests
    except TraceError:
        return True
