"""Words of one kernel on one host: SPTEs, MMIO SPTEs and page roles, made and explained bit by bit.

`Codec` fixes kernel, family and physical width; without them a word cannot be read, so none is guessed. Sources:
KERNEL.md 2 (MMIO SPTE), 3 (SPTE), 5 (role).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kvm_mmu import _core
from kvm_mmu.errors import UsageError
from kvm_mmu.machine.generation import GenerationPolicy
from kvm_mmu.machine.profiles import KernelProfile, kernel_profile

U64 = npt.NDArray[np.uint64]

ACCESS_WORDS = ("---", "--x", "-w-", "-wx", "u--", "u-x", "uw-", "uwx")
FAMILIES = ("npt", "ept_ad", "ept_noad", "shadow")
#: The codec vectors call the mask set of `ept_ad` so.
FAMILY_ALIASES = {"ept": "ept_ad"}


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


class MmioColumns(NamedTuple):
    """Decoded MMIO SPTEs, one row a value: `is_mmio`, `shadow_present` bool, `gfn`, `access`, `mmio_gen` uint64."""

    is_mmio: npt.NDArray[np.bool_]
    shadow_present: npt.NDArray[np.bool_]
    gfn: U64
    access: U64
    mmio_gen: U64


class OwnBits(NamedTuple):
    """Where a kernel keeps in an SPTE what is its own; bit numbers, None where there is no such bit.

    `host_writable` (and the bit above it) with the legacy masks and with EPT; the lowest bit of the kind field and its
    width; the shift of the R and X saved while tracked; what an empty entry reads as.
    """

    host_writable: int
    host_writable_ept: int
    mmu_present: int | None
    kind: int
    kind_width: int
    saved: int
    empty: int


_V5_0 = OwnBits(10, 10, None, 62, 1, 52, 0)
_V5_4 = _V5_0._replace(kind=52, kind_width=2, saved=54)
_V6_1 = _V5_4._replace(host_writable=9, host_writable_ept=57, mmu_present=11)
_OWN_BITS = {"v5.4": _V5_4, "v6.1": _V6_1, "v6.12": _V6_1._replace(empty=1 << 63)}
_KINDS = {
    0: "accessed/dirty bits are used",
    1: "accessed/dirty bits are not used here",
    2: "only write-protected for the log",
    3: "MMIO",
}


def word64(value: object, what: str = "value") -> int:
    """A 64-bit word from an int or a hex (or 0x.., decimal with `0d`) text.

    Raises:
        UsageError: not a number, negative or above 64 bits.
    """
    if isinstance(value, str):
        text = value.strip().lower()
        try:
            number = int(text[2:]) if text.startswith("0d") else int(text, 16)
        except ValueError:
            raise UsageError(f"{what} {value!r}: expected a hexadecimal word") from None
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    else:
        raise UsageError(f"{what} {value!r}: expected an integer")
    if not 0 <= number < 1 << 64:
        raise UsageError(f"{what} {value!r}: expected 0 to 2^64-1")
    return number


def _words(values: npt.ArrayLike, what: str) -> U64:
    array = np.asarray(values)
    if array.dtype.kind not in "ui" or array.ndim != 1:
        raise UsageError(
            f"{what}: dtype {array.dtype}, shape {array.shape}; expected one dimension of integers"
        )
    if array.dtype.kind == "i" and array.size and int(array.min()) < 0:
        raise UsageError(f"{what}: negative value {int(array.min())}")
    return np.ascontiguousarray(array, dtype=np.uint64)


class Codec:
    """SPTE words of one kernel on one host.

    Args:
        kernel: profile name. family: npt, ept_ad, ept_noad, or shadow (the masks of npt; v6.x). phys_bits: host
            physical width, 36 to 52. execonly: EPT supports execute-only.
        generation: another policy's layout than the kernel's. l1tf: MMIO SPTEs are made safe against L1TF (None: up to
            v5.4 always, later not). mmio_caching: MMIO SPTEs are made.
    """

    def __init__(
        self,
        kernel: str | KernelProfile,
        family: str = "ept_ad",
        phys_bits: int = 46,
        execonly: bool = True,
        generation: GenerationPolicy | None = None,
        l1tf: bool | None = None,
        mmio_caching: bool = True,
    ) -> None:
        self.profile = kernel_profile(kernel)
        self.family = FAMILY_ALIASES.get(family, family)
        if not isinstance(phys_bits, int) or not 36 <= phys_bits <= 52:
            raise UsageError(f"phys_bits={phys_bits!r}: expected 36 to 52")
        self.phys_bits = phys_bits
        policy = generation or self.profile.generation()
        self.layout = policy.layout
        self.own = _OWN_BITS.get(self.profile.name, _V5_0)
        self._core = _core.Codec(
            kernel=self.profile.name,
            family=self.family,
            phys_bits=phys_bits,
            execonly=execonly,
            generation=policy.layout,
            l1tf=l1tf,
            mmio_caching=mmio_caching,
        )
        self.masks: dict[str, int] = self._core.masks()

    def __repr__(self) -> str:
        return f"<Codec {self.profile.name} {self.family} {self.phys_bits} physical bits>"

    def make_mmio_spte(self, gfn: int, access: int, generation: int) -> int:
        """The MMIO SPTE of a gfn; `access` 0-7, `generation` the whole memslot generation (u64)."""
        return self._core.make_mmio_spte(
            word64(gfn, "gfn"), word64(access, "access"), word64(generation, "gen")
        )

    def make_mmio_sptes(self, gfns: npt.ArrayLike, access: npt.ArrayLike, generations: npt.ArrayLike) -> U64:
        """MMIO SPTEs of arrays of equal length (uint64 in, uint64 out)."""
        columns = (_words(gfns, "gfns"), _words(access, "access"), _words(generations, "generations"))
        if len({len(column) for column in columns}) != 1:
            raise UsageError(f"make_mmio_sptes: lengths {[len(c) for c in columns]}, expected equal ones")
        return self._core.make_mmio_sptes(*columns)

    def decode_mmio_sptes(self, sptes: npt.ArrayLike) -> MmioColumns:
        """What the decoders give back for an array of words."""
        return MmioColumns(*self._core.decode_mmio_sptes(_words(sptes, "sptes")))

    def decode_mmio(self, spte: int | str, generation: int | None = None) -> dict[str, Any]:
        """What the decoders give back for one word; with a generation also `kvm_gen` and `fresh`."""
        raw = word64(spte, "spte")
        is_mmio, present, gfn, access, mmio_gen = self._core.decode_mmio_spte(raw)
        found: dict[str, Any] = {
            "raw": hex(raw),
            "kernel": self.profile.name,
            "is_mmio": int(is_mmio),
            "shadow_present": int(present),
            "gfn": gfn,
            "access": access,
            "mmio_gen": mmio_gen,
        }
        if generation is not None:
            found["kvm_gen"] = self._core.kvm_gen(generation)
            found["fresh"] = int(self._core.is_fresh(raw, generation))
        return found

    def decode_spte(self, spte: int | str, generation: int | None = None) -> dict[str, Any]:
        """One SPTE: kind, fields and every bit in words (`bits`)."""
        raw = word64(spte, "spte")
        found = self.decode_mmio(raw, generation)
        if found["is_mmio"]:
            found["kind"] = "mmio"
            bits = self._mmio_bits(raw, found)
        elif raw == self.own.empty:
            found["kind"] = "empty"
            bits = [Bits(63, 63, "suppress-VE", 1, "an empty entry of this kernel")] if raw else []
        else:
            bits = self._spte_bits(raw, found)
        found["bits"] = [[b.high, b.low, b.name, b.value, b.meaning] for b in bits]
        return found

    def explain(self, spte: int | str, generation: int | None = None) -> str:
        """The same as text for a person."""
        found = self.decode_spte(spte, generation)
        host = f"{self.profile.name}, {self.family}, {self.phys_bits} physical bits"
        lines = [f"{found['raw']}  {found['kind']}  ({host})"]
        lines += [str(Bits(*group)) for group in found["bits"]]
        if "fresh" in found and found["kind"] == "mmio":
            verdict = "fresh: the access is emulated" if found["fresh"] else "stale: the fault is taken again"
            lines.append(f"  against generation {found['kvm_gen']:#x}: {verdict}")
        return "\n".join(lines)

    def _mmio_bits(self, raw: int, found: Mapping[str, Any]) -> list[Bits]:
        m = self.masks
        bits = []
        for field in self.layout.fields:
            value = raw >> field.spte_shift & ((1 << field.bits) - 1)
            bits.append(
                Bits(
                    field.spte_shift + field.bits - 1,
                    field.spte_shift,
                    "generation",
                    value,
                    f"generation bits {field.gen_shift} to {field.gen_shift + field.bits - 1}",
                )
            )
        moved = m["nonpresent_or_rsvd"]
        if moved:
            low, high = (moved & -moved).bit_length() - 1, moved.bit_length() - 1
            bits.append(Bits(high, low, "L1TF", raw >> low & 31, "set so that no cached memory is addressed"))
            bits.append(
                Bits(
                    high + 5,
                    low + 5,
                    "gfn, moved",
                    raw >> (low + 5) & 31,
                    f"address bits {low} to {high}, 5 higher",
                )
            )
        lower = m["lower_gfn"]
        bits.append(Bits(lower.bit_length() - 1, 12, "gfn", found["gfn"], f"guest frame {found['gfn']:#x}"))
        names = {62: "special", 51: "reserved", 0: "present"}
        for bit in range(63, -1, -1):
            if m["mmio_mask"] >> bit & 1 and not self._is_generation_bit(bit):
                name = names.get(bit, "rwx")
                bits.append(Bits(bit, bit, name, raw >> bit & 1, "part of the MMIO value"))
        if not m["mmio_mask"] & 6:
            access = found["access"]
            bits.append(Bits(2, 1, "access", access >> 1, f"{ACCESS_WORDS[access & 7]}, exec is not stored"))
        return sorted(bits, reverse=True)

    def _is_generation_bit(self, bit: int) -> bool:
        """v5.4 lets the kind of an MMIO SPTE and its generation overlap."""
        return any(field.spte_shift <= bit < field.spte_shift + field.bits for field in self.layout.fields)

    def _spte_bits(self, raw: int, found: dict[str, Any]) -> list[Bits]:
        m, own = self.masks, self.own
        ept = self.family in ("ept_ad", "ept_noad")
        has_ad = m["accessed"] != 0
        kind = raw >> own.kind & ((1 << own.kind_width) - 1)
        ad_disabled = kind == 1
        host = own.host_writable_ept if ept else own.host_writable
        tracked = bool(ad_disabled and m["acc_track"] and not raw & m["acc_track"])
        pfn = raw >> 12 & ((1 << 40) - 1)
        is_present = own.mmu_present is None or raw >> own.mmu_present & 1
        found["kind"] = "not present" if not is_present else "access-tracked" if tracked else "present"
        found["pfn"] = pfn
        rows: list[tuple[int, str, str, str]] = [
            (host + 1, "mmu-writable", "the MMU would allow writes", "the MMU forbids writes"),
            (host, "host-writable", "host memory is writable", "host memory is read-only"),
            (7, "large", "a leaf above level 1", "not a large leaf"),
            (1, "W", "writable", "not writable"),
        ]
        if own.mmu_present is not None:
            rows.append((own.mmu_present, "mmu-present", "made by the MMU", "not an entry of the MMU"))
        if ept:
            rows += [(2, "X", "executable", "not executable"), (0, "R", "readable", "not readable")]
            rows += [(6, "ignore-PAT", "guest PAT is ignored", "guest PAT counts")]
            if has_ad:
                rows += [(9, "D", "dirty", "clean"), (8, "A", "accessed", "not accessed")]
        else:
            rows += [
                (63, "NX", "not executable", "executable"),
                (6, "D", "dirty", "clean"),
                (5, "A", "accessed", "not accessed"),
                (2, "U", "user", "supervisor only"),
                (0, "P", "present", "not present"),
            ]
        bits = [
            Bits(bit, bit, name, raw >> bit & 1, yes if raw >> bit & 1 else no) for bit, name, yes, no in rows
        ]
        kind_name = "special" if own.kind_width == 1 else "kind"
        bits.append(Bits(own.kind + own.kind_width - 1, own.kind, kind_name, kind, _KINDS[kind]))
        bits.append(Bits(51, 12, "pfn", pfn, f"host frame {pfn:#x}, or the address of a lower table"))
        if ept:
            memory = {0: "uncached, or a link", 6: "write-back"}.get(raw >> 3 & 7, "memory type")
            bits.append(Bits(5, 3, "memory type", raw >> 3 & 7, memory))
        if tracked:
            saved = raw >> own.saved & 5
            bits.append(Bits(own.saved + 2, own.saved, "saved R, X", saved, "given back by the next access"))
        return sorted(bits, reverse=True)


#: Role word fields: (low bit, width, name). Bits 4, 12 and 18 depend on the kernel.
_ROLE_FIELDS = (
    (0, 4, "level"),
    (4, 1, "bit4"),
    (5, 2, "quadrant"),
    (7, 1, "direct"),
    (8, 3, "access"),
    (11, 1, "invalid"),
    (12, 1, "bit12"),
    (13, 1, "cr0_wp"),
    (14, 1, "smep_andnot_wp"),
    (15, 1, "smap_andnot_wp"),
    (16, 1, "ad_disabled"),
    (17, 1, "guest_mode"),
    (18, 1, "bit18"),
    (24, 8, "smm"),
)
_ROLE_V5_0 = {"bit4": "cr4_pae", "bit12": "nxe", "bit18": ""}
_ROLE_V5_1 = {**_ROLE_V5_0, "bit4": "gpte_is_8_bytes"}
_ROLE_V6_1 = {"bit4": "has_4_byte_gpte", "bit12": "efer_nx", "bit18": "passthrough"}
_ROLE_NAMES = {
    "v5.0": _ROLE_V5_0,
    "v5.0-seed": _ROLE_V5_0,
    "v5.2": _ROLE_V5_1,
    "v5.3": _ROLE_V5_1,
    "v5.4": _ROLE_V5_1,
    "v6.1": _ROLE_V6_1,
    "v6.12": _ROLE_V6_1,
}

_MEANING: dict[str, Callable[[int], str]] = {
    "level": lambda v: f"table level {v}",
    "cr4_pae": lambda v: (
        "guest entries have 8 bytes" if v else "guest entries have 4 bytes, or a direct page"
    ),
    "gpte_is_8_bytes": lambda v: "guest entries have 8 bytes" if v else "guest entries have 4 bytes",
    "has_4_byte_gpte": lambda v: (
        "guest entries have 4 bytes" if v else "guest entries have 8 bytes, or a direct page"
    ),
    "efer_nx": lambda v: "no-execute in use" if v else "no-execute not in use",
    "passthrough": lambda v: "of a guest level that is passed through" if v else "not passed through",
    "quadrant": lambda v: f"quarter {v} of a 32-bit guest table",
    "direct": lambda v: "maps guest frames directly" if v else "shadows a guest table",
    "access": lambda v: f"{ACCESS_WORDS[v]} allowed from above",
    "invalid": lambda v: "zapped while in use" if v else "valid",
    "nxe": lambda v: "EFER.NX on" if v else "EFER.NX off",
    "cr0_wp": lambda v: "CR0.WP on" if v else "CR0.WP off",
    "smep_andnot_wp": lambda v: "SMEP without WP" if v else "no SMEP without WP",
    "smap_andnot_wp": lambda v: "SMAP without WP" if v else "no SMAP without WP",
    "ad_disabled": lambda v: "no accessed/dirty bits" if v else "accessed/dirty bits in use",
    "guest_mode": lambda v: "for a nested guest" if v else "not for a nested guest",
    "smm": lambda v: "system management mode" if v else "normal mode",
}


def decode_role(role: int | str, kernel: str | KernelProfile) -> dict[str, Any]:
    """The page role word, field by field, and every bit in words (`bits`).

    Raises:
        UsageError: more than 32 bits, or a kernel whose layout is not known.
    """
    raw = word64(role, "role")
    if raw >> 32:
        raise UsageError(f"role {raw:#x}: expected 32 bits")
    profile = kernel_profile(kernel)
    found: dict[str, Any] = {"raw": hex(raw), "kernel": profile.name}
    bits = []
    known = 0
    for low, width, name in _ROLE_FIELDS:
        value = raw >> low & ((1 << width) - 1)
        called = _ROLE_NAMES[profile.name].get(name, name)
        if not called:
            continue
        known |= (1 << width) - 1 << low
        found[called] = value
        bits.append(Bits(low + width - 1, low, called, value, _MEANING[called](value)))
    if raw & ~known:
        low = 19 if known >> 18 & 1 else 18
        bits.append(Bits(23, low, "unused", raw >> low & ((1 << 24 - low) - 1), "no field of this kernel"))
    found["bits"] = [[b.high, b.low, b.name, b.value, b.meaning] for b in sorted(bits, reverse=True)]
    return found


def explain_role(role: int | str, kernel: str | KernelProfile) -> str:
    """The same as text for a person."""
    found = decode_role(role, kernel)
    lines = [f"{found['raw']}  page role  ({found['kernel']})"]
    return "\n".join(lines + [str(Bits(*group)) for group in found["bits"]])


def encode_mmio(
    gfn: int, access: int, generation: int, *, kernel: str, family: str = "ept_ad", phys_bits: int = 46
) -> int:
    """The MMIO SPTE of a gfn when the memslot generation is `generation`."""
    return Codec(kernel, family, phys_bits).make_mmio_spte(gfn, access, generation)


def decode_mmio(
    spte: int | str,
    *,
    kernel: str,
    family: str = "ept_ad",
    phys_bits: int = 46,
    generation: int | None = None,
) -> dict[str, Any]:
    """What the decoders give back for one word."""
    return Codec(kernel, family, phys_bits).decode_mmio(spte, generation)


def decode_spte(
    spte: int | str,
    *,
    kernel: str,
    family: str = "ept_ad",
    phys_bits: int = 46,
    generation: int | None = None,
) -> dict[str, Any]:
    """One SPTE with every bit in words."""
    return Codec(kernel, family, phys_bits).decode_spte(spte, generation)
