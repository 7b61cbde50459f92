"""What a source archive holds, and the reader of symbol versions that `make wheel` trusts.

The archive is made here by maturin as `make sdist` makes it, from a copy of the tree with foreign files planted
in it: a README of another package in `.venv`, a built library, compiled Python.
"""

from __future__ import annotations

import importlib.util
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import kvm_mmu._core
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
HERE = Path(__file__).resolve().parent


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(HERE))
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_sdist_holds_the_sources_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_dist = load("check_dist", monkeypatch)
    tree = tmp_path / "tree"
    for folder in ("src", "python"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for file in ("Cargo.toml", "Cargo.lock", "pyproject.toml", "README.md", "LICENSE-MIT", "LICENSE-APACHE"):
        shutil.copy(ROOT / file, tree / file)
    wanted = check_dist.belongs(tree)
    foreign = [
        ".venv/lib/other/README.md",
        ".venv/lib/other/LICENSE-MIT",
        "examples/src/more.rs",
        "demo-out/README.md",
        "fuzz/Cargo.toml",
        "python/kvm_mmu/_core.abi3.so",
        "python/kvm_mmu/__pycache__/errors.cpython-311.pyc",
    ]
    for name in foreign:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("[package]\nname='x'\n", encoding="utf-8")
    # Every test file of Cargo.toml must be found, or cargo refuses the manifest; none of them belongs to the archive.
    shutil.copytree(ROOT / "tests" / "rust", tree / "tests" / "rust")
    maturin = Path(sys.executable).parent / "maturin"
    done = subprocess.run(
        [maturin, "sdist", "--out", tmp_path / "out"],
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    has = check_dist.names_in(check_dist.newest(tmp_path / "out", "*.tar.gz"))
    assert sorted(has - wanted) == []
    assert sorted(wanted - has) == []


def test_symbol_versions_of_the_library_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the library in use: it runs here, so that it needs nothing newer than what is here."""
    versions = load("symbol_versions", monkeypatch)
    image = Path(kvm_mmu._core.__file__).read_bytes()
    asked = versions.needed(image)
    assert "GLIBC_2.2.5" in asked["libc.so.6"] or "GLIBC_2.17" in asked["libc.so.6"]
    assert (2, 2) <= versions.oldest_glibc(image) < (3, 0)
    for library, names in asked.items():
        assert library.encode() + b"\0" in image
        for name in names:
            assert name.encode() + b"\0" in image
    with pytest.raises(versions.NotElf):
        versions.needed(b"MZ" + image[2:])


def needs(*versions: str) -> bytes:
    """A minimal object with one library that is asked for these versions, made by hand."""
    names = b"\0libc.so.6\0" + b"".join(name.encode() + b"\0" for name in versions)
    need = struct.pack("<HHIII", 1, len(versions), 1, 16, 0)
    at = 11
    for number, name in enumerate(versions):
        need += struct.pack("<IHHII", 0, 0, number + 2, at, 16 if number + 1 < len(versions) else 0)
        at += len(name) + 1
    start = 64
    head = b"\x7fELF\x02\x01" + bytes(0x28 - 6) + struct.pack("<Q", start + len(names) + len(need))
    head += bytes(0x3A - len(head)) + struct.pack("<HH", 64, 2)
    head += bytes(start - len(head))
    table = struct.pack("<IIQQQQIIQQ", 0, 3, 0, 0, start, len(names), 0, 0, 0, 0)
    table += struct.pack("<IIQQQQIIQQ", 0, 0x6FFFFFFE, 0, 0, start + len(names), len(need), 0, 1, 0, 0)
    return head + names + need + table


def test_a_wheel_that_promises_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_dist = load("check_dist", monkeypatch)
    old, new = needs("GLIBC_2.2.5", "GLIBC_2.28"), needs("GLIBC_2.2.5", "GLIBC_2.34", "GLIBC_2.9")
    wheel = "kvm_mmu-0.1.0-cp311-abi3-manylinux_{}_x86_64.whl"
    check_dist.look_at_the_library(wheel.format("2_28"), old)
    for name, image, why in (
        (wheel.format("2_28"), new, r"needs glibc 2\.34"),
        (wheel.format("2_34"), old, "shuts out"),
        (wheel.format("2_17"), old, r"needs glibc 2\.28"),
        ("kvm_mmu-0.1.0-cp311-abi3-linux_x86_64.whl", old, "manylinux"),
        ("kvm_mmu-0.1.0-cp311-cp311-manylinux_2_28_x86_64.whl", old, "abi3"),
        (wheel.format("2_28"), old + bytes(9_000_000), "not stripped"),
        (wheel.format("2_28"), old.replace(b"libc.so.6", b"libz.so.1"), r"libz\.so\.1"),
    ):
        with pytest.raises(check_dist.NotSo, match=why):
            check_dist.look_at_the_library(name, image)
