"""Every way in gives the same: a plain trace, .gz, .xz and stdin to each command; numpy, Arrow, polars and pandas of
the reader's tables."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kvm_mmu.cli import main
from kvm_mmu.trace.text.reader import Batch, Trace

BASIC = Path(__file__).resolve().parent.parent / "data" / "traces" / "5.0.1-npt" / "basic"
HOST = ["--host", str(BASIC / "host.json")]
#: A hashed pointer, two words above 2^63, a line not of KVM's MMU.
LINES = """\
 vmm-851   [000] .....  5012.1: mark_mmio_spte: sptep:(____ptrval____) gfn e0000 access 6 gen fffffffffffffffe
 vmm-851   [001] .....  5012.2: mark_mmio_spte: sptep:00000000d1b7b3a2 gfn e0001 access 4 gen 2
 vmm-851   [001] .....  5012.3: check_mmio_spte: spte fff800f8e0000dbf kvm_gen fff6e spte-gen fff6e valid 1
"""
COMMANDS = {
    "summary": ["summary", "FILE", "--json"],
    "decode": ["decode", "FILE", *HOST],
    "stalls": ["stalls", "FILE", "--json"],
    "strip": ["strip", "FILE", *HOST],
    "replay": ["replay", "FILE", *HOST, "--json"],
    "diff": ["diff", "FILE", "--host-a", HOST[1], "--kernel-b", "v5.0-seed", "--json"],
    "chrome": ["export", "FILE", "--chrome", "OUT"],
    "csv": ["export", "FILE", "--csv", "OUT"],
}


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("forms")
    data = lzma.decompress((BASIC / "trace.txt.xz").read_bytes())
    packed = {"txt": data, "gz": gzip.compress(data), "xz": lzma.compress(data)}
    found = {ending: folder / f"t.{ending}" for ending in packed}
    for ending, path in found.items():
        path.write_bytes(packed[ending])
    return found


def _without_names(text: str, path: Path, out: Path) -> str:
    for name in (str(path), "<stdin>", '"-"'):
        text = text.replace(name, '"FILE"' if name == '"-"' else "FILE")
    return text.replace(str(out), "OUT")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_reads_every_form(
    command: str,
    forms: dict[str, Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = {}
    piped = [] if command == "diff" else [(f"- of {form}", path) for form, path in forms.items()]
    for form, path in [*forms.items(), *piped]:
        out = tmp_path / form.replace(" ", "_")
        is_stdin = form.startswith("-")
        words = [
            {"FILE": "-" if is_stdin else str(path), "OUT": str(out)}.get(w, w) for w in COMMANDS[command]
        ]
        with path.open("rb") as stream, monkeypatch.context() as patch:
            if is_stdin:
                patch.setattr("sys.stdin", open(stream.fileno(), closefd=False))  # noqa: SIM115
            status = main(["trace", *words])
        printed = capfd.readouterr().out
        written = out.read_text() if out.is_file() else ""
        if out.is_dir():
            written = "".join(f"{one.name}\n{one.read_text()}" for one in sorted(out.iterdir()))
        said[form] = (status, _without_names(printed, path, out), _without_names(written, path, out))
    assert len(said["txt"][1]) + len(said["txt"][2]) > 100
    assert len(set(said.values())) == 1, [form for form, one in said.items() if one != said["txt"]]


def test_a_difference_is_not_read_from_stdin(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(BASIC / "trace.txt.xz")
    for files in (["-", "--kernel-b", "v5.0-seed"], ["-", path], [path, "-"]):
        assert main(["trace", "diff", *files]) == 2
        assert "from a file, not from stdin" in capsys.readouterr().err


def test_no_folder_is_made_for_a_chrome_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "none" / "x.json"
    assert main(["trace", "export", str(BASIC / "trace.txt.xz"), "--chrome", str(out)]) == 2
    assert f"{out}: no such directory" in capsys.readouterr().err
    assert not out.parent.exists()


def test_the_summary_names_kernels_as_the_options_do(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(BASIC.parent.parent / "5.2.1-npt" / "basic" / "trace.txt.xz")
    assert main(["trace", "summary", path]) == 0
    said = capsys.readouterr().out
    assert "kernel by wording: one of v5.1, v5.2, v5.3 (not told apart by this trace)" in said
    assert "no tracepoint for them in this kernel" in said
    for kernel in ("v5.1", "v5.2", "v5.3"):
        assert main(["trace", "decode", path, "--kernel", kernel]) == 0
        capsys.readouterr()


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    path = tmp_path_factory.mktemp("columns") / "t.txt"
    path.write_text(LINES)
    return Trace(path).read_all()


def test_columns_go_through_the_arrow_stream_as_they_are(batch: Batch) -> None:
    pa = pytest.importorskip("pyarrow")
    marks = batch["mark_mmio_spte"]
    assert marks.__arrow_c_stream__() is not None
    found = pa.table(marks)
    wide = {name: pa.uint64() for name in ("line", "time_ns", "gfn", "access", "gen")}
    assert dict(zip(found.column_names, found.schema.types, strict=True)) == {
        **wide,
        "cpu": pa.uint32(),
        "task": pa.dictionary(pa.int32(), pa.string()),
        "sptep": pa.large_string(),
    }
    _same(batch, lambda table: pa.table(table).to_pydict())
    kinds = pa.table(batch.timeline).schema.field("kind").type
    assert pa.types.is_dictionary(kinds) and pa.types.is_string(kinds.value_type)


def test_polars_reads_the_arrow_stream(batch: Batch) -> None:
    pytest.importorskip("pyarrow")
    pl = pytest.importorskip("polars")
    found = pl.DataFrame(batch["mark_mmio_spte"])
    assert dict(found.schema) == {
        **dict.fromkeys(found.columns, pl.UInt64),
        "cpu": pl.UInt32,
        "task": pl.Categorical,
        "sptep": pl.String,
    }
    _same(batch, lambda table: pl.DataFrame(table).to_dict(as_series=False))


def test_pandas_reads_the_arrow_stream(batch: Batch) -> None:
    pytest.importorskip("pyarrow")
    pd = pytest.importorskip("pandas")
    if not hasattr(pd.DataFrame, "from_arrow"):
        pytest.skip("this pandas reads no Arrow stream")
    found = pd.DataFrame.from_arrow(batch["mark_mmio_spte"])
    assert found["gen"].dtype == np.uint64 and found["cpu"].dtype == np.uint32
    assert pd.api.types.is_string_dtype(found["sptep"])
    _same(batch, lambda table: pd.DataFrame.from_arrow(table).to_dict("list"))


def _same(batch: Batch, columns_of: Any) -> None:
    marks = columns_of(batch["mark_mmio_spte"])
    assert marks["sptep"] == ["(____ptrval____)", "00000000d1b7b3a2"]
    assert marks["gen"] == [0xFFFFFFFFFFFFFFFE, 2] and marks["gfn"] == [0xE0000, 0xE0001]
    assert marks["line"] == [1, 2] and marks["time_ns"] == [5012_100_000_000, 5012_200_000_000]
    assert columns_of(batch["check_mmio_spte"])["spte"] == [0xFFF800F8E0000DBF]
