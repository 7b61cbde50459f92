"""Real traces: reading them, stripping them, replaying them.

`Trace` reads one as columns, in batches of constant memory or everything at once; `summarize` counts what is
in it.
`replay` drives a model with a recording's inputs and predicts its outputs; `strip` makes the text in which
only the inputs are left. What drives it all is an `EngineFactory`, so the core and the reference replay
alike.
"""

from __future__ import annotations

import kvm_mmu.recorders  # noqa: F401  (puts our recorders on the list of the replay)
from kvm_mmu.trace.analysis.summary import TraceSummary, summarize
from kvm_mmu.trace.replay.engine import Engine, EngineFactory
from kvm_mmu.trace.replay.narrator import Prediction
from kvm_mmu.trace.replay.replaying import Divergence, Report, replay
from kvm_mmu.trace.replay.stripping import Stripped, read_operations, strip
from kvm_mmu.trace.text.host import HostFacts
from kvm_mmu.trace.text.reader import Batch, Trace
from kvm_mmu.trace.text.source import iter_chunks, open_bytes, read_lines
from kvm_mmu.trace.text.table import Table

__all__ = [
    "Batch",
    "Divergence",
    "Engine",
    "EngineFactory",
    "HostFacts",
    "Prediction",
    "Report",
    "Stripped",
    "Table",
    "Trace",
    "TraceSummary",
    "iter_chunks",
    "open_bytes",
    "read_lines",
    "read_operations",
    "replay",
    "strip",
    "summarize",
]
