"""Plant each fault and run the test that must notice it (`make mutants`).

Builds the extension module with the feature `mutants` into target/mutants and runs pytest over a copy of the package
there; the module in the tree is not touched. First every named test must pass with nothing planted, then each must
fail with its mutant. Exit status 1 when a mutant survives, when a named test does not run, or when the names of the
table and of the build differ.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import judged
import table

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TARGET = ROOT / "target" / "mutants"
PACKAGE = TARGET / "python" / "kvm_mmu"
LIMIT_SECONDS = 300
#: Built to be ready soon; overflow checks stay as in a release.
PROFILE = {
    "CARGO_PROFILE_RELEASE_LTO": "off",
    "CARGO_PROFILE_RELEASE_OPT_LEVEL": "2",
    "CARGO_PROFILE_RELEASE_CODEGEN_UNITS": "16",
    "CARGO_PROFILE_RELEASE_DEBUG": "0",
}
# pytest's own exit statuses.
PASSED, FAILED = 0, 1


@dataclass(frozen=True)
class Mutant:
    """One planted fault: where it is planted, and the test that must fail."""

    name: str
    setting: str
    test: str


def build() -> None:
    """The extension module with the faults compiled in, beside a copy of the package."""
    environ = {
        **os.environ,
        **PROFILE,
        "PYO3_PYTHON": sys.executable,
        "PYO3_BUILD_EXTENSION_MODULE": "1",
    }
    flags = ["--quiet", "--release", "--locked", "--lib", "--features", "python,mutants"]
    subprocess.run(["cargo", "build", *flags, "--target-dir", str(TARGET)], cwd=ROOT, env=environ, check=True)
    shutil.rmtree(PACKAGE, ignore_errors=True)
    shutil.copytree(
        ROOT / "python" / "kvm_mmu", PACKAGE, ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    library = "libkvm_mmu.dylib" if sys.platform == "darwin" else "libkvm_mmu.so"
    shutil.copy2(TARGET / "release" / library, PACKAGE / "_core.abi3.so")


def environ(setting: str = "", name: str = "") -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("KVM_MMU_")}
    shared = {key: os.environ[key] for key in ("KVM_MMU_SHARED",) if key in os.environ}
    path = {"PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), str(HERE)]), "PYTHONDONTWRITEBYTECODE": "1"}
    return {**kept, **shared, **path, **({setting: name} if setting else {})}


def pytest(tests: list[str], setting: str = "", name: str = "") -> tuple[int, str]:
    """Exit status and output of the tests under one mutant, or under none."""
    command = [sys.executable, "-m", "pytest", "-x", "-p", "broken_policies", *tests]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environ(setting, name),
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return FAILED, f"not done in {LIMIT_SECONDS} s"
    return done.returncode, done.stdout + done.stderr


def built_names() -> list[str]:
    ask = "from kvm_mmu import _core; print(*_core.MUTANTS)"
    done = subprocess.run(
        [sys.executable, "-c", ask], env=environ(), capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def kill(mutant: Mutant) -> tuple[bool, str]:
    """Whether the named test failed under the mutant, and what pytest said."""
    status, said = pytest([mutant.test], mutant.setting, mutant.name)
    return status == FAILED, said


def findings(name: str) -> list[tuple[str, int]] | None:
    """What the judge finds under a mutant, None if the search came to nothing."""
    command = [sys.executable, str(HERE / "judged.py"), name]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environ("KVM_MMU_MUTANT", name),
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            check=True,
        )
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
        print(f"{name}: {error}\n{error.stderr!r}", file=sys.stderr)
        return None
    return [(found, steps) for found, steps in json.loads(done.stdout)]


def by_the_judge(parts: list[str], jobs: int) -> int:
    """The table of faults that the judge names or lets pass; how many it is wrong about."""
    chosen = [
        name for name in (*judged.KILLS, *judged.SOUND) if not parts or any(part in name for part in parts)
    ]
    planted = {
        name: one for name, one in judged.PLANTED.items() if not parts or any(part in name for part in parts)
    }
    wrong = number = killed = 0
    print(f"{'#':>3}  {'planted fault':<34} {'expected':<22} {'killed by':<22} {'world':<28} steps")

    def row(name: str, expected: str | None, where: str, found: list[tuple[str, int]] | None) -> None:
        nonlocal wrong, number, killed
        number += 1
        steps = dict(found or [])
        by = expected if expected in steps else next(iter(steps), None)
        is_right = found is not None and by == expected
        wrong += not is_right
        killed += is_right and expected is not None
        last = "" if is_right else "   WRONG"
        said = f"{number:>3}  {name:<34} {expected or '(sound)':<22} {by or 'passes':<22} {where:<28}"
        print(f"{said} {steps.get(by, '') if by else ''}{last}", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        for name, found in zip(chosen, pool.map(findings, chosen), strict=True):
            kill = judged.KILLS.get(name)
            where = "v6.12 W1, W2" if kill is None else f"{kill.kernel} {kill.world.name}"
            row(name, None if kill is None else kill.name, where, found)
    for name, one in planted.items():
        kernel = one.subject.kernel.partition(":")[0]
        row(name, one.name, f"{kernel} {one.world.name}", judged.found_in(one.subject, one.world, one.depth))
    print(f"{killed} faults named by a property, {number - killed - wrong} sound ones passed, {wrong} wrong")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("part", nargs="*", help="only mutants whose name contains one of these")
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1), help="mutants at a time")
    args = parser.parse_args()
    mutants = [Mutant(name, "KVM_MMU_MUTANT", test) for name, test in table.CORE.items()]
    mutants += [Mutant(name, "KVM_MMU_POLICY_MUTANT", test) for name, test in table.POLICY.items()]
    mutants = [m for m in mutants if not args.part or any(part in m.name for part in args.part)]

    start = time.monotonic()
    print("building the mutants into target/mutants", file=sys.stderr)
    build()
    if sorted(built_names()) != sorted(table.CORE):
        odd = sorted(set(built_names()) ^ set(table.CORE))
        print(
            f"the table and src/mmu/words/mutants.rs name different mutants: {', '.join(odd)}",
            file=sys.stderr,
        )
        return 1
    status, said = pytest(sorted({m.test for m in mutants}))
    if status != PASSED:
        print(f"without a mutant the named tests must pass:\n{said[-3000:]}", file=sys.stderr)
        return 1

    survivors = 0
    with ThreadPoolExecutor(args.jobs) as pool:
        for mutant, (is_killed, said) in zip(mutants, pool.map(kill, mutants), strict=True):
            survivors += not is_killed
            print(f"{'killed  ' if is_killed else 'SURVIVED'}  {mutant.name:<30} {mutant.test}", flush=True)
            if not is_killed and "passed" not in said:
                print(said[-2000:], file=sys.stderr)
    survivors += by_the_judge(args.part, args.jobs)
    if not args.part:
        status, said = pytest([table.REFERENCE])
        survivors += status != PASSED
        verdict = "killed  " if status == PASSED else "SURVIVED"
        print(f"{verdict}  {'the reference' + chr(39) + 's own':<30} {table.REFERENCE}")
        if status != PASSED:
            print(said[-2000:], file=sys.stderr)
    print(f"{len(mutants)} mutants, {survivors} survived, {time.monotonic() - start:.0f} s")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
