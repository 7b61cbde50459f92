"""What a replay needs of a model: operations of the scenario language in, results with events out.

Owns the seam only. The core behind the machine layer and the pure-Python reference both fit it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from kvm_mmu.errors import UsageError


class Engine(Protocol):
    """A VM that executes operations of the scenario language."""

    def apply(self, op: dict[str, object]) -> dict[str, object]:
        """Execute one operation: `ret`, `events`, ..."""


#: The models that a trace can drive; `auto` is the core, which models all that the reference does.
BACKENDS = ("auto", "core", "reference")
#: (kernel, configuration as in a scenario header) -> a fresh VM
EngineFactory = Callable[[str, Mapping[str, object]], Engine]


def engine_factory(backend: str) -> EngineFactory:
    """Returns the factory of a backend's VMs.

    Args:
        backend: `auto`, `core` or `reference`.

    Raises:
        UsageError: there is no such backend.
    """
    if backend not in BACKENDS:
        raise UsageError(f"backend {backend!r}: expected one of {', '.join(BACKENDS)}")

    def make(kernel: str, config: Mapping[str, object]) -> Engine:
        if backend == "reference":
            from kvm_mmu import reference

            return reference.Engine(kernel=kernel, config=dict(config))
        from kvm_mmu.scenario.machine_engine import MachineEngine

        return MachineEngine(kernel=kernel, config=dict(config))

    return make


def shadows_guest(config: Mapping[str, object]) -> bool:
    """Whether the page tables of such a VM's guest are shadowed."""
    return config.get("family") == "shadow" and bool(config.get("guest_paging", 1))
