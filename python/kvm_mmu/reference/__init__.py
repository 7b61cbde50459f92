"""The executable specification of the direct MMU of v5.0 to v5.4, v6.1 and v6.12, in pure Python.

Written from the specification texts for clarity, with the standard library only; shares no code and no constants
with the Rust core, nor with the memslot and generation policy of `kvm_mmu.machine`, so that a lockstep run compares two
independent readings. Free functions carry the kernel's full names.

Reading order: words (`constants kernels masks mmio spte role`), nouns (`pte_list state active_list slots
host_memory`), verbs (`flush lock rmap page zap slot_walk zap_plan zap_run reclaim roots hardware pin map map_v6
mmio_fault fault_v5 fault_v6 fault track dirty_log notifier memslots`), the language (`scenario operations dump
engine`).
"""

from __future__ import annotations

from .engine import Engine
from .errors import ScenarioError

__all__ = ["Engine", "ScenarioError"]
