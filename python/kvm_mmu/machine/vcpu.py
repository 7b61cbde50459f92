"""A vCPU as the machine layer shows it: guest accesses, faults, entry, registers.

It holds the core and not the `Vm`, which holds its vCPUs: a cycle would keep the native memory of every dropped VM.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple, SupportsIndex, get_args, overload

import numpy as np
import numpy.typing as npt

from kvm_mmu import _core
from kvm_mmu.errors import UsageError
from kvm_mmu.machine import numbers
from kvm_mmu.machine.numbers import flag, integer, shown, word
from kvm_mmu.types import AccessKind, Outcome

ACCESS_KINDS: tuple[str, ...] = get_args(AccessKind)
OUTCOMES: tuple[Outcome, ...] = ("hit", "emulate", "error", "stuck", "guest_fault")


class AccessResult(NamedTuple):
    """The result of one access.

    Attributes:
        outcome: `hit`, `emulate` (an MMIO exit or a write to a tracked page), `error` or `stuck` (eight faults in
            vain).
        faults: how many faults it took.
        ret: what the last fault handler returned.
    """

    outcome: Outcome
    faults: int
    ret: int


class AccessColumns(NamedTuple):
    """The results of many accesses, one row an access.

    Attributes:
        outcome: u8, an index into `OUTCOMES`.
        faults: u8, how many faults the access took.
        ret: i32, what the last fault handler returned.
    """

    outcome: npt.NDArray[np.uint8]
    faults: npt.NDArray[np.uint8]
    ret: npt.NDArray[np.int32]

    def counts(self) -> dict[str, int]:
        """Count how the accesses ended.

        Returns:
            Outcome to number of accesses.
        """
        found = np.bincount(self.outcome, minlength=len(OUTCOMES))
        return {name: int(found[i]) for i, name in enumerate(OUTCOMES)}


class Vcpu:
    """One vCPU of a VM, from `Vm.vcpus`.

    Args:
        core: the native VM.
        index: the vCPU's number.
    """

    def __init__(self, core: _core.Mmu, index: int) -> None:
        self._core = core
        self.index = index

    def __repr__(self) -> str:
        state = self.state
        return f"<Vcpu {self.index} root={state['root']} smm={state['smm']} requests={state['requests']}>"

    def access(self, gpa: int, kind: AccessKind = "r", user: bool = False) -> AccessResult:
        """Access guest memory: vCPU entry, hardware walk, faults until it succeeds or is emulated.

        Where the VM shadows the page tables of its guest, the address is guest-virtual, and syncing tables passes over
        lock breaks; `Vm.guest` runs the hook at each.

        Args:
            gpa: guest physical address, bytes.
            kind: `r`, `w` or `x`.
            user: from privilege level 3; only where the guest has page tables of its own.

        Returns:
            How it ended.

        Raises:
            UsageError: `user` of a VM that shadows no page tables of a guest.
        """
        try:
            outcome, faults, ret = self._core.access(self.index, gpa, kind, user)
        except (OverflowError, TypeError):
            outcome, faults, ret = self._core.access(
                self.index, integer("gpa", gpa), word("kind", kind, ACCESS_KINDS), flag("user", user)
            )
        return AccessResult(OUTCOMES[outcome], faults, ret)

    def access_many(self, gpas: npt.ArrayLike, kind: AccessKind = "r", user: bool = False) -> AccessColumns:
        """Access many addresses in order, as `access`, with the GIL released; Ctrl-C stops between two of them.

        Args:
            gpas: guest physical addresses, bytes; one dimension of any integer dtype without negative values (uint64
                is taken
                without a copy).
            kind: `r`, `w` or `x`, for all of them.
            user: from privilege level 3; only where the guest has page tables of its own.

        Returns:
            A row for each.

        Raises:
            UsageError: another dtype or shape, or `user` of a VM that shadows no page tables of a guest.
            KeyboardInterrupt: the accesses so far have happened.
        """
        kind = word("kind", kind, ACCESS_KINDS)  # type: ignore[assignment]
        array = numbers.array("gpas", gpas)
        if array.ndim != 1:
            raise UsageError(f"access_many: gpas has shape {array.shape}, expected one dimension")
        if array.size == 0:
            array = array.astype(np.uint64)
        if array.dtype.kind not in "ui":
            raise UsageError(f"access_many: gpas has dtype {array.dtype}, expected unsigned 64-bit integers")
        if array.dtype.kind == "i" and int(array.min()) < 0:
            raise UsageError(f"access_many: gpas has a negative address {int(array.min())}")
        array = np.ascontiguousarray(array, dtype=np.uint64)
        return AccessColumns(*self._core.access_many(self.index, array, kind, flag("user", user)))

    def fault(self, gpa: int, error_code: int) -> int:
        """Enter the page fault handler directly, without vCPU entry.

        Args:
            gpa: guest physical address, bytes.
            error_code: as the processor reports it.

        Returns:
            What the handler returns: 1 resume the guest, 0 exit to user space, negative an errno.
        """
        return self._core.fault(self.index, integer("gpa", gpa), integer("error_code", error_code))

    def fault_with(
        self,
        gpa: int,
        error_code: int,
        found: tuple[int, bool, list[int] | None] | None,
        *,
        is_written: bool | None = None,
        frame: int | None = None,
    ) -> int:
        """Enter the page fault handler where the host's answer is known (v6.x).

        Args:
            gpa: guest physical address, bytes.
            error_code: as the processor reports it.
            found: level asked for (1 to 3), whether the host maps the page writable, and the gfns the lookup of
                neighbours
                finds (None: ask the model); None: the lookup failed, nothing is mapped.
            is_written: whether the leaf was written, where old and new one differ only in the accessed and dirty
                bits, which a
                processor sets; None: the model's own bits decide.
            frame: the page's frame number; None: the one of the model of host memory.

        Returns:
            What the handler returns: 1 resume the guest, 0 exit to user space, negative an errno.
        """
        if found is not None:
            try:
                level, writable, neighbours = found
                if neighbours is not None:
                    neighbours = [integer("found: a neighbour's gfn", gfn) for gfn in neighbours]
            except (TypeError, ValueError) as error:
                if isinstance(error, UsageError):
                    raise
                raise UsageError(
                    f"found={shown(found)}: expected (level, writable, gfns or None), or None"
                ) from None
            found = (integer("found: level", level, 1, 3), flag("found: writable", writable), neighbours)
        if is_written is not None:
            is_written = flag("is_written", is_written)
        if frame is not None:
            frame = integer("frame", frame, 0, (1 << 40) - 1)
        return self._core.fault_with(
            self.index, integer("gpa", gpa), integer("error_code", error_code), found, is_written, frame
        )

    def enter(self) -> int:
        """Enter the guest: serve requests, load a root if there is none.

        Returns:
            0, or a negative errno when no root could be loaded.
        """
        return self._core.enter(self.index)

    def load(self) -> int:
        """Load the root.

        Returns:
            0, or a negative errno.
        """
        return self._core.load(self.index)

    def unload(self) -> None:
        """Drop the root."""
        self._core.unload(self.index)

    def set_smm(self, on: bool) -> None:
        """Enter or leave system management mode.

        Args:
            on: True to enter.
        """
        self._core.set_smm(self.index, flag("on", on))

    def init(self) -> None:
        """Send INIT: control registers have their values after it (no paging), and system management mode is left.

        Whether the MMU context is reset too is the kernel's fact `init_resets`.
        """
        self._core.init(self.index)

    def set_pkru(self, pkru: int) -> None:
        """Write the rights of protection keys; what is mapped stays until it faults again.

        Args:
            pkru: two bits a key, from key 0 on: no access, no write.

        Raises:
            UsageError: the guest's page tables are not shadowed.
        """
        self._core.set_pkru(self.index, integer("pkru", pkru))

    def set_regs(
        self,
        cr0: int | None = None,
        cr4: int | None = None,
        efer: int | None = None,
        smm: bool | None = None,
    ) -> int:
        """Set control registers and reset the MMU context; what is None stays.

        Args:
            cr0: bit 16 is WP.
            cr4: bit 5 is PAE, bit 20 SMEP, bit 21 SMAP.
            efer: bit 11 is NX.
            smm: system management mode.

        Returns:
            0, or 2 if the guest is in PAE mode, its page tables are shadowed, and its PDPTEs are refused.
        """
        return self._core.set_regs(
            self.index,
            None if cr0 is None else integer("cr0", cr0),
            None if cr4 is None else integer("cr4", cr4),
            None if efer is None else integer("efer", efer),
            None if smm is None else flag("smm", smm),
        )

    def clear_mmio_info(self) -> None:
        """Forget the cached MMIO address (a test aid of the scenario language)."""
        self._core.clear_mmio_info(self.index)

    @property
    def state(self) -> dict[str, Any]:
        """The root, requests, SMM and cached MMIO address, as in a snapshot."""
        found: dict[str, Any] = json.loads(self._core.state_json())["vcpus"][self.index]
        return found


class Vcpus(list[Vcpu]):
    """The vCPUs of a VM, by number; one that the VM does not have is refused with how many it has."""

    @overload
    def __getitem__(self, index: SupportsIndex) -> Vcpu: ...
    @overload
    def __getitem__(self, index: slice) -> list[Vcpu]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Vcpu | list[Vcpu]:
        """Take the vCPU of this number.

        Args:
            index: its number, from 0.

        Raises:
            IndexError: the VM has no such vCPU.
        """
        try:
            return super().__getitem__(index)
        except IndexError:
            last = len(self) - 1
            has = "1 vCPU, number 0" if last == 0 else f"{last + 1} vCPUs, numbers 0 to {last}"
            raise IndexError(f"vCPU {index}: this VM has {has}") from None
