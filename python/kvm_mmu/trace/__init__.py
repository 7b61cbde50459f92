"""Real traces: reading them, stripping them, replaying them.

`replay` drives a model with a recording's inputs and predicts its outputs; `strip` makes the text in which
only the inputs are left. What drives it all is an `EngineFactory`, so the core and the reference replay
alike.
"""

from __future__ import annotations

from kvm_mmu.trace.engine import Engine, EngineFactory
from kvm_mmu.trace.host import HostFacts
from kvm_mmu.trace.narrator import Prediction
from kvm_mmu.trace.replaying import Divergence, Report, replay
from kvm_mmu.trace.source import iter_chunks, open_bytes, read_lines
from kvm_mmu.trace.stripping import Stripped, read_operations, strip

__all__ = [
    "Divergence",
    "Engine",
    "EngineFactory",
    "HostFacts",
    "Prediction",
    "Report",
    "Stripped",
    "iter_chunks",
    "open_bytes",
    "read_lines",
    "read_operations",
    "replay",
    "strip",
]
