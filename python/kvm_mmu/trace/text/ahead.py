"""Reading ahead: a stream is unpacked in a thread of its own while what came before is worked on.

Owns: the thread, the few pieces that wait between it and the reader, and its end when the reader stops early. What the
stream raises is raised where the next piece is asked for, behind everything that came before it. Memory holds
`PIECES` pieces at most.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator

#: Pieces that wait at most.
PIECES = 4
#: How long the thread waits for room before it looks whether anybody still reads, in seconds.
_PATIENCE = 0.05


def read_ahead(read: Callable[[int], bytes], size: int) -> Generator[bytes]:
    """Yields what `read(size)` gives until it gives nothing, read by a thread of its own.

    Args:
        read: Gives some bytes, at most as many as asked for; none at the end.
        size: How many to ask for.

    Raises:
        BaseException: what `read` raised, in its turn.
    """
    waiting: queue.Queue[bytes | BaseException] = queue.Queue(PIECES)
    is_left = threading.Event()

    def put(piece: bytes | BaseException) -> bool:
        while not is_left.is_set():
            try:
                waiting.put(piece, timeout=_PATIENCE)
            except queue.Full:
                continue
            return True
        return False

    def unpack() -> None:
        try:
            while put(piece := read(size)) and piece:
                pass
        except BaseException as err:  # whatever it is, it belongs to the reader
            put(err)

    thread = threading.Thread(target=unpack, name="kvm-mmu-unpack", daemon=True)
    thread.start()
    try:
        while True:
            piece = waiting.get()
            if isinstance(piece, BaseException):
                raise piece
            if not piece:
                return
            yield piece
    finally:
        is_left.set()
        thread.join()
