"""The commands of the laboratory: what they print, what they write, with which status they end."""

from __future__ import annotations

import json
from pathlib import Path

import kvm_mmu as km
import pytest
from kvm_mmu.cli import main
from kvm_mmu.cli.compare import parse_share, parse_sizes
from kvm_mmu.errors import UsageError

VECTOR = ("vectors", "seed", "mmio_stale_generation.npt.jsonl.xz")


@pytest.fixture
def vector(data: Path) -> str:
    return str(data.joinpath(*VECTOR))


def test_compare_prints_and_writes(vector: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            [
                "compare",
                vector,
                "--plan",
                "seed",
                "--plan",
                "merged indexed",
                "--at",
                "wrap",
                "-o",
                str(tmp_path),
            ]
        )
        == 0
    )
    out, err = capsys.readouterr()
    assert "mmio_stale_generation" in out and "v5.0-seed" in out and "measured wall time" not in out
    assert "written: " in out and err == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "compare.csv",
        "compare.json",
        "compare.svg",
        "report.html",
    ]


def test_compare_json(vector: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", vector, "--plan", "all", "--at", "teardown", "--json", "--kernel", "v5.2"]) in (
        0,
        1,
    )
    read = json.loads(capsys.readouterr().out)
    assert read["schema"] == "kvm-mmu/compare/1"
    assert {row["kernel"] for row in read["rows"]} == {"v5.2"} and len(read["plans"]) == sum(
        not plan.is_of_roots for plan in km.plans.values()
    )


def test_compare_scales(vector: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", vector, "--plan", "merged", "--at", "wrap", "--scale", "200,600"]
    assert main(words) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert (
        "side by side" not in out and "differs from its input by more than 5 % in" in out and "n^1.0" in out
    )
    assert main([*words, "--wide"]) == 0
    out = capsys.readouterr().out
    assert "side by side" in out and "share of MMIO pages" in out and "n^1.0" in out


def test_the_table_fits_eighty_columns(vector: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One table and its notes, whatever is compared: all plans and one with a long text, kernels, several sizes."""
    own = "walk=tail,only=mmio_cached,restart=never"
    for more in (["--kernel", "all"], ["--scale", "200,20k"], ["--cost", "kernel-c-5.0"]):
        main(["compare", vector, "--plan", "all", "--plan", own, "--at", "wrap", *more])
        lines = capsys.readouterr().out.splitlines()
        shared = " shared" if "all" in more else ""
        title = f"plan nodes zapped hold{shared} faults again sound".split()
        assert [line.split() for line in lines].count(title) == 1
        # Only a word may be longer, as the name of a file in a note.
        assert [line for line in lines if len(line) > 80 and " " in line.strip()] == []
        assert f"plan 1: {own}" in lines
    assert main(["compare", vector, "--plan", "merged", "--at", "wrap", "--measured", "--wide"]) == 0
    out = capsys.readouterr().out
    assert "measured wall time of this program (not a kernel's)" in out and "work, exact counts" in out


def test_a_run_without_an_end_says_so_in_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet = tmp_path / "quiet.jsonl"
    quiet.write_text('{"op": {"op": "set_max_raw", "n": 64}}\n{"op": {"op": "load"}}\n')
    assert main(["compare", str(quiet), "--kernel", "v5.2", "--plan", "merged", "--at", "wrap"]) == 1
    assert "not exercised" in capsys.readouterr().out.splitlines()[3]


def test_compare_a_plan_of_ones_own(vector: str, capsys: pytest.CaptureFixture[str]) -> None:
    plan = "walk=tail,only=mmio_cached,restart=never"
    assert main(["compare", vector, "--plan", plan, "--at", "wrap"]) == 0
    assert plan in capsys.readouterr().out


def test_compare_a_function_of_ones_own(
    vector: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_zap.py").write_text(
        "import kvm_mmu as km\n"
        "def from_the_tail(vm):\n"
        "    with vm.zap_batch() as batch:\n"
        "        for page in vm.active_pages(from_tail=True):\n"
        "            if page.mmio_cached:\n"
        "                batch.prepare(page)\n"
        "tail = km.ZapPlan(walk='tail', only='mmio_cached')\n"
        "number = 7\n"
    )
    monkeypatch.chdir(tmp_path)
    assert (
        main(["compare", vector, "--plan", "my_zap:from_the_tail my_zap:tail", "--at", "wrap", "--json"]) == 0
    )
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["plan"] for row in rows] == ["from_the_tail", "my_zap:tail"]
    assert rows[0]["nodes_visited"] == rows[1]["nodes_visited"] > 0
    for plan in ("my_zap:number", "my_zap:nothing", "no_such_module:x"):
        assert main(["compare", vector, "--plan", plan]) == 2


def test_nothing_to_do_is_a_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quiet = tmp_path / "quiet.jsonl"
    ops = [{"op": "set_max_raw", "n": 64}, {"op": "load"}]
    quiet.write_text("".join(json.dumps({"op": op}) + "\n" for op in ops))
    assert main(["compare", str(quiet), "--kernel", "v5.2", "--plan", "merged", "--at", "wrap"]) == 1
    assert (
        "not exercised: merged had nothing to do (unnamed, kernel v5.2, at wrap)" in capsys.readouterr().out
    )


@pytest.mark.parametrize("at", ["wrap", "slot-removal", "teardown"])
def test_an_event_that_the_input_has_already_is_said(
    at: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slot = {
        "op": "set_memslot",
        "as": 0,
        "id": 0,
        "gpa": "0x0",
        "size": "0x400000",
        "hva": "0x200000000",
        "flags": 0,
    }
    own: dict[str, list[dict[str, object]]] = {
        "wrap": [{"op": "set_generation", "as": 0, "gen": 0}, {"op": "invalidate_mmio", "as": 0}],
        "slot-removal": [{**slot, "size": 0}],
        "teardown": [{"op": "teardown"}],
    }
    access = {"op": "access", "vcpu": 0, "gpa": "0xfee00000", "kind": "r"}
    for ops, count in ((own[at], 1), ([], 0)):
        path = tmp_path / f"{count}.jsonl"
        start = [{"op": "set_max_raw", "n": 64}, {"op": "load"}]
        held = [*start, slot, access, *ops] if count else start
        path.write_text("".join(json.dumps({"op": op}) + "\n" for op in held))
        plan = "v5.2-slot" if at == "slot-removal" else "merged"
        assert main(["compare", str(path), "--kernel", "v5.0-seed", "--plan", plan, "--at", at]) == 1
        said = " ".join(capsys.readouterr().out.split())
        assert f"not exercised: {plan} had nothing to do" in said
        assert (f"; its own operations have the {at} already, once (--moment peak" in said) is bool(count)


def test_an_unsound_plan_is_a_finding(vector: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", vector, "--plan", "merged zap-all", "--at", "wrap"]) == 0
    assert "unsound" not in capsys.readouterr().out
    assert main(["compare", vector, "--plan", "merged zap-all", "--at", "teardown"]) == 1
    assert "unsound: merged not enough for the event" in capsys.readouterr().out
    # Nothing is forced at the end, so nothing is asked of a plan there.
    assert main(["compare", vector, "--plan", "merged zap-all"]) == 0


def test_kernels_with_the_same_findings_share_a_sentence(
    vector: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", vector, "--plan", "merged v5.2-slot", "--at", "wrap", "--kernel", "v5.0 v5.2"]
    assert main(words) == 1
    said = " ".join(capsys.readouterr().out.split())
    found = "unsound: v5.2-slot not enough for the event (mmio_stale_generation, kernels v5.0, v5.2, at wrap)"
    assert said.count("unsound: ") == 1 and said.endswith(found)
    assert said.count("no way to do a wrap with it alone") == 1


def test_several_kernels(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = str(data / "traces" / "6.12" / "npt1tdp0_dirty_log" / "trace.txt.xz")
    run = ["compare", trace, "--plan", "merged", "--at", "wrap", "--json"]
    assert main([*run, "--kernel", "v6.12 v5.0-seed", "--kernel", "v5.2"]) == 0
    read = json.loads(capsys.readouterr().out)
    assert [row["kernel"] for row in read["rows"]] == ["v6.12", "v5.0-seed", "v5.2"]
    assert [work["kernel"] for work in read["workloads"]] == ["v6.12", "v5.0-seed", "v5.2"]
    assert {(work["pages_made"], work["pages_zapped"]) for work in read["workloads"]} == {(7, 0)}
    assert main([*run, "--kernel", "all"]) == 0
    assert {row["kernel"] for row in json.loads(capsys.readouterr().out)["rows"]} == set(km.kernels)


def test_names_of_inputs_differ(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    traces = [str(data / "traces" / k / "npt1tdp0_shrink" / "trace.txt.xz") for k in ("6.1", "6.12", "6.12")]
    assert main(["compare", *traces, "--plan", "zap-all", "--kernel", "v5.2", "--json"]) == 0
    names = [row["input"] for row in json.loads(capsys.readouterr().out)["rows"]]
    assert names == ["6.1/npt1tdp0_shrink", "6.12/npt1tdp0_shrink", "traces/6.12/npt1tdp0_shrink"]


def test_a_recording_is_an_input(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = data / "traces" / "5.0.1-npt" / "basic" / "trace.txt.xz"
    assert main(["compare", str(trace), "--plan", "v5.0-fast", "--at", "slot-removal"]) == 0
    assert "basic, kernel v5.0" in capsys.readouterr().out


def test_kernels_without_a_plan_bring_their_own(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("7.3/npt1tdp0_smm", "6.12/ept1tdp0_huge_thp"):
        trace = data / "traces" / name / "trace.txt.xz"
        assert main(["compare", str(trace), "--kernel", "v5.0 v7.3"]) == 0
        out = capsys.readouterr().out
        assert "kernel v5.0" in out and "kernel v7.3" in out and "v5.0-fast" in out and "tdp-fast" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compare", "{}"], "no --plan"),
        (["compare", "{}", "--plan", "nobody"], "'nobody': expected one of seed"),
        (["compare", "{}", "--plan", "walk=up,only=all"], "walk='up'"),
        (["compare", "{}", "--plan", "seed", "--scale", "1x"], "1k,10k,100k"),
        (["compare", "{}", "--plan", "seed", "--mmio-share", "1%"], "expected --scale with it"),
        (["compare", "{}", "--plan", "seed", "--kernel", "v1.0"], "v1.0"),
        (["compare", "{}", "--plan", "seed", "--add", "1"], "contend"),
        (["compare", "{}", "--plan", "seed", "--host", "nothing.json"], "nothing.json: cannot be read"),
        (["compare", "nothing.jsonl", "--plan", "seed"], "nothing.jsonl"),
        (["gallery", "thread", "S99"], "S99"),
    ],
)
def test_bad_usage(vector: str, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([argument.replace("{}", vector) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert words in err and out == ""


def test_unknown_options_end_with_two(vector: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["compare", vector, "--plan", "seed", "--at", "noon"])
    assert ended.value.code == 2


def test_gallery_prints_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gallery", "thread", "S3", "S9"]) == 0
    out = capsys.readouterr().out
    assert "at update 37 of 100" in out and "stale_next" in out
    assert main(["gallery", "thread", "S4", "--scale", "100,200", "--json"]) == 0
    read = json.loads(capsys.readouterr().out)
    assert read["schema"] == "kvm-mmu/gallery/1" and read["answers"][0]["claim"] == "S4"


def test_sizes_and_shares() -> None:
    assert parse_sizes("1k, 10K,2m,7") == [1000, 10_000, 2_000_000, 7]
    assert parse_share("10%") == pytest.approx(0.1) and parse_share("0.25") == 0.25
    for text in ("110%", "-1", "x"):
        with pytest.raises(UsageError):
            parse_share(text)


@pytest.mark.parametrize("schema", ["kernels", "plans", "verify", "compare"])
def test_every_json_has_a_schema_that_is_documented(
    schema: str, vector: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"verify": ["verify", vector], "compare": ["compare", vector, "--plan", "zap-all"]}
    assert main([*words.get(schema, [schema]), "--json"]) == 0
    read = json.loads(capsys.readouterr().out)
    assert read.pop("schema") == f"kvm-mmu/{schema}/1"
    page = (root / "docs" / "reference" / "json.md").read_text(encoding="utf-8")
    part = page.split(f"`kvm-mmu/{schema}/1`")[1].split("\n## ")[0]
    assert [key for key in read if f"`{key}`" not in part] == []


def test_run_is_json_with_and_without_the_word(vector: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", vector]) == 0
    plain = capsys.readouterr().out
    assert main(["run", vector, "--json"]) == 0
    assert capsys.readouterr().out == plain and all(json.loads(line) for line in plain.splitlines())
