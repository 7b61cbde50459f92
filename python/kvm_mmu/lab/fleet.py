"""A fleet of recordings: stalls or summaries of thousands of files from many hosts, one row a host and kernel.

Each file is computed for itself, on any executor, and small numbers come back; the table is made of them in an order of
its own, so it has the same bytes whoever computed which file when. A file that cannot be read is a row with its error.
"""

from __future__ import annotations

import glob
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvm_mmu.errors import KvmMmuError, UsageError
from kvm_mmu.lab.fleet_columns import SORTS
from kvm_mmu.lab.sweep.executors import opened
from kvm_mmu.terminal import folded
from kvm_mmu.trace.analysis.operation_table import percentile
from kvm_mmu.trace.analysis.stalls import OTHER, stalls
from kvm_mmu.trace.analysis.summary import summarize
from kvm_mmu.view.tables import text_table

#: Files beside a recording that are none.
_BESIDE = (".json", ".jsonl", ".jsonl.xz", ".jsonl.gz", ".md", ".csv", ".html")
_MOST_FACTS = 1 << 20
#: What a host's row adds up of its files, for a summary.
_ADDED = ("lines", "not_understood", "pages_created", "pages_zapped", "memslot_updates", "mmio_stale_checks")


@dataclass(frozen=True)
class Found:
    """A file of the fleet.

    Attributes:
        path: where it is.
        name: what it is called in the table: its path below the folder that was given.
        host: whose it is: `hostname` of the host.json beside it, else the first folder of its name.
    """

    path: str
    name: str
    host: str


@dataclass
class Fleet:
    """What a fleet of recordings shows.

    Attributes:
        what: `stalls` or `summary`.
        rows: one a host and kernel, the worst first.
        broken: one a file that could not be read: `file`, `host`, `error`.
        files: how many there were.
    """

    what: str
    rows: list[dict[str, Any]]
    broken: list[dict[str, Any]]
    files: int

    def as_json(self) -> dict[str, Any]:
        """Turn it into plain data; the schema has a version."""
        return {
            "schema": f"kvm-mmu/trace-fleet-{self.what}/1",
            "files": self.files,
            "hosts": self.rows,
            "broken": self.broken,
        }

    def as_text(self) -> str:
        """Write a table of 80 columns, and the files that could not be read."""
        shown = _SHOWN[self.what]
        columns = {title: [_short(row[name], title) for row in self.rows] for title, name in shown.items()}
        lines = [f"{self.files:,} files, {len(self.broken):,} of them cannot be read"]
        if self.rows:
            lines.append(text_table(columns))
        lines += [folded(f"cannot be read: {row['file']}: {row['error']}") for row in self.broken]
        return "\n".join(lines)


_SHOWN = {
    "stalls": {
        "host": "host",
        "kernel": "kernel",
        "files": "files",
        "stalls": "stalls",
        "stalled us": "stalled_ns",
        "p99 us": "p99_ns",
        "longest us": "longest_ns",
        "cause": "longest_cause",
    },
    "summary": {
        "host": "host",
        "kernel": "kernel",
        "files": "files",
        "lines": "lines",
        "made": "pages_created",
        "zapped": "pages_zapped",
        "updates": "memslot_updates",
        "stale": "mmio_stale_checks",
    },
}


def _short(value: Any, title: str) -> Any:
    if title.endswith(" us") and value is not None:
        return round(value / 1000, 1)
    return value if not isinstance(value, str) or len(value) <= 16 else value[:13] + "..."


def find(where: str) -> list[Found]:
    """The recordings of a folder, with all folders below it, or of a pattern with `*`, `?` and `[...]`.

    Raises:
        UsageError: there is none.
    """
    root = Path(where)
    if root.is_dir():
        paths = [path for path in root.rglob("*") if path.is_file() and not _is_beside(path.name)]
    else:
        parts = Path(where).parts
        until = next((i for i, part in enumerate(parts[:-1]) if glob.has_magic(part)), len(parts) - 1)
        root = Path(*parts[:until])
        try:
            paths = [path for path in root.glob("/".join(parts[until:])) if path.is_file()]
        except (ValueError, IndexError, NotImplementedError) as error:
            raise UsageError(f"{where}: {error}") from error
    if not paths:
        raise UsageError(
            f"{where}: no recordings; expected a folder of them, or a pattern as 'hosts/*/*.txt.xz'"
        )
    found = []
    for path in sorted(set(paths), key=str):
        name = path.relative_to(root).as_posix()
        found.append(Found(str(path), name, _facts(path).get("hostname") or name.partition("/")[0]))
    return found


def _is_beside(name: str) -> bool:
    return name.startswith(".") or name.endswith(_BESIDE)


def _facts(path: Path) -> dict[str, str]:
    """The words that the host.json beside a recording says of its host."""
    try:
        with (path.parent / "host.json").open("rb") as stream:
            facts = json.loads(stream.read(_MOST_FACTS))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(facts, dict):
        return {}
    return {key: value for key, value in facts.items() if isinstance(value, str) and value}


def one_file(what: str, file: Found) -> dict[str, Any]:
    """What a row needs of one recording; a pure function of the file.

    Args:
        what: `stalls` or `summary`.
        file: which.

    Returns:
        `kernel` and the numbers; or `error`, in words.
    """
    try:
        facts = _facts(Path(file.path))
        kernel = facts.get("release") or facts.get("kernel")
        numbers = _stalled(file.path) if what == "stalls" else _summed(file.path)
        eras = numbers.pop("eras", "-")
        return {"kernel": kernel or eras, **numbers}
    except (KvmMmuError, OSError, MemoryError) as error:
        return {"error": str(error).replace(file.path, file.name) or type(error).__name__}


def _stalled(path: str) -> dict[str, Any]:
    found = stalls(path)
    if found.is_other_text:
        raise UsageError(f"{path}: no event in it: expected ftrace text")
    longest = max(found.stalls, key=lambda stall: (stall.duration_ns, -stall.start_ns), default=None)
    return {
        "durations": [stall.duration_ns for stall in found.stalls],
        "waited_ns": found.waited_ns,
        "other_ns": found.other_ns,
        "cause": OTHER if longest is None else longest.work.cause,
    }


def _summed(path: str) -> dict[str, Any]:
    found = summarize(path)
    if not found.events:
        raise UsageError(f"{path}: no event in it: expected ftrace text")
    return {
        "eras": ", ".join(found.eras) or "-",
        "lines": found.entries,
        "not_understood": found.not_understood,
        "pages_created": found.pages_created,
        "pages_zapped": found.pages_zapped,
        "memslot_updates": found.memslot_updates,
        "mmio_stale_checks": found.mmio_stale_checks,
    }


def fleet(
    what: str,
    where: str | Path,
    *,
    sort: str | None = None,
    executor: str | Executor | None = None,
    jobs: int | None = None,
    progress: Callable[[str], None] = lambda _text: None,
) -> Fleet:
    """Read a fleet of recordings, and make one row of each host and kernel.

    Args:
        what: `stalls` (which vCPUs waited for MMU work, nanoseconds of trace time) or `summary` (events and pages).
        where: a folder, with all folders below it, or a pattern; the workers must see the same files.
        sort: the column to order by, the largest first; one of `fleet_columns.SORTS`.
        executor: who computes: an executor, `processes`, `dask://HOST:PORT` or `module:object`.
        jobs: processes, where no executor is given.
        progress: told what has been done, at what rate, and the time that is left.

    Returns:
        The table, the same whoever computed it.

    Raises:
        UsageError: no such files, words or executor.
        KvmMmuError: the executor died.
    """
    if what not in SORTS:
        raise UsageError(f"fleet of {what!r}: expected one of {', '.join(SORTS)}")
    by = sort or SORTS[what][0]
    if by not in SORTS[what]:
        raise UsageError(f"sort {by!r}: expected one of {', '.join(SORTS[what])}")
    files = find(str(where))
    results: dict[int, dict[str, Any]] = {}
    begun = time.monotonic()
    with opened(executor, min(jobs, len(files)) if jobs else jobs) as pool:
        for number, result in _finished(pool, what, files):
            results[number] = result
            rate = len(results) / max(time.monotonic() - begun, 1e-9)
            left = (len(files) - len(results)) / rate
            progress(f"{len(results):,} of {len(files):,} files, {rate:.1f} a second, {left:,.0f} s left")
    broken: list[dict[str, Any]] = []
    hosts: dict[tuple[str, str], list[tuple[Found, dict[str, Any]]]] = {}
    for number, file in enumerate(files):
        result = results[number]
        if "error" in result:
            broken.append({"file": file.name, "host": file.host, "error": result["error"]})
            continue
        hosts.setdefault((file.host, result["kernel"]), []).append((file, result))
    make = _stalls_row if what == "stalls" else _summary_row
    rows = [make(host, kernel, mine) for (host, kernel), mine in sorted(hosts.items())]
    rows.sort(key=lambda row: -(row[by] or 0))
    return Fleet(what, rows, broken, len(files))


def _finished(pool: Executor, what: str, files: Sequence[Found]) -> Iterator[tuple[int, dict[str, Any]]]:
    futures: dict[Future[dict[str, Any]], int] = {}

    def result_of(future: Future[dict[str, Any]]) -> dict[str, Any]:
        try:
            return future.result()
        except BrokenExecutor as error:
            raise KvmMmuError(f"the executor died: {error or type(error).__name__}") from error
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}

    try:
        for number, file in enumerate(files):
            try:
                future = pool.submit(one_file, what, file)
            except (BrokenExecutor, RuntimeError) as error:
                raise KvmMmuError(f"the executor takes no more work: {error}") from error
            if future.done():  # a pool that computes at once
                yield number, result_of(future)
            else:
                futures[future] = number
        for future in as_completed(list(futures)):
            yield futures[future], result_of(future)
    finally:
        for future in futures:
            future.cancel()


def _stalls_row(host: str, kernel: str, files: Sequence[tuple[Found, dict[str, Any]]]) -> dict[str, Any]:
    lengths = sorted(length for _, one in files for length in one["durations"])
    worst_file, worst = max(files, key=lambda pair: (max(pair[1]["durations"], default=-1), pair[0].name))
    return {
        "host": host,
        "kernel": kernel,
        "files": len(files),
        "stalls": len(lengths),
        "stalled_ns": sum(lengths),
        "p50_ns": percentile(lengths, 50) if lengths else None,
        "p99_ns": percentile(lengths, 99) if lengths else None,
        "longest_ns": lengths[-1] if lengths else None,
        "longest_cause": worst["cause"] if lengths else None,
        "longest_file": worst_file.name if lengths else None,
        "waited_ns": sum(one["waited_ns"] for _, one in files),
        "other_ns": sum(one["other_ns"] for _, one in files),
    }


def _summary_row(host: str, kernel: str, files: Sequence[tuple[Found, dict[str, Any]]]) -> dict[str, Any]:
    added = {name: sum(one[name] for _, one in files) for name in _ADDED}
    return {"host": host, "kernel": kernel, "files": len(files), **added}
