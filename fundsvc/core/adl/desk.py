"""The ADL desk of one contract: its book, its open orders, and the positions that a round asks."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import numpy as np

from fundsvc.core.adl.allocation import SHARE_UNITS
from fundsvc.core.adl.book import Book, Candidates, Side
from fundsvc.core.adl.directory import NONE
from fundsvc.core.adl.order import EMPTY_ROUND, AdlOrder, RoundRequest, RoundTerms
from fundsvc.core.adl.ranking import numbers_of
from fundsvc.core.contracts import Contract
from fundsvc.core.policy import Policy

LEADERS_MIN, LEADERS_MAX = 256, 1024
"""Rank so many at least, as further orders will ask further positions, and at first no more than few orders ask. Then rank four
times as many until there is enough.
"""

NEAR = 32
"""Most orders need few candidates: so many are looked at one by one, which numpy would take longer for."""

WINDOW_MIN = 256
"""Further candidates are looked at in windows, each four times as large as the one before."""

WINDOW_MAX = 32_768
"""A window's numbers are made into Python objects in one call, for which other threads wait: half a millisecond."""

GROWTH = 4


class AdlDesk:
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
        request = order.next_request(policy.rounds_max)
        found = self._find(request, policy)
        terms = self._explain(request, found)
        order.begin_round(terms, now_ms)
        self.orders[order.adl] = order
        self.book.sides[order.reduce].promise_rows(found.rows, found.lots)
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
        for account, rest in order.progress.rests():
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

    def has_candidates(self, request: RoundRequest) -> bool:
        """Whether a round would find somebody to ask."""
        return bool(self._find(request._replace(lots=1), self.policy).rows)

    def terms(self, request: RoundRequest, policy: Policy) -> RoundTerms:
        """What a round would ask now, with all that explains it; changes nothing."""
        return self._explain(request, self._find(request, policy))

    def _explain(self, request: RoundRequest, found: "_Search") -> RoundTerms:
        rows, lots = found.rows, found.lots
        if not rows:
            return EMPTY_ROUND
        side = self.book.sides[request.reduce]
        names, ranks, inputs = side.names(rows), found.ranks, side.inputs(rows)
        return RoundTerms(
            self.book.mark or 0,
            self.book.stale,
            found.ranked,
            len(rows),
            request.lots - found.left,
            names,
            ranks,
            *inputs,
            lots,
        )

    def _promise(self, order: AdlOrder) -> None:
        side = self.book.sides[order.reduce]
        for account, rest in order.progress.rests():
            if rest:
                side.promise(account, rest)

    def _find(self, request: RoundRequest, policy: Policy) -> "_Search":
        """Finds positions to ask: first those that never failed the order, then those that failed it least."""
        book = self.book
        side = book.sides[request.reduce]
        search = _Search(side, book.mark or 0, request, policy)
        if book.mark is None or not side.open or (book.stale and policy.stale_books == "skip"):
            return search
        liquidated = (request.account, *book.owners.of_same(request.account))
        search.select_except((*liquidated, *request.failures, *request.exhausted))
        for accounts in _by_failures(request, liquidated) if request.failures else ():
            search.select_among(accounts)
        search.sort()
        return search


class _Search:
    """Finds positions for the lots that are wanted; `left` are the lots still wanted.

    `rows`, `ranks` and `lots` are columns of what was found, `ranked` is the number of positions of the side with a rank.
    """

    __slots__ = ("_cap", "_excluded", "_mark", "_policy", "_price", "_side", "left", "lots", "ranked", "ranks", "rows")

    def __init__(self, side: Side, mark: int, request: RoundRequest, policy: Policy) -> None:
        self.left = request.lots
        self.rows: list[int] = []
        self.ranks: list[int] = []
        self.lots: list[int] = []
        self.ranked = 0
        self._side = side
        self._mark = mark
        self._price = request.price
        self._policy = policy
        self._cap = round(policy.cap_share * SHARE_UNITS) if policy.allocation == "capped" else SHARE_UNITS
        self._excluded: set[int] = set()

    def select_except(self, accounts: Collection[str]) -> None:
        """Asks anybody but these accounts."""
        self._excluded = set(map(self._side.row_of, accounts)) - {NONE}
        if self._policy.eligible == "profitable" and self._policy.allocation != "pro_rata":
            self._select_leaders()
        else:
            self._select(self._side.all_candidates(self._mark))
        self._excluded = set()

    def select_among(self, accounts: Collection[str]) -> None:
        """Asks these accounts alone."""
        if self.left:
            self._select(self._side.candidates_of(self._mark, accounts))

    def sort(self) -> None:
        """Puts what was found into the order of rank."""
        ranks = self.ranks
        if ranks != sorted(ranks):
            order = sorted(range(len(ranks)), key=ranks.__getitem__)
            self.rows, self.ranks, self.lots = ([column[index] for index in order] for column in (self.rows, ranks, self.lots))

    def _select_leaders(self) -> None:
        """Ranks about as many gainers as the order needs: each gives a lot at least, unless it is promised or barred."""
        count, first = min(max(self.left, LEADERS_MIN), LEADERS_MAX), 0
        while self.left:
            candidates = self._side.leaders(self._mark, count)
            self.ranked = candidates.ranked
            self._queue(candidates, max(first, candidates.start), len(candidates), survivors=True)
            if candidates.complete:
                return
            count, first = GROWTH * max(count, len(candidates)), len(candidates)

    def _select(self, candidates: Candidates) -> None:
        """By the contract's allocation; positions that the price would bankrupt come last, if at all."""
        self.ranked = candidates.ranked
        all_eligible = self._policy.eligible == "all"
        last = len(candidates) if all_eligible else candidates.gainers
        if self._policy.allocation == "pro_rata":
            self._share(candidates, last)
        else:
            self._queue(candidates, candidates.start, last, survivors=True)
        if all_eligible and self.left:
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
            first, width = part.stop, min(WINDOW_MAX, GROWTH * width)

    def _take(self, candidates: Candidates, indices: Iterable[int], *, survivors: bool) -> None:
        """Takes lots of candidates one by one until there is enough."""
        for index in indices:
            if not self.left:
                return
            free = candidates.free_at(index)
            if free <= 0:
                candidates.start += index == candidates.start
            elif not self._is_excluded(candidates, index) and candidates.survives(index, self._price) == survivors:
                self._pick(candidates, index, self._capped(free, candidates.held_at(index)))

    def _is_excluded(self, candidates: Candidates, index: int) -> bool:
        return bool(self._excluded) and candidates.row_at(index) in self._excluded

    def _share(self, candidates: Candidates, last: int) -> None:
        """Shares the lots by unrealised profit among all candidates that the price leaves solvent."""
        part = slice(0, last)
        free = candidates.solvent(part, self._price)
        if self._excluded:
            free[np.isin(candidates.rows[part], list(self._excluded))] = 0
        shares = candidates.sharing(last).allocate(free, self.left)
        lots = numbers_of(shares.lots)
        self.rows += numbers_of(candidates.rows[shares.indices])
        self.ranks += candidates.ranks_of(shares.indices)
        self.lots += lots
        self.left -= sum(lots)

    def _pick(self, candidates: Candidates, index: int, lots: int) -> None:
        lots = min(lots, self.left)
        self.left -= lots
        self.rows.append(candidates.row_at(index))
        self.ranks.append(candidates.rank_at(index))
        self.lots.append(lots)

    def _capped(self, free: int, held: int) -> int:
        """What a position may give under the policy's ceiling: a share of its lots, at least one."""
        return free if self._cap == SHARE_UNITS else min(free, max(1, held * self._cap // SHARE_UNITS))


def _by_failures(request: RoundRequest, liquidated: Collection[str]) -> Iterator[Sequence[str]]:
    """The accounts that failed an order and may be asked once more, those with the fewest failures first."""
    failed: dict[int, list[str]] = {}
    for account, failures in request.failures.items():
        if account not in request.exhausted and account not in liquidated:
            failed.setdefault(failures, []).append(account)
    return (failed[failures] for failures in sorted(failed))
