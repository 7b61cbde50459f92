"""The fixes of KVM's bookkeeping that the judge finds by itself: a violation on the row before, none on that after.

Each line is a search: breadth first, so that what it finds is shortest, and complete to its bound where it finds
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kvm_mmu import _core
from kvm_mmu.check.engine import Subject, fits
from kvm_mmu.check.search import Result, check
from kvm_mmu.check.story import story_text, tell
from kvm_mmu.check.worlds import WORLDS, World
from kvm_mmu.lab.ring import ring
from kvm_mmu.machine.profiles import kernel_profile, kernels

SCHEMA = "kvm-mmu/fixes/1"


@dataclass(frozen=True)
class Fix:
    """A rule that was repaired.

    Args:
        fact: the fact of the rows.
        what: the fault, a line.
        before: a kernel that has it.
        after: one that does not.
        world: where it shows.
        names: properties that name it.
        by_hand: operations of the shortest sequence found by hand, from an empty VM; None: nobody looked.
        releases: the first releases that have the repair.
        commit: upstream commit, where it is not the one of the fact.
        cve: the same of its CVE.
    """

    fact: str
    what: str
    before: str
    after: str
    world: World
    names: tuple[str, ...]
    by_hand: int | None
    releases: str
    commit: str = ""
    cve: str = ""


#: A processor whose flushes may be of a range.
RANGED = replace(WORLDS["W6"], name="W6 with ranged flushes", config={"flush_range": 1})

_LEVELS = {"op": "set_regs", "vcpu": 0, "cr0": 0x8001_0001, "efer": 0xD00}
#: A guest that may have five levels of tables.
FIVE = replace(
    WORLDS["S1"],
    name="S1 with five levels",
    actions=(*WORLDS["S1"].actions[:9], {**_LEVELS, "cr4": 0x1020}, {**_LEVELS, "cr4": 0x20}),
    depth=5,
    goals=(),
)
#: vCPUs that are reset.
INIT = replace(
    WORLDS["W4"],
    name="W4 with INIT",
    actions=(*WORLDS["W4"].actions, {"op": "init", "vcpu": 0}),
    depth=6,
    goals=(),
)

FIXES: tuple[Fix, ...] = (
    Fix(
        "generation_layout",
        "address space 0 of v5.0 never meets its wrap: a stale MMIO SPTE is believed again",
        "v5.0",
        "v5.2",
        WORLDS["W2"],
        ("mmio_place", "stale_mmio"),
        7,
        "5.1",
    ),
    Fix(
        "mmio_cache_space",
        "a vCPU in SMM trusts its MMIO cache by the generation of address space 0",
        "v7.2.6",
        "v7.2",
        WORLDS["W4"],
        ("mmio_cache_space", "stale_mmio"),
        5,
        "6.1.192, 6.12.117, 7.2.12 and 7.3.4 have it, 7.1.13 does not",
    ),
    Fix(
        "mmio_cache_space",
        "the same in v5.0",
        "v5.0",
        "v6.12",
        WORLDS["W4"],
        ("mmio_cache_space", "stale_mmio"),
        5,
        "6.1.192, 6.12.117, 7.2.12 and 7.3.4 have it",
    ),
    Fix(
        "track_all_spaces",
        "a gfn tracked in one address space is mapped writable in the other",
        "v6.18",
        "v6.12",
        WORLDS["W4"],
        ("tracked_all_spaces", "tracked_write"),
        5,
        "6.6.156; 6.1.192, 6.12.117, 7.1.13 have it, 6.18.15 does not",
    ),
    Fix(
        "collapse",
        "turning the dirty log off reads the slot's counts in front of the slot",
        "v6.18",
        "v6.12",
        WORLDS["W6"],
        ("slot_bounds",),
        5,
        "6.1.192, 6.12.117, 7.1.13 have it, 6.18.15 does not",
    ),
    Fix(
        "stale_test",
        "a fault maps below a root that its own reclaim took; a row made up of v6.12 and three older facts",
        "v6.12:stale_test=before_reclaim:child_role_valid=no:reclaim_skips_roots=no",
        "v6.12",
        WORLDS["R1"],
        ("no_page_under_invalid", "active_valid"),
        3,
        "7.1.6; 6.1.192, 6.12.117 have it, 6.18.15 does not",
    ),
    Fix(
        "collapse_flush",
        "the flush of a collapsed leaf is of the table's first gfn and not of the leaf's",
        "v6.1",
        "v6.12",
        RANGED,
        ("debt_overdue",),
        None,
        "6.12.0 has it, 6.1.192 does not",
    ),
    Fix(
        "mmio_over_leaf",
        "a fault without a memslot turns a present leaf into an MMIO SPTE, and no TLB is flushed",
        "v6.18",
        "v6.12",
        WORLDS["S1"],
        ("present_dropped_first", "rmap_leaf", "debt_overdue"),
        6,
        "6.1.192, 6.12.117, 7.1.3 have it, 6.18.15 does not",
    ),
    Fix(
        "child_reuse",
        "a fault keeps the table of a large page where the guest has a table of its own now, at another gfn",
        "v6.18",
        "v6.12",
        WORLDS["S1"],
        ("leaf_gfn", "child_expected"),
        8,
        "6.18.30; 6.18.15 does not have it",
        commit="0cb2af2ea66a",
        cve="CVE-2026-46113",
    ),
    Fix(
        "child_reuse",
        "the same where that table lies at the first gfn of the large page",
        "6.18.30",
        "v6.12",
        WORLDS["S1"],
        ("leaf_gfn", "child_expected"),
        8,
        "5.10.260, 5.15.211, 6.1.177, 6.6.144, 6.12.95, 6.18.38, 7.1.3",
    ),
    Fix(
        "child_reuse",
        "both, in 6.12.94",
        "6.12.94:has_guest_tables=yes",
        "v6.12",
        WORLDS["S1"],
        ("leaf_gfn", "child_expected"),
        8,
        "6.12.95",
    ),
    Fix(
        "walk_bound",
        "a guest of five levels on a walk with room for four: the kernel writes past its end",
        "v5.2",
        "v5.2:walk_bound=template",
        FIVE,
        ("walk_depth",),
        3,
        "6.12.117, 7.3.4 have it, 6.1.192 does not; from 6.1 on there is room for five levels",
    ),
    Fix(
        "init_resets",
        "INIT of a vCPU in SMM leaves the root of SMM in use; what the repair does is assumed",
        "v6.12:init_resets=no",
        "v6.12:init_resets=yes",
        INIT,
        ("root_role",),
        4,
        "not known",
    ),
)

#: What no world can show, and why.
NOT_SHOWN: tuple[tuple[str, str], ...] = (
    (
        "max_parents",
        "is a bound on cost: a kernel without it bounds nothing, so that nothing is broken; the property"
        " `bounded_parents` holds a kernel to the bound that it has",
    ),
    (
        "zap_spares_rooted_child",
        "needs a root below another page, which only guests of guests have: the language has none. A state built by"
        " hand breaks `rooted_kept` (tests)",
    ),
    (
        "rmap_walk_value",
        "is a race of two threads over one word: a step of the model is whole",
    ),
)

#: How far is searched for what nobody found by hand.
DEPTH = 6

#: Kernels of today, and the worlds in which each is judged.
TODAY_TITLE = "## Kernels of today"
TODAY = tuple(
    name
    for name, row in kernels.items()
    if row.facts["is_level_requested"] and row.release.count(".") > name.count(".")
)


@dataclass(frozen=True)
class Proof:
    """What two searches say of a fix."""

    fix: Fix
    before: Result
    after: Result
    repairs: tuple[str, ...]

    @property
    def found(self) -> Any:
        """The violation that names the fix, the shortest of them; None: not found."""
        named = [found for found in self.before.found if found.name in self.fix.names]
        return min(named, key=lambda found: found.operations, default=None)

    @property
    def operations(self) -> int | None:
        """Operations of the shortest way from an empty VM; None: not found."""
        found = self.found
        return None if found is None else len(self.fix.world.start) + int(found.operations)

    @property
    def holds(self) -> bool:
        """Whether the row before is not sound, no longer than by hand, and the row after is."""
        most = self.fix.by_hand or DEPTH + len(self.fix.world.start)
        is_after_sound = not any(other.name in self.fix.names for other in self.after.found)
        return self.operations is not None and self.operations <= most and is_after_sound

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        found = self.found
        fact = _fact(self.fix.fact)
        return {
            "fact": self.fix.fact,
            "what": self.fix.what,
            "commit": self.fix.commit or fact["commit"],
            "cve": self.fix.cve or fact["cve"],
            "releases": self.fix.releases,
            "before": self.fix.before,
            "after": self.fix.after,
            "world": self.fix.world.name,
            "property": found.name if found else None,
            "operations": self.operations,
            "by_hand": self.fix.by_hand,
            "states_before": self.before.states,
            "states_after": self.after.states,
            "bound_after": _bound(self.after),
            "verdict_after": self.after.verdict,
            "repairs": list(self.repairs),
            "seconds": round(self.before.seconds + self.after.seconds, 1),
            "holds": self.holds,
        }


def _fact(name: str) -> dict[str, Any]:
    return next(fact for fact in _core.facts() if fact["name"] == name)


def _bound(result: Result) -> str:
    return "closed" if result.closed else f"depth {result.depth} complete" if result.complete else "cut off"


def prove(
    fix: Fix,
    progress: Callable[[str], None] | None = None,
    searched: dict[tuple[str, str], Result] | None = None,
) -> Proof:
    """Search before and after a fix.

    Args:
        fix: the fix.
        progress: called with a line now and then.
        searched: rows that are sound already, by kernel and world; what is searched is added.

    Returns:
        Both results.
    """
    depth = fix.by_hand - len(fix.world.start) if fix.by_hand else DEPTH
    before = check(Subject(fix.before), fix.world, depth=depth, keep=True, progress=progress)
    known = {} if searched is None else searched
    after = known.get((fix.after, fix.world.name))
    if after is None:
        after = check(Subject(fix.after), fix.world, depth=fix.world.depth, progress=progress)
        known[fix.after, fix.world.name] = after
    proof = Proof(fix, before, after, ())
    found = proof.found
    repaired = () if found is None else tell(before.prepared, found).repairs
    return replace(proof, repairs=tuple(repaired))


def proofs(facts: Sequence[str] = (), progress: Callable[[str], None] | None = None) -> Iterator[Proof]:
    """Prove the fixes of some facts, or all.

    Args:
        facts: names of facts; empty: all that have a line here.
        progress: called with a line now and then.

    Returns:
        A proof each, as soon as it is there.
    """
    searched: dict[tuple[str, str], Result] = {}
    for fix in FIXES:
        if not facts or fix.fact in facts:
            yield prove(fix, progress, searched)


def to_text(proof: Proof) -> str:
    """A proof for a person."""
    row = proof.to_dict()
    found = proof.found
    by_hand = f" ({row['by_hand']} by hand)" if row["by_hand"] else ""
    lines = [
        f"{'proved' if proof.holds else 'NOT PROVED'}  {row['fact']}: {row['what']}",
        f"  {row['commit'] or 'commit not known'} {row['cve']}".rstrip() + f"; {row['releases']}",
        f"  {row['before']}: {row['property']} after {row['operations']} operations in {row['world']}"
        f"{by_hand}, {row['states_before']:,} states",
        f"  {row['after']}: {row['verdict_after']}, {row['bound_after']}, {row['states_after']:,} states",
    ]
    if proof.repairs:
        lines.append(f"  with any of these changed alone it is sound: {', '.join(proof.repairs)}")
    if found is not None:
        lines += [f"    {line}" for line in story_text(proof.before.prepared, found)]
    return "\n".join(lines)


def _today(progress: Callable[[str], None] | None) -> Iterator[tuple[str, list[Result]]]:
    for kernel in TODAY:
        worlds = [world for world in WORLDS.values() if fits(world, kernel)]
        yield (
            kernel,
            [check(Subject(kernel), world, depth=world.depth, progress=progress) for world in worlds],
        )


def page(progress: Callable[[str], None] | None = None, has_today: bool = True) -> str:
    """The page on soundness (docs/soundness.md).

    Args:
        progress: called with a line now and then.
        has_today: with the section on the kernels of today, which takes minutes.

    Returns:
        Markdown, the same on every run.
    """
    lines = [
        "# Soundness",
        "",
        "Made by `kvm-mmu gallery fixes --markdown`; a test makes it again. `kvm-mmu check` searches small worlds for",
        "a state that is not sound: every order of a few operations, with lock breaks, publication windows and vCPUs",
        "inside them as choices. It is breadth first over canonical states, so that what it finds is shortest.",
        "*Closed* means that no state was left: nothing was bounded inside the world. All of it is bookkeeping on the",
        "model. [Invariants](invariants.md) has the properties.",
        "",
        "## Fixes that it finds",
        "",
        "On the row before, the shortest way to a state that is not sound; on the row after, none, to the bound that",
        "is said. Operations are counted from an empty VM; in brackets those of the shortest way found by hand.",
        "",
        "| fact | fault | commit, CVE | releases | before | property | operations | after | bound |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    told: list[str] = []
    for proof in proofs(progress=progress):
        row = proof.to_dict()
        commit = ", ".join(filter(None, (row["commit"] and f"`{row['commit']}`", row["cve"]))) or "not known"
        bound = f"{row['world']}, {row['bound_after']}, {row['states_after']:,} states"
        by_hand = f" ({row['by_hand']})" if row["by_hand"] else ""
        lines.append(
            f"| `{row['fact']}` | {row['what']} | {commit} | {row['releases']} | `{row['before']}`"
            f" | `{row['property']}` | {row['operations']}{by_hand} | `{row['after']}` {row['verdict_after']}"
            f" | {bound} |"
        )
        told += [
            "",
            f"### {row['fact']}",
            "",
            "```text",
            *story_text(proof.before.prepared, proof.found),
            "```",
        ]
        if proof.repairs:
            told += [
                "",
                "Sound with any of these changed alone: "
                + ", ".join(f"`{fact}`" for fact in proof.repairs)
                + ".",
            ]
    lines += [
        "",
        "Not shown:",
        "",
        *(f"- `{fact}` {why}." for fact, why in NOT_SHOWN),
        "",
        "## Generations",
        "",
        "A ring is decided by arithmetic for all its generations at once (`km.ring`), in both address spaces.",
        "",
        "| kernel | bits | space | period | first wrap | accepted right after marking | unsafe |",
        "|---|---|---|---|---|---|---|",
    ]
    for kernel in ("v5.0", "v5.2", "v5.4", "v5.10", "v6.12", "v7.2"):
        found = ring(kernel)
        for space in found.spaces:
            size = space.before + space.period
            first = "never" if space.first_wrap is None else f"{space.first_wrap:,}"
            accepted = "all" if space.accepted == size else f"{space.accepted:,} of {size:,}"
            unsafe = f"{space.unsafe:,} of {size:,}" if space.unsafe else "none"
            lines.append(
                f"| `{kernel}` | {found.width} | {space.as_id} | {space.period:,} | {first} | {accepted} | {unsafe} |"
            )
    lines += [
        "",
        "Of v5.1 to v5.4 no generation of 1,024 and more is ever accepted: the high field of the SPTE holds the low",
        "bits once more.",
        "",
        "## Stories",
        "",
        "The shortest way to each fault of the first table.",
        *told,
        "",
    ]
    if not has_today:
        return "\n".join(lines)
    lines += [
        TODAY_TITLE,
        "",
        "What the same worlds say of the newest rows. S1 and S2 are of rows whose shadow paging is modelled; in S1 the",
        "guest's memory is changed behind the MMU's back, which a guest cannot do.",
        "",
        "| kernel | world | verdict | bound | states | transitions | found |",
        "|---|---|---|---|---|---|---|",
    ]
    for kernel, results in _today(progress):
        release = kernel_profile(kernel).release
        for result in results:
            what = (
                ", ".join(f"`{found.name}` after {found.operations}" for found in result.found) or "nothing"
            )
            lines.append(
                f"| {release} | {result.prepared.world.name} | {result.verdict} | {_bound(result)} | {result.states:,}"
                f" | {result.transitions:,} | {what} |"
            )
    return "\n".join([*lines, ""])
