"""Files written whole or not at all: a temporary file beside the target, then a rename."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from kvm_mmu.errors import UsageError


def check_folder(folder: str | Path) -> Path:
    """The folder, made if it is not there: whoever computes for long asks before.

    Raises:
        UsageError: nothing can be written there.
    """
    if not str(folder):
        raise UsageError("folder '': expected the name of a folder")
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{path}: cannot be a folder for results: {error.strerror or error}") from error
    if not os.access(path, os.W_OK):
        raise UsageError(f"{path}: cannot be written to")
    return path


def write_whole(path: Path, text: str) -> Path:
    """Write a text file in one step; an interrupted run leaves the old file or none.

    Raises:
        UsageError: the place cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def write_all(folder: str | Path, texts: Mapping[str, str]) -> list[Path]:
    """Write several files into a folder, each whole."""
    return [write_whole(Path(folder) / name, text) for name, text in texts.items()]
