"""What a replay needs of a model: operations of the scenario language in, results with events out.

Owns the seam only. The core behind the machine layer and the pure-Python reference both fit it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol


class Engine(Protocol):
    """A VM that executes operations of the scenario language."""

    def apply(self, op: dict[str, object]) -> dict[str, object]:
        """Execute one operation: `ret`, `events`, ..."""


#: (kernel, configuration as in a scenario header) -> a fresh VM
EngineFactory = Callable[[str, Mapping[str, object]], Engine]
