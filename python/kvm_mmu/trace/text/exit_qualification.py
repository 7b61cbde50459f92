"""The exit qualification of an EPT violation, as `kvm_page_fault` prints it on an Intel host, and the error code
that the MMU makes of it.

| bits | meaning |
|---|---|
| 0, 1, 2 | the access: read, write, fetch |
| 3, 4, 5 | what the entry allowed: read, write, execute |
| 7 | the linear address is valid |
| 8 | the access was to the final page, not to a page table of the guest |
"""

from __future__ import annotations

READ, WRITE, FETCH = 1 << 0, 1 << 1, 1 << 2
_ALLOWED = 7 << 3
_FINAL = 1 << 8

PFERR_PRESENT, PFERR_WRITE, PFERR_USER, PFERR_RSVD, PFERR_FETCH = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 4
#: What a two-dimensional walk was about: the guest's final page, or one of its page tables.
PFERR_GUEST_FINAL, PFERR_GUEST_PAGE = 1 << 32, 1 << 33
#: The error code of an EPT misconfiguration, which is an access to an MMIO entry.
MISCONFIGURATION = PFERR_RSVD


#: Bits of a qualification, and what the error code has if one of them is set, and if none is.
BITS = (
    (READ, PFERR_USER, 0),
    (WRITE, PFERR_WRITE, 0),
    (FETCH, PFERR_FETCH, 0),
    (_ALLOWED, PFERR_PRESENT, 0),
    (_FINAL, PFERR_GUEST_FINAL, PFERR_GUEST_PAGE),
)


def error_code_of(qualification: int) -> int:
    """The MMU's error code: a read is one by the user, a write or a fetch has a bit of its own and no user bit."""
    return sum(with_it if qualification & bits else without for bits, with_it, without in BITS)
