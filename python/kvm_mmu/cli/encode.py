"""`kvm-mmu encode mmio`: the MMIO SPTE that a kernel makes of gfn, access and memslot generation."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from kvm_mmu.cli.words import add_host, any_number, codec, host_values
from kvm_mmu.errors import UsageError
from kvm_mmu.machine import json_object
from kvm_mmu.machine.numbers import shown
from kvm_mmu.scenario.scenario_text import numbered_lines
from kvm_mmu.words.codec import Codec

SCHEMA = "kvm-mmu/encode/1"


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser("encode", help="make MMIO SPTEs", description=__doc__)
    parser.add_argument("what", choices=("mmio",), help="what kind of word")
    parser.add_argument(
        "stream", nargs="?", choices=("-",), help='read {"gfn","access","gen"} objects, one a line'
    )
    parser.add_argument("--gfn", type=any_number, help="guest frame number")
    parser.add_argument("--access", type=any_number, default=6, help="1 exec, 2 write, 4 user (default: 6)")
    parser.add_argument("--gen", type=any_number, help="memslot generation, all 64 bits")
    add_host(parser)
    parser.add_argument("--json", action="store_true", help="as JSON (always so with -)")
    parser.set_defaults(run=run)


def _number(value: object, place: str, key: str) -> int:
    try:
        number = any_number(value) if isinstance(value, str) else value
    except argparse.ArgumentTypeError:
        number = None
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 1 << 64:
        raise UsageError(f"{place}: {key}={shown(value)}, expected a number from 0 to 2^64-1")
    return number


def _encode(machine: Codec, fields: object, place: str) -> dict[str, Any]:
    """The word, and what the kernel itself would read back of it."""
    if not isinstance(fields, dict):
        raise UsageError(f'{place}: expected an object {{"gfn","access","gen"}}')
    numbers = []
    for key in ("gfn", "access", "gen"):
        if key not in fields:
            raise UsageError(f"{place}: {key} is missing")
        numbers.append(_number(fields[key], place, key))
    try:
        spte = machine.make_mmio_spte(*numbers)
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from None
    found = machine.decode_mmio(spte, numbers[2])
    back = {key: found[key] for key in ("is_mmio", "gfn", "access", "mmio_gen", "fresh")}
    return {
        "schema": SCHEMA,
        "kernel": machine.kernel,
        **host_values(machine),
        "spte": hex(spte),
        "read_back": back,
    }


def run(args: argparse.Namespace) -> int:
    """Make the words."""
    machine = codec(args)
    if not machine.makes_mmio_sptes:
        raise UsageError(f"no MMIO SPTEs are made here: {machine.host}")
    if args.stream is None:
        if args.gfn is None or args.gen is None:
            raise UsageError("expected --gfn and --gen, or - to read objects from stdin")
        made = _encode(machine, {"gfn": args.gfn, "access": args.access, "gen": args.gen}, "arguments")
        print(json.dumps(made) if args.json else made["spte"])
        return 0
    for number, line in numbered_lines(sys.stdin, "<stdin>"):
        if not line.strip():
            continue
        try:
            fields = json_object.loads(line)
        except json_object.RepeatedKeyError as error:
            raise UsageError(f"<stdin>:{number}: {error}") from None
        except (ValueError, RecursionError) as error:
            raise UsageError(f"<stdin>:{number}: not JSON ({error})") from None
        print(json.dumps(_encode(machine, fields, f"<stdin>:{number}")))
    return 0
