"""A guest of a TiB under the TDP MMU: faulted, logged, split, collapsed and torn down, with time and memory.

    python examples/tebibyte_guest.py [--gib 1024] [--kernel v7.3]

Its 268 million gfns are 524,288 leaves of 2 MiB at first. While the dirty log is on every one of them is a table of 512
leaves, which takes 2.2 GB of this machine's memory; when it goes off, v6.18 and later make large leaves of them again,
older kernels leave them out for the next fault to map.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import kvm_mmu as km
import numpy as np

HVA = 1 << 45


def stage(name: str, vm: km.Vm, work: Callable[[], object]) -> dict[str, float | str]:
    """Do one step and measure it: seconds, megabytes, tables, and entries that changed."""
    changed = vm.work["sptes_changed"]
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    memory = vm.memory
    row: dict[str, float | str] = {
        "step": name,
        "seconds": seconds,
        "megabytes": memory["total"] / 1e6,
        "tables": memory["tdp_tables"],
        "changed": vm.work["sptes_changed"] - changed,
    }
    print(
        f"{name:34} {seconds:8.2f} s {row['megabytes']:9,.1f} MB {row['tables']:9,} tables "
        f"{row['changed']:12,} entries changed"
    )
    return row


def run(gib: int, kernel: str) -> list[dict[str, float | str]]:
    """All steps of a guest of so many GiB."""
    vm = km.Vm(kernel=kernel, family="ept_ad", phys_bits=46, events="off")
    size = gib * km.GIB
    vm.memslots.create(slot=0, gpa=0, size=size, hva=HVA)
    vm.core.set_host_huge(HVA, size // 4096, "thp")
    every_2m = np.arange(0, size, 2 * km.MIB, dtype=np.uint64)
    print(f"{vm!r}: {size // 4096:,} gfns, {len(every_2m):,} leaves of 2 MiB")
    vcpu = vm.vcpus[0]
    rows = [
        stage("fault every 2 MiB", vm, lambda: vcpu.access_many(every_2m, "w")),
        stage(
            "dirty log on: split and protect",
            vm,
            lambda: vm.memslots.set_flags(0, km.types.KVM_MEM_LOG_DIRTY_PAGES),
        ),
        stage("write one page of every 2 MiB", vm, lambda: vcpu.access_many(every_2m, "w")),
        stage("read the dirty log", vm, lambda: vm.read_dirty_log(0, 0, False)),
        stage("dirty log off: collapse", vm, lambda: vm.memslots.set_flags(0, 0)),
        stage("fault every 2 MiB again", vm, lambda: vcpu.access_many(every_2m, "w")),
        stage("tear down", vm, vm.destroy),
    ]
    assert vm.audit() == []
    return rows


def main(arguments: Sequence[str] | None = None) -> list[dict[str, float | str]]:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gib", type=int, default=1024, help="size of the guest (default: 1024)")
    parser.add_argument("--kernel", default="v7.3", help="which kernel (default: v7.3)")
    chosen = parser.parse_args(arguments)
    if not 1 <= chosen.gib <= 4096 or not km.kernels[chosen.kernel].facts["has_tdp_mmu"]:
        parser.error("expected --gib 1 to 4096, and a kernel with a TDP MMU: v6.1 or later")
    return run(chosen.gib, chosen.kernel)


if __name__ == "__main__":
    main()
