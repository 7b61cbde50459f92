"""Try a wheel as a stranger would: in an empty environment outside the tree, from its own files alone.

Run by `make wheel` as `check_wheel.py DIST`: takes the newest wheel in DIST, installs it with its
dependencies into a fresh environment in a temporary directory, and runs there the import, `kvm-mmu demo` and
one script of examples/. Exit status 1 and a sentence for the first thing that is not so.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLE = "custom_zap_plan.py"

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
    """What a wheel must be and is not."""


def newest(directory: Path) -> Path:
    wheels = sorted(directory.glob("*.whl"), key=lambda path: path.stat().st_mtime_ns)
    if not wheels:
        raise NotSo(f"no wheel in {directory}")
    return wheels[-1]


def look_inside(wheel: Path) -> None:
    """The tag is abi3, and what the package needs at run time is in it while tests and sources are not."""
    if "-abi3-" not in wheel.name:
        raise NotSo(f"{wheel.name} is not tagged abi3")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for wanted in ("kvm_mmu/py.typed", "kvm_mmu/_core.abi3.so", "kvm_mmu/_core.pyi"):
        if wanted not in names:
            raise NotSo(f"{wanted} is missing from {wheel.name}")
    if not any(name.startswith("kvm_mmu/data/") for name in names):
        raise NotSo("the recording of the demo is missing: kvm_mmu/data/ is empty")
    odd = [name for name in names if "__pycache__" in name or name.startswith(("tests/", "src/"))]
    if odd:
        raise NotSo(f"does not belong into a wheel: {odd[:3]}")


def run(where: Path, *command: str | Path) -> str:
    """Run in the empty environment; nothing of the tree and no setting of the caller's Python reaches it."""
    clean = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PYTHON", "VIRTUAL_ENV", "KVM_MMU"))
    }
    done = subprocess.run(
        [str(part) for part in command], cwd=where, env=clean, capture_output=True, text=True, check=False
    )
    if done.returncode:
        shown = " ".join(str(part) for part in command)
        raise NotSo(f"exit status {done.returncode}: {shown}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def check(directory: Path) -> None:
    wheel = newest(directory).resolve()
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB")
    look_inside(wheel)
    with tempfile.TemporaryDirectory(prefix="kvm-mmu-wheel-") as name:
        empty = Path(name)
        run(empty, sys.executable, "-m", "venv", empty / "env")
        python = empty / "env" / "bin" / "python"
        run(empty, python, "-m", "pip", "-q", "install", "-c", ROOT / "constraints.txt", wheel)
        print(f"import: {run(empty, python, '-c', LOOK).strip()}")
        demo = run(empty, empty / "env" / "bin" / "kvm-mmu", "demo")
        if "not there yet" in demo:
            raise NotSo(f"the demo is not whole:\n{demo}")
        print(f"kvm-mmu demo: {len(demo.splitlines())} lines, nothing missing")
        example = shutil.copy(ROOT / "examples" / EXAMPLE, empty / EXAMPLE)
        print(f"examples/{EXAMPLE}: {len(run(empty, python, example).splitlines())} lines")
    print("the wheel runs by itself")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("directory", type=Path, help="where the wheel is")
    try:
        check(parser.parse_args().directory)
    except NotSo as problem:
        print(f"wheel: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
