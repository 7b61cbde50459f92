"""The frame of a picture that is drawn element by element, and what of a text a picture may hold.

The text is the same for the same state, on every machine: no clock, no fonts measured.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from kvm_mmu.terminal import one_line

_STYLE = "font-family='DejaVu Sans, Verdana, sans-serif' font-size='12'"
# What XML refuses besides.
_NO_CHARACTER = re.compile("[\ufffe\uffff]")


def drawable(text: str) -> str:
    """Show control characters and what is no character as escapes.

    Args:
        text: a name from outside may be in it.

    Returns:
        One line that every reader of XML takes.
    """
    return _NO_CHARACTER.sub(lambda found: f"\\u{ord(found.group()):04x}", one_line(text))


def svg_text(text: str) -> str:
    """Make a text an element's content.

    Args:
        text: as it is to be read.

    Returns:
        It drawable and escaped.
    """
    return escape(drawable(text))


def frame(width: int, height: int, title: str, body: Sequence[str]) -> str:
    """Make a whole SVG: white ground, the title, then the body's elements.

    Args:
        width: of the picture.
        height: of the picture.
        title: what stands above, as it is.
        body: elements, escaped already.

    Returns:
        The text.
    """
    return "\n".join(
        [
            f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' "
            f"viewBox='0 0 {width} {height}' role='img' style='max-width:100%;height:auto' {_STYLE}>",
            f"<title>{svg_text(title)}</title>",
            f"<rect width='{width}' height='{height}' fill='#ffffff'/>",
            f"<text x='16' y='24' font-size='15'>{svg_text(title)}</text>",
            *body,
            "</svg>",
            "",
        ]
    )
