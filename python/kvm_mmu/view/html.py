"""Notebook HTML: tables; a VM, a shadow page, a run and a trace at a glance, each on a page.

Everything from outside is escaped, everything long is capped, and nothing that is shown costs more than a glance.
"""

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


def _folded(title: str, inside: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{inside}</details>"


def _whole(*parts: str) -> str:
    return "<div style='max-width:100%;overflow-x:auto'>" + "".join(parts) + "</div>"


def _work_html(work: Mapping[str, int]) -> str:
    done = {name: value for name, value in work.items() if value}
    return _folded("work (exact counts)", pairs_html(done)) if done else ""


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
    def tdp_mmu(self) -> bool:
        """True if the TDP MMU serves the guest."""

    @property
    def memory(self) -> dict[str, int]:
        """Bytes by kind, and how many shadow pages and tables there are."""

    @property
    def memslots(self) -> Any:
        """Its memslots, iterable as (address space, slot)."""

    @property
    def vcpus(self) -> Sequence[Any]:
        """Its vCPUs."""


def vm_html(vm: VmLike, picture: str) -> str:
    """Show a VM: kernel, shadow pages, slots, its picture, and the work done so far.

    Args:
        vm: the VM.
        picture: its picture as SVG text, or a sentence why there is none.

    Returns:
        The HTML.
    """
    stats = vm.stats
    facts = {
        "kernel": vm.kernel,
        "family": vm.family,
        "vCPUs": len(vm.vcpus),
        "shadow pages": f"{stats.get('used', 0):,} of {stats.get('max', 0):,}",
    }
    if vm.tdp_mmu:
        facts["tables of the TDP MMU"] = f"{vm.memory['tdp_tables']:,}"
    slots = [(as_id, slot) for as_id, slot in vm.memslots]
    columns = {
        "as": [as_id for as_id, _ in slots],
        "slot": [slot.id for _, slot in slots],
        "gpa": [hex(slot.base << 12) for _, slot in slots],
        "pages": [slot.npages for _, slot in slots],
        "hva": [hex(slot.hva) for _, slot in slots],
        "flags": [hex(slot.flags) for _, slot in slots],
    }
    drawn = picture if picture.startswith("<svg") else f"<p>{escape(picture)}</p>"
    return _whole(
        pairs_html(facts, f"Vm {vm.kernel}"),
        table_html(columns, limit=8, caption="memslots") if slots else "",
        drawn,
        _work_html(vm.work),
    )


def page_html(page_id: int, fields: Mapping[str, Any] | None) -> str:
    """Show a shadow page: its fields, and its entries that are not zero.

    Args:
        page_id: its creation number.
        fields: everything of it; None when it is gone.

    Returns:
        The HTML.
    """
    if fields is None:
        return f"<p>shadow page {page_id}: there is no such page</p>"
    facts = {
        "gfn": f"{fields['gfn']:#x}",
        "level": fields["level"],
        "role": f"{int(fields['role']):#x}",
        "root_count": fields["root_count"],
        "marks": " ".join(n for n in ("mmio_cached", "invalid", "unsync") if fields.get(n)) or "-",
    }
    sptes = fields["sptes"]
    columns = {
        "index": [index for index, _, _ in sptes],
        "word": [f"{word:#x}" for _, word, _ in sptes],
        "links to": ["-" if child is None else f"page {child}" for _, _, child in sptes],
    }
    title = f"shadow page {page_id}"
    return _whole(
        pairs_html(facts, title), table_html(columns, limit=12, caption="entries that are not zero")
    )


def run_html(plan: str, state: str, report: Mapping[str, Any] | None) -> str:
    """Show a run of a plan: how it ended and what it did.

    Args:
        plan: the plan's name or words.
        state: what to say where there is no result.
        report: the result; None while there is none.

    Returns:
        The HTML.
    """
    if report is None:
        return _whole(pairs_html({"plan": plan, "outcome": state}, "ZapRun"))
    facts = {
        "plan": plan,
        "outcome": report["outcome"],
        "pages zapped": report["nr_zapped"],
        "list nodes visited": report["work"]["walk_visited"],
        "flushes": report["work"]["flushes"],
        "lock breaks": report["lock_breaks"],
        "longest hold, work units": report["longest_hold"],
    }
    return _whole(pairs_html(facts, "ZapRun"), _work_html(report["work"]))


def trace_html(name: str, about: str, events: Mapping[str, int]) -> str:
    """Show a trace: its name and the events of its beginning.

    Args:
        name: of the file.
        about: what the counts are of, or why there are none.
        events: how often each occurs there.

    Returns:
        The HTML.
    """
    columns: dict[str, list[Any]] = {"event": list(events), "rows": list(events.values())}
    table = table_html(columns, limit=12) if events else ""
    return _whole(f"<p>Trace <b>{_text(name)}</b>: {_text(about)}</p>", table)
