"""Raw fields of `trace-cmd report -R`: read into columns, turned into the kernel's text, and replayed as that text.

The shared recordings carry every event field by field beside the text; that is what `-R` prints, so text made of the
fields must be the text of the recording.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from kvm_mmu import reference
from kvm_mmu.trace.analysis.explain import explained
from kvm_mmu.trace.analysis.stalls import stalls
from kvm_mmu.trace.analysis.summary import summarize
from kvm_mmu.trace.replay.replaying import replay
from kvm_mmu.trace.text.line import clean_body, parse_line
from kvm_mmu.trace.text.raw_fields import in_kernel_text
from kvm_mmu.trace.text.reader import Trace
from kvm_mmu.trace.text.source import read_lines

PREFIX = "             vmm-851   [001] 5012.123456: "
#: kernel, raw fields as libtraceevent prints them, the text of that kernel
PAIRS = [
    (
        "v6.1",
        "kvm_mmu_get_page: mmu_valid_gen=0 gfn=0 role=14212 root_count=0 unsync=0 created=1",
        "kvm_mmu_get_page: sp gen 0 gfn 0 l4 8-byte q0 direct wux nxe ad root 0 sync new",
    ),
    (
        "v6.1",
        "kvm_mmu_prepare_zap_page: [FAILED TO PARSE] mmu_valid_gen=1 gfn=256 role=14098 root_count=1 unsync=1",
        "kvm_mmu_prepare_zap_page: sp gen 1 gfn 100 l2 4-byte q0 wux nxe ad root 1 unsync",
    ),
    (
        "v5.0",
        "kvm_mmu_get_page: mmu_valid_gen=0x1f gfn=256 role=5521 root_count=0 unsync=0 created=0",
        "kvm_mmu_get_page: sp gen 1f gfn 100 l1 pae q0 direct -ux nxe ad root 0 sync existing",
    ),
    (
        "v5.2",
        "kvm_mmu_sync_page: gfn=16 role=5521 root_count=0 unsync=0",
        "kvm_mmu_sync_page: sp gfn 10 l1 8-byte q0 direct -ux nxe ad root 0 sync",
    ),
    (
        "v6.12",
        "kvm_page_fault: vcpu_id=0 guest_rip=0x1000 fault_address=1048576 error_code=8589934598",
        "kvm_page_fault: vcpu 0 rip 0x1000 address 0x0000000000100000 error_code 0x200000006",
    ),
    ("v5.0", "kvm_page_fault: fault_address=1048576 error_code=6", "kvm_page_fault: address 100000 error_code 6"),
    (
        "v6.1",
        "memslots_updated: __probe_ip=0xffffffffc0a1b0d0 gen=2",
        "memslots_updated: (0xffffffffc0a1b0d0+0x0/0x0) gen=0x2",
    ),
    (
        "v6.1",
        "zap_oldest_ret: __probe_func=0x1000 __probe_ret_ip=0x2000 ret=21",
        "zap_oldest_ret: (0x2000+0x0/0x0 <- 0x1000) ret=21",
    ),
    (
        "v6.1",
        "set_memslot: __probe_ip=0x1000 change=-1",
        "set_memslot: (0x1000+0x0/0x0) change=-1",
    ),
    (
        "v6.1",
        "kvm_mmu_set_spte: gfn=1 spte=9223372041189161505 sptep=5906665480 level=1 r=1 x=1 u=0",
        "kvm_mmu_set_spte: gfn 1 spte 8000000102597a21 (r-x-) level 1 at 160109008",
    ),
]  # fmt: skip


def engine(kernel: str, config: Mapping[str, object]) -> Any:
    return reference.Engine(kernel=kernel, config=dict(config))


@pytest.mark.parametrize(("kernel", "raw", "text"), PAIRS)
def test_raw_fields_are_the_text(kernel: str, raw: str, text: str):
    assert list(in_kernel_text([PREFIX + raw], kernel)) == [PREFIX + text]


@pytest.mark.parametrize(
    "text",
    [
        f"{PREFIX}sched_switch: prev_pid=1 next_pid=2",
        f"{PREFIX}kvm_mmu_get_page: gfn=1",
        f"{PREFIX}memslots_updated: (kvm_arch_memslots_updated+0x0/0xb0 [kvm]) gen=0x2",
        f"{PREFIX}kvm_exit: exit_reason=1 guest_rip=0x1",
        "no = line",
    ],
)
def test_what_has_no_text_stays(text: str):
    assert list(in_kernel_text([text], "v6.1")) == [text]


def test_the_reader_understands_them(tmp_path: Path):
    lines = [PREFIX + raw for _, raw, _ in PAIRS] + [
        f"{PREFIX}kvm_exit: exit_reason=1024 guest_rip=0x10fe isa=2 info1=4 info2=1048576 intr_info=0 "
        "error_code=0 vcpu_id=3",
        f"{PREFIX}kvm_emulate_insn: rip=4350 csbase=0 len=3 insn=ARRAY[0f, 22, de] flags=5 failed=0",
        f"{PREFIX}print: ip=0xffffffff81000000 buf=OP 1 x",
        f"{PREFIX}print: tracing_mark_write: OP 2 y",
        f"{PREFIX}print: some_function: hello",
    ]
    (tmp_path / "raw.txt").write_text("\n".join(lines))
    found = Trace(tmp_path / "raw.txt").read_all()
    pages = {table.wording: table for table in found.wordings("kvm_mmu_get_page")}
    assert pages["raw"]["role"].tolist() == [14212, 5521] and pages["raw"]["valid_gen"].tolist() == [0, 0x1F]
    assert [table["address"].tolist() for table in found.wordings("kvm_page_fault")] == [[0x100000]] * 2
    markers = [text for table in found.wordings("tracing_mark_write") for text in table["marker"].tolist()]
    assert markers == ["OP 1 x", "OP 2 y"]
    summary = summarize(tmp_path / "raw.txt", strict=True)
    assert (summary.pages_created, summary.pages_found, summary.vcpus) == (1, 1, {0, 3})
    assert (summary.counts["raw"], summary.counts["opaque"]) == (len(lines) - 2, {"print": 1})
    assert "events are raw fields (trace-cmd report -R)" in summary.as_text()


def test_decode_explains_them():
    said = list(explained([PREFIX + PAIRS[0][1], PREFIX + PAIRS[-1][1]], "v6.1"))
    assert len(said) >= 4 and said[0] == PREFIX + PAIRS[0][1]
    assert "level 4" in said[1] and "made" in said[1] and "write-protected" in said[-1]


def test_stalls_know_the_vcpu_of_raw_fields():
    found = stalls(
        [
            f"{PREFIX}kvm_entry: vcpu_id=7 rip=0x1000",
            f"{PREFIX}kvm_page_fault: vcpu_id=7 guest_rip=0x1 fault_address=0 error_code=4",
            f"{PREFIX}kvm_entry: vcpu_id=7 rip=0x1000",
        ],
        "x",
    )
    assert (found.waits, found.unfinished) == (1, 0)


def raw_lines(folder: Path) -> list[str]:
    """The recording as `trace-cmd report -R` prints it."""
    texts = [text for text in read_lines(folder / "trace.txt.xz") if parse_line(text) is not None]
    with lzma.open(folder / "raw.jsonl.xz", "rt") as file:
        records = [json.loads(text) for text in file]
    assert len(records) == len(texts)
    lines = []
    for record, text in zip(records, texts, strict=True):
        line = parse_line(text)
        assert line is not None
        fields = (f"{key}={value}" for key, value in record.items() if key not in ("ts", "g", "e"))
        body = " ".join(fields) if record["e"] != "print" else f"tracing_mark_write: {line.body}"
        lines.append(text[: line.event_at] + f"{record['e']}: {body}")
    return lines


NAMES = [
    "6.1/npt1tdp0_smm",
    "6.12/npt0_multi_vcpu_flat",
    "6.1/npt0_reclaim_flat",
    "6.1/npt0_access_roles_pae",
]


@pytest.mark.parametrize("name", NAMES)
def test_fields_of_a_recording_are_its_text(shared: Path, name: str):
    folder = shared / "traces" / name
    texts = [text for text in read_lines(folder / "trace.txt.xz") if parse_line(text) is not None]
    raw = raw_lines(folder)
    left = set()
    for text, fields, made in zip(texts, raw, in_kernel_text(raw, f"v{name.split('/')[0]}"), strict=True):
        line, again = parse_line(text), parse_line(made)
        assert line is not None and again is not None
        if made == fields and line.event != "tracing_mark_write":
            left.add(line.event)
            continue
        assert (again.event, clean_body(again.body)) == (line.event, clean_body(line.body))
    assert left <= {"kvm_exit", "kvm_userspace_exit", "kvm_emulate_insn"}  # names of numbers: kept as fields


def test_raw_fields_replay(shared: Path, tmp_path: Path):
    folder = shared / "traces" / "6.1" / "npt1tdp0_smm"
    (tmp_path / "trace.txt").write_text("\n".join(raw_lines(folder)))
    (tmp_path / "host.json").write_text((folder / "host.json").read_text())
    (tmp_path / "ops.jsonl.xz").write_bytes((folder / "ops.jsonl.xz").read_bytes())
    report = replay(tmp_path / "trace.txt", engine)
    assert report.is_equal and len(report.predictions) > 100


def test_the_plugin_wording_is_recognised(tmp_path: Path):
    (tmp_path / "plugin.txt").write_text(
        f"{PREFIX}kvm_mmu_get_page: new sp gfn 0 4/4 q0 direct --x !pge nxe root 0 sync\n"
        f"{PREFIX}kvm_mmu_get_page: existing sp gfn 1f 1 q0 --x !pge nxe root 2 unsync\n"
        f"{PREFIX}kvm_mmu_prepare_zap_page: sp gfn 0 4/4 q0 direct --x !pge nxe root 1 sync\n"
    )
    summary = summarize(tmp_path / "plugin.txt", strict=True)
    assert (summary.pages_created, summary.pages_found, summary.pages_zapped) == (1, 1, 1)
    assert "3 page events are in the wording of libtraceevent's KVM plugin" in summary.as_text()
    assert "trace-cmd report -R" in summary.as_text()
    zapped = Trace(tmp_path / "plugin.txt").read_all().wordings("kvm_mmu_prepare_zap_page")[0]
    assert zapped["old_role"].tolist() == ["/4 q0 direct --x !pge nxe"] and zapped["root_count"].tolist() == [
        1
    ]
