"""Every bit of an SPTE in words: which kernel keeps what where, and what it means.

Owns: the tables of bits, for both sets of masks (legacy and EPT) of every kernel whose layout is known. Invariant: each
bit that is set in a word is in one group; a bit that this kernel does not use is said to be one. Below it stand the
masks of the core, above it `words.Codec`.
Source: docs/kernel-facts.md, mmio.mask, mmio.gen and spte.bits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from kvm_mmu.errors import UsageError
from kvm_mmu.machine.generation import GenerationLayout
from kvm_mmu.machine.numbers import integer, shown
from kvm_mmu.machine.profiles import KernelProfile, kernel_profile, kernels

FAMILIES = ("npt", "ept_ad", "ept_noad", "shadow")
ACCESS_WORDS = ("---", "--x", "-w-", "-wx", "u--", "u-x", "uw-", "uwx")
_TEXT = re.compile(r"-?(?:0x)?[0-9a-f]+")
_TEXT_MAX = 80
_BITS = 64
#: Kernels without a profile of their own whose words are those of another (they differ in the width of the L1TF mask).
_WORDS_OF = {"v5.1": "v5.2", "5.1": "v5.2"}


class Bits(NamedTuple):
    """A group of bits of a word, explained: highest and lowest bit, name, value, meaning."""

    high: int
    low: int
    name: str
    value: int
    meaning: str

    def __str__(self) -> str:
        where = f"{self.high}" if self.high == self.low else f"{self.high}:{self.low}"
        return f"  {where:>6}  {self.name:<16} {self.value:#x}  {self.meaning}"


class OwnBits(NamedTuple):
    """Where a kernel keeps in an SPTE what is its own; bit numbers, None where there is no such bit.

    `host_writable` and `mmu_writable`; the lowest bit of the kind field and its width; the shift of the R and X saved
    while tracked; what an empty entry reads as.
    """

    host_writable: int
    mmu_writable: int
    mmu_present: int | None
    kind: int
    kind_width: int
    saved: int
    empty: int


_V5_0 = OwnBits(10, 11, None, 62, 1, 52, 0)
_V5_4 = _V5_0._replace(kind=52, kind_width=2, saved=54)
_V6_1 = _V5_4._replace(host_writable=9, mmu_writable=10, mmu_present=11)
_V6_1_EPT = _V6_1._replace(host_writable=57, mmu_writable=58)
_V6_12 = _V6_1._replace(empty=1 << 63)
_V6_12_EPT = _V6_1_EPT._replace(empty=1 << 63)
_V7_2_EPT = _V6_12_EPT._replace(host_writable=53, mmu_writable=55, kind=60, saved=52)
#: By the fact `spte_layout`: the bits with the legacy masks, and with EPT.
_OWN_BITS = {
    "v5.0": (_V5_0, _V5_0),
    "v5.4": (_V5_4, _V5_4),
    "v5.10": (_V5_4, _V5_4),
    "v6.1": (_V6_1, _V6_1_EPT),
    "v6.12": (_V6_12, _V6_12_EPT),
    "v7.2": (_V6_12, _V7_2_EPT),
}


def own_bits(profile: KernelProfile, is_ept: bool) -> OwnBits:
    """Where this kernel keeps in an SPTE what is its own."""
    return _OWN_BITS[str(profile.facts["spte_layout"])][is_ept]


_KINDS = {
    0: "accessed/dirty bits are used",
    1: "accessed/dirty bits are not used here",
    2: "only write-protected for the log",
    3: "MMIO",
}


def layout_kernel(name: str | KernelProfile) -> tuple[str, KernelProfile]:
    """The kernel's name, and the profile whose words are its words.

    Raises:
        UsageError: no layout is known for it.
    """
    if isinstance(name, str) and name in _WORDS_OF:
        return f"v{name.removeprefix('v')}", kernel_profile(_WORDS_OF[name])
    if isinstance(name, str) and name not in kernels:
        before = {theirs: other for other, theirs in _WORDS_OF.items() if other.startswith("v")}
        names = [one for row in kernels for one in (before.get(row), row) if one is not None]
        expected = f"expected one of {', '.join(names)}, or a release of their branches"
        raise UsageError(f"kernel {shown(name)}: {expected}")
    profile = kernel_profile(name)
    return profile.name, profile


def has_layout(name: str) -> bool:
    """Whether the words of a kernel are known."""
    return name in kernels or name in _WORDS_OF


def word64(value: object, what: str = "value") -> int:
    """A 64-bit word from an int or a hexadecimal text, with or without 0x.

    Raises:
        UsageError: not a number, negative or above 64 bits.
    """
    if isinstance(value, str):
        text = value.strip().lower()
        if len(text) > _TEXT_MAX or _TEXT.fullmatch(text) is None:
            raise UsageError(f"{what} {value[:_TEXT_MAX]!r}: expected a hexadecimal word")
        number = int(text, 16)
    else:
        number = integer(what, value, 0, (1 << _BITS) - 1)
    if not 0 <= number < 1 << _BITS:
        raise UsageError(f"{what} {shown(value)}: expected 0 to 2^64-1")
    return number


@dataclass(frozen=True)
class SpteBits:
    """The bits of the SPTEs of one kernel on one host."""

    own: OwnBits
    is_ept: bool
    phys_bits: int
    masks: Mapping[str, int]
    layout: GenerationLayout
    #: The bit of an address that says "encrypted" (AMD SME), where the host has one.
    c_bit: int | None = None

    @property
    def host_writable(self) -> int:
        """The bit that says that host memory is writable."""
        return 1 << self.own.host_writable

    def mmio(self, raw: int, found: Mapping[str, Any]) -> list[Bits]:
        """The bits of an MMIO SPTE; `found` is what the decoders gave back."""
        m = self.masks
        bits = []
        for field in self.layout.fields:
            last = field.gen_shift + field.bits - 1
            said = f"generation bits {field.gen_shift} to {last}"
            if lost := m["mmio_mask"] >> field.spte_shift & ((1 << field.bits) - 1):
                said += f"; {lost:#b} of it is the kind MMIO and not read back"
            bits.append(_group(raw, field.spte_shift, field.bits, "generation", said))
        moved = m["nonpresent_or_rsvd"]
        if moved:
            low, high = (moved & -moved).bit_length() - 1, moved.bit_length() - 1
            bits.append(_group(raw, low, 5, "L1TF", "set so that no cached memory is addressed"))
            bits.append(_group(raw, low + 5, 5, "gfn, moved", f"address bits {low} to {high}, 5 higher"))
        lower = m["lower_gfn"].bit_length()
        if m["mmio_mask"] >> 51 & 1:
            # On a host of 52 bits the mask covers an address bit; the kernel reads it back as one.
            lower = min(lower, 51)
        bits.append(_group(raw, 12, lower - 12, "gfn", f"guest frame {found['gfn']:#x}"))
        names = {62: "special", 51: "reserved", 0: "rwx" if self.is_ept else "present", 1: "rwx", 2: "rwx"}
        covered = _mask(bits)
        for bit in range(_BITS):
            if m["mmio_mask"] & ~covered & 1 << bit:
                bits.append(_group(raw, bit, 1, names.get(bit, "kind"), "part of the MMIO value"))
        if not m["mmio_mask"] & 6:
            access = found["access"] & 7
            bits.append(_group(raw, 1, 2, "access", f"{ACCESS_WORDS[access]}, exec is not stored"))
        return _whole(raw, bits, self._unused_mmio)

    def spte(self, raw: int, found: dict[str, Any]) -> list[Bits]:
        """The bits of any other SPTE; `kind` and `pfn` are added to `found`."""
        m, own = self.masks, self.own
        if raw == own.empty:
            found["kind"] = "empty"
            return [Bits(63, 63, "suppress-VE", 1, "an empty entry of this kernel")] if raw else []
        kind = raw >> own.kind & ((1 << own.kind_width) - 1)
        no_ad = kind == 1
        tracked = bool(no_ad and m["acc_track"] and not raw & m["acc_track"])
        is_present = own.mmu_present is None or bool(raw >> own.mmu_present & 1)
        encrypted = 0 if self.c_bit is None else 1 << self.c_bit
        pfn = (raw & ~encrypted) >> 12 & ((1 << 40) - 1)
        found["kind"] = "not present" if not is_present else "access-tracked" if tracked else "present"
        found["pfn"] = pfn
        bits = [
            _group(raw, bit, 1, name, yes if raw >> bit & 1 else no)
            for bit, name, yes, no in self._rows(no_ad)
        ]
        kind_name = "special" if own.kind_width == 1 else "kind"
        bits.append(_group(raw, own.kind, own.kind_width, kind_name, _KINDS[kind]))
        said = f"host frame {pfn:#x}, or the address of a lower table"
        if pfn >> self.phys_bits - 12:
            said += f"; above the {self.phys_bits} bits of this host"
        if encrypted:
            is_set = "encrypted" if raw & encrypted else "not encrypted"
            bits.append(_group(raw, self.c_bit or 0, 1, "C", f"host memory is {is_set}"))
        bits.append(_group(raw & ~encrypted, 12, 40, "pfn", said))
        if self.is_ept:
            memory = {0: "uncached, or a link", 1: "write-combining", 4: "write-through"}
            memory |= {5: "write-protected", 6: "write-back"}
            bits.append(_group(raw, 3, 3, "memory type", memory.get(raw >> 3 & 7, "not a memory type")))
        if tracked:
            names = [name for bit, name in ((0, "R"), (2, "X")) if raw >> own.saved + bit & 1]
            said = f"{' and '.join(names) or 'nothing'} given back by the next access"
            bits.append(_group(raw, own.saved, 3, "saved R, X", said))
        return _whole(raw, bits, lambda _: "not used by this kernel")

    def phrase(self, raw: int, found: dict[str, Any], level: int | None = None) -> str:
        """The SPTE in one line of words; `found` is what the decoders gave back, `level` None where it is not known."""
        if found["is_mmio"]:
            stored = [word for bit, word in ((2, "write"), (4, "user")) if found["access"] & bit]
            access = (
                "access not stored" if self.masks["mmio_mask"] & 6 else f"access {'+'.join(stored) or 'read'}"
            )
            return f"MMIO, gfn {found['gfn']:x}, {access}, generation {found['mmio_gen']:#x}"
        bits = {group.name: group.value for group in self.spte(raw, found)}
        if found["kind"] in ("empty", "not present"):
            return str(found["kind"])
        if level is not None and level > 1 and not bits["large"]:
            return self._link(bits, found["pfn"], level)
        said = [f"pfn {found['pfn']:x}"]
        if found["kind"] == "access-tracked":
            said.append("access-tracked")
        elif self.is_ept:
            said.append("readable" if bits["R"] else "not readable")
        said += [word for name, word in (("P", "not present to the CPU"),) if not bits.get(name, 1)]
        said += ["large"] if bits["large"] else []
        said += ["encrypted"] if bits.get("C") else []
        said.append("writable" if bits["W"] else "write-protected")
        if not self.is_ept:
            said.append("user" if bits["U"] else "supervisor")
        if self.masks["accessed"] and bits.get("kind", bits.get("special")) != 1:
            said += ["accessed" if bits["A"] else "not accessed", "dirty" if bits["D"] else "clean"]
        said.append("host-writable" if bits["host-writable"] else "host memory read-only")
        if bits["host-writable"] and bits["mmu-writable"]:
            said.append("can be made writable without the lock")
        is_executable = bits["X"] if self.is_ept else not bits["NX"]
        said.append("executable" if is_executable else "no execute")
        return ", ".join(said)

    def _link(self, bits: Mapping[str, int], frame: int, level: int) -> str:
        """An entry above level 1 that is no large leaf; host-writable and dirty mean nothing in it."""
        said = [f"link to the table of level {level - 1} in frame {frame:x}"]
        said.append("writable" if bits["W"] else "write-protected")
        if not self.is_ept:
            said.append("user" if bits["U"] else "supervisor")
        said.append("executable" if (bits["X"] if self.is_ept else not bits["NX"]) else "no execute")
        return ", ".join(said)

    def _rows(self, no_ad: bool) -> Iterable[tuple[int, str, str, str]]:
        """(bit, name, meaning when set, meaning when clear)"""
        own = self.own
        yield own.mmu_writable, "mmu-writable", "the MMU would allow writes", "the MMU forbids writes"
        yield own.host_writable, "host-writable", "host memory is writable", "host memory is read-only"
        yield 7, "large", "a leaf above level 1", "not a large leaf"
        yield 1, "W", "writable", "not writable"
        if own.mmu_present is not None:
            yield own.mmu_present, "mmu-present", "made by the MMU", "not an entry of the MMU"
        if self.is_ept:
            yield 2, "X", "executable", "not executable"
            yield 0, "R", "readable", "not readable"
            yield 6, "ignore-PAT", "guest PAT is ignored", "guest PAT counts"
            if own.empty:
                yield 63, "suppress-VE", "a violation is no #VE", "a violation may be a #VE"
            if self.masks["accessed"]:
                unused = "not used in this entry"
                yield 9, "D", unused if no_ad else "dirty", unused if no_ad else "clean"
                yield 8, "A", unused if no_ad else "accessed", unused if no_ad else "not accessed"
        else:
            yield 63, "NX", "not executable", "executable"
            yield 6, "D", "dirty", "clean"
            yield 5, "A", "accessed", "not accessed"
            yield 4, "PCD", "cache disabled", "cached"
            yield 3, "PWT", "write-through", "write-back"
            yield 2, "U", "user", "supervisor only"
            yield 0, "P", "present", "not present"

    def _unused_mmio(self, bit: int) -> str:
        if any(f.spte_shift + f.bits <= bit < f.spte_shift + f.read_bits for f in self.layout.fields):
            return "outside the field, yet this kernel reads it into the generation"
        return "no field of an MMIO SPTE here" + (
            f": an address bit above the {self.phys_bits} of this host is not read back"
            if 12 <= bit < 52
            else ""
        )


def _group(raw: int, low: int, width: int, name: str, meaning: str) -> Bits:
    return Bits(low + width - 1, low, name, raw >> low & ((1 << width) - 1), meaning)


def _mask(bits: Iterable[Bits]) -> int:
    covered = 0
    for group in bits:
        covered |= ((1 << group.high - group.low + 1) - 1) << group.low
    return covered


def _whole(raw: int, bits: list[Bits], unused: Any) -> list[Bits]:
    """The groups with one more for each bit that is set and in none, highest first."""
    rest = raw & ~_mask(bits)
    bits += [_group(raw, bit, 1, "unused", unused(bit)) for bit in range(_BITS) if rest >> bit & 1]
    return sorted(bits, reverse=True)
