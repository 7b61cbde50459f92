"""The executable specification of the MMU for guests that are not nested, v5.0 to v7.3, in pure Python: the direct MMU
of shadow pages, and the TDP MMU.

Written from the specification texts for clarity, with the standard library only; shares no code and no constants
with the Rust core, nor with the memslot and generation policy of `kvm_mmu.machine`, so that a lockstep run compares two
independent readings. Free functions carry the kernel's full names. What differs between kernels stands in `kernels`
alone, as facts under the names that the core's rows have.

Reading order: words (`constants kernels masks mmio spte role`), nouns (`pte_list state active_list slots
host_memory page_fault`), verbs (`events flush lock rmap page zap track slot_walk dirty_log notifier zap_memslot
zap_plan zap_run reclaim roots hardware pin map map_v6 tdp mmio_fault fault_v5 fault_v6 fault prefault memslots`), the
language (`scenario operations dump engine`).
"""

from __future__ import annotations

from .engine import Engine
from .errors import ScenarioError

__all__ = ["Engine", "ScenarioError"]
