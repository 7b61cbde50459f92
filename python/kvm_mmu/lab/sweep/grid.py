"""The grid of a sweep: settings, each with the plans that run in it.

A setting is plain data and says everything that a cell's result depends on: so a result can be computed anywhere, and
is found again by a digest of its cell. An input that is a file is known by its content, not by its name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

from kvm_mmu.errors import UsageError
from kvm_mmu.lab import forced_event
from kvm_mmu.lab.forced_event import Plan
from kvm_mmu.lab.named_workloads import WORKLOADS
from kvm_mmu.machine.numbers import shown
from kvm_mmu.machine.profiles import kernel_profile
from kvm_mmu.machine.zap_plan import ZapPlan

#: Grows when a cell of the same setting may give another row.
VERSION = 1
#: The plan that is the kernel's own for the event: on the page table that it serves guests with, and on shadow pages.
OWN, OWN_SHADOW = "own", "own-shadow"
_UNITS = {"k": 1_000, "m": 1_000_000}


@dataclass(frozen=True, slots=True)
class Setting:
    """Where in the grid a workload is made: all that its cells share.

    Attributes:
        input: a name of `WORKLOADS`, or the path of a scenario or a recording.
        content: the first digits of the digest of the file's bytes; empty for a workload by name.
        kernel: the kernel that is modelled; empty: the input's own.
        pages: shadow pages, as `10k` or `0.1x` of the input's own; empty: the input as it is.
        mmio: the share of pages that cache MMIO; None: the input's own.
        vcpus: virtual processors; None: the input's own.
        seed: of a workload by name; None of a file, which needs none.
        at: the event that is forced at the end.
        contend: every n-th offer of the lock is taken; 0: none.
        sample: the share of a file's gfns that is run, the counts scaled to the whole; None: all of them.
    """

    input: str
    content: str
    kernel: str
    pages: str
    mmio: float | None
    vcpus: int | None
    seed: int | None
    at: str
    contend: int
    sample: float | None = None


@dataclass(frozen=True)
class Group:
    """A setting and its plans: what is computed together, since the workload is made once for all of them."""

    setting: Setting
    plans: tuple[tuple[str, Plan | str], ...]

    def cells(self) -> Iterator[tuple[str, str, Plan | str]]:
        """Each cell's digest, its plan's name and the plan."""
        for name, plan in self.plans:
            spec = plan.spec if isinstance(plan, ZapPlan) else name
            place = [VERSION, _without_path(self.setting), name, spec]
            text = json.dumps(place, sort_keys=True, separators=(",", ":"))
            yield hashlib.sha256(text.encode()).hexdigest()[:16], name, plan


def _without_path(setting: Setting) -> dict[str, object]:
    found = asdict(setting)
    if setting.sample is None:
        del found["sample"]  # as it was before there were samples
    if setting.content:
        found["input"] = Path(setting.input).name
    return found


def parse_pages(text: str) -> float | int:
    """A size as a number of pages (`10k`, int) or as a share of the input's own (`0.1x`, float).

    Raises:
        UsageError: neither.
    """
    said = f"pages {text!r}: expected a number as 10k, or a share of the input's own as 0.1x"
    number, unit = (text[:-1], text[-1:].lower()) if text[-1:].isalpha() else (text, "")
    try:
        value = float(number)
    except ValueError:
        raise UsageError(said) from None
    if unit == "x" and 0 < value <= 1e6:
        return value
    whole = value * _UNITS.get(unit, 1)
    if unit not in ("", *_UNITS) or whole != int(whole) or not 1 <= whole <= 1 << 32:
        raise UsageError(said)
    return int(whole)


def make_grid(
    inputs: Sequence[str],
    plans: Sequence[Plan | str],
    *,
    kernels: Sequence[str],
    pages: Sequence[str],
    mmio: Sequence[float],
    vcpus: Sequence[int],
    seeds: int,
    at: str,
    contend: int,
    sample: float | None = None,
) -> list[Group]:
    """Every setting with its plans, in the order in which the table shows them.

    Raises:
        UsageError: an empty axis, an axis that an input does not have, or a plan that cannot serve the event.
    """
    at = forced_event.as_event(at)
    if not inputs:
        raise UsageError(f"no input: give files, or names of {', '.join(WORKLOADS)}")
    if not 1 <= seeds <= 1_000_000:
        raise UsageError(f"seeds {seeds}: expected 1 to 1,000,000")
    for text in pages:
        parse_pages(text)
    rows = list(dict.fromkeys(kernel_profile(name).name for name in kernels))
    named = _named_plans(plans, at)
    groups = []
    for name in dict.fromkeys(inputs):
        is_named = name in WORKLOADS
        if sample is not None and (is_named or pages):
            raise UsageError(
                f"{name}: a sample is of a file's own memory; a workload that is made to a size has none"
            )
        if vcpus and not is_named:
            raise UsageError(f"{name}: vcpus vary in workloads by name only; a file has its own")
        if mmio and not pages and not is_named:
            raise UsageError(f"{name}: a share of MMIO needs a size with it (pages)")
        content = "" if is_named else _content(name)
        shares: list[float | None] = [*mmio] or [None]
        counts: list[int | None] = [*vcpus] or [None]
        axes = product(
            rows or (["v6.12"] if is_named else [""]),
            pages or [""],
            shares,
            counts,
            range(1, seeds + 1) if is_named else [None],
        )
        groups += [
            Group(Setting(name, content, kernel, size, share, count, seed, at, contend, sample), named)
            for kernel, size, share, count, seed in axes
        ]
    return groups


def _named_plans(plans: Sequence[Plan | str], at: str) -> tuple[tuple[str, Plan | str], ...]:
    found: dict[str, Plan | str] = {}
    for plan in plans:
        if isinstance(plan, str) and plan in (OWN, OWN_SHADOW):
            if at == "end":
                raise UsageError(f"plan {plan}: a kernel has one for an event only: give one with at")
            found[plan] = plan
            continue
        chosen = ZapPlan.parse(plan) if isinstance(plan, str) else plan
        if not isinstance(chosen, ZapPlan) and not callable(chosen):
            raise UsageError(f"plan {shown(plan)}: expected a ZapPlan, its name, or a function that zaps")
        name = forced_event.plan_name(chosen)
        if found.get(name, chosen) != chosen:
            raise UsageError(f"two plans are called {name}: give one of them another name")
        found[name] = chosen
    if not found:
        raise UsageError("no plan to sweep")
    return tuple(found.items())


def _content(path: str) -> str:
    try:
        with Path(path).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UsageError(f"input {path}: {why}; expected a file, or one of {', '.join(WORKLOADS)}") from error
