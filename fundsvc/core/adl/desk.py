"""The ADL desk of one contract: its book, its open orders, and the selection of positions for a round."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fundsvc.core.adl.allocation import NO_INDICES, SHARE_UNITS, RunningSharing, Shares
from fundsvc.core.adl.book import Book
from fundsvc.core.adl.book_saves import BookSaves
from fundsvc.core.adl.candidates import Candidates
from fundsvc.core.adl.directory import NONE
from fundsvc.core.adl.order import EMPTY_ROUND, AdlOrder, RoundRequest, RoundTerms
from fundsvc.core.adl.ranking import numbers_of
from fundsvc.core.adl.side import Side
from fundsvc.core.contracts import Contract
from fundsvc.core.policy import Policy

LEADERS_MIN, LEADERS_MAX = 256, 1024
"""Bounds of the number of gainers that the desk ranks first; further orders reuse them. While a round needs more, the desk
ranks GROWTH times as many.
"""

NEAR = 32
"""Candidates that are checked one by one. Most orders need fewer, and for these numpy calls would take longer."""

WINDOW_MIN = 256
"""Size of the first window of further candidates; each window is GROWTH times as large as the one before."""

WINDOW_MAX = 32_768
"""Largest window. One call converts its numbers to Python objects, which blocks other threads for half a millisecond."""

GROWTH = 4


class AdlDesk:
    """Selects the positions of rounds. Lots that an open order requests are promised: no other order requests them.

    `changed` is whether positions changed since the book was last saved, and `saves` are its saves. `policy_under` returns the
    policy of a version; an order keeps the version under which it began.
    """

    def __init__(self, contract: Contract, policy: Policy, policy_under: Callable[[int], Policy] | None = None) -> None:
        self.policy = policy
        self._policy_under = policy_under or (lambda _: policy)
        self.book = Book(contract)
        self.orders: dict[int, AdlOrder] = {}
        self.saves = BookSaves()
        self.changed = False

    def begin_round(self, order: AdlOrder, now_ms: int) -> RoundTerms:
        """Begins the next round of an order: allocates the lots it needs by its policy, and promises them to it.

        Returns empty terms if there are no candidates.
        """
        policy = self._policy_under(order.policy_version)
        request = order.next_request(policy.rounds_max)
        found = self._find(request, policy)
        terms = self._explain(request, found)
        order.begin_round(terms, now_ms)
        self.orders[order.adl] = order
        side = self.book.sides[order.reduce]
        side.promise_rows(found.rows, found.lots)
        if found.sharing:
            found.sharing.take(side.promises)
        return terms

    def reopen(self, order: AdlOrder, *, promises: bool = True) -> None:
        """Adds a loaded open order; with `promises`, promises it the lots that its round still requests."""
        self.orders[order.adl] = order
        if promises:
            self.promise(order)

    def promise(self, order: AdlOrder) -> None:
        """Promises an order the lots that its round still requests."""
        side = self.book.sides[order.reduce]
        for account, rest in order.progress.rests():
            if rest:
                side.promise(account, rest)

    def end_round(self, order: AdlOrder) -> None:
        """Ends the current round of an order, and withdraws the promises of lots that were not executed."""
        self.withdraw(order)
        order.end_round()

    def withdraw(self, order: AdlOrder) -> None:
        """Withdraws the promises to an order."""
        side = self.book.sides[order.reduce]
        for account, rest in order.progress.rests():
            if rest:
                side.promise(account, -rest)

    def close(self, order: AdlOrder) -> None:
        """Removes an order from the open orders."""
        self.orders.pop(order.adl, None)

    def reduce(self, order: AdlOrder, account: str, lots: int) -> None:
        """Subtracts executed lots from a position and from its promised lots."""
        self.book.reduce(order.reduce, account, lots)
        self.book.sides[order.reduce].promise(account, -lots)
        self.changed = True

    def has_candidates(self, request: RoundRequest) -> bool:
        """Returns whether a round has at least one candidate."""
        return bool(self._find(request._replace(lots=1), self.policy).rows)

    def terms(self, request: RoundRequest, policy: Policy) -> RoundTerms:
        """Returns the terms that a round would have now, without beginning it."""
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

    def _find(self, request: RoundRequest, policy: Policy) -> "_Search":
        """Selects positions: first those without a failure for this order, then those with the fewest failures."""
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
    """Selects positions for a round; `left` is the number of lots not allocated yet.

    `rows`, `ranks` and `lots` are columns of the allocations; `ranked` is the number of positions of the side with a rank.
    `sharing` is the running sharing that made all allocations, or None.
    """

    __slots__ = (
        "_cap",
        "_excluded",
        "_mark",
        "_policy",
        "_price",
        "_side",
        "left",
        "lots",
        "ranked",
        "ranks",
        "rows",
        "sharing",
    )

    def __init__(self, side: Side, mark: int, request: RoundRequest, policy: Policy) -> None:
        self.left = request.lots
        self.rows: list[int] = []
        self.ranks: list[int] = []
        self.lots: list[int] = []
        self.ranked = 0
        self.sharing: RunningSharing | None = None
        self._side = side
        self._mark = mark
        self._price = request.price
        self._policy = policy
        self._cap = round(policy.cap_share * SHARE_UNITS) if policy.allocation == "capped" else SHARE_UNITS
        self._excluded: set[int] = set()

    def select_except(self, accounts: Collection[str]) -> None:
        """Selects among all eligible candidates except these accounts."""
        row_of = self._side.row_of
        self._excluded = {row for account in accounts if (row := row_of(account)) != NONE}
        if self._policy.eligible == "profitable" and self._policy.allocation != "pro_rata":
            self._select_leaders()
        else:
            self._select(self._side.all_candidates(self._mark))
        self._excluded = set()

    def select_among(self, accounts: Collection[str]) -> None:
        """Selects among these accounts only, if lots are left."""
        if self.left:
            self._select(self._side.candidates_of(self._mark, accounts))

    def sort(self) -> None:
        """Sorts the allocations by rank."""
        ranks = self.ranks
        if ranks != sorted(ranks):
            order = sorted(range(len(ranks)), key=ranks.__getitem__)
            self.rows, self.ranks, self.lots = ([column[index] for index in order] for column in (self.rows, ranks, self.lots))

    def _select_leaders(self) -> None:
        """Ranks only as many gainers as the order may need: each has a lot, unless it is promised or excluded."""
        count, first = min(max(self.left, LEADERS_MIN), LEADERS_MAX), 0
        while self.left:
            candidates = self._side.leaders(self._mark, count)
            self.ranked = candidates.ranked
            self._queue(candidates, max(first, candidates.start), len(candidates), survivors=True)
            if candidates.complete:
                return
            count, first = GROWTH * max(count, len(candidates)), len(candidates)

    def _select(self, candidates: Candidates) -> None:
        """Allocates by the policy. With `eligible = "all"`, positions that the price would bankrupt come last, else never."""
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
        """Allocates to candidates in the order of rank until no lots are left."""
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
        """Allocates to candidates one by one until no lots are left."""
        row_at, held_at, promised_at, excluded = candidates.row_at, candidates.held_at, self._side.promised_at, self._excluded
        for index in indices:
            if not self.left:
                return
            row, held = row_at(index), held_at(index)
            free = held - promised_at(row)
            if free <= 0:
                candidates.start += index == candidates.start
            elif row not in excluded and candidates.survives(index, self._price) == survivors:
                lots = min(self._capped(free, held), self.left)
                self.left -= lots
                self.rows.append(row)
                self.ranks.append(candidates.rank_at(index))
                self.lots.append(lots)

    def _share(self, candidates: Candidates, last: int) -> None:
        """Shares the lots by unrealised profit among the candidates that the price leaves solvent."""
        shares = self._shared_by_running(candidates, last) or self._shared_by_all(candidates, last)
        lots = numbers_of(shares.lots)
        self.rows += numbers_of(candidates.rows[shares.indices])
        self.ranks += candidates.ranks_of(shares.indices)
        self.lots += lots
        self.left -= sum(lots)

    def _shared_by_running(self, candidates: Candidates, last: int) -> Shares | None:
        """Shares by what changed since the last order; None if the price would bankrupt a candidate, or lots are scarce."""
        part = slice(0, last)
        if not candidates.leaves_all_solvent(part, self._price):
            return None
        sharing = candidates.sharing(last).running
        if sharing.version != self._side.promises:
            sharing.reset(candidates.free(part), self._side.promises)
        shares = sharing.allocate(self.left, self._excluded_among(candidates, part))
        self.sharing = sharing if shares else None
        return shares

    def _shared_by_all(self, candidates: Candidates, last: int) -> Shares:
        part = slice(0, last)
        free = candidates.solvent(part, self._price)
        free[self._excluded_among(candidates, part)] = 0
        return candidates.sharing(last).allocate(free, self.left)

    def _excluded_among(self, candidates: Candidates, part: slice) -> NDArray[np.intp]:
        """Returns the indices of the excluded candidates of a part."""
        return np.flatnonzero(np.isin(candidates.rows[part], list(self._excluded))) if self._excluded else NO_INDICES

    def _capped(self, free: int, held: int) -> int:
        """Returns the lots available under the policy's `cap_share`: that share of the held lots, but at least one."""
        return free if self._cap == SHARE_UNITS else min(free, max(1, held * self._cap // SHARE_UNITS))


def _by_failures(request: RoundRequest, liquidated: Collection[str]) -> Iterator[Sequence[str]]:
    """Yields the accounts with failures that may be requested again, grouped by failures, fewest first."""
    failed: dict[int, list[str]] = {}
    for account, failures in request.failures.items():
        if account not in request.exhausted and account not in liquidated:
            failed.setdefault(failures, []).append(account)
    return (failed[failures] for failures in sorted(failed))
