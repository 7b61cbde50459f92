"""A kernel's memory read: the MMU of real VMs, from a dump, `/proc/kcore` or QEMU's monitor.

Knows `machine`, `words` and `view`; drgn is imported inside functions only.
"""

from kvm_mmu.live.kernel import LiveKernel, from_program, open
from kvm_mmu.live.live_vm import LiveVm

__all__ = ["LiveKernel", "LiveVm", "from_program", "open"]
