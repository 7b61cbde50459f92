"""Hostile command lines: whatever is asked for, an error is one line that names what is wrong, and the status is 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kvm_mmu.cli import main

PLANS = """
import sys
import kvm_mmu as km
def raises(vm): raise ZeroDivisionError("oops")
def exits(vm): sys.exit(0)
def no_arguments(): pass
def deep(vm): deep(vm)
def generator(vm): yield 1
async def coroutine(vm): pass
class Thing: pass
number = 7
"""
FILES = {
    "hostile_plans.py": PLANS,
    "raises_early.py": 'raise RuntimeError("at import")',
    "exits_early.py": "import sys; sys.exit(0)",
    "no_python.py": "def x(:",
    "empty.jsonl": "",
    "unknown_op.jsonl": '{"op":{"op":"nothing"}}\n',
    "vcpus.jsonl": '{"variant":"v5.2","config":{"vcpus":99999999}}\n{"op":{"op":"load"}}\n',
    "kernel.jsonl": '{"variant":"v9"}\n{"op":{"op":"load"}}\n',
    "gpa.jsonl": '{"variant":"v5.2"}\n\n{"op":{"op":"access","gpa":"zz","kind":"w"}}\n',
    "mask.jsonl": '{"variant":"v5.2"}\n{"op":{"op":"clear_dirty_log","id":0,"first":0,"num":64,"mask":7}}\n',
    "nan.jsonl": '{"variant":"v5.2","config":{"phys_bits":NaN}}\n',
    "words.txt": "no trace, no scenario\n",
}
#: Command line (V: a scenario, R: a recording) and what its error says.
REFUSED = [
    (
        "compare V --plan hostile_plans:raises --at wrap",
        "plan raises at the wrap: it raised ZeroDivisionError: oops",
    ),
    (
        "compare V --plan hostile_plans:exits --at teardown",
        "plan exits at the teardown: it raised SystemExit: 0",
    ),
    ("compare V --plan hostile_plans:no_arguments", "plan no_arguments at the end: it raised TypeError"),
    ("compare V --plan hostile_plans:deep", "plan deep at the end: it raised RecursionError"),
    (
        "compare V --plan hostile_plans:generator",
        "plan generator at the end: it returned a generator, nothing ran",
    ),
    ("compare V --plan hostile_plans:coroutine", "it returned a coroutine, nothing ran"),
    ("compare V --plan hostile_plans:Thing", "Thing() takes no arguments"),
    ("compare V --plan hostile_plans:number", "expected a ZapPlan or a function, found int"),
    ("compare V --plan hostile_plans:nothing", "has no attribute 'nothing'"),
    ("compare V --plan raises_early:x", "'raises_early:x': RuntimeError: at import"),
    ("compare V --plan exits_early:x", "'exits_early:x': SystemExit: 0"),
    ("compare V --plan no_python:x", "SyntaxError"),
    ("compare V --plan :x", "plan ':x'"),
    ("plans raises_early:x", "'raises_early:x': RuntimeError: at import"),
    ("plans exits_early:x", "SystemExit"),
    ("compare V --plan merged --scale ,", "--scale ','"),
    ("compare V --plan merged --scale 1k,,2k", "--scale '1k,,2k'"),
    ("compare V --plan merged --scale=", "--scale ''"),
    ("compare V --plan merged --scale 99999999999999999999", "more guest memory than its root can map"),
    ("compare V --plan merged --contend 0", "--contend 0: expected 1 to"),
    (
        "compare V --plan merged --contend 99999999999999999999",
        "--contend 99999999999999999999: expected 1 to",
    ),
    ("compare V --plan merged --contend 2 --add 0", "--add 0: expected 1 to"),
    ("compare V --plan merged --contend 2 --add 99999999999", "--add 99999999999: expected 1 to"),
    ("compare V --plan merged --mmio-place even", "--mmio-place: expected --scale with it"),
    ("compare V --plan merged --scale 100 --mmio-share nan", "--mmio-share 'nan'"),
    ("compare V --plan merged --vm 1", "a scenario has one VM"),
    ("compare R --plan merged --vm 0", "VM 0: expected 1 to 1"),
    ("compare R --plan merged --kernel=", "--kernel: expected names of v5.0"),
    ("compare R --plan merged --kernel v5.2 --kernel v9", "kernel 'v9'"),
    ('compare R --plan merged --host {"phys_bits":"x"}', "'phys_bits' must be a number"),
    ('compare R --plan merged --host {"kernel":"4.9"}', "trace.txt.xz: recorded on kernel 'v4.9'"),
    ("compare R --plan merged --host {", "--host"),
    ("compare R --plan merged -o empty.jsonl", "empty.jsonl: cannot be a folder for results"),
    ("compare R --plan merged --moment peak --scale 100", "moment 'peak': not with scale"),
    ("compare words.txt --plan merged", "words.txt: which kernel made this recording is not known"),
    ("compare empty.jsonl --plan merged", "empty.jsonl: empty"),
    ("compare vcpus.jsonl --plan merged", "vcpus.jsonl:1: vcpus=99999999"),
    ("compare kernel.jsonl --plan merged", "kernel.jsonl:1: kernel 'v9'"),
    ("compare gpa.jsonl --plan merged", "gpa.jsonl:3: operation 'access': gpa='zz'"),
    ("compare mask.jsonl --plan merged", "mask.jsonl:2: operation 'clear_dirty_log': mask=7"),
    ("compare nan.jsonl --plan merged", "nan.jsonl:1: config phys_bits=nan"),
    (
        "compare unknown_op.jsonl --plan merged --kernel v5.2",
        "unknown_op.jsonl:1: unknown operation 'nothing'",
    ),
    ("compare '' --plan merged", "input '': expected the name of a file"),
    ("compare . --plan merged", ".: Is a directory"),
    ("run empty.jsonl", "empty.jsonl: empty: expected a scenario"),
    ("run vcpus.jsonl --backend reference", "vcpus.jsonl:1: config vcpus is 99999999"),
    ("run kernel.jsonl", "kernel.jsonl:1: kernel 'v9'"),
    ("run R", "trace.txt.xz:1: not a JSON object"),
    ("run ''", "input '': expected the name of a file"),
    ("verify V --jobs 0", "--jobs 0: expected 1 or more"),
    ("demo -o empty.jsonl", "empty.jsonl: cannot be a folder for results"),
    ("demo -o ''", "folder '': expected the name of a folder"),
    ("gallery thread --scale=", "--scale ''"),
    ("gallery thread --markdown --json", "expected one of them"),
    ("gallery figures 99999999999999999999", "figure 99999999999999999999"),
    ("decode spte zz --kernel v5.0", "value 'zz': expected a hexadecimal word"),
    ("decode role 0x1ffffffff --kernel v5.0", "expected 32 bits"),
    ("decode spte 1 --kernel v5.0 --phys-bits 99", "phys_bits=99"),
    ("encode mmio --gfn 1 --gen 1 --access 9 --kernel v5.0", "access 9"),
    ("encode mmio --kernel v5.0", "expected --gfn and --gen"),
]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("line", "words"), REFUSED, ids=[line for line, _ in REFUSED])
def test_refused(line: str, words: str, desk: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = {
        "V": str(data / "vectors" / "seed" / "mmio_stale_generation.npt.jsonl.xz"),
        "R": str(data / "traces" / "6.12" / "npt1tdp0_shrink" / "trace.txt.xz"),
        "''": "",
    }
    assert main([known.get(word, word) for word in line.split()]) == 2
    out, err = capsys.readouterr()
    assert words in err and "Traceback" not in err and err.count("\n") == 1
    assert out == ""


def test_verify_names_each_file_once(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "kernel.jsonl", "nan.jsonl", "--jobs", "1"]) == 2
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert lines[0].startswith("kvm-mmu verify: kernel.jsonl:1: kernel 'v9'")
    assert lines[1].startswith("kvm-mmu verify: nan.jsonl:1: config") and len(lines) == 2
    assert said.out.splitlines() == ["0 of 2 files equal, 0 steps, backend core"]


def test_a_plan_that_is_interrupted(desk: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (desk / "stopped.py").write_text("def stop(vm): raise KeyboardInterrupt\n")
    vector = str(data / "vectors" / "seed" / "mmio_stale_generation.npt.jsonl.xz")
    assert main(["compare", vector, "--plan", "stopped:stop"]) == 130
    assert capsys.readouterr().err == "kvm-mmu compare: interrupted\n"


def test_results_of_a_comparison_are_json_also_where_a_plan_is_unsound(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vector = str(data / "vectors" / "seed" / "mmio_stale_generation.npt.jsonl.xz")
    assert main(["compare", vector, "--plan", "v5.2-slot", "--at", "wrap", "--json"]) == 1
    row = json.loads(capsys.readouterr().out)["rows"][0]
    assert row["sound"] == "no" and row["left_over"] > 0
