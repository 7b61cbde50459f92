"""Options and input that `decode` and `encode` share: which kernel and host, values or a stream of them."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator

from kvm_mmu.errors import UsageError
from kvm_mmu.machine.profiles import kernels
from kvm_mmu.scenario.scenario_text import numbered_lines
from kvm_mmu.words.bits import FAMILIES, word64
from kvm_mmu.words.codec import FAMILY_ALIASES, Codec

_NUMBER = re.compile(r"0x[0-9a-f]{1,16}|[0-9]{1,20}", re.IGNORECASE)
YES_NO = {"yes": True, "no": False, "auto": None}


def add_host(parser: argparse.ArgumentParser) -> None:
    """Add the options that say whose words these are."""
    parser.add_argument(
        "--kernel",
        required=True,
        help=f"whose layout ({next(iter(kernels))} to {list(kernels)[-1]}); never guessed",
    )
    parser.add_argument(
        "--family",
        default="ept_ad",
        choices=(*FAMILIES, *FAMILY_ALIASES),
        help="SPTE masks (default: ept_ad)",
    )
    parser.add_argument(
        "--phys-bits", type=int, default=46, metavar="N", help="host physical width (default: 46)"
    )
    parser.add_argument("--phys_bits", type=int, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parser.add_argument(
        "--l1tf",
        choices=tuple(YES_NO),
        default="auto",
        help="MMIO SPTEs have the L1TF mask: up to v5.4 always, in v6.x where the CPU has the bug (auto: no there)",
    )
    parser.add_argument(
        "--c-bit",
        type=int,
        metavar="N",
        help="address bit that says encrypted, on an AMD host with SME (47 or 51 on most)",
    )
    parser.add_argument("--no-execonly", action="store_true", help="EPT without execute-only")


def codec(args: argparse.Namespace) -> Codec:
    """The codec of these options."""
    return Codec(
        args.kernel,
        args.family,
        args.phys_bits,
        execonly=not args.no_execonly,
        l1tf=YES_NO[args.l1tf],
        c_bit=args.c_bit,
    )


def host_values(machine: Codec) -> dict[str, object]:
    """Whose words these are, as every JSON object says it."""
    return {
        "family": machine.family,
        "phys_bits": machine.phys_bits,
        "l1tf": int(machine.has_l1tf_mask),
    }


def values(given: list[str]) -> Iterator[tuple[str, str]]:
    """(place, text) of each value; `-` reads one a line from stdin, blank lines passed over."""
    for i, text in enumerate(given, 1):
        if text != "-":
            yield f"value {i}", text
            continue
        for number, line in numbered_lines(sys.stdin, "<stdin>"):
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
    found = _NUMBER.fullmatch(text.strip())
    number = -1 if found is None else int(found[0], 16 if found[0][:2].lower() == "0x" else 10)
    if not 0 <= number < 1 << 64:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number from 0 to 2^64-1")
    return number
