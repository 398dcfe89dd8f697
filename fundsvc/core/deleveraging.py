"""The ADL desk of one contract: its book, its open orders, and the positions that a round asks."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fundsvc.core.adl import EMPTY_ROUND, AdlOrder, RoundTerms, Want
from fundsvc.core.allocation import SHARE_UNITS, allocate_pro_rata
from fundsvc.core.book import Book, Candidates, Side
from fundsvc.core.contracts import Contract
from fundsvc.core.directory import NONE
from fundsvc.core.policy import Policy

LEADERS_MIN = 1024
"""Few orders ask more positions than this. Rank so many at first, then four times as many until there is enough."""

NEAR = 32
"""Most orders need few candidates: so many are looked at one by one, which numpy would take longer for."""

WINDOW_MIN = 256
"""Further candidates are looked at in windows, each four times as large as the one before."""

GROWTH = 4


class Picks(NamedTuple):
    """The positions that a round asks, as columns in the order of rank, and how many positions of the side have a rank."""

    rows: list[int]
    ranks: list[int]
    lots: list[int]
    ranked: int


class Deleveraging:
    """Ranks, asks and keeps promises: lots that one open order asks of a position are not asked by another.

    `changed` says whether positions have changed since the book was last kept. `policy_under` tells the policy of a version of
    the policies: an order keeps that under which it began.
    """

    def __init__(self, contract: Contract, policy: Policy, policy_under: Callable[[int], Policy] | None = None) -> None:
        self.policy = policy
        self._policy_under = policy_under or (lambda _: policy)
        self.book = Book(contract)
        self.orders: dict[int, AdlOrder] = {}
        self.changed = False

    def begin_round(self, order: AdlOrder, now_ms: int) -> RoundTerms:
        """Asks the positions that the policy names for what an order still needs, and promises their lots to it.

        The round is empty where nobody can be asked.
        """
        policy = self._policy_under(order.policy_version)
        want = order.want(policy.rounds_max)
        picks = self._picks(want, policy)
        terms = self._explain(want, picks)
        order.begin_round(terms, now_ms)
        self.orders[order.adl] = order
        self.book.sides[order.reduce].promise_rows(picks.rows, picks.lots)
        return terms

    def reopen(self, order: AdlOrder) -> None:
        """Takes up an open order as it was loaded, and promises to it what its round still asks."""
        self.orders[order.adl] = order
        self._promise(order)

    def end_round(self, order: AdlOrder) -> None:
        """Ends the present round: what was not executed is promised no more."""
        self.withdraw(order)
        order.end_round()

    def withdraw(self, order: AdlOrder) -> None:
        """Takes back what an order was promised."""
        side = self.book.sides[order.reduce]
        for account, rest in order.asked.rests():
            if rest:
                side.promise(account, -rest)

    def close(self, order: AdlOrder) -> None:
        """Forgets an order that is over."""
        self.orders.pop(order.adl, None)

    def reduce(self, order: AdlOrder, account: str, lots: int) -> None:
        """Takes executed lots off a position and off what it promised."""
        side = self.book.sides[order.reduce]
        side.reduce(account, lots)
        side.promise(account, -lots)
        self.changed = True

    def anybody(self, want: Want) -> bool:
        """Whether a round would find somebody to ask."""
        return bool(self._picks(want._replace(lots=1), self.policy).rows)

    def terms(self, want: Want, policy: Policy) -> RoundTerms:
        """What a round would ask now, with all that explains it; changes nothing."""
        return self._explain(want, self._picks(want, policy))

    def _explain(self, want: Want, picks: Picks) -> RoundTerms:
        if not picks.rows:
            return EMPTY_ROUND
        side = self.book.sides[want.reduce]
        return RoundTerms(
            self.book.mark or 0,
            self.book.stale,
            picks.ranked,
            len(picks.rows),
            sum(picks.lots),
            side.names(picks.rows),
            picks.ranks,
            *side.inputs(picks.rows),
            picks.lots,
        )

    def _promise(self, order: AdlOrder) -> None:
        side = self.book.sides[order.reduce]
        for account, rest in order.asked.rests():
            if rest:
                side.promise(account, rest)

    def _picks(self, want: Want, policy: Policy) -> Picks:
        """Finds positions to ask: first those that never failed the order, then those that failed it least."""
        search = _Search(self.book.sides[want.reduce], self.book.mark or 0, want, policy)
        if (
            self.book.mark is None
            or not self.book.sides[want.reduce].open
            or (self.book.stale and policy.stale_books == "skip")
        ):
            return search.picks()
        liquidated = {want.account, *self.book.owners.of_same(want.account)}
        search.ask_all_but((*liquidated, *want.failures, *want.exhausted))
        for accounts in _by_failures(want, liquidated) if want.failures else ():
            search.ask_among(accounts)
        return search.picks()


class _Search:
    """Finds positions for the lots that are wanted; `left` are the lots still wanted."""

    def __init__(self, side: Side, mark: int, want: Want, policy: Policy) -> None:
        self.left = want.lots
        self._rows: list[int] = []
        self._ranks: list[int] = []
        self._lots: list[int] = []
        self._ranked = 0
        self._side = side
        self._mark = mark
        self._price = want.price
        self._policy = policy
        self._cap = round(policy.cap_share * SHARE_UNITS) if policy.allocation == "capped" else SHARE_UNITS
        self._barred: set[int] = set()

    def ask_all_but(self, accounts: Collection[str]) -> None:
        """Asks anybody but these accounts."""
        self._barred = {row for account in accounts if (row := self._side.row_of(account)) != NONE}
        if self._policy.eligible == "profitable" and self._policy.allocation != "pro_rata":
            self._ask_leaders()
        else:
            self._ask(self._side.everybody(self._mark))
        self._barred = set()

    def ask_among(self, accounts: Collection[str]) -> None:
        """Asks these accounts alone."""
        if self.left:
            self._ask(self._side.among(self._mark, accounts))

    def picks(self) -> Picks:
        """What was found, in the order of rank."""
        ranks = self._ranks
        if ranks == sorted(ranks):
            return Picks(self._rows, ranks, self._lots, self._ranked)
        order = sorted(range(len(ranks)), key=ranks.__getitem__)
        rows, ranks, lots = ([column[place] for place in order] for column in (self._rows, ranks, self._lots))
        return Picks(rows, ranks, lots, self._ranked)

    def _ask_leaders(self) -> None:
        """Ranks no more gainers than the order needs: each gives a lot at least, unless it is promised or barred."""
        count, first = min(self.left, LEADERS_MIN), 0
        while self.left:
            candidates = self._side.leaders(self._mark, count)
            self._ranked = candidates.ranked
            self._queue(candidates, max(first, candidates.start), len(candidates), survivors=True)
            if candidates.complete:
                return
            count, first = GROWTH * max(count, len(candidates)), len(candidates)

    def _ask(self, candidates: Candidates) -> None:
        """By the contract's allocation; positions that the price would bankrupt come last, if at all."""
        self._ranked = candidates.ranked
        everybody = self._policy.eligible == "all"
        last = len(candidates) if everybody else candidates.gainers
        if self._policy.allocation == "pro_rata":
            self._share(candidates, last)
        else:
            self._queue(candidates, candidates.start, last, survivors=True)
        if everybody and self.left:
            self._queue(candidates, candidates.start, last, survivors=False)

    def _queue(self, candidates: Candidates, first: int, last: int, *, survivors: bool) -> None:
        """Takes from one candidate after the other until there is enough."""
        near = min(last, first + NEAR)
        self._take(candidates, range(first, near), survivors=survivors)
        first, width = near, WINDOW_MIN
        while self.left and first < last:
            part = slice(first, min(last, first + width))
            able = candidates.free(part) > 0
            if first == candidates.start and not able.any():
                candidates.start = part.stop
            able &= candidates.survivors(part, self._price) == survivors
            self._take(candidates, (np.flatnonzero(able) + first).tolist(), survivors=survivors)
            first, width = part.stop, GROWTH * width

    def _take(self, candidates: Candidates, indices: Iterable[int], *, survivors: bool) -> None:
        """Takes lots of candidates one by one until there is enough."""
        for index in indices:
            if not self.left:
                return
            free = candidates.free_at(index)
            if free <= 0:
                candidates.start += index == candidates.start
            elif not self._is_barred(candidates, index) and candidates.survives(index, self._price) == survivors:
                self._pick(candidates, index, self._capped(free, candidates.held_at(index)))

    def _is_barred(self, candidates: Candidates, index: int) -> bool:
        return bool(self._barred) and candidates.row_at(index) in self._barred

    def _share(self, candidates: Candidates, last: int) -> None:
        """Shares the lots by unrealised profit among all candidates that the price leaves solvent."""
        part = slice(0, last)
        able = candidates.survivors(part, self._price)
        if self._barred:
            able &= ~np.isin(candidates.rows[part], list(self._barred))
        free = np.where(able, np.maximum(candidates.free(part), 0), 0)
        shares = allocate_pro_rata(free, candidates.profits[part], candidates.places[part], self.left)
        lots = shares.lots.tolist()
        self._rows += candidates.rows[shares.indices].tolist()
        self._ranks += candidates.ranks_of(shares.indices)
        self._lots += lots
        self.left -= sum(lots)

    def _pick(self, candidates: Candidates, index: int, lots: int) -> None:
        lots = min(lots, self.left)
        self.left -= lots
        self._rows.append(candidates.row_at(index))
        self._ranks.append(candidates.rank_at(index))
        self._lots.append(lots)

    def _capped(self, free: int, held: int) -> int:
        """What a position may give under the policy's ceiling: a share of its lots, at least one."""
        return free if self._cap == SHARE_UNITS else min(free, max(1, held * self._cap // SHARE_UNITS))


def _by_failures(want: Want, liquidated: Collection[str]) -> Iterator[Sequence[str]]:
    """The accounts that failed an order and may be asked once more, those with the fewest failures first."""
    failed: dict[int, list[str]] = {}
    for account, failures in want.failures.items():
        if account not in want.exhausted and account not in liquidated:
            failed.setdefault(failures, []).append(account)
    return (failed[failures] for failures in sorted(failed))
