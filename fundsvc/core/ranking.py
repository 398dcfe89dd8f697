"""The ADL score, by columns, and the order it gives.

For a position with entry value E, mark value M and margin m, all in atoms:

    uPnL = what the position gains at the mark          equity = m + uPnL
    return = uPnL / E          effective leverage = M / equity          (equity <= 0: not rankable)
    score = return x leverage if uPnL > 0, else return / leverage

Rank 1 has the highest score. Scores that agree in sign, exponent and their first 28 bits (eight to nine digits) are a tie, and
ties go by account: neither the order of arrival nor the last bits of a division decide whom it hits.

All of this is the same per lot: e = E/lots, g = m/lots, and M/lots is one number for the whole side. So with gain = +-(M - e)
and equity = g + gain per lot, gainers rank by gain / (e x equity) and losers, behind them, by gain x equity / e: the constant
factor M is left out of the columns and put back where a score is shown. A score and the account's place in the alphabet travel
in one 64-bit key, so that one sort of integers gives the whole order, ties included.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fundsvc.core.alphabet import Alphabet, Places

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]

PLACE_BITS = 24
"""A side has at most sixteen million rows; the key's other 40 bits hold the score."""

ROWS_MAX = 1 << PLACE_BITS

_PLACE_MASK = np.int64(ROWS_MAX - 1)
_HALF = np.int64(ROWS_MAX >> 1)
"""Scores are rounded to the bits that they keep: round numbers then lie far from where one would fall apart from its equals."""

_MAGNITUDE = np.int64(2**63 - 1)
_UNRANKED = np.float64(np.inf).view(np.int64)
"""Keys from here on have no rank."""

BLOCK_ROWS = 8192
"""Columns are scored in blocks whose intermediate results stay in the processor's cache."""

_NORMAL_MIN = np.finfo(np.float32).tiny
"""Rough scores nearer to 0 may have lost their digits, or all of themselves."""


class Columns(NamedTuple):
    """What a side is ranked by: a lot's entry value and margin in atoms (-inf where there is no position) by row, a lot's value
    at the mark, and +1 where a mark above the entry is a gain, -1 where it is a loss.
    """

    entry: Floats
    margin: Floats
    mark: float
    direction: int

    def gainers(self) -> Mask:
        """Whose uPnL is above 0, by row."""
        ahead = self.entry < self.mark if self.direction > 0 else self.entry > self.mark
        return ahead & (self.margin >= 0)

    def of(self, rows: Places | Integers | slice) -> "Columns":
        """The same of some rows."""
        return self._replace(entry=self.entry[rows], margin=self.margin[rows])


class Ranking(NamedTuple):
    """The rows of all that have a rank, rank 1 first, and their keys, which rise."""

    keys: Integers
    rows: Places


class Leaders(NamedTuple):
    """The rows of the first gainers, rank 1 first, and how many positions have a rank in all."""

    rows: Integers | Places
    ranked: int


def rank_all(columns: Columns, alphabet: Alphabet) -> Ranking:
    """Ranks a whole side."""
    keys = keys_of(columns, alphabet.places)
    keys.sort()
    keys = keys[: np.searchsorted(keys, _UNRANKED)]
    return Ranking(keys, alphabet.rows[keys & _PLACE_MASK])


def rank_leaders(columns: Columns, accounts: Sequence[str], count: int) -> Leaders:
    """The first `count` gainers, or all there are.

    Costs a scan and a partition instead of a sort: all are scored roughly, in single precision, and only what can be among the
    leaders is scored in full. (The smallest are sought because a partition for the largest of many equals can be very slow.)
    """
    rough, ranked = _rough_scores(columns)
    last = np.partition(rough, count - 1)[count - 1] if count < len(rough) else np.float32(0)
    if last < -_NORMAL_MIN:
        # The next rough score is wider than a tie: whatever may tie with the last of the leaders is scored in full.
        rows = np.flatnonzero(rough <= np.nextafter(last, np.float32(0)))
    else:
        rows = np.flatnonzero(columns.gainers())
    order = rank_all(columns.of(rows), Alphabet([accounts[row] for row in rows.tolist()]))
    return Leaders(rows[order.rows[:count]], ranked)


def keys_of(columns: Columns, places: Places) -> Integers:
    """The sort keys of rows, smaller for a better rank; `places` are their accounts' in the alphabet."""
    keys = np.empty(len(columns.entry), np.int64)
    scratch = np.empty((4, BLOCK_ROWS))
    with np.errstate(all="ignore"):
        for rows in _blocks(len(keys)):
            _pack(_scores(columns.of(rows), scratch), places[rows], keys[rows])
    return keys


def _blocks(length: int) -> Iterator[slice]:
    return (slice(start, min(length, start + BLOCK_ROWS)) for start in range(0, length, BLOCK_ROWS))


def _scores(columns: Columns, scratch: Floats) -> Floats:
    """Minus the score over the constant factor, +inf where there is no rank.

    gain / (entry x equity) is positive exactly for gainers and gain x equity / entry negative exactly for losers, so the larger
    of the first and 0 plus the smaller of the second and 0 is right for both, without a branch.
    """
    entry, margin, mark, direction = columns
    gain, equity, gainer, loser = scratch[:, : len(entry)]
    _gains(entry, mark, direction, gain)
    np.add(margin, gain, out=equity)
    np.divide(gain, entry, out=gain)
    np.divide(gain, equity, out=gainer)
    np.multiply(gain, equity, out=loser)
    np.maximum(gainer, 0.0, out=gainer)
    np.minimum(loser, 0.0, out=loser)
    np.add(gainer, loser, out=gainer)
    np.subtract(0.0, gainer, out=gainer)
    np.putmask(gainer, ~(equity > 0), np.inf)
    scores: Floats = gainer
    return scores


def _rough_scores(columns: Columns) -> tuple[NDArray[np.float32], int]:
    """A gainer's score as `_scores` gives it, 0 or more (or no number) for all others; and how many have a rank."""
    rough = np.empty(len(columns.entry), np.float32)
    scratch = np.empty((2, BLOCK_ROWS))
    ranked = 0
    with np.errstate(all="ignore"):
        for rows in _blocks(len(rough)):
            entry, margin, mark, direction = columns.of(rows)
            loss, equity = scratch[:, : len(entry)]
            _gains(entry, mark, -direction, loss)
            np.subtract(margin, loss, out=equity)
            ranked += int(np.count_nonzero(equity > 0))
            np.multiply(equity, entry, out=equity)
            np.minimum(loss, 0.0, out=loss)
            rough[rows] = np.divide(loss, equity, out=loss)
    return rough, ranked


def _gains(entry: Floats, mark: float, direction: int, out: Floats) -> None:
    if direction > 0:
        np.subtract(mark, entry, out=out)
    else:
        np.subtract(entry, mark, out=out)


def _pack(scores: Floats, places: Places, keys: Integers) -> None:
    """Turns scores into keys: a float's bits order as integers once those of negative numbers are mirrored."""
    bits = scores.view(np.int64)
    np.right_shift(bits, 63, out=keys)
    np.bitwise_and(keys, _MAGNITUDE, out=keys)
    np.bitwise_xor(keys, bits, out=keys)
    np.add(keys, _HALF, out=keys)
    np.bitwise_and(keys, ~_PLACE_MASK, out=keys)
    np.bitwise_or(keys, places, out=keys)
