"""Reduced dumps of real kernels, unpacked once, and what the machine's events say of them."""

from __future__ import annotations

import json
import lzma
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# What the tests of this folder share is imported by name.
sys.path.insert(0, str(Path(__file__).resolve().parent))
DATA = Path(__file__).resolve().parent.parent / "data" / "live"
CASES = sorted(str(path.parent.relative_to(DATA)) for path in DATA.glob("*/*/mini.elf.xz"))


@dataclass(frozen=True)
class Dump:
    """One dump: its unpacked file and the folder of its facts and truth."""

    case: str
    elf: Path
    folder: Path

    def json(self, name: str) -> Any:
        """A file of the folder."""
        return json.loads((self.folder / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def dumps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dump]:
    """Every reduced dump by its case."""
    found = {}
    for case in CASES:
        elf = tmp_path_factory.mktemp("live") / "mini.elf"
        elf.write_bytes(lzma.decompress((DATA / case / "mini.elf.xz").read_bytes()))
        found[case] = Dump(case, elf, DATA / case)
    return found


@pytest.fixture(params=CASES)
def dump(request: pytest.FixtureRequest, dumps: dict[str, Dump]) -> Iterator[Dump]:
    """Each of them in turn."""
    yield dumps[request.param]
