"""The scenario language: reading scenario files, running their operations on an engine, writing the results.

A file is a header line and one operation a line (docs/reference/scenario.md). Other keys of an operation line are
ignored, so a result file is a scenario too. Engines: `machine_engine.MachineEngine` (core) and
`kvm_mmu.reference.Engine`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from kvm_mmu.errors import KvmMmuError, ScenarioError, UsageError
from kvm_mmu.machine.numbers import shown
from kvm_mmu.machine.profiles import kernel_profile
from kvm_mmu.machine.vm import DEFAULTS, OPTIONAL, STEPPED_DEFAULTS
from kvm_mmu.scenario.operation_table import FORMATS, STEPPED
from kvm_mmu.scenario.scenario_text import Budget, numbered_lines, open_text, read_object, shown_name
from kvm_mmu.terminal import one_line

SPARSE_EVERY = 100
#: The scenario that ships with the package.
SAMPLE = Path(__file__).resolve().parent.parent / "data" / "scenarios" / "sample.jsonl"
#: Which result lines carry the digest.
DIGESTS = ("each", "dumps", "last")
#: Where an operation stands, and the operation.
Step = tuple[str, dict[str, Any]]
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
        digest: which lines carry the digest, one of DIGESTS.
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
    digest: str = "each"
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


def read_scenario(path: str | Path | Iterable[str], name: str | None = None) -> Scenario:
    """Read a scenario or result file (`-`: stdin; `.gz`, `.xz`), or an iterable of lines.

    Raises:
        ScenarioError: with file, line and what was expected.
    """
    if isinstance(path, str | Path):
        label = shown_name(path)
        with open_text(path) as stream:
            return _read(numbered_lines(stream, label), label)
    return _read(numbered_lines(path, name or "<lines>"), name or "<lines>")


@contextmanager
def open_scenario(path: str | Path) -> Iterator[tuple[Scenario, Iterator[Step]]]:
    """A scenario or result file to be run line by line, in memory that does not grow with it.

    Args:
        path: name of the file; `-` is stdin.

    Yields:
        The scenario with its header, without operations, and the operations with where they stand.

    Raises:
        ScenarioError: with file, line and what was expected.
    """
    label = shown_name(path)
    with open_text(path) as stream:
        scenario = Scenario(path=label)
        values = _values(numbered_lines(stream, label), scenario)
        # The first one brings the header with it.
        first = next(values, None)
        begin = () if first is None else (first,)
        yield scenario, ((f"{label}:{number}", value["op"]) for number, value in chain(begin, values))


def _read(lines: Iterator[tuple[int, str]], label: str) -> Scenario:
    scenario = Scenario(path=label)
    for number, value in _values(lines, scenario, Budget()):
        scenario.ops.append(value["op"])
        scenario.expected.append(value)
        scenario.lines.append(number)
    return scenario


def _values(
    lines: Iterator[tuple[int, str]], scenario: Scenario, budget: Budget | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines of operations with their numbers; a header becomes the scenario's."""
    first = True
    for number, line in lines:
        if not line.strip():
            continue
        where = f"{scenario.path}:{number}"
        if budget is not None:
            budget.spend(line, where)
        value = read_object(line, where)
        if first and "op" not in value:
            _header(scenario, value, where)
            scenario.header_line = number
        else:
            op = value.get("op")
            if not isinstance(op, dict) or not isinstance(op.get("op"), str):
                raise ScenarioError(f'{where}: expected an operation {{"op":{{"op":NAME,...}}}}')
            yield number, value
        first = False


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
            raise ScenarioError(f"{where}: config key {shown(key)}, expected one of {', '.join(known_keys)}")
        if key == "family":
            continue
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise ScenarioError(f"{where}: config {key}={shown(number)}, expected a non-negative integer")
        if key in FLAGS and number > 1:
            raise ScenarioError(f"{where}: config {key}={shown(number)}, expected 0 or 1")
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
        raise ScenarioError(f"{where}: dump {shown(dump)}, expected all or sparse")
    scenario.dump = dump
    digest = value.get("digest", "each")
    if digest not in DIGESTS:
        raise ScenarioError(f"{where}: digest {shown(digest)}, expected one of {', '.join(DIGESTS)}")
    scenario.digest = digest


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
        from kvm_mmu.scenario.machine_engine import MachineEngine

        return MachineEngine(name, scenario.config, scenario.plans, scenario.format)
    if backend == "reference":
        from kvm_mmu import reference

        family = {**DEFAULTS, **scenario.config}["family"]
        if family not in ("npt", "ept_ad", "ept_noad", "shadow"):
            raise UsageError(f"family {shown(family)}: expected npt, ept_ad, ept_noad or shadow")
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
    raise UsageError(f"backend {shown(backend)}: expected core or reference")


def has_state(dump: str, index: int, last: bool, op: Mapping[str, Any]) -> bool:
    """Whether the result line of this operation carries the state, by the dump rule."""
    return dump == "all" or last or index % SPARSE_EVERY == SPARSE_EVERY - 1 or op.get("op") == "dump"


def has_digest(rule: str, is_last: bool, is_dump: bool) -> bool:
    """True if the result line of an operation carries the digest.

    Args:
        rule: one of DIGESTS.
        is_last: whether it is the last operation.
        is_dump: whether its line carries the state.
    """
    return rule == "each" or is_last or (rule == "dumps" and is_dump)


def run_scenario(
    scenario: Scenario,
    kernel: str | None = None,
    backend: str = "core",
    dump: str | None = None,
    engine: Engine | None = None,
    on_step: Callable[[int], None] | None = None,
    digest: str | None = None,
    steps: Iterable[Step] | None = None,
) -> Iterator[dict[str, Any]]:
    """Run a scenario; yields the header, then one result an operation, as `kvm-mmu run` writes them.

    Args:
        scenario: header and operations.
        kernel: the kernel to model; default the scenario's.
        backend: `core` or `reference`.
        dump: which lines carry the state, in place of the header's rule.
        engine: what runs it; default one made for it.
        on_step: called with the number of each operation that ran.
        digest: which lines carry the digest, in place of the header's rule; one of DIGESTS.
        steps: operations to run in place of the scenario's own, as `open_scenario` gives them.

    Yields:
        Header and results.

    Raises:
        UsageError: no such rule, kernel or backend.
        ScenarioError: an operation that cannot be read, with file and line; results before it were yielded.
    """
    engine = engine or make_engine(scenario, kernel, backend)
    rule = dump or scenario.dump
    digest = digest or scenario.digest
    if digest not in DIGESTS:
        raise UsageError(f"digest={shown(digest)}: expected one of {', '.join(DIGESTS)}")
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
    if digest != "each":
        header["digest"] = digest
    yield header
    own = ((scenario.where(i), op) for i, op in enumerate(scenario.ops))
    for i, (where, op), is_last in _with_last(own if steps is None else steps):
        try:
            result = engine.apply(op)
        except (ScenarioError, UsageError, ValueError) as error:
            bug = kernel_bug(error)
            if bug is not None:
                yield {"i": i, "op": op, "bug": bug}
                return
            raise ScenarioError(f"{where}: {error}") from error
        line: dict[str, Any] = {"i": i, "op": op, "ret": result["ret"]}
        for key in ("out", "nested"):
            if key in result:
                line[key] = result[key]
        line["events"] = result["events"]
        line["ctr"] = result["ctr"]
        is_dump = has_state(rule, i, is_last, op)
        if has_digest(digest, is_last, is_dump):
            line["digest"] = engine.digest()
        if is_dump:
            line["state"] = engine.state()
        yield line
        if on_step is not None:
            on_step(i)


def kernel_bug(error: Exception) -> str | None:
    """Say where the modelled kernel stopped.

    Args:
        error: what an engine raised.

    Returns:
        The line of the BUG and its condition; None where the kernel went on, and the operation was no good.
    """
    where = getattr(error, "where", None)
    return where if isinstance(where, str) else None


def _with_last(steps: Iterable[Step]) -> Iterator[tuple[int, Step, bool]]:
    """Number and step, and whether it is the last: one is read ahead."""
    before: Step | None = None
    number = -1
    for number, step in enumerate(steps):
        if before is not None:
            yield number - 1, before, False
        before = step
    if before is not None:
        yield number, before, True
