"""One memslot update, from the user's request to the ordered steps that carry it out.

`check` refuses or classifies (create, delete, move, flags, nothing), `steps` says what will happen in which order,
`carry_out` does it over a backend. Models `__kvm_set_memory_region` and the x86 commit hooks of v5.0 to v5.2
(docs/kernel-facts.md, slots and zap.slot). The order of publication and wrap check belongs to the generation policy.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from kvm_mmu.errors import MemslotError
from kvm_mmu.machine.backend import VmBackend
from kvm_mmu.machine.generation import GenerationPolicy
from kvm_mmu.machine.numbers import integer
from kvm_mmu.machine.profiles import KernelProfile
from kvm_mmu.machine.zap_plan import ZapPlan
from kvm_mmu.types import (
    KVM_ADDRESS_SPACE_NUM,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY,
    KVM_MEM_SLOTS_NUM,
    KVM_MEMSLOT_INVALID,
    KVM_USER_MEM_SLOTS,
    PAGE_SHIFT,
    PAGE_SIZE,
)

KVM_MEM_MAX_NR_PAGES = (1 << 31) - 1
KVM_PERMILLE_MMU_PAGES = 20
KVM_MIN_ALLOC_MMU_PAGES = 64
#: First host address that user space cannot own (4-level hosts).
USER_ADDRESS_LIMIT = 0x7FFF_FFFF_F000

#: The shortest way to be rid of every MMIO SPTE, with no lock break.
MMIO_AT_ONCE = ZapPlan(walk="index", only="mmio_cached", name="mmio-at-once")

Change = Literal["create", "delete", "move", "flags", "none"]


class Slot(NamedTuple):
    """One memslot: addresses in frames (`base`, `npages`) and bytes (`hva`), flags as user space set them."""

    id: int
    base: int
    npages: int
    hva: int
    flags: int


class Request(NamedTuple):
    """A set-user-memory-region request; `size` 0 deletes. Addresses and size in bytes."""

    as_id: int
    slot: int
    gpa: int
    size: int
    hva: int
    flags: int


class Step(NamedTuple):
    """One step of an update: what, and the slot array entry it is about (None: the slot leaves the array)."""

    what: Literal[
        "swap", "flush_slot", "placed", "limit", "slot_walk", "flush_tlbs", "cpu_dirty_logging", "refuse"
    ]
    slot: Slot | None = None
    walk: str = ""


_LIMIT = Step("limit")


def _refuse(code: int, sentence: str) -> MemslotError:
    return MemslotError(code, sentence)


def check(
    request: Request,
    live: Sequence[Slot],
    max_slots: int = KVM_MEM_SLOTS_NUM,
    max_gfn: int | None = None,
) -> tuple[Change, Slot | None]:
    """Classify a request against the live slots of its address space, or refuse it.

    Returns:
        The change and the slot it is about as it is now (None for create).

    Raises:
        MemslotError: with EINVAL or EEXIST, in the kernel's order of checks.
    """
    r = request
    einval = errno.EINVAL
    user_slots = KVM_USER_MEM_SLOTS if max_slots == KVM_MEM_SLOTS_NUM else max_slots
    if r.flags & ~(KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY):
        raise _refuse(
            einval, f"slot {r.slot}: flags {r.flags:#x} has a bit other than 0 (log dirty) and 1 (read-only)"
        )
    if r.size % PAGE_SIZE:
        raise _refuse(einval, f"slot {r.slot}: size {r.size:#x} is not a multiple of the page size")
    if r.gpa % PAGE_SIZE:
        raise _refuse(einval, f"slot {r.slot}: gpa {r.gpa:#x} is not page aligned")
    if r.slot < user_slots and (r.hva % PAGE_SIZE or r.hva + r.size > USER_ADDRESS_LIMIT):
        raise _refuse(einval, f"slot {r.slot}: hva {r.hva:#x} is not a page aligned user address")
    if not 0 <= r.as_id < KVM_ADDRESS_SPACE_NUM:
        raise _refuse(einval, f"address space {r.as_id}: expected 0 or 1")
    if not 0 <= r.slot < max_slots:
        raise _refuse(einval, f"slot {r.slot}: too many slots, ids are 0 to {max_slots - 1}")
    if r.gpa and r.gpa + r.size >= 1 << 64:
        raise _refuse(einval, f"slot {r.slot}: gpa {r.gpa:#x} + size {r.size:#x} wraps around")
    npages = r.size >> PAGE_SHIFT
    if npages > KVM_MEM_MAX_NR_PAGES:
        raise _refuse(einval, f"slot {r.slot}: {npages} pages, the kernel allows {KVM_MEM_MAX_NR_PAGES}")

    old = next((slot for slot in live if slot.id == r.slot), None)
    base = r.gpa >> PAGE_SHIFT
    if not npages:
        if old is None:
            raise _refuse(einval, f"slot {r.slot}: there is no such slot to delete")
        return "delete", old
    change: Change = "create"
    if old is not None:
        if old.hva != r.hva:
            raise _refuse(einval, f"slot {r.slot}: its hva cannot change from {old.hva:#x} to {r.hva:#x}")
        if old.npages != npages:
            raise _refuse(einval, f"slot {r.slot}: it cannot be resized from {old.npages} to {npages} pages")
        if (old.flags ^ r.flags) & KVM_MEM_READONLY:
            raise _refuse(einval, f"slot {r.slot}: its read-only flag cannot change")
        if old.base != base:
            change = "move"
        elif old.flags != r.flags:
            return "flags", old
        else:
            return "none", old
    for slot in live:
        if slot.id != r.slot and base < slot.base + slot.npages and slot.base < base + npages:
            raise _refuse(errno.EEXIST, f"slot {r.slot}: overlaps slot {slot.id} of address space {r.as_id}")
    if change == "create":
        check_width(base, npages, max_gfn, r.slot)
    return change, old


def check_width(base: int, npages: int, max_gfn: int | None, slot: int) -> None:
    """Refuse a slot above the host's physical address width; `max_gfn` None: the kernel does not look (v5.x)."""
    if max_gfn is not None and base + npages - 1 > max_gfn:
        raise _refuse(
            errno.EINVAL, f"slot {slot}: it ends at gfn {base + npages - 1:#x}, above the host's {max_gfn:#x}"
        )


def steps(
    request: Request,
    change: Change,
    old: Slot | None,
    pml: bool,
    profile: KernelProfile | None = None,
    initially_set: bool = False,
    max_gfn: int | None = None,
    splits_eagerly: bool = False,
) -> list[Step]:
    """What an accepted request makes happen, in order.

    `profile`: whose rules, those of v5.0 to v5.4 without one. `initially_set`: dirty bitmaps start full.
    `splits_eagerly`: a dirty log that starts splits the slot's large leaves first.
    """
    if change == "none":
        return []
    new = None
    if change != "delete":
        new = Slot(
            request.slot, request.gpa >> PAGE_SHIFT, request.size >> PAGE_SHIFT, request.hva, request.flags
        )
    facts = None if profile is None else profile.facts
    plan: list[Step] = []
    if old is not None and change in ("delete", "move"):
        gone = old._replace(flags=old.flags | KVM_MEMSLOT_INVALID)
        plan += [Step("swap", gone), Step("flush_slot", old)]
        if new is not None and max_gfn is not None and new.base + new.npages - 1 > max_gfn:
            # Found out only now: the old slot is published again.
            return [*plan, Step("swap", old), Step("refuse", new)]
    plan.append(Step("swap", new))
    if change in ("create", "move"):
        plan.append(Step("placed", new))
    if facts is None or change in ("create", "delete") or not facts["limit_on_resize"]:
        plan.append(_LIMIT)
    was_logging = old is not None and bool(old.flags & KVM_MEM_LOG_DIRTY_PAGES)
    is_logging = new is not None and bool(new.flags & KVM_MEM_LOG_DIRTY_PAGES)
    if was_logging != is_logging and facts is not None and facts["pml_while_logging"]:
        plan.append(Step("cpu_dirty_logging", new))
    if new is None:
        return plan
    walks: tuple[str, ...] = ()
    if facts is not None and facts["walk_on_log_change"]:
        if change == "flags":
            walks = _log_change_walks(new, is_logging, pml, initially_set)
            if walks and is_logging and splits_eagerly:
                walks = ("split_4k", *walks)
        plan += [Step("slot_walk", new, walk) for walk in walks]
        if walks and is_logging and facts["log_on_flush"] == "always":
            plan.append(Step("flush_tlbs", new))
        return plan
    if was_logging and not is_logging:
        walks += ("zap_collapsible",)
    if new.flags & KVM_MEM_READONLY:
        walks += ("remove_write_access",)
    elif is_logging:
        walks += ("leaf_clear_dirty", "largepage_remove_write_access") if pml else ("remove_write_access",)
    elif pml:
        walks += ("set_dirty",)
    return plan + [Step("slot_walk", new, walk) for walk in walks]


def _log_change_walks(slot: Slot, is_logging: bool, pml: bool, initially_set: bool) -> tuple[str, ...]:
    """What turning the dirty log on or off does to the slot's mappings (v6.1, v6.12)."""
    if slot.flags & KVM_MEM_READONLY:
        return ()
    if not is_logging:
        return ("zap_collapsible",)
    if initially_set:
        return ()
    return ("leaf_clear_dirty", "largepage_remove_write_access") if pml else ("remove_write_access",)


def swap(
    backend: VmBackend,
    profile: KernelProfile,
    policy: GenerationPolicy,
    as_id: int,
    slot_id: int,
    slot: Slot | None,
    published: Callable[[], None],
) -> None:
    """One publication: the array with the in-flight generation, whatever runs meanwhile, the final generation."""
    in_flight = integer("generation in flight", policy.begin(backend.generation(as_id)))
    final = integer(
        "next generation", policy.next(in_flight)
    )  # a policy that fails does so before anything is visible

    def check(generation: int) -> None:
        backend.memslots_updated(generation)
        check_wrap(backend, profile, policy, as_id, generation)

    try:
        if slot is None:
            backend.remove_slot(as_id, in_flight, slot_id)
        else:
            backend.install_slot(as_id, in_flight, slot)
        published()
        policy.conclude(final, lambda generation: backend.set_generation(as_id, generation), check)
    except BaseException:
        # Whatever failed in between, no update is left in flight.
        if backend.generation(as_id) == in_flight:
            backend.set_generation(as_id, final)
        raise


def check_wrap(
    backend: VmBackend, profile: KernelProfile, policy: GenerationPolicy, as_id: int, generation: int
) -> bool:
    """Zap by the profile's wrap plan if this generation is a wrap; whether it was.

    A newer kernel that makes no MMIO SPTEs has nothing that a wrap could make look fresh.
    """
    backend.invalidate_mmio(generation)
    if not policy.is_wrap(generation):
        return False
    if not profile.facts["wrap_zaps_without_caching"] and not backend.makes_mmio_sptes():
        return False
    policy.wrapped(as_id, generation)
    try:
        backend.zap(profile.wrap)
    except BaseException:
        # What an interrupted zap left would look fresh now.
        backend.zap(MMIO_AT_ONCE)
        raise
    return True


def carry_out(
    backend: VmBackend,
    profile: KernelProfile,
    policy: GenerationPolicy,
    request: Request,
    todo: Sequence[Step],
    published: Callable[[], None],
    old: Slot | None = None,
) -> None:
    """Do the steps. `published` is called after each publication, while its generation is still in flight.

    An exception (Ctrl-C, a hook that fails) ends the update where it is; `old`, the slot as it was, is published again
    where the one visible would be half of a change.
    """
    # An interrupt can come between any two lines: what is visible is what the last step left or what this one makes.
    left = made = old
    try:
        for step in todo:
            if step.what == "swap":
                made = step.slot
            _carry_out_step(backend, profile, policy, request, step, published)
            left = made
    except BaseException:
        if old is not None and any(slot is not None and _is_half_done(old, slot) for slot in (left, made)):
            swap(backend, profile, policy, request.as_id, request.slot, old, lambda: None)
        raise


def _is_half_done(old: Slot, visible: Slot) -> bool:
    """A slot marked invalid and not yet gone, or one whose log goes on while its pages may still be writable."""
    is_log_new = visible.flags & ~old.flags & KVM_MEM_LOG_DIRTY_PAGES != 0
    return visible.flags & KVM_MEMSLOT_INVALID != 0 or (is_log_new and visible.base == old.base)


def _carry_out_step(
    backend: VmBackend,
    profile: KernelProfile,
    policy: GenerationPolicy,
    request: Request,
    step: Step,
    published: Callable[[], None],
) -> None:
    if step.what == "swap":
        swap(backend, profile, policy, request.as_id, request.slot, step.slot, published)
    elif step.what == "flush_slot":
        backend.flush_shadow_memslot()
        backend.zap(profile.slot_removal, slot=(request.as_id, request.slot))
    elif step.what == "placed":
        if profile.create_move is not None:
            backend.zap(profile.create_move)
    elif step.what == "limit":
        if backend.requested_mmu_pages() == 0:
            backend.change_mmu_pages(default_mmu_pages(backend.total_slot_pages()))
    elif step.what == "flush_tlbs":
        backend.flush_slot_tlbs(request.as_id, request.slot)
    elif step.what == "cpu_dirty_logging":
        is_on = step.slot is not None and bool(step.slot.flags & KVM_MEM_LOG_DIRTY_PAGES)
        backend.update_cpu_dirty_logging(is_on)
    elif step.what == "refuse":
        raise _refuse(errno.EINVAL, f"slot {request.slot}: it would end above the host's address width")
    else:
        backend.slot_walk(request.as_id, request.slot, step.walk)


def alternate_log(
    backend: VmBackend,
    profile: KernelProfile,
    policy: GenerationPolicy,
    as_id: int,
    old: Slot,
    most: int,
    pml: bool,
    initially_set: bool,
    is_only_log: bool,
    splits_eagerly: bool = False,
) -> int:
    """Turn the log of a slot on and off in turn, as often as that can be done at once, at most `most` times.

    `is_only_log`: no other slot of the VM has a log.

    Returns:
        How many updates were made; 0: they must be made one by one.
    """
    other = old._replace(flags=old.flags ^ KVM_MEM_LOG_DIRTY_PAGES)
    turns = []
    for before, after in ((old, other), (other, old)):
        request = Request(
            as_id, after.id, after.base << PAGE_SHIFT, after.npages << PAGE_SHIFT, after.hva, after.flags
        )
        first, *more = steps(
            request, "flags", before, pml, profile, initially_set, splits_eagerly=splits_eagerly
        )
        # The processor's own log is switched with the first slot that has one, and with the last.
        switches = pml and is_only_log and any(step.what == "cpu_dirty_logging" for step in more)
        more = [step for step in more if step.what != "cpu_dirty_logging"]
        walks = [step.walk for step in more if step.what == "slot_walk"]
        is_flushed = [step.what for step in more[len(walks) :]] == ["flush_tlbs"]
        if first.what != "swap" or len(walks) + is_flushed != len(more):
            return 0
        turns.append((after, switches, walks, is_flushed))
    generation = backend.generation(as_id)
    count = min(most, policy.even_updates(generation))
    if count > 0:
        published = policy.next(policy.begin(generation))
        step = policy.next(policy.begin(published)) - published
        backend.alternate_flags(
            as_id,
            turns,
            (policy.begin(generation), policy.begin(published) - policy.begin(generation)),
            (published, step),
            count,
        )
    return count


def default_mmu_pages(npages: int) -> int:
    """The automatic limit of shadow pages for so many pages of memslots."""
    return max(KVM_MIN_ALLOC_MMU_PAGES, npages * KVM_PERMILLE_MMU_PAGES // 1000)
