"""Which vector files are equal: reads and rewrites `equal.txt`, one line a file: `variant/file core reference`.

The list only grows: `python tests/vectors/equal_files.py` runs every vector file on both backends and adds what is
newly equal; a listed file that differs is an error and stays listed.
"""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from kvm_mmu.scenario.verify import verify_file

HERE = Path(__file__).resolve().parent
LIST = HERE / "equal.txt"
VECTORS = HERE.parent / "data" / "vectors"
VARIANTS = {"v5.0": "v5.0", "seed": "v5.0-seed", "v5.2": "v5.2", "v6.1": "v6.1", "v6.12": "v6.12"}
BACKENDS = ("core", "reference")
HEAD = "# Vector files that are equal, step by step, and on which backends. Kept by equal_files.py; it only grows.\n"


def vector_files() -> list[str]:
    """Every vector file of the five variants, as `variant/name`."""
    return sorted(f"{v}/{p.name}" for v in VARIANTS for p in (VECTORS / v).iterdir() if ".jsonl" in p.name)


def read_list() -> dict[str, set[str]]:
    """What is listed: file -> backends."""
    if not LIST.exists():
        return {}
    rows = (line.split() for line in LIST.read_text().splitlines() if line and not line.startswith("#"))
    return {name: set(backends) for name, *backends in rows}


def run(name: str, backend: str) -> str | None:
    """None when equal, else what differs."""
    verdict = verify_file(str(VECTORS / name), VARIANTS[name.split("/")[0]], backend)
    return None if verdict.equal else str(verdict)


def main() -> int:
    """Run everything, grow the list, say what differs."""
    listed = read_list()
    jobs = [(name, backend) for name in vector_files() for backend in BACKENDS]
    regressions = 0
    with ProcessPoolExecutor() as pool:
        for (name, backend), difference in zip(jobs, pool.map(run, *zip(*jobs, strict=True)), strict=True):
            if difference is None:
                listed.setdefault(name, set()).add(backend)
            else:
                regressions += backend in listed.get(name, set())
                print(f"{backend}: {difference}")
    rows = [" ".join([name, *sorted(backends)]) for name, backends in sorted(listed.items())]
    LIST.write_text(HEAD + "".join(row + "\n" for row in rows))
    for backend in BACKENDS:
        print(f"{sum(backend in b for b in listed.values())} of {len(vector_files())} files equal, {backend}")
    return 1 if regressions else 0


if __name__ == "__main__":
    sys.exit(main())
