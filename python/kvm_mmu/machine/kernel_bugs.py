"""Bugs of the kernels that are part of the model, each by the fact that says which kernels have it.

Owns: the sentence for each bug, the rule that it is, what shows it and what switches it off. Which kernels have it is
read from the rows, so that a row with other facts moves the name by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kvm_mmu.machine.profiles import KernelProfile, kernels


@dataclass(frozen=True)
class KernelBug:
    """A bug of a kernel.

    Args:
        what: what goes wrong, in sentences.
        when: the facts of the kernels that have it, with their values; `generation` is the generation's policy. Empty:
            every kernel has it.
        rules: names of the rules in the documentation.
        shown_by: what shows it, as Markdown.
        switch: what a VM can be given instead, as Markdown.
    """

    what: str
    when: Mapping[str, bool | int | str]
    rules: tuple[str, ...]
    shown_by: str
    switch: str = "none"

    def concerns(self, kernel: KernelProfile) -> bool:
        """Say whether a kernel has it.

        Args:
            kernel: a row.

        Returns:
            True if it does.
        """
        return all(
            (kernel.generation.name if fact == "generation" else kernel.facts[fact]) == value
            for fact, value in self.when.items()
        )

    @property
    def kernels(self) -> list[str]:
        """The rows that have it, in their order."""
        return [name for name, kernel in kernels.items() if self.concerns(kernel)]


BUGS = (
    KernelBug(
        "A generation wrap in address space 0 is never detected: it starts at -150 and steps by 4, so the kept 20 bits"
        " step over zero. Address space 1 wraps at its 37th update. After 2^18 updates a stale MMIO SPTE of address"
        " space 0 is accepted as fresh",
        {"generation": "v5.0"},
        ("slots.gen.3", "slots.gen.6"),
        "`wrap_as0_offset2`, S3 of the thread",
        '`generation=GenerationV50(start="i*2")`',
    ),
    KernelBug(
        "The high half of the MMIO generation field stores bits 0 to 9 again: no generation of 1024 or more is ever"
        " accepted, each access that misses the vCPU's cache takes the slow path (mainline to v5.10; 5.10.251 has the"
        " fix)",
        {"generation": "v5.1"},
        ("mmio.gen.3",),
        "`mmio_codec`, `gen_boundary_live`",
        "`GenerationV51Fixed`",
    ),
    KernelBug(
        "The `largepages` statistic counts an MMIO SPTE whose generation has the bit that falls on the large-page bit,"
        " and never takes it back",
        {"is_level_requested": False},
        ("mmio.mask.5",),
        "counters of `mmio_*`",
    ),
    KernelBug(
        "The vCPU's MMIO cache follows the generation of address space 0, also in SMM, and not its own",
        {"mmio_cache_space": "zero"},
        ("mmio.cache.2",),
        "`smm_stale_vcpu_mmio_cache`, 6.1/npt1tdp0_smm",
    ),
    KernelBug(
        "`pte_list_add` returns 3 too few whenever it appends a descriptor",
        {"pte_list_ext": 3},
        ("rmap.list.2",),
        "unit tests",
    ),
    KernelBug(
        "Turning the dirty log off reads outside the slot's large-page counts where a table of 2 MiB entries begins"
        " before the slot. 6.18.15 crashed; here the operation ends with an error that says so",
        {"collapse": "by_table"},
        ("newer.v618.2",),
        "test_a_kernel_that_reads_outside_a_slot_says_so",
    ),
    KernelBug(
        "A fault without a memslot writes its MMIO SPTE over a present leaf, with no flush. The leaf's entry in the"
        " reverse map dangles: it names an SPTE that maps no page. Walks pass it over, and it goes with its table"
        " (assumed: what the kernel reads there nobody can say). The audit says `tlb_stale` and `rmap_leaf`."
        " CVE-2026-23401",
        {"mmio_over_leaf": "overwrite"},
        ("mmio.fault.7",),
        "`kvm-mmu scenario sample --fact mmio_over_leaf`, tests/differential/test_ranged_flush.py",
    ),
    KernelBug(
        "Where a guest's table changed behind the kernel's back, a fault keeps the linked table although it is of"
        " another gfn, or is the part of a large page. What is mapped there stands at the place of another gfn. The"
        " audit says `leaf_gfn`, the judge `child_expected`; that such a leaf is still found in its list is assumed."
        " CVE-2026-46113, CVE-2026-53359",
        {"child_reuse": "any"},
        ("shadow.child.1",),
        "`kvm-mmu scenario sample --fact child_reuse`, tests/differential/test_shadow_fixes.py",
    ),
    KernelBug(
        "With EPT masks the access stored in an MMIO SPTE decodes as 0",
        {},
        ("mmio.gen.1",),
        "`mmio_codec`",
    ),
    KernelBug(
        "With the legacy masks and 52 physical bits the decoded gfn has bit 39 set. Later kernels make no MMIO SPTE"
        " there",
        {"has_max_gfn": False},
        ("mmio.mask.2",),
        "`mmio_codec`",
    ),
    KernelBug(
        "Resize, shrink and reclaim stop at the first root in use. Later kernels pass over it",
        {"reclaim_skips_roots": False},
        ("reclaim.room.1", "reclaim.resize.1"),
        "`change_mmu_pages_root_first`, `shrink`",
    ),
    KernelBug(
        "A page limit below about 5 pages and one walk's depth never makes progress. Later kernels end with ENOSPC",
        {"enospc_to_user": False},
        ("reclaim.room.2",),
        "`max_pages_tiny`",
    ),
    KernelBug(
        "With a ranged flush hook, a large leaf where a table is wanted is flushed from the gfn of the table that holds"
        " it: another leaf of that table stays in the TLBs. The audit says `tlb_stale`. v6.1 flushes"
        " everything there, v6.12.0 and later the leaf's own range or everything",
        {"large_in_way": "dropped_range", "collapse_flush": "table"},
        ("flush.range.1",),
        "tests/differential/test_ranged_flush.py",
    ),
    KernelBug(
        "The same for a leaf that is collapsed when the dirty log ends, and for a reverse map that grew too long",
        {"collapse_flush": "table"},
        ("flush.range.2",),
        "`ranged_flush_misses_a_collapsed_leaf`, tests/differential/test_ranged_flush.py",
    ),
)


def markdown() -> str:
    """Write the table of the documentation.

    Returns:
        Markdown, a line a bug.
    """
    lines = ["| kernels | what | rule | shown by | switch |", "|---|---|---|---|---|"]
    for bug in BUGS:
        rules = ", ".join(f"`{rule}`" for rule in bug.rules)
        lines.append(f"| {_spans(bug.kernels)} | {bug.what} | {rules} | {bug.shown_by} | {bug.switch} |")
    return "\n".join(lines)


def _spans(have: list[str]) -> str:
    """Neighbours by the first and the last of them."""
    rows = list(kernels)
    if have == rows:
        return "all"
    spans: list[list[str]] = []
    for name in have:
        if spans and rows.index(name) == rows.index(spans[-1][-1]) + 1:
            spans[-1].append(name)
        else:
            spans.append([name])
    return ", ".join(" to ".join(dict.fromkeys((span[0], span[-1]))) for span in spans)
