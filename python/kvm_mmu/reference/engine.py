"""The engine: one VM that takes operations and gives back lines, as the run engine and the lockstep tests use it.

Stands above everything else here; owns the VM's start state and what an operation adds to events and counters.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

from .common.constants import KVM_ADDRESS_SPACE_NUM
from .common.kernels import KernelRules
from .common.kernels import kernel as kernel_named
from .common.masks import make_masks
from .common.page_table import has_guest_tables
from .common.state import CTR_NAMES, CTR_NAMES_6, Config, Kvm, KvmMemslots, Vcpu
from .common.zap_plan import parse_plans
from .dump import digest_of, dump_state
from .operations import run_nested_op, run_op
from .scenario import parse_config, parse_op
from .tdp.page import run_rcu_callbacks
from .verbs.memslots import initial_generation
from .verbs.notifier import kvm_unmap_hva_range
from .verbs.roots import init_kvm_mmu


def new_kvm(rules: KernelRules, config: Config, plans: Mapping[str, Any] | None, format: int) -> Kvm:
    """A VM without slots, pages and roots, its vCPUs in 64-bit mode."""
    chosen = parse_plans(plans, dict(rules.plans))
    kvm = Kvm(
        rules=rules,
        config=config,
        masks=make_masks(
            rules,
            config.family,
            config.phys_bits,
            config.execonly,
            l1tf=config.l1tf,
            mmio_caching=config.mmio_caching,
        ),
        plans=chosen,
        run_nested=run_nested_op,
        run_invalidation=kvm_unmap_hva_range,
        format=format,
        nx_huge_pages=bool(config.nx_huge_pages),
        eager_page_split=bool(config.eager_split),
        slot_zap_all=bool(config.slot_zap_all) or not rules.has_slot_zap_all_quirk,
        memslots=[KvmMemslots(initial_generation(rules, as_id)) for as_id in range(KVM_ADDRESS_SPACE_NUM)],
        vcpus=[Vcpu(id=number) for number in range(config.vcpus)],
        filters_obsolete=any(plan.bump_valid_gen for plan in chosen.values()),
    )
    for vcpu in kvm.vcpus:
        init_kvm_mmu(kvm, vcpu)
    return kvm


class Engine:
    """The reference backend: a VM without slots and pages that takes the operations of a scenario.

    Args:
        kernel: profile name.
        config: the keys of a scenario header; None: the defaults.
        plans: plans that replace those of an event.
        format: the scenario format whose operations are read and whose events, counters and states are given.

    Raises:
        ScenarioError: what it does not understand, before anything changes.
    """

    def __init__(
        self,
        kernel: str,
        config: Mapping[str, Any] | None = None,
        plans: Mapping[str, Any] | None = None,
        format: int = 1,
    ) -> None:
        rules = kernel_named(kernel)
        self.kernel = rules.name
        self.kvm = new_kvm(rules, parse_config(config, rules, format), plans, format)

    def __repr__(self) -> str:
        kvm = self.kvm
        return f"<reference.Engine {self.kernel} {kvm.config.family} {kvm.n_used_mmu_pages} shadow pages>"

    def masks(self) -> dict[str, Any]:
        """Give the SPTE masks as a scenario header has them.

        Returns:
            Name to hexadecimal text.
        """
        if self.kvm.format == 6:
            # Only the newer of the two has a mask of its own for the memory type.
            return self.kvm.masks.to_header_6(shows_memory_type=self.kvm.masks.empty != 0)
        return self.kvm.masks.to_header()

    def apply(self, op: Mapping[str, Any]) -> dict[str, Any]:
        """Run one operation.

        Args:
            op: the operation, with its name under `op`.

        Returns:
            `ret`, `out` and `nested` where there is one, `events`, and the changed counters under `ctr`.

        Raises:
            ScenarioError: an operation it does not understand; nothing has changed then.
        """
        kvm = self.kvm
        checked = parse_op(op, len(kvm.vcpus), 0, kvm.format, has_guest_tables(kvm))
        kvm.events = []
        kvm.nested = []
        names = CTR_NAMES_6 if kvm.format == 6 else CTR_NAMES
        before = dict(kvm.ctr)
        ret, out = run_op(kvm, checked)
        run_rcu_callbacks(kvm)
        line: dict[str, Any] = {"ret": ret}
        if out is not None:
            line["out"] = out
        if kvm.nested:
            line["nested"] = kvm.nested
        line["events"] = kvm.events
        changes = {name: kvm.ctr[name] - before[name] for name in names}
        line["ctr"] = {name: change for name, change in changes.items() if change}
        return line

    def state(self) -> dict[str, Any]:
        """Take the whole state in the dump format.

        Returns:
            Plain data, equal to the core's.
        """
        return dump_state(self.kvm)

    def digest(self) -> str:
        """Hash the state.

        Returns:
            The first 16 hex digits of SHA-256 over its canonical JSON.
        """
        return digest_of(dump_state(self.kvm))

    def work(self) -> dict[str, int]:
        """Take the exact work counters since the VM's start.

        Returns:
            Counter to number; the page on events, counters and state says what each counts.
        """
        return dict(self.kvm.work)

    def clone(self) -> Engine:
        """Copy the VM with everything in it.

        Returns:
            An independent engine.
        """
        copy = Engine.__new__(Engine)
        copy.kernel = self.kernel
        copy.kvm = pickle.loads(pickle.dumps(self.kvm, pickle.HIGHEST_PROTOCOL))
        return copy
