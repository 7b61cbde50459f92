"""Notebooks become pages by being run, and the pictures of the list of examples are those that the examples draw."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = runpy.run_path(str(ROOT / "docs" / "notebook_pages.py"))


def notebook(path: Path, *cells: tuple[str, str]) -> Path:
    path.write_text(json.dumps({"cells": [{"cell_type": kind, "source": [text]} for kind, text in cells]}))
    return path


def test_a_notebook_stands_with_what_it_shows(tmp_path: Path) -> None:
    class_ = "class Shown:\n    def _repr_html_(self): return '<b>\\n\\nbold</b>'\n"
    path = notebook(
        tmp_path / "n.ipynb",
        ("markdown", "# Head"),
        ("code", "x = 6\nprint('said')\nx * 7"),
        ("code", class_ + "Shown()"),
    )
    text = PAGES["page"](path)
    assert text.startswith("# Head") and "```text\nsaid\n```" in text and "```text\n42\n```" in text
    assert "<div class='shown'><b>\nbold</b></div>" in text


def test_a_cell_that_fails_stops_the_build(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        PAGES["page"](notebook(tmp_path / "n.ipynb", ("code", "1 / 0")))


def test_the_pictures_are_what_the_examples_draw() -> None:
    drawn = runpy.run_path(str(ROOT / "docs" / "pictures.py"))["pictures"]()
    kept = {
        path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "pictures").glob("*.svg")
    }
    assert kept == drawn, "draw them again: python docs/pictures.py"
