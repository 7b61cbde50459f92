"""`kvm-mmu decode spte|mmio|role VALUE...`: every bit of a word, for one kernel on one host."""

from __future__ import annotations

import argparse
import json
from typing import Any

from kvm_mmu.cli.words import add_host, any_number, codec, hex_word, host_values, values
from kvm_mmu.errors import UsageError
from kvm_mmu.words.roles import decode_role, explain_role

SCHEMA = "kvm-mmu/decode/1"


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "decode", help="explain SPTEs, MMIO SPTEs and page roles", description=__doc__
    )
    parser.add_argument("what", choices=("spte", "mmio", "role"), help="what kind of word")
    parser.add_argument("values", nargs="+", metavar="VALUE", help="hexadecimal words; - reads one a line")
    add_host(parser)
    parser.add_argument(
        "--gen", type=any_number, metavar="G", help="memslot generation to compare MMIO SPTEs with"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line (always so with -)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Explain the words."""
    machine = codec(args)
    as_json = args.json or "-" in args.values
    for place, text in values(args.values):
        raw = hex_word(place, text)
        if args.what == "role":
            if raw >> 32:
                raise UsageError(f"{place}: role {raw:#x}: expected 32 bits")
            if as_json:
                _print_json({"schema": SCHEMA, **decode_role(raw, args.kernel)})
            else:
                print(explain_role(raw, args.kernel))
        elif as_json:
            found = machine.decode_spte(raw, args.gen)
            if args.what == "mmio" and not found["is_mmio"]:
                found.pop("bits")
            _print_json({"schema": SCHEMA, **host_values(machine), **found})
        elif args.what == "mmio" and not machine.decode_mmio(raw)["is_mmio"]:
            print(f"{raw:#x}  not an MMIO SPTE  ({machine.host})")
        else:
            print(machine.explain(raw, args.gen))
    return 0


def _print_json(found: dict[str, Any]) -> None:
    print(json.dumps(found))
