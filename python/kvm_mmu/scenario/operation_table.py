"""The operations of the scenario language and their fields: one table, by which an operation is checked before it
runs.

Owns the names, defaults and bounds. The machine engine runs what `checked_operation` gives; `markdown` makes the table
of docs/reference/scenario.md; a test holds the reference's own table beside this one. A row or a field that only some
scenario formats have says so in `formats`, and a field may stand twice, once for each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from kvm_mmu.errors import ScenarioError, UsageError
from kvm_mmu.machine.numbers import shown
from kvm_mmu.machine.profiles import as_plan
from kvm_mmu.machine.zap_plan import ZapPlan

#: The scenario formats that are read.
FORMATS: Final = (1, 6)
#: The format of the stepped code of v6.1 and v6.12, and what only the other one has.
STEPPED: Final = (6,)
PLAIN: Final = (1,)
#: How deep operations may stand inside operations.
MAX_NESTING = 16
U64_LIMIT = 1 << 64
#: Slot ids that an operation may name: what KVM_USER_MEM_SLOTS leaves room for in the newest kernel.
SLOT_ID_LIMIT = 1 << 15
PFN_LIMIT = 1 << 40

#: What a host page is, and what happens to it: see docs/reference/scenario.md.
HOST_STATES = ("rw", "cow", "absent", "zero", "ro", "fault", "hwpoison")
HOST_KINDS = ("none", "thp", "hugetlb2m", "hugetlb1g")
SLOT_WORK = (
    "remove_write_access",
    "leaf_clear_dirty",
    "largepage_remove_write_access",
    "set_dirty",
    "zap_collapsible",
    "flush_shadow_memslot",
    "flush",
)
MASKED_WORK = ("write_protect", "clear_dirty")
CPU_BITS = ("accessed", "dirty")
#: The same in format 6.
STEPPED_HOST_STATES = ("rw", "cow", "cow_copy", "absent", "ro", "fault", "hwpoison")
STEPPED_SLOT_WORK = (*SLOT_WORK, "split_4k", "split_2m")
STEPPED_MASKED_WORK = (*MASKED_WORK, "enable_log_dirty")

_HEX = re.compile(r"0[xX][0-9a-fA-F]{1,32}")


class _Default:
    """A default that is no value: the field is needed, or what it says stays as it is."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name


REQUIRED: Final = _Default("required")


@dataclass(frozen=True)
class Field:
    """A field of an operation.

    Args:
        kind: `number`, `flag` (0 or 1), `vcpu`, `word`, `numbers` (a list), `ops` (operation lists), `bytes` (1, 2, 4
            or 8), `plan`, `host`.
        default: what it is where it is left out; REQUIRED, or None: not said.
        limit: the first number that is too large.
        words: the words of a `word`.
        formats: the scenario formats that have it.
    """

    name: str
    kind: str = "number"
    default: Any = REQUIRED
    limit: int = U64_LIMIT
    words: tuple[str, ...] = ()
    formats: tuple[int, ...] = FORMATS
    #: Only where the guest's page tables are shadowed.
    is_paging: bool = False


@dataclass(frozen=True)
class Operation:
    """A row: an operation's name, its fields, and what it does in a sentence for the docs."""

    name: str
    fields: tuple[Field, ...]
    what: str
    formats: tuple[int, ...] = FORMATS
    #: Only where the guest's page tables are shadowed.
    is_paging: bool = False


class Checked(NamedTuple):
    """An operation as it was given, and its values: numbers as ints, defaults filled in, inner operations checked."""

    given: Mapping[str, Any]
    name: str
    values: dict[str, Any]


class HostAnswer(NamedTuple):
    """What a fault's `host` says: level, writable and the gfns at hand (None: the lookup failed), whether the leaf was
    written, and the frame (None: the model's own)."""

    found: tuple[int, bool, list[int] | None] | None
    is_written: bool | None
    pfn: int | None = None


VCPU = Field("vcpu", "vcpu", 0)
AS = Field("as", default=0, limit=2)
ID = Field("id", limit=SLOT_ID_LIMIT)
SLOT = (AS, ID)
RANGE = (Field("start"), Field("end"))
HOST_RANGE = (Field("hva"), Field("npages", default=1))
ON = Field("on", "flag")
N = (Field("n"),)
MASK = (Field("offset"), Field("mask"))

KIND = Field("kind", "word", "r", words=("r", "w", "x"))
BYTES = Field("bytes", "bytes", 8)
USER = Field("user", "flag", 0)

TABLE: tuple[Operation, ...] = (
    Operation(
        "set_memslot",
        (
            Field("as", default=0),
            Field("id"),
            Field("gpa"),
            Field("size"),
            Field("hva", default=0),
            Field("flags", default=0),
            Field("during", "ops", ()),
        ),
        "creates, moves or changes a slot, or deletes it (size 0); flags: 1 logs dirty pages, 2 read-only; the n-th "
        "list of `during` runs while the n-th published memslots have their generation in flight",
    ),
    Operation(
        "access",
        (VCPU, Field("gpa"), KIND),
        "a guest access: entry, walk, faults until it ends",
    ),
    Operation(
        "fault",
        (VCPU, Field("gpa"), Field("err"), Field("host", "host", None)),
        "the page fault entry directly; `host` is what the host's lookup said: null (nothing yet), or an object of "
        "`level` (1), `writable` (0), `found` (a list of gfns at hand, or null: as the model says), `set` (whether the "
        "leaf was written where old and new differ in accessed and dirty bits only), `pfn` (the frame; without it the "
        "model's own)",
    ),
    Operation("enter", (VCPU,), "vCPU entry: answers the requests, loads a root"),
    Operation("load", (VCPU,), "loads the roots"),
    Operation("unload", (VCPU,), "frees the roots"),
    Operation("smm", (VCPU, ON), "enters or leaves SMM"),
    Operation(
        "set_regs",
        (
            VCPU,
            Field("cr0", default=None),
            Field("cr4", default=None),
            Field("efer", default=None),
            Field("smm", "flag", None),
            Field("cr3", default=None, is_paging=True),
            Field("ac", "flag", None, is_paging=True),
        ),
        "sets registers (those left out stay) and resets the MMU context",
    ),
    Operation(
        "init",
        (VCPU,),
        "INIT of a vCPU: its control registers are those after INIT (no paging), SMM is left; whether the MMU context "
        "is reset too is the fact `init_resets` (ours)",
    ),
    Operation("clear_mmio_info", (VCPU,), "forgets the vCPU's cached MMIO address"),
    Operation("get_dirty_log", SLOT, "KVM_GET_DIRTY_LOG; `out.bitmap`: see below"),
    Operation(
        "clear_dirty_log",
        (*SLOT, Field("first"), Field("num"), Field("mask", "numbers", ())),
        "KVM_CLEAR_DIRTY_LOG; `mask`: 64-bit words from its start",
    ),
    Operation(
        "manual_protect",
        (Field("on"),),
        "manual dirty log protection: 0 off, 1 on; v6.x: 3 also starts with every page dirty",
    ),
    Operation(
        "slot",
        (
            *SLOT,
            Field("what", "word", words=SLOT_WORK, formats=PLAIN),
            Field("what", "word", words=STEPPED_SLOT_WORK, formats=STEPPED),
        ),
        "a walk over the whole slot",
    ),
    Operation(
        "pt_masked",
        (
            *SLOT,
            *MASK,
            Field("what", "word", words=MASKED_WORK, formats=PLAIN),
            Field("what", "word", words=STEPPED_MASKED_WORK, formats=STEPPED),
        ),
        "the same for up to 64 pages from `offset` on",
    ),
    Operation(
        "dirty_masked",
        (*SLOT, *MASK),
        "what GET and CLEAR_DIRTY_LOG do to up to 64 pages from `offset` on",
    ),
    Operation(
        "gfn_write_protect",
        (
            AS,
            Field("gfn"),
            Field("id", default=None, limit=SLOT_ID_LIMIT, formats=STEPPED),
            Field("level", default=1, limit=4, formats=STEPPED),
        ),
        "write-protects a gfn (from `level` up); `ret` 1: something changed",
    ),
    Operation("track", (AS, Field("gfn"), ON), "write tracking of a gfn on or off"),
    Operation("set_nr_mmu_pages", N, "KVM_SET_NR_MMU_PAGES (below 64: -22)"),
    Operation("change_mmu_pages", N, "sets the limit of shadow pages and makes room"),
    Operation("set_max_raw", N, "stores the limit, nothing else"),
    Operation("shrink", N, "a shrinker's scan of so many; `ret`: pages freed"),
    Operation("zap_oldest", N, "zaps so many of the oldest pages; `ret`: pages zapped"),
    Operation("zap_all", (), "flushes all shadow pages by the plan `flush_all`"),
    Operation("invalidate_mmio", (AS,), "the wrap check with the present generation"),
    Operation("zap_gfn_range", RANGE, "zaps what maps these gfns; `end` is exclusive"),
    Operation(
        "unmap_hva",
        (
            *RANGE,
            Field("block", "flag", 1, formats=STEPPED),
            Field("during", "ops", (), formats=STEPPED),
        ),
        "MMU notifier: host pages go away; `block` 0: the lock is not offered; the first list of `during` runs before "
        "they are gone",
    ),
    Operation("age_hva", (*RANGE, Field("flush", "flag", 0)), "MMU notifier: clears young; `ret`: was young"),
    Operation("test_age_hva", (Field("hva"),), "MMU notifier: `ret`: is young"),
    Operation(
        "change_pte",
        (Field("hva"), Field("pfn", limit=PFN_LIMIT), Field("write", "flag", 0)),
        "MMU notifier: the host page is another one now",
    ),
    Operation(
        "host_state",
        (
            *HOST_RANGE,
            Field("state", "word", words=HOST_STATES, formats=PLAIN),
            Field("state", "word", words=STEPPED_HOST_STATES, formats=STEPPED),
        ),
        "what host pages are; the latest word on a page wins",
    ),
    Operation(
        "host_huge",
        (*HOST_RANGE, Field("kind", "word", words=HOST_KINDS)),
        "how the host maps pages; the latest word on a page wins",
    ),
    Operation("set_generation", (AS, Field("gen")), "stores a memslot generation"),
    Operation(
        "lock_break",
        (
            Field("cond", default=0),
            Field("need", default=0),
            Field("contend", default=0, formats=STEPPED),
            Field("alloc", default=0, formats=STEPPED),
            Field("do", "ops", ()),
        ),
        "every `cond`-th cond_resched drops the lock, every `need`-th need_resched makes the next one do so (0: "
        "never); the n-th list of `do` runs in the n-th break; `contend`: as `need`, of the polls "
        "for a contended lock; `alloc`: as `cond`, of the tables that a split of the TDP MMU allocates with the lock "
        "dropped (v6.12 and later)",
    ),
    Operation("dump", (), "nothing; its line has the state"),
    Operation("flush_shadow_all", (), "zaps everything by the plan `teardown`", STEPPED),
    Operation("set_nx", (ON,), "the parameter nx_huge_pages; a change zaps everything"),
    Operation(
        "nx_recover",
        (Field("ratio", default=60),),
        "one recovery of NX huge pages: zaps one in `ratio` of the tables made for them",
    ),
    Operation("eager_split", (ON,), "the parameter eager_page_split; shadow pages are never split"),
    Operation("quirk", (Field("slot_zap_all", "flag"),), "KVM_X86_QUIRK_SLOT_ZAP_ALL; v6.1: nothing"),
    Operation(
        "prefault",
        (VCPU, Field("gpa"), Field("size"), Field("host", "host", None)),
        "KVM_PRE_FAULT_MEMORY, one step; `host` as for a fault; `ret`: bytes done or an errno (v6.1: -95)",
    ),
    Operation(
        "zap",
        (
            Field("plan", "plan"),
            AS,
            Field("id", default=None, limit=SLOT_ID_LIMIT),
            Field("start", default=None),
            Field("end", default=None),
        ),
        "runs a zap plan: a name, `walk=..,only=..`, or an object of its words; a plan for a slot needs `id`, one for "
        "a gfn range `start` and `end` (ours, not in the recorded files)",
    ),
    Operation(
        "cpu_sets",
        (AS, Field("gfns", "numbers"), Field("bit", "word", words=CPU_BITS)),
        "the processor used or wrote these gfns through leaves of the TDP MMU that allow it, and KVM was not told (-95 "
        "without that MMU; ours)",
    ),
    *(
        Operation(name, fields, what, is_paging=True)
        for name, fields, what in (
            (
                "vaccess",
                (VCPU, Field("gva"), KIND, USER),
                "as `access`, by guest-virtual address, through the shadow of the guest's tables",
            ),
            (
                "gwrite",
                (VCPU, Field("gva"), Field("gpa"), Field("val"), BYTES, USER),
                "a write through `gva`, which leads to `gpa`; if it is emulated, the MMU is told",
            ),
            (
                "poke",
                (VCPU, Field("gpa"), Field("val"), BYTES),
                "writes guest memory without telling the MMU",
            ),
            ("peek", (VCPU, Field("gpa"), BYTES), "reads guest memory: `out.val`"),
            (
                "emul_write",
                (VCPU, Field("gpa"), Field("val"), BYTES),
                "writes guest memory, marks it dirty and tells the MMU",
            ),
            ("invlpg", (VCPU, Field("gva")), "vCPU entry, then INVLPG"),
            (
                "set_cr3",
                (VCPU, Field("cr3")),
                "MOV CR3: through the cache of roots; up to v5.4 `ret` 1: the same value, 2: PDPTEs refused",
            ),
            (
                "set_pkru",
                (VCPU, Field("pkru", limit=1 << 32)),
                "WRPKRU: two bits a protection key, no access and no write; what is mapped stays until it faults again "
                "(ours)",
            ),
            ("unprotect", (Field("gfn"),), "zaps the shadow of a guest's table; `ret` 1: there was one"),
            (
                "guest_walk",
                (VCPU, Field("gva"), Field("err", default=0)),
                "a walk of the guest's tables for the emulator: `ret` 1 and `out.error_code`: it found a fault (ours)",
            ),
            (
                "sync_roots",
                (VCPU,),
                "an entry at which the roots are synced, as after MOV CR3 of the same value (ours)",
            ),
            (
                "guest_store",
                (VCPU, Field("gva"), Field("val"), BYTES, USER),
                "a store of the processor through its tables, stale ones too: `ret` 1: they do not let it (ours)",
            ),
        )
    ),
    Operation("teardown", (), "flushes by the plan `teardown`, then drops all roots (ours)"),
)


def fields_of(format_: int, is_paging: bool = False) -> dict[str, dict[str, Field]]:
    """The fields of every operation of a scenario format, by their names; `is_paging`: the guest's tables are
    shadowed."""
    return {
        row.name: {
            field.name: field
            for field in row.fields
            if format_ in field.formats and field.is_paging <= is_paging
        }
        for row in TABLE
        if format_ in row.formats and row.is_paging <= is_paging
    }


_FIELDS = {
    (format_, is_paging): fields_of(format_, is_paging) for format_ in FORMATS for is_paging in (False, True)
}


def checked_operation(
    op: object, vcpus: int, format_: int = 1, depth: int = 0, is_paging: bool = False
) -> Checked:
    """The operation with every field checked, also those of the operations inside it.

    Args:
        op: the operation, as a file has it.
        vcpus: how many vCPUs the VM has.
        format_: the scenario format.
        depth: how many operations it stands in.
        is_paging: the guest's page tables are shadowed, so that there are operations on them.

    Returns:
        The operation as given and its values.

    Raises:
        ScenarioError: no operation, an unknown one, an unknown or missing field, a value that is none.
    """
    if not isinstance(op, Mapping):
        raise ScenarioError(f"operation {shown(op)}: expected an object with a field 'op'")
    if depth > MAX_NESTING:
        raise ScenarioError(f"operations stand more than {MAX_NESTING} deep inside operations")
    name = op.get("op")
    table = _FIELDS[format_, is_paging]
    fields = table.get(name) if isinstance(name, str) else None
    if fields is None or not isinstance(name, str):
        raise ScenarioError(f"unknown operation {shown(name)}, expected one of {', '.join(sorted(table))}")
    for given in op:
        if given != "op" and given not in fields:
            known = ", ".join(fields) or "no field"
            raise ScenarioError(f"operation {name!r} has no field {shown(given)}, expected {known}")
    values: dict[str, Any] = {}
    for field in fields.values():
        if field.name in op:
            values[field.name] = _read(name, field, op[field.name], vcpus, format_, depth, is_paging)
        elif field.default is REQUIRED:
            raise ScenarioError(f"operation {name!r}: {field.name} is missing")
        else:
            values[field.name] = field.default
    if name == "zap":
        _check_zap_target(values)
    return Checked(op, name, values)


def _read(op: str, field: Field, value: Any, vcpus: int, format_: int, depth: int, is_paging: bool) -> Any:
    match field.kind:
        case "number":
            return _number(op, field.name, value, field.limit)
        case "flag":
            return _number(op, field.name, value, 2)
        case "vcpu":
            return _number(op, field.name, value, vcpus)
        case "word":
            if not isinstance(value, str) or value not in field.words:
                expected = ", ".join(field.words)
                raise ScenarioError(
                    f"operation {op!r}: {field.name}={shown(value)}, expected one of {expected}"
                )
            return value
        case "numbers":
            return _numbers(op, field.name, value)
        case "ops":
            return _inner(op, field.name, value, vcpus, format_, depth, is_paging)
        case "bytes":
            return _bytes(op, field.name, value)
        case "plan":
            return _plan(value)
    return _host_answer(value)


def _number(op: str, name: str, value: Any, limit: int) -> int:
    found = int(value, 16) if isinstance(value, str) and _HEX.fullmatch(value) else value
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found < limit:
        top = f"{limit - 1:#x}" if limit > 1 << 16 else str(limit - 1)
        raise ScenarioError(f"operation {op!r}: {name}={shown(value)}, expected a number from 0 to {top}")
    return found


def _bytes(op: str, name: str, value: Any) -> int:
    found = _number(op, name, value, 9)
    if found not in (1, 2, 4, 8):
        raise ScenarioError(f"operation {op!r}: {name}={shown(value)}, expected 1, 2, 4 or 8")
    return found


def _numbers(op: str, name: str, value: Any) -> list[int]:
    if not isinstance(value, list):
        raise ScenarioError(f"operation {op!r}: {name}={shown(value)}, expected a list of 64-bit numbers")
    return [_number(op, f"{name}[{i}]", number, U64_LIMIT) for i, number in enumerate(value)]


def _inner(
    op: str, name: str, value: Any, vcpus: int, format_: int, depth: int, is_paging: bool
) -> Sequence[Sequence[Checked]]:
    if not isinstance(value, list) or not all(
        isinstance(ops, list) and all(isinstance(inner, dict) for inner in ops) for ops in value
    ):
        raise ScenarioError(f"operation {op!r}: {name}: expected a list of operation lists")
    return [
        [checked_operation(inner, vcpus, format_, depth + 1, is_paging) for inner in ops] for ops in value
    ]


def _plan(value: Any) -> ZapPlan:
    if not isinstance(value, str | dict):
        raise ScenarioError(f"operation 'zap': plan={shown(value)}, expected a name, text or object")
    try:
        return as_plan(value)
    except UsageError as error:
        raise ScenarioError(f"operation 'zap': {error}") from error


def _check_zap_target(values: Mapping[str, Any]) -> None:
    plan: ZapPlan = values["plan"]
    if plan.needs_slot and values["id"] is None:
        raise ScenarioError("operation 'zap': id is missing, which a plan for a slot needs")
    if plan.only == "gfn_range" and (values["start"] is None or values["end"] is None):
        raise ScenarioError("operation 'zap': start or end is missing, which a plan for a gfn range needs")


#: The fields of a fault's `host`.
HOST_ANSWER = ("level", "writable", "found", "set", "pfn")


def _host_answer(value: Any) -> HostAnswer:
    if value is None:
        return HostAnswer(None, None)
    if not isinstance(value, dict) or not set(value) <= set(HOST_ANSWER):
        raise ScenarioError(
            f"operation 'fault': host={shown(value)}, expected null or an object of {', '.join(HOST_ANSWER)}"
        )
    found = value.get("found")
    gfns = None if found is None else _numbers("fault", "host.found", found)
    level = _number("fault", "host.level", value.get("level", 1), 4)
    if not level:
        raise ScenarioError("operation 'fault': host.level=0, expected 1 to 3")
    is_writable = bool(_number("fault", "host.writable", value.get("writable", 0), 2))
    written = value.get("set")
    is_written = None if written is None else bool(_number("fault", "host.set", written, 2))
    pfn = value.get("pfn")
    frame = None if pfn is None else _number("fault", "host.pfn", pfn, PFN_LIMIT)
    return HostAnswer((level, is_writable, gfns), is_written, frame)


def markdown() -> str:
    """The table as docs/reference/scenario.md has it: a field with `=` may be left out, one in brackets too."""
    lines = ["| op | fields | what it is |", "|---|---|---|"]
    for row in TABLE:
        cells = [_in_words(field) for field in row.fields]
        only = "" if len(row.formats) == len(FORMATS) else f"format {row.formats[0]} only: "
        if row.is_paging:
            only += "shadowed guest tables only: "
        lines.append(f"| `{row.name}` | {' '.join(cells)} | {only}{row.what} |")
    return "\n".join(lines) + "\n"


def _in_words(field: Field) -> str:
    if field.default is REQUIRED:
        text = f"`{field.name}`"
    elif field.default is None or field.default == ():
        text = f"`[{field.name}]`"
    else:
        text = f"`{field.name}={field.default}`"
    if len(field.formats) < len(FORMATS):
        text += f" (format {field.formats[0]})"
    if field.is_paging and not text.startswith("`bytes"):
        text += " (shadowed guest tables)"
    return f"{text} ({', '.join(field.words)})" if field.words else text
