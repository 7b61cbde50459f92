"""The command line, `kvm-mmu`: one file a subcommand, results on stdout, everything else on stderr.

Exit status: 0 fine, 1 a finding, 2 wrong usage, unreadable input or unwritable output, 130 interrupted.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import NoReturn

from kvm_mmu.terminal import one_line, shown

#: Subcommands in the order of `--help`, each with its line there; each is a module here with `add_parser(subparsers)`.
SUBCOMMANDS = {
    "demo": "show what this does, on a real recording",
    "kernels": "the kernels that are modelled",
    "plans": "the zap plans and what they are made of",
    "decode": "explain SPTEs, MMIO SPTEs and page roles",
    "encode": "make MMIO SPTEs",
    "scenario": "a scenario to begin with",
    "run": "run a scenario, write its results",
    "verify": "compare result files with the model",
    "check": "search for unsound states: exhaustively, or at random",
    "compare": "compare zap plans on a workload",
    "sweep": "many comparisons as one table",
    "latency": "how long zaps hold the lock and vCPUs wait, simulated",
    "curve": "what an event costs a guest, over its size",
    "view": "a run step by step, as a page for a browser",
    "trace": "real ftrace recordings: summary, decode, replay, stalls, export",
    "live": "the MMU of real VMs: a crash dump, the running host, QEMU",
    "gallery": "claims and figures answered by runs",
    "study": "articles made by runs of the model",
}


#: What a command of commands calls them in its usage.
COMMAND = "COMMAND"
#: Errors of writing only.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class _Parser(argparse.ArgumentParser):
    """Errors are one line that names the program and exits with 2."""

    def error(self, message: str) -> NoReturn:
        if message.endswith(f": {COMMAND}"):
            self.print_help(sys.stderr)  # the list of its commands says more than that one is missing
            self.exit(2)
        self.exit(2, f"{self.prog}: {message}\n")


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser of the command line; only the subcommand that is called is loaded (None: all of them)."""
    from kvm_mmu import __version__

    parser = _Parser(
        prog="kvm-mmu", description="The laboratory for KVM's x86 shadow MMU.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"kvm-mmu {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="log at debug level to stderr")
    subparsers = parser.add_subparsers(title="commands", dest="command", required=True, metavar=COMMAND)
    for name, help_line in SUBCOMMANDS.items():
        if command is None or name == command:
            importlib.import_module(f"kvm_mmu.cli.{name}").add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=help_line)
    return parser


def command_line(args: argparse.Namespace) -> str:
    """The command that was called, with its own command where it has some: how every message begins."""
    own = getattr(args, f"{args.command}_command", None)
    return f"kvm-mmu {args.command}" + (f" {own}" if own else "")


def _fail(command: str, text: object, status: int) -> int:
    if sys.stderr is not None:
        print(one_line(f"kvm-mmu {command}: {text}"), file=sys.stderr)
    return status


def _drop_stdout() -> None:
    """Nothing more can be written, also not by the interpreter at exit."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    with redirect_stdout(shown(sys.stdout)), redirect_stderr(shown(sys.stderr)):
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in words if not word.startswith("-")), "")
    try:
        return _run(words, command)
    except KeyboardInterrupt:
        return _fail(command, "interrupted", 130)
    except BrokenPipeError:
        _drop_stdout()  # the reader is gone
        return 0
    except OSError as error:
        _drop_stdout()
        is_stdout = error.filename is None and error.errno in _NO_ROOM
        return _fail(command, f"stdout: {error.strerror}" if is_stdout else error, 2)
    except MemoryError:
        return _fail(command, "out of memory", 2)


def _run(words: list[str], command: str) -> int:
    from kvm_mmu.errors import KvmMmuError

    parser = build_parser(command)
    if not words:
        parser.print_help(sys.stderr)
        return 2
    args, unknown = parser.parse_known_args(words)
    if unknown:
        return _fail(
            command_line(args).removeprefix("kvm-mmu "), f"unrecognized arguments: {' '.join(unknown)}", 2
        )
    if sys.stdout is None:
        return _fail(command, "stdout is closed", 2)
    if args.verbose:
        import logging

        logging.basicConfig(level=logging.DEBUG, stream=sys.stderr, format="%(name)s: %(message)s")
    try:
        status: int = args.run(args)
    except KvmMmuError as error:
        sys.stdout.flush()
        return _fail(command_line(args).removeprefix("kvm-mmu "), error, 2)
    sys.stdout.flush()
    return status
