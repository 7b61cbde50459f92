"""The same wrap of the generation under three interleavings: how long the lock is held, who waits, what never ends.

    python examples/lock_latency.py [--pages 512] [--vcpus 4] [--kernel v5.0] [-o DIR]

Time here is simulated: work counts times the constants of a cost model that was fitted to the kernel's own C.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import kvm_mmu as km
from kvm_mmu.lab.latency.table import Latency

PLANS = ("own", "seed", "merged", "zap-all")


def run(pages: int, vcpus: int, kernel: str, out: Path | None = None) -> dict[str, Latency]:
    """Simulate and print each interleaving."""
    found = {}
    for interleaving in ("round-robin", "adversarial", "recorded"):
        found[interleaving] = km.latency(
            "boot",
            PLANS,
            kernels=[kernel],
            pages=[pages],
            mmio=[0.1],
            vcpus=[vcpus],
            interleaving=interleaving,
            jobs=1,
            out=None if out is None else out / interleaving,
        )
        for row in found[interleaving].rows:
            held, waited = row["modelled_hold_us_max"], row["modelled_wait_us_max"]
            said = "nobody waited" if waited is None else f"a vCPU waited {waited:9.2f} us at most"
            print(f"{interleaving:12} {row['plan']:8} held {held:9.2f} us at most, {said}: {row['verdict']}")
    return found


def main(arguments: Sequence[str] | None = None) -> dict[str, Latency]:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pages", type=int, default=512)
    parser.add_argument("--vcpus", type=int, default=4)
    parser.add_argument("--kernel", default="v5.0")
    parser.add_argument("-o", "--out", type=Path)
    args = parser.parse_args(arguments)
    return run(args.pages, args.vcpus, args.kernel, args.out)


if __name__ == "__main__":
    main()
