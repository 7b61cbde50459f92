"""A guest with page tables of its own, in ten lines: it maps, writes, changes a table, and flushes.

    python examples/paging_guest.py [--backend core|reference] [--kernel K]

Both backends take the same lines and say the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import kvm_mmu as km
from kvm_mmu.reference import Engine


def script(guest: km.Guest) -> Iterator[str]:
    """The ten lines."""
    guest.add_memory(0, 16 * km.MIB)
    guest.map(0x400000, gpa=0x200000, size=2 * km.PAGE_SIZE, flags="rwu")
    guest.map_tables(0x10000000, pages=8)
    yield f"a write: {guest.write(0x400000, 42, user=True).outcome}"
    yield f"what is there: {guest.read(0x400000, user=True)[1]}"
    guest.map(0x400000, gpa=0x300000, flags="ru")
    yield f"a write after the table changed: {guest.access(0x400000, 'w', user=True).outcome}"
    guest.invlpg(0x400000)
    yield f"a write after the flush: {guest.access(0x400000, 'w', user=True).outcome}"
    yield from (str(entry) for entry in guest.tables() if entry.is_leaf and entry.gva < 0x10000000)


def main(arguments: list[str] | None = None) -> list[str]:
    """Run the lines and print what they say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", choices=("core", "reference"), default="core")
    parser.add_argument("--kernel", default="v6.12")
    args = parser.parse_args(arguments)
    if args.backend == "core":
        guest = km.Vm(kernel=args.kernel, family="shadow").guest
    else:
        guest = km.Guest(Engine(args.kernel, {"family": "shadow"}))
    said = list(script(guest))
    print("\n".join(said))
    return said


if __name__ == "__main__":
    main()
