"""Files written whole or not at all, and what is no file written through: the one way in which this package writes.

Owns what an output may be. A regular file, or a name that is free, is replaced in one step by a temporary file beside
it; symbolic links are followed to what they name. FIFOs and devices are written through, and `-` is stdout. Folders and
empty names are refused. A temporary file is locked while its writer lives: one without a lock is of a run that was
killed, and the next run that writes beside it removes it.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from kvm_mmu.errors import UsageError

STDOUT = "-"
#: What writes the content of one file into a binary stream.
Writer = Callable[[BinaryIO], object]
Content = str | bytes | Writer

_PART = re.compile(r"\.kvm-mmu-[0-9a-f]{16}\.part")
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


class _Target:
    """Where an output goes: the file to replace, or what is written through."""

    def __init__(self, path: str | Path) -> None:
        name = str(path)
        self.shown = Path(name)
        self.is_stdout = name == STDOUT
        self.real: Path | None = None
        self.found: os.stat_result | None = None
        if self.is_stdout:
            return
        if not name:
            raise UsageError("output '': expected the name of a file, or - for stdout")
        try:
            self.found = Path(name).stat()
        except FileNotFoundError:
            if name.endswith("/"):
                raise UsageError(f"output {name}: expected the name of a file") from None
        except (OSError, ValueError) as error:
            raise _refusal(self.shown, error) from error
        if self.found is not None:
            if stat.S_ISDIR(self.found.st_mode):
                raise UsageError(f"output {name}: is a folder; expected the name of a file")
            self.is_stdout = _is_open_as_stdout(self.found)
            if self.is_stdout or not stat.S_ISREG(self.found.st_mode):
                return
            if not os.access(name, os.W_OK):
                raise UsageError(f"{name}: cannot be written to")
        self.real = Path(os.path.realpath(name))
        if not self.real.parent.is_dir():
            raise UsageError(f"{name}: no such directory: {self.real.parent}")


class _Part:
    """A temporary file, locked, in the folder of what it replaces."""

    def __init__(self, target: Path, found: os.stat_result | None) -> None:
        self.target, self._found = target, found
        self.path, descriptor = _new_part(target.parent)
        self.stream = os.fdopen(descriptor, "w+b")

    def replace(self) -> None:
        """Put it where the target is, with the mode and the owner that the target had."""
        descriptor = self.stream.fileno()
        if self._found is not None:
            with suppress(OSError):
                os.fchown(descriptor, self._found.st_uid, self._found.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(self._found.st_mode))
        self.path.replace(self.target)
        self.stream.close()

    def drop(self) -> None:
        """Remove it; one that has been put in place stays there."""
        if not self.stream.closed:
            self.path.unlink(missing_ok=True)
            with suppress(OSError):  # what could not be written is not wanted any more
                self.stream.close()


def is_stdout(path: str | Path) -> bool:
    """Whether an output goes where stdout goes (`-`, `/dev/stdout`): nothing else may be printed there then."""
    return _Target(path).is_stdout


def check_output(path: str | Path) -> None:
    """Look whether an output can be what it is: whoever computes for long asks before.

    Args:
        path: its name.

    Raises:
        UsageError: it is a folder, has no name, or cannot be written.
    """
    _Target(path)


def write_files(files: Sequence[tuple[str | Path, Content]]) -> list[Path]:
    """Write outputs of one run: all of them are complete before the first replaces what was there.

    Args:
        files: name and content of each; a content that is a function writes into the stream that it is given.

    Returns:
        The names.

    Raises:
        UsageError: a place cannot be written.
    """
    targets = [_Target(path) for path, _ in files]
    parts: list[_Part] = []
    try:
        for target, (_, content) in zip(targets, files, strict=True):
            if target.real is not None:
                with _naming(target.shown):
                    parts.append(_Part(target.real, target.found))
                    _put(content, parts[-1].stream)
        for target, (_, content) in zip(targets, files, strict=True):
            if target.real is None:
                _write_through(target, content)
        for part in parts:
            with _naming(part.target):
                part.replace()
    finally:
        for part in parts:
            part.drop()
    return [target.shown for target in targets]


def write_whole(path: str | Path, content: Content) -> Path:
    """Write one output; an interrupted run leaves the old file or none.

    Args:
        path: its name.
        content: text, bytes, or a function that writes into the stream that it is given.

    Returns:
        The name.

    Raises:
        UsageError: the place cannot be written.
    """
    return write_files([(path, content)])[0]


def remove_stale_parts(folder: Path) -> None:
    """Remove the temporary files that killed runs left in a folder; those of living runs are locked.

    Args:
        folder: where to look.
    """
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _PART.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with suppress(OSError):
                    _remove_unlocked(entry.path)


def _remove_unlocked(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        Path(path).unlink()
    finally:
        os.close(descriptor)


def _new_part(folder: Path) -> tuple[Path, int]:
    remove_stale_parts(folder)
    while True:
        path = folder / f".kvm-mmu-{secrets.token_hex(8)}.part"
        descriptor = os.open(path, _NEW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass  # another run took it for a stale one, before it was locked
        except OSError:
            return path, descriptor  # no locks on this file system: nobody removes parts there
        if os.fstat(descriptor).st_nlink and path.exists():
            return path, descriptor
        os.close(descriptor)
        path.unlink(missing_ok=True)


def _put(content: Content, stream: BinaryIO) -> None:
    if callable(content):
        content(stream)
    else:
        stream.write(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)
    stream.flush()


def _write_through(target: _Target, content: Content) -> None:
    if target.is_stdout:
        if sys.stdout is None:
            raise UsageError("stdout is closed")
        sys.stdout.flush()
        _put(content, sys.stdout.buffer)
        return
    # Not created: what was no regular file a moment ago does not become one.
    with _naming(target.shown), os.fdopen(os.open(target.shown, os.O_WRONLY | os.O_NOCTTY), "wb") as stream:
        _put(content, stream)


def _is_open_as_stdout(found: os.stat_result) -> bool:
    try:
        return sys.stdout is not None and os.path.samestat(found, os.fstat(sys.stdout.fileno()))
    except (OSError, ValueError):
        return False  # a stream without a descriptor, or a closed one


@contextmanager
def _naming(shown: Path) -> Iterator[None]:
    """Errors of the system as a line that names the output."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _refusal(shown, error) from error


def _refusal(shown: Path, error: OSError | ValueError) -> UsageError:
    return UsageError(
        f"{shown}: {error.strerror if isinstance(error, OSError) and error.strerror else error}"
    )
