"""Words of one kernel on one host: SPTEs, MMIO SPTEs and page roles, made and explained bit by bit.

`Codec` fixes kernel, family and physical width; without them a word cannot be read, so none is guessed. Sources:
docs/kernel-facts.md, mmio.mask, mmio.l1tf, mmio.gen, spte.bits, page.role.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kvm_mmu import _core
from kvm_mmu.errors import UsageError
from kvm_mmu.machine import numbers
from kvm_mmu.machine.generation import GenerationPolicy
from kvm_mmu.machine.numbers import flag, integer, word
from kvm_mmu.machine.profiles import KernelProfile
from kvm_mmu.words.bits import FAMILIES, Bits, SpteBits, layout_kernel, own_bits, word64

U64 = npt.NDArray[np.uint64]

#: The codec vectors call the mask set of `ept_ad` so.
FAMILY_ALIASES = {"ept": "ept_ad"}
_PAGE_SHIFT = 12


class MmioColumns(NamedTuple):
    """Decoded MMIO SPTEs, one row a value: `is_mmio`, `shadow_present` bool, `gfn`, `access`, `mmio_gen` uint64."""

    is_mmio: npt.NDArray[np.bool_]
    shadow_present: npt.NDArray[np.bool_]
    gfn: U64
    access: U64
    mmio_gen: U64


def _words(values: npt.ArrayLike, what: str) -> U64:
    array = numbers.array(what, values)
    if array.ndim != 1 or array.dtype.kind == "b":
        raise UsageError(
            f"{what}: dtype {array.dtype}, shape {array.shape}; expected one dimension of integers"
        )
    return np.ascontiguousarray(numbers.unsigned(what, values))


class Codec:
    """SPTE words of one kernel on one host, made and explained.

    Args:
        kernel: profile name or profile.
        family: `npt`, `ept_ad`, `ept_noad`, or `shadow` (the masks of `npt`; v6.x).
        phys_bits: host physical address width, 36 to 52.
        execonly: EPT can map execute-only.
        generation: a policy with another layout than the kernel's.
        l1tf: MMIO SPTEs are made safe against L1TF; None: up to v5.4 always, later not.
        mmio_caching: MMIO SPTEs are made.
        c_bit: the address bit that says "encrypted" on an AMD host with SME, 32 to 51; None: there is none.

    Raises:
        UsageError: an unknown word or a value out of range.
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
        c_bit: int | None = None,
    ) -> None:
        self.kernel, self.profile = layout_kernel(kernel)
        known = (*FAMILIES, *FAMILY_ALIASES)
        self.family = FAMILY_ALIASES.get(word("family", family, known), family)
        self.phys_bits = phys_bits = integer("phys_bits", phys_bits, 36, 52)
        if generation is not None and not isinstance(generation, GenerationPolicy):
            raise UsageError(f"generation={generation!r}: expected a GenerationPolicy")
        if c_bit is not None:
            c_bit = integer("c_bit", c_bit, 32, 51)
            if self.family in ("ept_ad", "ept_noad"):
                raise UsageError(
                    f"c_bit={c_bit}: memory encryption by an address bit is AMD's, not of {self.family}"
                )
        policy = generation or self.profile.generation()
        self.layout = policy.layout
        self._core = _core.Codec(
            kernel=self.profile.name,
            family="npt"
            if self.family == "shadow"
            else self.family,  # the same masks, also where no VM shadows yet
            phys_bits=phys_bits,
            execonly=flag("execonly", execonly),
            generation=policy.layout,
            l1tf=None if l1tf is None else flag("l1tf", l1tf),
            mmio_caching=flag("mmio_caching", mmio_caching),
        )
        self.masks: dict[str, int] = self._core.masks()
        self._bits = SpteBits(
            own_bits(self.profile, self.family in ("ept_ad", "ept_noad")),
            self.family in ("ept_ad", "ept_noad"),
            phys_bits,
            self.masks,
            policy.layout,
            c_bit,
        )

    def __repr__(self) -> str:
        return f"<Codec {self.host}>"

    @property
    def has_l1tf_mask(self) -> bool:
        """True if MMIO SPTEs are made safe against L1TF (hosts of 47 bits and more never need it)."""
        return self.masks["nonpresent_or_rsvd"] != 0

    @property
    def host_writable(self) -> int:
        """The bit that says that host memory is writable."""
        return self._bits.host_writable

    @property
    def makes_mmio_sptes(self) -> bool:
        """False with `mmio_caching=False`, and for v6.x with the legacy masks on a host of 52 bits."""
        return self.masks["mmio_mask"] != 0

    @property
    def host(self) -> str:
        """The kernel and host in words, as every output names them."""
        l1tf = ", L1TF mask" if self.has_l1tf_mask else ""
        return f"{self.kernel}, {self.family}, {self.phys_bits} physical bits{l1tf}"

    def make_mmio_spte(self, gfn: int, access: int, generation: int) -> int:
        """Make the MMIO SPTE of a gfn.

        Args:
            gfn: guest frame number.
            access: 0 to 7 (1 execute, 2 write, 4 user).
            generation: the whole memslot generation, 64 bits.

        Returns:
            The word.

        Raises:
            UsageError: the gfn lies above the physical width of this host, or an access of more than three bits.
        """
        frame = self._gfn(word64(gfn, "gfn"))
        return self._core.make_mmio_spte(frame, word64(access, "access"), word64(generation, "gen"))

    def _gfn(self, gfn: int) -> int:
        """The gfn. One above the physical width would be taken apart by the fields above the address, and come back as
        another one: a mistake of the caller, not one of the kernel's own lossy encodings."""
        if gfn >> self.phys_bits - _PAGE_SHIFT:
            raise UsageError(
                f"gfn {gfn:#x}: expected 0 to {(1 << self.phys_bits - _PAGE_SHIFT) - 1:#x}, "
                f"the frames of {self.phys_bits} physical bits"
            )
        return gfn

    def make_mmio_sptes(self, gfns: npt.ArrayLike, access: npt.ArrayLike, generations: npt.ArrayLike) -> U64:
        """Make the MMIO SPTEs of arrays of equal length.

        Args:
            gfns: guest frame numbers.
            access: 0 to 7 each.
            generations: whole memslot generations.

        Returns:
            The words, uint64.

        Raises:
            UsageError: as `make_mmio_spte`, or arrays that do not fit together.
        """
        columns = (_words(gfns, "gfns"), _words(access, "access"), _words(generations, "generations"))
        if len({len(column) for column in columns}) != 1:
            raise UsageError(f"make_mmio_sptes: lengths {[len(c) for c in columns]}, expected equal ones")
        if columns[0].size:
            self._gfn(int(columns[0].max()))
        return self._core.make_mmio_sptes(*columns)

    def decode_mmio_sptes(self, sptes: npt.ArrayLike) -> MmioColumns:
        """Decode an array of words as MMIO SPTEs.

        Args:
            sptes: the words, one dimension of integers.

        Returns:
            What the decoders give back, a row for each.
        """
        return MmioColumns(*self._core.decode_mmio_sptes(_words(sptes, "sptes")))

    def decode_mmio(self, spte: int | str, generation: int | None = None) -> dict[str, Any]:
        """Decode one word as an MMIO SPTE.

        Args:
            spte: the word, a number or hexadecimal text.
            generation: a memslot generation to compare with.

        Returns:
            What the decoders give back; with a generation also `kvm_gen` and `fresh`.
        """
        raw = word64(spte, "spte")
        is_mmio, present, gfn, access, mmio_gen = self._core.decode_mmio_spte(raw)
        found: dict[str, Any] = {
            "raw": hex(raw),
            "kernel": self.kernel,
            "is_mmio": int(is_mmio),
            "shadow_present": int(present),
            "gfn": gfn,
            "access": access,
            "mmio_gen": mmio_gen,
        }
        if generation is not None:
            generation = integer("generation", generation)
            found["kvm_gen"] = self._core.kvm_gen(generation)
            found["fresh"] = int(self._core.is_fresh(raw, generation))
        return found

    def decode_spte(self, spte: int | str, generation: int | None = None) -> dict[str, Any]:
        """Take one SPTE apart.

        Args:
            spte: the word, a number or hexadecimal text.
            generation: a memslot generation to compare with.

        Returns:
            Its kind, its fields, and every bit in words under `bits`: `[high, low, name, value, meaning]`.
        """
        raw = word64(spte, "spte")
        found = self.decode_mmio(raw, generation)
        if found["is_mmio"]:
            found["kind"] = "mmio"
            bits = self._bits.mmio(raw, found)
        else:
            bits = self._bits.spte(raw, found)
        found["bits"] = [[b.high, b.low, b.name, b.value, b.meaning] for b in bits]
        return found

    def explain(self, spte: int | str, generation: int | None = None) -> str:
        """Explain one SPTE for a person.

        Args:
            spte: the word, a number or hexadecimal text.
            generation: a memslot generation to compare with.

        Returns:
            Text of several lines.
        """
        found = self.decode_spte(spte, generation)
        lines = [f"{found['raw']}  {found['kind']}  ({self.host})"]
        lines += [str(Bits(*group)) for group in found["bits"]]
        if found["is_mmio"]:
            lines.append(f"  read back: generation {found['mmio_gen']:#x}")
        if "fresh" in found and found["is_mmio"]:
            verdict = "fresh: the access is emulated" if found["fresh"] else "stale: the fault is taken again"
            lines.append(f"  against generation {found['kvm_gen']:#x}: {verdict}")
        return "\n".join(lines)

    def phrase(self, spte: int, level: int | None = None) -> str:
        """Say one SPTE in one line, for the middle of a longer text.

        Args:
            spte: the word.
            level: where the entry stands, if that is known: then a link to a table is told from a leaf.

        Returns:
            The line.
        """
        return self._bits.phrase(spte, self.decode_mmio(spte), level)


def encode_mmio(
    gfn: int, access: int, generation: int, *, kernel: str, family: str = "ept_ad", phys_bits: int = 46
) -> int:
    """Make the MMIO SPTE of a gfn.

    Args:
        gfn: guest frame number.
        access: 0 to 7 (1 execute, 2 write, 4 user).
        generation: the whole memslot generation, 64 bits.
        kernel: profile name.
        family: `npt`, `ept_ad`, `ept_noad` or `shadow`.
        phys_bits: host physical address width, 36 to 52.

    Returns:
        The word.
    """
    return Codec(kernel, family, phys_bits).make_mmio_spte(gfn, access, generation)


def decode_mmio(
    spte: int | str,
    *,
    kernel: str,
    family: str = "ept_ad",
    phys_bits: int = 46,
    generation: int | None = None,
) -> dict[str, Any]:
    """Decode one word as an MMIO SPTE.

    Args:
        spte: the word, a number or hexadecimal text.
        kernel: profile name.
        family: `npt`, `ept_ad`, `ept_noad` or `shadow`.
        phys_bits: host physical address width, 36 to 52.
        generation: a memslot generation to compare with.

    Returns:
        What the decoders give back; with a generation also `kvm_gen` and `fresh`.
    """
    return Codec(kernel, family, phys_bits).decode_mmio(spte, generation)


def decode_spte(
    spte: int | str,
    *,
    kernel: str,
    family: str = "ept_ad",
    phys_bits: int = 46,
    generation: int | None = None,
) -> dict[str, Any]:
    """Take one SPTE apart.

    Args:
        spte: the word, a number or hexadecimal text.
        kernel: profile name.
        family: `npt`, `ept_ad`, `ept_noad` or `shadow`.
        phys_bits: host physical address width, 36 to 52.
        generation: a memslot generation to compare with.

    Returns:
        Its kind, its fields, and every bit in words under `bits`: `[high, low, name, value, meaning]`.
    """
    return Codec(kernel, family, phys_bits).decode_spte(spte, generation)
