"""What `kvm-mmu live SOURCE --vm PID WHAT` does, one function a WHAT."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from kvm_mmu.lab import soundness
from kvm_mmu.live import LiveKernel, LiveVm, questions, report
from kvm_mmu.live.audit.findings import Audit
from kvm_mmu.terminal import folded
from kvm_mmu.view.tables import text_table

#: Findings of the judge that are printed for a plan.
JUDGED = 3
AUDIT_SCHEMA, ANSWER_SCHEMA, COST_SCHEMA = (
    "kvm-mmu/live-audit/1",
    "kvm-mmu/live-answer/1",
    "kvm-mmu/live-cost/1",
)


def run(action: str, kernel: LiveKernel, vm: LiveVm, args: argparse.Namespace) -> int:
    """Do one of the actions; returns the exit status."""
    return {"audit": _audit, "wrap": _cost, "slot-removal": _cost}.get(action, _ask)(action, kernel, vm, args)


def _head(kernel: LiveKernel, vm: LiveVm, schema: str) -> dict[str, Any]:
    return {
        "schema": schema,
        "source": kernel.source,
        "release": kernel.release,
        "pid": vm.pid,
        "kvm": hex(vm.kvm),
    }


def _print_json(found: dict[str, Any]) -> None:
    json.dump(found, sys.stdout, indent=1)
    print()


def _audit(_action: str, kernel: LiveKernel, vm: LiveVm, args: argparse.Namespace) -> int:
    found = vm.audit(guest_tables=args.guest_tables)
    if args.json:
        _print_json(_head(kernel, vm, AUDIT_SCHEMA) | {"settled": vm.settled} | found.to_dict())
    else:
        print(report.heading(kernel), *audit_lines(vm, found), sep="\n")
    if found.verdict in ("in between", "clean"):
        return 0
    return 1 if found.found else 2


def audit_lines(vm: LiveVm, found: Audit) -> list[str]:
    """An audit for a person."""
    lines = [
        f"process {vm.pid}, {vm.mmu}: {found.verdict}, {found.facts:,} facts compared, {found.found:,} findings"
    ]
    for check in found.checks:
        lines += [folded(f"{check.name}: {said}") for said in check.said]
        if check.found > len(check.said):
            lines.append(f"{check.name}: and {check.found - len(check.said):,} more")
    for check in found.checks:
        if check.skipped:
            lines.append(folded(f"not looked at: {check.name}: {check.skipped}"))
    if found.found and found.busy:
        lines.append(
            folded(
                "These findings are in between, no verdicts: the kernel was at work (see busy below), "
                "and keeps its rules when it is done."
            )
        )
    return lines + report.remarks(vm)


def _ask(action: str, kernel: LiveKernel, vm: LiveVm, args: argparse.Namespace) -> int:
    ask = {"gfn": questions.ask_gfn, "spte": questions.ask_spte, "page": questions.ask_page}[action]
    found = ask(vm, args.value)
    if args.json:
        _print_json(_head(kernel, vm, ANSWER_SCHEMA) | {"question": action} | found)
    else:
        print(*questions.lines_of(found), *report.remarks(vm), sep="\n")
    return 0


def _cost(action: str, kernel: LiveKernel, vm: LiveVm, args: argparse.Namespace) -> int:
    from kvm_mmu.machine.vm import Vm
    from kvm_mmu.studies import live_costs

    model = Vm.from_snapshot(vm)
    slot = live_costs.slot_of(model, args.value) if action == live_costs.REMOVAL else None
    rows = live_costs.costs(model, action, slot)
    if args.json:
        _print_json(_head(kernel, vm, COST_SCHEMA) | {"event": action, "slot": slot, "plans": rows})
        return 0
    of = f" of slot {slot[1]} in address space {slot[0]}" if slot else ""
    print(report.heading(kernel))
    print(
        folded(
            f"process {vm.pid}, {vm.mmu}: what a {action}{of} would cost now, by plan, on this VM's own state"
        )
    )
    table = {
        "plan": [f"{row['plan']}{' (own)' if row['is_own'] else ''}" for row in rows],
        "zapped": [row["pages_zapped"] for row in rows],
        "entries": [row["sptes_cleared"] + row["sptes_changed"] for row in rows],
        "visited": [row["walk_visited"] + row["heads_visited"] for row in rows],
        "flushes": [row["flushes"] for row in rows],
        "work": [row["units"] for row in rows],
        "longest": [row["longest_hold"] for row in rows],
        "left": [row["left_over"] for row in rows],
        "sound": [row["sound"] or "-" for row in rows],
    }
    print(text_table(table))
    gone = soundness.NEEDS[action]
    print("work, longest: units under the lock, in all and in the longest hold")
    print(folded(f"left: of {rows[0]['to_go']} {gone}, those that stay"))
    for row in rows:
        for name, what in row["broken"][:JUDGED]:
            print(folded(f"{row['plan']}: {name}: {what}"))
        if len(row["broken"]) > JUDGED:
            print(f"{row['plan']}: and {len(row['broken']) - JUDGED:,} findings more of the judge")
    print(*report.remarks(vm), sep="\n", end="\n" if report.remarks(vm) else "")
    return 0
