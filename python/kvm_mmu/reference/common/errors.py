"""The one error of the reference: an input that is not a scenario.

A guest fault, an errno or a retry is an outcome, never an exception; only an operation, a configuration or
a plan that cannot be understood raises.
"""

from __future__ import annotations


class ScenarioError(ValueError):
    """An operation, configuration or plan that is not understood; the message says what was expected."""


class KernelBug(ScenarioError):
    """The modelled kernel stops here: `where` is the line of its BUG and the condition. The VM is of no use then."""

    def __init__(self, kernel: str, where: str) -> None:
        super().__init__(f"kernel {kernel} stops with a BUG here: {where}")
        self.where = where


def cut(value: object) -> str:
    """A value for a message, not longer than a line."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
