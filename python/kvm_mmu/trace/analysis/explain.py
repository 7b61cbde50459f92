"""A trace with its roles, SPTEs and MMIO SPTEs explained: each line as it is, and below it what its words
mean.

Owns: which events carry which words, and the comparison of what a word says with what its line says. What a bit means
is the machine layer's codec; a kernel whose layout is not known is refused, not guessed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from kvm_mmu.errors import TraceError, UsageError
from kvm_mmu.trace.analysis.phrases import Phrases, with_one_frame
from kvm_mmu.trace.analysis.tdp_changes import TELLING, Reasons, change_in_words
from kvm_mmu.trace.text.line import Line, clean_body, parse_line
from kvm_mmu.trace.text.pieces import pieces_of
from kvm_mmu.trace.text.raw_fields import with_kernel_text
from kvm_mmu.trace.text.source import Traced, lines_of
from kvm_mmu.trace.text.spte_words import FRAME, spte_words
from kvm_mmu.trace.text.window import Window
from kvm_mmu.words.codec import Codec
from kvm_mmu.words.roles import decode_role

INDENT = "        | "
_HEX = "([0-9a-f]{1,16})"
#: event -> where the words stand in its text, and the fields that say the same
_SPTES = {
    "check_mmio_spte": rf"spte {_HEX} kvm_gen {_HEX} spte-gen {_HEX} ",
    "fast_page_fault": rf" old 0x{_HEX} new {_HEX}\b",
    "kvm_mmu_set_spte": rf"gfn {_HEX} spte {_HEX} \(([rwxu-]{{3,4}})\) level (\d{{1,3}})",
    "kvm_mmu_split_huge_page": rf"gfn {_HEX} spte {_HEX} level (\d{{1,3}}) ",
    "kvm_tdp_mmu_spte_changed": rf"gfn {_HEX} level (\d{{1,3}}) old_spte {_HEX} new_spte {_HEX}",
    "page_zap_pte": rf"spte=0x{_HEX}",
    "make_mmio_spte_ret": rf"spte=0x{_HEX}",
    "mark_mmio_spte": rf"gfn {_HEX} access {_HEX} gen {_HEX}",
    "handle_mmio_page_fault": rf"gfn {_HEX} access {_HEX}",
    "kvm_mmu_spte_requested": rf"gfn {_HEX} pfn {_HEX} level (\d{{1,3}})(?: access [0-9a-f]{{1,2}})?$",
}
_LEAF_SET = "kvm_mmu_set_spte"
_COMPILED = {event: re.compile(pattern) for event, pattern in _SPTES.items()}
#: Fields of an event that could not be turned into text: some kernels' raw wording is not known here.
_RAW_WORD = re.compile(r"\b(spte|old_spte|new_spte)=0x([0-9a-f]{1,16})\b")
_RAW_ROLE = re.compile(r"\brole=(0x[0-9a-f]{1,8}|\d{1,10})\b")
_PAGE = re.compile(
    r"sp (?:gen (\w+) )?gfn (\w+) l(\d)( pae| \d-byte)? q(\d)( direct)? (r?-?[w-][u-][x-])( invalid)? "
    r"(!?)nxe (!?)ad root (-?\d{1,10}) (un)?sync(?: (new|existing))?$"
)
_PAGE_EVENTS = frozenset(
    {"kvm_mmu_get_page", "kvm_mmu_prepare_zap_page", "kvm_mmu_sync_page", "kvm_mmu_unsync_page"}
)
#: Events whose lines are looked at.
_LOOKED_AT = frozenset(_COMPILED) | _PAGE_EVENTS | TELLING
_LEVELS = {
    1: "4 KiB leaves",
    2: "2 MiB entries",
    3: "1 GiB entries",
    4: "512 GiB entries",
    5: "256 TiB entries",
}
_NOSLOT = 1 << 63
#: What the TDP MMU writes while it takes an entry away, beside the bits of an empty one; seen in its recordings only.
_TDP_REMOVED = (0x5A0, 0x1A0)
#: Role bits that the text of a page does not print; said where the raw word shows one set.
_UNPRINTED = ("cr0_wp", "smep_andnot_wp", "smap_andnot_wp", "guest_mode", "passthrough", "smm")


class Words(NamedTuple):
    """One word of a line: what it is called, its value (None: the line has only its parts), its meaning."""

    name: str
    value: int | None
    meaning: str

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.meaning}"
            if self.value is None
            else f"{self.name} {self.value:#x}: {self.meaning}"
        )


@dataclass
class Explainer:
    """Explains the lines of one kernel on one host, and counts how often word and line agree.

    Args:
        codec: whose words they are.
    """

    codec: Codec
    #: event -> words whose decoded fields are what the line itself prints
    agreed: Counter[str] = field(default_factory=Counter)
    #: event -> words that say something else than their line: other masks or another width made them
    contradicted: Counter[str] = field(default_factory=Counter)
    first_contradiction: tuple[int, str] | None = None
    #: event -> lines in a wording that is not known here, so that their words stay unexplained
    unread: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._phrases = Phrases(self.codec)
        self._phrase = self._phrases.of
        self._leaves: set[tuple[int, str, str]] = set()
        self._fits_said = lru_cache(maxsize=1 << 16)(self._fits)
        self._access_said = lru_cache(maxsize=1 << 16)(self._access)
        self._reasons = Reasons(is_ept=self.codec.family.startswith("ept"))
        self._task = ""
        self._explain = {event: getattr(self, f"_{event}") for event in _COMPILED}

    def lines(self, lines: Iterable[str]) -> Iterator[tuple[str, list[Words]]]:
        """Every line as it is, with the meaning of its words."""
        return ((text, words) for _, text, words in self.numbered(lines))

    def numbered(
        self, lines: Iterable[str], only: Window | None = None
    ) -> Iterator[tuple[int, str, list[Words]]]:
        """As `lines`, with the number of each; of a window only the lines inside."""
        is_inside = only is None or not only.from_ns
        for number, (text, said) in enumerate(with_kernel_text(lines, self.codec.kernel), 1):
            line = parse_line(said)
            if only is not None and line is not None:
                is_inside = only.has(line)
            if is_inside or text.startswith("#"):
                yield number, text, [] if line is None else self._of_line(number, line, text)

    def written(self, chunks: Iterable[bytes]) -> Iterator[str]:
        """The text with each word explained below its line, in parts of whole lines.

        Args:
            chunks: The text.
        """
        number = 0
        for piece in pieces_of(chunks, _LOOKED_AT):
            if isinstance(piece, str):
                number += 1
                (_, said), *_ = with_kernel_text([piece], self.codec.kernel)
                line = parse_line(said)
                text, words = piece, [] if line is None else self._of_line(number, line, piece)
            elif len(piece) == 2:
                number += piece[0]
                yield piece[1].decode("utf-8", "replace")
                continue
            else:
                number += 1
                text, task, event, _, body_at = piece
                if event == _LEAF_SET and (leaf := self._leaf(text, body_at)):
                    yield leaf
                    continue
                words = self._of_event(number, task, event, text[body_at:], text)
            yield "".join((text, "\n", *(f"{INDENT}{word}\n" for word in words)))

    def _leaf(self, text: str, body_at: int) -> str | None:
        """The line of a leaf, explained, if it differs from one that was explained before in its frame only."""
        found = _COMPILED[_LEAF_SET].search(text, body_at)
        if found is None:
            return None
        _, spte, access, level = found.groups()
        value = int(spte, 16)
        parts = self._phrases.parts(value)
        if parts is None:
            return None
        key = (with_one_frame(value), access, level)
        if key not in self._leaves:
            if not self._fits(with_one_frame(value), int(level)) or not self._has_access(value, access):
                return None
            if len(self._leaves) >= 1 << 16:
                self._leaves.clear()
            self._leaves.add(key)
        self.agreed[_LEAF_SET] += 1
        return f"{text}\n{INDENT}spte {value:#x}: {parts[0]}{(value & FRAME) >> 12:x}{parts[1]}\n"

    def _has_access(self, value: int, access: str) -> bool:
        return self._access_said(with_one_frame(value))[: len(access)] == access

    def _of_line(self, number: int, line: Line, text: str) -> list[Words]:
        return self._of_event(number, line.task, line.event, line.body, text)

    def _of_event(self, number: int, task: str, event: str, body: str, text: str) -> list[Words]:
        body = clean_body(body)
        if event in TELLING:
            self._reasons.note(task, event, body)
        pattern = _COMPILED.get(event)
        if pattern is None:
            if event not in _PAGE_EVENTS:
                return []
            page = _PAGE.match(body)
            if page is None:
                self.unread[event] += 1
                return []
            return [Words("page", None, _page(page)), *self._raw_role(text)]
        found = pattern.search(body)
        if found is None:
            words = [self._word(name, int(value, 16)) for name, value in _RAW_WORD.findall(body)]
            self.unread.update([] if words else [event])
            return words
        self._task = task
        explained, agrees = self._explain[event](*found.groups())
        if agrees is not None:
            (self.agreed if agrees else self.contradicted)[event] += 1
            if not agrees and self.first_contradiction is None:
                self.first_contradiction = (number, text)
        return list(explained)

    def _word(self, name: str, value: int, level: int | None = None) -> Words:
        return Words(name, value, self._phrase(value, level))

    def _tdp_word(self, name: str, value: int, level: int) -> Words:
        word = self._word(name, value, level)
        if word.meaning == "not present" and value & ~(1 << 63) in _TDP_REMOVED:
            shown = value & ~(1 << 63)
            marked = f"not present, value {shown:#x}: the TDP MMU marks so an entry that it takes away"
            return word._replace(meaning=marked)
        return word

    def _raw_role(self, text: str) -> Iterator[Words]:
        found = _RAW_ROLE.search(text)
        if found is None or (role := int(found[1], 0)) >> 32:
            return
        bits = decode_role(role, self.codec.kernel)["bits"]
        said = [meaning for _, _, name, value, meaning in bits if value and name in _UNPRINTED]
        yield Words("role", role, ", ".join(said) or "nothing that the text does not say")

    def is_mmio_spte(self, spte: int) -> bool:
        """An MMIO SPTE that this host makes of what it reads back of it."""
        found = self.codec.decode_mmio(spte)
        if not found["is_mmio"]:
            return False
        try:
            return self.codec.make_mmio_spte(found["gfn"], found["access"] & 7, found["mmio_gen"]) == spte
        except UsageError:
            return False  # a gfn above the width of this host

    # One method an event: the meaning of its words, and whether they say what the line says (None: it says nothing).

    def _check_mmio_spte(self, spte: str, kvm_gen: str, spte_gen: str) -> _Explained:
        word = self._word("spte", int(spte, 16))
        found = self.codec.decode_mmio(int(spte, 16))
        fresh = "fresh: the access is emulated" if kvm_gen == spte_gen else "stale: the fault is taken again"
        agrees = found["mmio_gen"] == int(spte_gen, 16) and self.is_mmio_spte(int(spte, 16))
        return [word._replace(meaning=f"{word.meaning}; {fresh}")], agrees

    def _fast_page_fault(self, old: str, new: str) -> _Explained:
        return [self._word("old", int(old, 16)), self._word("new", int(new, 16))], None

    def _kvm_mmu_set_spte(self, gfn: str, spte: str, access: str, level: str) -> _Explained:
        value = int(spte, 16)
        word = self._word("spte", value)
        if word.meaning.startswith("MMIO"):  # v5.3 prints MMIO SPTEs here, too
            fits = bool(self.codec.decode_mmio(value)["gfn"] == int(gfn, 16))
        else:
            fits = self._fits_said(with_one_frame(value), int(level))
        return [word], fits and self._has_access(value, access)

    def _kvm_mmu_split_huge_page(self, gfn: str, spte: str, level: str) -> _Explained:
        return [self._word("spte", int(spte, 16))], self._fits(int(spte, 16), int(level))

    def _kvm_tdp_mmu_spte_changed(self, gfn: str, level: str, old: str, new: str) -> _Explained:
        values = (int(old, 16), int(new, 16))
        mmio = [found["gfn"] for value in values if (found := self.codec.decode_mmio(value))["is_mmio"]]
        words = [
            self._tdp_word(name, value, int(level))
            for name, value in zip(("old_spte", "new_spte"), values, strict=True)
        ]
        bits = spte_words(self.codec.profile.name, self.codec.family)
        meaning = change_in_words(bits, int(level), *values)
        reason = self._reasons.of(self._task, is_cut=meaning.startswith("table of") and "cut off" in meaning)
        words.append(Words("change", None, f"{meaning}; {reason}" if reason else meaning))
        return words, all(found == int(gfn, 16) for found in mmio) if mmio else None

    def _page_zap_pte(self, spte: str) -> _Explained:
        return [self._word("spte", int(spte, 16))], None

    def _make_mmio_spte_ret(self, spte: str) -> _Explained:
        return [self._word("spte", int(spte, 16))], self.is_mmio_spte(int(spte, 16))

    def _mark_mmio_spte(self, gfn: str, access: str, gen: str) -> _Explained:
        if not self.codec.makes_mmio_sptes:
            return [], False
        try:
            spte = self.codec.make_mmio_spte(int(gfn, 16), int(access, 16) & 7, int(gen, 16))
        except UsageError:
            return [], False
        return [Words("the MMIO SPTE made of these", spte, self._phrase(spte))], None

    def _handle_mmio_page_fault(self, gfn: str, access: str) -> _Explained:
        stored = int(access, 16)
        words = [word for bit, word in ((2, "write"), (4, "user")) if stored & bit]
        said = f"gfn {gfn} has no memslot, access {'+'.join(words) or 'read'}; a fresh MMIO SPTE, so it is emulated"
        return [Words("MMIO hit", None, said)], None

    def _kvm_mmu_spte_requested(self, gfn: str, pfn: str, level: str) -> _Explained:
        del level
        if int(pfn, 16) & _NOSLOT:
            return [Words("pfn", int(pfn, 16), f"gfn {gfn} has no memslot: an MMIO SPTE is made")], None
        return [], None

    def _access(self, value: int) -> str:
        """`rwxu` as `kvm_mmu_set_spte` prints it."""
        return spte_words(self.codec.profile.name, self.codec.family).access_text(value)

    def _fits(self, value: int, level: int) -> bool:
        """A leaf of this level: large above level 1, present for the kernel."""
        found = self.codec.decode_mmio(value)
        return bool(found["shadow_present"]) and (level > 1) == bool(value >> 7 & 1)


_Explained = tuple[list[Words], bool | None]


def explainer(kernel: str, phys_bits: int = 40, family: str = "npt", l1tf: bool | None = None) -> Explainer:
    """The explainer of a kernel on a host.

    Args:
        phys_bits: physical address width of the host, bits.
        family: the masks: `npt` (legacy, also `shadow` paging), `ept_ad` or `ept_noad`.
        l1tf: MMIO SPTEs have the L1TF mask; None: up to v5.4 yes, later no.

    Raises:
        TraceError: the layout of this kernel is not known.
    """
    try:
        return Explainer(Codec(kernel, family, phys_bits, l1tf=l1tf))
    except UsageError as err:
        raise TraceError(
            f"the SPTE layout of this host is not known: {err}; `kvm-mmu trace summary`, `stalls`, `export` need none"
        ) from err


def explained(
    trace: Traced, kernel: str, phys_bits: int = 40, family: str = "npt", l1tf: bool | None = None
) -> Iterator[str]:
    """Yields every line, and below each line with words in it one line a word.

    Args:
        trace: A path, an open `Trace`, or lines.
        kernel: Whose words they are.
        phys_bits: Physical address width of the host, bits.
        family: The masks: `npt` (legacy, also `shadow` paging), `ept_ad` or `ept_noad`.
        l1tf: Whether MMIO SPTEs have the L1TF mask; None: up to v5.4 yes, later no.

    Raises:
        TraceError: the file cannot be read, or the layout of this kernel is not known.
    """
    for text, words in explainer(kernel, phys_bits, family, l1tf).lines(lines_of(trace)):
        yield text
        yield from (f"{INDENT}{word}" for word in words)


def as_json(number: int, text: str, words: list[Words]) -> dict[str, Any]:
    """A line with words in it as plain values; the schema has a version."""
    line = parse_line(text)
    return {
        "schema": "kvm-mmu/trace-decode/1",
        "line": number,
        "event": "" if line is None else line.event,
        "text": text,
        "words": [
            {"name": w.name, "value": None if w.value is None else hex(w.value), "meaning": w.meaning}
            for w in words
        ],
    }


def _page(found: re.Match[str]) -> str:
    gen, gfn, level, size, quadrant, direct, access, invalid, not_nxe, not_ad, roots, unsync, created = (
        found.groups()
    )
    parts = [f"level {level} ({_LEVELS.get(int(level), 'level out of range')})", f"from gfn {gfn}"]
    parts.append("maps guest frames directly" if direct else "shadows a guest table")
    if size and not direct:
        parts.append("PAE guest" if size == " pae" else f"guest entries of{size.replace('-byte', ' bytes')}")
    if quadrant != "0":
        parts.append(f"quarter {quadrant} of a 32-bit guest table")
    letters = (("r", "read"), ("w", "write"), ("u", "user"), ("x", "execute"))
    allowed = [word for letter, word in letters if letter in access]
    parts.append(f"allows {', '.join(allowed) or 'nothing'}")
    parts.append("NX in use" if not not_nxe else "NX not in use")
    if not_ad:
        parts.append("accessed/dirty bits not in use")
    if invalid:
        parts.append(f"invalid: {'waits for its last user' if int(roots) else 'nobody uses it any more'}")
    if int(roots):
        parts.append(f"root in use, count {roots}")
    if unsync:
        parts.append("out of sync with the guest table")
    if gen is not None:
        parts.append(f"valid generation {gen}")
    if created:
        parts.append("made" if created == "new" else "found")
    return "; ".join(parts)
