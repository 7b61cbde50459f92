"""Try a wheel or a source archive as a stranger would: in an empty environment outside the tree.

Run by `make wheel` and `make sdist` as `check_dist.py wheel|sdist DIST`: takes the newest one in DIST, looks at
what is in it, installs it with its dependencies into a fresh environment in a temporary directory, and runs there
the import, `kvm-mmu demo` and one script of examples/. Exit status 1 and a sentence for the first thing that is
not so.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from symbol_versions import is_stripped, needed, oldest_glibc

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLE = "custom_zap_plan.py"

# Stripped it has about 1.4 MB; with debug information it had 9.7.
LARGEST_LIBRARY = 3_000_000
# What a manylinux wheel may link against, of what the core could ask for.
ALLOWED = {"libc.so.6", "libm.so.6", "libdl.so.2", "librt.so.1", "libpthread.so.0", "libgcc_s.so.1"}
LOADERS = {"ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}

LOOK = """
import importlib.util, pathlib, sys
import kvm_mmu
from kvm_mmu import _core
home = pathlib.Path(sys.prefix).resolve()
for module in (kvm_mmu, _core):
    at = pathlib.Path(module.__file__).resolve()
    assert home in at.parents, f"{at} is not of this environment"
assert kvm_mmu.__version__, "no version"
mutants = [name for name in dir(_core) if "mutant" in name.lower()]
assert not mutants, f"planted faults in the wheel: {mutants}"
assert importlib.util.find_spec("pytest") is None, "the base install brings test packages"
print(kvm_mmu.__version__)
"""


class NotSo(Exception):
    """What a wheel or a source archive must be and is not."""


def newest(directory: Path, pattern: str) -> Path:
    found = sorted(directory.glob(pattern), key=lambda path: path.stat().st_mtime_ns)
    if not found:
        raise NotSo(f"no {pattern} in {directory}")
    return found[-1].resolve()


def look_inside(wheel: Path) -> None:
    """The tag is true, the library small, and what the package needs is in it while tests and sources are not."""
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    for wanted in ("kvm_mmu/py.typed", "kvm_mmu/_core.abi3.so", "kvm_mmu/_core.pyi"):
        if wanted not in files:
            raise NotSo(f"{wanted} is missing from {wheel.name}")
    if not any(name.startswith("kvm_mmu/data/") for name in files):
        raise NotSo("the recording of the demo is missing: kvm_mmu/data/ is empty")
    odd = [name for name in files if "__pycache__" in name or name.startswith(("tests/", "src/"))]
    if odd:
        raise NotSo(f"does not belong into a wheel: {odd[:3]}")
    for place in (f"{ROOT}/", f"{Path.home()}/", "registry/src/"):
        told = [name for name, content in files.items() if place.encode() in content]
        if told:
            raise NotSo(f"{told[0]} holds {place}: where it was built is nobody's business")
    look_at_the_library(wheel.name, files["kvm_mmu/_core.abi3.so"])


def look_at_the_library(wheel: str, image: bytes) -> None:
    """Stripped, and every symbol version is there on the oldest host that the wheel's tag promises."""
    tag = re.search(r"-abi3-manylinux_(\d+)_(\d+)_\w+\.whl$", wheel)
    if not tag:
        raise NotSo(f"{wheel} is not tagged abi3 and manylinux")
    if not is_stripped(image) or len(image) > LARGEST_LIBRARY:
        raise NotSo(f"the library has {len(image) / 1e6:.1f} MB: it is not stripped")
    promised = (int(tag[1]), int(tag[2]))
    if promised > (2, 28):
        raise NotSo(f"{wheel} shuts out hosts with glibc 2.28")
    wants = oldest_glibc(image)
    if wants > promised:
        raise NotSo(f"the library needs glibc {wants[0]}.{wants[1]}, newer than the tag of {wheel}")
    foreign = set(needed(image)) - ALLOWED - LOADERS
    if foreign:
        raise NotSo(f"the library links against {sorted(foreign)}, which manylinux does not allow")
    print(f"library: {len(image) / 1e6:.1f} MB stripped, needs glibc {wants[0]}.{wants[1]} or newer")


def run(where: Path, *command: str | Path) -> str:
    """Run in the empty environment; nothing of the tree and no setting of the caller's Python reaches it."""
    clean = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PYTHON", "VIRTUAL_ENV", "KVM_MMU", "RUSTFLAGS"))
    }
    done = subprocess.run(
        [str(part) for part in command], cwd=where, env=clean, capture_output=True, text=True, check=False
    )
    if done.returncode:
        shown = " ".join(str(part) for part in command)
        raise NotSo(f"exit status {done.returncode}: {shown}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def try_out(package: Path) -> None:
    """Install it where nothing of the tree is, and run it there."""
    with tempfile.TemporaryDirectory(prefix="kvm-mmu-dist-") as name:
        empty = Path(name)
        run(empty, sys.executable, "-m", "venv", empty / "env")
        python = empty / "env" / "bin" / "python"
        run(empty, python, "-m", "pip", "-q", "install", "-c", ROOT / "constraints.txt", package)
        print(f"import: {run(empty, python, '-c', LOOK).strip()}")
        demo = run(empty, empty / "env" / "bin" / "kvm-mmu", "demo")
        if "not there yet" in demo:
            raise NotSo(f"the demo is not whole:\n{demo}")
        print(f"kvm-mmu demo: {len(demo.splitlines())} lines, nothing missing")
        example = shutil.copy(ROOT / "examples" / EXAMPLE, empty / EXAMPLE)
        print(f"examples/{EXAMPLE}: {len(run(empty, python, example).splitlines())} lines")


def names_in(sdist: Path) -> set[str]:
    """The files of a source archive, without the folder that all of them are in."""
    with tarfile.open(sdist) as archive:
        return {member.name.partition("/")[2] for member in archive if member.isfile()}


def belongs(root: Path) -> set[str]:
    """What a source archive of this tree holds: what the package is built from, and nothing else."""
    top = {"Cargo.toml", "Cargo.lock", "pyproject.toml", "README.md", "LICENSE-MIT", "LICENSE-APACHE"}
    rust = {path.relative_to(root).as_posix() for path in (root / "src").rglob("*.rs")}
    python = {
        path.relative_to(root).as_posix()
        for path in (root / "python").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".so", ".pyc")
    }
    return top | rust | python | {"PKG-INFO"}


def look_at_the_archive(sdist: Path) -> None:
    has, wanted = names_in(sdist), belongs(ROOT)
    if has - wanted:
        raise NotSo(f"does not belong into a source archive: {sorted(has - wanted)[:5]}")
    if wanted - has:
        raise NotSo(f"missing from the source archive: {sorted(wanted - has)[:5]}")


def check(kind: str, directory: Path) -> None:
    package = newest(directory, "*.whl" if kind == "wheel" else "*.tar.gz")
    print(f"{package.name}: {package.stat().st_size / 1e6:.1f} MB")
    if kind == "wheel":
        look_inside(package)
    else:
        look_at_the_archive(package)
    try_out(package)
    print(f"the {kind} runs by itself")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("kind", choices=("wheel", "sdist"))
    parser.add_argument("directory", type=Path, help="where it is")
    asked = parser.parse_args()
    try:
        check(asked.kind, asked.directory)
    except NotSo as problem:
        print(f"{asked.kind}: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
