"""Real traces: reading them, stripping them, replaying them.

`Trace` reads one as columns, in batches of constant memory or everything at once; `summarize` counts what is
in it. `kvm_mmu.replay` drives a model with a recording's inputs and predicts its outputs; `strip` makes the
text in which only the inputs are left. What drives it all is an `EngineFactory`, so the core and the
reference replay alike.

Names load on first use: a command that reads words does not wait for what replays.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvm_mmu.trace.analysis.summary import TraceSummary, summarize
    from kvm_mmu.trace.replay.engine import Engine, EngineFactory
    from kvm_mmu.trace.replay.narrator import Prediction
    from kvm_mmu.trace.replay.replaying import Divergence, Report
    from kvm_mmu.trace.replay.stripping import Stripped, read_operations, strip
    from kvm_mmu.trace.text.host import HostFacts
    from kvm_mmu.trace.text.reader import Batch, Trace
    from kvm_mmu.trace.text.source import iter_chunks, open_bytes, read_lines
    from kvm_mmu.trace.text.table import Table

#: Packages that put their recorders on the replay's list; loaded when a recorder is first asked for.
RECORDERS = ("kvm_mmu.recorders",)

_HOMES = {
    "kvm_mmu.trace.analysis.summary": ("TraceSummary", "summarize"),
    "kvm_mmu.trace.replay.engine": ("Engine", "EngineFactory"),
    "kvm_mmu.trace.replay.narrator": ("Prediction",),
    "kvm_mmu.trace.replay.replaying": ("Divergence", "Report"),
    "kvm_mmu.trace.replay.stripping": ("Stripped", "read_operations", "strip"),
    "kvm_mmu.trace.text.host": ("HostFacts",),
    "kvm_mmu.trace.text.reader": ("Batch", "Trace"),
    "kvm_mmu.trace.text.source": ("iter_chunks", "open_bytes", "read_lines"),
    "kvm_mmu.trace.text.table": ("Table",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

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
    "strip",
    "summarize",
]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(importlib.import_module(_HOME_OF[name]), name)
    raise AttributeError(f"module 'kvm_mmu.trace' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
