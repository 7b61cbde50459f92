"""The collateral damage of a zap: tables built and faults taken again when the guest goes on.

The workload's distinct accesses are repeated on the zapped clone and on an untouched clone in the same generation;
the differences are what the zap cost the guest afterwards. The limit of shadow pages is lifted on both, so that reclaim
does not hide it. A difference may be negative: after a zap one large mapping can take the place of many small ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvm_mmu.machine.vm import Vm
from kvm_mmu.scenario.workload import Batch


@dataclass(frozen=True)
class Repeated:
    """What repeating a workload's accesses took."""

    tables: int
    faults: int

    def beyond(self, untouched: Repeated) -> Repeated:
        """The part that the untouched clone did not need."""
        return Repeated(self.tables - untouched.tables, self.faults - untouched.faults)


def repeat(vm: Vm, touches: Sequence[Batch]) -> Repeated:
    """Repeat the accesses on this VM and count; the VM changes."""
    vm.core.set_lock_break(0, 0)
    vm.core.set_max_raw(1 << 30)
    before = vm.work
    for batch in touches:
        vm.vcpus[batch.vcpu].access_many(batch.gpas, batch.kind)
    after = vm.work
    return Repeated(
        after["get_page_created"] - before["get_page_created"], after["faults"] - before["faults"]
    )
