"""The seed thread, S1, S4, S7 and S8: what the dedicated walk zaps, what its restarts cost, when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from kvm_mmu.lab import forced_event
from kvm_mmu.lab.compare import run_digest
from kvm_mmu.lab.fit import fit_power
from kvm_mmu.lab.forced_event import EventRun
from kvm_mmu.machine.profiles import kernels
from kvm_mmu.machine.vm import Vm
from kvm_mmu.machine.zap_plan import ZapPlan, plans
from kvm_mmu.scenario.workload import TABLE_SPAN, Workload, mmio_mix
from kvm_mmu.studies.gallery import Answer, Line, Table, count, facts_digest, rows_to_columns

SIZES = (1_000, 10_000, 100_000)
SHARES = (0.01, 0.10)
PLACES = ("head", "random", "tail")
#: Of the 21 level-1 tables of the small witness, in the order they are touched, those that hold an MMIO entry.
WITNESS_FLAGGED = (11, 13, 15, 17, 19)


def witness_ops() -> list[dict[str, object]]:
    """The small witness of S4 as operations: 24 pages, 5 of them flagged, then a generation wrap."""
    ops: list[dict[str, object]] = [
        {"op": "set_memslot", "as": 0, "id": 0, "gpa": "0x0", "size": hex(16 * TABLE_SPAN), "hva": "0x200000000",
         "flags": 0}
    ]  # fmt: skip
    ram, mmio = 0, 16
    for table in range(1, 22):
        if table in WITNESS_FLAGGED:
            ops.append({"op": "access", "gpa": hex(mmio * TABLE_SPAN), "kind": "r"})
            mmio += 1
        else:
            ops.append({"op": "access", "gpa": hex(ram * TABLE_SPAN), "kind": "r"})
            ram += 1
    return [*ops, {"op": "set_generation", "as": 0, "gen": 0}, {"op": "invalidate_mmio", "as": 0}]


def witness(kernel: str) -> Vm:
    """A VM after the accesses of the small witness, before its wrap."""
    vm = Vm(kernel=kernel, family="npt", events="off")
    vm.memslots.create(slot=0, gpa=0, size=16 * TABLE_SPAN, hva=0x2_0000_0000)
    for op in witness_ops()[1:-2]:
        vm.vcpus[0].access(int(str(op["gpa"]), 16), "r")
    return vm


def run_plan(vm: Vm, plan: ZapPlan, contend: int = 0) -> tuple[EventRun, str, Vm]:
    """Run a plan at a forced wrap on a clone: the run, its digest, the clone."""
    clone = vm.clone()
    forced_event.prepare(clone, "wrap")
    run = forced_event.force(clone, "wrap", plan, contend)
    return run, run_digest(clone, run), clone


def flagged_pages(vm: Vm) -> set[int]:
    """Ids of the live pages that cache MMIO."""
    return {
        i for i in vm.core.active_page_ids() if (page := vm.core.page(i)) is not None and page["mmio_cached"]
    }


def s1() -> Answer:
    """The dedicated walk zaps exactly the flagged pages."""
    rows = []
    exact = True
    made = [Workload("witness", witness("v5.0-seed"), [])]
    made += [mmio_mix(1000, share, place, kernel="v5.0-seed") for share in SHARES for place in PLACES]
    for workload in made:
        flagged = flagged_pages(workload.vm)
        before = set(workload.vm.core.active_page_ids())
        for name in ("seed", "merged", "indexed"):
            _, digest, after = run_plan(workload.vm, plans[name])
            gone = before - set(after.core.active_page_ids())
            exact &= gone == flagged
            rows.append(
                {
                    "workload": workload.name,
                    "plan": name,
                    "pages": len(before),
                    "flagged": len(flagged),
                    "flagged_zapped": len(gone & flagged),
                    "others_zapped": len(gone - flagged),
                    "digest": digest,
                }
            )
    return Answer(
        "S1",
        "exactly the flagged pages",
        "a dedicated walk zaps only the pages that ever cached an MMIO SPTE.",
        tables=[Table("Pages gone after the wrap, against the flag before it", rows_to_columns(rows))],
        verdict="Exactly them, in every run; the index finds the same set."
        if exact
        else "Not exactly: see the rows.",
    )


def s4(sizes: Sequence[int] = SIZES, progress: Callable[[str], None] = lambda _text: None) -> Answer:
    """List nodes visited, and how they grow."""
    answer = Answer(
        "S4", "potentially quadratic?", "restarting from the head after every zap is potentially quadratic."
    )
    for kernel in ("v5.0-seed", "v5.2", "v5.0"):
        plan = kernels[kernel].wrap
        run, digest, _ = run_plan(witness(kernel), plan)
        answer.lines.append(
            Line(
                f"small witness, 24 pages, 5 flagged, {kernel} ({plan.name}): {run.work['walk_starts']} "
                "starts, "
                f"{run.work['walk_visited']} nodes visited, {run.work['pages_zapped']} pages zapped",
                digest,
            )
        )
    rows = []
    quadratic: list[bool] = []
    for share in SHARES:
        for place in PLACES:
            seen: dict[str, list[int]] = {}
            pages: list[int] = []
            digests: dict[str, list[str]] = {}
            for n in sizes:
                progress(f"S4: {n:,} tables, {share:.0%} flagged at {place}")
                vm = mmio_mix(n, share, place, kernel="v5.0-seed").vm
                pages.append(vm.core.nr_active_pages)
                for name in ("seed", "merged", "indexed"):
                    run, digest, _ = run_plan(vm, plans[name])
                    seen.setdefault(name, []).append(run.work["walk_visited"])
                    digests.setdefault(name, []).append(digest)
            for name, visited in seen.items():
                fit = fit_power(pages, visited)
                row: dict[str, object] = {"flagged": f"{share:.0%}", "place": place, "plan": name}
                row |= {f"visited_at_{n:,}": value for n, value in zip(sizes, visited, strict=True)}
                row |= {"growth": "-" if fit is None else str(fit), "digest": facts_digest(digests[name])}
                rows.append(row)
                if name == "seed" and fit is not None and place != "head":
                    quadratic.append(fit.exponent > 1.8)
    answer.tables.append(
        Table(
            "List nodes visited at a wrap, by number of level-1 tables (upper tables come on top), "
            "share and place of the "
            "flagged ones on the list",
            rows_to_columns(rows),
        )
    )
    if quadratic and all(quadratic):
        answer.verdict = (
            "Quadratic, unless the flagged pages all stand at the head: the seed visits n^2 nodes at a "
            "fixed share, the "
            "merged walk n, the index only the flagged pages."
        )
    else:
        answer.verdict = "Not quadratic in every case: see the fits."
    return answer


def s7() -> Answer:
    """Four meanings of what a zap returns, as restart rules on one workload."""
    vm = mmio_mix(1000, 0.10, "random", kernel="v5.0-seed").vm
    seed = plans["seed"]
    rules = (
        (
            "number of unsync children zapped",
            "4731d4c7a077, restart since 0738541396be",
            frozenset({"on_unstable"}),
            0,
        ),
        ("the page itself counted too", "54a4f0239f2e, as in the seed", frozenset({"on_nonzero"}), 0),
        (
            "list unstable, apart from the number",
            "patch 25 of the second version",
            frozenset({"on_unstable"}),
            0,
        ),
        ("never", "nobody", frozenset[str](), 0),
    )
    rows = []
    for meaning, source, restart, contend in rules:
        plan = replace(seed, restart=restart, name=meaning)
        run, digest, _ = run_plan(vm, plan, contend)
        rows.append(
            {
                "restart_when_not_zero": meaning,
                "from": source,
                "rule": "+".join(sorted(restart)) or "never",
                "starts": run.work["walk_starts"],
                "visited": run.work["walk_visited"],
                "zapped": run.work["pages_zapped"],
                "digest": digest,
            }
        )
    for contend in (0, 2):
        run, digest, _ = run_plan(vm, plans["merged"], contend)
        rows.append(
            {
                "restart_when_not_zero": "list unstable, or the lock was dropped",
                "from": "merged, v5.1; "
                + ("every 2nd offer of the lock taken" if contend else "nobody wants the lock"),
                "rule": "+".join(sorted(plans["merged"].restart)),
                "starts": run.work["walk_starts"],
                "visited": run.work["walk_visited"],
                "zapped": run.work["pages_zapped"],
                "digest": digest,
            }
        )
    first, second, third = (int(str(row["visited"])) for row in rows[:3])
    return Answer(
        "S7",
        "why restart at all?",
        "zapping returns a number, and the walk restarts when it is not zero; what the number means "
        "changed three times.",
        tables=[Table("1,000 level-1 tables, 10 % flagged at random, one wrap", rows_to_columns(rows))],
        verdict=(
            f"Only the second meaning restarts here ({count(second)} visits against {count(first)} and "
            f"{count(third)}): "
            "direct pages have no unsync children, so a list is never unstable; the other two are one "
            "rule. A merged walk "
            "whose lock is wanted restarts as often as it is dropped."
        ),
    )


def s8() -> Answer:
    """No plan that zaps only MMIO-caching pages reports an unstable list."""
    vm = witness("v5.0-seed")
    only = replace(plans["seed"], restart=frozenset({"on_unstable"}))
    tried = unstable = prepared = 0
    ends: list[str] = []
    for plan in ZapPlan.space(only=("mmio_cached",)):
        # Restarts on an unstable list alone are counted: every other reason is switched off.
        run, digest, _ = run_plan(vm, replace(plan, restart=only.restart))
        tried += 1
        unstable += run.work["restarts"]
        ends.append(digest)
    clone = vm.clone()
    with clone.zap_batch() as batch:
        for page in sorted(flagged_pages(clone)):
            told = batch.prepare(page)
            prepared += 1
            unstable += told.is_list_unstable
    return Answer(
        "S8",
        "MMIO needs no restart",
        "the MMIO case should never need to restart, since MMIO SPTEs cannot have children.",
        lines=[
            Line(f"{tried} plans with only=mmio_cached, restarting on an unstable list: restarts {unstable}",
                 facts_digest(ends)),
            Line(f"{prepared} flagged pages prepared one by one in Python: unstable lists {unstable}",
                 facts_digest({"state": clone.digest(), "unstable": unstable})),
        ],
        verdict=(
            "Right for direct pages: no list became unstable. Tables with unsync children come with "
            "shadow paging; the "
            "property test takes them in when they exist."
            if not unstable
            else "Wrong: a list became unstable, see the lines."
        ),
    )  # fmt: skip
