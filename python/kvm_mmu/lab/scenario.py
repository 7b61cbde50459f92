"""The scenario language: reading scenario files, running their operations on an engine, writing the results.

A file is a header line and one operation a line (docs/reference/scenario.md). Other keys of an operation line are
ignored, so a result file is a scenario too. Engines: `machine_engine.MachineEngine` (core) and
`kvm_mmu.reference.Engine`.
"""

from __future__ import annotations

import gzip
import io
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

from kvm_mmu.errors import KvmMmuError, ScenarioError, UsageError
from kvm_mmu.lab.operation_table import FORMATS, STEPPED
from kvm_mmu.machine import json_object
from kvm_mmu.machine.numbers import shown
from kvm_mmu.machine.profiles import kernel_profile
from kvm_mmu.machine.vm import DEFAULTS, OPTIONAL, STEPPED_DEFAULTS
from kvm_mmu.terminal import one_line

SPARSE_EVERY = 100
#: The scenario that ships with the package.
SAMPLE = Path(__file__).resolve().parent.parent / "data" / "scenarios" / "sample.jsonl"
#: Configuration keys that are 0 or 1.
FLAGS = (
    "execonly",
    "pml",
    "flush_range",
    "l1tf",
    "nx_huge_pages",
    "mmio_caching",
    "guest_paging",
    "tdp_mmu",
    "nx_huge",
    "eager_split",
    "slot_zap_all",
)
#: Variant names of the vector files and the kernels they mean.
VARIANTS = {"seed": "v5.0-seed"}
#: What a byte that is not UTF-8 is read as.
_HALF = re.compile("[\ud800-\udfff]")


class Engine(Protocol):
    """A model that operations can be applied to."""

    def apply(self, op: dict[str, Any]) -> dict[str, Any]:
        """Run one operation: `ret`, `out`?, `nested`?, `events`, `ctr`."""

    def state(self) -> dict[str, Any]:
        """The whole state (docs/reference/state.md)."""

    def digest(self) -> str:
        """First 16 hex digits of SHA-256 over the canonical JSON of the state."""

    def masks(self) -> dict[str, Any]:
        """The SPTE masks of the header."""


@dataclass
class Scenario:
    """A header and its operations.

    Attributes:
        name: what the header calls it.
        kernel: the kernel it names; None: any.
        format: the scenario format, which decides what operations there are.
        config: the header's configuration.
        plans: the plans that it gives events.
        masks: SPTE masks that a result file's header names.
        dump: `all` or `sparse`.
        ops: the operations.
        expected: the result lines of a result file.
        lines: the file's line of each operation, from 1.
        path: the file.
        header_line: the line of the header.
        recorded_on: of a recording, its kernel.
        returns: of a recording, what each memslot update returned there.
        notes: of a recording, what was chosen or assumed.
        changes: of a recording, what was changed for another kernel.
    """

    name: str = "unnamed"
    kernel: str | None = None
    format: int = FORMATS[0]
    config: dict[str, Any] = field(default_factory=dict)
    plans: dict[str, Any] = field(default_factory=dict)
    masks: dict[str, Any] | None = None
    dump: str = "all"
    ops: list[dict[str, Any]] = field(default_factory=list)
    expected: list[dict[str, Any]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    path: str = "-"
    header_line: int | None = None
    recorded_on: str | None = None
    returns: list[int | None] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        return one_line(f"<Scenario {self.name} {self.kernel or 'any kernel'}, {len(self.ops)} operations>")

    def __len__(self) -> int:
        return len(self.ops)

    @property
    def is_recorded(self) -> bool:
        """True if these operations were made of a recording, not written as a scenario."""
        return self.recorded_on is not None

    def where(self, i: int) -> str:
        """Say where an operation stands.

        Args:
            i: its number, from 0.

        Returns:
            File and line, or file and number where there is no line.
        """
        return f"{self.path}:{self.lines[i]}" if self.lines else f"{self.path}: operation {i}"


def open_text(path: str | Path) -> TextIO:
    """A text stream of a file, `.gz` or `.xz` unpacked, `-` for stdin.

    Raises:
        ScenarioError: the file cannot be opened.
    """
    name = str(path)
    if not name:
        raise ScenarioError("input '': expected the name of a file, or - for stdin")
    if name == "-":
        return _open_stdin()
    try:
        if name.endswith(".xz"):
            return lzma.open(name, "rt", encoding="utf-8", errors="surrogateescape")
        if name.endswith(".gz"):
            return gzip.open(name, "rt", encoding="utf-8", errors="surrogateescape")
        return Path(name).open(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise ScenarioError(f"{name}: {error.strerror or error}") from error


def _open_stdin() -> TextIO:
    raw = sys.stdin.buffer
    start = raw.peek(6)[:6] if isinstance(raw, io.BufferedReader) else b""
    if start.startswith(b"\xfd7zXZ\0"):
        return io.TextIOWrapper(lzma.open(raw), encoding="utf-8", errors="surrogateescape")
    if start.startswith(b"\x1f\x8b"):
        return io.TextIOWrapper(gzip.GzipFile(fileobj=raw), encoding="utf-8", errors="surrogateescape")
    return io.TextIOWrapper(raw, encoding="utf-8", errors="surrogateescape")


def numbered_lines(stream: Iterable[str], name: str) -> Iterator[tuple[int, str]]:
    """Lines with their 1-based numbers; a damaged archive becomes an error that names file and line."""
    number = 0
    iterator = iter(stream)
    while True:
        try:
            line = next(iterator)
        except StopIteration:
            return
        except EOFError as error:
            raise ScenarioError(f"{name}:{number + 1}: the compressed file ends in the middle") from error
        except (lzma.LZMAError, zlib.error, OSError) as error:
            raise ScenarioError(f"{name}:{number + 1}: cannot be read or unpacked ({error})") from error
        number += 1
        yield number, line


def _json(line: str, where: str) -> dict[str, Any]:
    try:
        value = json_object.loads(line)
    except json_object.RepeatedKeyError as error:
        raise ScenarioError(f"{where}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ScenarioError(f"{where}: not a JSON object ({error})") from error
    if not isinstance(value, dict):
        raise ScenarioError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def read_scenario(path: str | Path | Iterable[str], name: str | None = None) -> Scenario:
    """Read a scenario or result file (`-`: stdin; `.gz`, `.xz`), or an iterable of lines.

    Raises:
        ScenarioError: with file, line and what was expected.
    """
    if isinstance(path, str | Path):
        label = "<stdin>" if str(path) == "-" else str(path)
        with open_text(path) as stream:
            return _read(numbered_lines(stream, label), label)
    return _read(numbered_lines(path, name or "<lines>"), name or "<lines>")


def _read(lines: Iterator[tuple[int, str]], label: str) -> Scenario:
    scenario = Scenario(path=label)
    first = True
    for number, line in lines:
        if not line.strip():
            continue
        where = f"{label}:{number}"
        if not line.isascii() and _HALF.search(line):
            raise ScenarioError(f"{where}: not UTF-8: expected a JSON object in that encoding")
        value = _json(line, where)
        if first and "op" not in value:
            _header(scenario, value, where)
            scenario.header_line = number
        else:
            op = value.get("op")
            if not isinstance(op, dict) or not isinstance(op.get("op"), str):
                raise ScenarioError(f'{where}: expected an operation {{"op":{{"op":NAME,...}}}}')
            scenario.ops.append(op)
            scenario.expected.append(value)
            scenario.lines.append(number)
        first = False
    return scenario


def _header(scenario: Scenario, value: Mapping[str, Any], where: str) -> None:
    scenario.format = value.get("format", FORMATS[0])
    if not isinstance(scenario.format, int) or scenario.format not in FORMATS:
        known = " or ".join(map(str, FORMATS))
        raise ScenarioError(f"{where}: format {shown(scenario.format)}, expected {known}")
    scenario.name = str(value.get("scenario", "unnamed"))
    variant = value.get("variant")
    if variant is not None:
        scenario.kernel = VARIANTS.get(str(variant), str(variant))
    config = value.get("config", {})
    if not isinstance(config, dict):
        raise ScenarioError(f"{where}: config is not an object")
    known_keys = STEPPED_DEFAULTS if scenario.format in STEPPED else {**DEFAULTS, **OPTIONAL}
    for key, number in config.items():
        if key not in known_keys:
            raise ScenarioError(f"{where}: config key {key!r}, expected one of {', '.join(known_keys)}")
        if key == "family":
            continue
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise ScenarioError(f"{where}: config {key}={number!r}, expected a non-negative integer")
        if key in FLAGS and number > 1:
            raise ScenarioError(f"{where}: config {key}={number!r}, expected 0 or 1")
    scenario.config = dict(config)
    masks = value.get("masks")
    if masks is not None and not isinstance(masks, dict):
        raise ScenarioError(f"{where}: masks is not an object")
    scenario.masks = masks
    plans = value.get("plans", {})
    if not isinstance(plans, dict):
        raise ScenarioError(f"{where}: plans is not an object")
    scenario.plans = plans
    dump = value.get("dump", "all")
    if dump not in ("all", "sparse"):
        raise ScenarioError(f"{where}: dump {dump!r}, expected all or sparse")
    scenario.dump = dump


def config_defaults(format_: int) -> dict[str, Any]:
    """The configuration of a header that says nothing.

    Args:
        format_: The scenario format.

    Returns:
        Every key with its default.
    """
    return dict(STEPPED_DEFAULTS if format_ in STEPPED else DEFAULTS)


def make_engine(scenario: Scenario, kernel: str | None = None, backend: str = "core") -> Engine:
    """A fresh engine for a scenario: `core` (machine + Rust) or `reference` (pure Python).

    Raises:
        UsageError: no kernel given and none in the header, or an unknown backend, kernel or configuration.
    """
    chosen = kernel or scenario.kernel
    if chosen is None:
        raise UsageError(f"{scenario.path}: no kernel: give --kernel, or a header with a variant")
    name = kernel_profile(chosen).name if kernel is not None else None
    try:
        return _make_engine(scenario, name or kernel_profile(chosen).name, backend)
    except UsageError as error:
        raise in_header(scenario, error) from error


def in_header(scenario: Scenario, error: UsageError) -> KvmMmuError:
    """An error about kernel or configuration, with where a file says them."""
    if scenario.header_line is None:
        return UsageError(f"{scenario.path}: {error}")
    return ScenarioError(f"{scenario.path}:{scenario.header_line}: {error}")


def _make_engine(scenario: Scenario, name: str, backend: str) -> Engine:
    if backend == "core":
        from kvm_mmu.lab.machine_engine import MachineEngine

        return MachineEngine(name, scenario.config, scenario.plans, scenario.format)
    if backend == "reference":
        from kvm_mmu import reference

        family = {**DEFAULTS, **scenario.config}["family"]
        if family not in ("npt", "ept_ad", "ept_noad", "shadow"):
            raise UsageError(f"family {family!r}: expected npt, ept_ad, ept_noad or shadow")
        plans: dict[str, Any] = {}
        for event, plan in scenario.plans.items():
            plans[event] = plan
        try:
            return reference.Engine(
                kernel=name,
                config={**DEFAULTS, **scenario.config},
                plans=plans or None,
                format=scenario.format,
            )
        except ValueError as error:
            # The reference has errors of its own, which know no others.
            raise UsageError(str(error)) from error
    raise UsageError(f"backend {backend!r}: expected core or reference")


def has_state(dump: str, index: int, last: bool, op: Mapping[str, Any]) -> bool:
    """Whether the result line of this operation carries the state, by the dump rule."""
    return dump == "all" or last or index % SPARSE_EVERY == SPARSE_EVERY - 1 or op.get("op") == "dump"


def run_scenario(
    scenario: Scenario,
    kernel: str | None = None,
    backend: str = "core",
    dump: str | None = None,
    engine: Engine | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Run a scenario; yields the header, then one result an operation, as `kvm-mmu run` writes them.

    Raises:
        ScenarioError: an operation that cannot be read, with file and line; results before it were yielded.
    """
    engine = engine or make_engine(scenario, kernel, backend)
    rule = dump or scenario.dump
    chosen = kernel_profile(kernel or scenario.kernel or "v5.0").name
    header: dict[str, Any] = {
        "scenario": scenario.name,
        "format": scenario.format,
        "variant": {v: k for k, v in VARIANTS.items()}.get(chosen, chosen),
        "config": {**config_defaults(scenario.format), **scenario.config},
        "masks": engine.masks(),
        "dump": rule,
    }
    if scenario.plans:
        header["plans"] = scenario.plans
    yield header
    count = len(scenario.ops)
    for i, op in enumerate(scenario.ops):
        try:
            result = engine.apply(op)
        except (ScenarioError, UsageError, ValueError) as error:
            raise ScenarioError(f"{scenario.where(i)}: {error}") from error
        line: dict[str, Any] = {"i": i, "op": op, "ret": result["ret"]}
        for key in ("out", "nested"):
            if key in result:
                line[key] = result[key]
        line["events"] = result["events"]
        line["ctr"] = result["ctr"]
        line["digest"] = engine.digest()
        if has_state(rule, i, i == count - 1, op):
            line["state"] = engine.state()
        yield line
        if on_step is not None:
            on_step(i)
