"""Predictions against the recording's outputs, as both come: how many agree in order, and the first difference.

Owns: the pairing. Of what agreed nothing is kept; what waits for its counterpart waits for so many outputs of the other
side at most (`WAITS_MAX`), so that memory does not grow with the trace.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

from kvm_mmu.trace.replay.narrator import Prediction
from kvm_mmu.trace.replay.normalise import alike, normalise
from kvm_mmu.trace.replay.stripping import Recorded
from kvm_mmu.trace.text.spte_words import SpteWords

#: How far one side may be ahead of the other, in outputs, beyond what the largest operation says at once.
WAITS_MAX = 1 << 17
_CONTEXT = 6
_LEAF_WORDS = 9


@dataclass
class Divergence:
    """The first difference between a recording and its replay.

    Attributes:
        recorded: the recorded output; None: none was left.
        predicted: the predicted output; None: none was left.
        agreed: equal outputs before it.
        surroundings: lines of the trace around it.
    """

    recorded: Recorded | None
    predicted: Prediction | None
    agreed: int
    surroundings: list[str] = field(default_factory=list)


class Comparison:
    """Takes both sides in any order of arrival."""

    def __init__(self, words: SpteWords, enabled: frozenset[str]):
        self._words, self._enabled = words, enabled
        self._recorded: deque[Recorded] = deque()
        self._predicted: deque[Prediction] = deque()
        self._burst = self._of_line = self._line = 0
        self.recorded: Counter[str] = Counter()
        self.equal: Counter[str] = Counter()
        self.divergence: Divergence | None = None

    @property
    def agreed(self) -> int:
        """Outputs that were equal, in order."""
        return sum(self.equal.values())

    def add_recorded(self, output: Recorded) -> None:
        """An output of the recording; what cannot be compared there is passed over, as in the prediction."""
        if output.event not in self._enabled:
            return
        self.recorded[output.event] += 1
        if self.divergence is None:
            self._recorded.append(output)
            self._pair()

    def add_predicted(self, prediction: Prediction) -> None:
        """A prediction; what the recording had not switched on is passed over."""
        if self.divergence is not None or prediction.event not in self._enabled:
            return
        self._of_line = self._of_line + 1 if prediction.line == self._line else 1
        self._line = prediction.line
        self._burst = max(self._burst, self._of_line)
        self._predicted.append(prediction)
        self._pair()

    def finish(self) -> None:
        """Both sides have ended: what still waits is a difference."""
        if self.divergence is None and (self._recorded or self._predicted):
            self._part()

    def _pair(self) -> None:
        while self._predicted and self._settle():
            theirs, mine = self._recorded[0], self._predicted[0]
            if not self._is_alike(theirs.event, theirs.body, mine.event, mine.body):
                if not self._differ():
                    continue
                self._part()
                return
            self._agree(theirs.event)
            self.equal[theirs.event] += 1
            self._recorded.popleft()
            self._predicted.popleft()
        if len(self._recorded) > WAITS_MAX or len(self._predicted) > WAITS_MAX + self._burst:
            self._part()

    def _settle(self) -> bool:
        """Whether a recorded output waits; what stands before it and is none has been taken."""
        return bool(self._recorded)

    def _differ(self) -> bool:
        """Whether the two that wait first are a difference."""
        return True

    def _agree(self, event: str) -> None:
        """The two that wait first are equal."""

    def _part(self) -> None:
        recorded = self._recorded[0] if self._recorded else None
        predicted = self._predicted[0] if self._predicted else None
        self.divergence = Divergence(recorded, predicted, self.agreed)
        self._recorded.clear()
        self._predicted.clear()

    def _is_alike(self, event: str, theirs: str, predicted: str, mine: str) -> bool:
        """Whether the two agree; most do in words that need no masks, and that is seen at once."""
        if event != predicted:
            return False
        said = theirs.rpartition(") ")[2] if theirs[:1] == "(" else theirs
        if said == mine or (event == "kvm_mmu_set_spte" and _is_same_leaf(said.split(" "), mine.split(" "))):
            return True
        one, two = ((event, normalise(event, body, self._words)) for body in (theirs, mine))
        return alike(one, two, self._words)


def _is_same_leaf(theirs: list[str], mine: list[str]) -> bool:
    """`gfn G spte V (ACCESS) level L at PLACE` twice, alike but for the frames in the middle of V and PLACE."""
    if len(theirs) != _LEAF_WORDS or len(mine) != _LEAF_WORDS:
        return False
    (*_, value, access, _, level, _, place), (*_, own, own_access, _, own_level, _, own_place) = theirs, mine
    return (
        (theirs[:3], access, level) == (mine[:3], own_access, own_level)
        and (theirs[5], theirs[7]) == (mine[5], mine[7])
        and value[-3:] == own[-3:]
        and value[:-13] == own[:-13]
        and place[-3:] == own_place[-3:]
    )


def surroundings(lines: Iterable[str], line: int) -> list[str]:
    """The lines around one, numbered."""
    first = max(1, line - _CONTEXT)
    around = islice(lines, first - 1, line + _CONTEXT)
    return [f"{number}: {text[:200]}" for number, text in enumerate(around, first)]
