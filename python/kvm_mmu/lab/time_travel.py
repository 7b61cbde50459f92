"""What `kvm-mmu view` shows: a scenario or a recording run step by step, each with the state after it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kvm_mmu.errors import ScenarioError, UsageError
from kvm_mmu.lab.inputs import read_input
from kvm_mmu.machine.numbers import integer
from kvm_mmu.machine.vm import Vm
from kvm_mmu.scenario.language import Engine, Scenario, make_engine
from kvm_mmu.view.time_travel import Frame, time_travel

#: Steps that a page has where nobody says how many.
MOST_STEPS = 200


def steps_of(
    scenario: Scenario,
    engine: Engine,
    first: int,
    end: int,
    progress: Callable[[str], None] = lambda _text: None,
) -> list[Frame]:
    """Run a scenario's operations and keep what each did.

    Args:
        scenario: the operations.
        engine: runs them; it is left after the last one.
        first: the first that is kept, from 0; those before it run unseen.
        end: the first that does not run any more.
        progress: told how far it is.

    Returns:
        The state before the first operation where nothing is left out before it, then a step an operation.

    Raises:
        ScenarioError: an operation that cannot be read, with file and line.
    """
    frames = [] if first else [Frame(-1, {}, {}, (), {}, engine.state())]
    for number, operation in enumerate(scenario.ops[:end]):
        try:
            line = engine.apply(operation)
        except (ScenarioError, UsageError, ValueError) as error:
            raise ScenarioError(f"{scenario.where(number)}: {error}") from error
        if number >= first:
            result: dict[str, object] = {str(key): line[key] for key in ("ret", "out") if key in line}
            audit = getattr(engine, "audit", None)
            found = tuple(audit()) if audit is not None else ()
            frames.append(
                Frame(
                    number,
                    operation,
                    result,
                    line["events"],
                    line["ctr"],
                    engine.state(),
                    found,
                    picture=picture_of(engine),
                )
            )
            progress(f"step {number + 1:,} of {min(len(scenario.ops), end):,}")
    return frames


def picture_of(engine: Engine) -> str:
    """Draw what only the VM knows: a guest's own tables beside their shadow.

    Args:
        engine: the engine.

    Returns:
        SVG text; "" where the state says all.
    """
    vm = getattr(engine, "vm", None)
    return vm.to_svg() if isinstance(vm, Vm) and vm.shadows_guest else ""


def travel(
    path: str | Path,
    *,
    kernel: str | None = None,
    first: int = 0,
    steps: int = MOST_STEPS,
    progress: Callable[[str], None] = lambda _text: None,
) -> str:
    """Run a scenario or a recording, and write a page that shows each step.

    Args:
        path: the file; `-` is a scenario on stdin.
        kernel: the kernel to model; None: the input's own.
        first: the first operation that is shown, from 0; those before it run unseen.
        steps: how many are shown, 1 to 5,000.
        progress: told how far it is.

    Returns:
        The text of an HTML file.

    Raises:
        ScenarioError: a file or an operation that cannot be read.
        TraceError: a recording that cannot be read.
        UsageError: numbers out of range.
    """
    first, steps = integer("first", first, 0, 1 << 40), integer("steps", steps, 1, 5_000)
    scenario = read_input(path, kernel)
    if first >= len(scenario.ops):
        count = len(scenario.ops)
        raise UsageError(f"first {first:,}: {path} has {count:,} operations, 0 to {count - 1:,}")
    frames = steps_of(scenario, make_engine(scenario, kernel), first, first + steps, progress)
    about = {
        "file": path,
        "kernel": kernel or scenario.kernel or "v5.0",
        **({"recorded on": scenario.recorded_on} if scenario.recorded_on else {}),
        "configuration": ", ".join(f"{key} {value}" for key, value in scenario.config.items())
        or "the default",
        **(
            {"plans": ", ".join(f"{key}: {value}" for key, value in scenario.plans.items())}
            if scenario.plans
            else {}
        ),
        "operations": f"{len(scenario.ops):,}",
    }
    shown = sum(frame.number >= 0 for frame in frames)
    return time_travel(f"{scenario.name}, step by step", about, frames, len(scenario.ops) - shown)
