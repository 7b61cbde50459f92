"""What may reach a terminal: control characters of an input are shown (`\\x1b`), never passed on.

Task names, file names, lines of traces and names in scenarios come from strangers, and a terminal obeys what stands in
them. Everything that is a report or an error goes through here; what is meant to be an input again (a decoded or
stripped trace) does so where a terminal reads it.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from typing import Any, TextIO, cast

# C0 but tab and newline, DEL, C1; what reorders or breaks a line; halves of characters, which no encoding has.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_BREAK = re.compile("[\t\n]")


def _shown(found: re.Match[str]) -> str:
    code = ord(found.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def escaped(text: str) -> str:
    """Show the control characters of a text, all but tab and newline.

    Args:
        text: what somebody else wrote may be in it.

    Returns:
        A text that moves no cursor, sets no title and rings no bell.
    """
    return _CONTROL.sub(_shown, text)


def one_line(text: str) -> str:
    """Show the control characters of a text, tab and newline too.

    Args:
        text: what somebody else wrote may be in it.

    Returns:
        One line.
    """
    return _BREAK.sub(_shown, escaped(text))


#: Columns that every terminal has.
WIDTH = 80


def folded(text: str, indent: str = "  ") -> str:
    """Fold a text into lines that fit a terminal, with its control characters shown.

    Args:
        text: one or more lines.
        indent: what each line that was begun for room starts with.

    Returns:
        Lines of at most 80 columns; a word that is longer, such as a file name, is not cut.
    """
    wrapper = textwrap.TextWrapper(
        WIDTH,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
    )
    return "\n".join(wrapper.fill(line) for line in escaped(text).split("\n"))


class Shown:
    """A text stream in front of another, which gets control characters escaped. Other attributes are the stream's.

    DEL passes: JSON leaves it as it is, and a terminal ignores it.

    Args:
        stream: the one behind.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write a text.

        Args:
            text: what is escaped.

        Returns:
            How many characters were given.
        """
        self.stream.write("\x7f".join(map(escaped, text.split("\x7f"))))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write texts one after another.

        Args:
            lines: the texts.
        """
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def shown(stream: TextIO | None) -> TextIO | None:
    """A stream that shows control characters.

    Args:
        stream: the one to put it in front of; None: a stream that is closed.

    Returns:
        A `Shown`, as the text stream that it is to its writers.
    """
    return stream if stream is None or isinstance(stream, Shown) else cast(TextIO, Shown(stream))


def passing(stream: TextIO) -> TextIO:
    """The way for a text that is an input again: untouched into a file or a pipe, shown where a terminal reads it.

    Args:
        stream: where it goes.

    Returns:
        The stream to write to.
    """
    return stream.stream if isinstance(stream, Shown) and not stream.isatty() else stream


def directly(stream: TextIO) -> TextIO:
    """The way for control characters of our own, as those of a line of progress.

    Args:
        stream: where they go.

    Returns:
        The stream to write to.
    """
    return stream.stream if isinstance(stream, Shown) else stream
