"""Parents without bound: what it costs to take a shadow page apart that very many entries lead to.

A guest may let any number of its directory entries lead to one of its page tables. Their shadow is one page with as
many parents, in a list; to remove one of them is to look for it. What is counted here is how many entries such a search
looks at, read off the list itself before each removal.
"""

from __future__ import annotations

import numpy as np

from kvm_mmu.lab.fit import fit_power
from kvm_mmu.machine.vm import Vm
from kvm_mmu.studies.gallery import Answer, Table, facts_digest
from kvm_mmu.studies.study import Study
from kvm_mmu.types import GIB, MIB, PAGE_SIZE

#: How many parents, and the bound that is tried: kernels with the fix have 1,000, the growth is the same.
SIZES, BOUND = (32, 64, 128, 256), 16
#: Kernels whose lists differ: descriptors of three, of fourteen at the end, of fourteen at the front.
KERNELS = ("v5.2", "v6.1", "v6.12")
ORDERS = ("ascending", "mixed")
#: Where the guest keeps its tables.
_ROOT, _DIRECTORIES, _TABLE, _PAGE, _FIRST = 0x1000, 0x2000, 0x80_0000, 0x90_0000, 0x100_0000
_PRESENT, _LARGE = 0x67, 0xE7


def guest(kernel: str, parents: int, order: str) -> Vm:
    """A guest of which so many directories lead to one page table.

    Args:
        kernel: the kernel.
        parents: how many, each from a directory of its own.
        order: `ascending`: the directories are made in the order in which they then lead to the table; `mixed`: they
            lead to it in another one.

    Returns:
        The VM, with all of them shadowed.
    """
    vm = Vm(kernel=kernel, family="shadow", events="off")
    one = vm.guest
    one.add_memory(0, GIB + parents * 2 * MIB)
    vm.set_nr_mmu_pages(1 << 20)
    one.poke(_TABLE, _PAGE | _PRESENT)
    for i in range(parents):
        directory = _FIRST + i * PAGE_SIZE
        above = _DIRECTORIES + i // 512 * PAGE_SIZE
        if i % 512 == 0:
            one.poke(_ROOT + 8 * (i // 512), above | _PRESENT)
        one.poke(above + 8 * (i % 512), directory | _PRESENT)
        one.poke(directory, GIB + i * 2 * MIB | _LARGE)
        one.poke(directory + 8, _TABLE | _PRESENT)
    one.set_cr3(_ROOT)
    places = np.arange(parents, dtype=np.uint64) * np.uint64(GIB)
    # The first leads to the table at once, so that the table is older than the other directories.
    one.access(2 * MIB)
    one.access_many(places)
    if order == "mixed":
        # 7,919 is prime: a walk of that stride comes to every directory once.
        places = places[np.arange(parents) * 7919 % parents]
    one.access_many(places + np.uint64(2 * MIB))
    return vm


def searches(vm: Vm) -> list[int]:
    """Zap everything, newest first, as the teardown of a VM does on shadow pages.

    Args:
        vm: the VM, which has nothing left after it.

    Returns:
        For each parent that is removed from the longest list, until its page goes itself, the place where it stood:
        so many entries a search looks at.
    """
    shared: int | None = max(vm.snapshot()["active"], key=lambda page: len(page["parents"]))["id"]
    found = []
    with vm.zap_batch() as batch:
        for page in vm.active_pages():
            if shared is not None and page.id != shared:
                # The one entry of this page that leads to the shared table stands where in its list?
                parents = vm.page(shared).fields["parents"]
                found += [at for at, (parent, _) in enumerate(parents, 1) if parent == page.id]
            elif page.id == shared:
                shared = None
            batch.prepare(page)
    return found


def taken_apart(vm: Vm) -> tuple[int, int, str]:
    """Take a guest apart.

    Args:
        vm: the VM, which has nothing left after it.

    Returns:
        Entries that the searches in the longest parent list looked at, parent entries removed from all lists, and the
        digest.
    """
    before = vm.work
    looked = sum(searches(vm))
    work = {name: value - before[name] for name, value in vm.work.items()}
    return looked, work["parent_steps"], facts_digest({"looked": looked, "work": work, "stats": vm.stats})


def table(kernels: tuple[str, ...], caption: str) -> tuple[Table, dict[tuple[str, str], float]]:
    """Take guests of every size apart under some kernels.

    Args:
        kernels: those; a fact may be changed (`v6.12:max_parents=64`).
        caption: above the table.

    Returns:
        The table, and the exponent by kernel and order.
    """
    rows: dict[str, list[object]] = {
        name: [] for name in ("kernel", "order", "parents", "removed", "looked at", "grows as", "digest")
    }
    exponents = {}
    for kernel in kernels:
        for order in ORDERS:
            runs = [taken_apart(guest(kernel, size, order)) for size in SIZES]
            fit = fit_power(SIZES, [looked for looked, *_ in runs])
            exponents[kernel, order] = fit.exponent if fit is not None else 0.0
            for size, (looked, removed, digest) in zip(SIZES, runs, strict=True):
                is_last = size == SIZES[-1]
                values = (kernel, order, size, removed, looked, str(fit) if is_last else "", digest)
                for name, value in zip(rows, values, strict=True):
                    rows[name].append(value)
    return Table(caption, rows), exponents


def p1() -> Answer:
    """How the searches grow with the parents."""
    found, exponents = table(KERNELS, "A guest taken apart, newest page first, as a teardown goes")
    quadratic = [f"{kernel} {order}" for (kernel, order), exponent in exponents.items() if exponent > 1.9]
    return Answer(
        "P1",
        "how far does one removal search?",
        "removing an entry from a list is a search; taking a page of n parents apart is n searches, under mmu_lock",
        tables=[found],
        verdict=f"Quadratic in {len(quadratic)} of {len(exponents)} cases: {', '.join(quadratic)}.",
    )


def p2() -> Answer:
    """What the order of the list does to one removal."""
    rows: dict[str, list[object]] = {
        name: [] for name in ("kernel", "order", "first removal", "mean", "worst")
    }
    size = SIZES[-1]
    for kernel in KERNELS:
        for order in ORDERS:
            looks = searches(guest(kernel, size, order))
            values = (kernel, order, looks[0], round(sum(looks) / len(looks), 1), max(looks))
            for name, value in zip(rows, values, strict=True):
                rows[name].append(value)
    return Answer(
        "P2",
        "what a list that grows at its front saves",
        "from 6.4 on a new descriptor goes to the front of the list, so that the newest parents are found first",
        tables=[Table(f"Entries that one removal looks at, of {size} parents", rows)],
        verdict="It saves the guest that links and unlinks in one order, and nobody else: the worst removal still "
        "looks at nearly every entry.",
    )


def p3() -> Answer:
    """What a bound does, and what it costs."""
    rows: dict[str, list[object]] = {
        name: []
        for name in ("bound", "order", "parents", "looked at", "grows as", "flushes before", "digest")
    }
    exponents = []
    for bound in (0, BOUND):
        for order in ORDERS:
            found = []
            for size in SIZES:
                vm = guest(f"v6.12:max_parents={bound}", size, order)
                flushes = vm.work["flushes"]
                looked, _, digest = taken_apart(vm)
                found.append((looked, flushes, digest))
            fit = fit_power(SIZES, [looked for looked, *_ in found])
            exponents += [fit.exponent] if bound and fit is not None else []
            for size, (looked, flushes, digest) in zip(SIZES, found, strict=True):
                grows = str(fit) if size == SIZES[-1] else ""
                values = (bound or "none", order, size, looked, grows, flushes, digest)
                for name, value in zip(rows, values, strict=True):
                    rows[name].append(value)
    return Answer(
        "P3",
        "before and after a bound",
        "a shadow page has at most so many parents; one that is full loses all of them before it gets another",
        tables=[
            Table(
                f"v6.12 as it is, and with `max_parents={BOUND}`; *flushes before*: while the guest ran", rows
            )
        ],
        verdict=f"The teardown no longer grows as the square (exponent {max(exponents):.2f} at most). What is saved "
        "there the guest pays while it runs: links that were dropped are faulted in again, after a flush. What a "
        "kernel does with a full page is assumed, not known.",
        command="kvm-mmu scenario sample --fact max_parents",
    )


STUDY = Study(
    "parents",
    "Parents without bound",
    "what very many parents of one shadow page cost, in which order, before and after a bound",
    """
A guest may let any number of its directory entries lead to the same page table. Under shadow paging all of
these are links to one shadow page, which keeps a list of its parents. In November 2026 CVE-2026-99710
(e4558c3d7198) gave that list a bound of 1,000: to remove an entry is to look for it, and a teardown of n
entries did n searches while it held `mmu_lock`.

The guest here has n directories, each with one entry that leads to the shared table. *ascending*: the
directories lead to it in the order in which they were made; *mixed*: in another order. What is counted is read
off the list itself: before each removal, at which place of the list the entry stands. It is bookkeeping on the
model; nothing here was run on a host.
""",
    {"P1": p1, "P2": p2, "P3": p3},
)
