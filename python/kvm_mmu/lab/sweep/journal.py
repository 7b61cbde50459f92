"""The file that rows go to as they finish: one JSON object a line, complete after every line, in any order.

A killed run leaves at most one line unfinished, which is not a row. A row is found again by the digest of its cell.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from kvm_mmu.errors import UsageError

NAME = "sweep.jsonl"


def row_text(row: dict[str, Any]) -> str:
    """A row as its line."""
    return json.dumps(row, separators=(",", ":"), allow_nan=False) + "\n"


class Journal:
    """Rows on disk.

    Args:
        folder: where the file is; None: nowhere, rows are only remembered.
        resume: take over what an earlier run left; without it a file that is there is refused.

    Attributes:
        rows: digest to row, of all that is known.

    Raises:
        UsageError: the file cannot be read or written, or is there without `resume`.
    """

    def __init__(self, folder: Path | None, resume: bool) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self._stream: BinaryIO | None = None
        self.path = None if folder is None else folder / NAME
        if self.path is None:
            return
        try:
            complete = self._read(resume)
            self._stream = self.path.open("r+b" if self.path.exists() else "w+b")
            self._stream.truncate(complete)
            self._stream.seek(0, os.SEEK_END)
        except OSError as error:
            raise UsageError(f"{self.path}: {error.strerror or error}") from error

    def _read(self, resume: bool) -> int:
        """Read what is there; how many bytes of it are complete rows."""
        assert self.path is not None
        if not self.path.exists():
            return 0
        if not resume:
            raise UsageError(
                f"{self.path}: a sweep is there already; go on with it (resume), or give another folder"
            )
        complete = 0
        with self.path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    row = json.loads(line)
                    self.rows[row["cell"]] = row
                except (ValueError, KeyError, TypeError) as error:
                    raise UsageError(f"{self.path}:{number}: expected a row of a sweep") from error
                complete += len(line)
        return complete

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Keep rows: they are with the system before this returns.

        Args:
            rows: finished cells.

        Raises:
            UsageError: they cannot be written.
        """
        for row in rows:
            self.rows[row["cell"]] = row
            if self._stream is not None:
                try:
                    self._stream.write(row_text(row).encode())
                    self._stream.flush()
                except OSError as error:
                    raise UsageError(f"{self.path}: {error.strerror or error}") from error

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
