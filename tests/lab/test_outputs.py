"""What an output may be, for every writer: replaced whole, followed, written through, refused; two runs do not mix."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from kvm_mmu.cli import main
from kvm_mmu.errors import UsageError
from kvm_mmu.lab.compare import compare
from kvm_mmu.trace.analysis.export import export_csv, export_parquet
from kvm_mmu.trace.text.reader import Trace
from kvm_mmu.view import whole_file
from kvm_mmu.view.out_folder import OutFolder, write_all
from kvm_mmu.view.whole_file import write_files, write_whole

BASIC = Path(__file__).parents[1] / "data" / "traces" / "5.0.1-npt" / "basic"
TRACE = str(BASIC / "trace.txt.xz")
EXPORT = ["trace", "export", TRACE]
MAIN = [sys.executable, "-m", "kvm_mmu"]


def export(out: Path | str) -> int:
    return main([*EXPORT, "--chrome", str(out)])


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*")]


def test_a_regular_file_is_replaced_with_its_mode(tmp_path: Path) -> None:
    out = tmp_path / "c.json"
    out.write_text("old")
    out.chmod(0o640)
    assert export(out) == 0
    assert json.loads(out.read_text())["traceEvents"]
    assert stat.S_IMODE(out.stat().st_mode) == 0o640 and hidden(tmp_path) == []


def test_a_new_file_has_the_mode_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "new", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


def test_symbolic_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    target, link, dangling = tmp_path / "deep" / "target", tmp_path / "link", tmp_path / "dangling"
    target.write_text("old")
    link.symlink_to(target)
    dangling.symlink_to(tmp_path / "deep" / "absent")
    (tmp_path / "second").symlink_to(link)
    for name in ("second", "dangling"):
        assert export(tmp_path / name) == 0
        assert (tmp_path / name).is_symlink()
    assert json.loads(target.read_text()) == json.loads((tmp_path / "deep" / "absent").read_text())
    (tmp_path / "round").symlink_to(tmp_path / "round")
    with pytest.raises(UsageError, match="round: Too many levels of symbolic links"):
        write_whole(tmp_path / "round", "x")


def test_a_fifo_is_written_through(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(fifo.read_text()), daemon=True)
    reader.start()
    assert export(fifo) == 0
    reader.join(60)
    assert json.loads(read[0])["traceEvents"]
    assert stat.S_ISFIFO(fifo.stat().st_mode)


def test_devices_are_written_through(capsys: pytest.CaptureFixture[str]) -> None:
    before = Path("/dev/null").stat()
    assert export("/dev/null") == 0
    after = Path("/dev/null").stat()
    assert stat.S_ISCHR(after.st_mode) and (before.st_ino, before.st_rdev) == (after.st_ino, after.st_rdev)
    capsys.readouterr()
    assert export("/dev/full") == 2
    assert capsys.readouterr().err == "kvm-mmu trace export: /dev/full: No space left on device\n"


@pytest.mark.parametrize("out", ["-", "/dev/stdout", "/dev/fd/1"])
def test_stdout_gets_the_document_alone(out: str, tmp_path: Path) -> None:
    done = subprocess.run([*MAIN, *EXPORT, "--chrome", out], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["traceEvents"] and done.stderr == ""
    with (tmp_path / "file").open("w") as stream:
        subprocess.run([*MAIN, *EXPORT, "--chrome", out], stdout=stream, check=True)
    assert (tmp_path / "file").read_text() == done.stdout


def test_stdout_is_full_or_gone() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*MAIN, *EXPORT, "--chrome", "-"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "stdout: No space left on device" in done.stderr
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*MAIN, *EXPORT, "--chrome", "-"], stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_refused_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.json").mkdir()
    (tmp_path / "file").write_text("keep")
    compared = ["compare", TRACE, "--plan", "seed", "-o"]
    for words, said in {
        (*EXPORT, "--chrome", ""): "output '': expected the name of a file, or - for stdout",
        (*EXPORT, "--chrome", "d.json"): "output d.json: is a folder; expected the name of a file",
        (*EXPORT, "--chrome", "new/"): "output new/: expected the name of a file",
        (*EXPORT, "--chrome", "file/x"): "file/x: Not a directory",
        (*EXPORT, "--chrome", "-", "--json"): "--json lists files on stdout, and --chrome writes there",
        (*EXPORT, "--csv", ""): "folder '': expected the name of a folder",
        (*EXPORT, "--csv", "-"): "folder -: expected the name of a folder",
        (*EXPORT, "--csv", "file"): "file: cannot be a folder for results: File exists",
        (*compared, ""): "folder '': expected the name of a folder",
        (*compared, "file/x"): "file/x: cannot be a folder for results: Not a directory",
        ("demo", "-o", "-"): "folder -: expected the name of a folder",
    }.items():
        assert main(words) == 2, words
        err = capsys.readouterr().err
        assert said in err and len(err.splitlines()) == 1, (words, err)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["d.json", "file"]
    assert (tmp_path / "file").read_text() == "keep"


def test_nothing_changes_when_one_file_of_a_set_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    (tmp_path / "b").mkdir()
    with pytest.raises(UsageError, match="b: is a folder"):
        write_all(tmp_path, {"a": "new", "b": "new"})

    def fails(_stream: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UsageError, match=r"c: No space left on device"):
        write_files([(tmp_path / "a", "new"), (tmp_path / "c", fails)])
    assert (tmp_path / "a").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_full_disk_is_one_line(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    put = whole_file._put
    calls: list[str] = []

    def full(content: whole_file.Content, stream: io.BufferedWriter) -> None:
        calls.append("")
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        put(content, stream)

    monkeypatch.setattr(whole_file, "_put", full)
    out = tmp_path / "new" / "folder"
    assert main([*EXPORT, f"--{kind}", str(out)]) == 2
    err = capsys.readouterr().err
    assert "No space left on device" in err and len(err.splitlines()) == 1 and str(out) in err
    assert list(tmp_path.iterdir()) == []


def test_the_writers_of_parquet_touch_no_disk_of_their_own(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "events.parquet").symlink_to("/dev/full")
    with pytest.raises(UsageError, match=r"events.parquet: No space left on device"):
        export_parquet(TRACE, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["events.parquet"]


def test_csv_needs_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pyarrow", "polars", "pandas"):
        monkeypatch.setitem(sys.modules, name, None)
    written = {path.stem: path for path in export_csv(TRACE, tmp_path)}
    batch = Trace(TRACE).read_all()
    assert set(batch.tables) | {"events"} == set(written)
    for name, table in [("events", batch.timeline), *batch.tables.items()]:
        with written[name].open(newline="") as stream:
            rows = list(csv.reader(stream))
        assert rows[0] == list(table) and len(rows) == len(table) + 1
        column = next(c for c in table if not table.names(c))
        assert [row[rows[0].index(column)] for row in rows[1:]] == [str(v) for v in table[column].tolist()]
    with written["events"].open(newline="") as stream:
        assert {row["kind"] for row in csv.DictReader(stream)} <= {*batch.timeline.names("kind"), "(other)"}


def test_an_unreadable_trace_leaves_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "export", str(tmp_path / "none"), "--csv", str(tmp_path / "out")]) == 2
    assert "none" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_two_runs_do_not_write_into_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compared = ["compare", TRACE, "--plan", "seed", "--at", "wrap", "-o", str(tmp_path)]
    with OutFolder(tmp_path) as folder:
        for words in (compared, ["demo", "-o", str(tmp_path)], [*EXPORT, "--csv", str(tmp_path)]):
            assert main(words) == 2
            err = capsys.readouterr().err
            assert f"{tmp_path}: another run is writing there" in err and len(err.splitlines()) == 1
        assert list(tmp_path.iterdir()) == []
        found = compare([TRACE], ["seed"], at="wrap")
        with pytest.raises(UsageError, match="another run"):
            found.write(tmp_path)
        assert len(found.write(folder)) == 4
    assert len(found.write(tmp_path)) == 4


def test_a_folder_that_goes_while_it_is_claimed(tmp_path: Path) -> None:
    """The first run fails and removes the folder that it made; the second makes it anew."""
    first = OutFolder(tmp_path / "a" / "b")
    with pytest.raises(UsageError, match="another run"):
        OutFolder(tmp_path / "a" / "b")
    first.close(failed=True)
    assert list(tmp_path.iterdir()) == []
    with OutFolder(tmp_path / "a" / "b") as second:
        second.write({"x": "1"})
    assert (tmp_path / "a" / "b" / "x").read_text() == "1"


def test_a_killed_run_leaves_nothing_that_stays(tmp_path: Path) -> None:
    code = (
        "import sys, signal\n"
        "from kvm_mmu.view.out_folder import OutFolder\n"
        "def wait(stream):\n"
        "    stream.write(b'half'); stream.flush(); print('there', flush=True); signal.pause()\n"
        "OutFolder(sys.argv[1]).write({'a': wait})\n"
    )
    (tmp_path / "a").write_text("old")
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "there\n"
    parts = hidden(tmp_path)
    assert len(parts) == 1
    write_whole(tmp_path / "b", "beside a living run")
    assert hidden(tmp_path) == parts
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert hidden(tmp_path) == parts and (tmp_path / "a").read_text() == "old"
    (tmp_path / ".kvm-mmu-of-the-user.part").write_text("keep")
    with OutFolder(tmp_path) as folder:
        assert hidden(tmp_path) == [".kvm-mmu-of-the-user.part"]
        folder.write({"a": "new"})
    assert (tmp_path / "a").read_text() == "new"
