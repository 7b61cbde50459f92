"""A fleet of recordings: the same bytes whoever reads which file when, the worst first, broken files as rows."""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from random import Random

import kvm_mmu as km
import pytest
from kvm_mmu.cli import main
from kvm_mmu.lab.fleet import find, fleet
from kvm_mmu.trace.analysis.stalls import stalls

SOURCES = {
    "one": ("6.1/npt1tdp0_multi_vcpu", "5.0.1-npt/basic"),
    "two": ("5.0.1-npt/basic",),
    "three": ("6.1/npt1tdp0_multi_vcpu",),
}


@pytest.fixture(scope="module")
def hosts(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three hosts; one has recordings of two kernels, one a file that is no recording and one that is cut."""
    folder = tmp_path_factory.mktemp("fleet")
    for host, names in SOURCES.items():
        for name in names:
            source = root / "tests" / "data" / "traces" / name
            target = folder / host / source.name
            target.mkdir(parents=True)
            for file in ("trace.txt.xz", "host.json"):
                shutil.copy(source / file, target / file)
    (folder / "two" / "notes.txt").write_text("nothing\n")
    whole = (folder / "two" / "basic" / "trace.txt.xz").read_bytes()
    (folder / "two" / "cut.txt.xz").write_bytes(whole[: len(whole) // 2])
    return folder


class Shuffled(Executor):
    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(3)

    def submit(self, fn, /, *args, **kwargs):
        delay = Random(repr(args[1])).random() / 20
        return self.pool.submit(lambda: (time.sleep(delay), fn(*args, **kwargs))[1])

    def shutdown(self, wait=True, *, cancel_futures=False):
        self.pool.shutdown(wait, cancel_futures=cancel_futures)


def test_one_table_whoever_reads_the_files(hosts: Path, root: Path) -> None:
    told: list[str] = []
    found = fleet("stalls", hosts, jobs=1, progress=told.append)
    with Shuffled() as shuffled:
        assert fleet("stalls", hosts, executor=shuffled).as_json() == found.as_json()
    assert [(row["host"], row["kernel"], row["files"]) for row in found.rows] == [
        ("one", "6.1.0-56-amd64", 1),
        ("three", "6.1.0-56-amd64", 1),
        ("one", "5.0.1", 1),
        ("two", "5.0.1", 1),
    ]
    single = stalls(root / "tests" / "data" / "traces" / "6.1" / "npt1tdp0_multi_vcpu" / "trace.txt.xz")
    lengths = sorted(stall.duration_ns for stall in single.stalls)
    assert found.rows[0]["stalled_ns"] == sum(lengths) and found.rows[0]["longest_ns"] == lengths[-1]
    assert found.rows[0]["stalls"] == len(lengths) > 0
    assert [(row["file"], row["host"]) for row in found.broken] == [
        ("two/cut.txt.xz", "two"),
        ("two/notes.txt", "two"),
    ]
    assert "end too early" in found.broken[0]["error"] and "expected ftrace text" in found.broken[1]["error"]
    assert len(told) == found.files == 6 and told[-1].startswith("6 of 6 files, ")
    assert max(map(len, found.as_text().splitlines())) <= 80


def test_a_summary_adds_up_the_files_of_a_host(hosts: Path) -> None:
    found = fleet("summary", str(hosts / "*" / "*" / "trace*"), jobs=1)
    assert not found.broken and found.rows[0]["pages_zapped"] >= found.rows[-1]["pages_zapped"] > 0
    one, two = (next(row for row in found.rows if row["host"] == host) for host in ("one", "two"))
    assert one["lines"] != two["lines"] and one["not_understood"] == 0
    by_lines = fleet("summary", hosts, sort="lines", jobs=1)
    counts = [row["lines"] for row in by_lines.rows]
    assert counts == sorted(counts, reverse=True)


def test_the_host_says_its_name(hosts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "x"
    shutil.copytree(hosts / "two" / "basic", folder / "y")
    facts = json.loads((folder / "y" / "host.json").read_text())
    (folder / "y" / "host.json").write_text(json.dumps({**facts, "hostname": "db7"}))
    assert [(file.host, file.name) for file in find(str(folder))] == [("db7", "y/trace.txt.xz")]


def test_what_is_no_fleet_is_refused(hosts: Path, tmp_path: Path) -> None:
    for bad, said in (
        ({"what": "decode", "where": hosts}, "expected one of stalls, summary"),
        ({"what": "stalls", "where": tmp_path}, "no recordings"),
        ({"what": "stalls", "where": str(tmp_path / "*.xz")}, "no recordings"),
        ({"what": "stalls", "where": hosts, "sort": "noise"}, "expected one of stalled_ns"),
    ):
        with pytest.raises(km.UsageError, match=said):
            fleet(**bad)


def test_the_command(hosts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = "concurrent.futures:ThreadPoolExecutor"
    assert main(["trace", "stalls", str(hosts), "--executor", pool]) == 1
    assert "6 files, 2 of them cannot be read" in capsys.readouterr().out
    assert main(["trace", "stalls", str(hosts), "--cpu", "1"]) == 2
    assert "a fleet is read whole" in capsys.readouterr().err
    assert main(["trace", "stalls", str(hosts / "two" / "notes.txt"), "--executor", pool]) == 2
    assert "expected a folder of recordings" in capsys.readouterr().err
