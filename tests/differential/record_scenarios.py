"""Writes the recorded results into scenario files: `python tests/differential/record_scenarios.py FILE...`.

Each file is run on core and reference; only where both agree on every step are the results written. The header keeps
its keys: `note` says what the file shows, `audit` names the invariants that the modelled kernel itself breaks in it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from kvm_mmu.scenario.language import Scenario, read_scenario, run_scenario


def header_of(path: Path) -> dict[str, Any]:
    """The first line of a file."""
    with path.open(encoding="utf-8") as stream:
        header: dict[str, Any] = json.loads(stream.readline())
    return header


def result_lines(scenario: Scenario, backend: str) -> list[dict[str, Any]]:
    """Header and results, as JSON reads them back."""
    return [json.loads(json.dumps(line)) for line in run_scenario(scenario, backend=backend)]


def record(path: Path) -> int:
    """Rewrite one file with its results; how many operations it has.

    Raises:
        ValueError: the two backends part.
    """
    scenario = read_scenario(path)
    core, reference = (result_lines(scenario, backend) for backend in ("core", "reference"))
    for one, other in zip(core, reference, strict=True):
        if one != other:
            raise ValueError(f"{path}: core and reference part at operation {one.get('i')}")
    header = {
        **header_of(path),
        "config": core[0]["config"],
        "masks": core[0]["masks"],
        "dump": core[0]["dump"],
    }
    lines = [header, *core[1:]]
    path.write_text(
        "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines), encoding="utf-8"
    )
    return len(scenario.ops)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(f"{name}: {record(Path(name))} operations, both backends agree")
