"""What every test may ask for: the data, how long it may take, and the same random choices every time.

`data` is the recorded material that the project carries (tests/data/README.md), `shared` the larger set
beside the project when it is there. Tests marked `soak` run only with KVM_MMU_SOAK=1 (`make soak`).
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
SOAK = os.environ.get("KVM_MMU_SOAK", "") not in ("", "0")

# A test that never stops allocating ends itself and not the machine.
MOST_MEMORY = 12 << 30
_soft, _hard = resource.getrlimit(resource.RLIMIT_AS)
if _soft == resource.RLIM_INFINITY or _soft > MOST_MEMORY:
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, _hard))

# Derandomized: a red test is red again on the next run and on the next machine.
settings.register_profile(
    "test", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("soak", settings.get_profile("test"), max_examples=2000)
settings.load_profile("soak" if SOAK else "test")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long tests out of the short run, and say so in the summary line (`deselected`)."""
    if SOAK:
        return
    long = [item for item in items if item.get_closest_marker("soak")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if not item.get_closest_marker("soak")]


@pytest.fixture(scope="session")
def root() -> Path:
    """The top of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def data() -> Path:
    """tests/data: vectors and traces that every clone has."""
    return ROOT / "tests" / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The larger set of vectors, traces and texts: $KVM_MMU_SHARED, or `shared` beside the project."""
    path = Path(os.environ.get("KVM_MMU_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip("the shared material is not here: set KVM_MMU_SHARED to run this test")
    return path
