"""The executable specification of the MMU for guests that are not nested, v5.0 to v7.3, in pure Python: the direct MMU
of shadow pages, the TDP MMU, and shadow paging.

Written from the specification texts for clarity, with the standard library only; shares no code and no constants
with the Rust core, nor with the memslot and generation policy of `kvm_mmu.machine`, so that a lockstep run compares two
independent readings. Free functions carry the kernel's full names. What differs between kernels stands in `kernels`
alone, as facts under the names that the core's rows have.

Chapters, each knowing those before it: `common` (words and nouns: `constants errors kernels masks mmio spte role`,
`pte_list state slots host_memory pin`, `events flush lock`, `page_table invalidation hardware mmio_fault`), `shadow`
(shadow pages) and `tdp` (the TDP MMU), `v5` and `v6` (the faults), `paging` (guests with tables of their own), `verbs`
(all that can happen to a VM); above them the language (`scenario operations dump engine`).
"""

from __future__ import annotations

from .common.errors import ScenarioError
from .engine import Engine

__all__ = ["Engine", "ScenarioError"]
