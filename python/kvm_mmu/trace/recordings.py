"""The recordings that ship with the package, for the demo and for a first try.

Owns: their names and where they are. Each is a folder with `trace.txt.xz`, `host.json` and `ops.jsonl.xz`.
"""

from __future__ import annotations

from pathlib import Path

from kvm_mmu.errors import TraceError

_FOLDER = Path(__file__).resolve().parent.parent / "data" / "recordings"
DEMO = "5.0.1-npt-mmio_gen"


def names() -> list[str]:
    """The recordings, by name."""
    return sorted(entry.name for entry in _FOLDER.iterdir() if entry.is_dir())


def trace_path(name: str = DEMO) -> Path:
    """The trace of a recording.

    Raises:
        TraceError: there is none of this name.
    """
    path = _FOLDER / name / "trace.txt.xz"
    if name not in names() or not path.is_file():
        raise TraceError(f"recording {name!r}: the package has {', '.join(names())}")
    return path
