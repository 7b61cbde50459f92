"""The MMIO SPTE codec: gfn, access and a piece of the memslot generation in one non-mapping entry.

Pure functions over words. Models mark_mmio_spte, make_mmio_spte, get_mmio_spte_gfn, get_mmio_spte_access,
get_mmio_spte_generation and check_mmio_spte of v5.0 to v7.3 (v5.1 to v5.4 store the low generation bits
twice, a bug of those kernels that is kept).

      layout   generation bits   lower field                upper field
      v5.0     20                1-9 in bits 3-11           10-19 in bits 52-61
      v5.1     19                0-8 in bits 3-11           0-9 again in bits 52-61 (9-18 were meant)
      v5.10    18                0-8 in bits 3-11           9-17 in bits 54-62
      v6.1     19                0-7 in bits 3-10           8-18 in bits 52-62
      v7.2     18                0-6 in bits 3-9            7-17 in bits 52-62

Bits 1 and 2 hold the access (write, user), under the MMIO mask with EPT. In v5.4 the MMIO mask covers bits 52-53 of
the upper field; nothing is lost, because those generation bits are in the lower field too.
"""

from __future__ import annotations

from dataclasses import dataclass

from .constants import ACC_USER_MASK, ACC_WRITE_MASK, PAGE_SHIFT, PAGE_SIZE, U64
from .errors import ScenarioError
from .kernels import KernelRules
from .kernels import kernel as kernel_rules
from .masks import Masks, bits, make_masks


@dataclass(frozen=True, slots=True)
class GenerationField:
    """Where an MMIO entry has the generation: so many bits from the first bits of two fields on."""

    kept_bits: int
    low_bits: int
    high_start: int
    high_bits: int
    low_drops: int = 0  # v5.0 does not keep bit 0, which says that an update is in progress
    is_low_twice: bool = False

    @property
    def mask(self) -> int:
        return bits(3, 2 + self.low_bits) | bits(self.high_start, self.high_start + self.high_bits - 1)


# By the fact `generation_layout`.
GENERATION_FIELDS: dict[str, GenerationField] = {
    "v5.0": GenerationField(20, 9, 52, 10, low_drops=1),
    "v5.1": GenerationField(19, 9, 52, 10, is_low_twice=True),
    "v5.10": GenerationField(18, 9, 54, 9),
    "v6.1": GenerationField(19, 8, 52, 11),
    "v7.2": GenerationField(18, 7, 52, 11),
}
MMIO_ACCESS = ACC_WRITE_MASK | ACC_USER_MASK
KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS = 1 << 63  # v5.1+


def is_mmio_spte(masks: Masks, spte: int) -> bool:
    return masks.mmio_value != 0 and spte & masks.mmio_mask == masks.mmio_value


def mmio_gen_field(rules: KernelRules) -> int:
    """The bits of an MMIO SPTE that hold the generation."""
    return GENERATION_FIELDS[rules.generation_layout].mask


def has_progress_flag(rules: KernelRules) -> bool:
    """Whether a flag of its own in a generation, not its bit 0, says that an update is in progress."""
    return GENERATION_FIELDS[rules.generation_layout].low_drops == 0


def mmio_generation(rules: KernelRules, memslot_generation: int) -> int:
    """The kept part of a memslot generation; in v5.0 it is odd while an update runs."""
    return memslot_generation & bits(0, GENERATION_FIELDS[rules.generation_layout].kept_bits - 1)


def generation_mmio_spte_mask(rules: KernelRules, gen: int) -> int:
    """The generation field for a kept generation."""
    layout = GENERATION_FIELDS[rules.generation_layout]
    gen >>= layout.low_drops
    low = (gen & bits(0, layout.low_bits - 1)) << 3
    high = gen if layout.is_low_twice else gen >> layout.low_bits
    return low | (high & bits(0, layout.high_bits - 1)) << layout.high_start


def encode_mmio_spte(rules: KernelRules, masks: Masks, gfn: int, access: int, gen: int) -> int:
    """The MMIO SPTE for a gfn, an access and the kept part of a generation."""
    gpa = gfn << PAGE_SHIFT
    spte = generation_mmio_spte_mask(rules, gen)
    spte |= masks.mmio_value | access & MMIO_ACCESS | gpa
    # The true address bits under the L1TF mask move up; the mask itself is all ones.
    spte |= masks.nonpresent_or_rsvd | (gpa & masks.nonpresent_or_rsvd) << 5
    return spte & U64


def get_mmio_spte_gfn(masks: Masks, spte: int) -> int:
    gpa = spte & masks.lower_gfn | (spte >> 5) & masks.nonpresent_or_rsvd
    return gpa >> PAGE_SHIFT


def get_mmio_spte_access(rules: KernelRules, masks: Masks, spte: int) -> int:
    """The access: what the other fields leave of the low bits, which of an MMIO SPTE are those of the access mask."""
    return spte & ~(mmio_gen_field(rules) | masks.mmio_mask) & (PAGE_SIZE - 1)


def get_mmio_spte_generation(rules: KernelRules, masks: Masks, spte: int) -> int:
    """What the kernel reads back; in v5.2 to v5.4 only the low ten bits survive."""
    layout = GENERATION_FIELDS[rules.generation_layout]
    spte &= ~masks.mmio_mask & U64
    low = spte >> 3 & bits(0, layout.low_bits - 1)
    high = spte >> layout.high_start
    if layout.low_drops == 0:  # v5.0 takes the top bits of the word along
        high &= bits(0, layout.high_bits - 1)
    return (low | (high if layout.is_low_twice else high << layout.low_bits)) << layout.low_drops


def is_fresh_mmio_spte(rules: KernelRules, masks: Masks, spte: int, memslot_generation: int) -> bool:
    """Whether the entry was marked in this generation; from v5.1 on never while an update is in progress."""
    if has_progress_flag(rules) and memslot_generation & KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS:
        return False
    return get_mmio_spte_generation(rules, masks, spte) == mmio_generation(rules, memslot_generation)


def codec(kernel: str, phys_bits: int, family: str) -> tuple[KernelRules, Masks]:
    """Rules and masks for the codec; `ept` means `ept_ad` and `seed` means `v5.0-seed`."""
    if not 36 <= phys_bits <= 52:
        raise ScenarioError(f"phys_bits is {phys_bits}; expected 36 to 52")
    rules = kernel_rules("v5.0-seed" if kernel == "seed" else kernel)
    return rules, make_masks(
        rules, "ept_ad" if family == "ept" else family, phys_bits, 1, l1tf=int(rules.l1tf)
    )


def make_mmio_spte(kernel: str, phys_bits: int, family: str, gfn: int, access: int, gen: int) -> int:
    """The MMIO SPTE that the kernel stores for gfn and access when the memslot generation is `gen`."""
    rules, masks = codec(kernel, phys_bits, family)
    return encode_mmio_spte(rules, masks, gfn, access, mmio_generation(rules, gen))


def decode_mmio_spte(kernel: str, phys_bits: int, family: str, spte: int) -> dict[str, int]:
    """What the kernel's readers give back for any 64-bit word."""
    rules, masks = codec(kernel, phys_bits, family)
    is_mmio = is_mmio_spte(masks, spte)
    return {
        "is_mmio": int(is_mmio),
        "shadow_present": int(
            spte & masks.mmu_present != 0 if masks.mmu_present else spte != 0 and not is_mmio
        ),
        "gfn": get_mmio_spte_gfn(masks, spte),
        "access": get_mmio_spte_access(rules, masks, spte),
        "mmio_gen": get_mmio_spte_generation(rules, masks, spte),
    }


def check_mmio_spte_word(kernel: str, phys_bits: int, family: str, spte: int, gen: int) -> bool:
    """Whether the kernel would accept the entry when the memslot generation is `gen`."""
    rules, masks = codec(kernel, phys_bits, family)
    return is_fresh_mmio_spte(rules, masks, spte, gen)
