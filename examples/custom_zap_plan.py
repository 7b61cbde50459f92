"""A zap plan nobody has thought of, in plain Python, against history's: same pages, counted the same way.

    python examples/custom_zap_plan.py [--tables 2000] [--share 0.05]

The plan of one's own walks from the tail and stops after the last flagged page it knows of; the others are the seed
patch, what was merged, and the index.
"""

from __future__ import annotations

import argparse

import kvm_mmu as km
from kvm_mmu.scenario.workload import mmio_mix

#: The same idea as a value, for the runner in Rust: walk from the tail, never restart, never offer the lock.
TAIL = km.ZapPlan(walk="tail", only="mmio_cached", name="tail-once")


def stop_early(vm: km.Vm) -> None:
    """From the tail, and not further than the last flagged page."""
    left = sum(1 for page in vm.core.active_page_ids() if vm.page(page).mmio_cached)
    with vm.zap_batch() as batch:  # leaving the block flushes every TLB, then frees
        for page in vm.active_pages(from_tail=True):
            if not left:
                break
            if page.mmio_cached:
                batch.prepare(page)
                left -= 1


def main(argv: list[str] | None = None) -> object:
    """Compare; returns the `Comparison`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=int, default=2000)
    parser.add_argument("--share", type=float, default=0.05)
    args = parser.parse_args(argv)

    workload = mmio_mix(args.tables, args.share, "random", kernel="v5.0-seed")
    found = km.compare(workload, ["seed", "merged", "indexed", TAIL, stop_early], at="wrap")
    for row in found.rows:
        print(
            f"{row['plan']:<12} visits {row['nodes_visited']:>9,}  zaps {row['pages_zapped']:>5,}  "
            f"holds the lock for {row['longest_hold']:>9,} work units"
        )
    return found


if __name__ == "__main__":
    main()
