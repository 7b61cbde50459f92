"""The lab of sync policies: counts are what the policies say, by core and reference; the guest sees no difference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kvm_mmu.__main__ import main
from kvm_mmu.errors import KvmMmuError, UsageError
from kvm_mmu.lab.guest_stream import STREAMS, Step, read_stream
from kvm_mmu.lab.sync_policies import POLICIES, SyncRow, altered, compare_sync, run_policy
from kvm_mmu.reference import Engine

KERNELS = ("v5.0", "v5.2", "v6.1", "v6.12")


def by_policy(stream: str, kernel: str = "v6.12", limit: int = 3) -> dict[str, SyncRow]:
    return {row.sync: row for row in compare_sync(STREAMS[stream], [kernel], flood_limits=[limit])}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("stream", STREAMS)
def test_the_policies_are_what_they_say(stream: str, kernel: str) -> None:
    rows = by_policy(stream, kernel)
    assert (
        rows["cr3"].invlpgs == rows["never"].invlpgs == 0
        and rows["cr3"].cr3_writes == rows["never"].cr3_writes > 0
    )
    assert rows["invlpg"].invlpgs > 0
    assert rows["never"].unsyncs == rows["never"].syncs == 0
    assert rows["cr3"].unsyncs > 0 and rows["cr3"].syncs > 0
    assert rows["never"].emulated_writes > rows["cr3"].emulated_writes
    for row in rows.values():
        assert row.exits == row.faults + row.cr3_writes + row.invlpgs
        assert row.faults >= row.emulated_writes + row.guest_faults
    # The guest's own faults are no matter of the policy.
    assert len({row.guest_faults for row in rows.values()}) == 1


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("sync", POLICIES)
def test_core_and_reference_count_the_same(sync: str, kernel: str) -> None:
    for stream, limit in (("processes", 3), ("sparse", 1), ("sparse", 0)):
        reference = Engine(altered(kernel, sync, limit), {"family": "shadow"})
        assert run_policy(STREAMS[stream], kernel, sync, limit) == run_policy(
            STREAMS[stream], kernel, sync, limit, reference
        )


def test_a_lower_limit_zaps_more() -> None:
    zaps = [by_policy("sparse", limit=limit)["never"].zaps for limit in (0, 1)]
    assert zaps[0] == 0 < zaps[1]


def test_the_facts_of_a_policy() -> None:
    assert altered("v6.12", "cr3", 3) == "v6.12"
    assert altered("v6.12", "never", 1) == "v6.12:has_unsync=no:write_flood_limit=1"
    with pytest.raises(UsageError, match="sync 'sometimes': expected cr3, invlpg, never"):
        altered("v6.12", "sometimes", 3)


def test_a_stream_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "guest.jsonl"
    path.write_text(
        '{"do":"map","pages":2,"flags":"rwu"}\n\n{"do":"touch","pages":2,"kind":"r"}\n', encoding="utf-8"
    )
    assert read_stream(str(path)).steps == (Step("map", 0, 2), Step("touch", 0, 2, kind="r"))
    for line, message in (
        ('{"do":"fly"}', "guest.jsonl:1: do is 'fly'; expected one of map, protect"),
        ('{"do":"map","pages":0}', "pages is 0; expected a number from 1 to 4096"),
        ('{"do":"map","flags":"rq"}', "flags is 'rq'; expected letters"),
        ('{"do":"map","gva":1}', "unknown key 'gva'"),
        ("[]", "guest.jsonl:1"),
        ("", "no steps"),
    ):
        path.write_text(line + "\n", encoding="utf-8")
        with pytest.raises(KvmMmuError, match=message.replace("(", r"\(")):
            read_stream(str(path))
    with pytest.raises(UsageError, match="guest 'nobody': expected allocator"):
        read_stream("nobody")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = [
        "compare",
        "sparse",
        "processes",
        "--sync",
        "all",
        "--flood",
        "3,1",
        "--kernel",
        "v5.0 v6.12",
        "-o",
        str(out),
    ]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "sparse: one page in each 2 MiB" in said and "processes:" in said
    assert {path.name for path in out.iterdir() if path.suffix == ".csv"} == {
        "sync_sparse.csv",
        "sync_processes.csv",
    }
    assert main(["compare", "sparse", "--sync", "never", "--json"]) == 0
    read = json.loads(capsys.readouterr().out)
    assert read["schema"] == "kvm-mmu/compare-sync/1" and read["guests"][0]["rows"][0]["syncs"] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sparse", "--sync", "often"], "sync 'often': expected cr3, invlpg, never"),
        (["sparse", "--sync", "cr3", "--plan", "seed"], "--plan: belongs to zap plans"),
        (["sparse", "--sync", "cr3", "--flood", "x"], "--flood 'x': expected numbers of writes"),
        (["sparse", "--flood", "3"], "--flood: expected --sync with it"),
    ],
)
def test_words_that_do_not_fit(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *words]) == 2
    assert message in capsys.readouterr().err
