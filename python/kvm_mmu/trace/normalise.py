"""When a predicted output equals a recorded one: addresses the model cannot know are taken out of both.

Owns: the masks per event and the one tolerance, the dirty bit that the CPU adds to a writable leaf behind
KVM's back.
"""

from __future__ import annotations

import re

from kvm_mmu.trace.line import clean_body

_FRAME = 0x000FFFFFFFFFF000
_ACCESSED, _DIRTY, _WRITABLE = 1 << 5, 1 << 6, 1 << 1
_SET_SPTE = re.compile(r"gfn (\w+) spte ([0-9a-f]+) (\(\S*\)) level (\d+) at ([0-9a-f]+)")
_SPTEP = re.compile(r"sptep:(\S+) ")
_ZAP_PTE = re.compile(r"sptep=0x([0-9a-f]+) spte=0x([0-9a-f]+)")
_FAST = re.compile(r"(.*) sptep (\S+) old 0x([0-9a-f]+) new ([0-9a-f]+) (.*)")
_VALUE = re.compile(r"((?:spte|old|new) )([0-9a-f]+)")
_SPACES = re.compile(r"\s+")


def is_mmio(value: int, release: str) -> bool:
    """Whether a raw value is an MMIO SPTE of that kernel (legacy masks)."""
    if release.removeprefix("v").startswith("6."):
        return value & 0x8000000000001 == 0x8000000000001 and not value & 0x800
    return value & 0x4008000000000001 == 0x4008000000000001


def normalise(event: str, body: str, release: str) -> str:
    """The text of an output as it is compared."""
    body = clean_body(body)
    if event == "kvm_mmu_set_spte":
        found = _SET_SPTE.match(body)
        if found:
            bits, entry = int(found[2], 16) & ~_FRAME, int(found[5], 16) & 0xFFF
            body = f"gfn {found[1]} bits {bits:x} {found[3]} level {found[4]} at {entry:x}"
    elif event == "mark_mmio_spte":
        body = _SPTEP.sub(
            lambda m: f"at {int(m[1], 16) & 0xFFF:x} " if re.fullmatch("[0-9a-f]{16}", m[1]) else "", body
        )
    elif event == "page_zap_pte":
        found = _ZAP_PTE.match(body)
        if found:
            body = f"at {int(found[1], 16) & 0xFFF:x} spte {_spte(int(found[2], 16), release):x}"
    elif event == "fast_page_fault":
        found = _FAST.match(body)
        if found:
            old, new = (_spte(int(found[i], 16), release) for i in (3, 4))
            body = f"{found[1]} old {old:x} new {new:x} {found[5]}"
    return _SPACES.sub(" ", body).strip()


def alike(recorded: tuple[str, str], predicted: tuple[str, str]) -> bool:
    """Whether two normalised outputs agree; the recording may have the dirty bit on a writable leaf."""
    if recorded == predicted:
        return True
    if recorded[0] != predicted[0] or recorded[0] not in ("page_zap_pte", "fast_page_fault"):
        return False
    return recorded[1] == _VALUE.sub(_dirtied, predicted[1])


def _spte(value: int, release: str) -> int:
    return value if is_mmio(value, release) else value & ~_FRAME & ~_ACCESSED


def _dirtied(found: re.Match[str]) -> str:
    value = int(found[2], 16)
    return f"{found[1]}{value | _DIRTY if value & _WRITABLE else value:x}"
