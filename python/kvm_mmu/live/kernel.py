"""`open()`: a kernel whose VMs can be read, and `LiveKernel`, what it gives.

Stands above everything here that reads; below it nobody knows how many VMs there are. One VM that cannot be read never
loses the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from kvm_mmu.errors import LiveError, UsageError
from kvm_mmu.live.capture import Progress, Reader, silent
from kvm_mmu.live.kernel_facts import KernelFacts
from kvm_mmu.live.live_vm import LiveVm
from kvm_mmu.live.program import Opened, import_drgn, open_source, prepare
from kvm_mmu.live.settle import settled_capture
from kvm_mmu.words.codec import Codec


def open(
    source: str,
    *,
    facts: str | Path | None = None,
    debug: Sequence[str | Path] = (),
    connect: Callable[[Any, str], None] | None = None,
) -> LiveKernel:
    """Open a kernel's memory.

    Args:
        source: a dump's file, `/proc/kcore`, or `qmp:SOCKET`.
        facts: a folder with `types.btf` and `symbols.json`; None: they are in the source.
        debug: files with debug information, in place of BTF.
        connect: in place of drgn's own way to a running kernel: called with the drgn program and the source.

    Returns:
        The kernel; a context manager.

    Raises:
        LiveError: it cannot be opened, or lacks what is needed; the message says what.
    """
    return LiveKernel(open_source(str(source), facts, debug, connect))


def from_program(program: Any, name: str = "the program", facts: str | Path | None = None) -> LiveKernel:
    """Use a kernel that drgn has open already, with its own types and symbols where it has them.

    Args:
        program: a `drgn.Program`.
        name: what it is called in errors.
        facts: a folder with `types.btf` and `symbols.json`; None: the program has types, or its memory carries them.

    Returns:
        The kernel.

    Raises:
        LiveError: it lacks what is needed.
    """
    has_types = facts is None
    if has_types:
        try:
            program.type("struct kvm")
        except LookupError:
            has_types = False
    is_live = bool(program.flags & import_drgn().ProgramFlags.IS_LIVE)
    return LiveKernel(prepare(program, name, facts, is_live=is_live, has_types=has_types))


class LiveKernel:
    """A kernel whose VMs can be read.

    Args:
        opened: the source.
    """

    def __init__(self, opened: Opened) -> None:
        self._opened: Opened | None = opened
        self.source = opened.source
        self.facts = KernelFacts(opened)
        self._reader = Reader(opened, self.facts)

    def __enter__(self) -> LiveKernel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the source go; what was captured stays."""
        self._opened = None

    def __repr__(self) -> str:
        return f"<LiveKernel {self.facts.release} of {self.source}, {self.facts.family}>"

    @property
    def opened(self) -> Opened:
        """The source.

        Raises:
            UsageError: it is closed.
        """
        if self._opened is None:
            raise UsageError(f"{self.source}: is closed")
        return self._opened

    @property
    def release(self) -> str:
        """The release, as `uname -r` says it."""
        return self.facts.release

    @property
    def family(self) -> str:
        """How guests are paged (`shadow`, `npt`, `ept_ad` or `ept_noad`)."""
        return self.facts.family

    @property
    def masks(self) -> dict[str, int]:
        """The kernel's own masks of SPTEs, by the name of the variable without `shadow_` and `_mask`."""
        return dict(self.facts.masks)

    @property
    def codec(self) -> Codec:
        """The words of this kernel on this host."""
        return self.facts.codec

    @property
    def notes(self) -> list[str]:
        """What a reader must know, such as an unknown kernel, a foreign mask, a module without symbols."""
        row = self.facts.row
        found = [row.said] if row.said else []
        found += [f"a mask that is not its row's: {said}" for said in self.facts.foreign_masks]
        if self.facts.family in ("ept_ad", "ept_noad"):
            found.append("EPT: read by the same rules, no dump of an Intel host was ever tried")
        return found + list(self.opened.faults)

    def addresses(self) -> list[int]:
        """Read the list of VMs.

        Returns:
            The address of each `struct kvm`, newest first as the kernel's list has them.
        """
        return self._reader.addresses(self.opened.faults)

    def vms(self, tries: int = 1, with_rmaps: bool = True, progress: Progress = silent) -> list[LiveVm]:
        """Read every VM.

        Args:
            tries: how often a VM that moves is read again.
            with_rmaps: also the reverse maps.
            progress: told what is read.

        Returns:
            The VMs in the kernel's order; one that cannot be read has its `error` and nothing else.
        """
        return [self._vm(kvm, tries, with_rmaps, progress) for kvm in self.addresses()]

    def capture(
        self, pid: int | str, tries: int = 20, with_rmaps: bool = True, progress: Progress = silent
    ) -> LiveVm:
        """Read one VM, again and again until it held still.

        Args:
            pid: of the process that made it, or the address of its `struct kvm` as text with 0x.
            tries: how often at most.
            with_rmaps: also the reverse maps.
            progress: told what is read.

        Returns:
            The VM; `settled` says whether it held still.

        Raises:
            LiveError: there is no such VM, or it cannot be read.
        """
        vm = self._vm(self._address(pid), tries, with_rmaps, progress)
        if vm.error:
            raise LiveError(vm.error)
        return vm

    def _address(self, pid: int | str) -> int:
        known: list[str] = []
        for kvm in self.addresses():
            try:
                own = self._reader.pid(kvm)
            except LiveError as error:
                own = -1
                self.opened.faults.add(error)
            if own == pid or str(own) == str(pid) or hex(kvm) == str(pid).lower():
                return kvm
            known.append(str(own))
        raise LiveError(f"no VM of process {pid} in {self.source}: it has {', '.join(known) or 'none'}")

    def _vm(self, kvm: int, tries: int, with_rmaps: bool, progress: Progress) -> LiveVm:
        is_live = self.opened.is_live
        try:
            return LiveVm(
                kvm,
                settled_capture(self._reader, kvm, tries if is_live else 1, is_live, with_rmaps, progress),
                self,
            )
        except LiveError as error:
            return LiveVm(kvm, None, self, str(error))
        except (OverflowError, IndexError, ValueError, MemoryError) as error:
            # Numbers of a damaged or torn structure that fit nothing: this VM is lost, the others are not.
            return LiveVm(
                kvm, None, self, f"VM {kvm:#x}: damaged beyond reading ({type(error).__name__}: {error})"
            )
