"""What differs between the kernels the reference speaks for, as plain facts.

Owns the table of kernels: v5.0, v5.0-seed (v5.0 with the dedicated MMIO zap of the seed patch), v5.2, and for direct
pages v5.3, v5.4, v6.1 and v6.12. Every other module asks a fact here by its name instead of comparing kernel names.

How they follow from one another: v5.2 dropped the fast invalidate of v5.0, v5.3 brought it back for memslot removal,
v5.4 for everything (one bit of generation, entries of a kind of their own in bits 52-53). v6.1 maps by another order
of steps (`fault_v6`, `map_v6`), v6.12 differs from it in the value of an empty entry and in what its tracepoint shows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .errors import ScenarioError


@dataclass(frozen=True, slots=True)
class KernelRules:
    """Facts about one kernel. `shows_*`: the structure has the field, so a dump shows it."""

    name: str
    has_refactored_mmio_gen: bool  # v5.1+: 19 bits, in-progress flag in bit 63
    shows_valid_gen: bool
    shows_mmio_cached: bool
    has_zapped_obsolete_list: bool
    has_invalidate_event: bool  # the tracepoint of the fast invalidate
    reloads_obsolete_roots: bool  # an in-use root that is zapped asks for a reload even when obsolete
    direct_role_has_8_byte_gptes: bool
    clear_log_needs_whole_words: bool
    slot_walk_flushes_ranges: bool
    nr_mmu_pages_is_u32: bool
    plans: tuple[tuple[str, str], ...]
    has_set_spte_event: bool = False  # v5.3+
    has_zap_all_fast_event: bool = False  # v5.4+
    obsolete_includes_invalid: bool = False  # v5.4+
    valid_gen_is_one_bit: bool = False  # v5.4+: 0 and 1 in turn
    batch_counts_unstable_only: bool = (
        False  # v5.4: zapped pages count for the batch only where the list changed
    )
    has_spte_kinds: bool = False  # v5.4+: bits 52-53 say what an entry is
    is_v6: bool = False  # SPTE layout, fault, limits, probes and roots as in v6.1
    empty_spte: int = 0
    fast_pf_shows_whole_error_code: bool = False


_V5_0_PLANS = (
    ("wrap", "v5.0-fast"),
    ("slot_removal", "v5.0-fast"),
    ("teardown", "v5.0-fast"),
    ("flush_all", "v5.0-fast"),
)

_V5_0 = KernelRules(
    name="v5.0",
    has_refactored_mmio_gen=False,
    shows_valid_gen=True,
    shows_mmio_cached=False,
    has_zapped_obsolete_list=True,
    has_invalidate_event=True,
    reloads_obsolete_roots=False,
    direct_role_has_8_byte_gptes=False,
    clear_log_needs_whole_words=True,
    slot_walk_flushes_ranges=False,
    nr_mmu_pages_is_u32=True,
    plans=_V5_0_PLANS,
)
_V5_0_SEED = replace(
    _V5_0, name="v5.0-seed", shows_mmio_cached=True, plans=(("wrap", "seed"), *_V5_0_PLANS[1:])
)
_V5_2 = KernelRules(
    name="v5.2",
    has_refactored_mmio_gen=True,
    shows_valid_gen=False,
    shows_mmio_cached=True,
    has_zapped_obsolete_list=False,
    has_invalidate_event=False,
    reloads_obsolete_roots=True,
    direct_role_has_8_byte_gptes=True,
    clear_log_needs_whole_words=False,
    slot_walk_flushes_ranges=True,
    nr_mmu_pages_is_u32=False,
    plans=(
        ("wrap", "merged"),
        ("slot_removal", "v5.2-slot"),
        ("teardown", "zap-all"),
        ("flush_all", "zap-all"),
    ),
)
_V5_3 = replace(
    _V5_2,
    name="v5.3",
    shows_valid_gen=True,
    has_set_spte_event=True,
    plans=(
        ("wrap", "merged"),
        ("slot_removal", "v5.3-fast"),
        ("teardown", "zap-all"),
        ("flush_all", "zap-all"),
    ),
)
_V5_4 = replace(
    _V5_3,
    name="v5.4",
    shows_mmio_cached=False,
    reloads_obsolete_roots=False,
    has_zap_all_fast_event=True,
    obsolete_includes_invalid=True,
    valid_gen_is_one_bit=True,
    batch_counts_unstable_only=True,
    has_spte_kinds=True,
    plans=(
        ("wrap", "v5.4-fast"),
        ("slot_removal", "v5.4-fast"),
        ("teardown", "zap-all"),
        ("flush_all", "zap-all"),
    ),
)
_V6_1 = replace(
    _V5_4, name="v6.1", direct_role_has_8_byte_gptes=False, batch_counts_unstable_only=False, is_v6=True
)
_V6_12 = replace(_V6_1, name="v6.12", empty_spte=1 << 63, fast_pf_shows_whole_error_code=True)

KERNELS: dict[str, KernelRules] = {
    rules.name: rules for rules in (_V5_0, _V5_0_SEED, _V5_2, _V5_3, _V5_4, _V6_1, _V6_12)
}


def kernel_rules(name: str) -> KernelRules:
    """The facts of a kernel; raises ScenarioError for a kernel the reference does not know."""
    rules = KERNELS.get(name)
    if rules is None:
        raise ScenarioError(f"unknown kernel {name!r}; expected one of {', '.join(KERNELS)}")
    return rules
