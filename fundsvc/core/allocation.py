"""Who gives how many lots: the rules by which an ADL order is spread over ranked positions."""

from collections.abc import Sequence

import numpy as np

from fundsvc.core.ranking import Floats

REMAINDER_DECIMALS = 9
"""Remainders that agree this far are a tie, so that the last bits of a division decide nothing."""


def allocate_queue(available: Sequence[int], lots: int) -> list[int]:
    """Lots taken from each position in the order of rank until there are enough."""
    taken = []
    for offered in available:
        take = min(offered, lots)
        taken.append(take)
        lots -= take
    return taken


def capped(available: Sequence[int], held: Sequence[int], share: float) -> list[int]:
    """What each position may give under a ceiling of a share of its lots, at least one."""
    return [min(offered, max(1, int(lots * share))) for offered, lots in zip(available, held, strict=True)]


def allocate_pro_rata(available: Sequence[int], weights: Floats, accounts: Sequence[str], lots: int) -> list[int]:
    """Lots shared by weight (unrealised profit): whole lots, largest remainder, ties by account.

    Nobody gives more than is available of it: what saturates gives all, and the rest is shared again among the others.
    """
    room = np.asarray(available, np.int64)
    weight = np.where(room > 0, np.maximum(weights, 0.0), 0.0)
    taken = np.zeros(len(room), np.int64)
    left = min(lots, int(room[weight > 0].sum()))
    while left:
        ideal = weight * (left / weight.sum())
        full = (ideal >= room) & (weight > 0)
        if not full.any():
            return _whole(taken, ideal, accounts, left)
        taken[full] = room[full]
        left -= int(room[full].sum())
        weight[full] = 0.0
    return [int(take) for take in taken]


def _whole(taken: "np.ndarray[tuple[int], np.dtype[np.int64]]", ideal: Floats, accounts: Sequence[str], left: int) -> list[int]:
    """Rounds ideal shares to whole lots that add up to `left`."""
    ideal = np.round(ideal, REMAINDER_DECIMALS)
    floors = np.floor(ideal).astype(np.int64)
    remainders = ideal - floors
    missing = left - int(floors.sum())
    order = sorted(np.flatnonzero(ideal > 0), key=lambda row: (-round(remainders[row], REMAINDER_DECIMALS), accounts[row]))
    for row in order[:missing]:
        floors[row] += 1
    return [int(take) for take in taken + floors]
