"""docs/live.md: every output on it is what its command prints, and docs/reference/live-json.md names every key."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kvm_mmu import live
from kvm_mmu.live.audit import CHECKS
from kvm_mmu.live.program import open_source
from kvm_mmu.live.reduce import reduced

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "docs" / "live.md").read_text(encoding="utf-8")
FORM = (ROOT / "docs" / "reference" / "live-json.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```console\n\$ (kvm-mmu [^\n]*)\n(.*?)```\n", PAGE, re.DOTALL)
CASE = "6.1.192/npt1tdp1"


@pytest.fixture(scope="module")
def desk(dumps, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the dump that the page speaks of."""
    folder = tmp_path_factory.mktemp("desk")
    dump = dumps[CASE]
    (folder / "vmcore").write_bytes(reduced(open_source(str(dump.elf), facts=dump.folder)))
    return folder


@pytest.mark.parametrize(("command", "printed"), BLOCKS, ids=[command for command, _ in BLOCKS])
def test_output_is_the_command_s(command: str, printed: str, desk: Path):
    done = subprocess.run(
        [sys.executable, "-m", *command.replace("kvm-mmu", "kvm_mmu").split()],
        cwd=desk,
        capture_output=True,
        text=True,
        check=False,
    )
    sizes = re.compile(r"[\d,]+ bytes")  # another version of xz packs another way
    assert sizes.sub("n bytes", done.stdout + done.stderr) == sizes.sub("n bytes", printed)


def test_there_are_such_blocks():
    assert len(BLOCKS) >= 8


def keys(heading: str) -> set[str]:
    """The names in backticks of the first column below a heading."""
    part = FORM.split(f"# {heading}\n")[1].split("\n#")[0]
    rows = [line.split("|")[1] for line in part.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


def test_form_of_a_vm_is_documented(dumps):
    found: dict[str, set[str]] = {"VM": set(), "page": set(), "slot": set(), "vCPU": set()}
    for dump in dumps.values():
        with live.open(str(dump.elf), facts=dump.folder) as kernel:
            vms: list[dict[str, Any]] = [vm.snapshot() for vm in kernel.vms()]
        for vm in vms:
            found["VM"] |= vm.keys()
            for page in [*vm["active"], *vm["off_list"], *vm["tdp"]]:
                found["page"] |= page.keys()
            for space in vm["as"]:
                assert space.keys() == {"gen", "slots"}
                for slot in space["slots"]:
                    found["slot"] |= slot.keys()
            for vcpu in vm["vcpus"]:
                found["vCPU"] |= vcpu.keys()
    for name, seen in found.items():
        assert seen | ({"error"} if name == "VM" else set()) == keys(f"A {name}"), name


@pytest.mark.parametrize(
    ("words", "schema"),
    [
        ((), "live"),
        (("--vm", "1686", "audit"), "live-audit"),
    ],
)
def test_keys_of_an_object_are_documented(words: tuple[str, ...], schema: str, desk: Path):
    done = subprocess.run(
        [sys.executable, "-m", "kvm_mmu", "live", "vmcore", *words, "--json"],
        cwd=desk,
        capture_output=True,
        text=True,
        check=False,
    )
    found = json.loads(done.stdout)
    assert found["schema"] == f"kvm-mmu/{schema}/1"
    assert found.keys() - {"schema"} == keys(f"`kvm-mmu/{schema}/1`")


@pytest.mark.parametrize(
    ("words", "schema"),
    [
        (("gfn", "0x1001"), "live-answer"),
        (("spte", "0xffff8dd70a44b000"), "live-answer"),
        (("page", "0x8200"), "live-answer"),
        (("wrap",), "live-cost"),
        (("slot-removal", "3"), "live-cost"),
    ],
)
def test_keys_of_an_answer_are_named(words: tuple[str, ...], schema: str, desk: Path):
    done = subprocess.run(
        [sys.executable, "-m", "kvm_mmu", "live", "vmcore", "--vm", "1686", *words, "--json"],
        cwd=desk, capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["schema"] == f"kvm-mmu/{schema}/1"
    part = FORM.split(f"`kvm-mmu/{schema}/1`")[1].split("\n## ")[0]
    names = set(re.findall(r"`(\w+)`", part))
    assert found.keys() - {"schema"} <= names
    for plan in found.get("plans", ()):
        assert plan.keys() <= names


def test_every_check_is_on_the_page_of_invariants():
    text = (ROOT / "docs" / "invariants.md").read_text(encoding="utf-8").split("## Of a live VM")[1]
    named = re.findall(r"^\| `(\w+)`", text, re.MULTILINE)
    assert named == [*CHECKS, "guest_tables"]


def test_picture_parquet_and_rows_of_one_vm(desk: Path):
    words = [sys.executable, "-m", "kvm_mmu", "live", "vmcore"]
    done = subprocess.run([*words, "--svg", "x.svg"], cwd=desk, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "give --vm, one of 1686, 1623" in done.stderr
    for option, name in (("--svg", "x.svg"), ("--parquet", "x.parquet")):
        done = subprocess.run(
            [*words, "--vm", "1686", option, name], cwd=desk, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
    assert (desk / "x.svg").read_text(encoding="utf-8").startswith("<svg ")
    from pyarrow import parquet

    done = subprocess.run(
        [*words, "--vm", "1686", "--raw"], cwd=desk, capture_output=True, text=True, check=False
    )
    assert parquet.read_table(desk / "x.parquet").num_rows == len(done.stdout.splitlines()) - 1 > 1000
