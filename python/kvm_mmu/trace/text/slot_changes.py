"""Which memslot an update is about: what a recorder's marker or a probe on the ioctl says, and what earlier ones said.

Owns: the table of slots of each process as the trace told of them, and the words for what an update does. A recorder's
marker (`trace_marker`) and the kit's probe `set_memory_region` say slot, address, size and flags; the probe
`set_memslot` says only what kind of change it is. What nothing says stays None.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from kvm_mmu.errors import TraceError
from kvm_mmu.trace.text.line import process_of
from kvm_mmu.trace.text.markers import number, parse_marker

#: What the probe `set_memslot` calls a change.
CHANGES = {"0": "create", "1": "delete", "2": "move", "3": "flags"}
_PROBE = re.compile(
    r"\bslot=(\d{1,10}) flags=0x([0-9a-f]{1,8}) gpa=0x([0-9a-f]{1,16}) size=0x([0-9a-f]{1,16})"
)
#: A return other than 0, of a marker or of a return probe.
_REFUSED = re.compile(r'"rc": ?-\d|\bret=(?:-\d|0x[89a-f][0-9a-f]{7}\b)')
_AS_SHIFT = 16


@dataclass(slots=True)
class SlotChange:
    """A memslot update: what it does to which slot. Bytes; of a slot that goes away, what it was; None: not said."""

    change: str = ""
    slot: int | None = None
    as_id: int | None = None
    gpa: int | None = None
    size: int | None = None
    flags: int | None = None
    is_refused: bool = False

    @property
    def what(self) -> str:
        """The change in words, empty where nothing says it."""
        return f"{self.change}, refused" if self.is_refused and self.change else self.change

    def __str__(self) -> str:
        if self.slot is None:
            return "a slot that the trace does not name"
        said = [f"slot {self.slot}" + (f" of address space {self.as_id}" if self.as_id else "")]
        if self.gpa is not None:
            said.append(f"at {self.gpa:#x}")
        if self.size:
            said.append(in_words(self.size))
        if self.flags:
            said.append(f"flags {self.flags:#x}")
        return " ".join(said)


_Key = tuple[int, int]
_Slot = tuple[int, int, int]


class SlotTables:
    """The slots of each process, as far as the trace tells of them."""

    def __init__(self) -> None:
        self._slots: dict[str, dict[_Key, _Slot]] = {}
        self._before: dict[str, tuple[_Key, _Slot | None]] = {}
        #: Processes whose slots are all known, because the trace has the beginning of their VM.
        self._from_beginning: set[str] = set()

    def announced(self, task: str, event: str, body: str) -> SlotChange | None:
        """What a marker or a probe says is done next; None: it is not about a memslot. The tables follow it."""
        if event != "tracing_mark_write":
            self._before.pop(task, None)
            found = _PROBE.search(body)
            if found is None:
                return SlotChange()
            as_id, slot = divmod(int(found[1]), 1 << _AS_SHIFT)
            return self._change(
                task, (as_id, slot), (int(found[3], 16), int(found[4], 16), int(found[2], 16))
            )
        if "memslot" not in body:
            if '"create_vm"' in body:
                self._slots.pop(process_of(task), None)
                self._from_beginning.add(process_of(task))
            return None
        try:
            op = parse_marker(body, "")
        except TraceError:  # cut
            return None
        if op is None or op.get("op") not in ("set_memslot", "memslot"):
            return None
        self._before.pop(task, None)
        try:
            key = (number(op, "as_id" if "as_id" in op else "as", "", 0), number(op, "slot", ""))
            said = (number(op, "gpa", ""), number(op, "size", ""), number(op, "flags", "", 0))
        except TraceError:  # a short marker says only that there is an update
            return SlotChange()
        return self._change(task, key, said)

    def refused(self, task: str, body: str) -> bool:
        """Whether this return says that the update was refused; the slot is then as it was before."""
        if _REFUSED.search(body) is None:
            return False
        key, before = self._before.pop(task, (None, None))
        slots = self._slots.get(process_of(task), {})
        if key is not None and before is not None:
            slots[key] = before
        elif key is not None:
            slots.pop(key, None)
        return True

    def _change(self, task: str, key: _Key, said: _Slot) -> SlotChange:
        slots = self._slots.setdefault(process_of(task), {})
        before = slots.get(key)
        self._before[task] = (key, before)
        as_id, slot = key
        gpa, size, flags = said
        if size == 0:
            slots.pop(key, None)
            if before is None:
                return SlotChange("delete", slot, as_id, gpa or None)
            return SlotChange("delete", slot, as_id, *before)
        slots[key] = said
        is_known = before is not None or process_of(task) in self._from_beginning
        return SlotChange(_kind(before, said) if is_known else "", slot, as_id, gpa, size, flags)


def _kind(before: _Slot | None, after: _Slot) -> str:
    if before is None:
        return "create"
    if before[0] != after[0]:
        return "move"
    if before[1] != after[1]:
        return "resize"  # the kernel refuses it
    return "flags" if before[2] != after[2] else "no change"


def in_words(size: int) -> str:
    """A size in bytes, in the largest unit that divides it."""
    for shift, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size and size % (1 << shift) == 0:
            return f"{size >> shift:,} {unit}"
    return f"{size:,} bytes"
