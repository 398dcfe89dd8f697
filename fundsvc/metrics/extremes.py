"""The lowest or highest value of the last minute, which scrapes see although the value itself has changed again."""

from collections.abc import Callable
from typing import Generic, TypeVar

SPAN_SECONDS = 60

Number = TypeVar("Number", bound=float)


class Extreme(Generic[Number]):
    """The lowest (`choose` is `min`) or highest (`max`) value that a state had in this minute of the clock and the one before.

    A state keeps its value until the next one, so the value at the beginning of a minute counts in it.
    """

    __slots__ = ("_before", "_choose", "_extreme", "_last", "_minute")

    def __init__(self, choose: Callable[[Number, Number], Number], value: Number, now: float) -> None:
        self._choose = choose
        self._minute = int(now // SPAN_SECONDS)
        self._before = self._extreme = self._last = value

    def note(self, value: Number, now: float) -> None:
        """Adds the value that the state has from a time (seconds) on."""
        minute = int(now // SPAN_SECONDS)
        if minute != self._minute:
            self._before = self._extreme if minute == self._minute + 1 else self._last
            self._extreme, self._minute = self._last, minute
        self._extreme, self._last = self._choose(self._extreme, value), value

    def at(self, now: float) -> Number:
        """Returns the extreme value as of a time (seconds); changes nothing, so another thread may call it."""
        minutes = int(now // SPAN_SECONDS) - self._minute
        if minutes > 1:
            return self._last
        return self._extreme if minutes == 1 else self._choose(self._before, self._extreme)
