"""The recordings that ship with the package, for the demo and for a first try.

Owns: their names and where they are. Each is a folder with `trace.txt.xz`, `host.json` and `ops.jsonl.xz`.
"""

from __future__ import annotations

from pathlib import Path

from kvm_mmu.errors import TraceError
from kvm_mmu.trace.text.source import iter_chunks

_FOLDER = Path(__file__).resolve().parents[2] / "data" / "recordings"
DEMO = "5.0.1-npt-mmio_gen"
#: The one to try the commands on.
SAMPLE = "6.1-npt-multi_vcpu"
#: What each is, in a line.
ABOUT = {
    DEMO: "v5.0, NPT: 261 memslot updates and MMIO accesses after each, over the wrap of the generation",
    SAMPLE: "v6.1, NPT: two vCPUs, memslots made and deleted, MMIO; recorded with the kit's probes",
}


def names() -> list[str]:
    """The recordings, by name."""
    return sorted(entry.name for entry in _FOLDER.iterdir() if entry.is_dir())


def sample(name: str = SAMPLE) -> dict[str, bytes]:
    """Returns the files of a recording as they are read and replayed, unpacked: `trace.txt`, `host.json`, `ops.jsonl`.

    Args:
        name: One of `names()`.

    Raises:
        TraceError: there is none of this name.
    """
    folder = trace_path(name).parent
    return {
        file.name.removesuffix(".xz"): b"".join(iter_chunks(file))
        for file in sorted(folder.iterdir())
        if file.is_file()
    }


def trace_path(name: str = DEMO) -> Path:
    """The trace of a recording.

    Raises:
        TraceError: there is none of this name.
    """
    path = _FOLDER / name / "trace.txt.xz"
    if name not in names() or not path.is_file():
        raise TraceError(f"recording {name!r}: the package has {', '.join(names())}")
    return path
