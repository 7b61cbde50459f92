"""Notebook HTML: tables and a VM at a glance. Everything from outside is escaped, everything long is capped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Protocol

from kvm_mmu.view.tables import Columns, cell, is_number, nr_rows

#: Rows a notebook shows at most.
MAX_ROWS = 50
#: Characters a cell shows at most.
MAX_CHARS = 80


def _text(value: Any) -> str:
    text = cell(value)
    return escape(text if len(text) <= MAX_CHARS else text[: MAX_CHARS - 3] + "...")


def table_html(columns: Columns, limit: int = MAX_ROWS, caption: str = "") -> str:
    """A table; rows beyond `limit` are counted, not shown."""
    names = list(columns)
    count = nr_rows(columns)
    shown = min(count, limit)
    parts = ["<table>"]
    if caption:
        parts.append(f"<caption>{escape(caption)}</caption>")
    parts.append(
        "<thead><tr>" + "".join(f"<th>{_text(n.replace('_', ' '))}</th>" for n in names) + "</tr></thead>"
    )
    parts.append("<tbody>")
    for i in range(shown):
        cells = []
        for name in names:
            value = columns[name][i]
            edge = " style='text-align:right'" if is_number(value) else ""
            cells.append(f"<td{edge}>{_text(value)}</td>")
        parts.append("<tr>" + "".join(cells) + "</tr>")
    parts.append("</tbody></table>")
    if count > shown:
        parts.append(f"<p>... and {count - shown:,} rows more</p>")
    return "".join(parts)


def pairs_html(pairs: Mapping[str, Any], caption: str = "") -> str:
    """A two-column table of names and values."""
    return table_html({"what": list(pairs), "value": list(pairs.values())}, caption=caption)


class VmLike(Protocol):
    """What of a VM is shown."""

    @property
    def kernel(self) -> str:
        """The modelled kernel."""

    @property
    def family(self) -> str:
        """The paging family."""

    @property
    def stats(self) -> dict[str, int]:
        """Statistics."""

    @property
    def work(self) -> dict[str, int]:
        """Work counters."""

    @property
    def memslots(self) -> Any:
        """Its memslots, iterable as (address space, slot)."""

    @property
    def vcpus(self) -> Sequence[Any]:
        """Its vCPUs."""


def vm_html(vm: VmLike) -> str:
    """A VM at a glance: kernel, shadow pages, slots, and the work done so far."""
    stats, work = vm.stats, vm.work
    facts = {
        "kernel": vm.kernel,
        "family": vm.family,
        "vCPUs": len(vm.vcpus),
        "shadow pages": f"{stats.get('used', 0):,} of {stats.get('max', 0):,}",
    }
    slots = [(as_id, slot) for as_id, slot in vm.memslots]
    columns = {
        "as": [as_id for as_id, _ in slots],
        "slot": [slot.id for _, slot in slots],
        "gpa": [hex(slot.base << 12) for _, slot in slots],
        "pages": [slot.npages for _, slot in slots],
        "hva": [hex(slot.hva) for _, slot in slots],
        "flags": [hex(slot.flags) for _, slot in slots],
    }
    done = {name: value for name, value in work.items() if value}
    parts = [pairs_html(facts, f"Vm {vm.kernel}"), table_html(columns, limit=12, caption="memslots")]
    parts.append(pairs_html(done, "work so far (exact counts)"))
    return "<div>" + "".join(parts) + "</div>"
