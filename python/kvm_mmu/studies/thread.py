"""The seed thread: claims S1 to S9 answered by runs of the model (`kvm-mmu gallery thread`, docs/the-thread.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from kvm_mmu.errors import UsageError
from kvm_mmu.studies import thread_generation, thread_restart, thread_stale, thread_teardown
from kvm_mmu.studies.gallery import Answer

CLAIMS = ("S1", "S2", "S3", "S4", "S5", "S6", "S7", "S8", "S9")

_HEAD = """# The thread, answered

<!-- Written by `kvm-mmu gallery thread --markdown`; a test writes it again and compares. Do not edit. -->

In January 2019 a mail thread discussed patch 05/14, *Revert "KVM: MMU: drop kvm_mmu_zap_mmio_sptes"*: when the few
bits of the memslot generation that an MMIO SPTE keeps wrap around, zap only the shadow pages that ever cached one. The
thread argues; this page measures. Every number below comes from a run of the model, and the code beside it is the
digest of that run: state and work counts after it. Counts are exact; a *work unit* is one list node, SPTE, reverse-map
or parent step, with a zapped page counting 8, a freed one 4 and a flush 16. Plans are those of `kvm-mmu plans`.
"""


def answers(
    claims: Iterable[str] = CLAIMS,
    sizes: Sequence[int] = thread_restart.SIZES,
    progress: Callable[[str], None] = lambda _text: None,
) -> Iterator[Answer]:
    """The answers, in the order asked for.

    Args:
        claims: some of `CLAIMS`. sizes: numbers of level-1 tables for S4.

    Raises:
        UsageError: an unknown claim.
    """
    sections: dict[str, Callable[[], Answer]] = {
        "S1": thread_restart.s1,
        "S2": thread_generation.s2,
        "S3": thread_generation.s3,
        "S4": lambda: thread_restart.s4(sizes, progress),
        "S5": thread_teardown.s5,
        "S6": thread_teardown.s6,
        "S7": thread_restart.s7,
        "S8": thread_restart.s8,
        "S9": thread_stale.s9,
    }
    chosen = list(claims)
    for claim in chosen:
        if claim not in sections:
            raise UsageError(f"claim {claim!r}: expected one of {', '.join(CLAIMS)}")
    for claim in chosen:
        progress(claim)
        yield sections[claim]()


def page(found: Iterable[Answer]) -> str:
    """docs/the-thread.md."""
    return "\n\n".join([_HEAD.strip(), *(answer.to_markdown() for answer in found)]) + "\n"
