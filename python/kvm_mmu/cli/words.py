"""Options and input that `decode` and `encode` share: which kernel and host, values or a stream of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from kvm_mmu.errors import UsageError
from kvm_mmu.machine.words import FAMILIES, FAMILY_ALIASES, Codec, word64


def add_host(parser: argparse.ArgumentParser) -> None:
    """Add the options that say whose words these are."""
    parser.add_argument("--kernel", required=True, help="whose layout (kvm-mmu kernels); never guessed")
    parser.add_argument(
        "--family",
        default="ept_ad",
        choices=(*FAMILIES, *FAMILY_ALIASES),
        help="SPTE masks (default: ept_ad)",
    )
    parser.add_argument(
        "--phys-bits",
        "--phys_bits",
        type=int,
        default=46,
        metavar="N",
        help="host physical width (default: 46)",
    )
    parser.add_argument("--no-execonly", action="store_true", help="EPT without execute-only")


def codec(args: argparse.Namespace) -> Codec:
    """The codec of these options."""
    return Codec(args.kernel, args.family, args.phys_bits, execonly=not args.no_execonly)


def values(given: list[str]) -> Iterator[tuple[str, str]]:
    """(place, text) of each value; `-` reads one a line from stdin, blank lines passed over."""
    for i, text in enumerate(given, 1):
        if text != "-":
            yield f"value {i}", text
            continue
        for number, line in enumerate(sys.stdin, 1):
            if line.strip():
                yield f"<stdin>:{number}", line.strip().strip('"')


def hex_word(place: str, text: str) -> int:
    """A hexadecimal word, or an error that names where it stood."""
    try:
        return word64(text)
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from None


def any_number(text: str) -> int:
    """A number as an option gives it: decimal or 0x."""
    try:
        return word64(int(text, 0), "number")
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 2^64-1") from error
