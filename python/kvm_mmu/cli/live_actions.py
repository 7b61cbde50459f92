"""What `kvm-mmu live SOURCE --vm PID WHAT` does, one function a WHAT."""

from __future__ import annotations

import argparse

from kvm_mmu.errors import UsageError
from kvm_mmu.live import LiveKernel, LiveVm


def run(action: str, kernel: LiveKernel, vm: LiveVm, args: argparse.Namespace) -> int:
    """Do one of the actions; returns the exit status."""
    raise UsageError(f"{action} of {vm!r} in {kernel.source} ({args.live_command}): not known")
