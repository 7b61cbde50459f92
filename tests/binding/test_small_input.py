"""A small input costs little, whatever is in it: lines, archives, endless devices, values in messages, digests."""

from __future__ import annotations

import json
import lzma
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kvm_mmu.errors import KvmMmuError, ScenarioError
from kvm_mmu.scenario import scenario_text
from kvm_mmu.scenario.language import Scenario, has_digest, read_scenario, run_scenario
from kvm_mmu.scenario.verify import verify_file

TRACE = Path(__file__).resolve().parents[1] / "data" / "traces" / "5.0.1-npt" / "basic" / "trace.txt.xz"
HEADER = {"scenario": "s", "format": 1, "variant": "v5.0", "config": {"family": "npt"}, "dump": "sparse"}
DUMP = {"op": {"op": "dump"}}
MIB = 1 << 20
LONG = "w" * 900_000


def text(*values: Any) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def cli(*arguments: str, stdin: Any = "", **more: Any) -> subprocess.CompletedProcess[str]:
    given: dict[str, Any] = {"input": stdin} if isinstance(stdin, str) else {"stdin": stdin}
    return subprocess.run(
        [sys.executable, "-m", "kvm_mmu", *arguments],
        capture_output=True, text=True, check=False, timeout=120, **given, **more,
    )  # fmt: skip


#: A child's peak begins with that of the process that starts it, so a small one does: this one may have grown large.
STARTER = """
import os, sys
child = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, "-m", "kvm_mmu", *sys.argv[2:]])
_, code, used = os.wait4(child, 0)
os.write(int(sys.argv[1]), f"{os.waitstatus_to_exitcode(code)} {used.ru_maxrss}".encode())
"""


def peak(*arguments: str, status: int = 0) -> int:
    """Bytes that the command needed at most."""
    reading, writing = os.pipe()
    done = subprocess.run(
        [sys.executable, "-S", "-c", STARTER, str(writing), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=(writing,),
        check=False,
    )
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        ended, used = map(int, answer.read().split())
    assert ended == status, done.stderr
    return used * 1024


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "/dev/zero", "--kernel", "v5.0"],
        ["verify", "/dev/zero"],
        ["compare", "/dev/zero", "--kernel", "v5.0", "--plan", "seed"],
        ["trace", "summary", "/dev/zero"],
        ["trace", "replay", "/dev/zero"],
        ["trace", "replay", str(TRACE), "--ops", "/dev/zero"],
        ["trace", "replay", str(TRACE), "--host", "/dev/zero"],
    ],
    ids=lambda words: " ".join(word for word in words if "/trace" not in word),
)
def test_a_device_that_never_ends_is_refused(arguments: list[str]) -> None:
    done = cli(*arguments)
    assert done.returncode == 2
    assert "/dev/zero" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments", [["run", "-"], ["trace", "summary", "-"], ["trace", "replay", "-"]], ids=" ".join
)
def test_so_it_is_on_stdin(arguments: list[str]) -> None:
    with Path("/dev/zero").open("rb") as zeros:
        done = cli(*arguments, stdin=zeros)
    assert done.returncode == 2
    assert "<stdin>: a device that never ends" in done.stderr


def test_the_null_device_is_empty() -> None:
    assert "/dev/null: empty" in cli("run", "/dev/null").stderr


def test_a_bomb_of_one_line_needs_no_more_than_a_line(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.jsonl.xz"
    with lzma.open(bomb, "wb") as file:
        for _ in range(512):
            file.write(bytes(MIB))
    assert bomb.stat().st_size < MIB
    assert peak("run", str(bomb), "--kernel", "v5.0", status=2) < 320 * MIB


def test_a_line_has_a_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(scenario_text, "LINE_MAX", 300)
    path = tmp_path / "long.jsonl"
    path.write_text(text(HEADER, DUMP, {**DUMP, "note": "x" * 300}))
    with pytest.raises(ScenarioError, match=r"long\.jsonl:3: the line is longer"):
        read_scenario(path)


@pytest.mark.parametrize("more", [',"x":[' + "[]," * 500 + "0]}", "}" + " " * 9000], ids=["lists", "blanks"])
def test_what_is_kept_of_a_file_has_a_limit(monkeypatch: pytest.MonkeyPatch, more: str) -> None:
    piece = '{"op":{"op":"dump"}' + more
    monkeypatch.setattr(scenario_text, "WEIGHT_MAX", 1 << 20)
    with pytest.raises(ScenarioError, match=r"<lines>:\d+: up to here the file needs more than"):
        read_scenario([piece] * 200)
    assert len(read_scenario([piece] * 5)) == 5


def test_run_goes_line_by_line(tmp_path: Path) -> None:
    """Ten times the operations in the same memory."""
    peaks = []
    for count in (4_000, 40_000):
        path = tmp_path / f"{count}.jsonl"
        path.write_text(
            text(HEADER) + text({"op": {"op": "test_age_hva", "hva": 4096}, "x": [[]] * 20}) * count
        )
        peaks.append(peak("run", str(path), "--digest", "last"))
    assert peaks[1] - peaks[0] < 12 * MIB


def test_run_writes_what_came_before_a_line_that_is_broken() -> None:
    done = cli("run", "-", stdin=text(HEADER, DUMP, DUMP, DUMP) + "{\n")
    assert done.returncode == 2
    assert "<stdin>:5: not a JSON object" in done.stderr
    assert [json.loads(line).get("i") for line in done.stdout.splitlines()] == [None, 0, 1]


@pytest.mark.parametrize(
    "header",
    [
        {"variant": LONG}, {"format": LONG}, {"dump": LONG}, {"config": {"family": LONG}}, {"config": {LONG: 1}},
        {"config": {"vcpus": LONG}}, {"plans": {LONG: "seed"}}, {"plans": {"wrap": LONG}},
        {"plans": {"wrap": {LONG: 1}}},
    ],
    ids=lambda header: str(header)[:20],
)  # fmt: skip
@pytest.mark.parametrize("backend", ["core", "reference"])
def test_a_long_value_of_a_header_is_cut(header: dict[str, Any], backend: str) -> None:
    with pytest.raises(KvmMmuError) as caught:
        list(
            run_scenario(read_scenario([json.dumps({**HEADER, **header}), json.dumps(DUMP)]), backend=backend)
        )
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("facts", [{"kernel": LONG}, {"mmu": LONG}, {"phys_bits": LONG}, {"family": LONG}])
def test_a_long_value_of_host_facts_is_cut(facts: dict[str, str]) -> None:
    host = json.dumps({"kernel": "5.0", **{key: value[:50_000] for key, value in facts.items()}})
    done = cli("trace", "replay", str(TRACE), "--host", host)
    assert done.returncode == 2
    assert len(done.stderr) < 700


@pytest.mark.parametrize(
    "arguments", [["decode", "spte", "-"], ["encode", "mmio", "-"]], ids=lambda words: words[0]
)
def test_a_long_word_is_cut(arguments: list[str]) -> None:
    for stdin in (LONG, "1" * 900_000, json.dumps({"gfn": LONG})):
        done = cli(*arguments, "--kernel", "v5.0", stdin=stdin)
        assert done.returncode == 2
        assert len(done.stderr) < 400


def test_a_key_twice_and_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"<lines>:1: .*'gpa' stands twice"):
        read_scenario(['{"op":{"op":"access","gpa":0,"gpa":4096}}'])
    path = tmp_path / "bytes.jsonl"
    path.write_bytes(b'{"op":{"op":"dump"}}\n{"op":{"op":"dump\xff"}}\n')
    with pytest.raises(ScenarioError, match="not UTF-8"):
        read_scenario(path)


OPS: list[dict[str, Any]] = [
    {"op": "test_age_hva", "hva": 0},
    {"op": "dump"},
    {"op": "test_age_hva", "hva": 4096},
] * 2


@pytest.mark.parametrize(("digest", "with_one"), [("each", range(6)), ("dumps", (1, 4, 5)), ("last", (5,))])
def test_digests_where_they_are_asked_for(digest: str, with_one: Any, tmp_path: Path) -> None:
    scenario = Scenario(kernel="v5.2", config={"family": "npt"}, ops=OPS)
    lines = list(run_scenario(scenario, dump="sparse", digest=digest))
    assert [line["i"] for line in lines[1:] if "digest" in line] == list(with_one)
    assert [line["i"] for line in lines[1:] if "state" in line] == [1, 4, 5]
    whole = {line["i"]: line for line in list(run_scenario(scenario, dump="sparse"))[1:]}
    assert all(line == {key: whole[line["i"]][key] for key in line} for line in lines[1:])
    path = tmp_path / "result.jsonl"
    path.write_text(text(*lines))
    assert verify_file(str(path)).equal
    assert list(run_scenario(read_scenario(path))) == lines
    lines[-1]["digest"] = "0" * 16
    path.write_text(text(*lines))
    assert not verify_file(str(path)).equal


def test_the_command_has_the_rules() -> None:
    done = cli(
        "run", "-", "--dump", "sparse", "--digest", "last", stdin=text(HEADER, *({"op": op} for op in OPS))
    )
    assert [json.loads(line)["i"] for line in done.stdout.splitlines()[1:] if '"digest"' in line] == [5]
    assert cli("run", "-", "--digest", "some", stdin=text(HEADER)).returncode == 2
    assert not has_digest("last", is_last=False, is_dump=True)
