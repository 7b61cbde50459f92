"""The seed thread, S5 and S6: zap everything instead? And who still needs the fast invalidate?"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from kvm_mmu.lab.compare import compare
from kvm_mmu.machine.generation import GenerationV50
from kvm_mmu.machine.profiles import EVENTS, KernelProfile, kernels, with_plans
from kvm_mmu.machine.zap_plan import ZapPlan, plans
from kvm_mmu.scenario.workload import TABLE_SPAN, mmio_mix
from kvm_mmu.studies.gallery import Answer, Line, Table, count, facts_digest, rows_to_columns
from kvm_mmu.studies.thread_generation import counted

WRAP_PLANS = ("seed", "merged", "zap-all", "v5.0-fast", "indexed")
#: Level-1 tables of S5, and the share of them that is flagged.
S5_TABLES, S5_SHARE = 10_000, 0.01
#: MMIO for the other vCPU of the livelock starts here; each page it adds is one more level-1 table.
ADDED_FROM = 1 << 40


def s5() -> Answer:
    """Hack x plan: lock hold at the wrap and the damage afterwards, and both per update."""
    result = compare(mmio_mix(S5_TABLES, S5_SHARE, "random", kernel="v5.0-seed"), WRAP_PLANS, at="wrap")
    by_plan = {row["plan"]: row for row in result.rows}
    once = {
        name: result.column(name)
        for name in (
            "plan",
            "nodes_visited",
            "pages_zapped",
            "longest_hold",
            "tables_rebuilt",
            "faults_again",
            "digest",
        )
    }
    rows = []
    for hack, start in (("with (i*2-150)", "i*2-150"), ("without (i*2)", "i*2")):
        for as_id in (0, 1):
            found = counted(GenerationV50, start, as_id)
            for name, row in by_plan.items():
                wraps = found.first is not None
                rows.append(
                    {
                        "hack": hack,
                        "address_space": as_id,
                        "plan": name,
                        "first_wrap": found.first if wraps else "never",
                        "updates_per_wrap": found.lap if wraps else "never",
                        "hold_per_update": row["longest_hold"] / found.lap if wraps else 0,
                        "tables_per_update": row["tables_rebuilt"] / found.lap if wraps else 0,
                        "faults_per_update": row["faults_again"] / found.lap if wraps else 0,
                        "digest": facts_digest([row["digest"], asdict(found)]),
                    }
                )
    seed, merged, everything = (by_plan[name] for name in ("seed", "merged", "zap-all"))
    lap = counted(GenerationV50, "i*2", 0).lap
    shorter = "shorter" if everything["longest_hold"] < seed["longest_hold"] else "longer"
    both = (
        merged["longest_hold"] < everything["longest_hold"]
        and merged["tables_rebuilt"] < everything["tables_rebuilt"]
    )
    return Answer(
        "S5",
        "zap everything instead?",
        "if the hack is removed, I would rather have a zap-all instead.",
        tables=[
            Table(f"One wrap over {S5_TABLES:,} level-1 tables, {S5_SHARE:.0%} flagged at random", once),
            Table(
                "The same divided by the updates per wrap of v5.0, with and without the hack",
                rows_to_columns(rows),
            ),
        ],
        verdict=(
            "The reviewer was right about the patch as posted: zapping everything holds the lock "
            f"{shorter} than the seed "
            f"({count(everything['longest_hold'])} against {count(seed['longest_hold'])} work units), "
            "and at one wrap in "
            f"{count(lap)} updates its {count(everything['tables_rebuilt'])} rebuilt tables are "
            f"{count(everything['tables_rebuilt'] / lap)} an update. "
            + (
                f"What was merged needs neither bargain: {count(merged['longest_hold'])} units, "
                f"{count(merged['tables_rebuilt'])} tables."
                if both
                else "The merged walk does not beat it on both."
            )
        ),
    )


@dataclass(frozen=True)
class Interleaving:
    """How a yielding zap and a vCPU that adds pages went together."""

    plan: str
    added_per_round: int
    rounds: int
    live_before: int
    live_after: int
    zapped: int
    visited: int
    old_left: int
    ended: bool

    @property
    def verdict(self) -> str:
        """livelock, or how many rounds it took."""
        if self.ended:
            return f"ends after {self.rounds} rounds"
        return "livelock: no progress" if self.live_after >= self.live_before else "not ended yet"


def interleave(
    plan: ZapPlan, tables: int = 64, added: int = 1, patience: int = 16
) -> tuple[Interleaving, str]:
    """Run a plan whose lock is wanted at every offer; in each lock break a vCPU touches `added` new MMIO tables.

    Given up after `patience` rounds for each page that lived before.

    Returns:
        What happened, and the digest of the run.
    """
    vm = mmio_mix(tables, 0.0, kernel="v5.2").vm
    vm.set_nr_mmu_pages(1 << 20)
    old = set(vm.core.active_page_ids())
    # Every cond_resched breaks; every second need_resched poll is true: right after a break nobody waits yet.
    vm.core.set_lock_break(1, 2)
    before, rounds, fresh = vm.work, 0, ADDED_FROM
    ended = True
    for _ in vm.zap_steps(plan):
        rounds += 1
        if rounds > patience * len(old):
            ended = False
            break
        for _ in range(added):
            vm.vcpus[0].access(fresh, "r")
            fresh += TABLE_SPAN
    work = vm.work
    live = set(vm.core.active_page_ids())
    found = Interleaving(
        str(plan),
        added,
        rounds if ended else rounds - 1,
        len(old),
        len(live),
        work["pages_zapped"] - before["pages_zapped"],
        work["walk_visited"] - before["walk_visited"],
        len(live & old),
        ended,
    )
    return found, facts_digest({"state": vm.digest(), **asdict(found)})


def _distinct() -> list[tuple[str, KernelProfile]]:
    """The kernels whose plans are not those of the one before: the rest would say the same again."""
    found: list[tuple[str, KernelProfile]] = []
    for name, profile in kernels.items():
        if not found or found[-1][1].plans != profile.plans:
            found.append((name, profile))
    return found


def s6() -> Answer:
    """Who calls which way to zap, per kernel; and the livelock that brought the fast invalidate back."""
    calls = [
        {
            "kernel": name,
            **{event: str(getattr(profile, event) or "-") for event in EVENTS},
            "digest": facts_digest({event: plan.spec for event, plan in profile.plans.items()}),
        }
        for name, profile in _distinct()
    ]
    fast = {
        name: [event.replace("_", " ") for event, plan in profile.plans.items() if plan.bump_valid_gen]
        for name, profile in _distinct()
    }
    after = with_plans(kernels["v5.0-seed"], {"slot_removal": "v5.2-slot"})
    fast["v5.0-seed and the series' slot-only removal"] = [
        event.replace("_", " ") for event, plan in after.plans.items() if plan.bump_valid_gen
    ]
    rows = []
    outcomes = {}
    for name in ("zap-all", "v5.3-fast", "v5.0-fast"):
        for added in (1, 2):
            found, digest = interleave(plans[name], added=added)
            outcomes[name, added] = found
            rows.append(
                {
                    "plan": name,
                    "pages_added_a_round": added,
                    "rounds": found.rounds,
                    "live_before": found.live_before,
                    "live_after": found.live_after,
                    "zapped": found.zapped,
                    "old_pages_left": found.old_left,
                    "verdict": found.verdict,
                    "digest": digest,
                }
            )
    series = fast.get("v5.2", [])
    stuck = not outcomes["zap-all", 1].ended
    ends = outcomes["v5.3-fast", 1].ended
    return Answer(
        "S6",
        "the fast invalidate, needed by whom?",
        "this leaves VM teardown as the only user of the fast invalidate and paves the way for removing it.",
        lines=[
            Line(
                f"plans that bump the valid generation, {name}: {', '.join(events) or 'none'}",
                facts_digest({"kernel": name, "fast": events}),
            )
            for name, events in fast.items()
        ],
        tables=[
            Table("Which plan each kernel uses for which event", rows_to_columns(calls)),
            Table(
                "Interleaving: every offer of the lock is taken, and in each lock break a running vCPU "
                "touches new guest "
                "memory, one new level-1 table for each page of a round",
                rows_to_columns(rows),
            ),
        ],
        verdict=(
            ("The series left no user of it" if not series else f"The series left {', '.join(series)}")
            + "; "
            + (
                "then a zap-all that yields met vCPUs that keep adding pages at the head and made no "
                "progress, while a "
                "plan that stops at the first page of the new generation ends. It came back in v5.3 "
                "(002c5f73)."
                if stuck and ends
                else "the livelock does not show under this interleaving."
            )
        ),
    )
