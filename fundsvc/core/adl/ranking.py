"""The ADL score, by columns, and the order it gives.

For a position with entry value E, mark value M and margin m, all in atoms:

    uPnL = what the position gains at the mark          equity = m + uPnL
    return = uPnL / E          effective leverage = M / equity          (equity <= 0: not rankable)
    score = return x leverage if uPnL > 0, else return / leverage

Rank 1 has the highest score. Scores that agree in sign, exponent and their first 28 bits (eight to nine digits) are a tie, and
ties go by account: neither the order of arrival nor the last bits of a division decide whom it hits.

All of this is the same per lot: e = E/lots, g = m/lots, and M/lots is one number for the whole side. So with gain = +-(M - e)
and equity = g + gain per lot, gainers rank by gain / (e x equity) and losers, behind them, by gain x equity / e: the constant
factor M is left out of the columns and put back where a score is shown. One 64-bit key holds a score and the ordinal of the
account, so that one sort of integers gives the whole order, ties included.
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
"""A side has at most sixteen million rows; the key's other 40 bits hold the score."""

ROWS_MAX = 1 << ORDINAL_BITS

_ORDINAL_MASK = np.int64(ROWS_MAX - 1)
_HALF = np.int64(ROWS_MAX >> 1)
"""Scores are rounded to the bits that they keep: round numbers then lie far from where one would fall apart from its equals."""

_MAGNITUDE = np.int64(2**63 - 1)
_UNRANKED = np.float64(np.inf).view(np.int64)
"""Keys from here on have no rank."""

BLOCK_ROWS = 32768
"""Columns are scored in blocks whose intermediate results stay in the processor's cache."""

SAMPLE_ROWS = 8192
SAMPLE_MIN = 10
"""A sample's scores are estimates: so many rows, and so many more than twice those expected, mislead once in a million."""

ROUNDING_ERROR = 1e-14
"""Rounding moves an equity by less than this share of the values that it is the difference of: below, only integers know its
sign.
"""

SLACK = 1 - 1e-6
"""Wider than a tie: who may tie with the last of the leaders is looked at closely."""


class Columns(NamedTuple):
    """What a side is ranked by: a lot's entry value (no number where there is no position) and margin in atoms, by row; a lot's
    value at the mark; and +1 where a mark above the entry is a gain, -1 where it is a loss.

    `equity` is a lot's equity at the mark where floats cannot tell its sign, no number in other rows; None if there are none.
    """

    entry: Floats
    margin: Floats
    mark: float
    direction: int
    equity: Floats | None = None

    def gainers(self) -> Mask:
        """Whose uPnL is above 0, by row."""
        return self.entry < self.mark if self.direction > 0 else self.entry > self.mark

    def of(self, rows: Ordinals | Integers | Mask | slice) -> "Columns":
        """The same of some rows."""
        equity = None if self.equity is None else self.equity[rows]
        return self._replace(entry=self.entry[rows], margin=self.margin[rows], equity=equity)


class Ranking(NamedTuple):
    """The rows of all that have a rank, rank 1 first, and their keys, which rise."""

    keys: Integers
    rows: Ordinals


class Leaders(NamedTuple):
    """The rows of the first gainers, rank 1 first, and how many positions have a rank in all."""

    rows: Integers | Ordinals
    ranked: int


def rank_all(columns: Columns, account_order: AccountOrder) -> Ranking:
    """Ranks a whole side."""
    keys = keys_of(columns, account_order.ordinals)
    keys.sort()
    keys = keys[: np.searchsorted(keys, _UNRANKED)]
    return Ranking(keys, account_order.rows[keys & _ORDINAL_MASK])


def rank_leaders(columns: Columns, accounts: Sequence[str], count: int) -> Leaders:
    """The first `count` gainers, or all there are.

    Costs a scan instead of a sort: a sample says what score about twice as many will reach, and only who does is looked at more
    closely. Should the sample mislead, or gainers be few, all of them are.
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
    """Puts rows that have equal scores, and so lie side by side, in the order of their accounts. No other name is looked at."""
    differ = scores[1:] != scores[:-1]
    if differ.all():
        return
    bounds = np.flatnonzero(np.concatenate([[True], differ, [True]]))
    for tie in np.flatnonzero(np.diff(bounds) > 1).tolist():
        tied = slice(bounds[tie], bounds[tie + 1])
        rows[tied] = rows_by_name(numbers_of(rows[tied]), accounts)


def _sampled(columns: Columns, count: int) -> float:
    """A score that somewhat more than `count` gainers should reach; 0 when there may not be so many."""
    step = max(1, len(columns.entry) // SAMPLE_ROWS)
    wanted = 2 * count // step + SAMPLE_MIN
    if wanted > len(columns.entry):
        return 0.0
    sample = columns.of(slice(None, None, step))
    scores = _gainers_scores(sample.of(sample.gainers()))
    return _largest(scores, wanted) if wanted <= len(scores) else 0.0


def _scan(columns: Columns, threshold: float) -> tuple[Integers, int]:
    """The rows of gainers whose score reaches a threshold, and how many positions have a rank.

    gain / (entry x equity) >= t, without the division. Who has no equity, or is at 0, may pass as well: gainers are sorted out
    afterwards.
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
    """The scores of gainers over the constant factor."""
    gain = (columns.mark - columns.entry) * columns.direction
    scores: Floats = gain / (columns.entry * (columns.margin + gain))
    return scores


def _largest(scores: Floats, rank: int) -> float:
    """The score of a rank. The smallest of their negatives, as a partition for the largest of many equals can be very slow."""
    return -float(np.partition(-scores, rank - 1)[rank - 1])


def keys_of(columns: Columns, ordinals: Ordinals) -> Integers:
    """The sort keys of rows, smaller for a better rank; `ordinals` are their accounts' in the account_order."""
    keys = np.empty(len(columns.entry), np.int64)
    scratch = np.empty((4, BLOCK_ROWS))
    with np.errstate(all="ignore"):
        for rows in blocks(len(keys)):
            _pack(_scores(columns.of(rows), scratch), ordinals[rows], keys[rows])
    return keys


def numbers_of(column: NDArray[np.integer]) -> list[int]:
    """The numbers of a column. Made a block at a time: other threads wait until a call that makes Python objects is over."""
    numbers: list[int] = column[:BLOCK_ROWS].tolist()
    for start in range(BLOCK_ROWS, len(column), BLOCK_ROWS):
        numbers += column[start : start + BLOCK_ROWS].tolist()
    return numbers


def blocks(length: int) -> Iterator[slice]:
    """The slices of a column that together are all of it."""
    return (slice(start, min(length, start + BLOCK_ROWS)) for start in range(0, length, BLOCK_ROWS))


def _scores(columns: Columns, scratch: Floats) -> Floats:
    """Minus the score over the constant factor, +inf where there is no rank.

    gain / (entry x equity) is positive exactly for gainers and gain x equity / entry negative exactly for losers, so the larger
    of the first and 0 plus the smaller of the second and 0 is right for both, without a branch.
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
    """The rows whose equity floats cannot tell from 0."""
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
    """Turns scores into keys: a float's bits order as integers once those of negative numbers are mirrored."""
    bits = scores.view(np.int64)
    np.right_shift(bits, 63, out=keys)
    np.bitwise_and(keys, _MAGNITUDE, out=keys)
    np.bitwise_xor(keys, bits, out=keys)
    np.add(keys, _HALF, out=keys)
    np.bitwise_and(keys, ~_ORDINAL_MASK, out=keys)
    np.bitwise_or(keys, ordinals, out=keys)
