"""Spatial sampling: a huge input run on a share of its guest memory, its counts scaled to the whole.

A gfn is in the sample when the hash of its number is below the share: so the same gfns are in it in every input and
under every plan. Entries are scaled by how many gfns there were for each that was kept. A table is there when one of
its gfns was kept, which the number of gfns that the input has in it makes more or less likely: each table of the
sampled run stands for as many as one over that chance. Estimates are no counts of a run: they come with the share, and
`compared` puts them beside the full run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kvm_mmu.errors import UsageError
from kvm_mmu.machine.vm import Vm
from kvm_mmu.scenario.language import Scenario
from kvm_mmu.types import PAGE_SIZE

#: Operations of a guest at an address of its memory: those of a gfn that is not in the sample are left out.
BY_ADDRESS = ("access", "fault", "prefault")
#: What KVM_SET_NR_MMU_PAGES takes at least.
LEAST_LIMIT = 64
#: Operations on a number of shadow pages.
OF_PAGES = ("set_nr_mmu_pages", "change_mmu_pages", "zap_oldest", "shrink")
#: Columns that a comparison with a sample has more.
SAMPLED = ("sample_share", "sample_gfns", "sample_kept")
#: Columns that count entries, and columns that count pages.
ENTRIES = ("to_go", "left_over", "sptes_cleared", "rmap_steps", "faults_again")
PAGES = ("pages_zapped", "parent_steps", "tables_rebuilt", "restarts", "sptes_changed", "shared_units")
#: Counts that the full run is compared in.
COMPARED = ("pages", "nodes_visited", "pages_zapped", "work_units", "longest_hold", "faults_again")
_MASK = (1 << 64) - 1
_LEVELS = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Sample:
    """What was sampled.

    Attributes:
        share: as it was asked for, above 0 and up to 1.
        gfns: gfns that the input's guest comes to.
        kept: of them, those in the sample.
        regions: (level, number of the region that a table of that level maps) to how many of the gfns are in it.
    """

    share: float
    gfns: int
    kept: int
    regions: Mapping[tuple[int, int], int]

    @property
    def factor(self) -> float:
        """Gfns there were for each that was kept: nearer to the truth than 1 / share, since it is counted."""
        return self.gfns / self.kept if self.kept else 1.0

    def weight(self, level: int, gfn: int) -> float:
        """For how many tables of the whole one of the sampled run stands.

        Args:
            level: its level, 1 for one of 4-KiB entries.
            gfn: any gfn that it maps.
        """
        inside = self.regions.get((level, gfn >> 9 * level), 0)
        return 1.0 / (1.0 - (1.0 - self.kept / self.gfns) ** inside) if inside and self.kept else 1.0


def gfn_hash(gfn: int) -> int:
    """Spread gfns evenly over 64 bits (the finalizer of splitmix64)."""
    mixed = (gfn + 0x9E37_79B9_7F4A_7C15) & _MASK
    mixed = ((mixed ^ mixed >> 30) * 0xBF58_476D_1CE4_E5B9) & _MASK
    mixed = ((mixed ^ mixed >> 27) * 0x94D0_49BB_1331_11EB) & _MASK
    return mixed ^ mixed >> 31


def sampled(scenario: Scenario, share: float) -> tuple[Scenario, Sample]:
    """Leave out what a scenario's guest does outside of the sample; memslots and all else stay.

    Args:
        scenario: the operations.
        share: of the gfns, above 0 and up to 1.

    Returns:
        The operations that are left, and what was kept.

    Raises:
        UsageError: no share, or nothing is left of a guest that touches memory.
    """
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0.0 < share <= 1.0:
        raise UsageError(f"sample {share!r}: expected a share above 0 and up to 1")
    below = int(share * (1 << 64))
    is_in: dict[int, bool] = {}
    ops, returns = [], []
    for number, op in enumerate(scenario.ops):
        address = _address(op)
        if address is not None:
            gfn = address // PAGE_SIZE
            if gfn not in is_in:
                is_in[gfn] = gfn_hash(gfn) < below
            if not is_in[gfn]:
                continue
        ops.append(op)
        if scenario.returns:
            returns.append(scenario.returns[number])
    kept = sum(is_in.values())
    if is_in and not kept:
        raise UsageError(
            f"{scenario.name}: a sample of {share:.3g} holds none of its {len(is_in):,} gfns; expected a larger share"
        )
    regions = Counter((level, gfn >> 9 * level) for gfn in is_in for level in _LEVELS)
    tables = sum(level == 1 for level, _ in regions)
    left = len({gfn >> 9 for gfn, is_kept in is_in.items() if is_kept})
    if left < tables:
        ops = [_smaller(op, left / tables) for op in ops]
    note = f"{kept:,} of {len(is_in):,} gfns were run: counts are estimates for all, except flushes and lock breaks"
    found = replace(scenario, ops=ops, returns=returns, notes=[*scenario.notes, note])
    return found, Sample(float(share), len(is_in), kept, regions)


def _smaller(op: dict[str, Any], ratio: float) -> dict[str, Any]:
    """An operation on so many pages, for a guest that has fewer: a limit must be as near as it was."""
    given = op.get("n") if op.get("op") in OF_PAGES else None
    if not isinstance(given, int) or isinstance(given, bool):
        return op
    least = min(given, LEAST_LIMIT) if op["op"] == "set_nr_mmu_pages" else 1
    return {**op, "n": max(least, round(given * ratio))}


def _address(op: Mapping[str, Any]) -> int | None:
    """The guest-physical address of an operation of the guest, as scenarios write it; None of any other."""
    given = op.get("gpa") if op.get("op") in BY_ADDRESS else None
    if isinstance(given, str):
        try:
            return int(given, 0)
        except ValueError:
            return None  # the run says what is wrong with it
    return given if isinstance(given, int) else None


def estimated(
    row: Mapping[str, Any], work: Mapping[str, int], vm: Vm, sample: Sample, of_marked: bool
) -> dict[str, Any]:
    """Scale a row to the whole input.

    Args:
        row: the counts of the sampled run.
        work: its work, counter by counter.
        vm: the VM before the event.
        sample: what was kept.
        of_marked: the plan takes only pages that cache MMIO.

    Returns:
        The row with estimates, and the columns of `SAMPLED`. The longest hold of a run with lock breaks is that of the
        sampled run: its stretches are not longer in a larger guest.
    """
    tables = list(_tables(vm))
    pages = sum(sample.weight(level, gfn) for level, gfn, _ in tables)
    marked = sum(sample.weight(level, gfn) for level, gfn, is_marked in tables if is_marked)
    of_list = pages / len(tables) if tables else 1.0
    nr_marked = sum(is_marked for _, _, is_marked in tables)
    by_page = marked / nr_marked if of_marked and nr_marked else of_list
    found = dict(row) | {"pages": round(pages), "mmio_pages": round(marked)}
    for name, factor in (dict.fromkeys(ENTRIES, sample.factor) | dict.fromkeys(PAGES, by_page)).items():
        if row.get(name) is not None:
            found[name] = round(row[name] * factor)
    # Each walk of the list comes by more pages, and there are more walks where every zap begins one.
    starts, visits = work["walk_starts"], work["walk_visited"]
    if starts:
        visits = round(((starts - 1) * by_page + 1) * (visits / starts) * of_list)
    units = (
        visits
        + round((work["sptes_cleared"] + work["rmap_steps"]) * sample.factor)
        + round((work["parent_steps"] + work["hash_probes"]) * by_page)
        + work["heads_visited"]
        + round((8 * work["pages_zapped"] + 4 * work["pages_freed"]) * by_page)
        + 16 * work["flushes"]
    )
    if not row["lock_breaks"] and row["work_units"]:
        found["longest_hold"] = round(units * (row["longest_hold"] / row["work_units"]))
    found |= {"nodes_visited": visits, "work_units": units}
    updates = row["updates_per_event"]
    found["units_per_update"] = units / updates
    for name, of in (("tables_per_update", "tables_rebuilt"), ("faults_per_update", "faults_again")):
        found[name] = None if found[of] is None else found[of] / updates
    return found | dict(zip(SAMPLED, (sample.share, sample.gfns, sample.kept), strict=True))


def _tables(vm: Vm) -> Iterator[tuple[int, int, bool]]:
    """Level, first gfn and whether it caches MMIO, of every page of the page table that serves the guest."""
    tables = {table: holds for table, _, holds in vm.core.tdp_tables()}
    for number in tables if vm.tdp_mmu else vm.core.active_page_ids():
        page = vm.core.page(number)
        if page is not None:
            yield page["level"], page["gfn"], tables.get(number, bool(page["mmio_cached"]))


def compared(whole: Sequence[Mapping[str, Any]], part: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Put estimates beside the counts of the full run.

    Args:
        whole: rows of the full run.
        part: rows of the sampled run, in the same order.

    Returns:
        Columns: input, plan, count, full, estimate and error, a fraction of the full run.
    """
    columns: dict[str, list[Any]] = {
        name: [] for name in ("input", "plan", "count", "full", "estimate", "error")
    }
    for full, estimate in zip(whole, part, strict=True):
        for count in COMPARED:
            if not full[count]:
                continue
            error = (estimate[count] - full[count]) / full[count]
            values = (full["input"], full["plan"], count, full[count], estimate[count], round(error, 4))
            for name, value in zip(columns, values, strict=True):
                columns[name].append(value)
    return columns
