"""When a predicted output equals a recorded one: addresses the model cannot know are taken out of both.

Owns: the masks per event and the one tolerance, the dirty bit that the CPU adds to a writable leaf behind
KVM's back.
"""

from __future__ import annotations

import re

from kvm_mmu.trace.text.line import clean_body
from kvm_mmu.trace.text.spte_words import FRAME, SpteWords

_SET_SPTE = re.compile(r"gfn (\w+) spte ([0-9a-f]+) (\(\S*\)) level (\d+) at ([0-9a-f]+)")
_SPTEP = re.compile(r"sptep:(\S+) ")
_ZAP_PTE = re.compile(r"sptep=0x([0-9a-f]+) spte=0x([0-9a-f]+)")
_FAST = re.compile(r"(.*) sptep (\S+) old 0x([0-9a-f]+) new ([0-9a-f]+) (.*)")
_ENTRY = re.compile(r"\b((?:old_|new_)?spte )([0-9a-f]{1,16})")
_VALUE = re.compile(r"((?:spte|old|new) )([0-9a-f]+)")
_SPACES = re.compile(r"\s+")


def normalise(event: str, body: str, words: SpteWords) -> str:
    """The text of an output as it is compared, by the masks of its host."""
    body = clean_body(body)
    if event == "kvm_mmu_set_spte":
        found = _SET_SPTE.match(body)
        if found:
            bits, entry = int(found[2], 16) & ~FRAME, int(found[5], 16) & 0xFFF
            body = f"gfn {found[1]} bits {bits:x} {found[3]} level {found[4]} at {entry:x}"
    elif event == "mark_mmio_spte":
        body = _SPTEP.sub(
            lambda m: f"at {int(m[1], 16) & 0xFFF:x} " if re.fullmatch("[0-9a-f]{16}", m[1]) else "", body
        )
    elif event == "page_zap_pte":
        found = _ZAP_PTE.match(body)
        if found:
            body = f"at {int(found[1], 16) & 0xFFF:x} spte {words.compared(int(found[2], 16)):x}"
    elif event == "fast_page_fault":
        found = _FAST.match(body)
        if found:
            old, new = (words.compared(int(found[i], 16)) for i in (3, 4))
            body = f"{found[1]} old {old:x} new {new:x} {found[5]}"
    elif event in ("kvm_tdp_mmu_spte_changed", "kvm_mmu_split_huge_page"):
        body = _ENTRY.sub(lambda m: f"{m[1]}{words.compared(int(m[2], 16)):x}", body)
    return _SPACES.sub(" ", body).strip()


def alike(recorded: tuple[str, str], predicted: tuple[str, str], words: SpteWords) -> bool:
    """Whether two normalised outputs agree; the recording may have the dirty bit, which the CPU adds to a writable leaf
    and which stays when the leaf is write-protected later."""
    if recorded == predicted:
        return True
    if recorded[0] != predicted[0] or recorded[0] not in ("page_zap_pte", "fast_page_fault"):
        return False
    theirs, mine = recorded[1], predicted[1]
    if _VALUE.sub(r"\1", theirs) != _VALUE.sub(r"\1", mine):
        return False
    values = zip(_VALUE.findall(theirs), _VALUE.findall(mine), strict=True)
    return all(int(one[1], 16) in (int(two[1], 16), int(two[1], 16) | words.dirty) for one, two in values)
