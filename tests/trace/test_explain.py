"""Decoding a trace, the recording kit, comparing two replays, a 6.x recording as a workload."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from kvm_mmu import reference
from kvm_mmu.errors import TraceError
from kvm_mmu.recorders.kit import script
from kvm_mmu.trace.analysis.explain import INDENT, explained, explainer
from kvm_mmu.trace.analysis.explain_host import host_explainer
from kvm_mmu.trace.text.source import iter_lines, read_lines

TRACES = Path(__file__).resolve().parent.parent / "data" / "traces"
PREFIX = "             vmm-851   [000] .....  5012.1: "


def engine(kernel: str, config: Mapping[str, object]) -> Any:
    return reference.Engine(kernel=kernel, config=dict(config))


def words(body: str, kernel: str) -> list[str]:
    lines = list(explained([PREFIX + body], kernel))
    assert lines[0] == PREFIX + body
    return [line.removeprefix(INDENT) for line in lines[1:]]


def test_pages_in_words():
    assert words(
        "kvm_mmu_get_page: sp gen 1f gfn 10a l1 pae q3 -u- invalid !nxe !ad root 2 unsync new", "v5.0"
    ) == [
        "page: level 1 (4 KiB leaves); from gfn 10a; shadows a guest table; PAE guest; quarter 3 of a 32-bit guest "
        "table; allows user; NX not in use; accessed/dirty bits not in use; invalid: waits for its last user; root "
        "in use, count 2; out of sync with the guest table; valid generation 1f; made"
    ]
    assert words("kvm_mmu_sync_page: something else", "v5.0") == []


def test_sptes_in_words():
    body = "check_mmio_spte: spte 7ff800f8e0000dbf kvm_gen fff6e spte-gen fff6e valid 1"
    assert words(body, "v5.0") == [
        "spte 0x7ff800f8e0000dbf: MMIO, gfn e0000, access write+user, generation 0xfff6e; fresh: the access is emulated"
    ]
    body = (
        "fast_page_fault: vcpu 0 gva 1 error_code P|W sptep ffff8881600f7000 old 0x161b86e65 new 161b86e67 "
    )
    assert words(body, "v6.1") == [
        "old 0x161b86e65: pfn 161b86, write-protected, user, accessed, dirty, host-writable, can be made writable "
        "without the lock, executable",
        "new 0x161b86e67: pfn 161b86, writable, user, accessed, dirty, host-writable, can be made writable without "
        "the lock, executable",
    ]


LEAF = (
    "pfn 1234, large, writable, user, accessed, dirty, host-writable, can be made writable without the lock, "
    "executable"
)


@pytest.mark.parametrize(
    ("kernel", "body", "said"),
    [
        ("v5.3", "kvm_mmu_set_spte: gfn 9 spte 1234ce7 (rwxu) level 2 at b7", [f"spte 0x1234ce7: {LEAF}"]),
        ("v5.4", "kvm_mmu_set_spte: gfn 9 spte 1234ce7 (rwxu) level 2 at b7", [f"spte 0x1234ce7: {LEAF}"]),
        ("v6.1", "kvm_mmu_split_huge_page: gfn 9 spte 1234ee7 level 2 errno 0", [f"spte 0x1234ee7: {LEAF}"]),
        ("v6.12", "kvm_tdp_mmu_spte_changed: as id 0 gfn 0 level 2 old_spte 8000000000000000 new_spte 1234ee7",
         ["old_spte 0x8000000000000000: empty", f"new_spte 0x1234ee7: {LEAF}", "change: 2 MiB mapped"]),
        ("v6.12", "kvm_tdp_mmu_spte_changed: as id 0 gfn 0 level 3 old_spte 80000000000005a0 new_spte 15f95d827",
         ["old_spte 0x80000000000005a0: not present, value 0x5a0: the TDP MMU marks so an entry that it takes away",
          "new_spte 0x15f95d827: link to the table of level 2 in frame 15f95d, writable, user, executable",
          "change: table of 2 MiB entries linked"]),
        ("v6.1", "kvm_tdp_mmu_spte_changed: as id 0 gfn 9 level 1 old_spte 5a0 new_spte 1234825",
         ["old_spte 0x5a0: not present, value 0x5a0: the TDP MMU marks so an entry that it takes away",
          "new_spte 0x1234825: pfn 1234, write-protected, user, accessed, clean, host memory read-only, executable",
          "change: 4 KiB mapped"]),
        ("v6.1", "page_zap_pte: (x+0x0/0x1 [kvm]) sptep=0xff spte=0x1234ee7", [f"spte 0x1234ee7: {LEAF}"]),
        ("v6.1", "make_mmio_spte_ret: (x+0x1/0x9 [kvm] <- make_mmio_spte) spte=0x80000d0000045",
         ["spte 0x80000d0000045: MMIO, gfn d0000, access user, generation 0x8"]),
        ("v6.1", "mark_mmio_spte: sptep:ffff88816010b000 gfn d0000 access 5 gen 8",
         ["the MMIO SPTE made of these 0x80000d0000045: MMIO, gfn d0000, access user, generation 0x8"]),
        ("v5.0", "mark_mmio_spte: sptep:(____ptrval____) gfn e0000 access 6 gen fff6e",
         ["the MMIO SPTE made of these 0x7ff800f8e0000dbf: MMIO, gfn e0000, access write+user, generation 0xfff6e"]),
        ("v5.2", "check_mmio_spte: spte 402800f8e0000017 kvm_gen 4 spte-gen 2 valid 0",
         ["spte 0x402800f8e0000017: MMIO, gfn e0000, access write+user, generation 0x2; stale: the fault is taken "
          "again"]),
        ("v6.1", "handle_mmio_page_fault: addr:d0000000 gfn d0000 access 4",
         ["MMIO hit: gfn d0000 has no memslot, access user; a fresh MMIO SPTE, so it is emulated"]),
        ("v6.1", "kvm_mmu_spte_requested: gfn d0000 pfn 8000000000000000 level 1",
         ["pfn 0x8000000000000000: gfn d0000 has no memslot: an MMIO SPTE is made"]),
        ("v6.1", "kvm_mmu_spte_requested: gfn d0 pfn 1234 level 1", []),
        ("v6.1", "kvm_mmu_sync_page: gfn=0xd role=0x1073701 root_count=0 unsync=1 mmu_valid_gen=0x1",
         ["page: level 1 (4 KiB leaves); from gfn d; shadows a guest table; guest entries of 8 bytes; allows write, "
          "user, execute; NX in use; accessed/dirty bits not in use; out of sync with the guest table; valid "
          "generation 1",
          "role 0x1073701: system management mode, of a guest level that is passed through, for a nested guest, "
          "CR0.WP on"]),
    ],
)  # fmt: skip
def test_every_event_with_a_word(kernel: str, body: str, said: list[str]):
    assert words(body, kernel) == said


def test_a_word_that_contradicts_its_line_is_counted():
    line = PREFIX + "check_mmio_spte: spte 7ff800f8e0000dbf kvm_gen fff6e spte-gen fff6e valid 1"
    for kernel, phys_bits, family, agrees in (
        ("v5.0", 40, "npt", True),
        ("v5.0", 41, "npt", False),
        ("v5.0", 40, "ept_ad", False),
        ("v5.2", 40, "npt", False),
    ):
        explain = explainer(kernel, phys_bits, family)
        list(explain.lines([line]))
        assert (sum(explain.agreed.values()), sum(explain.contradicted.values())) == (agrees, not agrees)
        assert (explain.first_contradiction is None) is agrees


def test_words_in_another_wording_are_counted():
    explain = explainer("v6.1")
    lines = [
        PREFIX + "kvm_mmu_get_page: new sp gfn 100 1/4 q0 direct --- !pge !nxe root 0 sync",
        PREFIX + "kvm_mmu_set_spte: cut",
        PREFIX + "check_mmio_spte: spte=0x80000d0000045 kvm_gen=8 spte_gen=8",
    ]
    assert [len(words) for _, words in explain.lines(lines)] == [0, 0, 1]
    assert explain.unread == {"kvm_mmu_get_page": 1, "kvm_mmu_set_spte": 1}


GIVEN = {"kernel": None, "family": None, "phys_bits": None, "l1tf_mask": None}


@pytest.mark.parametrize(
    ("name", "kernel", "phys_bits", "said"),
    [
        ("5.0.1-npt/mmio_gen", "v5.0", 40, "inferred: phys_bits = 40 (shown by the MMIO SPTEs)"),
        ("5.2.1-npt/mmio_gen", "v5.3", 40, "by its wording: v5.1 or v5.2 or v5.3"),
        (
            "6.12/npt1tdp0_zap_batch",
            "v6.12",
            46,
            "v6.1 or v6.12 (their words differ in the empty entry only)",
        ),
    ],
)
def test_whose_trace_it_is_by_what_it_shows(name: str, kernel: str, phys_bits: int, said: str):
    lines = iter_lines(TRACES / name / "trace.txt.xz")
    explain, stream, notes = host_explainer(lines, {}, GIVEN, "t")
    assert (explain.codec.kernel, explain.codec.phys_bits) == (kernel, phys_bits)
    assert any(said in note for note in notes) and len(notes) == 4
    assert len(list(stream)) == len(read_lines(TRACES / name / "trace.txt.xz"))


def test_nothing_is_chosen_where_the_words_differ():
    page = PREFIX + "kvm_mmu_get_page: sp gen 1 gfn 10a l1 8-byte q0 direct wux nxe ad root 0 sync new"
    with pytest.raises(TraceError, match=r"by its wording v5\.4 or .*v6\.1 or v6\.12.*: give --kernel"):
        host_explainer([page], {}, GIVEN, "t")
    with pytest.raises(TraceError, match=r"not known: give --kernel"):
        host_explainer(["x"], {}, GIVEN, "t")
    _, _, notes = host_explainer([page], {}, {**GIVEN, "kernel": "5.0.1"}, "t")
    assert notes[0].startswith("the wording of t is that of v5.4 or ") and notes[0].endswith(", not of v5.0")


def test_ept_shows_itself():
    exits = [
        PREFIX + "kvm_exit: vcpu 0 reason EPT_VIOLATION rip 0x1",
        PREFIX + "kvm_mmu_get_page: sp gen 1 gfn 10a l1 8-byte q0 direct wux nxe !ad root 0 sync new",
        PREFIX + "kvm_mmu_set_spte: gfn 1 spte 600000001234877 (rwx) level 1 at 1000",
    ]
    explain, lines, notes = host_explainer(exits, {}, {**GIVEN, "kernel": "v6.1"}, "t")
    assert explain.codec.family == "ept_noad" and "inferred: family = ept_noad (shown by the trace)" in notes
    found = [str(word) for _, words in explain.lines(lines) for word in words]
    assert found[1].startswith("spte 0x600000001234877: pfn 1234, readable, writable, host-writable")
    assert explain.agreed == {"kvm_mmu_set_spte": 1}


def test_an_unknown_layout_is_refused():
    for kernel in ("v5.5", "v6.6", "v4.19"):
        with pytest.raises(TraceError, match=re.escape(kernel)):
            list(explained([], kernel))


def test_every_line_stays_as_it_is():
    lines = read_lines(TRACES / "5.2.1-npt" / "slots" / "trace.txt.xz")
    assert [text for text in explained(lines, "v5.2") if not text.startswith(INDENT)] == lines


def test_commands(tmp_path: Path):
    path = str(TRACES / "5.0.1-npt" / "basic" / "trace.txt.xz")
    run = [sys.executable, "-m", "kvm_mmu", "trace"]
    done = subprocess.run([*run, "decode", path], capture_output=True, text=True, check=True)
    assert "page: level 4" in done.stdout and "MMIO, gfn e0000" in done.stdout
    done = subprocess.run([*run, "kit"], capture_output=True, text=True, check=True)
    assert done.stdout == script()
    (tmp_path / "t.txt").write_text("x")
    done = subprocess.run(
        [*run, "decode", str(tmp_path / "t.txt")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "give --kernel" in done.stderr
