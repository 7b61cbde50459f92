"""`kvm-mmu latency INPUT...`: how long zaps hold mmu_lock and vCPUs wait for it, simulated, as distributions.

Exit status 1 when a plan makes no progress, or a row failed.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from kvm_mmu.cli.compare import clear_progress, parse_share, reporter, written_lines
from kvm_mmu.cli.sweep import add_executor, parse_kernels, parse_numbers, parse_plans, words
from kvm_mmu.lab.cost import MODELS
from kvm_mmu.lab.latency.interleaving import INTERLEAVINGS
from kvm_mmu.lab.latency.run import DEFAULT_MODEL, latency
from kvm_mmu.lab.named_workloads import WORKLOADS
from kvm_mmu.lab.sweep.grid import OWN, OWN_SHADOW
from kvm_mmu.machine.zap_plan import plans


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser("latency", help="lock holds and waits, simulated", description=__doc__)
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help=f"a workload by name ({', '.join(WORKLOADS)}), a scenario, or a recording",
    )
    parser.add_argument(
        "--plans",
        default=OWN,
        metavar="A,B",
        help=f"{OWN} (each kernel's own, the default), {OWN_SHADOW} (its own on shadow pages), names "
        f"({', '.join(plans)}, or all)",
    )
    parser.add_argument("--kernels", metavar="R,S", help="rows or releases, or all")
    parser.add_argument(
        "--interleaving",
        choices=tuple(INTERLEAVINGS),
        default="round-robin",
        help="what vCPUs do meanwhile (default: %(default)s)",
    )
    parser.add_argument(
        "--cost-model",
        choices=tuple(MODELS),
        default=DEFAULT_MODEL,
        help="what turns work into modelled time (default: %(default)s)",
    )
    parser.add_argument(
        "--pages", metavar="N,N", help="sizes in shadow pages: 1k, or 0.1x of the input's own"
    )
    parser.add_argument("--mmio", metavar="P,P", help="shares of pages that cache MMIO: 0.1%%, 1%%")
    parser.add_argument("--vcpus", metavar="N,N", help="vCPUs of workloads by name")
    parser.add_argument("--runs", type=int, default=1, metavar="N", help="runs, each with a seed of its own")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="the first run's (default: 1)")
    parser.add_argument(
        "--at",
        choices=("wrap", "slot-removal", "end"),
        default="wrap",
        help="the event forced at the end (default: %(default)s)",
    )
    parser.add_argument(
        "--every",
        type=int,
        default=1,
        metavar="N",
        help="the lock is dropped at every N-th offer (default: 1)",
    )
    add_executor(parser)
    parser.add_argument("-o", "--out", metavar="DIR", help="the rows as CSV, and a page")
    parser.add_argument("--measured", action="store_true", help="the wall time of this program, too")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Simulate and print."""
    found = latency(
        args.inputs,
        parse_plans(args.plans),
        kernels=parse_kernels(args.kernels),
        interleaving=args.interleaving,
        cost_model=args.cost_model,
        pages=words(args.pages),
        mmio=[parse_share(word) for word in words(args.mmio)],
        vcpus=parse_numbers("--vcpus", words(args.vcpus)),
        runs=args.runs,
        seed=args.seed,
        at=args.at,
        every=args.every,
        executor=args.executor,
        jobs=args.jobs,
        out=args.out,
        progress=reporter(),
    )
    clear_progress()
    if args.json:
        print(json.dumps({**found.to_dict(), "written": [str(path) for path in found.written]}, indent=1))
    else:
        print(found.to_text(measured=args.measured))
        if found.written:
            print(written_lines(found.written))
    return 1 if found.failed or found.livelocks else 0
