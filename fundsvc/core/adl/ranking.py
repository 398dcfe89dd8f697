"""Computes the ADL scores of a side in columns, and ranks its positions.

For a position with entry value E, mark value M and margin m, all in atoms:

    uPnL = the gain of the position at the mark          equity = m + uPnL
    return = uPnL / E          effective leverage = M / equity          (equity <= 0: not rankable)
    score = return x leverage if uPnL > 0, else return / leverage

Rank 1 has the highest score. Scores with equal sign, exponent and first 28 bits (eight to nine digits) are a tie, and the order
of the accounts decides it. So neither the order of arrival nor rounding errors of a division affect ranks.

The columns contain values per lot: e = E/lots, g = m/lots; M/lots is equal for the whole side. With gain = +-(M - e) and
equity = g + gain per lot, gainers rank by gain / (e x equity), and losers after them by gain x equity / e. These omit the
constant factor M; `ValuedPosition.score` includes it. One 64-bit key contains a score and the ordinal of the account, so one
sort of integers gives the whole order, including ties.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fundsvc.core.adl.account_order import AccountOrder, Ordinals, rows_by_name

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]

ORDINAL_BITS = 24
"""Bits of an ordinal in a key: a side has at most 2^24 (16.8 million) rows. The other 40 bits contain the score."""

ROWS_MAX = 1 << ORDINAL_BITS

_ORDINAL_MASK = np.int64(ROWS_MAX - 1)
_HALF = np.int64(ROWS_MAX >> 1)
"""Added before a score is cut to 40 bits, which rounds it. Round scores are then far from a rounding boundary."""

_MAGNITUDE = np.int64(2**63 - 1)
_UNRANKED = np.float64(np.inf).view(np.int64)
"""Keys from this value on have no rank."""

BLOCK_ROWS = 32768
"""Rows per block; the intermediate results of a block fit into the processor's cache."""

SAMPLE_ROWS = 8192
SAMPLE_MIN = 10
"""Rows of a sample, and rows added to twice the expected number. So one sample in a million gives a wrong threshold."""

ROUNDING_ERROR = 1e-14
"""Upper limit of the rounding error of an equity, relative to the values it is the difference of. Closer to 0, its sign needs
integers.
"""

SLACK = 1 - 1e-6
"""Factor for thresholds, wider than a tie. Keeps borderline candidates for exact ranking."""


class Columns(NamedTuple):
    """The inputs of a ranking. All values are per lot, in atoms.

    `entry` and `margin` have one element per row; `entry` is NaN in a row without a position. `mark` is the value at the mark.
    `direction` is +1 if an entry value below that of the mark is a gain, else -1. `equity` is the exact equity in rows where
    floats do not determine its sign, NaN in others; None if there is no such row.
    """

    entry: Floats
    margin: Floats
    mark: float
    direction: int
    equity: Floats | None = None

    def gainers(self) -> Mask:
        """Returns whether the uPnL is above 0, by row."""
        return self.entry < self.mark if self.direction > 0 else self.entry > self.mark

    def of(self, rows: Ordinals | Integers | Mask | slice) -> "Columns":
        """Returns the columns of some rows."""
        equity = None if self.equity is None else self.equity[rows]
        return self._replace(entry=self.entry[rows], margin=self.margin[rows], equity=equity)


class Ranking(NamedTuple):
    """The rows of all positions with a rank, rank 1 first, and their keys in ascending order."""

    keys: Integers
    rows: Ordinals

    @property
    def gainers(self) -> int:
        """The number of positions with a profit, which have the first ranks. A key contains minus the score."""
        return int(np.searchsorted(self.keys, 0))


class Leaders(NamedTuple):
    """The rows of the first gainers, rank 1 first, and the number of positions with a rank on the whole side."""

    rows: Integers | Ordinals
    ranked: int


def rank_all(columns: Columns, account_order: AccountOrder) -> Ranking:
    """Ranks all positions of a side."""
    keys = keys_of(columns, account_order.ordinals)
    keys.sort()
    keys = keys[: np.searchsorted(keys, _UNRANKED)]
    return Ranking(keys, account_order.rows[keys & _ORDINAL_MASK])


def rank_leaders(columns: Columns, accounts: Sequence[str], count: int) -> Leaders:
    """Ranks the first `count` gainers, or all if there are fewer.

    It scans instead of sorting: a sample gives a score that about twice as many gainers reach, and only these are ranked. If
    the sample is misleading or gainers are few, all gainers are ranked.
    """
    threshold = _sampled(columns, count)
    rows, ranked = _scan(columns, threshold * SLACK)
    if len(rows) > count or threshold:
        scores = _gainers_scores(columns.of(rows))
        if threshold and np.count_nonzero(scores >= threshold) < count:
            rows, ranked = _scan(columns, 0.0)
            scores = _gainers_scores(columns.of(rows))
        if len(rows) > count:
            rows = rows[scores >= _largest(scores, count) * SLACK]
    keys = keys_of(columns.of(rows), np.arange(len(rows), dtype=np.int32))
    keys.sort()
    rows = rows[keys & _ORDINAL_MASK]
    _settle_ties(keys & ~_ORDINAL_MASK, rows, accounts)
    return Leaders(rows[:count], ranked)


def _settle_ties(scores: Integers, rows: Integers, accounts: Sequence[str]) -> None:
    """Sorts adjacent rows with equal scores by account. Reads no other names."""
    differ = scores[1:] != scores[:-1]
    if differ.all():
        return
    bounds = np.flatnonzero(np.concatenate([[True], differ, [True]]))
    for tie in np.flatnonzero(np.diff(bounds) > 1).tolist():
        tied = slice(bounds[tie], bounds[tie + 1])
        rows[tied] = rows_by_name(numbers_of(rows[tied]), accounts)


def _sampled(columns: Columns, count: int) -> float:
    """Returns a score that more than `count` gainers probably reach; 0 if there may be fewer gainers."""
    step = max(1, len(columns.entry) // SAMPLE_ROWS)
    wanted = 2 * count // step + SAMPLE_MIN
    if wanted > len(columns.entry):
        return 0.0
    sample = columns.of(slice(None, None, step))
    scores = _gainers_scores(sample.of(sample.gainers()))
    return _largest(scores, wanted) if wanted <= len(scores) else 0.0


def _scan(columns: Columns, threshold: float) -> tuple[Integers, int]:
    """Returns the rows of gainers with a score of at least `threshold`, and the number of positions with a rank.

    Computes gain / (entry x equity) >= threshold without the division. Rows without positive equity may pass too; the last step
    removes all rows that are not gainers.
    """
    found, ranked = [], 0
    scratch = np.empty((2, BLOCK_ROWS))
    with np.errstate(invalid="ignore"):
        for rows in blocks(len(columns.entry)):
            block = columns.of(rows)
            gain, equity = scratch[:, : len(block.entry)]
            _gains_and_equity(block, gain, equity)
            ranked += int(np.count_nonzero(equity > 0))
            np.multiply(equity, block.entry, out=equity)
            np.multiply(equity, threshold, out=equity)
            found.append(np.flatnonzero(gain >= equity) + rows.start)
    reached = np.concatenate(found) if found else np.empty(0, np.int64)
    return reached[columns.of(reached).gainers()], ranked


def _gainers_scores(columns: Columns) -> Floats:
    """Returns the scores of gainers, divided by the constant factor."""
    gain = (columns.mark - columns.entry) * columns.direction
    scores: Floats = gain / (columns.entry * (columns.margin + gain))
    return scores


def _largest(scores: Floats, rank: int) -> float:
    """Returns the score of a rank. Partitions the negated scores: finding the largest of many equal ones can be very slow."""
    return -float(np.partition(-scores, rank - 1)[rank - 1])


def keys_of(columns: Columns, ordinals: Ordinals) -> Integers:
    """Returns the sort keys of rows, smaller for a better rank; `ordinals` are those of their accounts."""
    keys = np.empty(len(columns.entry), np.int64)
    scratch = np.empty((4, BLOCK_ROWS))
    with np.errstate(all="ignore"):
        for rows in blocks(len(keys)):
            _pack(_scores(columns.of(rows), scratch), ordinals[rows], keys[rows])
    return keys


def numbers_of(column: NDArray[np.integer]) -> list[int]:
    """Converts a column to integers, one block at a time: a call that creates Python objects blocks other threads."""
    numbers: list[int] = column[:BLOCK_ROWS].tolist()
    for start in range(BLOCK_ROWS, len(column), BLOCK_ROWS):
        numbers += column[start : start + BLOCK_ROWS].tolist()
    return numbers


def blocks(length: int) -> Iterator[slice]:
    """Yields the slices of the blocks of a column."""
    return (slice(start, min(length, start + BLOCK_ROWS)) for start in range(0, length, BLOCK_ROWS))


def _scores(columns: Columns, scratch: Floats) -> Floats:
    """Returns minus the score, divided by the constant factor; +inf in rows without a rank.

    gain / (entry x equity) is positive only for gainers, and gain x equity / entry negative only for losers. So max(first, 0) +
    min(second, 0) is the score of both, without a branch.
    """
    gain, equity, gainer, loser = scratch[:, : len(columns.entry)]
    _gains_and_equity(columns, gain, equity)
    np.divide(gain, columns.entry, out=gain)
    np.divide(gain, equity, out=gainer)
    np.multiply(gain, equity, out=loser)
    np.maximum(gainer, 0.0, out=gainer)
    np.minimum(loser, 0.0, out=loser)
    np.add(gainer, loser, out=gainer)
    np.subtract(0.0, gainer, out=gainer)
    np.putmask(gainer, ~(equity > 0), np.inf)
    scores: Floats = gainer
    return scores


def _gains_and_equity(columns: Columns, gain: Floats, equity: Floats) -> None:
    if columns.direction > 0:
        np.subtract(columns.mark, columns.entry, out=gain)
    else:
        np.subtract(columns.entry, columns.mark, out=gain)
    np.add(columns.margin, gain, out=equity)
    if columns.equity is not None:
        np.copyto(equity, columns.equity, where=~np.isnan(columns.equity))


def uncertain_rows(columns: Columns) -> Integers:
    """Returns the rows whose equity is within the rounding error of 0."""
    found = []
    scratch = np.empty((2, BLOCK_ROWS))
    with np.errstate(invalid="ignore"):
        for rows in blocks(len(columns.entry)):
            block = columns.of(rows)
            gain, equity = scratch[:, : len(block.entry)]
            _gains_and_equity(block, gain, equity)
            np.abs(equity, out=equity)
            np.add(block.entry, columns.mark, out=gain)
            np.multiply(gain, ROUNDING_ERROR, out=gain)
            found.append(np.flatnonzero(equity <= gain) + rows.start)
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _pack(scores: Floats, ordinals: Ordinals, keys: Integers) -> None:
    """Converts scores to keys. The bits of floats sort as integers if those of negative numbers are inverted."""
    bits = scores.view(np.int64)
    np.right_shift(bits, 63, out=keys)
    np.bitwise_and(keys, _MAGNITUDE, out=keys)
    np.bitwise_xor(keys, bits, out=keys)
    np.add(keys, _HALF, out=keys)
    np.bitwise_and(keys, ~_ORDINAL_MASK, out=keys)
    np.bitwise_or(keys, ordinals, out=keys)
