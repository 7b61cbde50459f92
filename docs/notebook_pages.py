"""Notebooks of `examples/` as pages: run from top to bottom when the documentation is built, with what they show.

Sphinx calls `setup`. A cell that fails stops the build. Pages go to `docs/notebooks`, which is not kept.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
EXAMPLES = DOCS.parent / "examples"
#: Has a page of its own, whose blocks are the same (docs/playground.md); here it is only run.
ONLY_RUN = ("playground",)


def run_cell(source: str, session: dict[str, Any], name: str) -> tuple[str, object]:
    """Run a cell as a notebook does.

    Args:
        source: its text.
        session: the names of all cells.
        name: of the cell, for tracebacks.

    Returns:
        What it printed, and the value of its last line if that is an expression, else None.
    """
    tree = ast.parse(source, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    out = io.StringIO()
    value = None
    with contextlib.redirect_stdout(out):
        exec(compile(tree, name, "exec"), session)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), name, "eval"), session)
    return out.getvalue(), value


def shown(value: object) -> list[str]:
    """Write a value as a notebook shows it: its HTML, its picture, or its text.

    Args:
        value: the value of a cell.

    Returns:
        Markdown lines.
    """
    for method in ("_repr_html_", "_repr_svg_"):
        write = getattr(value, method, None)
        if write is not None:
            # A blank line would end the block of HTML.
            text = "\n".join(line for line in write().splitlines() if line.strip())
            return ["```{raw} html", f"<div class='shown'>{text}</div>", "```", ""]
    return [] if value is None else ["```text", repr(value), "```", ""]


def page(path: Path) -> str:
    """Run a notebook.

    Args:
        path: the notebook.

    Returns:
        It as Markdown, with what its cells print and show.
    """
    notebook = json.loads(path.read_text(encoding="utf-8"))
    session: dict[str, Any] = {"__name__": "__notebook__", "HERE": str(path.parent)}
    lines: list[str] = []
    for number, cell in enumerate(notebook["cells"], 1):
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            lines += [source, ""]
            continue
        printed, value = run_cell(source, session, f"{path.name} cell {number}")
        lines += ["```python", source, "```", ""]
        lines += ["```text", printed.rstrip("\n"), "```", ""] if printed else []
        lines += shown(value)
    return "\n".join(lines)


def write_pages(folder: Path) -> list[Path]:
    """Run every notebook and write its page.

    Args:
        folder: where the pages go.

    Returns:
        The pages.
    """
    folder.mkdir(exist_ok=True)
    written = []
    for path in sorted(EXAMPLES.glob("*.ipynb")):
        text = page(path)
        if path.stem not in ONLY_RUN:
            out = folder / f"{path.stem}.md"
            if not out.exists() or out.read_text(encoding="utf-8") != text:
                out.write_text(text, encoding="utf-8")
            written.append(out)
    return written


def setup(app: Any) -> dict[str, bool]:
    """Write the pages before Sphinx looks for its sources.

    Args:
        app: Sphinx.

    Returns:
        What Sphinx wants to know of an extension.
    """
    app.connect("builder-inited", lambda _app: write_pages(DOCS / "notebooks"))
    return {"parallel_read_safe": True}
