"""Counts the steps of a session. The lease keeper detects by them that a partition is stuck, or fails at every attempt."""

from typing import Protocol

from fundsvc.engine.batch_bound import Written
from fundsvc.engine.leases import Steps
from fundsvc.readmodel.book_recovery import BookRecovery


class Progress(Protocol):
    """A pipeline: the batch of its current transaction, its steps, and those that settled something or found nothing new."""

    @property
    def writing(self) -> Written | None:
        """The batch of the current transaction."""

    progress: int
    settled: int


class StepCounter:
    """Counts the steps of a session across loads. `pipeline` and `recovery` are those of the current load, once they exist.

    A load counts as progress only as far as it goes further than all loads since the last commit: loads that fail at the same
    point again and again are no progress.
    """

    def __init__(self) -> None:
        self.pipeline: Progress | None = None
        self.recovery: BookRecovery | None = None
        self._attempts = self._restored = 0
        self._settled_before = self._loaded_before = 0

    @property
    def steps(self) -> Steps:
        """Returns the number of all steps, and of those that were progress."""
        taken = self._attempts + sum(part.progress for part in (self.pipeline, self.recovery) if part)
        return Steps(taken, self._settled() + max(self._loaded_before, self._loaded()))

    def attempt(self) -> None:
        """Counts an attempt, which may have failed."""
        self._attempts += 1

    def restore(self) -> None:
        """Counts a step of the current load."""
        self._attempts += 1
        self._restored += 1

    def settle(self) -> None:
        """Counts progress other than a commit."""
        self._settled_before += 1

    def begin_load(self) -> None:
        """Starts counting another load."""
        settled = self._settled()
        self._loaded_before = max(self._loaded_before, self._loaded()) if settled == self._settled_before else 0
        self._settled_before = settled
        self.pipeline = self.recovery = None
        self._restored = 0

    def _settled(self) -> int:
        return self._settled_before + (self.pipeline.settled if self.pipeline else 0)

    def _loaded(self) -> int:
        return self._restored + (self.recovery.progress if self.recovery else 0)
