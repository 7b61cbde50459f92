"""The shadow MMU in 2026: the rules of bookkeeping that its fixes repaired, each shown by a scenario under both rules.

Bookkeeping only: which rule it was, which rows of the model have the old one, and what a few operations count and leave
behind under either. Nothing here says how a guest would use it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from kvm_mmu.errors import KvmMmuError
from kvm_mmu.machine.profiles import facts, kernel_profile
from kvm_mmu.scenario.fact_scenarios import fact_scenario, value_text
from kvm_mmu.scenario.language import make_engine, read_scenario
from kvm_mmu.scenario.machine_engine import MachineEngine
from kvm_mmu.studies.fixes import FIXES
from kvm_mmu.studies.gallery import Answer, Table
from kvm_mmu.studies.study import ROWS, Study


@dataclass(frozen=True)
class Rule:
    """A rule that was repaired.

    Attributes:
        fact: the fact of the rows that says which rule a kernel has.
        old: its value before the repair.
        new: its value after it.
        keeps: the invariant, in one sentence.
    """

    fact: str
    old: str
    new: str
    keeps: str


RULES = (
    Rule(
        "mmio_over_leaf",
        "overwrite",
        "drop_first",
        "A present entry is dropped, with its reverse map and a flush, before an MMIO SPTE takes its place.",
    ),
    Rule(
        "child_reuse",
        "any",
        "gfn_role",
        "A table that is linked already is kept only if its gfn and role are those that the parent wants there.",
    ),
    Rule(
        "stale_test",
        "before_reclaim",
        "after_reclaim",
        "No table is made under a root that the fault's own reclaim has just made invalid.",
    ),
    Rule(
        "child_role_valid",
        "no",
        "yes",
        "The mark invalid of a page is never inherited by the tables below it.",
    ),
    Rule(
        "track_all_spaces",
        "no",
        "yes",
        "A gfn that is tracked in any address space is mapped writable in none.",
    ),
    Rule(
        "mmio_cache_space",
        "zero",
        "own",
        "A vCPU's MMIO cache goes by the generation of its own address space.",
    ),
    Rule(
        "collapse",
        "by_table",
        "by_table_in_slot",
        "Turning the dirty log off looks at the slot's own tables and at no memory in front of them.",
    ),
)


def _rows_with(rule: Rule) -> tuple[list[str], list[str]]:
    """Kernels that have the old rule, and those that have the new one."""
    old: list[str] = []
    new: list[str] = []
    for name in ROWS:
        has_new = value_text(kernel_profile(name).facts[rule.fact]) == rule.new
        (new if has_new else old).append(name)
    return old, new


def f1() -> Answer:
    """The rules, and who has which."""
    rows: dict[str, list[object]] = {
        name: []
        for name in ("rule", "commit", "CVE", "rows with the old rule", "rows with the new one", "fact")
    }
    for rule in RULES:
        about = facts[rule.fact]
        old, new = _rows_with(rule)
        values = (
            rule.keeps, about.commit or "-", about.cve or "-", ", ".join(old) or "none",
            ", ".join(new) or "none", rule.fact,
        )  # fmt: skip
        for name, value in zip(rows, values, strict=True):
            rows[name].append(value)
    return Answer(
        "F1",
        "seven rules, and which kernels have them",
        "at least eight fixes of 2026 repaired an invariant of the shadow MMU's bookkeeping",
        tables=[Table("Rows of the model; of any release `kvm-mmu kernels show RELEASE` tells", rows)],
        verdict="Whether a host has a rule is a question of its patch level, not of its version.",
        command="kvm-mmu kernels diff 6.12.94 6.12.117",
    )


def _run(rule: Rule, kernel: str) -> tuple[list[dict[str, Any]], list[str], str]:
    """A fact's scenario under a kernel: its result lines, what audit and judge found, and the digest of the end."""
    shown = fact_scenario(rule.fact)
    if shown is None:
        return [], [], "-"
    scenario = read_scenario(shown.path)
    engine = make_engine(scenario, kernel)
    vm = engine.vm if isinstance(engine, MachineEngine) else None
    is_judged = vm is not None and not vm.shadows_guest
    if vm is not None and is_judged:
        vm.set_judged()
    lines: list[dict[str, Any]] = []
    found: list[str] = []
    for operation in scenario.ops:
        try:
            lines.append(engine.apply(operation))
        except KvmMmuError:
            # Both kernels take the file; what one of them does not get through is its own fault.
            lines.append({"ctr": {}})
            found.append("undefined: reads outside the slot")
            break
        if vm is not None:
            found += [name for name, _ in (*vm.audit(), *(vm.judge() if is_judged else ()))]
    return lines, sorted(set(found)), engine.digest()


def _pair(rule: Rule) -> tuple[str, str]:
    """A kernel with the old rule and one with the new, which differ in nothing else."""
    shown = fact_scenario(rule.fact)
    if shown is None:
        return "", ""
    one, other = shown.kernels(rule.old, rule.new)
    is_first_new = value_text(kernel_profile(one).facts[rule.fact]) == rule.new
    return (other, one) if is_first_new else (one, other)


def f2() -> Answer:
    """What a few operations leave behind under either rule."""
    rows: dict[str, list[object]] = {
        name: []
        for name in ("fact", "kernel", "operations", "differing", "counters", "audit and judge", "digest")
    }
    for rule in RULES:
        pair = _pair(rule)
        runs = [_run(rule, kernel) for kernel in pair]
        differing = sum(a != b for a, b in zip_longest(runs[0][0], runs[1][0]))
        for kernel, (lines, found, digest) in zip(pair, runs, strict=True):
            total: dict[str, int] = {}
            for line in lines:
                for name, count in line["ctr"].items():
                    total[name] = total.get(name, 0) + count
            kept = ("zapped", "created", "flush", "flush_range")
            counters = ", ".join(f"{name} {total[name]}" for name in kept if total.get(name))
            values = (
                rule.fact,
                kernel,
                len(lines),
                differing,
                counters or "-",
                ", ".join(found) or "nothing",
                digest,
            )
            for name, value in zip(rows, values, strict=True):
                rows[name].append(value)
    return Answer(
        "F2",
        "the same operations under the old rule and the new",
        "each rule changes what a handful of operations counts, or what it leaves behind",
        tables=[
            Table(
                "Each fact's own scenario, under two kernels that differ in the fact alone; *differing*: operations "
                "whose events, counters or results are not the same",
                rows,
            )
        ],
        verdict="Where audit and judge name a property under the old rule alone, the rule is what broke it; what they "
        "name under both, the scenario brought about. Where they name nothing it shows the rule, not the damage.",
        command="kvm-mmu scenario sample --fact track_all_spaces",
    )


def f3() -> Answer:
    """What a search finds by itself."""
    known = {fix.fact: fix for fix in FIXES}
    rows: dict[str, list[object]] = {
        name: [] for name in ("fact", "world", "properties", "found on", "not on", "releases")
    }
    for rule in RULES:
        fix = known.get(rule.fact)
        values: tuple[object, ...] = (rule.fact, "none", "-", "-", "-", "-")
        if fix is not None:
            values = (
                rule.fact, fix.world.name, ", ".join(fix.names), fix.before, fix.after, fix.releases,
            )  # fmt: skip
        for name, value in zip(rows, values, strict=True):
            rows[name].append(value)
    missing = [rule.fact for rule in RULES if rule.fact not in known]
    return Answer(
        "F3",
        "which of them a search finds by itself",
        "a judge that knows only the properties finds the violation without being told where it is",
        tables=[
            Table(
                "The searches; `kvm-mmu gallery fixes` runs them, [Soundness](../soundness.md) has what they found",
                rows,
            )
        ],
        verdict=f"{len(RULES) - len(missing)} of {len(RULES)}; {', '.join(missing)} have no search of their own.",
        command="kvm-mmu gallery fixes",
    )


STUDY = Study(
    "shadow-2026",
    "The shadow MMU in 2026",
    "the rules of bookkeeping that this year's fixes repaired, each under both rules",
    """
Between April and November 2026 at least eight fixes of KVM's x86 MMU were published, two of them with names.
Each repaired a rule of bookkeeping: what must be true of a shadow page, of its parents, of the reverse map or
of the vCPU's caches before the next step may be taken. They are small rules, and a model can hold a kernel to
them one by one.

This page names the rules, says which of the modelled kernels have the old one, and runs each rule's own
scenario under two kernels that differ in nothing else. It is bookkeeping on the model and nothing more: no page
here says how a guest would use a broken rule. Whether *your* host has a rule is answered by `kvm-mmu kernels
show RELEASE`.
""",
    {"F1": f1, "F2": f2, "F3": f3},
)
