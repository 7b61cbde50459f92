"""Events to the text a kernel prints for them.

Owns: the wording of each kernel (tracepoints of group kvmmmu). Values come in, text goes out; a
pointer that the model does not have is printed as the kernel prints one it hides.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvm_mmu.errors import TraceError

_ACCESS = ("---", "--x", "w--", "w-x", "-u-", "-ux", "wu-", "wux")
_PFERR = ((1, "P"), (2, "W"), (4, "U"), (8, "RSVD"), (16, "F"))
HIDDEN_POINTER = "(____ptrval____)"
_DIRECT, _PAE, _INVALID, _NXE, _AD_DISABLED = 1 << 7, 1 << 4, 1 << 11, 1 << 12, 1 << 16


@dataclass(frozen=True)
class Wording:
    """How one range of kernels prints its events.

    `gen` is the base of the valid generation in page texts (None: not printed); `gpte_bytes` says that the
    size of a guest entry is printed in place of ` pae`.
    """

    gen: str | None
    gpte_bytes: bool
    #: Role bit 4 is set for entries of 4 bytes (later kernels), not for those of 8.
    bit4_is_four: bool = False

    def page(self, gfn: int, role: int, root_count: int, unsync: bool, valid_gen: int) -> str:
        """The text that all page events share."""
        gen = "" if self.gen is None else f"gen {valid_gen:{self.gen}} "
        bit4 = bool(role & _PAE)
        size = f" {8 if bit4 != self.bit4_is_four else 4}-byte" if self.gpte_bytes else " pae" if bit4 else ""
        return (
            f"sp {gen}gfn {gfn:x} l{role & 0xF}{size} q{role >> 5 & 3}{' direct' if role & _DIRECT else ''} "
            f"{_ACCESS[role >> 8 & 7]}{' invalid' if role & _INVALID else ''} "
            f"{'' if role & _NXE else '!'}nxe {'!' if role & _AD_DISABLED else ''}ad root {root_count} "
            f"{'unsync' if unsync else 'sync'}"
        )

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

    @staticmethod
    def fast_page_fault(vcpu: int, addr: int, error_code: int, old: int, new: int, handled: bool) -> str:
        """fast_page_fault up to v5.7: spurious and fixed both follow from the W bits."""
        spurious, fixed = int(handled and bool(old & 2)), int(handled and bool(new & 2))
        return (
            f"vcpu {vcpu} gva {addr:x} error_code {error_text(error_code)} sptep {HIDDEN_POINTER} "
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


def error_text(error_code: int) -> str:
    """The flags of a page-fault error code, as the kernel prints the known ones."""
    return "|".join(name for bit, name in _PFERR if error_code & bit)


def error_flags(error_code: int, kernel: str) -> str:
    """The error code as v6.1 and v6.12 print it: flags, and what is left as one number; v6.1 knows its low 32
    bits only."""
    if kernel != "v6.12":
        error_code &= 0xFFFFFFFF
    rest = error_code & ~sum(bit for bit, _ in _PFERR)
    names = [name for bit, name in _PFERR if error_code & bit]
    return "|".join([*names, *([f"{rest:#x}"] if rest else [])])


_WORDINGS = {
    "v5.0": Wording(gen="x", gpte_bytes=False),
    "v5.2": Wording(gen=None, gpte_bytes=True),
    "v5.4": Wording(gen="d", gpte_bytes=True),
}
#: Later kernels print the one-bit generation as v5.4 does, and turned the role's bit 4 round.
_LATER = {
    "v6.1": Wording(gen="d", gpte_bytes=True, bit4_is_four=True),
    "v6.12": Wording(gen="d", gpte_bytes=True, bit4_is_four=True),
}
_ALIKE = {"v5.0-seed": "v5.0", "v5.1": "v5.2", "v5.3": "v5.2"}


def wording_of(kernel: str) -> Wording:
    """The wording of a kernel.

    Raises:
        TraceError: no wording is known for it.
    """
    found = _WORDINGS.get(_ALIKE.get(kernel, kernel))
    if found is None:
        raise TraceError(f"kernel {kernel!r}: replay knows the wording of {', '.join(_WORDINGS)}")
    return found


def page_wording(kernel: str) -> Wording:
    """How a kernel prints page events.

    Raises:
        TraceError: no wording is known for it.
    """
    later = _LATER.get(kernel)
    return wording_of(kernel) if later is None else later
