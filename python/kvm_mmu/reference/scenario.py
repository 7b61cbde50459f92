"""Reading operations and configurations of the scenario language into plain, checked values.

Owns the table of operations and their fields. Everything is checked, nested lists included, before anything runs, so a
refused operation leaves the VM as it was.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from .common.constants import KVM_ADDRESS_SPACE_NUM, PT_MAX_HUGEPAGE_LEVEL, U64
from .common.errors import ScenarioError, cut
from .common.host_memory import HOST_PAGE_KINDS, HOST_STATES, HOST_STATES_6, HostAnswer
from .common.kernels import KernelRules
from .common.masks import FAMILIES
from .common.state import Config, Op
from .common.zap_plan import parse_plan

REQUIRED = object()
MAX_NESTING = 16
#: Slot ids an operation may name; which of them a kernel takes is its own affair.
SLOT_IDS = 1 << 15

SLOT_WORK = (
    "remove_write_access",
    "leaf_clear_dirty",
    "largepage_remove_write_access",
    "set_dirty",
    "zap_collapsible",
    "flush_shadow_memslot",
    "flush",
)
SLOT_WORK_6 = (*SLOT_WORK, "split_4k", "split_2m")
MASKED_WORK = ("write_protect", "clear_dirty")

HEX_NUMBER = re.compile("0[xX][0-9a-fA-F]{1,32}")

Reader = Callable[[str, Any, int], Any]


def read_u64(what: str, value: Any, _vcpus: int) -> int:
    """An integer or a hex string of at most 64 bits."""
    if isinstance(value, str) and HEX_NUMBER.fullmatch(value):
        value = int(value, 16)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ScenarioError(f"{what} is {cut(value)}; expected a number or a hex string 0x...")
    if not 0 <= value <= U64:
        raise ScenarioError(f"{what} is {cut(value)}; expected 0 to 2^64 - 1")
    return int(value)


def below(limit: int, meaning: str) -> Reader:
    def read(what: str, value: Any, vcpus: int) -> int:
        number = read_u64(what, value, vcpus)
        if number >= limit:
            raise ScenarioError(f"{what} is {number}; expected {meaning}")
        return number

    return read


def one_of(names: tuple[str, ...]) -> Reader:
    def read(what: str, value: Any, _vcpus: int) -> str:
        if value not in names:
            raise ScenarioError(f"{what} is {cut(value)}; expected one of {', '.join(names)}")
        return str(value)

    return read


def one_of_numbers(*numbers: int) -> Reader:
    def read(what: str, value: Any, vcpus: int) -> int:
        number = read_u64(what, value, vcpus)
        if number not in numbers:
            raise ScenarioError(f"{what} is {number}; expected one of {', '.join(map(str, numbers))}")
        return number

    return read


def read_vcpu(what: str, value: Any, vcpus: int) -> int:
    number = read_u64(what, value, vcpus)
    if number >= vcpus:
        raise ScenarioError(f"{what} is {number}; this VM has {vcpus} vCPUs")
    return number


def read_flag(what: str, value: Any, vcpus: int) -> int:
    number = read_u64(what, value, vcpus)
    if number > 1:
        raise ScenarioError(f"{what} is {number}; expected 0 or 1")
    return number


def read_words(what: str, value: Any, vcpus: int) -> list[int]:
    if not isinstance(value, list):
        raise ScenarioError(f"{what} is {cut(value)}; expected a list of 64-bit words")
    return [read_u64(f"{what}[{i}]", word, vcpus) for i, word in enumerate(value)]


def read_op_lists(
    what: str, value: Any, vcpus: int, depth: int = 0, format: int = 1, has_guest_tables: bool = False
) -> list[list[Op]]:
    """Operations to run inside this one; each is kept as it was given, too, because the line repeats it."""
    if not isinstance(value, list) or not all(isinstance(ops, list) for ops in value):
        raise ScenarioError(f"{what} is not a list of lists of operations")
    return [
        [{"given": op, "checked": parse_op(op, vcpus, depth + 1, format, has_guest_tables)} for op in ops]
        for ops in value
    ]


def read_plan(_what: str, value: Any, _vcpus: int) -> Any:
    return parse_plan(value)


read_pfn = below(1 << 40, "a page frame number of 40 bits")


def read_host_answer(what: str, value: Any, vcpus: int) -> HostAnswer:
    """What the host said to a fault: null, or the level, whether it is writable, and the gfns it has at hand."""
    if value is None:
        return HostAnswer(is_retry=True)
    if not isinstance(value, Mapping) or not set(value) <= {"level", "writable", "found", "set", "pfn"}:
        raise ScenarioError(
            f"{what} is {cut(value)}; expected null or an object of level, writable, found, set, pfn"
        )
    found, written, pfn = value.get("found"), value.get("set"), value.get("pfn")
    return HostAnswer(
        level=read_level(f"{what}.level", value.get("level", 1), vcpus),
        is_writable=bool(read_flag(f"{what}.writable", value.get("writable", 0), vcpus)),
        found=None if found is None else frozenset(read_words(f"{what}.found", found, vcpus)),
        is_written=None if written is None else bool(read_flag(f"{what}.set", written, vcpus)),
        pfn=None if pfn is None else read_pfn(f"{what}.pfn", pfn, vcpus),
    )


def read_level(what: str, value: Any, vcpus: int) -> int:
    level = read_u64(what, value, vcpus)
    if not 1 <= level <= PT_MAX_HUGEPAGE_LEVEL:
        raise ScenarioError(f"{what} is {level}; expected 1 to {PT_MAX_HUGEPAGE_LEVEL}")
    return level


Fields = dict[str, tuple[Reader, Any]]

AS: Fields = {"as": (below(KVM_ADDRESS_SPACE_NUM, "0 (normal) or 1 (SMM)"), 0)}
SLOT: Fields = {**AS, "id": (below(SLOT_IDS, "a slot id below 32768"), REQUIRED)}
VCPU: Fields = {"vcpu": (read_vcpu, 0)}
N: Fields = {"n": (read_u64, REQUIRED)}
RANGE: Fields = {"start": (read_u64, REQUIRED), "end": (read_u64, REQUIRED)}
HOST_RANGE: Fields = {"hva": (read_u64, REQUIRED), "npages": (read_u64, 1)}

OPS: dict[str, Fields] = {
    "set_memslot": {
        "as": (read_u64, 0),
        "id": (read_u64, REQUIRED),
        "gpa": (read_u64, REQUIRED),
        "size": (read_u64, REQUIRED),
        "hva": (read_u64, 0),
        "flags": (read_u64, 0),
        "during": (read_op_lists, ()),
    },
    "access": {**VCPU, "gpa": (read_u64, REQUIRED), "kind": (one_of(("r", "w", "x")), "r")},
    "fault": {
        **VCPU,
        "gpa": (read_u64, REQUIRED),
        "err": (read_u64, REQUIRED),
        "host": (read_host_answer, None),
    },
    "enter": VCPU,
    "load": VCPU,
    "unload": VCPU,
    "smm": {**VCPU, "on": (read_flag, REQUIRED)},
    "set_regs": {
        **VCPU,
        "cr0": (read_u64, None),
        "cr4": (read_u64, None),
        "efer": (read_u64, None),
        "smm": (read_flag, None),
    },
    "init": VCPU,
    "get_dirty_log": SLOT,
    "clear_dirty_log": {
        **SLOT,
        "first": (read_u64, REQUIRED),
        "num": (read_u64, REQUIRED),
        "mask": (read_words, ()),
    },
    "manual_protect": {"on": (read_u64, REQUIRED)},
    "dirty_masked": {**SLOT, "offset": (read_u64, REQUIRED), "mask": (read_u64, REQUIRED)},
    "slot": {**SLOT, "what": (one_of(SLOT_WORK), REQUIRED)},
    "pt_masked": {
        **SLOT,
        "offset": (read_u64, REQUIRED),
        "mask": (read_u64, REQUIRED),
        "what": (one_of(MASKED_WORK), REQUIRED),
    },
    "gfn_write_protect": {**AS, "gfn": (read_u64, REQUIRED)},
    "track": {**AS, "gfn": (read_u64, REQUIRED), "on": (read_flag, REQUIRED)},
    "set_nr_mmu_pages": N,
    "change_mmu_pages": N,
    "set_max_raw": N,
    "shrink": N,
    "zap_oldest": N,
    "zap_all": {},
    "invalidate_mmio": AS,
    "zap_gfn_range": RANGE,
    "unmap_hva": RANGE,
    "age_hva": {**RANGE, "flush": (read_flag, 0)},
    "test_age_hva": {"hva": (read_u64, REQUIRED)},
    "change_pte": {
        "hva": (read_u64, REQUIRED),
        "pfn": (read_pfn, REQUIRED),
        "write": (read_flag, 0),
    },
    "set_generation": {**AS, "gen": (read_u64, REQUIRED)},
    "lock_break": {"cond": (read_u64, 0), "need": (read_u64, 0), "do": (read_op_lists, ())},
    "host_state": {**HOST_RANGE, "state": (one_of(HOST_STATES), REQUIRED)},
    "host_huge": {**HOST_RANGE, "kind": (one_of(HOST_PAGE_KINDS), REQUIRED)},
    "clear_mmio_info": VCPU,
    "set_nx": {"on": (read_flag, REQUIRED)},
    "nx_recover": {"ratio": (read_u64, 60)},
    "eager_split": {"on": (read_flag, REQUIRED)},
    "quirk": {"slot_zap_all": (read_flag, REQUIRED)},
    "prefault": {
        **VCPU,
        "gpa": (read_u64, REQUIRED),
        "size": (read_u64, REQUIRED),
        "host": (read_host_answer, None),
    },
    "dump": {},
    # Beyond the vectors' language: zap by a plan, and the end of the VM's mappings.
    "zap": {
        "plan": (read_plan, REQUIRED),
        "as": AS["as"],
        "id": (below(SLOT_IDS, "a slot id below 32768"), None),
        "start": (read_u64, None),
        "end": (read_u64, None),
    },
    "teardown": {},
    # What the processor did while nobody looked.
    "cpu_sets": {**AS, "gfns": (read_words, REQUIRED), "bit": (one_of(("accessed", "dirty")), REQUIRED)},
}


BYTES: Fields = {"bytes": (one_of_numbers(1, 2, 4, 8), 8)}
USER: Fields = {"user": (read_flag, 0)}
#: What only guests with page tables of their own can do.
SHADOW_OPS: dict[str, Fields] = {
    "vaccess": {
        **VCPU,
        "gva": (read_u64, REQUIRED),
        "kind": (one_of(("r", "w", "x")), "r"),
        **USER,
    },
    "gwrite": {
        **VCPU,
        "gva": (read_u64, REQUIRED),
        "gpa": (read_u64, REQUIRED),
        "val": (read_u64, REQUIRED),
        **BYTES,
        **USER,
    },
    "poke": {**VCPU, "gpa": (read_u64, REQUIRED), "val": (read_u64, REQUIRED), **BYTES},
    "peek": {**VCPU, "gpa": (read_u64, REQUIRED), **BYTES},
    "emul_write": {**VCPU, "gpa": (read_u64, REQUIRED), "val": (read_u64, REQUIRED), **BYTES},
    "invlpg": {**VCPU, "gva": (read_u64, REQUIRED)},
    "set_cr3": {**VCPU, "cr3": (read_u64, REQUIRED)},
    "set_pkru": {**VCPU, "pkru": (below(1 << 32, "32 bits"), REQUIRED)},
    "unprotect": {"gfn": (read_u64, REQUIRED)},
    # What a recording shows of the emulator and of entries.
    "guest_walk": {**VCPU, "gva": (read_u64, REQUIRED), "err": (read_u64, 0)},
    "sync_roots": VCPU,
    "guest_store": {**VCPU, "gva": (read_u64, REQUIRED), "val": (read_u64, REQUIRED), **BYTES, **USER},
    "set_regs": {**OPS["set_regs"], "cr3": (read_u64, None), "ac": (read_flag, None)},
}


# What format 6 has besides, and otherwise.
OPS_6: dict[str, Fields] = {
    **OPS,
    "slot": {**SLOT, "what": (one_of(SLOT_WORK_6), REQUIRED)},
    "pt_masked": {**OPS["pt_masked"], "what": (one_of((*MASKED_WORK, "enable_log_dirty")), REQUIRED)},
    "gfn_write_protect": {
        **OPS["gfn_write_protect"],
        "id": (below(SLOT_IDS, "a slot id below 32768"), None),
        "level": (below(PT_MAX_HUGEPAGE_LEVEL + 1, "a level up to 3"), 1),
    },
    "unmap_hva": {**RANGE, "block": (read_flag, 1), "during": (read_op_lists, ())},
    "lock_break": {
        "cond": (read_u64, 0),
        "need": (read_u64, 0),
        "contend": (read_u64, 0),
        "alloc": (read_u64, 0),
        "do": (read_op_lists, ()),
    },
    "host_state": {**HOST_RANGE, "state": (one_of(HOST_STATES_6), REQUIRED)},
    "flush_shadow_all": {},
}
OPS_OF_FORMAT = {1: OPS, 6: OPS_6}
#: The same for guests with page tables of their own.
SHADOW_OPS_OF_FORMAT = {format: {**ops, **SHADOW_OPS} for format, ops in OPS_OF_FORMAT.items()}


def parse_op(op: Any, vcpus: int, depth: int = 0, format: int = 1, has_guest_tables: bool = False) -> Op:
    """The operation with every field checked, numbers as ints and defaults filled in."""
    if not isinstance(op, Mapping):
        raise ScenarioError(f"an operation is an object with a field 'op', not {cut(op)}")
    if depth > MAX_NESTING:
        raise ScenarioError(f"operations are nested deeper than {MAX_NESTING}")
    name = op.get("op")
    known = (SHADOW_OPS_OF_FORMAT if has_guest_tables else OPS_OF_FORMAT)[format]
    table = known.get(name) if isinstance(name, str) else None
    if table is None:
        raise ScenarioError(f"unknown operation {cut(name)}; expected one of {', '.join(known)}")
    for given in op:
        if given != "op" and given not in table:
            raise ScenarioError(
                f"{name} has no field {cut(given)}; expected {', '.join(table) or 'no field'}"
            )
    parsed: Op = {"op": name}
    for field_name, (read, default) in table.items():
        if field_name not in op:
            if default is REQUIRED:
                raise ScenarioError(f"{name} needs a field {field_name!r}")
            parsed[field_name] = default
        elif read is read_op_lists:
            what = f"{name}.{field_name}"
            parsed[field_name] = read_op_lists(what, op[field_name], vcpus, depth, format, has_guest_tables)
        else:
            parsed[field_name] = read(f"{name}.{field_name}", op[field_name], vcpus)
    if name == "zap":
        check_zap_target(parsed)
    return parsed


def check_zap_target(zap: Op) -> None:
    """A plan that works on a part of the VM must be told which."""
    plan = zap["plan"]
    if plan.needs_slot and zap["id"] is None:
        raise ScenarioError("zap by this plan works on a slot and needs a field 'id'")
    if plan.only == "gfn_range" and (zap["start"] is None or zap["end"] is None):
        raise ScenarioError("zap by this plan works on a gfn range and needs the fields 'start' and 'end'")


CONFIG_RANGES = {
    "phys_bits": (36, 52),
    "execonly": (0, 1),
    "pml": (0, 1),
    "tdp_level": (4, 5),
    "lpage_level": (1, 3),
    "vcpus": (1, 288),
    "flush_range": (0, 1),
    "l1tf": (0, 1),
    "nx_huge_pages": (0, 1),
    "mmio_caching": (0, 1),
    "guest_paging": (0, 1),
    "eager_split": (0, 1),
    "slot_zap_all": (0, 1),
    "tdp_mmu": (0, 1),
    "traced": (0, 1),
}
ONLY_IN_FORMAT_6 = ("eager_split", "slot_zap_all")
ONLY_IN_FORMAT_1 = ("traced",)


# Keys of a header of format 6 that have another name here.
NAMES_OF_FORMAT_6 = {"nx_huge": "nx_huge_pages"}


def parse_config(given: Mapping[str, Any] | None, rules: KernelRules, format: int = 1) -> Config:
    """A header's config with the defaults of the scenario language; l1tf is the CPU's where the kernel asks it."""
    if format not in OPS_OF_FORMAT:
        raise ScenarioError(f"format is {format!r}; expected one of {', '.join(map(str, OPS_OF_FORMAT))}")
    given = {"l1tf": int(rules.l1tf), "tdp_mmu": int(format == 6), **(given or {})}
    if format == 6:
        given = {NAMES_OF_FORMAT_6.get(name, name): value for name, value in given.items()}
        check_format_6(rules)
    known = [
        f.name
        for f in fields(Config)
        if f.name not in (ONLY_IN_FORMAT_1 if format == 6 else ONLY_IN_FORMAT_6)
    ]
    for name in given:
        if name not in known:
            raise ScenarioError(f"config has no key {cut(name)}; expected {', '.join(known)}")
    family = given.get("family", Config().family)
    if family not in FAMILIES:
        raise ScenarioError(f"family is {cut(family)}; the reference has {', '.join(FAMILIES)}")
    values: dict[str, int] = {}
    for name, (low, high) in CONFIG_RANGES.items():
        value = read_u64(f"config {name}", given.get(name, getattr(Config(), name)), 0)
        if not low <= value <= high:
            raise ScenarioError(f"config {name} is {value}; expected {low} to {high}")
        values[name] = value
    if family == "shadow" and values["guest_paging"] and not rules.has_guest_tables:
        raise ScenarioError(
            f"guests with page tables of their own are not modelled for {rules.name}: give guest_paging 0"
        )
    if family == "shadow" and not values["guest_paging"] and not rules.is_level_requested:
        raise ScenarioError("guest_paging 0 is here only for kernels of v5.10 and later")
    if values["tdp_mmu"] and family == "shadow":
        raise ScenarioError("config tdp_mmu is 1; family 'shadow' has shadow pages only: give tdp_mmu 0")
    if values["tdp_mmu"] and not rules.has_tdp_mmu:
        raise ScenarioError(f"config tdp_mmu is 1; the TDP MMU of {rules.name} is not modelled")
    if values["nx_huge_pages"] and not rules.has_nx_huge_pages:
        raise ScenarioError(f"nx_huge_pages is not modelled for {rules.name}")
    if not values["mmio_caching"] and not rules.has_mmio_caching:
        raise ScenarioError(f"mmio_caching is not modelled for {rules.name}")
    return Config(family=family, **values)


def check_format_6(rules: KernelRules) -> None:
    """Format 6 is that of v6 and later."""
    if not rules.has_max_gfn:
        raise ScenarioError(f"format is 6; {rules.name} has format 1")
