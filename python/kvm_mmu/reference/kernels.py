"""What differs between the kernels the reference speaks for, as plain facts.

Owns the table of kernels: v5.0, v5.0-seed (v5.0 with the dedicated MMIO zap of the seed patch) and v5.2.
Every other module asks a fact here by its name instead of comparing kernel names.
"""

from __future__ import annotations

from dataclasses import dataclass

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


_V5_0_PLANS = (
    ("wrap", "v5.0-fast"),
    ("slot_removal", "v5.0-fast"),
    ("teardown", "v5.0-fast"),
    ("flush_all", "v5.0-fast"),
)

KERNELS: dict[str, KernelRules] = {
    "v5.0": KernelRules(
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
    ),
    "v5.0-seed": KernelRules(
        name="v5.0-seed",
        has_refactored_mmio_gen=False,
        shows_valid_gen=True,
        shows_mmio_cached=True,
        has_zapped_obsolete_list=True,
        has_invalidate_event=True,
        reloads_obsolete_roots=False,
        direct_role_has_8_byte_gptes=False,
        clear_log_needs_whole_words=True,
        slot_walk_flushes_ranges=False,
        nr_mmu_pages_is_u32=True,
        plans=(("wrap", "seed"), *_V5_0_PLANS[1:]),
    ),
    "v5.2": KernelRules(
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
    ),
}


def kernel_rules(name: str) -> KernelRules:
    """The facts of a kernel; raises ScenarioError for a kernel the reference does not know."""
    rules = KERNELS.get(name)
    if rules is None:
        raise ScenarioError(f"unknown kernel {name!r}; expected one of {', '.join(KERNELS)}")
    return rules
