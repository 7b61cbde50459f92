"""The judge's search: worlds of a few operations, every order of them, and what is not sound on the way.

`worlds` has the worlds, `engine` makes a search of the core out of one, `search` runs it, `story` tells what was found.
"""

from __future__ import annotations

from kvm_mmu.check.search import Finding, Result, check
from kvm_mmu.check.worlds import WORLDS, World, read_world

__all__ = ["WORLDS", "Finding", "Result", "World", "check", "read_world"]
