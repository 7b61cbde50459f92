"""Testing by comparison: the generator of operations, the lockstep of two engines and its judge are three things.

For a test suite of one's own: `VmMachine`, a state machine of Hypothesis (which must be installed: the extra `test`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvm_mmu.testing.vm_machine import Unsound, VmMachine

__all__ = ["Unsound", "VmMachine"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from kvm_mmu.testing import vm_machine

        return getattr(vm_machine, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
