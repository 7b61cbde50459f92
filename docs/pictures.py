"""Pictures of the list of examples, drawn by the examples: `python docs/pictures.py`; a test draws them again."""

from __future__ import annotations

import contextlib
import io
import runpy
from pathlib import Path
from typing import Any

import kvm_mmu as km

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path(__file__).resolve().parent / "pictures"


def _example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "examples" / f"{name}.py"))


def pictures() -> dict[str, str]:
    """Draw them.

    Returns:
        Name of the example to SVG text.
    """
    found = {}
    *_, marked, _ = _example("step_by_step")["steps"]()
    found["step_by_step"] = marked.svg
    vm = km.Vm(kernel="v6.12", family="shadow")
    for _ in _example("paging_guest")["script"](vm.guest):
        pass
    found["paging_guest"] = vm.to_svg("the guest's tables, their shadow, and the reverse map")
    with contextlib.redirect_stdout(io.StringIO()):
        compared = _example("custom_zap_plan")["main"](["--tables", "200"])
    found["custom_zap_plan"] = compared.to_svg("nodes_visited")
    return found


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, svg in pictures().items():
        (FOLDER / f"{name}.svg").write_text(svg, encoding="utf-8")
