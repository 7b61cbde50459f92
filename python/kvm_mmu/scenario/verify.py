"""Verifying result files: run their operations again and find the first difference, so that a person sees it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from kvm_mmu.errors import KvmMmuError, ScenarioError
from kvm_mmu.scenario.language import make_engine, read_scenario, run_scenario
from kvm_mmu.terminal import one_line

#: Keys of a result line that are compared; others of the file are ignored. One that the model has and the file lacks
#: is a difference: a file must not be equal because it says less. Only the state may be left out: the digest covers it.
COMPARED = ("bug", "ret", "out", "nested", "events", "ctr", "digest", "state")


@dataclass(frozen=True)
class Difference:
    """Where two results part: operation (-1: the header), path of keys, what the file says and what the model says."""

    index: int
    op: str
    path: str
    expected: str
    got: str

    def __str__(self) -> str:
        where = "header" if self.index < 0 else f"operation {self.index} ({self.op})"
        return f"{where} {self.path}: expected {self.expected}, got {self.got}"


@dataclass(frozen=True)
class Verdict:
    """The outcome for one file. `error` is set when it could not be run."""

    path: str
    steps: int
    kernel: str
    backend: str
    difference: Difference | None = None
    error: str | None = None

    @property
    def equal(self) -> bool:
        """Whether every step was equal."""
        return self.difference is None and self.error is None

    def __str__(self) -> str:
        if self.error is not None:
            return one_line(
                self.error if self.error.startswith(f"{self.path}:") else f"{self.path}: {self.error}"
            )
        if self.difference is not None:
            return one_line(f"{self.path}: differs after {self.steps} steps: {self.difference}")
        return one_line(f"{self.path}: equal, {self.steps} steps")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "equal": self.equal}


def plain(value: Any) -> Any:
    """Hex strings as numbers, so that `0x10` and 16 compare equal."""
    if isinstance(value, str) and value.startswith("0x"):
        try:
            return int(value, 16)
        except ValueError:
            return value
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def first_difference(want: Any, got: Any, path: str = "") -> tuple[str, str, str] | None:
    """The first place where two plain values part: (key path, expected, got); None when equal."""
    if want == got and type(want) is type(got):
        return None
    if isinstance(want, dict) and isinstance(got, dict):
        for key in sorted(set(want) | set(got)):
            here = f"{path}.{key}" if path else key
            if key not in want:
                return here, "nothing", _short(got[key])
            if key not in got:
                return here, _short(want[key]), "nothing"
            found = first_difference(want[key], got[key], here)
            if found:
                return found
        return None
    if isinstance(want, list) and isinstance(got, list):
        for i, (a, b) in enumerate(zip(want, got, strict=False)):
            found = first_difference(a, b, f"{path}[{i}]")
            if found:
                return found
        if len(want) != len(got):
            i = min(len(want), len(got))
            return (
                f"{path}[{i}]",
                _short(want[i]) if i < len(want) else "nothing",
                _short(got[i]) if i < len(got) else "nothing",
            )
        return None
    return None if want == got else (path, _short(want), _short(got))


def compare_line(want: dict[str, Any], got: dict[str, Any]) -> tuple[str, str, str] | None:
    """The first difference between a recorded result line and a computed one, over the keys that count."""
    if "bug" not in want and "digest" not in want and "events" not in want and "ret" not in want:
        return ("ret", "a recorded result", "an operation without one")
    a = {key: plain(want[key]) for key in COMPARED if key in want}
    b = {key: plain(got[key]) for key in COMPARED if key in got and (key in want or key != "state")}
    if "state" in a and "state" in b and want.get("digest") == got.get("digest"):
        del a["state"], b["state"]
    return first_difference(a, b)


def verify_file(path: str, kernel: str | None = None, backend: str = "core") -> Verdict:
    """Run one result file again; never raises for what is in the file."""
    steps = 0
    name = kernel or "?"
    try:
        scenario = read_scenario(path)
        name = kernel or scenario.kernel or "?"
        engine = make_engine(scenario, kernel, backend)
        results = run_scenario(scenario, kernel, backend, engine=engine)
        header = next(results)
        if scenario.masks is not None:
            found = first_difference(plain(scenario.masks), plain(header["masks"]), "masks")
            if found:
                return Verdict(path, steps, name, backend, Difference(-1, "header", *found))
        for i, want in enumerate(scenario.expected):
            got = next(results, {})
            found = compare_line(want, got)
            if found:
                return Verdict(path, steps, name, backend, Difference(i, scenario.ops[i]["op"], *found))
            steps += 1
        if not steps:
            raise ScenarioError(f"{path}: no operations, nothing to verify")
    except KvmMmuError as error:
        return Verdict(path, steps, name, backend, error=str(error))
    return Verdict(path, steps, name, backend)


def verify_files(
    paths: Iterable[str],
    kernel: str | None = None,
    backend: str = "core",
    jobs: int = 1,
    executor: Executor | None = None,
) -> Iterator[Verdict]:
    """Verify files, in order; over `executor`, or `jobs` processes when more than one.

    Raises:
        KvmMmuError: a worker process died; the message says on which file.
    """
    names = list(paths)
    if executor is None and (jobs <= 1 or len(names) <= 1):
        for path in names:
            yield verify_file(path, kernel, backend)
        return
    pool = executor or ProcessPoolExecutor(max_workers=min(jobs, len(names)))
    try:
        futures = [pool.submit(verify_file, path, kernel, backend) for path in names]
        for path, future in zip(names, futures, strict=True):
            try:
                yield future.result()
            except KvmMmuError:
                raise
            except Exception as error:
                raise KvmMmuError(
                    f"{path}: the worker process died ({error or type(error).__name__})"
                ) from error
    finally:
        if executor is None:
            pool.shutdown(cancel_futures=True)
