"""Hostile values for every argument of the Python API: an error of ours that names the argument, and nothing changes.

The table names each public callable of `Vm`, its vCPUs and memslots, the codec and the values; a callable without a row
fails. Arrays have rows of their own. What is a wrong type for a plan or a policy may be a `TypeError` of Python.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import kvm_mmu as km
import numpy as np
import pytest
from kvm_mmu.machine.generation import GenerationField, GenerationLayout, GenerationV50
from kvm_mmu.machine.memslots import Memslots
from kvm_mmu.machine.vcpu import Vcpu
from kvm_mmu.words.codec import Codec

TOO_LARGE = [
    1 << 64,
    1 << 70,
    np.float64(1.0),
    1.5,
    float("nan"),
    "5",
    b"5",
    None,
    [],
    {},
    np.array([1, 2]),
    True,
]
NEGATIVE = [-1, np.int64(-1), -(1 << 70)]
HOSTILE = [*NEGATIVE, *TOO_LARGE]
WORDS = ["", "lunch", "r\0", 5, None, [], b"r"]
FLAGS = [2, -1, 1 << 70, 0.5, "yes", None, [], np.array([1, 0])]


def made() -> km.Vm:
    vm = km.Vm(kernel="v6.1", family="npt", vcpus=2)
    vm.memslots.create(slot=0, gpa=0, size=1 << 22, flags=1)
    vm.vcpus[0].access(0x1000, "w")
    return vm


PAIRS: list[Any] = [5, "ab", (0,), (2, 0), (0, -1), (0, 1 << 70), (0, 1.5)]
Call = Callable[[km.Vm, Any], object]

#: Name of the argument as the message gives it -> (method, call with the hostile value in its place, the values).
CALLS: list[tuple[str, str, Call, list[Any]]] = [
    ("Vcpu.access", "gpa", lambda vm, x: vm.vcpus[0].access(x), HOSTILE[:-1]),
    ("Vcpu.access", "kind", lambda vm, x: vm.vcpus[0].access(0, x), WORDS),
    ("Vcpu.set_pkru", "pkru", lambda vm, x: vm.vcpus[0].set_pkru(x), HOSTILE),
    ("Vcpu.access_many", "kind", lambda vm, x: vm.vcpus[0].access_many([0], x), WORDS),
    ("Vcpu.fault", "gpa", lambda vm, x: vm.vcpus[0].fault(x, 0), HOSTILE),
    ("Vcpu.fault", "error_code", lambda vm, x: vm.vcpus[0].fault(0, x), HOSTILE),
    ("Vcpu.fault_with", "gpa", lambda vm, x: vm.vcpus[0].fault_with(x, 0, None), HOSTILE),
    ("Vcpu.fault_with", "error_code", lambda vm, x: vm.vcpus[0].fault_with(0, x, None), HOSTILE),
    (
        "Vcpu.fault_with",
        "found",
        lambda vm, x: vm.vcpus[0].fault_with(0, 0, x),
        [5, "abc", (1,), [], (1, 1, 5)],
    ),
    (
        "Vcpu.fault_with",
        "level",
        lambda vm, x: vm.vcpus[0].fault_with(0, 0, (x, True, None)),
        [0, 4, *HOSTILE],
    ),
    ("Vcpu.fault_with", "writable", lambda vm, x: vm.vcpus[0].fault_with(0, 0, (1, x, None)), FLAGS),
    ("Vcpu.fault_with", "neighbour", lambda vm, x: vm.vcpus[0].fault_with(0, 0, (1, True, [x])), HOSTILE),
    (
        "Vcpu.fault_with",
        "is_written",
        lambda vm, x: vm.vcpus[0].fault_with(0, 0, (1, True, None), is_written=x),
        [x for x in FLAGS if x is not None],
    ),
    ("Vcpu.set_smm", "on", lambda vm, x: vm.vcpus[0].set_smm(x), FLAGS),
    ("Vcpu.set_regs", "cr0", lambda vm, x: vm.vcpus[0].set_regs(cr0=x), [-1, 1 << 64, 1.5, "x", []]),
    ("Vcpu.set_regs", "cr4", lambda vm, x: vm.vcpus[0].set_regs(cr4=x), [-1, 1 << 64, 1.5, "x", []]),
    ("Vcpu.set_regs", "efer", lambda vm, x: vm.vcpus[0].set_regs(efer=x), [-1, 1 << 64, 1.5, "x", []]),
    ("Vcpu.set_regs", "smm", lambda vm, x: vm.vcpus[0].set_regs(smm=x), [2, "yes", 0.5]),
    ("Memslots.of", "as_id", lambda vm, x: vm.memslots.of(x), [2, *HOSTILE]),
    ("Memslots.get", "slot", lambda vm, x: vm.memslots.get(x), HOSTILE),
    ("Memslots.get", "as_id", lambda vm, x: vm.memslots.get(0, x), [2, *HOSTILE]),
    ("Memslots.create", "slot", lambda vm, x: vm.memslots.create(x, 0, 4096), HOSTILE),
    ("Memslots.create", "gpa", lambda vm, x: vm.memslots.create(1, x, 4096), HOSTILE),
    ("Memslots.create", "size", lambda vm, x: vm.memslots.create(1, 1 << 40, x), HOSTILE),
    (
        "Memslots.create",
        "hva",
        lambda vm, x: vm.memslots.create(1, 1 << 40, 4096, hva=x),
        [-1, 1 << 64, 1.5, "x"],
    ),
    ("Memslots.create", "flags", lambda vm, x: vm.memslots.create(1, 1 << 40, 4096, flags=x), HOSTILE),
    ("Memslots.create", "as_id", lambda vm, x: vm.memslots.create(1, 1 << 40, 4096, as_id=x), HOSTILE),
    ("Memslots.delete", "slot", lambda vm, x: vm.memslots.delete(x), HOSTILE),
    ("Memslots.delete", "as_id", lambda vm, x: vm.memslots.delete(0, x), HOSTILE),
    ("Memslots.move", "slot", lambda vm, x: vm.memslots.move(x, 0), HOSTILE),
    ("Memslots.move", "gpa", lambda vm, x: vm.memslots.move(0, x), HOSTILE),
    ("Memslots.move", "as_id", lambda vm, x: vm.memslots.move(0, 0, x), HOSTILE),
    ("Memslots.set_flags", "slot", lambda vm, x: vm.memslots.set_flags(x, 0), HOSTILE),
    ("Memslots.set_flags", "flags", lambda vm, x: vm.memslots.set_flags(0, x), HOSTILE),
    ("Memslots.set_flags", "as_id", lambda vm, x: vm.memslots.set_flags(0, 0, x), HOSTILE),
    ("Memslots.touch", "slot", lambda vm, x: vm.memslots.touch(x), HOSTILE),
    ("Memslots.touch", "as_id", lambda vm, x: vm.memslots.touch(0, x), HOSTILE),
    ("Memslots.alternate_log", "slot", lambda vm, x: vm.memslots.alternate_log(x, 1), HOSTILE),
    ("Memslots.alternate_log", "updates", lambda vm, x: vm.memslots.alternate_log(0, x), HOSTILE),
    ("Memslots.alternate_log", "as_id", lambda vm, x: vm.memslots.alternate_log(0, 1, x), HOSTILE),
    (
        "Memslots.set_region",
        "memslot gpa",
        lambda vm, x: vm.memslots.set_region(slot=1, gpa=x, size=4096, hva=0),
        HOSTILE,
    ),
    ("Vm.page", "page_id", lambda vm, x: vm.page(x), [1 << 32, *HOSTILE]),
    (
        "Vm.zap",
        "slot",
        lambda vm, x: vm.zap("v5.2-slot", slot=x),
        PAIRS,
    ),
    ("Vm.zap", "plan", lambda vm, x: vm.zap(x), ["lunch", 5, None, {}, 1.5]),
    ("Vm.zap_steps", "slot", lambda vm, x: list(vm.zap_steps("v5.2-slot", slot=x)), [5, (0,), (0, 1 << 70)]),
    (
        "Vm.zap",
        "gfn_range",
        lambda vm, x: vm.zap(km.ZapPlan(only="gfn_range"), gfn_range=x),
        [5, (0,), (-1, 5), (0, 1 << 64), (0, 1.5), ("a", "b")],
    ),
    ("Vm.read_dirty_log", "slot", lambda vm, x: vm.read_dirty_log(0, x, False), HOSTILE),
    ("Vm.read_dirty_log", "manual", lambda vm, x: vm.read_dirty_log(0, 0, x), FLAGS),
    ("Vm.clear_dirty_log", "as_id", lambda vm, x: vm.clear_dirty_log(x, 0, 0, 64, [1]), [2, *HOSTILE]),
    ("Vm.clear_dirty_log", "first", lambda vm, x: vm.clear_dirty_log(0, 0, x, 64, [1]), HOSTILE),
    ("Vm.clear_dirty_log", "num", lambda vm, x: vm.clear_dirty_log(0, 0, 0, x, [1]), HOSTILE),
    ("Vm.clear_dirty_log", "mask word", lambda vm, x: vm.clear_dirty_log(0, 0, 0, 64, [x]), HOSTILE),
    ("Vm.dirty_masked", "offset", lambda vm, x: vm.dirty_masked(0, 0, x, 1), HOSTILE),
    ("Vm.dirty_masked", "mask", lambda vm, x: vm.dirty_masked(0, 0, 0, x), HOSTILE),
    ("Vm.active_pages", "from_tail", lambda vm, x: vm.active_pages(x), FLAGS),
    ("Vm.check_wrap", "as_id", lambda vm, x: vm.check_wrap(x), [2, *HOSTILE]),
    ("Vm.flush_slot", "slot", lambda vm, x: vm.flush_slot(x), [1 << 32, *HOSTILE]),
    ("Vm.flush_slot", "as_id", lambda vm, x: vm.flush_slot(0, x), [2, *HOSTILE]),
    ("Vm.slot_walk", "as_id", lambda vm, x: vm.slot_walk(x, 0, "set_dirty"), [2, *HOSTILE]),
    ("Vm.slot_walk", "slot", lambda vm, x: vm.slot_walk(0, x, "set_dirty"), HOSTILE),
    ("Vm.slot_walk", "what", lambda vm, x: vm.slot_walk(0, 0, x), WORDS),
    ("Vm.set_judged", "on", lambda vm, x: vm.set_judged(x), FLAGS),
    ("Vm.run_guest", "vcpu", lambda vm, x: vm.run_guest(x, "enter"), HOSTILE),
    ("Vm.run_guest", "work", lambda vm, x: vm.run_guest(0, x), WORDS),
    ("Vm.run_guest", "gva", lambda vm, x: vm.run_guest(0, "access", x), HOSTILE),
    ("Vm.run_guest", "kind", lambda vm, x: vm.run_guest(0, "access", 0, x), WORDS),
    ("Vm.run_guest", "is_user", lambda vm, x: vm.run_guest(0, "access", 0, "r", x), FLAGS),
    ("Vm.unmap_hva", "start", lambda vm, x: vm.unmap_hva(x, 0), HOSTILE),
    ("Vm.unmap_hva", "end", lambda vm, x: vm.unmap_hva(0, x), HOSTILE),
    ("Vm.unmap_hva", "block", lambda vm, x: vm.unmap_hva(0, 4096, x), FLAGS),
    ("Vm.nx_recover", "ratio", lambda vm, x: vm.nx_recover(x), HOSTILE),
    ("Vm.set_nx_huge_pages", "on", lambda vm, x: vm.set_nx_huge_pages(x), FLAGS),
    ("Vm.set_slot_zap_all", "on", lambda vm, x: vm.set_slot_zap_all(x), FLAGS),
    ("Vm.zap_gfn_range", "start", lambda vm, x: vm.zap_gfn_range(x, 0), HOSTILE),
    ("Vm.zap_gfn_range", "end", lambda vm, x: vm.zap_gfn_range(0, x), HOSTILE),
    ("Vm.set_nr_mmu_pages", "n", lambda vm, x: vm.set_nr_mmu_pages(x), [0, 63, *HOSTILE]),
    ("Vm.change_mmu_pages", "goal", lambda vm, x: vm.change_mmu_pages(x), HOSTILE),
    ("Vm.zap_oldest", "nr_to_zap", lambda vm, x: vm.zap_oldest(x), HOSTILE),
    ("Vm.shrink", "nr_to_scan", lambda vm, x: vm.shrink(x), HOSTILE),
    ("Vm.get_dirty_log", "slot", lambda vm, x: vm.get_dirty_log(x), [1, *HOSTILE]),
    ("Vm.get_dirty_log", "as_id", lambda vm, x: vm.get_dirty_log(0, x), [2, *HOSTILE]),
    ("Vm.get_dirty_log", "manual", lambda vm, x: vm.get_dirty_log(0, manual=x), FLAGS),
    (
        "Vm.dirty_log_initially_set",
        "initially",
        lambda vm, x: setattr(vm, "dirty_log_initially_set", x),
        FLAGS,
    ),
    ("Vm.from_bytes", "", lambda vm, x: km.Vm.from_bytes(x), [b"", b"x" * 100, "text", 5, None, np.zeros(4)]),
]
ROWS = [
    pytest.param(word, call, value, id=f"{name}-{word}-{value!r:.20}")
    for name, word, call, values in CALLS
    for value in values
]


@pytest.mark.parametrize(("word", "call", "value"), ROWS)
def test_a_hostile_value_is_refused_by_name_and_changes_nothing(word: str, call: Call, value: Any) -> None:
    vm = made()
    before = vm.digest(), vm.stats, vm.memslots.generations
    with pytest.raises(km.KvmMmuError) as caught:
        call(vm, value)
    assert word in str(caught.value)
    assert len(str(caught.value)) < 400
    assert (vm.digest(), vm.stats, vm.memslots.generations) == before
    assert vm.audit() == []


#: What takes no argument of its own, or is a seam that the package itself fills.
WITHOUT_ARGUMENTS = (
    "Vcpu.enter Vcpu.load Vcpu.unload Vcpu.clear_mmio_info Vm.clear_events Vm.snapshot Vm.digest Vm.audit Vm.clone",
    "Vcpu.init Vm.fingerprint",
    "Vm.to_bytes Vm.destroy Vm.zap_batch Vm.flush_all Vm.require_idle Vm.to_svg",
    "Vm.updating Vm.install_slot Vm.remove_slot Vm.generation Vm.set_generation Vm.total_slot_pages",
    "Vm.requested_mmu_pages Vm.memslots_updated Vm.invalidate_mmio Vm.flush_shadow_memslot",
    "Vm.flush_slot_tlbs Vm.update_cpu_dirty_logging Vm.alternate_flags Vm.makes_mmio_sptes",
    # What a live VM may hold and is refused for: tests/live/test_from_snapshot.py.
    "Vm.judge Vm.judged_update Vm.from_snapshot",
)


@pytest.mark.parametrize("owner", [km.Vm, Vcpu, Memslots])
def test_every_public_method_has_a_row(owner: type) -> None:
    known = {name for name, *_ in CALLS} | {name for line in WITHOUT_ARGUMENTS for name in line.split()}
    methods = {name for name, _ in inspect.getmembers(owner, callable) if not name.startswith("_")}
    assert {f"{owner.__name__}.{name}" for name in methods} <= known


CONSTRUCTOR: dict[str, list[Any]] = {
    "kernel": [5, None, [], "v1", b"v5.0"],
    "family": WORDS,
    "phys_bits": [35, 53, *HOSTILE],
    "execonly": FLAGS,
    "pml": FLAGS,
    "tdp_level": [3, 6, *HOSTILE],
    "lpage_level": [0, 4, *HOSTILE],
    "vcpus": [0, 4097, *HOSTILE],
    "flush_range": FLAGS,
    "generation": [5, "v5.0", GenerationV50],
    "plans": [{"lunch": "seed"}, {"wrap": "lunch"}, {"wrap": 5}, [1], "seed"],
    "events": ["some", -1, 1.5, None, True, 1 << 70],
    "max_memslots": [0, 1 << 21, *(value for value in HOSTILE if value is not None)],
    "gfn_hash": WORDS,
    "l1tf": [2, "yes"],
    "nx_huge_pages": FLAGS,
    "mmio_caching": FLAGS,
    "guest_paging": FLAGS,
    "tdp_mmu": [value for value in FLAGS if value is not None],
    "probes": [2, "yes"],
    "format": [0, 2, 7, *HOSTILE],
}


def test_every_argument_of_the_constructor_has_a_row() -> None:
    assert list(inspect.signature(km.Vm).parameters) == list(CONSTRUCTOR)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param(name, value, id=f"{name}-{value!r:.20}")
        for name, values in CONSTRUCTOR.items()
        for value in values
        if not (name == "plans" and not value)
    ],
)
def test_the_constructor(name: str, value: Any) -> None:
    with pytest.raises(km.KvmMmuError) as caught:
        km.Vm(**{"kernel": "v6.1", name: value})
    assert name.split("_")[0].rstrip("s") in str(caught.value)


@pytest.mark.parametrize("value", [np.uint64(0x1000), np.int32(0x1000), np.array(0x1000)])
def test_integers_of_numpy_are_integers(value: Any) -> None:
    vm = made()
    assert vm.vcpus[0].access(value, "w").outcome == "hit"
    vm.memslots.create(np.uint32(1), np.uint64(1 << 40), value)
    assert vm.memslots.get(np.int64(1)).npages == 1
    assert type(vm.memslots.get(1).base) is int
    vm.set_nr_mmu_pages(value)
    assert km.Vm(vcpus=np.int8(2), execonly=np.bool_(True)).config["vcpus"] == 2


ARRAYS = {
    "float": np.zeros(3),
    "two dimensions": np.zeros((2, 2), dtype=np.uint64),
    "no dimension": np.uint64(5),
    "negative": np.array([1, -1]),
    "text": np.array(["a"]),
    "objects": np.array([1 << 70], dtype=object),
    "bool": np.array([True]),
    "complex": np.array([1j]),
    "dates": np.array(["2019-01-10"], dtype="datetime64[D]"),
    "records": np.zeros(2, dtype=[("gpa", np.uint64)]),
    "none": None,
    "ragged": [[1], [1, 2]],
    "too large": [1 << 70],
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_arrays_that_are_refused(array: Any) -> None:
    vm = made()
    before = vm.digest()
    codec = Codec("v6.1", "npt")
    with pytest.raises(km.UsageError, match="gpas"):
        vm.vcpus[0].access_many(array)
    with pytest.raises(km.UsageError, match="sptes"):
        codec.decode_mmio_sptes(array)
    for place in range(3):
        columns: list[Any] = [[1], [1], [1]]
        columns[place] = array
        with pytest.raises(km.UsageError, match=r"gfns|access|generations"):
            codec.make_mmio_sptes(*columns)
    assert vm.digest() == before


def test_arrays_of_any_layout_are_read() -> None:
    plain = np.arange(12, dtype=np.uint64) * np.uint64(4096)
    frozen = plain.copy()
    frozen.setflags(write=False)
    wanted = made().vcpus[0].access_many(plain, "w").outcome.tolist()
    for array in (
        frozen,
        plain[::-1][::-1],
        np.repeat(plain, 2)[::2],
        plain.astype(">u8"),
        plain.astype(np.int64),
    ):
        assert made().vcpus[0].access_many(array, "w").outcome.tolist() == wanted
        assert Codec("v6.1", "npt").decode_mmio_sptes(array).gfn.tolist() == list(range(12))


@pytest.mark.parametrize(
    "make",
    [
        lambda: GenerationField(0.5, 9, 3),  # type: ignore[arg-type]
        lambda: GenerationField(0, 1 << 70, 3),
        lambda: GenerationLayout(width=1.5, in_progress=0, refuse_in_progress=False, fields=()),  # type: ignore[arg-type]
        lambda: GenerationLayout(width=20, in_progress=-1, refuse_in_progress=False, fields=()),
        lambda: GenerationLayout(width=20, in_progress=0, refuse_in_progress=False, fields=(5,)),  # type: ignore[arg-type]
        lambda: GenerationV50(start=5),  # type: ignore[arg-type]
        lambda: GenerationV50(start=lambda i: 0.5).initial(0),  # type: ignore[arg-type,return-value]
        lambda: Codec("v5.0", "npt", phys_bits=1 << 70),
        lambda: Codec("v5.0", ["npt"]),  # type: ignore[arg-type]
        lambda: Codec("v5.0", "npt", generation=5),  # type: ignore[arg-type]
        lambda: Codec("v5.0", "npt").make_mmio_spte(1 << 70, 7, 0),
        lambda: Codec("v5.0", "npt").make_mmio_spte(0, 8, 0),
        lambda: Codec("v5.0", "npt").make_mmio_spte(0, 7, -1),
        lambda: Codec("v5.0", "npt").decode_mmio(5, generation=-1),
        lambda: Codec("v5.0", "npt").decode_spte(1.5),  # type: ignore[arg-type]
        lambda: km.decode_role(1 << 40, "v5.0"),
        lambda: km.decode_role(None, "v5.0"),  # type: ignore[arg-type]
        lambda: km.decode_spte(-1, kernel="v5.0"),
        lambda: km.decode_mmio(1 << 64, kernel="v5.0"),
        lambda: km.encode_mmio(0, 7, 1 << 64, kernel="v5.0"),
        lambda: km.ZapPlan(offer=("batch", 1 << 70)),  # type: ignore[arg-type]
        lambda: km.ZapPlan(restart=5),  # type: ignore[arg-type]
    ],
)
def test_values_and_words(make: Callable[[], object]) -> None:
    with pytest.raises(km.UsageError):
        make()


def test_a_policy_that_answers_nonsense_changes_nothing() -> None:
    class Nonsense(GenerationV50):
        name = "nonsense"

        def begin(self, generation: int) -> int:
            return 0.5  # type: ignore[return-value]

    vm = km.Vm(generation=Nonsense())
    with pytest.raises(km.UsageError, match="generation in flight"):
        vm.memslots.create(slot=0, gpa=0, size=4096)
    assert list(vm.memslots) == []
