"""A folder for the results of one run: made when absent, claimed while the run lasts, so that two cannot mix.

A second run into the same folder is refused at once, not after its work. The claim is a lock of the system on the
folder itself: nothing is left of it when its holder is killed. A folder that was made for a run that failed goes again.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from kvm_mmu.errors import UsageError
from kvm_mmu.view.whole_file import STDOUT, Content, remove_stale_parts, write_files


class OutFolder:
    """A claimed folder; used as a context manager.

    Args:
        folder: its name; it and the folders above it are made when absent.

    Raises:
        UsageError: nothing can be written there, or another run is writing there.
    """

    def __init__(self, folder: str | Path) -> None:
        name = str(folder)
        if not name:
            raise UsageError("folder '': expected the name of a folder")
        if name == STDOUT:
            raise UsageError("folder -: expected the name of a folder; several files do not go to stdout")
        self.path = Path(name)
        self._made: list[Path] = []
        self._descriptor = -1
        try:
            self._claim()
        except BaseException:
            self.close(failed=True)
            raise
        remove_stale_parts(self.path)

    def __enter__(self) -> OutFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)

    def write(self, files: Mapping[str, Content]) -> list[Path]:
        """Write files into it: all of them are complete before the first replaces what was there.

        Args:
            files: content by file name.

        Returns:
            The files.

        Raises:
            UsageError: one cannot be written.
        """
        return write_files([(self.path / name, content) for name, content in files.items()])

    def close(self, failed: bool = False) -> None:
        """Give the claim up.

        Args:
            failed: whether to remove what was made for this run, as far as it is empty.
        """
        if failed:
            for made in self._made:
                with suppress(OSError):
                    made.rmdir()
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def _claim(self) -> None:
        try:
            while not self._is_claimed():
                pass
        except BlockingIOError:
            raise UsageError(
                f"{self.path}: another run is writing there; wait for its end or give another folder"
            ) from None
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise UsageError(f"{self.path}: cannot be a folder for results: {why}") from error
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise UsageError(f"{self.path}: cannot be written to")

    def _is_claimed(self) -> bool:
        """Whether the folder is there and locked; no when it was removed before it could be locked."""
        real = Path(os.path.realpath(self.path))
        self._made += [one for one in (real, *real.parents) if not one.exists()]
        real.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(real, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._made.clear()  # it is the other run's
            raise
        except OSError:
            return True  # no locks on this file system: each file is whole, sets may mix
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self._descriptor), real.stat()):
                return True
        os.close(self._descriptor)
        self._descriptor = -1
        return False


def write_all(folder: str | Path | OutFolder, files: Mapping[str, Content]) -> list[Path]:
    """Write files into a folder, which is claimed for it.

    Args:
        folder: its name, or a folder that the caller has claimed.
        files: content by file name.

    Returns:
        The files.

    Raises:
        UsageError: one cannot be written, or another run is writing there.
    """
    if isinstance(folder, OutFolder):
        return folder.write(files)
    with OutFolder(folder) as claimed:
        return claimed.write(files)
