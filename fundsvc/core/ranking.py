"""The ADL score, by columns, and the order it gives.

For a position with entry value E, mark value M and margin m, all in atoms:

    uPnL = what the position gains at the mark          equity = m + uPnL
    return = uPnL / E          effective leverage = M / equity          (equity <= 0: not rankable)
    score = return x leverage if uPnL > 0, else return / leverage

Rank 1 has the highest score. Scores that agree in sign, exponent and their first 28 bits (eight to nine digits) are a tie, and
ties go by account: neither the order of arrival nor the last bits of a division decide whom it hits.

All of this is the same per lot: e = E/lots, g = m/lots, and M/lots is one number for the whole side. So with gain = +-(M - e) and
equity = g + gain per lot, gainers rank by gain / (e x equity) and losers, behind them, by gain x equity / e: the constant factor
M is left out of the columns and put back where a score is shown. A score and its row travel in one 64-bit key, so that one sort of
integers gives the whole order.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

ROW_BITS = 24
"""A side has at most sixteen million rows; the key's other 40 bits hold the score."""

ROWS_MAX = 1 << ROW_BITS

UNRANKED = np.int64(2**63 - 1)
"""The key of a row without a rank: it sorts behind all others."""

BLOCK_ROWS = 8192
"""Columns are scored in blocks whose intermediate results stay in the processor's cache."""

SLACK = np.float32(1 - 1e-6)
"""Wider than the rounding of a rough score: whatever may tie with the last of the leaders is scored in full."""

_ROW_MASK = np.int64(ROWS_MAX - 1)

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


def rank_all(entry: Floats, margin: Floats, mark: float, direction: int, accounts: Sequence[str]) -> Rows:
    """The rows of all ranked positions, rank 1 first.

    entry and margin are columns in atoms per lot (margin -inf where there is no position), `mark` is a lot's value at the mark,
    `direction` +1 where a mark above the entry is a gain and -1 where it is a loss.
    """
    keys = np.empty(len(entry), np.int64)
    scratch = np.empty((4, BLOCK_ROWS))
    with np.errstate(all="ignore"):
        for rows in _blocks(len(entry)):
            _pack(_scores(entry[rows], margin[rows], mark, direction, scratch), rows.start, keys[rows])
    keys.sort()
    return _in_order(keys, accounts)


def rank_leaders(entry: Floats, margin: Floats, mark: float, direction: int, accounts: Sequence[str], count: int) -> Rows:
    """The rows of the first gainers, rank 1 first: at least `count` of them, or all there are.

    Costs a scan and a partition instead of a sort: all are scored roughly, in single precision, and only what can be among the
    leaders is scored in full. (The smallest are sought because a partition for the largest of many equals can be very slow.)
    """
    rough = np.empty(len(entry), np.float32)
    scratch = np.empty((2, BLOCK_ROWS))
    with np.errstate(all="ignore"):
        for rows in _blocks(len(entry)):
            rough[rows] = _rough_scores(entry[rows], margin[rows], mark, direction, scratch)
    last = np.partition(rough, count - 1)[count - 1] if count < len(rough) else np.float32(0)
    leaders = np.flatnonzero(rough <= last * SLACK if last < 0 else rough < 0)
    chosen = rank_all(entry[leaders], margin[leaders], mark, direction, [accounts[row] for row in leaders])
    return leaders[chosen]


def _blocks(length: int) -> Iterator[slice]:
    return (slice(start, min(length, start + BLOCK_ROWS)) for start in range(0, length, BLOCK_ROWS))


def _scores(entry: Floats, margin: Floats, mark: float, direction: int, scratch: Floats) -> Floats:
    """Minus the score over the constant factor, +inf where there is no rank.

    gain / (entry x equity) is positive exactly for gainers and gain x equity / entry negative exactly for losers, so the larger of
    the first and 0 plus the smaller of the second and 0 is right for both, without a branch.
    """
    gain, equity, gainer, loser = (column[: len(entry)] for column in scratch)
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
    return gainer


def _rough_scores(entry: Floats, margin: Floats, mark: float, direction: int, scratch: Floats) -> Floats:
    """A gainer's score as `_scores` gives it; 0 or more for losers and what has no rank."""
    loss, equity = (column[: len(entry)] for column in scratch)
    _gains(entry, mark, -direction, loss)
    np.subtract(margin, loss, out=equity)
    np.multiply(equity, entry, out=equity)
    np.minimum(loss, 0.0, out=loss)
    return np.divide(loss, equity, out=loss)


def _gains(entry: Floats, mark: float, direction: int, out: Floats) -> None:
    if direction > 0:
        np.subtract(mark, entry, out=out)
    else:
        np.subtract(entry, mark, out=out)


def _pack(scores: Floats, first_row: int, keys: Rows) -> None:
    """Turns scores into keys: a float's bits order as integers once those of negative numbers are mirrored."""
    bits = scores.view(np.int64)
    np.right_shift(bits, 63, out=keys)
    np.bitwise_and(keys, UNRANKED, out=keys)
    np.bitwise_xor(keys, bits, out=keys)
    np.bitwise_and(keys, ~_ROW_MASK, out=keys)
    np.bitwise_or(keys, np.arange(first_row, first_row + len(keys)), out=keys)


def _in_order(keys: Rows, accounts: Sequence[str]) -> Rows:
    """The rows of sorted keys as far as they have a rank, ties by account."""
    ranked = keys[: np.searchsorted(keys, np.float64(np.inf).view(np.int64))]
    scores = ranked >> ROW_BITS
    tied = np.flatnonzero(scores[1:] == scores[:-1])
    rows = np.bitwise_and(ranked, _ROW_MASK, out=ranked)
    for run in np.split(tied, np.flatnonzero(np.diff(tied) > 1) + 1) if len(tied) else ():
        first, end = run[0], run[-1] + 2
        rows[first:end] = sorted(rows[first:end], key=accounts.__getitem__)
    return rows
