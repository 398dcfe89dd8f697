"""Checkpoints of a stream: messages up to which it was settled, at distances that grow with their age.

If the stream loses its newest messages, the newest checkpoint that it still has is where the engine continues to read. So the
distance between two checkpoints bounds what is read again: a share of the time that was lost.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

CHECKPOINT_SECONDS = 10.0
"""The shortest time between two checkpoints. The commit that stores one writes one small row more."""

DISTANCE_SHARE = 0.25
"""The largest distance between two checkpoints, as a share of the age of the younger one.

Of three consecutive checkpoints the oldest is at least 1.25 times as old as the youngest, so a year needs 134 of them.
"""

CHECKPOINTS_MAX = 200
"""The oldest checkpoints beyond this number are deleted. They would be decades old."""


class Checkpoint(NamedTuple):
    """A message up to which a stream was settled: its id, the number of messages up to it, and its fingerprint."""

    last_id: str
    messages: int
    fingerprint: bytes


class Saving(NamedTuple):
    """A checkpoint to store with a commit, and the ids of the stored ones to delete with it."""

    checkpoint: Checkpoint
    dropped: Sequence[str]


class Checkpoints:
    """The stored checkpoints of a stream: the time (s) at which each was stored by its id, the newest last.

    All times are those of one clock, that of the caller.
    """

    def __init__(self, stored: Iterable[tuple[str, float]] = ()) -> None:
        self._times = dict(stored)
        self._due = float("-inf")

    def is_due(self, now: float) -> bool:
        """Whether the next commit stores a checkpoint."""
        return now >= self._due

    def save(self, checkpoint: Checkpoint, now: float) -> Saving:
        """Returns how to store a checkpoint."""
        times = {one: at for one, at in self._times.items() if one != checkpoint.last_id}
        ids = [checkpoint.last_id, *reversed(times)]
        ages = [0.0, *(now - at for at in reversed(times.values()))]
        return Saving(checkpoint, [ids[place] for place in surplus(ages)])

    def stored(self, saving: Saving, now: float) -> None:
        """Records that a checkpoint is stored."""
        self._times.pop(saving.checkpoint.last_id, None)
        for one in saving.dropped:
            del self._times[one]
        self._times[saving.checkpoint.last_id] = now
        self._due = now + CHECKPOINT_SECONDS


def surplus(ages: Sequence[float]) -> list[int]:
    """Returns the places of checkpoints that are not needed, from their ages (s), the youngest first.

    Without them the remaining ones are close enough, and stay so: their distances stay the same while their ages grow.
    """
    places = range(len(ages))
    kept = [*places[:1]]
    for place in places[1:]:
        if place == places[-1] or ages[place + 1] - ages[kept[-1]] > DISTANCE_SHARE * ages[kept[-1]]:
            kept.append(place)
    return sorted({*places} - {*kept[:CHECKPOINTS_MAX]})
