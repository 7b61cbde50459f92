"""Memslot updates that a 6.x recorder made without saying so in a marker: which ones they were.

Owns the rule. The recorder's wrap scenario updates one slot a quarter of a million times and keeps quiet about most
of it. With the event set `full` the probes on `set_memslot` say what each change was. With the set `wrap` only the
probe on the generation is there, one line for each published array; updates of the slot's flags publish one, deleting
the slot and making it again publishes three. How many updates there were is said by the next marker that counts
them (`toggle`), or by what the next announced update does to the slot; so quiet arrays are kept until then.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Arrays that one round publishes: of switching the log flag, of deleting a slot and making it again.
_FLAGS, _RECREATION = 1, 3
#: set_memslot: change=N
CREATE, DELETE, MOVE, FLAGS = range(4)


@dataclass
class QuietUpdates:
    """Published arrays that no marker announced, and what is known of the rounds that publish them."""

    #: arrays that came by and are kept, and the address space of the last
    pending: int = 0
    as_id: int = 0
    #: rounds that markers have counted
    rounds: int = 0
    #: arrays that a round published the last time this could be told
    per_round: int = _FLAGS

    def note(self, as_id: int) -> None:
        """The probe came by once more."""
        self.pending += 1
        self.as_id = as_id

    def counted(self, rounds: int) -> None:
        """A marker says how many rounds there were until now."""
        made = rounds - self.rounds
        self.rounds = rounds
        if made > 0 and self.pending == made * _RECREATION:
            self.per_round = _RECREATION
        elif made > 0 and self.pending == made:
            self.per_round = _FLAGS

    def announced(self, *, is_deletion: bool) -> None:
        """The next round is announced, and begins like this."""
        if self.pending:
            self.per_round = _RECREATION if is_deletion and self.pending % _RECREATION == 0 else _FLAGS

    def take(self) -> list[int]:
        """The changes that the kept arrays were, in order; none is kept after that."""
        arrays, self.pending = self.pending, 0
        if self.per_round == _RECREATION and arrays % _RECREATION == 0:
            return [DELETE, CREATE] * (arrays // _RECREATION)
        return [FLAGS] * arrays
