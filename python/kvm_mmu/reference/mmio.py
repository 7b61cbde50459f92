"""The MMIO SPTE codec: gfn, access and a piece of the memslot generation in one non-mapping entry.

Pure functions over words. Models mark_mmio_spte, make_mmio_spte, get_mmio_spte_gfn, get_mmio_spte_access,
get_mmio_spte_generation and check_mmio_spte of v5.0 to v6.12 (v5.1 to v5.10 store the low generation bits
twice, a bug of those kernels that is kept).

      bits   v5.0                       v5.2, v5.3, v5.4
      1-2    access (write, user)       same, but under the MMIO mask with EPT
      3-11   generation bits 1-9        generation bits 0-8
      52-61  generation bits 10-19      generation bits 0-9 again (bits 9-18 were meant)

v6.1 and v6.12 have generation bits 0-7 in 3-10 and bits 8-18 in 52-62. In v5.4 the MMIO mask covers bits 52-53 of
the upper field; nothing is lost, because those generation bits are in the lower field too.
"""

from __future__ import annotations

from .constants import ACC_USER_MASK, ACC_WRITE_MASK, PAGE_SHIFT, PAGE_SIZE, U64
from .errors import ScenarioError
from .kernels import KernelRules, kernel_rules
from .masks import Masks, bits, make_masks

MMIO_GEN_FIELD = bits(3, 11) | bits(52, 61)
MMIO_GEN_FIELD_V6 = bits(3, 10) | bits(52, 62)
MMIO_ACCESS = ACC_WRITE_MASK | ACC_USER_MASK
KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS = 1 << 63  # v5.1+


def is_mmio_spte(masks: Masks, spte: int) -> bool:
    return masks.mmio_value != 0 and spte & masks.mmio_mask == masks.mmio_value


def mmio_gen_field(rules: KernelRules) -> int:
    """The bits of an MMIO SPTE that hold the generation."""
    return MMIO_GEN_FIELD_V6 if rules.is_v6 else MMIO_GEN_FIELD


def mmio_generation(rules: KernelRules, memslot_generation: int) -> int:
    """The kept part of a memslot generation: 20 bits in v5.0 (odd while an update runs), 19 in v5.2."""
    return memslot_generation & (bits(0, 18) if rules.has_refactored_mmio_gen else bits(0, 19))


def generation_mmio_spte_mask(rules: KernelRules, gen: int) -> int:
    """The generation field for a kept generation."""
    if rules.is_v6:
        return (gen & bits(0, 7)) << 3 | (gen >> 8) << 52
    if rules.has_refactored_mmio_gen:
        return (gen << 3) & bits(3, 11) | (gen << 52) & bits(52, 61)
    return (gen & 0x3FE) << 2 | (gen >> 10) << 52


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
    return spte & ~(mmio_gen_field(rules) | masks.mmio_mask) & (PAGE_SIZE - 1)


def get_mmio_spte_generation(rules: KernelRules, masks: Masks, spte: int) -> int:
    """What the kernel reads back; in v5.2 to v5.4 only the low ten bits survive."""
    spte &= ~masks.mmio_mask & U64
    if rules.is_v6:
        return (spte & bits(3, 10)) >> 3 | (spte & bits(52, 62)) >> 52 << 8
    if rules.has_refactored_mmio_gen:
        return (spte & bits(3, 11)) >> 3 | (spte & bits(52, 61)) >> 52
    return (spte >> 2) & 0x3FE | (spte >> 52) << 10


def is_fresh_mmio_spte(rules: KernelRules, masks: Masks, spte: int, memslot_generation: int) -> bool:
    """Whether the entry was marked in this generation; from v5.1 on never while an update is in progress."""
    if rules.has_refactored_mmio_gen and memslot_generation & KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS:
        return False
    return get_mmio_spte_generation(rules, masks, spte) == mmio_generation(rules, memslot_generation)


def codec(kernel: str, phys_bits: int, family: str) -> tuple[KernelRules, Masks]:
    """Rules and masks for the codec; `ept` means `ept_ad` and `seed` means `v5.0-seed`."""
    if not 36 <= phys_bits <= 52:
        raise ScenarioError(f"phys_bits is {phys_bits}; expected 36 to 52")
    rules = kernel_rules("v5.0-seed" if kernel == "seed" else kernel)
    l1tf = 0 if rules.is_v6 else 1
    return rules, make_masks(rules, "ept_ad" if family == "ept" else family, phys_bits, 1, l1tf=l1tf)


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
