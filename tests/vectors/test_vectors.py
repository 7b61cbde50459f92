"""The kernels' own code, step by step: every listed vector file is equal on the backends it is listed with."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("equal_files", Path(__file__).with_name("equal_files.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
equal_files = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(equal_files)

LISTED = equal_files.read_list()
CORE = sorted(name for name, backends in LISTED.items() if "core" in backends)
#: Those of v6.x are run by tests/reference/test_vectors_6_reference.py, all of them.
STEPPED = re.compile(r"\.tdp[01]\.")
REFERENCE = sorted(
    name for name, backends in LISTED.items() if "reference" in backends and not STEPPED.search(name)
)
#: Length of a random file is in its name; the reference runs the longer ones in `make soak`.
_LENGTH = re.compile(r"random_\d+_[a-z0-9]+_(\d+)\.")
SHORT = 200


def _is_long(name: str) -> bool:
    found = _LENGTH.search(name)
    return bool(found and int(found[1]) > SHORT)


def test_the_list_names_files_that_exist():
    assert not set(LISTED) - set(equal_files.vector_files())
    assert len(LISTED) >= 385, "the list only grows"


@pytest.mark.parametrize("name", CORE)
def test_core(name):
    assert equal_files.run(name, "core") is None


@pytest.mark.parametrize("name", [name for name in REFERENCE if not _is_long(name)])
def test_reference(name):
    assert equal_files.run(name, "reference") is None


@pytest.mark.soak
@pytest.mark.parametrize("name", [name for name in REFERENCE if _is_long(name)])
def test_reference_long(name):
    assert equal_files.run(name, "reference") is None
