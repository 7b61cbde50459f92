"""The playground page: its blocks run in order, and print what stands below them; the notebook has the same blocks.

`KVM_MMU_WRITE_PLAYGROUND=1` writes the outputs and the notebook again.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "playground.md"
NOTEBOOK = ROOT / "examples" / "playground.ipynb"
PAIR = re.compile(r"^```python\n(.*?)^```\n(?:```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)


def printed(text: str) -> list[tuple[str, str]]:
    """Each block's output, with what the page says."""
    session: dict[str, object] = {"__name__": "__page__"}
    found = []
    for number, block in enumerate(PAIR.finditer(text), 1):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(block[1], f"playground block {number}", "exec"), session)
        found.append((out.getvalue(), block[2] or ""))
    return found


def written_again(text: str) -> str:
    """The page with the outputs of now."""
    outputs = iter(printed(text))

    def block(match: re.Match[str]) -> str:
        out = next(outputs)[0]
        return f"```python\n{match[1]}```\n" + (f"```text\n{out}```\n" if out else "")

    return PAIR.sub(block, text)


def notebook(text: str) -> dict[str, Any]:
    """The page as a notebook without outputs; where the page makes a picture, the VM shows itself."""
    cells: list[dict[str, Any]] = []

    def add(kind: str, source: str, **more: Any) -> None:
        if source.strip("\n"):
            lines = source.strip("\n").splitlines(keepends=True)
            cells.append(
                {"cell_type": kind, "metadata": {}, **more, "source": lines, "id": f"cell-{len(cells)}"}
            )

    end = 0
    for block in PAIR.finditer(text):
        add("markdown", text[end : block.start()])
        add("code", block[1], execution_count=None, outputs=[])
        if "to_svg" in block[1]:
            add("code", "vm", execution_count=None, outputs=[])
        end = block.end()
    add("markdown", text[end:])
    known = json.loads((ROOT / "examples" / "step_by_step.ipynb").read_text(encoding="utf-8"))
    return {"cells": cells, **{key: known[key] for key in ("metadata", "nbformat", "nbformat_minor")}}


def test_every_block_prints_what_the_page_says() -> None:
    text = PAGE.read_text(encoding="utf-8")
    if os.environ.get("KVM_MMU_WRITE_PLAYGROUND") == "1":
        PAGE.write_text(written_again(text), encoding="utf-8")
        text = PAGE.read_text(encoding="utf-8")
        NOTEBOOK.write_text(json.dumps(notebook(text), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    blocks = printed(text)
    assert len(blocks) >= 10
    for out, said in blocks:
        assert out == said


def test_the_page_shows_every_subject() -> None:
    said = " ".join(said for _, said in printed(PAGE.read_text(encoding="utf-8")))
    for event in ("unsync", "sync", "prepare_zap", "get_page", "emulate", "inject_pf"):
        assert f"'{event}'" in said


def test_the_notebook_has_the_same_blocks() -> None:
    book = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert book == notebook(PAGE.read_text(encoding="utf-8"))
    assert sum(cell["source"] == ["vm"] for cell in book["cells"]) == 1
