"""Ledgers that a partition writes, and the differences that a replay finds in them."""

from typing import NamedTuple

import msgspec
from builders import UNIT, listing

from fundsvc.core.adl.records import AdlRecord, link_record
from fundsvc.core.adl.verification import OpenOrders
from fundsvc.core.events import Rejection
from fundsvc.core.fund.chain import Entry, link
from fundsvc.core.fund.verification import START, OrderTotals, Replay
from fundsvc.core.partition import Partition
from fundsvc.core.policy import Policy

PLAIN = Policy()


class Line(NamedTuple):
    """An entry or a record, with its hash."""

    item: Entry | AdlRecord
    hash: bytes


class Retraced:
    """A contract's ledger: its lines in order, the stored fund, and the rows of its orders."""

    def __init__(self, *events, policy=PLAIN):
        self.policy = policy
        self.lines: list[Line] = []
        self.orders = {}
        self.rejected = []
        self.partition = Partition(0, 1, [], {"USDT": 8}, 10, lambda _: policy)
        self.apply(listing(), *events)

    def apply(self, *events):
        for number, event in enumerate(events):
            try:
                self.partition.apply(event, 1_000_000 + number)
            except Rejection as rejection:
                self.rejected.append(rejection.reason)
        self._take()

    def apply_late(self, event):
        self.partition.apply_late(event)
        self._take()

    def _take(self):
        batch = self.partition.take()
        entries = [Line(*line) for line in zip(batch.entries, batch.hashes, strict=True)]
        records = [Line(sealed.record, sealed.hash) for sealed in batch.records]
        self.lines += sorted([*entries, *records], key=place)
        self.orders |= {state.adl: state for state in batch.orders.values()}
        for state in batch.funds:
            self.fund = state

    def requested(self, adl):
        """The lots that an order's current round still requests, by account."""
        order = self.partition.market(UNIT.symbol).orders[adl]
        return {account: rest for account, rest in order.progress.rests() if rest}

    @property
    def open(self):
        return [adl for adl, order in self.orders.items() if order.state == "open"]

    def replay(self, lines=None, since=START, opened=None, late=()):
        replay = Replay(UNIT, late, since, {0: self.policy}, opened or OpenOrders())
        for item, digest in self.lines if lines is None else lines:
            if isinstance(item, Entry):
                replay.follow(item, digest)
            else:
                replay.follow_record(item, digest)
        return replay

    def totals(self, orders=None):
        rows = list((self.orders if orders is None else orders).values())
        recovered = sum(row.recovered for row in rows)
        rest = sum(row.uncovered - row.recovered for row in rows if row.state == "open")
        return OrderTotals(recovered, rest, max((row.seq for row in rows), default=0), len(rows))

    def differences(self, lines=None, orders=None, late=(), **changes):
        """The differences of the ledger with these lines and rows, and with these changes of the fund."""
        replay = self.replay(lines, late=late)
        rows = self.orders if orders is None else orders
        replay.compare({row.adl: row for row in rows.values()}, ended=True)
        replay.finish(self.fund._replace(**changes), self.totals(orders))
        return replay.differences

    def altered(self, number, **fields):
        """The lines with one of them altered and its hash unchanged."""
        item, digest = self.lines[number]
        return [*self.lines[:number], Line(msgspec.structs.replace(item, **fields), digest), *self.lines[number + 1 :]]


def place(line):
    """The sort key of a line: a record follows the entry that it contains."""
    item = line.item
    return (item.entry, 0, 0) if isinstance(item, Entry) else (item.entry, 1, item.record)


def resealed(lines):
    """The lines with all hashes recomputed, as in a forged ledger, and the heads of both chains."""
    heads = {Entry: bytes(32), AdlRecord: bytes(32)}
    result = []
    for item, _ in lines:
        kind = type(item)
        heads[kind] = (link if kind is Entry else link_record)(heads[kind], item)
        result.append(Line(item, heads[kind]))
    return result, heads[Entry], heads[AdlRecord]
