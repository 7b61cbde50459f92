"""Bad input from the command line and from Python: exit status, and a message that names place and expectation."""

from __future__ import annotations

import gzip
import json
import lzma
import subprocess
import sys

import kvm_mmu as km
import numpy as np
import pytest

HEADER = json.dumps(
    {"scenario": "s", "format": 1, "variant": "v5.0", "config": {"family": "npt"}, "dump": "all"}
)


def op(**fields):
    return json.dumps({"op": fields})


def cli(*arguments, stdin=""):
    return subprocess.run(
        [sys.executable, "-m", "kvm_mmu", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
    )


#: (arguments, stdin, exit status, words that the message must hold)
TABLE = [
    (["decode", "spte", "0xzz", "--kernel", "v5.0"], "", 2, ["value 1", "'0xzz'", "hexadecimal"]),
    (["decode", "spte", "-", "--kernel", "v5.0"], "10\n20\nzz\n", 2, ["<stdin>:3", "'zz'"]),
    (["decode", "spte", "1" + "0" * 16, "--kernel", "v5.0"], "", 2, ["2^64-1"]),
    (["decode", "spte", "--kernel", "v5.0", "--", "-5"], "", 2, ["0 to 2^64-1"]),
    (["decode", "role", "100000000", "--kernel", "v5.0"], "", 2, ["32 bits"]),
    (["decode", "spte", "1"], "", 2, ["--kernel"]),
    (["decode", "spte", "1", "--kernel", "v4.4"], "", 2, ["'v4.4'", "expected one of v5.0"]),
    (["decode", "spte", "1", "--kernel", "v5.0", "--family", "mips"], "", 2, ["mips", "npt"]),
    (["decode", "spte", "1", "--kernel", "v5.0", "--phys-bits", "99"], "", 2, ["phys_bits", "36"]),
    (["encode", "mmio", "--kernel", "v5.0"], "", 2, ["--gfn and --gen"]),
    (
        ["encode", "mmio", "-", "--kernel", "v5.0"],
        '{"gfn":1,"access":6}\n',
        2,
        ["<stdin>:1", "gen is missing"],
    ),
    (["encode", "mmio", "-", "--kernel", "v5.0"], '{"gfn":1,', 2, ["<stdin>:1", "not JSON"]),
    (["encode", "mmio", "-", "--kernel", "v5.0"], '{"gfn":-1,"access":6,"gen":0}', 2, ["gfn=-1"]),
    (["encode", "mmio", "-", "--kernel", "v5.0"], '{"gfn":1,"access":9,"gen":0}', 2, ["access 9"]),
    (["run", "-"], op(op="dump"), 2, ["no kernel", "--kernel"]),
    (["run", "-", "--kernel", "v9"], op(op="dump"), 2, ["'v9'", "expected one of"]),
    (["run", "-"], HEADER + "\n{", 2, ["<stdin>:2", "not a JSON object"]),
    (["run", "-"], HEADER + "\n" + op(op="dance"), 2, ["<stdin>:2", "'dance'", "expected one of access"]),
    (["run", "-"], HEADER + "\n" + op(op="access", gpa=-1), 2, ["<stdin>:2", "gpa=-1"]),
    (["run", "-"], HEADER + "\n" + op(op="access", gpa=1 << 64), 2, ["<stdin>:2", "gpa="]),
    (["run", "-"], HEADER + "\n" + op(op="access", gpa="0xq"), 2, ["<stdin>:2", "'0xq'"]),
    (["run", "-"], HEADER + "\n" + op(op="access", gpa=0, kind="y"), 2, ["kind='y'", "r, w, x"]),
    (["run", "-"], HEADER + "\n" + op(op="access", gpa=0, vcpu=7), 2, ["vcpu=7"]),
    (["run", "-"], HEADER + "\n" + op(op="access"), 2, ["gpa is missing"]),
    (
        ["run", "-"],
        HEADER + "\n" + op(op="access", gpa=0, kind="w", vpcu=3),
        2,
        ["<stdin>:2", "'vpcu'", "vcpu"],
    ),
    (["run", "-"], HEADER + "\n" + op(op="access", gpa=4096, knd="x"), 2, ["<stdin>:2", "'knd'", "kind"]),
    (["run", "-"], HEADER + "\n" + op(op="zap", plan="lunch"), 2, ["'lunch'", "expected one of seed"]),
    (["run", "-"], HEADER + "\n" + op(op="zap", plan="walk=up,only=all"), 2, ["walk='up'"]),
    (["run", "-"], HEADER + "\n" + op(op="lock_break", do=[1]), 2, ["list of operation lists"]),
    (["run", "-"], HEADER.replace("npt", "vtlb"), 2, ["vtlb"]),
    (["run", "nowhere.jsonl"], "", 2, ["nowhere.jsonl", "No such file"]),
    (["run", "-", "--backend", "magic"], "", 2, ["magic"]),
    (["verify", "nowhere.jsonl"], "", 2, ["nowhere.jsonl"]),
    (["plans", "lunch"], "", 2, ["lunch"]),
    (["dance"], "", 2, ["dance"]),
    ([], "", 2, ["COMMAND"]),
]


@pytest.mark.parametrize(
    ("arguments", "stdin", "status", "words"), TABLE, ids=[" ".join(r[0]) for r in TABLE]
)
def test_command_line(arguments, stdin, status, words):
    done = cli(*arguments, stdin=stdin)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_results_before_a_bad_operation_are_complete_lines():
    done = cli("run", "-", stdin=f"{HEADER}\n{op(op='dump')}\n{op(op='dance')}\n")
    assert done.returncode == 2
    assert [json.loads(line).get("i") for line in done.stdout.splitlines()] == [None, 0]


def test_verify_finds_a_difference_and_exits_1(tmp_path, data):
    path = next((data / "vectors" / "v5.0").glob("fault_basic.npt.*"))
    with lzma.open(path, "rt") as stream:
        lines = stream.read().splitlines()
    row = json.loads(lines[3])
    row["ctr"]["flush"] = 7
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join([*lines[:3], json.dumps(row)]) + "\n")
    done = cli("verify", str(bad))
    assert done.returncode == 1
    assert "operation 2 (access) ctr.flush: expected 7, got nothing" in done.stdout
    done = cli("verify", "--json", str(bad))
    assert json.loads(done.stdout)["files"][0]["difference"]["path"] == "ctr.flush"


def test_a_closed_pipe_is_not_an_error():
    command = (
        f"yes '{op(op='dump')}' | head -2000 | {sys.executable} -m kvm_mmu run - --kernel v5.0 | head -1"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    "gpas",
    [
        np.array([1.0]),
        np.array([-4096]),
        np.zeros((2, 2), dtype=np.uint64),
        np.array(["0x1000"]),
        np.array([1 << 64], dtype=object),
        np.uint64(5),
        None,
    ],
)
def test_arrays_of_the_wrong_dtype_or_shape(gpas):
    vm = km.Vm()
    with pytest.raises(km.UsageError, match="gpas has"):
        vm.vcpus[0].access_many(gpas)


def test_arrays_of_other_integers_are_taken():
    vm = km.Vm(family="npt")
    vm.memslots.create(slot=0, gpa=0, size=1 << 20)
    wanted = vm.clone().vcpus[0].access_many(np.arange(4, dtype=np.uint64) * 4096, "w")
    for gpas in (
        [0, 4096, 8192, 12288],
        np.arange(8, dtype=np.int64)[::2] * 2048,
        np.arange(4, dtype=np.uint16) * 4096,
    ):
        got = vm.clone().vcpus[0].access_many(gpas, "w")
        assert got.outcome.tolist() == wanted.outcome.tolist()
        assert got.faults.dtype == np.uint8
        assert got.ret.dtype == np.int32
    assert len(vm.vcpus[0].access_many([]).ret) == 0


@pytest.mark.parametrize(
    ("keywords", "word"),
    [
        ({"kernel": "v1"}, "expected one of"),
        ({"family": "mips"}, "family"),
        ({"phys_bits": 20}, "phys_bits"),
        ({"phys_bits": "46"}, "phys_bits"),
        ({"tdp_level": 3}, "tdp_level"),
        ({"lpage_level": 9}, "lpage_level"),
        ({"vcpus": 0}, "vcpus"),
        ({"vcpus": -1}, "vcpus"),
        ({"events": "some"}, "events"),
        ({"events": -3}, "events"),
        ({"gfn_hash": "md5"}, "hash"),
        ({"plans": {"wrap": "lunch"}}, "lunch"),
        ({"max_memslots": 0}, "max_memslots"),
    ],
)
def test_constructor_arguments(keywords, word):
    with pytest.raises(km.UsageError, match=word):
        km.Vm(**keywords)


def test_calls_with_numbers_out_of_range_raise_and_change_nothing():
    vm = km.Vm(vcpus=1)
    before = vm.digest()
    for call in (
        lambda: vm.core.access(9, 0, "r"),
        lambda: vm.core.access(0, 0, "z"),
        lambda: vm.core.install_slot(3, 0, 0, 0, 1, 0, 0),
        lambda: vm.core.set_host_state(0, 1, "happy"),
        lambda: vm.page(12345).fields,
        lambda: vm.memslots.set_region(slot=-1, gpa=0, size=4096, hva=0),
        lambda: vm.get_dirty_log(5),
        lambda: vm.set_nr_mmu_pages(10),
    ):
        with pytest.raises(km.UsageError):
            call()
    for call in (lambda: vm.core.access(0, 1 << 64, "r"), lambda: vm.core.access(-1, 0, "r")):
        with pytest.raises(OverflowError):
            call()
    assert vm.digest() == before
    assert vm.audit() == []


def config(**values):
    return json.dumps({"scenario": "s", "format": 1, "variant": "v5.0", "config": values, "dump": "all"})


@pytest.mark.parametrize(
    ("stdin", "words"),
    [
        (HEADER + "\n" + op(op="access", gpa=True), ["<stdin>:2", "gpa=True"]),
        (HEADER + "\n" + op(op="access", gpa="4096"), ["<stdin>:2", "'4096'"]),
        (HEADER + "\n" + op(op="access", gpa="0x1_0"), ["<stdin>:2", "'0x1_0'"]),
        (HEADER + "\n" + op(op="access", gpa=1.5), ["<stdin>:2", "gpa=1.5"]),
        (config(vcpus=0), ["<stdin>:1", "vcpus"]),
        (config(phys_bits=99), ["<stdin>:1", "phys_bits"]),
        (config(family="lunch"), ["<stdin>:1", "lunch"]),
        (config(pml=7), ["<stdin>:1", "pml=7", "0 or 1"]),
    ],
)
def test_scenario_values(stdin, words):
    done = cli("run", "-", stdin=stdin + "\n" + op(op="dump"))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize("backend", ["core", "reference"])
def test_operations_too_deep_inside_operations(backend):
    inner = {"op": "dump"}
    for _ in range(40):
        inner = {"op": "lock_break", "cond": 1, "need": 0, "do": [[inner]]}
    done = cli("run", "-", "--backend", backend, stdin=HEADER + "\n" + json.dumps({"op": inner}))
    assert done.returncode == 2
    assert "<stdin>:2" in done.stderr


def test_an_output_that_cannot_be_written():
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m kvm_mmu plans > /dev/full"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (2, "kvm-mmu plans: stdout: No space left on device\n")
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m kvm_mmu plans >&-"], capture_output=True, text=True
    )
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)


def test_compressed_stdin_is_read_as_it_is():
    for packed in (lzma.compress(f"{HEADER}\n{op(op='dump')}\n".encode()), gzip.compress(HEADER.encode())):
        done = subprocess.run(
            [sys.executable, "-m", "kvm_mmu", "run", "-"], input=packed, capture_output=True
        )
        assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "kvm_mmu", "run", "-"], input=b"\x1f\x8bnonsense", capture_output=True
    )
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
