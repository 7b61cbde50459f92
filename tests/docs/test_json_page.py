"""docs/reference/json.md: every key that a command prints is in the table of its schema, and the other way round."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
BASIC = "tests/data/traces/5.0.1-npt/basic/trace.txt.xz"
UPDATES = "tests/data/traces/6.1/npt1tdp0_multi_vcpu/trace.txt.xz"
SPTE = ("--kernel", "v5.0", "--family", "npt", "--phys-bits", "40", "--json")
COMMANDS = {
    "decode": [("decode", "spte", "7ff800f8e0000dbf", "c67", "0", *SPTE, "--gen", "2")],
    "encode": [("encode", "mmio", "--gfn", "1", "--gen", "2", *SPTE)],
    "kernel": [("kernels", "show", "6.12.94", "--json")],
    "kernels-diff": [("kernels", "diff", "v6.12", "v5.4", "--json")],
    "check": [("check", "--world", "W1", "--policy", "kvm_mmu:SteppedGeneration", "--json")],
    "sweep": [("sweep", "boot", "--pages", "64", "--jobs", "1", "-o", "{tmp}/s", "--json")],
    "curve": [
        ("curve", "wrap", "--kernels", "v5.0", "--values", "64", "--jobs", "1", "-o", "{tmp}/c", "--json")
    ],
    "latency": [("latency", "boot", "--pages", "64", "--kernels", "v5.0", "-o", "{tmp}/l", "--json")],
    "compare-sync": [("compare", "sparse", "--sync", "cr3", "--json")],
    "trace-summary": [("trace", "summary", BASIC, "--json")],
    "trace-decode": [("trace", "decode", BASIC, "--json")],
    "trace-stalls": [("trace", "stalls", UPDATES, "--json")],
    "trace-fleet-stalls": [("trace", "stalls", UPDATES.rpartition("/")[0], "--json")],
    "trace-replay": [("trace", "replay", BASIC, "--json")],
    "trace-diff": [("trace", "diff", BASIC, "--kernel-b", "v5.2", "--json")],
    "trace-export": [("trace", "export", BASIC, "--chrome", "{tmp}/c.json", "--json")],
    "trace-evidence": [("trace", "evidence", "tests/data/traces", "--json")],
    "trace-fidelity": [("trace", "fidelity", "{tmp}", "--json")],
}


def documented(schema: str) -> set[str]:
    """The names in backticks of the first column of a schema's table."""
    page = (ROOT / "docs" / "reference" / "json.md").read_text(encoding="utf-8")
    part = page.split(f"## `kvm-mmu/{schema}/1`")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in part.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


@pytest.mark.parametrize("schema", COMMANDS)
def test_keys_are_documented(schema: str, tmp_path: Path):
    for command in COMMANDS[schema]:
        if schema == "trace-fidelity":
            folder = tmp_path / "5.0.1" / "basic"
            folder.mkdir(parents=True)
            (folder / "trace.txt.xz").write_bytes((ROOT / BASIC).read_bytes())
            (folder / "host.json").write_bytes((ROOT / BASIC).with_name("host.json").read_bytes())
        words = [word.replace("{tmp}", str(tmp_path)) for word in command]
        done = subprocess.run(
            [sys.executable, "-m", "kvm_mmu", *words], capture_output=True, text=True, cwd=ROOT, check=False
        )
        assert done.returncode in (0, 1), done.stderr
        keys: set[str] = set()
        # One object a line, or one over several.
        texts = [done.stdout] if done.stdout.startswith("{\n") else done.stdout.splitlines()
        for line in texts:
            found = json.loads(line)
            assert found["schema"] == f"kvm-mmu/{schema}/1"
            keys |= found.keys() - {"schema"}
        assert keys == documented(schema)


def test_no_schema_is_undocumented():
    names = set()
    for path in (ROOT / "python" / "kvm_mmu").rglob("*.py"):
        names |= set(
            re.findall(
                r'"kvm-mmu/((?:trace-[\w-]+)|check|sweep|curve|latency|decode|encode|kernel|kernels-diff|compare-sync)/1"',
                path.read_text(encoding="utf-8"),
            )
        )
    names.add("trace-fleet-stalls")  # that of a fleet is put together: it has one for each question
    assert names == set(COMMANDS)
