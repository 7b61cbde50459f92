"""`kvm-mmu compare INPUT... --plan P ...`: zap plans on what a guest did; with `--sync`, sync policies of its tables.

Exit status 1 when a plan is unsound for the event, did not end, or had nothing to do.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from kvm_mmu.cli import compare_sync
from kvm_mmu.errors import UsageError
from kvm_mmu.lab.compare import compare
from kvm_mmu.lab.comparison import Comparison
from kvm_mmu.lab.comparison_text import sentence
from kvm_mmu.lab.cost import MODELS
from kvm_mmu.lab.forced_event import EVENTS, Plan
from kvm_mmu.lab.sampling import compared as errors_of
from kvm_mmu.lab.scale import MMIO_PLACES
from kvm_mmu.machine.profiles import kernels
from kvm_mmu.machine.zap_plan import ZapPlan, plans
from kvm_mmu.terminal import directly, folded, one_line
from kvm_mmu.trace.text.host import facts_from
from kvm_mmu.view import charts
from kvm_mmu.view.out_folder import OutFolder
from kvm_mmu.view.tables import records, text_table

_UNITS = {"k": 1_000, "m": 1_000_000}
#: More than any list has pages, and more tables than a lock break could ever see added.
_CONTEND_MAX, _ADD_MAX = 1_000_000_000, 100_000


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser("compare", help="compare zap plans on a workload", description=__doc__)
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="scenario or result file, recording, or dump"
    )
    parser.add_argument(
        "--plan",
        action="append",
        default=[],
        metavar="PLAN",
        help=f"a name ({', '.join(plans)}, or all), walk=..,only=.., or module:object; several times or with spaces; "
        "default with --kernel: what each of these kernels does at the event, on its own page table",
    )
    parser.add_argument(
        "--at", choices=EVENTS, default="end", help="the event forced at the end (default: end)"
    )
    parser.add_argument("--scale", metavar="N,N", help="numbers of live pages, as 1k,10k,100k")
    parser.add_argument(
        "--mmio-share", default=None, metavar="P", help="with --scale: share of MMIO pages, as 1%%"
    )
    parser.add_argument(
        "--mmio-place", choices=MMIO_PLACES, help="with --scale: how old MMIO pages are (default: input)"
    )
    parser.add_argument("--contend", type=int, metavar="N", help="every N-th offer of the lock is taken")
    parser.add_argument(
        "--add", type=int, metavar="N", help="tables a vCPU adds in each of those lock breaks"
    )
    parser.add_argument(
        "--cost", metavar="MODEL", help=f"modelled time beside the counts: {', '.join(MODELS)}"
    )
    parser.add_argument(
        "--kernel",
        action="append",
        default=[],
        metavar="K",
        help="kernel to model (default: the input's); several times or with spaces, or all",
    )
    parser.add_argument("--host", metavar="FILE|JSON", help="facts of a recording's host")
    parser.add_argument(
        "--vm",
        type=int,
        metavar="N",
        help="which VM of a recording (default: the one with the most operations)",
    )
    parser.add_argument(
        "--moment",
        choices=("end", "peak"),
        help="when the event is forced: at the end, or when most shadow pages lived (default: end; of a recording "
        "at whose end none lives: peak)",
    )
    parser.add_argument(
        "--sample",
        metavar="P",
        help="run only this share of the guest's memory, as 1%%, and scale the counts: estimates",
    )
    parser.add_argument(
        "--against-full", action="store_true", help="with --sample: run all of it, too, and print the error"
    )
    parser.add_argument("-o", "--out", metavar="DIR", help="write CSV, JSON and SVG here")
    parser.add_argument(
        "--wide", action="store_true", help="every column, the workloads, and the scaled run beside its input"
    )
    parser.add_argument("--measured", action="store_true", help="the wall time of this program, too")
    parser.add_argument("--json", action="store_true", help="as JSON")
    compare_sync.add_arguments(parser)
    parser.set_defaults(run=run)


def parse_sizes(text: str) -> list[int]:
    """`1k,10k,100k` as numbers.

    Raises:
        UsageError: not such a list.
    """
    sizes = []
    for part in (p.strip().lower() for p in text.split(",")):
        number, unit = (part[:-1], _UNITS[part[-1]]) if part[-1:] in _UNITS else (part, 1)
        if not number.isdecimal() or not int(number):
            raise UsageError(f"--scale {text!r}: {part!r}, expected numbers of pages as 1k,10k,100k")
        sizes.append(int(number) * unit)
    return sizes


def parse_share(text: str, option: str = "--mmio-share") -> float:
    """`1%` or `0.01` as a fraction.

    Raises:
        UsageError: neither, or outside 0 to 1.
    """
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise UsageError(f"{option} {text!r}: expected a share as 1% or 0.01") from None
    if not 0.0 <= value <= 1.0:
        raise UsageError(f"{option} {text!r}: expected 0 to 1, or 0% to 100%")
    return value


def parse_plan(text: str) -> Plan:
    """A plan from its name, its words, or `module:object`: a `ZapPlan`, or a function that takes a `Vm` and zaps.

    Raises:
        UsageError: none of these.
    """
    module, colon, attribute = text.partition(":")
    if not colon or "=" in text or text in plans:
        return ZapPlan.parse(text, imports=True)
    # A console script does not look for modules where the user stands.
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = ZapPlan.imported(text, module, attribute)
    finally:
        sys.path.pop(0)
    if isinstance(found, ZapPlan):
        return ZapPlan.parse(text, imports=True)
    if not callable(found):
        raise UsageError(f"plan {text!r}: expected a ZapPlan or a function, found {type(found).__name__}")
    plan: Plan = found
    return plan


def parse_plans(texts: list[str]) -> list[Plan]:
    """Plans from the command line; `all` means every named one."""
    found: list[Plan] = []
    for text in (word for words in texts for word in words.split()):
        found += list(plans.values()) if text == "all" else [parse_plan(text)]
    if not found:
        raise UsageError(f"no --plan: give names of {', '.join(plans)}, or all")
    return list(dict.fromkeys(found))


def parse_kernels(texts: list[str]) -> list[str] | None:
    """Kernels from the command line; `all` means every one, None the input's own."""
    found: list[str] = []
    for text in (word for words in texts for word in words.split()):
        found += list(kernels) if text == "all" else [text]
    if texts and not found:
        raise UsageError(f"--kernel: expected names of {', '.join(kernels)}, or all")
    return found or None


def reporter() -> Callable[[str], None]:
    """Progress on stderr, on a terminal only: one line that is written over."""
    if not sys.stderr.isatty():
        return lambda _text: None
    return lambda text: print(f"\r\x1b[K{one_line(text)}", end="", file=directly(sys.stderr), flush=True)


def clear_progress() -> None:
    """Remove the progress line."""
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=directly(sys.stderr), flush=True)


def run(args: argparse.Namespace) -> int:
    """Compare and print."""
    if args.sync:
        return compare_sync.run(args)
    if args.flood is not None:
        raise UsageError("--flood: expected --sync with it")
    share = None if args.mmio_share is None else parse_share(args.mmio_share)
    sizes = [] if args.scale is None else parse_sizes(args.scale)
    for name, given in (("--mmio-share", share), ("--mmio-place", args.mmio_place)):
        if given is not None and not sizes:
            raise UsageError(f"{name}: expected --scale with it")
    for name, given, most in (("--contend", args.contend, _CONTEND_MAX), ("--add", args.add, _ADD_MAX)):
        if given is not None and not 1 <= given <= most:
            raise UsageError(f"{name} {given}: expected 1 to {most:,}")
    if args.against_full and args.sample is None:
        raise UsageError("--against-full: expected --sample with it")
    with nullcontext() if args.out is None else OutFolder(args.out) as folder:
        return _run(args, share, sizes, folder)


def _compared(
    args: argparse.Namespace, share: float | None, sizes: list[int], sample: float | None
) -> Comparison:
    return compare(
        args.inputs,
        None if args.kernel and not args.plan else parse_plans(args.plan),
        at=args.at,
        scale=sizes,
        kernel=parse_kernels(args.kernel),
        host=None if args.host is None else facts_from(args.host),
        vm=args.vm,
        moment=args.moment,
        mmio_share=share,
        mmio_place=args.mmio_place or MMIO_PLACES[0],
        contend=args.contend or 0,
        added=args.add or 0,
        cost=args.cost,
        sample=sample,
        progress=reporter(),
    )


def _run(args: argparse.Namespace, share: float | None, sizes: list[int], folder: OutFolder | None) -> int:
    sample = None if args.sample is None else parse_share(args.sample, "--sample")
    result = _compared(args, share, sizes, sample)
    errors = errors_of(_compared(args, share, sizes, None).rows, result.rows) if args.against_full else None
    clear_progress()
    written = [str(path) for path in result.write(folder)] if folder is not None else []
    lacks = charts.missing() if folder is not None else None
    if lacks is not None:
        print(f"no picture: {lacks}", file=sys.stderr if args.json else sys.stdout)
    if args.json:
        more = {} if errors is None else {"sampling_error": records(errors)}
        print(json.dumps({**result.to_dict(), **more, "written": written}, indent=1))
    else:
        print(result.to_text(wide=args.wide, measured=args.measured))
        if errors is not None:
            print("estimates against the full run; errors are fractions of its counts")
            print(text_table(errors, indent="  "))
        if written:
            print(written_lines(written))
        for text in result.finding_lines():
            print(sentence(text))
    return 1 if result.findings else 0


def written_lines(paths: Sequence[str | Path]) -> str:
    """Say what was written, in 80 columns where the folder's name leaves room.

    Args:
        paths: files of one folder.

    Returns:
        The folder, and the names of the files below it.
    """
    names = ", ".join(Path(path).name for path in paths)
    return folded(f"written: into {Path(paths[0]).parent}: {names}")
