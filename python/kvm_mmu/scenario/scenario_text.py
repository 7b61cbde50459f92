"""The text of scenario files: opened, unpacked, cut into lines of bounded length, and each line read as a JSON object.

Owns what a stranger's file may cost before anything of it runs: no line without an end, no device that never ends, no
archive that unpacks to more than memory, no key twice. Knows nothing of operations.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from kvm_mmu.errors import ScenarioError
from kvm_mmu.machine import json_object

#: Characters of a line: a state of some hundred thousand shadow pages.
LINE_MAX = 64 << 20
#: What the lines of a file that is read whole may weigh together, in bytes of memory, about.
WEIGHT_MAX = 1 << 30
#: Bytes that an object, a list and one more element of either take, about.
_WEIGHTS = {"{": 200, "[": 64, ",": 32}

#: What a byte that is not UTF-8 is read as.
_HALF = re.compile("[\ud800-\udfff]")


@contextmanager
def open_text(path: str | Path) -> Iterator[TextIO]:
    """The text of a file, `.gz` and `.xz` unpacked.

    Args:
        path: name of the file; `-` is stdin.

    Yields:
        A stream of text.

    Raises:
        ScenarioError: the file cannot be opened, or is a device that never ends.
    """
    from kvm_mmu.trace.text.unpack import is_endless, unpacked

    name = str(path)
    if not name:
        raise ScenarioError("input '': expected the name of a file, or - for stdin")
    shown_as = shown_name(name)
    with ExitStack() as files:
        try:
            raw = (
                cast(BinaryIO, sys.stdin.buffer)
                if name == "-"
                else files.enter_context(Path(name).open("rb"))
            )
            head = raw.peek(8)[:8] if isinstance(raw, io.BufferedReader) and not is_endless(raw) else b""
        except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
            reason = error.strerror if isinstance(error, OSError) else None
            raise ScenarioError(f"{shown_as}: {reason or error}") from error
        if is_endless(raw):
            raise ScenarioError(f"{shown_as}: a device that never ends, expected a file, a pipe or -")
        text = io.TextIOWrapper(unpacked(raw, head), "utf-8", "surrogateescape", newline="\n")
        yield files.enter_context(text)


def shown_name(path: str | Path) -> str:
    """How messages call an input."""
    return "<stdin>" if str(path) == "-" else str(path)


def numbered_lines(stream: Iterable[str], name: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers.

    Args:
        stream: a stream of text, or lines.
        name: how messages call it.

    Yields:
        Number from 1, and the line.

    Raises:
        ScenarioError: a damaged archive or a line that is too long, with file and line.
    """
    from kvm_mmu.trace.text.unpack import BROKEN

    lines = (
        iter(lambda: stream.readline(LINE_MAX + 1), "") if isinstance(stream, io.TextIOBase) else iter(stream)
    )
    number = 0
    while True:
        number += 1
        try:
            line = next(lines, None)
        except EOFError as error:
            raise ScenarioError(f"{name}:{number}: the compressed file ends in the middle") from error
        except (*BROKEN, OSError) as error:
            raise ScenarioError(f"{name}:{number}: cannot be read or unpacked ({error})") from error
        if line is None:
            return
        if len(line) > LINE_MAX:
            raise ScenarioError(f"{name}:{number}: the line is longer than {LINE_MAX >> 20} MiB")
        yield number, line


class Budget:
    """What may still be kept of a file that is read whole."""

    def __init__(self) -> None:
        self._left = WEIGHT_MAX

    def spend(self, line: str, where: str) -> None:
        """Take off what a line will weigh when it is read.

        Args:
            line: the line.
            where: file and line, for the message.

        Raises:
            ScenarioError: it is too much.
        """
        self._left -= len(line) + sum(line.count(sign) * weight for sign, weight in _WEIGHTS.items())
        if self._left < 0:
            raise ScenarioError(
                f"{where}: up to here the file needs more than {WEIGHT_MAX >> 30} GiB of memory; "
                "`kvm-mmu run` reads one line after the other"
            )


def read_object(line: str, where: str) -> dict[str, Any]:
    """A line as a JSON object.

    Args:
        line: the line.
        where: file and line, for the message.

    Returns:
        The object.

    Raises:
        ScenarioError: no JSON, no object, or a key that stands twice in one.
    """
    if not line.isascii() and _HALF.search(line):
        raise ScenarioError(f"{where}: not UTF-8: expected a JSON object in that encoding")
    try:
        value = json_object.loads(line)
    except json_object.RepeatedKeyError as error:
        raise ScenarioError(f"{where}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ScenarioError(f"{where}: not a JSON object ({error})") from error
    if not isinstance(value, dict):
        raise ScenarioError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value
