"""Scale: a million direct shadow pages under 32,000 memslots and 64 vCPUs, built, faulted, zapped and audited.

    python examples/scale.py [--pages 1000000] [--memslots 32000] [--vcpus 64]
    python examples/scale.py --pages 4000000 --memslots 32764 --gfn-hash wide
    python examples/scale.py --curve scale.svg

The kernel has at most 509 memslots for user space; more are a switch of this model (`max_memslots`), and said so. Times
are measured wall time of this program on this machine; memory is the model's own account and the process's peak.

`--curve` draws what a page costs from 1,000 of them to `--pages`, with the wide hash: the kernel's hash has 4,096
buckets, and their collisions are a result of another kind. Small sizes are measured several times over; a point is the
least of some rounds.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kvm_mmu as km
import numpy as np

TABLE = 2 * km.MIB
#: Memslots that the kernel leaves to user space.
KERNEL_MEMSLOTS = 509


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print how long a step took."""
    start = time.perf_counter()
    yield
    print(f"{what:<44} {time.perf_counter() - start:8.2f} s measured")


def main(argv: list[str] | None = None) -> km.Vm | None:
    """Run; returns the VM after its teardown, nothing of a curve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=1_000_000, help="level-1 shadow pages")
    parser.add_argument("--memslots", type=int, default=32_000)
    parser.add_argument("--vcpus", type=int, default=64)
    parser.add_argument("--zap", default="merged", help="plan of the wrap that is forced")
    parser.add_argument(
        "--gfn-hash", choices=("kernel", "wide"), default="kernel", help="wide: ours, fewer collisions"
    )
    parser.add_argument("--curve", type=Path, metavar="FILE", help="draw the cost of a page by size instead")
    args = parser.parse_args(argv)
    if args.curve is not None:
        draw(curve(args.pages), args.curve)
        return None

    if args.memslots > KERNEL_MEMSLOTS:
        print(f"{args.memslots:,} memslots: above the kernel's {KERNEL_MEMSLOTS}, by the switch max_memslots")
    vm = km.Vm(
        kernel="v5.2",
        family="npt",
        vcpus=args.vcpus,
        events="off",
        max_memslots=max(512, args.memslots),
        gfn_hash=args.gfn_hash,
    )
    per_slot = -(-args.pages // args.memslots)
    with timed(f"{args.memslots:,} memslots of {per_slot * TABLE // km.MIB} MiB"):
        install(vm, args.memslots, per_slot)
    vm.set_nr_mmu_pages(2 * args.pages + 4096)
    shares = np.array_split(np.arange(args.pages, dtype=np.uint64) * np.uint64(TABLE), args.vcpus)
    with timed(f"{args.pages:,} tables built, a page each, {args.vcpus} vCPUs"):
        for vcpu, gpas in zip(vm.vcpus, shares, strict=True):
            done = vcpu.access_many(gpas, "w")
            assert done.counts()["hit"] == gpas.size
    with timed("the same pages touched again"):
        for vcpu, gpas in zip(vm.vcpus, shares, strict=True):
            vcpu.access_many(gpas, "r")
    mmio = np.arange(args.pages // 100, dtype=np.uint64) * np.uint64(TABLE) + np.uint64(1 << 44)
    with timed(f"{mmio.size:,} MMIO pages cached"):
        vm.vcpus[0].access_many(mmio, "r")
    memory = vm.memory
    print(
        f"{vm.core.nr_active_pages:,} live shadow pages, {memory['bytes_per_page']:,} bytes each; in all "
        f"{memory['total'] / km.MIB:,.0f} MiB, of it reverse maps {memory['rmap'] / km.MIB:,.0f} MiB"
    )
    with timed("audit of every invariant"):
        findings = vm.audit()
    assert findings == [], findings[:3]
    with timed(f"a wrap under {args.zap}"):
        run = vm.zap(args.zap)
    print(f"  {run.work['walk_visited']:,} list nodes visited, {run.nr_zapped:,} pages zapped")
    with timed("teardown"):
        vm.destroy()
    assert vm.core.nr_active_pages == 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of the process: {peak:,.0f} MiB")
    return vm


#: What is measured at each size, in its order.
STEPS = ("map the first page of a table", "touch it again", "zap everything")
#: Pages that a point is measured over at least: a size below is built several times.
MEASURED = 32_000
ROUNDS = 3


def curve(most: int) -> dict[int, list[float]]:
    """Returns nanoseconds of processor time a level-1 shadow page for each step, by how many there are.

    Args:
        most: The largest number of pages; the sizes are powers of four from 1,000 on.
    """
    found: dict[int, list[float]] = {}
    sizes = [1000]
    while sizes[-1] * 4 <= most:
        sizes.append(sizes[-1] * 4)
    if most > sizes[-1]:
        sizes.append(most)
    print(f"{'shadow pages':>12}" + "".join(f"{step:>32}" for step in STEPS))
    for size in sizes:
        least = [float("inf")] * len(STEPS)
        for _ in range(ROUNDS):
            spent = [0] * len(STEPS)
            times = max(MEASURED // size, 1)
            for _ in range(times):
                spent = [a + b for a, b in zip(spent, once(size), strict=True)]
            least = [min(a, b / times / size) for a, b in zip(least, spent, strict=True)]
        found[size] = least
        print(f"{size:>12,}" + "".join(f"{ns:>29.1f} ns" for ns in least), flush=True)
    for at, step in enumerate(STEPS):
        column = [row[at] for row in found.values()]
        print(f"{step}: most / least {max(column) / min(column):.2f}")
    return found


def once(pages: int) -> list[int]:
    """Nanoseconds of processor time of each step, on a VM of its own."""
    vm = km.Vm(kernel="v5.2", family="npt", events="off", gfn_hash="wide")
    vm.memslots.create(slot=0, gpa=0, size=pages * TABLE)
    vm.set_nr_mmu_pages(2 * pages + 4096)
    gpas = np.arange(pages, dtype=np.uint64) * np.uint64(TABLE)
    works: list[Callable[[], object]] = [
        lambda: vm.vcpus[0].access_many(gpas, "w"),
        lambda: vm.vcpus[0].access_many(gpas, "r"),
        lambda: vm.zap("zap-all"),
    ]
    spent = []
    for work in works:
        start = time.thread_time_ns()
        work()
        spent.append(time.thread_time_ns() - start)
    return spent


def draw(found: dict[int, list[float]], path: Path) -> None:
    """Write the curve as SVG.

    Args:
        found: What `curve` gives.
        path: Where it goes.
    """
    from kvm_mmu.view.charts import to_svg

    def plot(axes: Any) -> None:
        for at, step in enumerate(STEPS):
            axes.plot(list(found), [row[at] for row in found.values()], marker="o", label=step)
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("live level-1 shadow pages")
        axes.set_ylabel("ns of processor time a page")
        axes.legend()

    path.write_text(to_svg(plot, "what a shadow page costs, by how many there are"), encoding="utf-8")
    print(f"wrote {path}")


def install(vm: km.Vm, count: int, per_slot: int) -> None:
    """Put the slots into the array, the highest first (the array is kept in that order)."""
    size = per_slot * TABLE
    generation = vm.memslots.generations[0]
    for slot in reversed(range(count)):
        base = slot * size >> 12
        vm.install_slot(0, generation, (slot, base, size >> 12, (8 * km.GIB) + slot * size, 0))


if __name__ == "__main__":
    main()
