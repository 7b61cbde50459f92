"""Raw fields to the kernel's text: lines of `trace-cmd report -R` as tracefs would have printed them.

Owns: which field of which event stands where in the text. The role comes as one word, so that the text needs the
kernel; a line whose fields have no text here stays as it is. A probe's address comes without its symbol and is
printed as one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from kvm_mmu.trace.text.line import parse_line
from kvm_mmu.trace.text.wording import Wording, wording_of

Fields = Mapping[str, int]

_FAILED = "[FAILED TO PARSE]"
_PAIRS = re.compile(r"\s*(?:\w{1,32}=(?:0x[0-9a-f]{1,16}|-?\d{1,20})(?:\s+|$)){1,16}$")
_PAIR = re.compile(r"(\w+)=(\S+)")
_PROBE_HEX = frozenset(
    {"gen", "mask", "gpa", "val", "gfn", "gva", "pgd", "spte", "sptep", "gfn_offset", "access", "cr2"}
)
_PAGE_EVENTS = frozenset(
    {"kvm_mmu_get_page", "kvm_mmu_prepare_zap_page", "kvm_mmu_sync_page", "kvm_mmu_unsync_page"}
)
_MMIO = ("unsatisfied-read", "read", "write")
_TEXTS: dict[str, str] = {
    "mark_mmio_spte": "sptep:{sptep:016x} gfn {gfn:x} access {access:x} gen {gen:x}",
    "handle_mmio_page_fault": "addr:{addr:x} gfn {gfn:x} access {access:x}",
    "kvm_mmu_split_huge_page": "gfn {gfn:x} spte {spte:x} level {level} errno {errno}",
    "kvm_tdp_mmu_spte_changed": (
        "as id {as_id} gfn {gfn:x} level {level} old_spte {old_spte:x} new_spte {new_spte:x}"
    ),
    "kvm_mmu_zap_all_fast": "kvm-mmu-valid-gen {mmu_valid_gen} used_pages {mmu_used_pages:x}",
    "kvm_mmu_invalidate_zap_all_pages": "kvm-mmu-valid-gen {mmu_valid_gen:x} used_pages {mmu_used_pages:x}",
    "kvm_mmu_paging_element": "pte {pte:x} level {level}",
    "kvm_mmu_set_accessed_bit": "gpa {gpa:x}",
    "kvm_mmu_set_dirty_bit": "gpa {gpa:x}",
    "kvm_unmap_hva_range": "mmu notifier unmap range: {start:#016x} -- {end:#016x}",
    "kvm_set_spte_hva": "mmu notifier set pte hva: {hva:#016x}",
    "kvm_age_hva": "mmu notifier age hva: {start:#016x} -- {end:#016x}",
    "kvm_test_age_hva": "mmu notifier test age hva: {hva:#016x}",
}


def in_kernel_text(lines: Iterable[str], kernel: str) -> Iterator[str]:
    """The lines, those of raw fields as text of that kernel."""
    return (said for _, said in with_kernel_text(lines, kernel))


def with_kernel_text(lines: Iterable[str], kernel: str) -> Iterator[tuple[str, str]]:
    """Each line as it is, and with its raw fields as text of that kernel."""
    for text in lines:
        # Raw lines are those with a field and its value: most lines are refused by this.
        yield text, _line(text, kernel) if "=" in text else text


def _line(text: str, kernel: str) -> str:
    line = parse_line(text)
    if line is None or line.body[:1] in "({":  # a probe's text, an operation
        return text
    body = line.body.strip().removeprefix(_FAILED)
    if _PAIRS.match(body) is None:
        return text
    fields = {name: int(value, 16 if value.startswith("0x") else 10) for name, value in _PAIR.findall(body)}
    try:
        said = event_text(line.event, fields, kernel)
    except KeyError:  # other fields than this event has on the kernels known here
        said = None
    return text if said is None else text[: line.event_at] + f"{line.event}: {said}"


def event_text(event: str, fields: Fields, kernel: str) -> str | None:
    """What that kernel prints for an event, None where this is not known.

    Raises:
        KeyError: a field is missing.
    """
    if event in _TEXTS:
        return _TEXTS[event].format_map(fields)
    if event in _PAGE_EVENTS:
        return _page(event, fields, wording_of(kernel))
    if event in _MADE:
        return _MADE[event](fields, kernel)
    return _probe(fields)


def _page(event: str, f: Fields, wording: Wording) -> str:
    text = wording.page(f["gfn"], f["role"], f["root_count"], bool(f["unsync"]), f.get("mmu_valid_gen", 0))
    return text + ((" new" if f["created"] else " existing") if event == "kvm_mmu_get_page" else "")


def _probe(f: Fields) -> str | None:
    if "__probe_ip" in f:
        where = f"({f['__probe_ip']:#x}+0x0/0x0)"
    elif "__probe_func" in f:
        where = f"({f['__probe_ret_ip']:#x}+0x0/0x0 <- {f['__probe_func']:#x})"
    else:
        return None
    args = (f"{k}={v:#x}" if k in _PROBE_HEX else f"{k}={v}" for k, v in f.items() if not k.startswith("__"))
    return " ".join([where, *args])


def _page_fault(f: Fields, _: str) -> str:
    if "vcpu_id" not in f:
        return f"address {f['fault_address']:x} error_code {f['error_code']:x}"
    return (
        f"vcpu {f['vcpu_id']} rip {f['guest_rip']:#x} address {f['fault_address']:#018x} "
        f"error_code {f['error_code']:#x}"
    )


def _check_mmio(f: Fields, _: str) -> str:
    valid = int(f["kvm_gen"] == f["spte_gen"])
    return f"spte {f['spte']:x} kvm_gen {f['kvm_gen']:x} spte-gen {f['spte_gen']:x} valid {valid}"


def _fast_page_fault(f: Fields, kernel: str) -> str | None:
    wording = wording_of(kernel)
    returns = wording.fast_returns
    if returns is None:
        return None
    spurious, fixed = (int(f["ret"] == value) for value in returns)
    return (
        f"vcpu {f['vcpu_id']} gva {f['cr2_or_gpa']:x} error_code {wording.error_text(f['error_code'])} "
        f"sptep {f['sptep']:016x} old {f['old_spte']:#x} new {f['new_spte']:x} spurious {spurious} fixed {fixed}"
    )


def _set_spte(f: Fields, _: str) -> str:
    user = "" if f["u"] == -1 else "u" if f["u"] else "-"
    access = f"{'r' if f['r'] else '-'}{'w' if f['spte'] & 2 else '-'}{'x' if f['x'] else '-'}{user}"
    return f"gfn {f['gfn']:x} spte {f['spte']:x} ({access}) level {f['level']} at {f['sptep']:x}"


def _walk(f: Fields, kernel: str) -> str:
    return f"addr {f['addr']:x} pferr {f['pferr']:x} {wording_of(kernel).error_text(f['pferr'])}"


def _requested(f: Fields, _: str) -> str:
    access = f" access {f['access']:x}" if "access" in f else ""
    return f"gfn {f['gfn']:x} pfn {f['pfn']:x} level {f['level']}{access}"


def _entry(f: Fields, _: str) -> str:
    rip = f", rip {f['rip']:#x}" if "rip" in f else ""
    if "intr_info" in f:
        rip += f" intr_info {f['intr_info']:#010x} error_code {f['error_code']:#010x}"
    return f"vcpu {f['vcpu_id']}{rip}{'[immediate exit]' if f.get('immediate_exit') else ''}"


def _smm(f: Fields, _: str) -> str:
    return f"vcpu {f['vcpu_id']}: {'entering' if f['entering'] else 'leaving'} SMM, smbase {f['smbase']:#x}"


def _mmio(f: Fields, _: str) -> str | None:
    if not 0 <= f["type"] < len(_MMIO):
        return None
    return f"mmio {_MMIO[f['type']]} len {f['len']} gpa {f['gpa']:#x} val {f['val']:#x}"


def _match_mmio(f: Fields, _: str) -> str:
    access = "Write" if f["write"] else "Read"
    return f"gva {f['gva']:#x} gpa {f['gpa']:#x} {access} {'GPA' if f['gpa_match'] else 'GVA'}"


_MADE: dict[str, Callable[[Fields, str], str | None]] = {
    "kvm_page_fault": _page_fault,
    "check_mmio_spte": _check_mmio,
    "fast_page_fault": _fast_page_fault,
    "kvm_mmu_set_spte": _set_spte,
    "kvm_mmu_pagetable_walk": _walk,
    "kvm_mmu_walker_error": lambda f, kernel: (
        f"pferr {f['pferr']:x} {wording_of(kernel).error_text(f['pferr'])}"
    ),
    "kvm_mmu_spte_requested": _requested,
    "kvm_entry": _entry,
    "kvm_smm_transition": _smm,
    "kvm_mmio": _mmio,
    "vcpu_match_mmio": _match_mmio,
}
