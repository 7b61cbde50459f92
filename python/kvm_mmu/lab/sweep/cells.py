"""What computes cells: a group in, its rows out; nothing else is read or kept, so it runs anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kvm_mmu.errors import KvmMmuError, UsageError
from kvm_mmu.lab import page_tables
from kvm_mmu.lab.compare import compare_made
from kvm_mmu.lab.comparison import COLUMNS
from kvm_mmu.lab.forced_event import Plan
from kvm_mmu.lab.inputs import open_input, recorded_scenario
from kvm_mmu.lab.live_input import is_dump, live_workload
from kvm_mmu.lab.named_workloads import DEFAULT_PAGES, WORKLOADS, named_workload
from kvm_mmu.lab.sampling import SAMPLED, Sample, sampled
from kvm_mmu.lab.scale import scaled
from kvm_mmu.lab.sweep.grid import OWN_SHADOW, Group, Setting, parse_pages
from kvm_mmu.machine.profiles import kernel_profile
from kvm_mmu.scenario.language import Scenario
from kvm_mmu.scenario.workload import Batch, Workload, run_scenario_workload

#: A row's place in the grid.
PLACE = ("cell", "input", "kernel", "at", "plan", "pages_asked", "mmio_asked", "vcpus", "seed", "sample")
#: Every column of a row, in order. `error` is empty unless the cell failed; then the counts are absent.
ROW = (*PLACE, *(name for name in COLUMNS if name not in PLACE), "error")


def run_group(group: Group, skip: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Compute the cells of a group.

    Args:
        group: a setting and its plans.
        skip: digests of cells that are known already.

    Returns:
        A row for each other cell, in the order of the plans. A cell that failed has its error as a row.
    """
    made: dict[str, tuple[Workload, Sample | None]] = {}
    rows = []
    for digest, name, plan in group.cells():
        if digest in skip:
            continue
        try:
            mmu, chosen = placed(plan, group.setting)
            if mmu not in made:
                made[mmu] = made_for(group.setting, mmu)
            rows.append(_row(group.setting, *made[mmu], digest, name, chosen))
        except (KvmMmuError, MemoryError) as error:
            rows.append(failed_row(group.setting, digest, name, error))
    return rows


def placed(plan: Plan | str, setting: Setting) -> tuple[str, Plan]:
    """The page table that a plan is run on, and the plan: a kernel's own is on the one that it serves guests with.

    Raises:
        UsageError: the setting's kernel has no such page table.
    """
    event = page_tables.OWN[setting.at]
    if isinstance(plan, str) and setting.input not in WORKLOADS and is_dump(setting.input):
        vm = live_workload(setting.input, setting.kernel or None).vm
        if plan == OWN_SHADOW or not vm.tdp_mmu:
            return "shadow", vm.profile.plans[event]
        return "tdp", page_tables.own_plan(vm.profile, setting.at, vm.family)
    if isinstance(plan, str):
        profile = kernel_profile(_kernel(setting))
        if plan == OWN_SHADOW or not profile.facts["has_tdp_mmu"]:
            return "shadow", profile.plans[event]
        plan = page_tables.own_plan(profile, setting.at, "npt")
    mmu = "tdp" if getattr(plan, "is_of_roots", False) else "shadow"
    if mmu == "tdp" and setting.kernel:
        why = page_tables.why_not(mmu, kernel_profile(setting.kernel), "npt")
        if why:
            raise UsageError(f"{setting.kernel}: {why}")
    return mmu, plan


def _kernel(setting: Setting) -> str:
    """The kernel of a setting: that of its input, where none is named."""
    if setting.kernel:
        return setting.kernel
    source = open_input(setting.input)
    found = source.kernel if isinstance(source, Scenario) else recorded_scenario(source).kernel
    if found is None:
        raise UsageError(f"{setting.input}: no kernel: give one")
    return found


def made_for(setting: Setting, mmu: str) -> tuple[Workload, Sample | None]:
    """The workload of a setting; of a guest whose slot goes, without what it touched there: that cannot come again.

    Raises:
        KvmMmuError: the input cannot be read, or not be run.
    """
    workload, sample = _workload(setting, mmu)
    if setting.at == "slot-removal" and workload.removed is not None:
        slot = next(slot for as_id, slot in workload.vm.memslots if (as_id, slot.id) == workload.removed)
        first, last = slot.base << 12, (slot.base + slot.npages << 12) - 1
        kept = [
            Batch(batch.vcpu, batch.kind, batch.gpas[(batch.gpas < first) | (batch.gpas > last)])
            for batch in workload.touches
        ]
        workload.touches = [batch for batch in kept if batch.gpas.size]
    return workload, sample


def _workload(setting: Setting, mmu: str) -> tuple[Workload, Sample | None]:
    size = parse_pages(setting.pages) if setting.pages else 1.0
    if setting.input in WORKLOADS:
        made = named_workload(
            setting.input,
            pages=size if isinstance(size, int) else max(1, round(size * DEFAULT_PAGES)),
            mmio_share=setting.mmio or 0.0,
            vcpus=setting.vcpus or 2,
            seed=setting.seed or 1,
            kernel=setting.kernel,
            tdp_mmu=mmu == "tdp",
        )
        return made, None
    kernel = setting.kernel or None
    if is_dump(setting.input):
        return _live(setting, mmu), None
    source = open_input(setting.input)
    scenario = source if isinstance(source, Scenario) else recorded_scenario(source, kernel)
    scenario = replace(scenario, config={**scenario.config, "tdp_mmu": int(mmu == "tdp")})
    if not setting.pages:
        sample = None
        if setting.sample is not None:
            scenario, sample = sampled(scenario, setting.sample)
        return run_scenario_workload(scenario, kernel), sample
    if isinstance(size, float):
        own = run_scenario_workload(scenario, kernel, moment="peak").population().pages
        size = max(1, round(size * own))
    return scaled(scenario, size, kernel, setting.mmio).workload, None


def _live(setting: Setting, mmu: str) -> Workload:
    if setting.pages or setting.sample is not None:
        raise UsageError(
            f"{setting.input}: a real VM has the size that it has; expected neither pages nor a sample"
        )
    found = live_workload(setting.input, setting.kernel or None)
    own = page_tables.name_of(found.vm)
    if own != mmu:
        raise UsageError(
            f"{setting.input}: made on {page_tables.WORDS[own]}: no plan of {page_tables.WORDS[mmu]} runs there"
        )
    return found


def _row(
    setting: Setting, workload: Workload, sample: Sample | None, digest: str, name: str, plan: Plan
) -> dict[str, Any]:
    try:
        found = compare_made(workload, plan, setting.at, setting.contend, sample)
    except (KvmMmuError, MemoryError) as error:
        return failed_row(setting, digest, name, error, workload.vm.kernel)
    found = {key: value for key, value in found.items() if key not in SAMPLED}
    return {**dict.fromkeys(ROW), **found, **_place(setting, digest, name, workload.vm.kernel), "error": ""}


def failed_row(
    setting: Setting, digest: str, name: str, error: BaseException, kernel: str | None = None
) -> dict[str, Any]:
    """The row of a cell that failed: its place, and the error in words."""
    text = str(error) or type(error).__name__
    place = _place(setting, digest, name, kernel or setting.kernel)
    return {**dict.fromkeys(ROW), **place, "outcome": "failed", "error": text}


def _place(setting: Setting, digest: str, name: str, kernel: str) -> dict[str, Any]:
    return {
        "cell": digest,
        "input": setting.input,
        "kernel": kernel,
        "at": setting.at,
        "plan": name,
        "pages_asked": setting.pages or None,
        "mmio_asked": setting.mmio,
        "vcpus": setting.vcpus,
        "seed": setting.seed,
        "sample": setting.sample,
    }


def check_plans(groups: Sequence[Group]) -> None:
    """Refuse a plan that no cell could run, before anything is computed.

    Raises:
        UsageError: a plan that needs a slot for an event that has none.
    """
    for group in groups:
        for name, plan in group.plans:
            if getattr(plan, "needs_slot", False) and group.setting.at in ("wrap", "teardown"):
                raise UsageError(f"plan {name}: it takes one slot's pages; a {group.setting.at} has no slot")
