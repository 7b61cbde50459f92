"""`kvm-mmu live`: the MMU of real VMs, read from a dump, `/proc/kcore` or QEMU's monitor."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from kvm_mmu.cli.words import any_number
from kvm_mmu.errors import UsageError
from kvm_mmu.live import LiveKernel, LiveVm
from kvm_mmu.live import open as open_kernel
from kvm_mmu.live.snapshot import SCHEMA
from kvm_mmu.terminal import directly, folded
from kvm_mmu.view.whole_file import check_output, is_stdout, write_whole

_SOURCE = "a dump (ELF, kdump, a reduced one), /proc/kcore, or qmp:SOCKET"
#: Tries where the source moves.
TRIES = 20


#: What can be asked of a VM: its line in the help, its words.
ACTIONS: dict[str, tuple[str, dict[str, tuple[Any, str]]]] = {
    "audit": ("check every rule that its structures must keep", {}),
    "gfn": ("everything that concerns a guest frame, in words", {"value": (any_number, "the gfn")}),
    "spte": ("what stands at an SPTE's address", {"value": (any_number, "virtual or physical address")}),
    "page": ("the shadow pages of a guest frame", {"value": (any_number, "the gfn that they are of")}),
    "wrap": ("what a wrap of the generation would cost now, by plan", {}),
    "slot-removal": (
        "what removing a memslot would cost now, by plan",
        {"value": (any_number, "the slot's id")},
    ),
}


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "live",
        help="the MMU of real VMs: a crash dump, the running host, QEMU",
        description=__doc__,
        epilog="kvm-mmu live reduce VMCORE OUT writes a small dump for a bug report; the guest's memory is never in it",
    )
    parser.add_argument("source", metavar="SOURCE", help=_SOURCE)
    options(parser, None)
    parser.set_defaults(run=run)
    _let_reduce_come_first(parser, subparsers)
    below = parser.add_subparsers(dest="live_command", metavar="WHAT", title="of one VM")
    for name, (said, words) in ACTIONS.items():
        one = below.add_parser(name, help=said, description=said)
        for word, (kind, help_line) in words.items():
            one.add_argument(
                word, metavar="ID" if name == "slot-removal" else "NUMBER", type=kind, help=help_line
            )
        if name == "audit":
            one.add_argument(
                "--guest-tables", action="store_true", help="also compare with the guest's own page tables"
            )
        options(one, argparse.SUPPRESS)


def _let_reduce_come_first(parser: argparse.ArgumentParser, subparsers: Any) -> None:
    """`live reduce VMCORE OUT`: the one form without a SOURCE in front has a parser of its own."""
    reduce = type(parser)(
        prog=f"{parser.prog} reduce",
        description="Write a small dump for a bug report: what a capture reads, and nothing of the guest's memory.",
        allow_abbrev=False,
    )
    reduce.add_argument("source", metavar="VMCORE", help=_SOURCE)
    reduce.add_argument("out", metavar="OUT", help="the file to write; xz, read by `kvm-mmu live OUT`")
    reduce.add_argument("--vm", metavar="PID", help="only this VM")
    reduce.add_argument("--facts", metavar="DIR", help="types.btf and symbols.json of a dump that has none")
    reduce.add_argument("--debug", metavar="FILE", action="append", help="debug information in place of BTF")
    reduce.add_argument("--no-rmaps", action="store_true", help="leave reverse maps out")
    reduce.set_defaults(run=run_reduce, live_command="reduce")
    whole = parser.parse_known_args

    def parse(args: Any = None, namespace: Any = None) -> Any:
        if args and args[0] == "reduce":
            return reduce.parse_known_args(args[1:], namespace)
        return whole(args, namespace)

    parser.parse_known_args = parse  # type: ignore[method-assign]


def run_reduce(args: argparse.Namespace) -> int:
    """Write a small dump."""
    from kvm_mmu.live.program import open_source
    from kvm_mmu.live.reduce import reduced

    check_output(args.out)
    progress = Progress()
    try:
        data = reduced(
            open_source(args.source, args.facts, args.debug or ()), args.vm, not args.no_rmaps, progress
        )
    finally:
        progress.done()
    write_whole(args.out, data)
    if not is_stdout(args.out):
        print(f"{args.out}: {len(data):,} bytes; no memory of the guest, no registers")
    return 0


def options(parser: argparse.ArgumentParser, default: Any) -> None:
    """The options that every form has."""
    off = False if default is None else default
    add = parser.add_argument
    add(
        "--vm",
        metavar="PID",
        default=default,
        help="one VM: the process that made it, or 0x.. its struct kvm",
    )
    add("--facts", metavar="DIR", default=default, help="types.btf and symbols.json of a dump that has none")
    add("--debug", metavar="FILE", action="append", default=default, help="debug information in place of BTF")
    add("--tries", metavar="N", type=any_number, default=TRIES if default is None else default,
        help=f"read a VM that moves so often (default: {TRIES})")  # fmt: skip
    add("--no-rmaps", action="store_true", default=off, help="leave reverse maps out")
    add("--json", action="store_true", default=off, help="as JSON")
    add("--svg", metavar="FILE", default=default, help="draw one VM")
    add("--parquet", metavar="FILE", default=default, help="every entry of one VM as a table")
    add("--raw", action="store_true", default=off, help="every entry of one VM, one a line")


class Progress:
    """A line of progress on a terminal, and nothing elsewhere."""

    def __init__(self) -> None:
        self._is_on = sys.stderr is not None and sys.stderr.isatty()
        self._is_drawn = False

    def __call__(self, what: str, count: int) -> None:
        """Show what is being read."""
        if self._is_on:
            print(
                f"\r\x1b[Kreading {what}" + (f" {count:,}" if count else ""),
                end="",
                file=directly(sys.stderr),
                flush=True,
            )
            self._is_drawn = True

    def done(self) -> None:
        """Take the line away."""
        if self._is_drawn:
            print("\r\x1b[K", end="", file=directly(sys.stderr), flush=True)
            self._is_drawn = False


def opened(args: argparse.Namespace) -> LiveKernel:
    """The kernel of a command line."""
    return open_kernel(args.source, facts=args.facts, debug=args.debug or ())


def chosen(kernel: LiveKernel, args: argparse.Namespace) -> list[LiveVm]:
    """The VMs that are asked for."""
    progress = Progress()
    try:
        if args.vm is not None:
            return [kernel.capture(args.vm, args.tries, not args.no_rmaps, progress)]
        return kernel.vms(args.tries, not args.no_rmaps, progress)
    finally:
        progress.done()


def only(vms: list[LiveVm], what: str) -> LiveVm:
    """The one VM of those that were read.

    Raises:
        UsageError: there are several, or none.
    """
    if len(vms) == 1:
        return vms[0]
    if not vms:
        raise UsageError(f"{what}: no VM is running")
    pids = ", ".join(hex(vm.kvm) if vm.error else str(vm.pid) for vm in vms)
    raise UsageError(f"{what} is of one VM: give --vm, one of {pids}")


def json_of(kernel: LiveKernel, vms: list[LiveVm]) -> dict[str, Any]:
    """What `--json` prints."""
    facts = kernel.facts
    return {
        "schema": f"kvm-mmu/live/{SCHEMA}",
        "source": kernel.source,
        "release": kernel.release,
        "row": facts.row.profile.name,
        "is_known": facts.row.is_known,
        "family": facts.family,
        "phys_bits": facts.phys_bits,
        "masks": {name: hex(value) for name, value in kernel.masks.items()},
        "notes": kernel.notes,
        "vms": [vm.snapshot() for vm in vms],
    }


def run(args: argparse.Namespace) -> int:
    """Read the source, and show what is asked."""
    from kvm_mmu.live import report

    if args.tries < 1:
        raise UsageError(f"--tries {args.tries}: expected at least 1")
    for path in (args.svg, args.parquet):
        if path is not None:
            check_output(path)
    with opened(args) as kernel:
        vms = chosen(kernel, args)
        action = args.live_command
        if action is not None:
            from kvm_mmu.cli.live_actions import run as act

            return act(action, kernel, only(vms, action), args)
        status = 2 if any(vm.error for vm in vms) else 0
        if args.svg is not None:
            write_whole(args.svg, only(vms, "--svg").to_svg())
        if args.parquet is not None:
            _parquet(only(vms, "--parquet"), args.parquet)
        if any(path is not None and is_stdout(path) for path in (args.svg, args.parquet)):
            return status
        if args.json:
            json.dump(json_of(kernel, vms), sys.stdout)
            print()
            _tell(vms)
        elif args.raw:
            _raw(only(vms, "--raw"))
        elif args.vm is not None:
            print(report.heading(kernel), report.vm_report(vms[0]), sep="\n")
        else:
            print(report.heading(kernel), report.vm_table(vms), sep="\n")
        return status


def _tell(vms: list[LiveVm]) -> None:
    for vm in vms:
        if vm.error:
            print(folded(f"kvm-mmu live: VM {vm.kvm:#x} cannot be read: {vm.error}"), file=sys.stderr)


def _raw(vm: LiveVm) -> None:
    columns = vm.entries()
    print("\t".join(columns))
    names = [name for name in columns if name not in ("spte", "gfn", "kind")]
    for at in range(len(columns["spte"])):
        numbers = [str(int(columns[name][at])) for name in names]
        print(
            *numbers,
            hex(int(columns["spte"][at])),
            hex(int(columns["gfn"][at])),
            columns["kind"][at],
            sep="\t",
        )


def _parquet(vm: LiveVm, path: str) -> None:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise UsageError("--parquet needs pyarrow: pip install 'kvm_mmu[data]'") from None
    table = arrow.table({name: arrow.array(values) for name, values in vm.entries().items()})
    write_whole(path, lambda stream: parquet.write_table(table, stream))
