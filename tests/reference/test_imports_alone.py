"""The reference stands alone: no native module, nothing outside the standard library, nothing of the machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PYTHON = Path(__file__).resolve().parents[2] / "python"

PROGRAM = """
import sys
sys.modules["kvm_mmu._core"] = None
sys.modules["numpy"] = None
from kvm_mmu.reference import Engine
engine = Engine("v5.2", {"family": "npt"})
engine.apply({"op": "set_memslot", "id": 0, "gpa": 0, "size": 0x200000, "hva": 0x200000000})
assert engine.apply({"op": "access", "gpa": 0x1000, "kind": "w"})["out"] == {"outcome": "hit", "faults": 1}
outside = [
    name for name, module in sys.modules.items()
    if module is not None and name.startswith("kvm_mmu.") and name not in ("kvm_mmu.types", "kvm_mmu.errors")
    and not name.startswith("kvm_mmu.reference")
]
assert not outside, outside
foreign = {name.partition(".")[0] for name, module in sys.modules.items() if module is not None}
foreign -= set(sys.stdlib_module_names) | set(sys.builtin_module_names) | before
assert foreign <= {"kvm_mmu"}, foreign
"""


def test_it_works_with_the_native_module_blocked() -> None:
    lines = PROGRAM.strip().splitlines()
    noted = "before = {name.partition('.')[0] for name in sys.modules}"
    program = "\n".join([lines[0], noted, f"sys.path.insert(0, {str(PYTHON)!r})", *lines[1:]])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
