"""What each operation of the scenario language runs.

Owns the mapping from operation names to the kernel's functions; an operation gives its return value and, for some,
an `out`. Operations come here already checked by `scenario`.

Long: a short function for each operation, and RUN takes them by their names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .common.constants import (
    CR0_AFTER_INIT,
    EFER_LMA,
    EINVAL,
    ENOENT,
    EOPNOTSUPP,
    KVM_REQ_MMU_SYNC,
    PAGE_SHIFT,
    PAGE_SIZE,
    PT_DIRECTORY_LEVEL,
    PT_PAGE_TABLE_LEVEL,
    U32,
    kvm_pages_per_hpage,
)
from .common.errors import ScenarioError
from .common.flush import kvm_arch_flush_remote_tlbs_memslot
from .common.hardware import hardware_walk
from .common.host_memory import set_host_huge, set_host_state
from .common.invalidation import kvm_mmu_invalidate_end
from .common.lock import set_lock_breaks
from .common.mmio_fault import clear_mmio_info
from .common.page_table import has_guest_tables
from .common.role import role_level
from .common.slots import gfn_to_memslot, id_to_memslot
from .common.spte import spte_to_pfn
from .common.state import Kvm, KvmMemorySlot, LockBreaks, Op, Vcpu
from .paging.hardware_walk import hardware_leaf, shadow_hardware_walk
from .paging.invlpg import kvm_mmu_invlpg
from .paging.pte_write import emulated_write, kvm_mmu_unprotect_page
from .paging.roots import kvm_set_cr3, set_guest_registers
from .paging.roots_v6 import kvm_set_cr3_v6, set_guest_registers_v6
from .shadow.guest_memory import kvm_vcpu_read_guest, write_guest, write_host
from .shadow.guest_mode import mode_of
from .shadow.guest_walk import has_room_for_walk, walk_addr
from .shadow.reclaim import (
    kvm_mmu_change_mmu_pages,
    kvm_mmu_zap_oldest_mmu_pages,
    kvm_vm_ioctl_set_nr_mmu_pages,
    mmu_shrink_scan,
)
from .tdp.cpu_marks import processor_sets
from .verbs.dirty_log import (
    kvm_arch_mmu_enable_log_dirty_pt_masked,
    kvm_mmu_clear_dirty_pt_masked,
    kvm_mmu_slot_largepage_remove_write_access,
    kvm_mmu_slot_leaf_clear_dirty,
    kvm_mmu_slot_remove_write_access,
    kvm_mmu_slot_set_dirty,
    kvm_mmu_slot_try_split_huge_pages,
    kvm_mmu_write_protect_pt_masked,
    kvm_mmu_zap_collapsible_sptes,
    kvm_vm_ioctl_clear_dirty_log,
    kvm_vm_ioctl_get_dirty_log,
)
from .verbs.fault import kvm_mmu_page_fault
from .verbs.memslots import (
    MemoryRegion,
    kvm_arch_flush_shadow_memslot,
    kvm_mmu_invalidate_mmio_sptes,
    kvm_set_memory_region,
)
from .verbs.notifier import (
    kvm_age_hva,
    kvm_mmu_notifier_invalidate_range_start,
    kvm_set_spte_hva,
    kvm_test_age_hva,
    kvm_unmap_hva_range,
    kvm_zap_gfn_range,
)
from .verbs.prefault import kvm_vcpu_pre_fault_memory
from .verbs.roots import kvm_mmu_load, kvm_mmu_reset_context, kvm_mmu_unload, vcpu_enter_guest
from .verbs.track import (
    kvm_mmu_slot_gfn_write_protect,
    kvm_slot_page_track_add_page,
    kvm_slot_page_track_remove_page,
)
from .verbs.zap_memslot import kvm_recover_nx_huge_pages
from .verbs.zap_run import ZapTarget, run_zap_plan

Result = tuple[int, dict[str, Any] | None]

MAX_FAULTS_PER_ACCESS = 8
DONE: Result = (0, None)


def run_op(kvm: Kvm, op: Op) -> Result:
    """Run one checked operation."""
    return RUN[op["op"]](kvm, op)


def run_nested_op(kvm: Kvm, op: Op) -> None:
    """Run an operation inside another one and note its result on the line."""
    ret, out = run_op(kvm, op["checked"])
    line: dict[str, Any] = {"op": op["given"]["op"] if kvm.format == 6 else op["given"], "ret": ret}
    if out is not None:
        line["out"] = out
    kvm.nested.append(line)


def vcpu_of(kvm: Kvm, op: Op) -> Vcpu:
    return kvm.vcpus[op["vcpu"]]


def slot_of(kvm: Kvm, op: Op) -> KvmMemorySlot | None:
    return id_to_memslot(kvm, op["as"], op["id"])


def op_set_memslot(kvm: Kvm, op: Op) -> Result:
    region = MemoryRegion(op["as"], op["id"], op["gpa"], op["size"], op["hva"], op["flags"])
    return kvm_set_memory_region(kvm, region, op["during"]), None


def op_access(kvm: Kvm, op: Op) -> Result:
    """Enter, walk, fault, until the access goes through, is emulated, fails or does not come forward."""
    vcpu, gpa, kind = vcpu_of(kvm, op), op["gpa"], op["kind"]
    ret = 0
    outcome = ""
    faults = 0
    while not outcome:
        if faults == MAX_FAULTS_PER_ACCESS:
            outcome = "stuck"
            break
        error = vcpu_enter_guest(kvm, vcpu)
        if error:
            ret, outcome = error, "error"
            break
        fault = hardware_walk(kvm, vcpu, gpa, kind)
        if fault is None:
            outcome = "hit"
            break
        kvm.events.append(["fault", vcpu.id, gpa, hex(fault.error_code)])
        ret = kvm_mmu_page_fault(kvm, vcpu, gpa, fault.error_code)
        kvm.events.append(["ret", ret])
        faults += 1
        if ret < 0:
            outcome = "error"
        elif ret == 0:
            outcome = "emulate"
    return ret, {"outcome": outcome, "faults": faults}


def op_vaccess(kvm: Kvm, op: Op) -> Result:
    """As an access, by guest-virtual address, which a guest that is not in long mode has of 32 bits."""
    vcpu, kind, is_user = vcpu_of(kvm, op), op["kind"], bool(op["user"])
    gva = op["gva"] if vcpu.efer & EFER_LMA else op["gva"] & U32
    ret = 0
    outcome = ""
    faults = 0
    while not outcome:
        if faults == MAX_FAULTS_PER_ACCESS:
            outcome = "stuck"
            break
        error = vcpu_enter_guest(kvm, vcpu)
        if error:
            ret, outcome = error, "error"
            break
        code = shadow_hardware_walk(kvm, vcpu, gva, kind, is_user)
        if code is None:
            outcome = "hit"
            break
        kvm.events.append(["fault", vcpu.id, gva, hex(code)])
        vcpu.is_fault_injected = False
        ret = kvm_mmu_page_fault(kvm, vcpu, gva, code)
        kvm.events.append(["ret", ret])
        faults += 1
        if ret < 0:
            outcome = "error"
        elif vcpu.is_fault_injected:
            outcome = "guest_fault"
        elif ret == 0:
            outcome = "emulate"
    return ret, {"outcome": outcome, "faults": faults}


def op_gwrite(kvm: Kvm, op: Op) -> Result:
    """A store through an address that the scenario knows to map to `gpa`; emulated where the fault says so."""
    vcpu, gpa, value, size = vcpu_of(kvm, op), op["gpa"], op["val"], op["bytes"]
    ret, out = op_vaccess(kvm, {**op, "kind": "w"})
    assert out is not None
    written = None
    if out["outcome"] == "hit":
        written = write_guest(kvm, vcpu, gpa, value, size)
    elif out["outcome"] == "emulate":
        written = emulated_write(kvm, vcpu, gpa, value, size)
    if written is not None and kvm.format == 1:
        out["write"] = written
    return ret, out


def op_poke(kvm: Kvm, op: Op) -> Result:
    return write_guest(kvm, vcpu_of(kvm, op), op["gpa"], op["val"], op["bytes"]), None


def op_peek(kvm: Kvm, op: Op) -> Result:
    value = kvm_vcpu_read_guest(kvm, vcpu_of(kvm, op), op["gpa"], op["bytes"])
    return 0, {"val": hex(value or 0)}


def op_emul_write(kvm: Kvm, op: Op) -> Result:
    error = emulated_write(kvm, vcpu_of(kvm, op), op["gpa"], op["val"], op["bytes"])
    return (error if kvm.format == 1 else int(not error)), None


def op_invlpg(kvm: Kvm, op: Op) -> Result:
    vcpu = vcpu_of(kvm, op)
    vcpu_enter_guest(kvm, vcpu)
    kvm_mmu_invlpg(kvm, vcpu, op["gva"])
    return DONE


def op_set_cr3(kvm: Kvm, op: Op) -> Result:
    set_cr3 = kvm_set_cr3_v6 if kvm.rules.is_level_requested else kvm_set_cr3
    return set_cr3(kvm, vcpu_of(kvm, op), op["cr3"]), None


def op_guest_walk(kvm: Kvm, op: Op) -> Result:
    """A walk of the guest's tables on behalf of the emulator: 0, or 1 with the error code and no fault."""
    vcpu = vcpu_of(kvm, op)
    if mode_of(vcpu).name == "none":
        return DONE
    if not has_room_for_walk(kvm, vcpu):
        return 1, {"error_code": 0}
    walk = walk_addr(kvm, vcpu, op["gva"], op["err"])
    return (0, None) if walk.error_code is None else (1, {"error_code": walk.error_code})


def op_guest_store(kvm: Kvm, op: Op) -> Result:
    """A store of the processor, as far as the tables it has now let it through, stale ones too: 0, else 1."""
    vcpu = vcpu_of(kvm, op)
    found = hardware_leaf(kvm, vcpu, op["gva"], "w", bool(op["user"]))
    if isinstance(found, int):
        return 1, None
    sp, index = found
    within = (kvm_pages_per_hpage(role_level(sp.role)) << PAGE_SHIFT) - 1
    write_host(
        kvm.host, spte_to_pfn(sp.sptes[index]) << PAGE_SHIFT | op["gva"] & within, op["val"], op["bytes"]
    )
    return DONE


def op_sync_roots(kvm: Kvm, op: Op) -> Result:
    """An entry at which a sync of the roots is asked for, as after MOV CR3 of the same value."""
    vcpu = vcpu_of(kvm, op)
    vcpu.requests |= KVM_REQ_MMU_SYNC
    return vcpu_enter_guest(kvm, vcpu), None


def op_set_pkru(kvm: Kvm, op: Op) -> Result:
    """The guest writes its rights of protection keys; the tables stay as they are."""
    vcpu_of(kvm, op).pkru = op["pkru"]
    return DONE


def op_unprotect(kvm: Kvm, op: Op) -> Result:
    return kvm_mmu_unprotect_page(kvm, op["gfn"]), None


def op_fault(kvm: Kvm, op: Op) -> Result:
    return kvm_mmu_page_fault(kvm, vcpu_of(kvm, op), op["gpa"], op["err"], op["host"]), None


def op_enter(kvm: Kvm, op: Op) -> Result:
    return vcpu_enter_guest(kvm, vcpu_of(kvm, op)), None


def op_load(kvm: Kvm, op: Op) -> Result:
    return kvm_mmu_load(kvm, vcpu_of(kvm, op)), None


def op_unload(kvm: Kvm, op: Op) -> Result:
    kvm_mmu_unload(kvm, vcpu_of(kvm, op))
    return DONE


def op_smm(kvm: Kvm, op: Op) -> Result:
    vcpu = vcpu_of(kvm, op)
    vcpu.smm = op["on"]
    kvm_mmu_reset_context(kvm, vcpu)
    return DONE


def op_set_regs(kvm: Kvm, op: Op) -> Result:
    vcpu = vcpu_of(kvm, op)
    for name in ("cr0", "cr3", "cr4", "efer", "smm", "ac"):
        if op.get(name) is not None:
            setattr(vcpu, name, op[name])
    if has_guest_tables(kvm):
        set_registers = set_guest_registers_v6 if kvm.rules.is_level_requested else set_guest_registers
        return set_registers(kvm, vcpu), None
    kvm_mmu_reset_context(kvm, vcpu)
    return DONE


def op_init(kvm: Kvm, op: Op) -> Result:
    """INIT: the registers are those of a processor that starts anew, and SMM is left."""
    vcpu = vcpu_of(kvm, op)
    was_smm = vcpu.smm
    vcpu.cr0, vcpu.cr3, vcpu.cr4, vcpu.efer, vcpu.smm, vcpu.ac = CR0_AFTER_INIT, 0, 0, 0, 0, 0
    if kvm.rules.init_resets:
        kvm_mmu_reset_context(kvm, vcpu)
    elif was_smm:
        kvm.has_dangling = True  # pages of one space, and leaves in the lists of the other
    return DONE


#: A bitmap of more words is given as runs of pages.
MOST_WORDS_SHOWN = 4096


def page_runs(words: list[int]) -> list[list[int]]:
    """Dirty pages as runs [first, count]."""
    runs: list[list[int]] = []
    for number, word in enumerate(words):
        for bit in range(64) if word else ():
            page = number * 64 + bit
            if word >> bit & 1 and runs and sum(runs[-1]) == page:
                runs[-1][1] += 1
            elif word >> bit & 1:
                runs.append([page, 1])
    return runs


def op_get_dirty_log(kvm: Kvm, op: Op) -> Result:
    ret, words = kvm_vm_ioctl_get_dirty_log(kvm, slot_of(kvm, op))
    if ret and kvm.format == 6:
        words = []
    if len(words) > MOST_WORDS_SHOWN:
        return ret, {"bitmap": {"words": len(words), "runs": page_runs(words)}}
    return ret, {"bitmap": [hex(word) for word in words]}


def op_clear_dirty_log(kvm: Kvm, op: Op) -> Result:
    return kvm_vm_ioctl_clear_dirty_log(kvm, slot_of(kvm, op), op["first"], op["num"], op["mask"]), None


def op_manual_protect(kvm: Kvm, op: Op) -> Result:
    """1: manual, 3: manual and initially set, where the kernel has it."""
    if kvm.format == 6 and op["on"] not in (0, 1, 3):
        return -EINVAL, None
    kvm.manual_dirty_log_protect = op["on"] != 0
    kvm.dirty_log_initially_set = kvm.rules.has_initially_set and op["on"] & 2 != 0
    return DONE


def op_dirty_masked(kvm: Kvm, op: Op) -> Result:
    slot = slot_of(kvm, op)
    if slot is None:
        return -ENOENT, None
    kvm_arch_mmu_enable_log_dirty_pt_masked(kvm, slot, op["offset"], op["mask"])
    return DONE


def split_to_4k(kvm: Kvm, slot: KvmMemorySlot) -> None:
    kvm_mmu_slot_try_split_huge_pages(kvm, slot, PT_PAGE_TABLE_LEVEL)


def split_to_2m(kvm: Kvm, slot: KvmMemorySlot) -> None:
    kvm_mmu_slot_try_split_huge_pages(kvm, slot, PT_DIRECTORY_LEVEL)


SLOT_FUNCTIONS: dict[str, Callable[[Kvm, KvmMemorySlot], None]] = {
    "split_4k": split_to_4k,
    "split_2m": split_to_2m,
    "remove_write_access": kvm_mmu_slot_remove_write_access,
    "leaf_clear_dirty": kvm_mmu_slot_leaf_clear_dirty,
    "largepage_remove_write_access": kvm_mmu_slot_largepage_remove_write_access,
    "flush": kvm_arch_flush_remote_tlbs_memslot,
    "set_dirty": kvm_mmu_slot_set_dirty,
    "zap_collapsible": kvm_mmu_zap_collapsible_sptes,
    "flush_shadow_memslot": kvm_arch_flush_shadow_memslot,
}


def op_slot(kvm: Kvm, op: Op) -> Result:
    slot = slot_of(kvm, op)
    if slot is None:
        return -ENOENT, None
    if op["what"] == "set_dirty" and kvm.format == 6 and has_guest_tables(kvm):
        return -EOPNOTSUPP, None  # v6 has no such walk
    SLOT_FUNCTIONS[op["what"]](kvm, slot)
    return DONE


def op_pt_masked(kvm: Kvm, op: Op) -> Result:
    slot = slot_of(kvm, op)
    if slot is None:
        return -ENOENT, None
    if op["what"] == "enable_log_dirty":
        kvm_arch_mmu_enable_log_dirty_pt_masked(kvm, slot, op["offset"], op["mask"])
        return DONE
    handle = (
        kvm_mmu_write_protect_pt_masked if op["what"] == "write_protect" else kvm_mmu_clear_dirty_pt_masked
    )
    handle(kvm, slot, op["offset"], op["mask"])
    return DONE


def op_gfn_write_protect(kvm: Kvm, op: Op) -> Result:
    slot = gfn_to_memslot(kvm, op["as"], op["gfn"]) if op.get("id") is None else slot_of(kvm, op)
    if slot is None and op.get("id") is not None:
        return -ENOENT, None
    if slot is None:
        return DONE  # nothing maps a gfn without a slot
    return int(kvm_mmu_slot_gfn_write_protect(kvm, slot, op["gfn"], max(1, op.get("level", 1)))), None


def op_track(kvm: Kvm, op: Op) -> Result:
    if kvm.format == 6 and not has_guest_tables(kvm):
        return -EOPNOTSUPP, None  # a VM that never had a shadow root has no counters of tracked gfns
    slot = gfn_to_memslot(kvm, op["as"], op["gfn"])
    if slot is None:
        return DONE
    if op["on"]:
        kvm_slot_page_track_add_page(kvm, slot, op["gfn"])
    else:
        kvm_slot_page_track_remove_page(slot, op["gfn"])
    return DONE


def op_set_nr_mmu_pages(kvm: Kvm, op: Op) -> Result:
    return kvm_vm_ioctl_set_nr_mmu_pages(kvm, op["n"]), None


def op_change_mmu_pages(kvm: Kvm, op: Op) -> Result:
    kvm_mmu_change_mmu_pages(kvm, op["n"])
    return DONE


def op_set_max_raw(kvm: Kvm, op: Op) -> Result:
    kvm.n_max_mmu_pages = op["n"]
    return DONE


def op_shrink(kvm: Kvm, op: Op) -> Result:
    return mmu_shrink_scan(kvm, op["n"]), None


def op_zap_oldest(kvm: Kvm, op: Op) -> Result:
    return kvm_mmu_zap_oldest_mmu_pages(kvm, op["n"]), None


def op_zap_all(kvm: Kvm, _op: Op) -> Result:
    """v5: what the kernel runs to flush all; in format 6 the fast zap."""
    run_zap_plan(kvm, kvm.plans["flush_all" if kvm.format == 1 else "slot_removal"])
    return DONE


def op_invalidate_mmio(kvm: Kvm, op: Op) -> Result:
    kvm_mmu_invalidate_mmio_sptes(kvm, kvm.memslots[op["as"]].generation)
    return DONE


def op_zap_gfn_range(kvm: Kvm, op: Op) -> Result:
    kvm_zap_gfn_range(kvm, op["start"], op["end"])
    return DONE


def op_unmap_hva(kvm: Kvm, op: Op) -> Result:
    kvm_unmap_hva_range(kvm, op["start"], op["end"], bool(op.get("block", 1)), list(op.get("during", ())))
    return DONE


def op_age_hva(kvm: Kvm, op: Op) -> Result:
    return kvm_age_hva(kvm, op["start"], op["end"], op["flush"]), None


def op_test_age_hva(kvm: Kvm, op: Op) -> Result:
    return kvm_test_age_hva(kvm, op["hva"]), None


def op_change_pte(kvm: Kvm, op: Op) -> Result:
    if kvm.format == 6:
        return change_host_pte(kvm, op)
    if not kvm.rules.has_change_pte:
        raise ScenarioError("change_pte: only for kernels v6.1 or older")
    kvm_set_spte_hva(kvm, op["hva"], op["pfn"], op["write"])
    return DONE


def change_host_pte(kvm: Kvm, op: Op) -> Result:
    """The host's whole change of a page: the range is invalidated around it, and the page is another one after it."""
    if not kvm.rules.has_change_pte:
        return -EOPNOTSUPP, None
    hva = op["hva"] & ~(PAGE_SIZE - 1)
    is_begun = kvm_mmu_notifier_invalidate_range_start(kvm, hva, hva + PAGE_SIZE)
    kvm_set_spte_hva(kvm, op["hva"], op["pfn"], op["write"])  # it finds nothing any more
    if is_begun:
        kvm_mmu_invalidate_end(kvm)
    kvm.host.frames[hva >> PAGE_SHIFT] = op["pfn"]
    set_host_state(kvm.host, hva >> PAGE_SHIFT, 1, "rw" if op["write"] else "cow")
    return DONE


def op_set_generation(kvm: Kvm, op: Op) -> Result:
    kvm.memslots[op["as"]].generation = op["gen"]
    return DONE


def op_lock_break(kvm: Kvm, op: Op) -> Result:
    breaks = LockBreaks(
        cond=op["cond"],
        need=op["need"],
        contend=op.get("contend", 0),
        alloc=op.get("alloc", 0),
        do=list(op["do"]),
    )
    set_lock_breaks(kvm, breaks)
    return DONE


def op_host_state(kvm: Kvm, op: Op) -> Result:
    set_host_state(kvm.host, op["hva"] >> PAGE_SHIFT, op["npages"], op["state"])
    return DONE


def op_host_huge(kvm: Kvm, op: Op) -> Result:
    set_host_huge(kvm.host, op["hva"] >> PAGE_SHIFT, op["npages"], op["kind"])
    return DONE


def op_clear_mmio_info(kvm: Kvm, op: Op) -> Result:
    clear_mmio_info(vcpu_of(kvm, op))
    return DONE


def op_dump(_kvm: Kvm, _op: Op) -> Result:
    return DONE


def op_zap(kvm: Kvm, op: Op) -> Result:
    """Zap by any plan; `ret` is the number of pages taken off the active list."""
    plan = op["plan"]
    slot = None
    if plan.needs_slot:
        slot = slot_of(kvm, op)
        if slot is None:
            return -ENOENT, None
    run = run_zap_plan(kvm, plan, ZapTarget(slot=slot, start=op["start"] or 0, end=op["end"] or 0))
    out: dict[str, Any] = {"outcome": "done"}
    if run.is_livelock:
        out = {"outcome": "livelock"}
    if run.stale_page is not None:
        out = {"outcome": "stale_next", "page": run.stale_page, "step": run.stale_step}
    return run.pages_zapped, {**out, "restarts": run.restarts}


def op_flush_shadow_all(kvm: Kvm, _op: Op) -> Result:
    """kvm_arch_flush_shadow_all; the vCPUs keep their roots."""
    run_zap_plan(kvm, kvm.plans["teardown"])
    return DONE


def op_set_nx(kvm: Kvm, op: Op) -> Result:
    """The module parameter nx_huge_pages; a change zaps everything."""
    if not kvm.rules.has_nx_huge_pages:
        raise ScenarioError("set_nx: only for kernels v5.10 or later")
    if kvm.nx_huge_pages != bool(op["on"]):
        kvm.nx_huge_pages = bool(op["on"])
        run_zap_plan(kvm, kvm.plans["slot_removal"])
    return DONE


def op_nx_recover(kvm: Kvm, op: Op) -> Result:
    kvm_recover_nx_huge_pages(kvm, op["ratio"])
    return DONE


def op_eager_split(kvm: Kvm, op: Op) -> Result:
    """The module parameter; only the TDP MMU splits here."""
    kvm.eager_page_split = bool(op["on"])
    return DONE


def op_quirk(kvm: Kvm, op: Op) -> Result:
    kvm.slot_zap_all = bool(op["slot_zap_all"]) or not kvm.rules.has_slot_zap_all_quirk
    return DONE


def op_prefault(kvm: Kvm, op: Op) -> Result:
    return kvm_vcpu_pre_fault_memory(kvm, vcpu_of(kvm, op), op["gpa"], op["size"], op["host"]), None


def op_cpu_sets(kvm: Kvm, op: Op) -> Result:
    """The processor used or wrote what these gfns map, through entries that allow it."""
    if not kvm.config.tdp_mmu:
        return -EOPNOTSUPP, None
    processor_sets(kvm, op["as"], op["gfns"], op["bit"] == "dirty")
    return DONE


def op_teardown(kvm: Kvm, _op: Op) -> Result:
    """kvm_arch_flush_shadow_all while the vCPUs still hold their roots, then each vCPU gives its root up."""
    run_zap_plan(kvm, kvm.plans["teardown"])
    for vcpu in kvm.vcpus:
        kvm_mmu_unload(kvm, vcpu)
    return DONE


RUN: dict[str, Callable[[Kvm, Op], Result]] = {
    name.removeprefix("op_"): function
    for name, function in list(globals().items())
    if name.startswith("op_") and callable(function)
}
