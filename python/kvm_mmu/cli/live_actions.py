"""What `kvm-mmu live SOURCE --vm PID WHAT` does, one function a WHAT."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from kvm_mmu.live import LiveKernel, LiveVm, questions, report
from kvm_mmu.live.audit.findings import Audit
from kvm_mmu.terminal import folded

AUDIT_SCHEMA, ANSWER_SCHEMA, COST_SCHEMA = (
    "kvm-mmu/live-audit/1",
    "kvm-mmu/live-answer/1",
    "kvm-mmu/live-cost/1",
)


def run(action: str, kernel: LiveKernel, vm: LiveVm, args: argparse.Namespace) -> int:
    """Do one of the actions; returns the exit status."""
    return {"audit": _audit}.get(action, _ask)(action, kernel, vm, args)


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
