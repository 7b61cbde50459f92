"""What reads a trace more than once, in step with its operations, and pairs two streams: same result, little memory."""

from __future__ import annotations

import lzma
import os
import subprocess
import sys
from pathlib import Path

import pytest
from kvm_mmu.errors import TraceError
from kvm_mmu.trace.replay import comparing, stripping
from kvm_mmu.trace.replay.comparing import Comparison, surroundings
from kvm_mmu.trace.replay.narrator import Prediction
from kvm_mmu.trace.replay.operations import KnownOperations, OperationsFile
from kvm_mmu.trace.replay.stripping import Kept, Recorded, strip, strip_lines
from kvm_mmu.trace.text.source import Copy, iter_lines, read_lines, readable_again
from kvm_mmu.trace.text.spte_words import words_of

TRACES = Path(__file__).resolve().parent.parent / "data" / "traces"
PREFIX = "             vmm-851   [000] .....  5012.1: "
FACTS = {"kernel": "6.1", "mmu": "npt"}
KVM_MMU = [sys.executable, "-m", "kvm_mmu", "trace"]


def run(arguments: list[str], data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*KVM_MMU, *arguments], input=data, capture_output=True, check=False)


@pytest.mark.parametrize("name", ["6.1/npt1tdp0_smm", "5.0.1-npt/basic"])
def test_stdin_and_pipes_are_as_good_as_the_file(name: str, tmp_path: Path):
    folder = TRACES / name
    host = ["--host", str(folder / "host.json")]
    ops = ["--ops", str(folder / "ops.jsonl.xz")] if name[0] == "6" else []
    packed = (folder / "trace.txt.xz").read_bytes()
    for command in (["strip"], ["replay", "--emit"]):
        expected = run([*command, str(folder / "trace.txt.xz"), *host, *ops])
        assert expected.returncode == 0 and expected.stdout
        assert run([*command, "-", *host, *ops], packed).stdout == expected.stdout
        assert run([*command, "/dev/stdin", *host, *ops], packed).stdout == expected.stdout
    with_ops_on_stdin = run(
        ["strip", str(folder / "trace.txt.xz"), *host, "--ops", "-"], (folder / "ops.jsonl.xz").read_bytes()
    )
    if ops:
        assert with_ops_on_stdin.stdout == run(["strip", str(folder / "trace.txt.xz"), *host, *ops]).stdout


def test_the_copy_of_a_pipe_keeps_its_name_and_goes(tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = subprocess.Popen(["sh", "-c", f'printf "a\\nb\\n" > "{pipe}"'])
    with readable_again(pipe) as source:
        assert isinstance(source, Copy) and source.name == str(pipe) and source.path.exists()
        assert list(iter_lines(source)) == ["a", "b"] == list(iter_lines(source))
    writer.wait()
    assert not source.path.exists()
    with readable_again(tmp_path / "file") as same:
        assert same == tmp_path / "file"


def test_lines_end_at_a_line_feed_only(tmp_path: Path):
    (tmp_path / "t").write_bytes("a\x0bb\x0cc\x1cd\x85e\u2028f\rg\r\nh\r\r\n\n".encode())
    assert read_lines(tmp_path / "t") == ["a\x0bb\x0cc\x1cd\x85e\u2028f\rg", "h\r", ""]


def test_lines_however_they_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("kvm_mmu.trace.text.source.LINE_MAX", 16)
    data = b"abc\n\n\r\nd\r\n" + b"x" * 16 + b"\n" + b"y" * 17 + b"\n\xff\xe2\x82\n" + b"z" * 99
    expected = ["abc", "", "", "d", "x" * 16, "y" * 16, "\ufffd\ufffd", "z" * 16]
    for size in (1, 3, 7, 16):
        parts = [data[i : i + size] for i in range(0, len(data), size)]
        monkeypatch.setattr("kvm_mmu.trace.text.source.iter_chunks", lambda _path, found=parts: iter(found))
        assert [text.split(" ... (cut")[0] for text in iter_lines("t")] == expected


# -- xz
# ---------------------------------------------------------------------------------------------------


def test_xz_streams_one_behind_the_other(tmp_path: Path):
    path = tmp_path / "t.xz"
    path.write_bytes(lzma.compress(b"a\n") + b"\0" * 8 + lzma.compress(b"b\n" * 70000) + b"\0" * 4)
    assert read_lines(path) == ["a", *["b"] * 70000]


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        (b"junk" * 8, "damaged"),
        (lzma.compress(b"b")[:20], "end too early"),
        (b"\0" * 4 + b"junk" * 8, "damaged"),
    ],
)
def test_what_stands_behind_an_xz_stream_is_read_or_an_error(tmp_path: Path, tail: bytes, message: str):
    (tmp_path / "t.xz").write_bytes(lzma.compress(b"a\n") + tail)
    with pytest.raises(TraceError, match=f"after line 1: .*{message}"):
        read_lines(tmp_path / "t.xz")


def test_an_xz_that_asks_for_a_huge_window_is_refused(tmp_path: Path):
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 20}]
    packed = bytearray(lzma.compress(b"a\n", filters=filters))
    at = packed.index(b"\x21\x01", 12)  # the filter's id and the length of its properties
    packed[at + 2] = 40  # 4 GiB - 1
    size = (packed[12] + 1) * 4
    packed[12 + size - 4 : 12 + size] = _crc32(bytes(packed[12 : 12 + size - 4]))
    (tmp_path / "t.xz").write_bytes(packed)
    with pytest.raises(TraceError, match=r"would need more than 256 MiB"):
        read_lines(tmp_path / "t.xz")


def _crc32(data: bytes) -> bytes:
    import zlib

    return zlib.crc32(data).to_bytes(4, "little")


# -- operations in step
# ---------------------------------------------------------------------------------------------------


def operations(path: Path, numbers: list[int]) -> Path:
    path.write_text("".join(f'{{"i":{i},"op":"x{i}"}}\n' for i in numbers))
    return path


@pytest.mark.parametrize(
    ("known", "asked"),
    [
        ([0, 1, 2, 5, 6, 9], [1, 3, 5, 9]),
        ([3, 4], [0, 4, 7]),
        ([0], [0, 0]),
        (list(range(50)), [10, 11, 30, 49, 60]),
    ],
)
def test_a_file_of_operations_says_what_a_mapping_says(tmp_path: Path, known: list[int], asked: list[int]):
    path = operations(tmp_path / "ops.jsonl", known)
    in_step = OperationsFile(path)
    in_memory = KnownOperations(stripping.read_operations(path))
    for number in sorted(set(asked)):
        mine, theirs = in_step.upto(number), in_memory.upto(number)
        assert (None if mine is None else list(mine)) == (None if theirs is None else list(theirs))


def test_operations_that_do_not_ascend_are_refused(tmp_path: Path):
    found = OperationsFile(operations(tmp_path / "ops.jsonl", [0, 5, 3]))
    with pytest.raises(TraceError, match=r"ops\.jsonl:3: operation 3 after operation 5"):
        found.upto(9)
    with pytest.raises(TraceError, match="no operation found"):
        OperationsFile(operations(tmp_path / "none.jsonl", []))


def test_a_far_operation_costs_no_more_than_a_near_one():
    far = KnownOperations({0: "a", 10**14: "b"})
    assert [list(found or []) for found in (far.upto(0), far.upto(10**14))] == [["a"], ["b"]]


# -- answers, pairing
# ---------------------------------------------------------------------------------------------------


def test_an_answer_is_looked_for_within_a_bound(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stripping, "_ANSWER_WITHIN", 3)
    ask = f"{PREFIX}kvm_mmu_spte_requested: gfn 10 pfn 20 level 1"
    other, leaf = f"{PREFIX}kvm_exit: x", f"{PREFIX}kvm_mmu_set_spte: gfn 11 spte 805 (r-x) level 1 at 8"
    items = strip_lines([ask, other, leaf, other, other, leaf], FACTS, None, answers=True,
                        outputs=frozenset({"kvm_mmu_set_spte"}))  # fmt: skip
    said = [(item.text.removeprefix(PREFIX), item.origin) for item in items if isinstance(item, Kept)]
    answer = ("replay_host_answer: set 0 writable 1 found 11", 0)
    assert said[1:] == [(ask.removeprefix(PREFIX), 1), answer, *(("kvm_exit: x", n) for n in (2, 4, 5))]


def test_an_answer_that_never_ends_is_given_at_the_end():
    lines = [f"{PREFIX}kvm_mmu_spte_requested: gfn 10 pfn 20 level 1", f"{PREFIX}kvm_exit: x"]
    done = strip(lines, FACTS, answers=True)
    assert done.origin == [0, 1, 0, 2] and done.lines[2].endswith("set 0 writable 1 found -")


def output(line: int, text: str) -> Recorded:
    return Recorded(line, "commit_zap", text)


def predicted(line: int, text: str, event: str = "commit_zap") -> Prediction:
    return Prediction(line, event, text)


def comparison() -> Comparison:
    return Comparison(words_of({"kernel": "6.1"}), frozenset({"commit_zap"}))


@pytest.mark.parametrize("order", ["recorded first", "predicted first", "in turn"])
@pytest.mark.parametrize("length", [(3, 3), (3, 2), (2, 3)])
def test_pairs_do_not_depend_on_who_comes_first(order: str, length: tuple[int, int]):
    found = comparison()
    theirs = [lambda n=n: found.add_recorded(output(n, f"x{n}")) for n in range(length[0])]
    mine = [lambda n=n: found.add_predicted(predicted(n, f"x{n}")) for n in range(length[1])]
    match order:
        case "recorded first":
            calls = theirs + mine
        case "predicted first":
            calls = mine + theirs
        case _:
            calls = [call for pair in zip(theirs, mine, strict=False) for call in pair]
            calls += theirs[len(mine) :] + mine[len(theirs) :]
    for call in calls:
        call()
    found.add_predicted(predicted(9, "not switched on", "invalidate_mmio"))
    found.finish()
    assert found.agreed == min(length) and found.recorded.total() == length[0]
    if length[0] == length[1]:
        assert found.divergence is None
    else:
        assert found.divergence is not None and found.divergence.agreed == 2
        assert (found.divergence.recorded is None, found.divergence.predicted is None) == (
            length[0] < length[1], length[1] < length[0],
        )  # fmt: skip


def test_what_parts_is_said_once_and_the_rest_is_counted():
    found = comparison()
    for line, (theirs, mine) in enumerate([("a", "a"), ("b", "c"), ("d", "d")], 1):
        found.add_predicted(predicted(line, mine))
        found.add_recorded(output(line, theirs))
    found.finish()
    assert found.divergence is not None and found.recorded == {"commit_zap": 3}
    assert found.divergence.agreed == 1 == found.agreed
    assert (found.divergence.recorded, found.divergence.predicted) == (output(2, "b"), predicted(2, "c"))


def test_one_side_waits_for_the_other_within_a_bound(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(comparing, "WAITS_MAX", 10)
    found = comparison()
    for line in range(11):
        found.add_recorded(output(line, "x"))
    assert found.divergence is not None and found.divergence.recorded == output(0, "x")
    burst = comparison()
    for _ in range(50):  # one operation says it all at once
        burst.add_predicted(predicted(1, "x"))
    assert burst.divergence is None
    for line in range(2, 13):
        burst.add_predicted(predicted(line, "x"))
    assert burst.divergence is not None and burst.divergence.predicted == predicted(1, "x")


def test_surroundings_are_six_lines_each_way():
    lines = [f"line {n}" for n in range(1, 31)]
    assert surroundings(lines, 10) == [f"{n}: line {n}" for n in range(4, 17)]
    assert surroundings(lines, 2)[0] == "1: line 1" and surroundings(lines, 30)[-1] == "30: line 30"


def test_errors_name_the_line_of_the_recording(tmp_path: Path):
    folder = TRACES / "6.1/npt1tdp0_smm"
    (tmp_path / "host.json").write_text((folder / "host.json").read_text())
    lines = read_lines(folder / "trace.txt.xz")
    (tmp_path / "trace.txt").write_text("\n".join([*lines[:400], "CPU:0 [LOST 42 EVENTS]", *lines[400:]]))
    done = run(["replay", str(tmp_path / "trace.txt")])
    assert (
        done.returncode == 2 and b"trace.txt:401: events were lost here (42): not replayable" in done.stderr
    )


def test_leaves_are_alike_but_for_their_frames():
    found = Comparison(words_of({"kernel": "v6.12"}), frozenset({"kvm_mmu_set_spte"}))
    leaf = "gfn 100 spte {} ({}) level {} at {}"
    theirs = leaf.format("8000000102597a21", "r-x-", 1, "160109008")
    for number, (value, access, level, place) in enumerate(
        [
            ("8000000000001a21", "r-x-", 1, "1008"),
            ("102597a21", "r-x-", 1, "1008"),
            ("8000000000001a23", "r-x-", 1, "8"),
        ]
    ):
        mine = leaf.format(value, access, level, place)
        assert found._is_alike("kvm_mmu_set_spte", theirs, "kvm_mmu_set_spte", mine) == (number == 0), mine
    for other in (
        theirs.replace("level 1", "level 2"),
        theirs.replace("r-x-", "rwx-"),
        theirs.replace("gfn 100", "gfn 101"),
    ):
        assert not found._is_alike("kvm_mmu_set_spte", theirs, "kvm_mmu_set_spte", other)
