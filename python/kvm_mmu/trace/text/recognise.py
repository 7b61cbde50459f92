"""Whose trace this is, when nobody says: the kernels and the masks that the first part of its text leaves possible.

Owns: the way from the reader's eras to kernels whose words are known, and the signs of EPT. Never a silent guess: what
is found here is said where it is used, and where words of the kernels left differ nothing is chosen.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from kvm_mmu.trace.text.reader import native_reader
from kvm_mmu.words.bits import has_layout

#: How much text is looked at, in characters: enough for a VM's start, little enough for a stream.
_HEAD = 4 << 20
#: What the reader calls a range of kernels -> the kernels of it whose words are known.
KERNELS_OF_ERA = {
    "v5.0": ("v5.0",),
    "v5.1-v5.2": ("v5.1", "v5.2"),
    "v5.3": ("v5.3",),
    "v5.4": ("v5.4",),
    "v5.10": ("v5.10",),
    "v6.1": ("v6.1",),
    "v6.12": ("v6.12",),
    "v6.18-v7.1": ("v6.18", "v7.1"),
    "v7.2": ("v7.2", "v7.3"),
}
#: Kernels whose words are the same, and what to say when only these are left.
_SAME_WORDS = (
    (frozenset({"v5.1", "v5.2", "v5.3"}), ""),
    (frozenset({"v6.1", "v6.12", "v6.18", "v7.1"}), "their words differ in the empty entry only"),
    (frozenset({"v7.2", "v7.3"}), ""),
)
_EXIT = re.compile(r"kvm_exit: .{0,40}reason (EPT_|npf|NPF)")
_LEAF = re.compile(r"kvm_mmu_set_spte: gfn \w+ spte ([0-9a-f]{1,16}) ")
#: Memory type write-back and ignore-PAT: so every leaf of EPT. With the legacy masks: cached, and not large but dirty.
_EPT_TYPE, _EPT_WRITE_BACK = 0x78, 0x70
#: An entry that some kernels print among the leaves, MMIO: its bits there are a generation.
_LEGACY_MMIO, _EPT_RWX = 1 << 51, 7
_MMIO = re.compile(r"(?:check_mmio_spte: spte |make_mmio_spte_ret: .{0,200} spte=0x)([0-9a-f]{1,16})\b")
_MARK = re.compile(r"mark_mmio_spte: sptep:\S+ gfn ([0-9a-f]{1,13}) access")
#: How many MMIO SPTEs are kept to find the host's width by.
_MMIO_KEPT = 64
_AD = re.compile(r" (!?)ad root \d")


@dataclass(frozen=True)
class Origin:
    """What the text says. `kernels` may have made the trace; `family` is None where nothing tells; `mmio_sptes` are
    some that occur, `mmio_gfns` the gfns of which one was marked."""

    kernels: tuple[str, ...]
    family: str | None
    mmio_sptes: tuple[int, ...] = ()
    mmio_gfns: frozenset[int] = frozenset()

    @property
    def kernel(self) -> str | None:
        """A kernel whose words are those of all that are left, None where they are not the same."""
        if len(self.kernels) == 1:
            return self.kernels[0]
        left = frozenset(self.kernels)
        return self.kernels[-1] if left and any(left <= same for same, _ in _SAME_WORDS) else None

    @property
    def said(self) -> str:
        """The kernels in words, with what speaks against the choice."""
        left = frozenset(self.kernels)
        but = next((why for same, why in _SAME_WORDS if why and left <= same and "v6.1" in left), "")
        return " or ".join(self.kernels) + (f" ({but})" if but else "")


def origin(lines: Iterable[str]) -> tuple[Origin, Iterator[str]]:
    """Whose trace the lines are, judged by their first part, and all the lines again."""
    stream = iter(lines)
    head: list[str] = []
    size = 0
    for text in stream:
        head.append(text)
        size += len(text) + 1
        if size > _HEAD:
            break
    reader = native_reader(columns=False)
    reader.feed("\n".join([*head, ""]).encode("utf-8", "replace"))
    reader.finish()
    counts = reader.summary()
    # A trace without any event of the MMU excludes nothing.
    eras = counts["kernels"] if len(counts["kernels"]) < len(KERNELS_OF_ERA) else []
    kernels = tuple(kernel for era in eras for kernel in KERNELS_OF_ERA.get(era, ()) if has_layout(kernel))
    mmio = {int(found[1], 16): None for text in head if (found := _MMIO.search(text))}
    gfns = frozenset(int(found[1], 16) for text in head if (found := _MARK.search(text)))
    return Origin(kernels, _family(head), tuple(mmio)[:_MMIO_KEPT], gfns), chain(head, stream)


def _family(head: list[str]) -> str | None:
    """The masks, by the reasons of exits, else by the leaves; None where they say nothing or not the same."""
    reasons = {found[1] == "EPT_" for text in head if (found := _EXIT.search(text))}
    if not reasons:
        leaves = (int(found[1], 16) for text in head if (found := _LEAF.search(text)))
        reasons = {
            leaf & _EPT_TYPE == _EPT_WRITE_BACK
            for leaf in leaves
            if not leaf & _LEGACY_MMIO and leaf & _EPT_RWX != 6
        }
    if len(reasons) != 1:
        return None
    if reasons == {False}:
        return "npt"
    signs = {found[1] for text in head if (found := _AD.search(text))}
    return {frozenset({""}): "ept_ad", frozenset({"!"}): "ept_noad"}.get(frozenset(signs))
