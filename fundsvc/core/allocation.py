"""Who gives how many lots: the rules by which an ADL order is spread over ranked positions.

`available` are the lots that may be taken of each position, in the order of rank. What comes out is (index, lots) of those who
give some, in the same order.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from fundsvc.core.ranking import Floats, Integers

Takings = list[tuple[int, int]]

REMAINDER_DECIMALS = 9
"""Remainders that agree this far are a tie, so that the last bits of a profit decide nothing."""

WEIGHT_BITS = 62
"""Profits are scaled until their sum has so many bits: from there on sums and shares are exact."""

SHARE_UNITS = 1_000_000
"""Shares of a position are exact to six decimals."""


def allocate_queue(available: Iterable[int], lots: int) -> Takings:
    """Takes from one position after the other until there is enough."""
    taken = []
    for index, offered in enumerate(available):
        if not lots:
            break
        if offered > 0:
            take = min(offered, lots)
            taken.append((index, take))
            lots -= take
    return taken


def capped(available: Sequence[int], held: Sequence[int], share: float) -> list[int]:
    """What each position may give under a ceiling of a share of its lots, at least one."""
    units = round(share * SHARE_UNITS)
    return [min(offered, max(1, lots * units // SHARE_UNITS)) for offered, lots in zip(available, held, strict=True)]


def allocate_pro_rata(available: Integers, profits: Floats, account_of: Callable[[int], str], lots: int) -> Takings:
    """Shares lots by unrealised profit: whole lots, largest remainder, ties by account.

    Nobody gives more than is available of it: what saturates gives all, and the rest is shared again among the others. Who has
    no profit gives only what is left when all others have given everything, one after the other.
    """
    weights = _weights(available, profits)
    whole = int(weights.sum())
    sharing = {index: int(weights[index]) for index in _largest(weights, lots)}
    offered = {index: int(available[index]) for index in sharing}
    taken: dict[int, int] = {}
    while lots and sharing:
        full = {index: offered[index] for index, weight in sharing.items() if lots * weight >= offered[index] * whole}
        if not full:
            return sorted((taken | _shares(sharing, whole, account_of, lots)).items())
        taken |= full
        lots -= sum(full.values())
        whole -= sum(sharing.pop(index) for index in full)
    rest = available.copy()
    rest[list(taken)] = 0
    return sorted([*taken.items(), *allocate_queue(rest.tolist(), lots)])


def _weights(available: Integers, profits: Floats) -> Integers:
    """Profits as integers with an exact sum; 0 for who has none, or nothing to give."""
    sharing = np.where((available > 0) & (profits > 0), profits, 0.0)
    _, exponent = np.frexp(sharing.sum())
    return np.rint(np.ldexp(sharing, WEIGHT_BITS - int(exponent))).astype(np.int64)


def _largest(weights: Integers, count: int) -> list[int]:
    """Who may get one of so many lots at all: the largest weights, and what ties with the last of them."""
    last = -np.partition(-weights, count - 1)[count - 1] if count < len(weights) else 0
    indices: list[int] = np.flatnonzero(weights >= max(1, last)).tolist()
    return indices


def _shares(sharing: dict[int, int], whole: int, account_of: Callable[[int], str], lots: int) -> dict[int, int]:
    """Whole lots by weight. Weights that are not there, as they are too small for a lot, count in `whole`."""
    shares = {index: lots * weight // whole for index, weight in sharing.items()}

    def precedence(index: int) -> tuple[float, str]:
        remainder = lots * sharing[index] % whole
        return -round(remainder / whole, REMAINDER_DECIMALS), account_of(index)

    for index in sorted(sharing, key=precedence)[: lots - sum(shares.values())]:
        shares[index] += 1
    return {index: share for index, share in shares.items() if share}
