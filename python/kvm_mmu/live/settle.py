"""A VM that moves while it is read: read again until it held still.

A picture holds when `struct kvm` and the statistics of its vCPUs were the same before and after, nothing was busy, and
every chain could be followed. A dump does not move: it is read once.
"""

from __future__ import annotations

from kvm_mmu.errors import LiveError
from kvm_mmu.live.capture import Capture, Progress, Reader, silent


def settled_capture(
    reader: Reader, kvm: int, tries: int, is_live: bool, with_rmaps: bool = True, progress: Progress = silent
) -> Capture:
    """Read a VM until it held still.

    Args:
        reader: of its kernel.
        kvm: its address.
        tries: at most so often, at least once.
        is_live: whether the memory moves; False: it is read once.
        with_rmaps: also the reverse maps.
        progress: told what is read.

    Returns:
        The first picture that holds, or the last one; `settled` says which (None: the source does not move).

    Raises:
        LiveError: no try could read even `struct kvm`.
    """
    if not is_live:
        return reader.capture(kvm, with_rmaps, progress)
    last: Capture | None = None
    error: Exception | None = None
    for number in range(1, max(1, tries) + 1):
        try:
            before = reader.look(kvm)
            found = reader.capture(kvm, with_rmaps, progress)
            found.tries = number
            found.settled = not found.busy and not found.faults and reader.look(kvm) == before
            last = found
            if found.settled:
                return found
        except (LiveError, OverflowError, IndexError, ValueError) as caught:
            error = caught
    if last is None:
        raise LiveError(f"VM {kvm:#x}: {max(1, tries)} tries, none could read it: {error}")
    return last
