"""Sweeps: one table whoever computes it, nothing lost when a run is killed, failures as rows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from random import Random

import kvm_mmu as km
import pyarrow.parquet
import pytest
from kvm_mmu.lab.named_workloads import WORKLOADS, named_workload
from kvm_mmu.lab.sweep.cells import ROW

GRID = {
    "plans": ["own", "v6.12-slot"],
    "kernels": ["v5.2", "v6.12"],
    "pages": ["64", "0.05x"],
    "mmio": [0.0, 0.1],
    "seeds": 2,
}
FILES = ("sweep.jsonl", "sweep.csv", "sweep.parquet")


def bytes_of(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in FILES]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table as this process computes it, cell by cell."""
    folder = tmp_path_factory.mktemp("alone")
    found = km.sweep(["boot", "churn"], **GRID, jobs=1, out=folder)
    assert len(found) == 2 * 2 * 2 * 2 * 2 * 2 and not found.failed
    return folder


class Shuffled(Executor):
    """Computes when somebody waits, in an order of its own."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(2)

    def submit(self, fn, /, *args, **kwargs):
        delay = Random(repr(args[0])).random() / 50
        return self.pool.submit(lambda: (time.sleep(delay), fn(*args, **kwargs))[1])

    def shutdown(self, wait=True, *, cancel_futures=False):
        self.pool.shutdown(wait, cancel_futures=cancel_futures)


def test_any_executor_gives_the_same_bytes(alone: Path, tmp_path: Path) -> None:
    with Shuffled() as shuffled:
        km.sweep(["boot", "churn"], **GRID, executor=shuffled, out=tmp_path / "shuffled")
    km.sweep(["boot", "churn"], **GRID, executor="processes", jobs=2, out=tmp_path / "processes")
    assert bytes_of(tmp_path / "shuffled") == bytes_of(alone)
    assert bytes_of(tmp_path / "processes") == bytes_of(alone)


def test_loky_gives_the_same_bytes(alone: Path, tmp_path: Path) -> None:
    from joblib.externals import loky

    pool = loky.ProcessPoolExecutor(max_workers=2)
    try:
        km.sweep(["boot", "churn"], **GRID, executor=pool, out=tmp_path)
    finally:
        pool.shutdown(wait=True)
    assert bytes_of(tmp_path) == bytes_of(alone)


def test_a_cluster_that_loses_a_worker_gives_the_same_bytes(alone: Path, tmp_path: Path) -> None:
    """Two workers of Dask, in a process of its own; one is killed when the first rows are there."""
    code = """
import os, signal, sys, threading, time
from distributed import Client, LocalCluster
import kvm_mmu as km

GRID, out = eval(sys.argv[1]), sys.argv[2]
if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        workers = [worker.process.pid for worker in cluster.workers.values()]
        killed = []

        def told(text):
            if not killed:
                killed.append(workers[0])
                os.kill(workers[0], signal.SIGKILL)

        address = cluster.scheduler_address.removeprefix("tcp://")
        found = km.sweep(["boot", "churn"], **GRID, executor="dask://" + address, out=out, progress=told)
        assert killed and not found.failed
"""
    script = tmp_path / "cluster.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script), repr(GRID), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert bytes_of(tmp_path / "out") == bytes_of(alone)


def test_a_killed_run_loses_no_finished_cell(alone: Path, tmp_path: Path) -> None:
    """What is on disk after any number of bytes is gone on with, and only what is missing is computed."""
    whole = (alone / "sweep.jsonl").read_bytes()
    for cut in (0, 1, len(whole) // 3, len(whole) // 2, len(whole) - 1, len(whole)):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / "sweep.jsonl").write_bytes(whole[:cut])
        counted: list[str] = []

        def told(text: str, counted: list[str] = counted) -> None:
            counted.append(text)

        km.sweep(["boot", "churn"], **GRID, jobs=1, out=folder, resume=True, progress=told)
        missing = 64 - whole[:cut].count(b"\n")
        assert (int(counted[-1].split(" of ")[1].split(" ")[0]) if counted else 0) == missing
        assert bytes_of(folder) == bytes_of(alone)


def test_a_run_that_is_killed_in_the_middle_is_gone_on_with(tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "kvm_mmu",
        "sweep",
        "boot",
        "--pages",
        "4k",
        "--seeds",
        "40",
        "--jobs",
        "1",
    ]
    child = subprocess.Popen(
        [*words, "-o", str(tmp_path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    table = tmp_path / "sweep.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (table.exists() and table.read_bytes().count(b"\n") >= 2):
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    kept = table.read_bytes().count(b"\n")
    assert 2 <= kept <= 40
    refused = subprocess.run([*words, "-o", str(tmp_path)], capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "a sweep is there already" in refused.stderr
    assert table.read_bytes().count(b"\n") == kept
    words[words.index("40")] = str(kept + 1)
    done = subprocess.run(
        [*words, "-o", str(tmp_path), "--resume", "--json"], capture_output=True, check=True
    )
    assert len(json.loads(done.stdout)["rows"]) == kept + 1


def test_a_cell_that_fails_is_a_row_with_its_error() -> None:
    def broken(vm: km.Vm) -> None:
        raise RuntimeError("no such page")

    found = km.sweep(["boot"], ["own", broken], pages=["64"], jobs=1)
    good, bad = found.rows
    assert good["error"] == "" and good["outcome"] == "done"
    assert bad["outcome"] == "failed" and "no such page" in bad["error"] and bad["pages_zapped"] is None
    assert tuple(bad) == ROW
    assert "failed, 1 cells" in str(found)


class Dead(Executor):
    def submit(self, fn, /, *args, **kwargs):
        future: Future[object] = Future()
        future.set_exception(BrokenProcessPool("a process was terminated"))
        return future


def test_a_dead_executor_is_said_and_nothing_is_lost(alone: Path, tmp_path: Path) -> None:
    half = b"".join((alone / "sweep.jsonl").read_bytes().splitlines(keepends=True)[:10])
    (tmp_path / "sweep.jsonl").write_bytes(half)
    with pytest.raises(km.KvmMmuError, match=r"the executor died after 0 of 54 cells .*go on with --resume"):
        km.sweep(["boot", "churn"], **GRID, executor=Dead(), out=tmp_path, resume=True)
    assert (tmp_path / "sweep.jsonl").read_bytes() == half


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"pages": ["10q"]}, "expected a number as 10k, or a share"),
        ({"pages": ["0"]}, "expected a number as 10k"),
        ({"mmio": [2]}, "MMIO share 2: expected 0 to 1"),
        ({"kernels": ["v9"]}, "v9"),
        ({"seeds": 0}, "seeds"),
        ({"vcpus": [0]}, "vcpus"),
        ({"plans": []}, "no plan to sweep"),
        ({"plans": ["v6.12-slot"], "at": "wrap"}, "a wrap has no slot"),
        ({"at": "noon"}, "event 'noon'"),
        ({"executor": "nowhere"}, "expected processes, dask://HOST:PORT or module:object"),
        ({"executor": "no.such:thing"}, "ModuleNotFoundError"),
        ({"executor": "os:getcwd"}, "expected a concurrent.futures.Executor, found str"),
        ({"executor": 3}, "expected a concurrent.futures.Executor or its name"),
        ({"jobs": 0}, "jobs 0"),
        ({"resume": True}, "expected the folder of the sweep"),
    ],
)
def test_what_is_not_an_axis_is_refused_before_anything_runs(more: dict[str, object], said: str) -> None:
    with pytest.raises(km.UsageError, match=said.replace("(", r"\(")):
        km.sweep(["boot"], **{"pages": ["64"], **more})


def test_files_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(km.UsageError, match="nosuch: No such file"):
        km.sweep(["nosuch"])
    (tmp_path / "sweep.jsonl").write_text("{}\n")
    with pytest.raises(km.UsageError, match=r"sweep.jsonl:1: expected a row of a sweep"):
        km.sweep(["boot"], pages=["64"], jobs=1, out=tmp_path, resume=True)


def test_a_file_is_an_input_and_known_by_its_content(tmp_path: Path, root: Path) -> None:
    source = root / "tests" / "data" / "scenarios" / "restart_witness.jsonl"
    copy = tmp_path / "restart_witness.jsonl"
    copy.write_bytes(source.read_bytes())
    args = {
        "plans": ["seed", "merged"],
        "kernels": ["v5.0", "v5.2"],
        "at": "wrap",
        "pages": ["2x"],
        "jobs": 1,
    }
    one, other = (km.sweep([path], **args) for path in (source, copy))
    assert [row["cell"] for row in one.rows] == [row["cell"] for row in other.rows]
    assert len(one) == 4 and not one.failed
    with pytest.raises(km.UsageError, match="vcpus vary in workloads by name only"):
        km.sweep([source], vcpus=[2])


def test_every_workload_gets_through_and_its_event_costs_it_something() -> None:
    for name in WORKLOADS:
        for kernel in ("v5.0", "v6.12"):
            made = named_workload(name, pages=256, mmio_share=0.05, vcpus=3, kernel=kernel)
            vm = made.vm.clone()
            before = vm.work["faults"]
            for batch in made.touches:
                vm.vcpus[batch.vcpu].access_many(batch.gpas, batch.kind)
            assert vm.work["faults"] - before <= sum(batch.gpas.size for batch in made.touches)
            assert made.population().pages > 200 and made.removed is not None
        row = km.sweep([name], ["v5.4-fast"], pages=["256"], mmio=[0.05], jobs=1).rows[0]
        assert row["sound"] == "yes" and row["tables_rebuilt"] > 0


def test_files_hold_the_same_table(alone: Path) -> None:
    rows = [json.loads(line) for line in (alone / "sweep.jsonl").read_text().splitlines()]
    table = pyarrow.parquet.read_table(alone / "sweep.parquet")
    assert table.column_names == list(ROW)
    assert table.to_pylist() == rows
    assert len((alone / "sweep.csv").read_text().splitlines()) == 65


def test_the_curve_of_the_field() -> None:
    """What others lose to the removal of a small slot: everything since 5.3, nothing in 5.2."""
    found = km.curve("slot-removal", values=["256", "512"], kernels=["v5.0", "v5.2", "v5.3", "v6.12"], jobs=1)
    assert list(found.points) == ["v5.0", "v5.2", "v5.3", "v6.12", "v6.12-quirk-off"]
    for kernel, points in found.points.items():
        lost = [value for _, value in points]
        assert lost == ([0, 0] if kernel in ("v5.2", "v6.12-quirk-off") else [2048, 4096]), kernel
    assert found.families()[0][0] == ["v5.0", "v5.3", "v6.12"]
    for over, values in (("mmio", ["1%", "10%"]), ("vcpus", ["1", "4"])):
        other = km.curve("wrap", over=over, values=values, kernels=["v5.0-seed", "v6.12"], jobs=1)
        assert all(len(points) == 2 for points in other.points.values())
    for wrong in ({"event": "noon"}, {"of": "x"}, {"over": "x"}, {"event": "wrap", "of": "lost"}):
        with pytest.raises(km.UsageError):
            km.curve(**{"event": "slot-removal", **wrong})
    with pytest.raises(km.UsageError, match="expected a number"):
        km.curve(over="mmio", values=["a"], kernels=["v5.0"])


def test_the_commands_print_tables_that_fit(tmp_path: Path) -> None:
    def command(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "kvm_mmu", *words], capture_output=True, text=True, check=True
        )
        assert max(map(len, done.stdout.splitlines())) <= 80
        return done.stdout

    shown = command(
        *"sweep boot --plans own,merged,v5.4-fast --kernels v5.2,6.12.94 --pages 64 --mmio 10% --jobs 1".split()
    )
    assert "faults again" in shown and "v6.12.0" in shown
    assert "virtio-mem" in command("sweep", "--list")
    drawn = command(
        *"curve slot-removal --values 64,128 --kernels v5.2,v6.12 --jobs 1".split(), "-o", str(tmp_path)
    )
    assert "guest entries that others lost" in drawn
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curve.csv", "curve.svg", "report.html"]
