"""The recording kit: what it asks for, and what it does to a tracefs, on a folder that looks like one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from kvm_mmu import reference
from kvm_mmu.recorders.kit import PURPOSES, REPLAY_EVENTS, REPLAY_PROBES, script
from kvm_mmu.trace.analysis.mmu_work import is_mmu_event
from kvm_mmu.trace.replay.replaying import replay
from kvm_mmu.trace.text.host import check_facts
from kvm_mmu.trace.text.kinds import OUTPUTS, TDP_OUTPUTS, TRACEPOINTS
from kvm_mmu.trace.text.line import parse_line
from kvm_mmu.trace.text.source import read_lines

BOTH = [(variant, purpose) for variant in ("tracefs", "trace-cmd") for purpose in PURPOSES]
#: The inputs of a replay of v6.x that are kernel events (replay.contract.2).
INPUTS = {
    "kvm_page_fault", "kvm_mmu_spte_requested", "kvm_smm_transition", "mmu_load", "free_roots", "reset_context",
    "free_obsolete_roots", "zap_oldest", "dirty_masked", "kvm_unmap_hva_range", "set_memslot", "swap_memslots",
    "mmu_unload", "slot_clear_dirty", "zap_collapsible", "cond_resched_wr",
}  # fmt: skip


@pytest.mark.parametrize(("variant", "purpose"), BOTH)
def test_it_is_a_shell_script_and_says_what_each_line_is_for(variant: str, purpose: str):
    text = script(variant, purpose)
    subprocess.run(["sh", "-n"], input=text, text=True, check=True)
    events, probes = PURPOSES[purpose]
    for probe in probes:
        line = next(line for line in text.splitlines() if line.startswith(f"probe {probe.name} "))
        assert probe.function in line and probe.fields in line and probe.why in line
    for event in events:
        line = next(line for line in text.splitlines() if f"event {event.name} " in line and "#" in line)
        assert event.why in line
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "-s", "sh", "-"], input=text, text=True, check=True)


def test_a_replay_gets_every_input_and_every_output():
    probes = {probe.name for probe in REPLAY_PROBES}
    recorded = probes | {event.name.split("/")[-1] for event in REPLAY_EVENTS}
    assert {event.name for event in REPLAY_EVENTS} >= {"kvmmmu"}
    assert {name for name in INPUTS if not name.startswith("kvm_mmu_")} <= recorded
    # The group kvmmmu has the tracepoints; each other output needs its probe, since none may be missing.
    outputs = OUTPUTS | TDP_OUTPUTS
    assert probes >= outputs - TRACEPOINTS - {"kvm_tdp_mmu_spte_changed"}
    assert probes <= (outputs | INPUTS)


def test_the_probes_are_those_of_the_recordings(shared: Path):
    known = set((shared / "traces" / "KPROBES.txt").read_text().splitlines())
    for probe in REPLAY_PROBES:
        assert probe.definition in known, probe.definition


def test_stalls_get_only_what_they_understand():
    events, probes = PURPOSES["stalls"]
    assert all(is_mmu_event(probe.name) for probe in probes)
    assert {"kvm/kvm_entry", "kvm/kvm_exit", "kvm/kvm_page_fault"} <= {event.name for event in events}


def engine(kernel: str, config: Mapping[str, object]) -> Any:
    return reference.Engine(kernel=kernel, config=dict(config))


class Tracefs:
    """A folder with the files of a tracefs that a script touches, and a host beside it."""

    def __init__(self, root: Path, without: tuple[str, ...] = ()) -> None:
        self.root = root
        self.folder = root / "tracing"
        names = {event.name for events, _ in PURPOSES.values() for event in events}
        probes = {f"lab/{probe.name}" for _, found in PURPOSES.values() for probe in found}
        for name in (names | probes) - set(without):
            (self.folder / "events" / name).mkdir(parents=True, exist_ok=True)
            (self.folder / "events" / name / "enable").write_text("0\n")
        (self.folder / "events/lab/page_zap_pte/filter").write_text("none\n")
        (self.folder / "events/enable").write_text("0\n")
        (self.folder / "instances").mkdir()
        (self.folder / "options").mkdir()
        for file, text in {
            "kprobe_events": "", "trace": "# tracer: nop\n", "tracing_on": "1\n",
            "trace_clock": "[local] global mono\n", "buffer_size_kb": "1408\n", "options/record-tgid": "0\n",
        }.items():  # fmt: skip
            (self.folder / file).write_text(text)
        for file, text in {
            "kvm_amd/parameters/npt": "Y", "kvm/parameters/tdp_mmu": "N", "kvm/parameters/nx_huge_pages": "auto",
        }.items():  # fmt: skip
            path = root / "module" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        (root / "cpuinfo").write_text(
            "flags\t\t: fpu la57x\nbugs\t\t: spectre_v1 l1tf\naddress sizes\t: 48 bits physical, 48 bits virtual\n"
        )

    def run(self, text: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run the script for no time; a `sleep` of our own notes what was on while it recorded."""
        bin_ = self.root / "bin"
        bin_.mkdir(exist_ok=True)
        (bin_ / "sleep").write_text(
            f'#!/bin/sh\ncp -r "{self.folder}" "{self.root}/while"\n'
            f'echo "# recorded for $1" >> "{self.folder}/instances/kvm_mmu/trace"\n'
        )
        # A new instance has files of its own, and goes with them.
        (bin_ / "mkdir").write_text(
            '#!/bin/sh\n/bin/mkdir "$1" && cd "$1/../.." || exit 1\n'
            'cp -r events options tracing_on trace_clock buffer_size_kb trace "$1"\n: > "$1/trace"\n'
        )
        (bin_ / "rmdir").write_text('#!/bin/sh\nrm -r "$1"\n')
        (bin_ / "trace-cmd").write_text(
            f'#!/bin/sh\nprintf "%s\\n" "$@" >> "{self.root}/trace-cmd"\n[ "$1" = report ] && echo reported\nexit 0\n'
        )
        for tool in bin_.iterdir():
            tool.chmod(0o755)
        env = {
            "PATH": f"{bin_}:/usr/bin:/bin", "TRACEFS": str(self.folder), "SYS_MODULE": str(self.root / "module"),
            "CPUINFO": str(self.root / "cpuinfo"), "RELEASE": "6.1.0-56-amd64", **more,
        }  # fmt: skip
        output = str(self.root / "out" / "trace.txt")
        (self.root / "out").mkdir(exist_ok=True)
        return subprocess.run(
            ["sh", "-s", "3", output], input=text, capture_output=True, text=True, env=env, check=False
        )

    def everything(self, when: str = "tracing") -> dict[str, str]:
        """Every file of the tracefs, now or while it recorded."""
        folder = self.root / when
        return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}

    def read(self, file: str, when: str = "tracing") -> str:
        """A file of the tracefs, now or while it recorded."""
        return (self.root / when / file).read_text()


@pytest.mark.parametrize("purpose", PURPOSES)
def test_what_the_script_writes_where(tmp_path: Path, purpose: str):
    fake = Tracefs(tmp_path)
    before = fake.everything()
    done = fake.run(script("tracefs", purpose))
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")
    events, probes = PURPOSES[purpose]
    during = fake.read("kprobe_events", "while").splitlines()
    assert [line.rstrip() for line in during] == [probe.definition for probe in probes]
    own = tmp_path / "while" / "instances" / "kvm_mmu"
    for file, text in (("tracing_on", "1"), ("trace_clock", "mono"), ("options/record-tgid", "1")):
        assert (own / file).read_text().strip() == text
    assert int((own / "buffer_size_kb").read_text()) <= 65536
    enabled = {
        str(path.parent.relative_to(own / "events"))
        for path in (own / "events").rglob("enable")
        if path.read_text().strip() == "1"
    }
    assert enabled == {event.name for event in events} | {f"lab/{probe.name}" for probe in probes}
    filtered = (own / "events/lab/page_zap_pte/filter").read_text().strip()
    assert filtered == ("spte != 0 && spte != 0x8000000000000000" if purpose == "replay" else "none")
    # The text is there; the instance is gone, its probes are taken away, and nothing else was ever touched.
    assert "# recorded for 3" in (tmp_path / "out/trace.txt").read_text()
    dropped = fake.read("kprobe_events").splitlines()[len(probes) :]
    assert dropped == [f"-:lab/{probe.name}" for probe in probes]
    for when in ("tracing", "while"):
        left = {name: text for name, text in fake.everything(when).items() if "instances/kvm_mmu" not in name}
        assert left | {"kprobe_events": before["kprobe_events"]} == before


def test_another_recording_is_not_disturbed(tmp_path: Path):
    fake = Tracefs(tmp_path)
    (fake.folder / "instances" / "kvm_mmu").mkdir()
    before = fake.everything()
    done = fake.run(script())
    assert done.returncode == 2 and "another recording runs" in done.stderr and done.stderr.count("\n") == 1
    assert fake.everything() == before and not (tmp_path / "out/trace.txt").exists()
    assert fake.run(script(), INSTANCE="other").returncode != 2


def test_a_failure_in_the_middle_leaves_nothing(tmp_path: Path):
    fake = Tracefs(tmp_path)
    (fake.folder / "buffer_size_kb").unlink()
    (fake.folder / "buffer_size_kb").mkdir()  # cannot be written
    before = fake.everything()
    done = fake.run(script())
    assert done.returncode != 0 and not any((fake.folder / "instances").iterdir())
    assert fake.everything() == before


def test_a_function_that_was_renamed_is_tried_by_its_other_name(tmp_path: Path):
    fake = Tracefs(tmp_path, without=("lab/set_memory_region",))
    done = fake.run(script("tracefs", "stalls"))
    assert done.returncode == 0 and "no probe set_memory_region here" in done.stderr
    tried = [
        line.split()[1]
        for line in fake.read("kprobe_events").splitlines()
        if ":lab/set_memory_region " in line
    ]
    old, new = "__kvm_set_memory_region", "kvm_set_memory_region"
    assert tried == [f"kvm:{old}", old, f"kvm:{new}", new]


def test_the_host_facts(tmp_path: Path):
    fake = Tracefs(tmp_path)
    fake.run(script())
    facts = json.loads((tmp_path / "out/host.json").read_text())
    assert facts == {
        "kernel": "6.1.0", "release": "6.1.0-56-amd64", "mmu": "npt", "tdp_mmu": 0, "phys_bits": 48, "la57": 0,
        "l1tf_mask": 1, "nx_huge_pages": 1, "eager_page_split": 1, "mmio_caching": 1,
    }  # fmt: skip
    check_facts(facts, "kit")
    (tmp_path / "module/kvm_amd/parameters/npt").write_text("0\n")
    (tmp_path / "module/kvm/parameters/tdp_mmu").write_text("Y\n")
    (tmp_path / "module/kvm_intel/parameters").mkdir(parents=True)
    (tmp_path / "module/kvm_intel/parameters/ept").write_text("Y\n")
    (tmp_path / "module/kvm_intel/parameters/eptad").write_text("Y\n")
    (tmp_path / "module/kvm_intel/parameters/pml").write_text("Y\n")
    (tmp_path / "cpuinfo").write_text("flags : la57\nbugs : x\n")
    fake.run(script(), RELEASE="6.12.3")
    facts = json.loads((tmp_path / "out/host.json").read_text())
    assert (facts["mmu"], facts["tdp_mmu"], facts["la57"], facts["l1tf_mask"]) == ("ept", 1, 1, 0)
    assert (facts["family"], facts["pml"]) == ("ept_ad", 1)
    check_facts(facts, "kit")
    fake.run(script(), RELEASE="5.4.18")
    assert json.loads((tmp_path / "out/host.json").read_text())["l1tf_mask"] == 1


def test_what_a_kernel_does_not_have_is_said(tmp_path: Path):
    fake = Tracefs(tmp_path, without=("lab/commit_zap", "kvm/kvm_set_spte_hva"))
    done = fake.run(script())
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "no probe commit_zap here (output: zapped pages are freed)", "no kvm/kvm_set_spte_hva here",
    ]  # fmt: skip
    tried = [line for line in fake.read("kprobe_events").splitlines() if "commit_zap" in line]
    assert [line.split()[1] for line in tried] == [
        "kvm:kvm_mmu_commit_zap_page.part.0", "kvm_mmu_commit_zap_page.part.0",
    ]  # fmt: skip


def test_by_trace_cmd(tmp_path: Path):
    fake = Tracefs(tmp_path, without=("kvm/kvm_set_spte_hva",))
    done = fake.run(script("trace-cmd"))
    assert done.returncode == 0 and done.stderr == "no kvm/kvm_set_spte_hva here\n"
    words = (tmp_path / "trace-cmd").read_text().splitlines()
    assert words[:5] == ["record", "-B", "kvm_mmu", "-C", "mono"]
    events = [words[i + 1] for i, word in enumerate(words) if word == "-e"]
    assert events == [
        *(e.name.replace("/", ":") for e in REPLAY_EVENTS if e.name != "kvm/kvm_set_spte_hva"),
        *(f"lab:{probe.name}" for probe in REPLAY_PROBES),
    ]
    assert words[words.index("lab:page_zap_pte") + 1 :][:2] == [
        "-f",
        "spte != 0 && spte != 0x8000000000000000",
    ]
    assert words[-4:-2] == ["report", "-R"] and (tmp_path / "out/trace.txt").read_text() == "reported\n"


def test_no_tracefs_is_said(tmp_path: Path):
    fake = Tracefs(tmp_path)
    done = fake.run(script(), TRACEFS=str(tmp_path / "nowhere"))
    if not Path("/sys/kernel/debug/tracing/kprobe_events").exists():
        assert done.returncode == 2 and "mount -t tracefs" in done.stderr


def test_the_command():
    run = [sys.executable, "-m", "kvm_mmu", "trace", "kit"]
    done = subprocess.run([*run, "trace-cmd", "--for", "stalls"], capture_output=True, text=True, check=True)
    assert done.stdout == script("trace-cmd", "stalls")


@pytest.mark.parametrize("name", ["6.1/npt1tdp0_multi_vcpu", "6.1/npt1tdp0_smm", "6.12/npt1tdp0_zap_batch"])
def test_what_it_records_of_a_vm_replays_whole(name: str, tmp_path: Path):
    """A full recording with only what the script asks for, and the operations: still equal, N of N."""
    source = Path(__file__).resolve().parent.parent / "data" / "traces" / name
    kept = {probe.name for probe in REPLAY_PROBES} | {event.name.split("/")[-1] for event in REPLAY_EVENTS}
    lines, left_out = [], set()
    for text in read_lines(source / "trace.txt.xz"):
        line = parse_line(text)
        name_of = "" if line is None else line.event
        if line is None or name_of in kept or name_of in TRACEPOINTS | {"tracing_mark_write"}:
            lines.append(text)
        elif name_of.startswith("kvm_mmu_"):
            lines.append(text)  # the group kvmmmu
        else:
            left_out.add(name_of)
    assert {"kvm_exit", "page_fault_ret"} <= left_out
    (tmp_path / "trace.txt").write_text("\n".join(lines) + "\n")
    shutil.copy(source / "host.json", tmp_path)
    report = replay(tmp_path / "trace.txt", engine)
    assert report.compared and report.is_equal and sum(report.recorded.values()) > 400
