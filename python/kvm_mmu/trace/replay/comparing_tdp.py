"""Predictions against the outputs of a recording of the TDP MMU.

Owns: which outputs agree there (`normalise_tdp`), and that a yield with a flush may have taken the place of one flush
that is predicted: the full flush that owed the same entries then has nothing left to do.
"""

from __future__ import annotations

from kvm_mmu.trace.replay.comparing import Comparison
from kvm_mmu.trace.replay.normalise_tdp import alike
from kvm_mmu.trace.replay.stripping import YIELD, Recorded

_FLUSH = "flush_remote_tlbs"


class TdpComparison(Comparison):
    """Takes both sides in any order of arrival, the flushes of yields among the recorded ones."""

    #: A yield flushed, and no full flush has been recorded since.
    _has_flushed = False

    def add_recorded(self, output: Recorded) -> None:
        """An output of the recording, or in place of one the flush of a yield."""
        if output.event != YIELD:
            super().add_recorded(output)
        elif self.divergence is None:
            self._recorded.append(output)
            self._pair()

    def finish(self) -> None:
        """Both sides have ended: what still waits is a difference, but for a flush that a yield has made."""
        self._take_yields()
        if (
            self._has_flushed
            and not self._recorded
            and self._predicted
            and self._predicted[0].event == _FLUSH
        ):
            self._predicted.popleft()
        super().finish()

    def _settle(self) -> bool:
        self._take_yields()
        return bool(self._recorded)

    def _differ(self) -> bool:
        if self._has_flushed and self._predicted[0].event == _FLUSH:
            self._has_flushed = False
            self._predicted.popleft()
            return False
        return True

    def _agree(self, event: str) -> None:
        if event == _FLUSH:
            self._has_flushed = False

    def _take_yields(self) -> None:
        while self._recorded and self._recorded[0].event == YIELD:
            self._has_flushed = True
            self._recorded.popleft()

    def _is_alike(self, event: str, theirs: str, predicted: str, mine: str) -> bool:
        return event == predicted and (theirs == mine or alike(event, theirs, mine, self._words))
