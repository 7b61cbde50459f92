"""Real lines, mutated by hypothesis: the reader counts each once, nothing but an error of this package comes out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from kvm_mmu import reference
from kvm_mmu.errors import KvmMmuError
from kvm_mmu.trace.analysis.explain import explained
from kvm_mmu.trace.analysis.stalls import stalls
from kvm_mmu.trace.replay.replaying import replay
from kvm_mmu.trace.text.raw_fields import in_kernel_text
from kvm_mmu.trace.text.reader import native_reader
from kvm_mmu.trace.text.source import read_lines

TRACES = Path(__file__).resolve().parent.parent / "data" / "traces"
PREFIX = "             vmm-851   [001] .....  5012.123456: "
RAW = [
    f"{PREFIX}kvm_mmu_get_page: mmu_valid_gen=0 gfn=0 role=14212 root_count=0 unsync=0 created=1",
    f"{PREFIX}zap_oldest_ret: __probe_func=0x1000 __probe_ret_ip=0x2000 ret=21",
    f"{PREFIX}kvm_page_fault: vcpu_id=0 guest_rip=0x1000 fault_address=1048576 error_code=8589934598",
    "CPU:0 [LOST 42 EVENTS]",
]


def one_of_each(name: str) -> list[str]:
    """The first lines of each event of a recording."""
    lines: dict[str, str] = {}
    for text in read_lines(TRACES / name / "trace.txt.xz"):
        lines.setdefault(": ".join(text.split(": ")[1:2]), text)
    return list(lines.values())


REAL = RAW + one_of_each("6.12/npt0_multi_vcpu_flat") + one_of_each("5.0.1-npt/mmio_gen")
WORDS = [
    "0",
    "f" * 17,
    "-1",
    "\0",
    "\r",
    " ",
    "[",
    "]",
    ":",
    "=",
    "0x",
    "99999999999999999999",
    "vcpu ",
    "é",
    "sp gen ",
    "9" * 5000,
    "f" * 5000,
    "[" * 3000,
    '"\\ud800"',
    "\ud7ff\uffff\u0663",
    "NaN",
    "1e999",
    "-Infinity",
    '{"i":',
    'OP 7 "op":',
    "QUIET 3 as 1",
    "\x85",
    "\u2028",
]


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A real line with pieces cut out, put in, doubled, or taken from another one."""
    text = draw(st.sampled_from(REAL))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text)))
        match draw(st.integers(0, 3)):
            case 0:
                text = text[:at] + draw(st.sampled_from(WORDS)) + text[at:]
            case 1:
                text = text[:at] + text[at + draw(st.integers(1, 12)) :]
            case 2:
                text = text[:at]
            case _:
                text = text[:at] + draw(st.sampled_from(REAL))[at:]
    return text


@given(st.lists(mutated(), max_size=12), st.integers(1, 64), st.sampled_from(["\n", "\r\n"]))
def test_reader(lines: list[str], chunk: int, end: str):
    data = end.join(lines).encode()
    reader = native_reader(columns=True)
    for start in range(0, len(data), chunk):
        reader.feed(data[start : start + chunk])
    reader.finish()
    counts = reader.summary()
    others = ("notes", "blank", "overlong", "lost_notes", "not_understood")
    counted = (
        sum(counts["events"].values()) + sum(counts["opaque"].values()) + sum(counts[key] for key in others)
    )
    assert counts["lines"] == counted == data.count(b"\n") + (not data.endswith(b"\n") and data != b"")
    tables, timeline = reader.take()
    assert len(timeline["line"]) == sum(counts["events"].values()) + sum(counts["opaque"].values())
    assert sum(len(table["columns"]["line"]) for table in tables) == sum(counts["events"].values())


@given(st.lists(mutated(), max_size=12), st.sampled_from(["v5.0", "v5.2", "v6.1", "v6.12"]))
def test_what_reads_lines(lines: list[str], kernel: str):
    stalls(lines, "mutated")
    assert len(list(in_kernel_text(lines, kernel))) == len(lines)
    assert len(list(explained(lines, kernel))) >= len(lines)


def engine(kernel: str, config: Mapping[str, object]) -> Any:
    return reference.Engine(kernel=kernel, config=dict(config))


HOSTS = {
    "5.0.1-npt/basic": '# replay-host: {"kernel": "5.0.1", "mmu": "npt", "phys_bits": 40, "initial_efer_nx": 1}',
    "6.12/npt0_multi_vcpu_flat": '# replay-host: {"kernel": "6.12", "mmu": "shadow", "guest_mode": "flat"}',
}
BEGINNINGS = {name: read_lines(TRACES / name / "trace.txt.xz")[:120] for name in HOSTS}


@settings(max_examples=40)
@given(st.sampled_from(sorted(HOSTS)), st.lists(st.tuples(st.integers(0, 120), mutated()), max_size=6))
def test_replay(tmp_path_factory: Any, name: str, put: list[tuple[int, str]]):
    lines = list(BEGINNINGS[name])
    for at, text in put:
        lines.insert(at, text)
    path = tmp_path_factory.mktemp("mutated") / "trace.txt"
    path.write_text("\n".join([HOSTS[name], *lines]))
    try:
        report = replay(path, engine)
    except KvmMmuError as err:
        assert str(err)
    else:
        assert all(prediction.line > 0 for prediction in report.predictions)
