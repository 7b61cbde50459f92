"""The laboratory for KVM's x86 shadow MMU: shadow pages, memslot generations and zap plans in userspace.

    import kvm_mmu as km
    vm = km.Vm(kernel="v5.0", family="npt")

Names load on first use, so that `kvm_mmu.reference` works where the native module does not.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from kvm_mmu.types import GIB, KIB, MIB, PAGE_SIZE, TIB

if TYPE_CHECKING:
    from kvm_mmu.errors import (
        KvmMmuError,
        MemslotError,
        RunStateError,
        ScenarioError,
        SnapshotError,
        StaleNextError,
        TraceError,
        UsageError,
    )
    from kvm_mmu.lab.compare import compare
    from kvm_mmu.lab.curve import curve
    from kvm_mmu.lab.latency.run import latency
    from kvm_mmu.lab.ring import ring
    from kvm_mmu.lab.sweep.run import sweep
    from kvm_mmu.machine.generation import GenerationField, GenerationLayout, GenerationPolicy
    from kvm_mmu.machine.guest import Guest, GuestEntry
    from kvm_mmu.machine.memslots import Memslots
    from kvm_mmu.machine.profiles import Fact, KernelProfile, facts, kernels
    from kvm_mmu.machine.stepped_generation import SteppedGeneration
    from kvm_mmu.machine.vcpu import AccessResult, Vcpu
    from kvm_mmu.machine.vm import Vm
    from kvm_mmu.machine.zap_batch import Page
    from kvm_mmu.machine.zap_plan import ZapPlan, plans
    from kvm_mmu.machine.zap_run import ZapRun
    from kvm_mmu.scenario.language import Scenario, run_scenario
    from kvm_mmu.trace.analysis.chrome import chrome_trace
    from kvm_mmu.trace.analysis.explain import explained
    from kvm_mmu.trace.analysis.stalls import stalls
    from kvm_mmu.trace.analysis.summary import summarize
    from kvm_mmu.trace.replay.replaying import replay
    from kvm_mmu.trace.text.reader import Batch, Trace
    from kvm_mmu.trace.text.table import Table
    from kvm_mmu.words.codec import Codec, decode_mmio, decode_spte, encode_mmio
    from kvm_mmu.words.permissions import GuestPermissions, guest_permissions
    from kvm_mmu.words.roles import decode_role

logging.getLogger("kvm_mmu").addHandler(logging.NullHandler())

_HOMES = {
    "kvm_mmu.errors": (
        "KvmMmuError",
        "MemslotError",
        "RunStateError",
        "ScenarioError",
        "SnapshotError",
        "StaleNextError",
        "TraceError",
        "UsageError",
    ),
    "kvm_mmu.lab.compare": ("compare",),
    "kvm_mmu.lab.curve": ("curve",),
    "kvm_mmu.lab.latency.run": ("latency",),
    "kvm_mmu.lab.ring": ("ring",),
    "kvm_mmu.lab.sweep.run": ("sweep",),
    "kvm_mmu.scenario.language": ("Scenario", "run_scenario"),
    "kvm_mmu.machine.generation": ("GenerationField", "GenerationLayout", "GenerationPolicy"),
    "kvm_mmu.machine.stepped_generation": ("SteppedGeneration",),
    "kvm_mmu.machine.guest": ("Guest", "GuestEntry"),
    "kvm_mmu.machine.profiles": ("Fact", "KernelProfile", "facts", "kernels"),
    "kvm_mmu.machine.memslots": ("Memslots",),
    "kvm_mmu.words.permissions": ("GuestPermissions", "guest_permissions"),
    "kvm_mmu.words.roles": ("decode_role",),
    "kvm_mmu.machine.vcpu": ("AccessResult", "Vcpu"),
    "kvm_mmu.machine.vm": ("Vm",),
    "kvm_mmu.words.codec": ("Codec", "decode_mmio", "decode_spte", "encode_mmio"),
    "kvm_mmu.machine.zap_batch": ("Page",),
    "kvm_mmu.machine.zap_plan": ("ZapPlan", "plans"),
    "kvm_mmu.machine.zap_run": ("ZapRun",),
    "kvm_mmu.trace.analysis.chrome": ("chrome_trace",),
    "kvm_mmu.trace.analysis.explain": ("explained",),
    "kvm_mmu.trace.text.reader": ("Batch", "Trace"),
    "kvm_mmu.trace.replay.replaying": ("replay",),
    "kvm_mmu.trace.analysis.stalls": ("stalls",),
    "kvm_mmu.trace.analysis.summary": ("summarize",),
    "kvm_mmu.trace.text.table": ("Table",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "GIB",
    "KIB",
    "MIB",
    "PAGE_SIZE",
    "TIB",
    "AccessResult",
    "Batch",
    "Codec",
    "Fact",
    "GenerationField",
    "GenerationLayout",
    "GenerationPolicy",
    "Guest",
    "GuestEntry",
    "GuestPermissions",
    "KernelProfile",
    "KvmMmuError",
    "MemslotError",
    "Memslots",
    "Page",
    "RunStateError",
    "Scenario",
    "ScenarioError",
    "SnapshotError",
    "StaleNextError",
    "SteppedGeneration",
    "Table",
    "Trace",
    "TraceError",
    "UsageError",
    "Vcpu",
    "Vm",
    "ZapPlan",
    "ZapRun",
    "__version__",
    "chrome_trace",
    "compare",
    "curve",
    "decode_mmio",
    "decode_role",
    "decode_spte",
    "encode_mmio",
    "explained",
    "facts",
    "guest_permissions",
    "kernels",
    "latency",
    "plans",
    "replay",
    "ring",
    "run_scenario",
    "stalls",
    "summarize",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("kvm_mmu")
    if name in _HOME_OF:
        value = getattr(importlib.import_module(_HOME_OF[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'kvm_mmu' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
