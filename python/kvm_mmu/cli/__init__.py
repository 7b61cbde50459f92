"""The command line, `kvm-mmu`: one file a subcommand, results on stdout, everything else on stderr.

Exit status: 0 fine, 1 a finding, 2 wrong usage or unreadable input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from kvm_mmu.errors import KvmMmuError

#: Subcommands in the order of `--help`; each is a module of this package with `add_parser(subparsers)`.
SUBCOMMANDS = ("demo", "kernels", "plans", "decode", "encode", "run", "verify", "compare", "trace", "gallery")


class _Parser(argparse.ArgumentParser):
    """Errors are one line that names the program and exits with 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    from kvm_mmu import __version__

    parser = _Parser(
        prog="kvm-mmu", description="The laboratory for KVM's x86 shadow MMU.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"kvm-mmu {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="log at debug level to stderr")
    subparsers = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    for name in SUBCOMMANDS:
        if importlib.util.find_spec(f"kvm_mmu.cli.{name}") is None:
            continue
        importlib.import_module(f"kvm_mmu.cli.{name}").add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.verbose:
        logging.basicConfig(level=logging.DEBUG, stream=sys.stderr, format="%(name)s: %(message)s")
    try:
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except KvmMmuError as error:
        print(f"kvm-mmu {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"kvm-mmu {args.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader is gone; nothing more can be written, also not by the interpreter at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
