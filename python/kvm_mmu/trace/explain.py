"""A trace with its roles, SPTEs and MMIO SPTEs explained: each line as it is, and below it what its words
mean.

Owns: which events carry which words. What a bit means for v5.x is the machine layer's codec; the layout of
v6.1 and v6.12 (legacy masks) is the one of `spte_6x`. A kernel whose layout is not known is refused,
not guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from kvm_mmu.errors import TraceError
from kvm_mmu.trace import spte_6x
from kvm_mmu.trace.line import Line, clean_body, parse_line
from kvm_mmu.trace.raw_fields import with_kernel_text

INDENT = "        | "
_LAYOUTS_5X = {"v5.0": "v5.0", "v5.0-seed": "v5.0", "v5.1": "v5.2", "v5.2": "v5.2", "v5.3": "v5.2"}
_LAYOUTS_6X = ("v6.1", "v6.12")
_HEX = "([0-9a-f]{1,16})"
#: event -> the words in its text
_WORDS = {
    "check_mmio_spte": rf"(spte) {_HEX} ",
    "fast_page_fault": rf"(old) 0x{_HEX} (new) {_HEX}",
    "kvm_mmu_set_spte": rf"(spte) {_HEX} ",
    "kvm_mmu_split_huge_page": rf"(spte) {_HEX} ",
    "kvm_tdp_mmu_spte_changed": rf"(old_spte) {_HEX} (new_spte) {_HEX}",
    "page_zap_pte": rf"(spte)=0x{_HEX}",
    "make_mmio_spte_ret": rf"(spte)=0x{_HEX}",
    "replay_host_answer": r"(found) (\S+)",
}
_COMPILED = {event: re.compile(pattern) for event, pattern in _WORDS.items()}
_PAGE = re.compile(
    r"sp (?:gen (\w+) )?gfn (\w+) l(\d)( pae| \d-byte)? q(\d)( direct)? ([w-][u-][x-])( invalid)? "
    r"(!?)nxe (!?)ad root (-?\d+) (un)?sync(?: (new|existing))?$"
)
_PAGE_EVENTS = frozenset(
    {"kvm_mmu_get_page", "kvm_mmu_prepare_zap_page", "kvm_mmu_sync_page", "kvm_mmu_unsync_page"}
)
_LEVELS = {
    1: "4 KiB leaves",
    2: "2 MiB entries",
    3: "1 GiB entries",
    4: "512 GiB entries",
    5: "256 TiB entries",
}


def explained(lines: Iterable[str], kernel: str, phys_bits: int = 40, family: str = "npt") -> Iterator[str]:
    """Every line, and below each line with words in it one line a word.

    Args:
        phys_bits: physical address width of the host, bits (5.x only).
        family: the masks, `npt` (legacy, also shadow paging), `ept_ad` or `ept_noad` (5.x only).

    Raises:
        TraceError: the layout of this kernel is not known.
    """
    explain = _explainer(kernel, phys_bits, family)
    for text, said in with_kernel_text(lines, kernel):
        yield text
        line = parse_line(said)
        if line is not None:
            yield from (INDENT + words for words in _of_line(line, explain))


def _of_line(line: Line, explain: Callable[[int], str]) -> Iterator[str]:
    body = clean_body(line.body)
    if line.event in _PAGE_EVENTS:
        found = _PAGE.match(body)
        if found is not None:
            yield _page(found)
        return
    pattern = _COMPILED.get(line.event)
    found = None if pattern is None else pattern.search(body)
    if found is None or line.event == "replay_host_answer":
        return
    groups = found.groups()
    for name, value in zip(groups[::2], groups[1::2], strict=True):
        yield f"{name} {int(value, 16):#x}: {explain(int(value, 16))}"


def _page(found: re.Match[str]) -> str:
    gen, gfn, level, size, quadrant, direct, access, invalid, not_nxe, not_ad, roots, unsync, created = (
        found.groups()
    )
    parts = [f"level {level} ({_LEVELS.get(int(level), 'level out of range')})", f"from gfn {gfn}"]
    parts.append("maps guest frames directly" if direct else "shadows a guest table")
    if size:
        parts.append("PAE guest" if size == " pae" else f"guest entries of{size.replace('-byte', ' bytes')}")
    if quadrant != "0":
        parts.append(f"quarter {quadrant} of a 32-bit guest table")
    allowed = [word for letter, word in (("w", "write"), ("u", "user"), ("x", "execute")) if letter in access]
    parts.append(f"allows {', '.join(allowed) or 'nothing'}")
    parts.append("NX in use" if not not_nxe else "NX not in use")
    if not_ad:
        parts.append("accessed/dirty bits not in use")
    if invalid:
        parts.append("invalid: waits for its last user")
    if int(roots):
        parts.append(f"root of {roots} vCPU{'s' if roots != '1' else ''}")
    if unsync:
        parts.append("out of sync with the guest table")
    if gen is not None:
        parts.append(f"valid generation {gen}")
    if created:
        parts.append("made" if created == "new" else "found")
    return "page: " + "; ".join(parts)


def _explainer(kernel: str, phys_bits: int, family: str) -> Callable[[int], str]:
    if kernel in _LAYOUTS_6X:
        return lambda value: explain_6x(value, kernel)
    layout = _LAYOUTS_5X.get(kernel)
    if layout is None:
        known = ", ".join((*_LAYOUTS_5X, *_LAYOUTS_6X))
        raise TraceError(f"the SPTE layout of kernel {kernel!r} is not known: expected one of {known}")
    from kvm_mmu.machine.words import Codec

    codec = Codec(kernel=layout, family=family, phys_bits=phys_bits)

    def explain(value: int) -> str:
        found = codec.decode_spte(value, None)
        if value == 0:
            return "empty"
        if found["is_mmio"]:
            gen = f"generation {found['mmio_gen']:#x} read back"
            return f"MMIO, gfn {found['gfn']:x}, {_access(found['access'])}, {gen}"
        said = [
            f"{name} {what}" if name != "pfn" else what for _, _, name, value, what in found["bits"] if value
        ]
        return ", ".join(said)

    return explain


def explain_6x(value: int, kernel: str) -> str:
    """An SPTE of v6.1/v6.12 with the legacy masks, in words."""
    if value == 0 or (kernel == "v6.12" and value == 1 << 63):
        return "empty"
    if spte_6x.is_mmio(value):
        gen = spte_6x.mmio_gen(value)
        return f"MMIO, gfn {spte_6x.mmio_gfn(value):x}, {_access(spte_6x.mmio_access(value))}, generation {gen:#x}"
    if not spte_6x.is_shadow_present(value):
        return "not present"
    bits = [
        (spte_6x.WRITABLE, "writable", "write-protected"),
        (spte_6x.USER, "user", "supervisor"),
        (spte_6x.ACCESSED, "accessed", "not accessed"),
        (spte_6x.DIRTY, "dirty", "clean"),
        (spte_6x.HOST_WRITABLE, "host-writable", "host memory read-only"),
        (spte_6x.MMU_WRITABLE, "can be made writable without the lock", ""),
    ]
    said = [f"pfn {spte_6x.pfn_of(value):x}"]
    if value & spte_6x.LARGE:
        said.append("large")
    said.extend(text for bit, on, off in bits if (text := on if value & bit else off))
    said.append("no execute" if value & spte_6x.NO_EXECUTE else "executable")
    return ", ".join(said)


def _access(access: int) -> str:
    words = [word for bit, word in ((2, "write"), (4, "user")) if access & bit]
    return f"access {'+'.join(words)}" if words else "access not stored"
