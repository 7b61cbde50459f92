"""`make demo`: the main job on what exists, and what is not there yet.

Replays the recording that ships with the package, forces the wrap and the slot removal under every named plan, repeats
the recording to 100,000 shadow pages with 1 % caching MMIO, and answers the thread.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from kvm_mmu.errors import KvmMmuError, RunStateError
from kvm_mmu.lab import comparison_text
from kvm_mmu.lab.compare import compare
from kvm_mmu.lab.comparison import Comparison
from kvm_mmu.lab.inputs import read_input
from kvm_mmu.machine.zap_plan import ZapPlan, plans
from kvm_mmu.scenario.language import Scenario
from kvm_mmu.scenario.machine_engine import MachineEngine
from kvm_mmu.scenario.workload import mmio_mix
from kvm_mmu.terminal import folded
from kvm_mmu.view.out_folder import OutFolder
from kvm_mmu.view.tables import text_table

#: The recording that ships with the package, and the kernel that its comparisons model.
RECORDING = "5.0.1-npt-mmio_gen"
SCALE, SHARE = 100_000, 0.01
#: Why the comparisons model another kernel than the replay.
SEED = "v5.0 with the patch of the thread, whose mark of the pages that cache MMIO these plans need"
#: Pages of the quadratic curve, besides `SCALE`.
CURVE = (1_000, 10_000, SCALE)
#: What the kernel's own C took for the seed's wrap at this size (the patch compiled and run in userspace), seconds.
KERNEL_C_SECONDS = {"1 %": 0.748, "10 %": 14.0}


def _of_shadow_pages() -> list[ZapPlan]:
    """The named plans that zap shadow pages; the recording's kernel has no other page table."""
    return [plan for plan in plans.values() if not plan.is_of_roots]


@dataclass
class Demo:
    """What the demonstration found."""

    sections: list[tuple[str, str]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    comparisons: dict[str, Comparison] = field(default_factory=dict)
    replayed: dict[str, Any] | None = None
    findings: int = 0
    written: list[Path] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "schema": "kvm-mmu/demo/1",
            "replay": self.replayed,
            "comparisons": {name: found.to_dict() for name, found in self.comparisons.items()},
            "sections": [{"title": title, "text": text} for title, text in self.sections],
            "not_there_yet": self.missing,
            "written": [str(path) for path in self.written],
        }


def recording_path(stack: ExitStack) -> Path:
    """The packaged recording as a file, while the stack is open."""
    folder = stack.enter_context(as_file(files("kvm_mmu") / "data" / "recordings" / RECORDING))
    return Path(folder) / "trace.txt.xz"


def _replay(demo: Demo, path: Path) -> str:
    replay = importlib.import_module("kvm_mmu.trace.replay.replaying").replay
    report = replay(path, lambda kernel, config: MachineEngine(kernel, config))
    total = sum(report.recorded.values())
    agreed = total if report.divergence is None else report.divergence.agreed
    demo.replayed = report.as_json()
    demo.findings += not report.is_equal
    kinds = ", ".join(f"{kind} {report.equal[kind]}" for kind in sorted(report.recorded))
    return (
        f"{agreed:,} of {total:,} recorded outputs predicted, in order, from the inputs alone\n"
        f"  recording: {RECORDING} (a real 5.0.1 kernel), model: {report.kernel}\n  {kinds}"
    )


def _table(found: Comparison) -> str:
    """The rows of the largest size in one table, what plans leave undone, and how costs grow."""
    largest = max(found.column("pages"))
    rows = [row for row in found.rows if row["pages"] == largest]
    parts = [
        f"kernel {rows[0]['kernel']}: {SEED}",
        comparison_text.table(rows),
    ]
    growth: dict[str, list[str]] = {}
    for fit in found.fits:
        if fit["of"] == "nodes_visited":
            growth.setdefault(str(fit["fit"]), []).append(fit["plan"])
    for power, names in growth.items():
        parts.append(f"nodes visited grow as {power}: {', '.join(names)}")
    ours = f" of {rows[0]['input']}: no way to do a "
    left = [note for note in found.notes if ours in note]
    return "\n".join([*parts, *(comparison_text.sentence(f"note: {note}") for note in left)])


def run_demo(
    folder: OutFolder | None, progress: Callable[[str], None] = lambda _text: None
) -> Iterator[tuple[str, str] | Demo]:
    """Yield (title, text) as each section is ready, and the whole `Demo` last.

    Args:
        folder: where SVG and JSON go; None: nothing is written.
    """
    demo = Demo()

    def section(title: str, make: Callable[[], str]) -> tuple[str, str]:
        progress(title)
        try:
            text = make()
        except (KvmMmuError, ImportError, FileNotFoundError) as error:
            demo.missing.append(f"{title}: {error}")
            text = f"not there yet: {error}"
        demo.sections.append((title, text))
        return title, text

    with ExitStack() as stack:
        path = recording_path(stack)
        yield section("1. a recording of a real kernel, replayed", lambda: _replay(demo, path))
        scenario: list[Scenario] = []

        def forced(at: str, name: str) -> str:
            if not scenario:
                scenario.append(read_input(path))
            demo.comparisons[name] = compare(scenario[0], _of_shadow_pages(), at=at, kernel="v5.0-seed")
            return _table(demo.comparisons[name])

        yield section(
            "2. its end, a generation wrap forced, every named plan", lambda: forced("wrap", "wrap")
        )
        yield section("3. the same, a slot removal forced", lambda: forced("slot-removal", "slot-removal"))

        def grown() -> str:
            found = compare(
                scenario[0] if scenario else read_input(path),
                _of_shadow_pages(),
                at="wrap",
                scale=CURVE,
                kernel="v5.0-seed",
                mmio_share=SHARE,
                mmio_place="even",
                progress=progress,
            )
            demo.comparisons["scaled"] = found
            return _table(found)

        yield section(
            f"4. repeated to {SCALE:,} shadow pages, {SHARE:.0%} of them caching MMIO, evenly spread, at a wrap",
            grown,
        )
    yield section("5. the answer to the thread", lambda: _answer(demo))
    if folder is not None:
        for name, comparison in demo.comparisons.items():
            demo.written += comparison.write(folder, name)
    yield demo


def _answer(demo: Demo) -> str:
    found = demo.comparisons.get("scaled")
    if found is None:
        raise RunStateError("the scaled comparison is missing")
    largest = max(found.column("pages"))
    rows = {row["plan"]: row for row in found.rows if row["pages"] == largest}
    seconds = {r["plan"]: r["measured_wall_seconds"] for r in found.measured_rows if r["pages"] == largest}
    fits = {fit["plan"]: fit["fit"] for fit in found.fits if fit["of"] == "nodes_visited"}
    ten = compare(
        mmio_mix(SCALE, 0.10, "random", kernel="v5.0-seed"), ["seed", "merged", "indexed"], at="wrap"
    )
    demo.comparisons["ten-percent"] = ten
    slow = {row["plan"]: row for row in ten.rows}
    slow_seconds = {r["plan"]: r["measured_wall_seconds"] for r in ten.measured_rows}
    lines = [
        f"Is the dedicated zap quadratic? {largest:,} pages, {rows['seed']['mmio_pages']:,} of them "
        "caching MMIO:"
    ]
    answers = {
        name: {
            "nodes visited": rows[name]["nodes_visited"],
            "lock held, work units": rows[name]["longest_hold"],
            "tables to rebuild": rows[name]["tables_rebuilt"],
            "grows as": fits.get(name, ""),
        }
        for name in ("seed", "v5.0-fast", "merged", "indexed")
    }
    columns = {"plan": list(answers)} | {
        title: [answer[title] for answer in answers.values()] for title in next(iter(answers.values()))
    }
    lines.append(text_table(columns, indent="  "))
    lines.append(
        f"  at 10 % the seed visits {slow['seed']['nodes_visited']:,} nodes, the merged walk "
        f"{slow['merged']['nodes_visited']:,}, the index {slow['indexed']['nodes_visited']:,}."
    )
    lines.append(
        f"  measured here, seconds: seed {seconds['seed']:.3f} at 1 %, {slow_seconds['seed']:.2f} at 10 % "
        f"(published for the kernel's own C, another machine: {KERNEL_C_SECONDS['1 %']} and "
        f"{KERNEL_C_SECONDS['10 %']:.0f})."
    )
    lines.append(
        "Answer: as posted it is quadratic; restarting only when the list became unstable, as merged, "
        "makes it linear, and "
        "a list of the MMIO-caching pages makes it free of the others. Zapping everything is linear too "
        "but the guest pays "
        "afterwards. All claims, S1 to S9: kvm-mmu gallery thread."
    )
    return "\n".join(folded(line) for line in lines)
