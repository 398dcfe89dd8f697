"""The demo: its market as a pure function, settled in memory, and the complete demo as a process."""

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
import urllib.request
from collections import Counter, defaultdict
from decimal import Decimal
from pathlib import Path

import aiohttp
import jwt
import psutil
import pytest
from conftest import connected
from eventually import eventually
from rich.console import Console

from fundsvc.config.settings import CurrencyConfig
from fundsvc.core.adl.records import reduced_of
from fundsvc.core.contracts import contract_of
from fundsvc.core.events import AdlEnd, AdlFill, Fill, Position, Takeover, Unwind
from fundsvc.core.numbers import format_units, to_units
from fundsvc.core.partition import Partition
from fundsvc.core.times import OLD_MS
from fundsvc.demo.history import HISTORY_STEPS, INSURED_STEP_MS, MARKET_STEP_MS, times_of
from fundsvc.demo.instruments import CYCLE_STEPS, INSTRUMENTS
from fundsvc.demo.insured import MUTUAL, POOL, InsuredTraders
from fundsvc.demo.market import SEQ_PER_STEP, STEP_SECONDS, UNWIND_STEPS, Holding, SimulatedMarket, step_to_resume
from fundsvc.demo.matching import ROUND_STEPS, MatchingEngine
from fundsvc.demo.prices import CASCADE_STEPS, THIN_STEPS, last_step
from fundsvc.demo.screen import COLUMNS, Surroundings, Visitor, funds_table, picture
from fundsvc.demo.watch import FundView, View
from fundsvc.local.servers import EmbeddedServers
from fundsvc.mutual.core.pool import Pool
from fundsvc.mutual.core.rows import PoolRow, State
from fundsvc.store.reader import FundRow
from fundsvc.wire.codec import Message, decode, encode
from fundsvc.wire.rounds import Announcement, RequestedLots

CURRENCY = CurrencyConfig()
STEPS = 2 * CYCLE_STEPS + 380
"""Three storms with calm phases, and the settlement of the dated contract."""
DECIMALS = {
    each.symbol: contract_of(each.specification(), CURRENCY.decimals, CURRENCY.decimals_default).price_decimals
    for each in INSTRUMENTS
}
SYMBOLS = [instrument.symbol for instrument in INSTRUMENTS]
(THIN,) = (instrument for instrument in INSTRUMENTS if instrument.thin)
DRAINED = [instrument for instrument in INSTRUMENTS if instrument.cascade and not instrument.cascade.saved]
COVERED = [instrument for instrument in INSTRUMENTS if instrument.cascade and instrument.cascade.saved and not instrument.thin]
STORMY = 260
"""The steps of a cycle in which its storm is over."""

STOP_SECONDS = 5.0
KILLS_MAX = 4

OPEN = "symbol = 'SOLUSDTM' AND state = 'open' AND executed > 0"
"""Open orders that execute completely in the end."""

UNTIL_OPEN = f"""
    DO $$ BEGIN
        WHILE NOT EXISTS (SELECT FROM adl_orders WHERE {OPEN}) LOOP PERFORM pg_sleep(0.001); END LOOP;
    END $$
"""
SCREEN_BACK = "\x1b[?1049l"


def time_of(step):
    """Returns the time of a step, which is the same in every run."""
    return 1_700_000_000_000 + int(step * STEP_SECONDS * 1000)


def events_of(step, market=None):
    return (market or SimulatedMarket(CURRENCY)).events(step, time_of(step))


def empty_partition():
    return Partition(0, 1, (), CURRENCY.decimals, CURRENCY.decimals_default)


def settle(partition, events):
    """Settles events; fails if one is rejected."""
    for event in events:
        partition.apply(event)
    return partition.take()


def lots_in_book(partition, symbol, account):
    """Returns the signed lots of an account's position; 0 without one."""
    book = partition.market(symbol).book
    for name, row in book.positions(account):
        return book.sides[name].lots_of([row])[0] * (1 if name == "long" else -1)
    return 0


def announcement_of(order, accounts, lots):
    """Returns the announcement of a round."""
    price = format_units(order.price, DECIMALS[order.symbol])
    allocations = tuple(map(RequestedLots, accounts, lots))
    of_order = order.symbol, order.adl, order.round, order.origin, order.cause, order.reduce
    return Announcement(*of_order, price, sum(lots), allocations, order.ts, 1)


class Exchange:
    """The market and its matching engine, settled by a partition in memory, with all results so far."""

    def __init__(self):
        self.partition = empty_partition()
        self.matching = MatchingEngine(SimulatedMarket(CURRENCY), {}, {})
        self.sent, self.entries, self.funds, self.rounds = [], [], [], []
        self.orders, self.records, self._latest = {}, [], {}

    def run(self, steps):
        for step in range(len(self.sent), steps):
            self.sent.append(self.matching.events(step, time_of(step)))
            batch = settle(self.partition, self.sent[-1])
            assert not batch.duplicates
            for round_ in batch.rounds:
                self.rounds.append((step, round_))
                self.matching.take_on(announcement_of(*round_), step)
            self.entries.append(batch.entries)
            self.orders |= batch.orders
            self.records += [sealed.record for sealed in batch.records]
            self._latest |= {state.symbol: state for state in batch.funds}
            self.funds.append(dict(self._latest))
        return self

    def restart_matching(self, step):
        """Replaces the matching engine by one that starts from the ledger."""
        settled = {symbol: fund.seq for symbol, fund in self.funds[-1].items()}
        taken = Counter()
        for each in self.executions():
            taken[Holding(each.symbol, each.account, reduced_of(each.body).entry_price)] += each.lots
        self.matching = MatchingEngine(SimulatedMarket(CURRENCY), settled, +taken, self.carried())
        for order in self.orders.values():
            if order.state == "open":
                rests = self.partition.market(order.symbol).orders[order.adl].progress.rests()
                self.matching.take_on(announcement_of(order, *zip(*rests, strict=True)), step)

    def carried(self):
        """Returns the lots that each fund holds, with those in its open takeover orders."""
        funds = [fund for fund in self.partition.funds() if fund.inventory]
        return {fund.contract.symbol: sum(side.lots + side.in_orders for side in fund.inventory.sides()) for fund in funds}

    def executions(self):
        return [record for record in self.records if record.kind == "execution"]

    def check_sums(self):
        """Checks uncovered = recovered + repaid + outstanding + open for every contract."""
        entries = [entry for step in self.entries for entry in step]
        for symbol in SYMBOLS:
            of_symbol = [entry for entry in entries if entry.symbol == symbol]
            orders = [order for order in self.orders.values() if order.symbol == symbol]
            still_open = sum(order.uncovered - order.recovered for order in orders if order.state == "open")
            assert sum(entry.uncovered for entry in of_symbol) == (
                sum(order.recovered for order in orders)
                + sum(entry.repaid for entry in of_symbol)
                + self.funds[-1][symbol].outstanding
                + still_open
            )


@pytest.fixture(scope="module")
def run():
    """Three settled storms of the market with answered ADL orders."""
    return Exchange().run(STEPS)


class TestMarket:
    market = SimulatedMarket(CURRENCY)

    @pytest.mark.parametrize("step", [0, 1, 81, 200, 12_345])
    def test_a_step_does_not_depend_on_earlier_calls(self, step):
        busy = SimulatedMarket(CURRENCY)
        for other in (step + 1, step + 130, max(0, step - 60)):
            events_of(other, busy)
        assert events_of(step, busy) == events_of(step)

    def test_another_seed_gives_another_market(self):
        assert SimulatedMarket(CURRENCY, "another").events(200, 0) != SimulatedMarket(CURRENCY).events(200, 0)

    def test_events_equal_their_decoded_encoding(self):
        for step in (0, 81):
            events = events_of(step)
            assert list(decode(Message("1-1", "json", encode(events)))) == events

    def test_contracts_settle_in_usdt_in_usdc_and_in_their_coin(self):
        specifications = [event.contract for event in events_of(0)[: len(INSTRUMENTS)]]
        kinds = Counter((each["settleCurrency"], each["isInverse"]) for each in specifications)
        assert kinds[("USDT", False)] >= 2
        assert kinds[("USDC", False)] >= 1
        assert (kinds[("XBT", True)], kinds[("ETH", True)]) == (2, 1)
        assert all((each["multiplier"] < 0) == each["isInverse"] and each["status"] == "Open" for each in specifications)

    def test_hundreds_of_positions_are_open_on_both_sides(self):
        open_positions = defaultdict(dict)
        for step in range(400):
            for event in events_of(step, self.market):
                if isinstance(event, Position):
                    open_positions[event.symbol][event.account] = event.lots
        for symbol in SYMBOLS:
            lots = [lots for lots in open_positions[symbol].values() if lots]
            assert len(lots) >= 300
            assert sum(each > 0 for each in lots) > 75
            assert sum(each < 0 for each in lots) > 75

    def test_a_liquidated_position_was_open_and_is_closed(self):
        held, liquidations = {}, 0
        for step in range(400):
            for event in events_of(step, self.market):
                if isinstance(event, Position):
                    assert bool(event.lots) == (float(event.margin) > 0)
                    held[event.symbol, event.account] = event.lots
                elif isinstance(event, Fill):
                    liquidations += 1
                    assert held[event.symbol, event.account] == (event.lots if event.side == "sell" else -event.lots)
        assert liquidations > 400


class TestSettled:
    def test_most_liquidations_of_a_contract_are_surpluses(self, run):
        kinds = Counter((entry.symbol, entry.kind) for step in run.entries for entry in step)
        for symbol in SYMBOLS:
            of_symbol = {kind: kinds[symbol, kind] for kind in ("surplus", "flat", "shortfall")}
            assert of_symbol["surplus"] > 0.75 * sum(of_symbol.values())
            assert of_symbol["flat"]

    @pytest.mark.parametrize("instrument", DRAINED, ids=lambda instrument: instrument.symbol)
    def test_cascades_drain_the_fund_and_it_recovers(self, run, instrument):
        decimals = CURRENCY.decimals.get(instrument.settle, CURRENCY.decimals_default)
        wanted = to_units(Decimal(instrument.cascade.uncovered), decimals)
        for end in (last_step(instrument.cascade, cycle) for cycle in range(3)):
            if end < STEPS:
                assert run.funds[end][instrument.symbol].balance == 0
                uncovered = sum(each.order.uncovered for step, each in run.rounds if step == end and each.order.round == 1)
                assert wanted // 2 < uncovered < 3 * wanted
            before_next = end + CYCLE_STEPS - CASCADE_STEPS
            if before_next < STEPS:
                fund = run.funds[before_next][instrument.symbol]
                assert fund.outstanding == 0
                assert fund.balance > 0

    @pytest.mark.parametrize("instrument", COVERED, ids=lambda instrument: instrument.symbol)
    def test_other_funds_pay_what_they_have_earned_and_keep_their_savings(self, run, instrument):
        cascade, symbol = instrument.cascade, instrument.symbol
        saved = run.funds[cascade.saved][symbol].balance
        end = last_step(cascade, 1)
        assert run.funds[end - CASCADE_STEPS][symbol].balance > 1.5 * saved
        assert run.funds[end][symbol].balance == pytest.approx(saved, rel=0.1)
        assert all(funds[symbol].outstanding == 0 for funds in run.funds)

    def test_dated_contract_is_settled_and_takes_no_more_events(self, run):
        (dated,) = (instrument for instrument in INSTRUMENTS if instrument.settles)
        assert HISTORY_STEPS + STORMY < dated.settles < STEPS
        fund = run.partition.market(dated.symbol).fund
        assert fund.closing.at == time_of(dated.settles)
        assert fund.balance > 0
        later = [event for events in run.sent[dated.settles + 1 :] for event in events]
        assert not [event for event in later if getattr(event, "symbol", None) == dated.symbol]

    def test_storms_and_calm_phases_alternate(self, run):
        uncovered = [step for step, settled in enumerate(run.entries) if any(entry.uncovered for entry in settled)]
        storms = {step // CYCLE_STEPS for step in uncovered if step % CYCLE_STEPS < STORMY}
        assert storms == {0, 1, 2}
        calm = [step for step in uncovered if step % CYCLE_STEPS >= STORMY]
        assert not calm

    def test_a_resumed_run_gives_the_ledger_of_an_undisturbed_run(self, run):
        torn, market, partition = 60, SimulatedMarket(CURRENCY), empty_partition()
        for step in range(torn):
            lost = ["SOLUSDTM"] if step > torn - 8 else []
            settle(partition, [event for event in events_of(step, market) if getattr(event, "symbol", None) not in lost])
        resumed = step_to_resume([partition.market(symbol).fund.seq for symbol in SYMBOLS])
        assert torn - 12 < resumed <= torn - 8
        duplicates = 0
        for step in range(resumed, 80):
            duplicates += settle(partition, events_of(step, market)).duplicates.total()
        assert 0 < duplicates < 200
        assert {symbol: partition.market(symbol).fund.state() for symbol in SYMBOLS} == run.funds[79]


class TestMatching:
    def test_orders_end_with_a_refund_after_several_rounds_or_with_a_cover(self, run):
        refunds = {(entry.symbol, entry.order_id) for step in run.entries for entry in step if entry.kind == "refund"}
        done = [order for order in run.orders.values() if order.state == "done"]
        assert refunds
        assert refunds <= {(order.symbol, f"adl/{order.adl}") for order in done}
        assert any(order.round > 1 for order in done)
        uncovered = {order.symbol for order in run.orders.values() if order.state == "uncovered" and order.executed}
        assert uncovered == {"ETHUSDM"}
        covers = {entry.symbol for step in run.entries for entry in step if entry.kind == "cover"}
        assert covers == {"ETHUSDM"}
        assert not any(funds["ETHUSDM"].outstanding and funds["ETHUSDM"].balance for funds in run.funds)

    def test_uncovered_amounts_are_conserved(self, run):
        run.check_sums()

    def test_no_order_takes_more_lots_than_it_needs(self, run):
        assert all(order.executed <= order.lots for order in run.orders.values())

    def test_sequences_of_a_contract_rise_strictly_over_fills_and_adl_answers(self, run):
        latest, answers = defaultdict(int), 0
        for step, events in enumerate(run.sent):
            for event in events:
                if isinstance(event, Fill | Takeover | Unwind | AdlFill | AdlEnd):
                    answers += isinstance(event, AdlFill | AdlEnd)
                    assert event.seq > latest[event.symbol]
                    assert event.seq // SEQ_PER_STEP == step
                    latest[event.symbol] = event.seq
        assert answers > 50

    def test_a_round_lasts_one_to_two_seconds(self, run):
        began = {(each.order.symbol, each.order.adl, each.order.round): step for step, each in run.rounds}
        ended = {}
        for step, events in enumerate(run.sent):
            for event in events:
                if isinstance(event, AdlEnd):
                    rounds = [number for symbol, adl, number in began if (symbol, adl) == (event.symbol, event.adl)]
                    number = next(each for each in sorted(rounds) if (event.symbol, event.adl, each) not in ended)
                    ended[event.symbol, event.adl, number] = step
        assert len(ended) > 10
        assert {step - began[key] for key, step in ended.items()} == {ROUND_STEPS}

    def test_the_position_event_after_an_execution_equals_the_book(self):
        exchange, reduced = Exchange(), Counter()
        exchange.run(79)
        for step in range(79, 220):
            events = exchange.matching.events(step, time_of(step))
            for event, after in zip(events, [*events[1:], None], strict=True):
                exchange.partition.apply(event)
                if isinstance(event, AdlFill):
                    assert isinstance(after, Position)
                    assert after.account == event.account
                    assert lots_in_book(exchange.partition, event.symbol, event.account) == after.lots
                    reduced[event.symbol, bool(after.lots)] += 1
            for round_ in exchange.partition.take().rounds:
                exchange.matching.take_on(announcement_of(*round_), step)
        assert {("SOLUSDTM", True), ("SOLUSDTM", False), ("ETHUSDM", True)} <= set(reduced)

    def test_a_repeated_announcement_is_answered_once(self, run):
        (step, first), *_ = run.rounds
        announcement = announcement_of(*first)
        once, again = (MatchingEngine(SimulatedMarket(CURRENCY), {}, {}) for _ in range(2))
        once.take_on(announcement, step)
        for _ in range(2):
            again.take_on(announcement, step)
        answers = 0
        for each in range(step + 1, step + 2 * ROUND_STEPS):
            events = once.events(each, 0)
            assert again.events(each, 0) == events
            again.take_on(announcement, each)
            answers += sum(isinstance(event, AdlFill | AdlEnd) for event in events)
        assert answers > 1

    @pytest.mark.parametrize("restarted", [82, 84, 86, 89, 204, 215])
    def test_a_restarted_matching_engine_continues_open_orders(self, restarted):
        exchange = Exchange().run(restarted)
        still_open = [key for key, order in exchange.orders.items() if order.state == "open"]
        assert still_open
        exchange.restart_matching(restarted)
        exchange.run(restarted + 60 * ROUND_STEPS)
        assert {exchange.orders[key].state for key in still_open} <= {"done", "uncovered"}
        assert ("SOLUSDTM", "done") in {(order.symbol, order.state) for order in exchange.orders.values()}
        exchange.check_sums()

    def test_a_position_that_closed_during_the_round_is_not_reduced(self):
        market = SimulatedMarket(CURRENCY)
        closing = [event.account for event in events_of(101, market) if isinstance(event, Position) and not event.lots]
        contract = market.contracts["XBTUSDTM"]
        stakes = [stake for side in ("long", "short") for each in closing if (stake := contract.held(each, side, 100))]
        (stake, *_) = (stake for stake in stakes if contract.held(stake.account, stake.side, 101) != stake)
        engine = MatchingEngine(market, {}, {})
        requested = (RequestedLots(stake.account, stake.lots),)
        engine.take_on(Announcement("XBTUSDTM", 1, 1, "shortfall", 1, stake.side, "1", stake.lots, requested, 0, 1), 100)
        sent = [event for step in range(101, 101 + 2 * ROUND_STEPS) for event in engine.events(step, 0)]
        assert [type(event) for event in sent if isinstance(event, AdlFill | AdlEnd)] == [AdlEnd]

    def test_settled_steps_contain_no_adl_answers(self, run):
        (step, first), *_ = run.rounds
        symbol = first.order.symbol
        engine = MatchingEngine(SimulatedMarket(CURRENCY), {symbol: (step + 3) * SEQ_PER_STEP + 700}, {})
        engine.take_on(announcement_of(*first), step)
        sent = [event for each in range(step + 1, step + 10) for event in engine.events(each, 0)]
        answers = [event.seq for event in sent if isinstance(event, AdlFill | AdlEnd)]
        assert len(answers) > 1
        assert min(answers) > (step + 4) * SEQ_PER_STEP


def kinds_of(run, since, until):
    """Returns the entries of the contract with a thin book by kind, forced or not, and whether they close lots."""
    entries = [entry for step in run.entries[since:until] for entry in step if entry.symbol == THIN.symbol]
    return Counter((entry.kind, bool(entry.closes)) for entry in entries if entry.closes or entry.kind in HELD_KINDS)


HELD_KINDS = {"takeover", "deleverage"}


class TestInventory:
    @pytest.mark.parametrize("cycle", range(3))
    def test_fund_takes_over_is_relieved_and_its_lots_are_unwound(self, run, cycle):
        begins = THIN.thin.first + cycle * CYCLE_STEPS
        kinds = kinds_of(run, begins, begins + THIN_STEPS)
        assert kinds["takeover", False] >= 2
        assert kinds["deleverage", False], "ADL executes lots that the fund did not accept"
        assert kinds["deleverage", True], "ADL relieves the inventory"
        assert kinds["shortfall", True] + kinds["surplus", True] + kinds["flat", True] >= len(UNWIND_STEPS)
        assert kinds_of(run, begins + THIN_STEPS, begins + CYCLE_STEPS) == Counter()

    def test_orders_for_takeovers_and_inventory_are_done(self, run):
        orders = [order for order in run.orders.values() if order.symbol == THIN.symbol]
        assert Counter(order.origin for order in orders).keys() == {"takeover", "inventory"}
        assert {order.state for order in orders} == {"done"}

    def test_lots_of_the_fund_equal_the_account_of_the_market(self):
        exchange, seen = Exchange(), set()
        for step in range(1, THIN.thin.first + THIN_STEPS + CYCLE_STEPS):
            exchange.run(step)
            assert exchange.carried() == {symbol: exchange.matching.held[symbol] for symbol in exchange.carried()}
            seen |= set(exchange.carried().values())
        assert len(seen) > 2 * len(UNWIND_STEPS)
        assert exchange.carried() == {THIN.symbol: 0}

    def test_lots_are_conserved(self, run):
        (long, short) = run.partition.market(THIN.symbol).fund.inventory.states()
        taken = sum(event.lots for events in run.sent for event in events if isinstance(event, Takeover))
        unwound = sum(event.lots for events in run.sent for event in events if isinstance(event, Unwind))
        assert (long.taken, long.unwound, long.held, long.in_orders) == (taken, unwound, 0, 0)
        assert taken == long.unwound + long.deleveraged
        assert short.taken == 0

    @pytest.mark.parametrize("after", [1, 4, 8, 9, 11, 13, 27, 29, 30, 45, 57])
    def test_a_restarted_matching_engine_continues_the_inventory(self, after):
        exchange = Exchange().run(THIN.thin.first + after)
        exchange.restart_matching(THIN.thin.first + after)
        exchange.run(THIN.thin.first + THIN_STEPS + 1)
        assert exchange.carried() == {THIN.symbol: 0}
        assert {order.state for order in exchange.orders.values() if order.symbol == THIN.symbol} == {"done"}

    def test_a_step_that_is_sent_again_repeats_no_unwind(self, run):
        step = THIN.thin.first + UNWIND_STEPS[3]
        (unwind,) = [event for event in run.sent[step] if isinstance(event, Unwind)]
        for settled, expected in ((unwind.seq - 1, 1), (unwind.seq, 0)):
            engine = MatchingEngine(SimulatedMarket(CURRENCY), {THIN.symbol: settled}, {}, {THIN.symbol: 1000})
            sent = [event for event in engine.events(step, time_of(step)) if isinstance(event, Unwind)]
            assert len(sent) == expected

    def test_screen_shows_equity_and_inventory_beside_the_balance(self):
        exchange = Exchange().run(THIN.thin.first + 20)
        fund = exchange.partition.market(THIN.symbol).fund
        columns = (fund.contract, None, 0, fund.balance, 0, fund.entry, fund.seq, fund.head, None, None, False)
        shown = FundView(FundRow(*columns), None, [], fund.inventory)
        assert shown.equity == fund.equity < fund.balance
        console = Console(width=160, file=io.StringIO())
        console.print(funds_table([shown], console))
        drawn = console.file.getvalue()
        assert f"long {fund.inventory.long.lots:,}" in drawn
        assert f"{fund.equity / 10**8:,.2f}" in drawn
        assert f"{fund.balance / 10**8:,.2f}" in drawn

    @pytest.mark.parametrize(("width", "absent"), [(80, {"entries", "equity"}), (100, {"entries"}), (160, set())])
    def test_narrow_terminal_shows_whole_symbols_and_fewer_columns(self, width, absent):
        exchange = Exchange().run(THIN.thin.first + 20)
        funds = [exchange.partition.market(symbol).fund for symbol in SYMBOLS]
        rows = [
            FundRow(fund.contract, None, 0, fund.balance, 0, fund.entry, fund.seq, fund.head, None, None, False)
            for fund in funds
        ]
        console = Console(width=width, file=io.StringIO())
        console.print(
            funds_table([FundView(row, None, [], fund.inventory) for row, fund in zip(rows, funds, strict=True)], console)
        )
        drawn = console.file.getvalue()
        assert all(symbol in drawn for symbol in SYMBOLS)
        assert {title for title in COLUMNS if title not in drawn} >= absent
        assert "balance" in drawn
        assert "…" not in drawn


@pytest.fixture(scope="module")
def insured():
    """The insured traders, and their pool after three cycles, settled in memory."""
    traders, pool = InsuredTraders(SimulatedMarket(CURRENCY)), Pool(PoolRow(POOL), {1: MUTUAL.pools[POOL].rules()})
    for step in range(3 * CYCLE_STEPS):
        for event in traders.events(step, time_of(step)):
            pool.apply(event)
    return traders, pool, pool.take()


class TestInsured:
    def test_pool_shows_all_stages_of_policies(self, insured):
        _, pool, batch = insured
        kinds = Counter(entry.kind for entry in batch.entries)
        assert {"topUp", "transfer", "covered", "uncovered", "premium", "loss", "issue", "payout"} <= kinds.keys()
        assert min(kinds[kind] for kind in ("activate", "freeze", "thaw", "complete", "cycle")) > 10
        states = Counter(policy.state for policy in pool.register.save_policies())
        assert min(states[state] for state in (State.WAITING, State.ACTIVE, State.FROZEN)) > 10

    def test_events_rise_in_sequence_and_depend_on_no_earlier_ones(self, insured):
        traders, latest = InsuredTraders(SimulatedMarket(CURRENCY)), 0
        for step in (0, 3, 240, 480, 12_345):
            events = list(traders.events(step, 0))
            assert events == list(insured[0].events(step, 0))
            for event in events:
                assert event.seq > latest
                latest = event.seq

    def test_hours_take_seconds(self):
        rules = MUTUAL.pools[POOL].rules()
        assert (rules.waiting_ms, rules.cycle_ms, rules.activity_ms) == (24_000, 24_000, 7 * 24_000)

    def test_trader_of_the_token_is_covered_with_policies_and_has_positions(self, insured):
        traders, pool, _ = insured
        account = pool.register.accounts[traders.accounts[0]]
        assert account.is_covered
        assert account.live
        market = SimulatedMarket(CURRENCY)
        held = [
            contract.held(traders.accounts[0], side, 999)
            for contract in market.contracts.values()
            for side in ("long", "short")
        ]
        assert len(list(filter(None, held))) == len(INSTRUMENTS)


class TestHistory:
    def test_history_ends_where_the_demo_begins(self):
        begun, now = 1_700_000_000_000, 1_700_000_000_100
        assert times_of(HISTORY_STEPS - 1, begun, now) == (begun - MARKET_STEP_MS, begun - INSURED_STEP_MS)
        assert times_of(HISTORY_STEPS, begun, now) == times_of(HISTORY_STEPS + 9, begun, now) == (now, now)

    def test_history_is_not_old_for_settlement(self):
        begun = 1_700_000_000_000
        assert begun + 600_000 - times_of(0, begun, begun).market < OLD_MS


class TestScreen:
    @pytest.mark.parametrize(("width", "height", "has_tokens"), [(80, 24, False), (100, 30, True), (160, 45, True)])
    def test_picture_fills_the_terminal_and_shows_tokens_or_how_to_mint_them(self, width, height, has_tokens):
        partition = empty_partition()
        settle(partition, events_of(0))
        funds = [partition.market(symbol).fund for symbol in SYMBOLS]
        rows = [
            FundRow(fund.contract, None, 0, fund.balance, 0, fund.entry, fund.seq, fund.head, None, None, False)
            for fund in funds
        ]
        offered = [Visitor("trader", "a" * 24, "t" * 250), Visitor("risk", "", "r" * 190)]
        surroundings = Surroundings("http://127.0.0.1:8080", Path("fundsvc.log"), 0.0, offered)
        console = Console(width=width, height=height, file=io.StringIO())
        console.print(picture(View([FundView(row, None, []) for row in rows], 0.0, 0, []), surroundings, console))
        drawn = console.file.getvalue()
        assert len(drawn.splitlines()) == height
        assert "http://127.0.0.1:8080/ " in drawn
        assert ("t" * 250 in drawn.replace("\n", "")) == has_tokens
        assert (f"fundsvc token --role trader --account {'a' * 24}" in drawn) != has_tokens


class TestResuming:
    def test_an_empty_ledger_starts_at_step_0(self):
        assert step_to_resume([]) == step_to_resume([0, 5001]) == 0

    def test_the_last_settled_step_is_sent_again(self):
        assert step_to_resume([7003, 6999]) == 6


def environment(directory):
    """Returns an environment with the data directory and defaults otherwise."""
    theirs = {name: value for name, value in os.environ.items() if not name.startswith("FUNDSVC_")}
    return theirs | {"FUNDSVC_DATA_DIRECTORY": str(directory / "data"), "FUNDSVC_HTTP_PORT": "0", "TERM": "xterm-256color"}


class Demo:
    """A process of `fundsvc up --demo`, and its output."""

    def __init__(self, directory, terminal=None):
        self._output = (directory / f"output.{time.monotonic_ns()}").open("w+b")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fundsvc", "up", "--demo"],
            stdin=terminal or subprocess.DEVNULL,
            stdout=terminal or self._output,
            stderr=terminal or self._output,
            env=environment(directory),
            start_new_session=True,
        )
        self._family = []

    def printed(self):
        self._output.seek(0)
        return self._output.read().decode()

    def counts(self):
        """Returns the numbers of ledger entries in the output's plain lines."""
        return [int(count) for count in re.findall(r"(\d+) entries:", self.printed())]

    def offered(self):
        """Returns the address of the page and the tokens that the output offers."""
        text = self.printed()
        return re.search(r"open (http://\S+/) ", text)[1], re.findall(r"^token of .*: (\S+)$", text, re.MULTILINE)

    def is_running(self):
        return self._process.poll() is None

    def remember_family(self):
        """Returns the process and its children, and keeps them for checks after its end."""
        process = psutil.Process(self._process.pid)
        self._family = [process, *process.children(recursive=True)]
        return self._family

    def duplicates(self):
        """Returns the number of duplicates that its engine ignored."""
        address = re.search(r"http://[\d.:]+", self.printed())[0]
        with urllib.request.urlopen(f"{address}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("fundsvc_duplicates_total"))

    def signal(self, number):
        """Sends a signal to the process group, as a terminal does."""
        os.killpg(self._process.pid, number)

    def end(self):
        """Returns the exit code; fails if the process does not end in time."""
        return self._process.wait(STOP_SECONDS)

    def kill(self):
        self.signal(signal.SIGKILL)
        self.end()

    def close(self):
        """Kills the process if it still runs."""
        if self.is_running():
            self.kill()
        self._output.close()


def differences_in_ledger(directory, *kind):
    """Returns the number of differences that the audit of the funds finds, or with `mutual` that of the pool."""
    command = [sys.executable, "-m", "fundsvc", *kind, "audit", "--json"]
    audit = subprocess.run(command, env=environment(directory), check=True, capture_output=True)
    return json.loads(audit.stdout)["differences"]


async def try_tokens(address, tokens):
    """Opens the page; the trader's token shows positions and an account of the pool, that of risk reads any account."""
    trader, risk = tokens
    account = jwt.decode(trader, options={"verify_signature": False})["account"]
    async with aiohttp.ClientSession() as client:

        async def read(path, token, **parameters):
            async with client.get(
                f"{address}{path}", params=parameters, headers={"Authorization": f"Bearer {token}"}
            ) as answer:
                assert answer.status == 200
                return (await answer.json())["data"]

        async with client.get(address) as page:
            assert page.content_type == "text/html"

        async def is_shown():
            positions, insured = await read("api/v1/adl/positions", trader), await read("api/v1/mutual/account", trader)
            return positions["positions"] and insured["pools"]

        await eventually(is_shown)
        assert (await read("api/v1/mutual/account", risk, account=account))["account"] == account


def alive(processes):
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


@contextlib.contextmanager
def data_directory():
    """Yields a temporary directory with a path short enough for sockets."""
    directory = Path(tempfile.mkdtemp(prefix="fsd-"))
    try:
        yield directory
    finally:
        servers = EmbeddedServers(directory / "data")
        for server in (servers.postgres, servers.valkey):
            server.kill()
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def directory():
    """The directory of all tests of a class, which continue with the ledger of the previous test."""
    with data_directory() as directory:
        yield directory


@pytest.fixture
def fresh_directories():
    """Returns a function that makes directories for one test."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(data_directory())


class TestWhole:
    async def test_a_restart_continues_and_a_stopped_demo_leaves_no_process(self, directory):
        with contextlib.closing(Demo(directory)) as first:
            await eventually(lambda: first.counts() and first.counts()[-1] > 20, 60)
            family = first.remember_family()
            assert len(family) > 2
            first_count = first.counts()[-1]
            await try_tokens(*first.offered())
            first.signal(signal.SIGINT)
            assert first.end() == 0
        await eventually(lambda: not alive(family))

        with contextlib.closing(Demo(directory)) as second:
            await eventually(lambda: second.counts() and second.counts()[-1] > first_count + 20, 30)
            assert second.counts()[0] >= first_count
            assert second.duplicates() < 100
            left = second.remember_family()[1:]
            second_count = second.counts()[-1]
            second.kill()
        assert alive(left)

        with contextlib.closing(Demo(directory)) as third:
            await eventually(lambda: third.counts() and third.counts()[-1] > second_count + 20, 30)
            assert third.counts()[0] >= second_count
            assert third.duplicates() < 100
            third.signal(signal.SIGTERM)
            assert third.end() == 0
        await eventually(lambda: not alive(left))
        assert differences_in_ledger(directory) == 0

    async def test_the_demo_continues_after_its_servers_are_killed(self, directory):
        with contextlib.closing(Demo(directory)) as running:
            await eventually(running.counts, 60)
            servers = running.remember_family()[0].children()
            assert {server.name() for server in servers} == {"postgres", "valkey-server"}
            for server in servers:
                server.kill()
            await eventually(lambda: not alive(servers))
            count = running.counts()[-1]
            await eventually(lambda: running.counts()[-1] > count + 50, 30)
            family = running.remember_family()
            running.signal(signal.SIGINT)
            assert running.end() == 0
        await eventually(lambda: not alive(family))
        assert differences_in_ledger(directory) == 0

    async def test_a_restart_after_a_kill_completes_open_orders(self, fresh_directories):
        async def order_at_kill(directory):
            """Kills a demo while an order is open; returns the order, or None if it ended before the kill."""
            dsn = EmbeddedServers(directory / "data").dsn
            with contextlib.closing(Demo(directory)) as killed:
                await eventually(lambda: killed.counts() and killed.counts()[-1] > 0, 60)
                async with connected(dsn) as connection:  # The steps of the history take milliseconds.
                    await connection.execute(UNTIL_OPEN, timeout=60)
                killed.kill()
            async with connected(dsn) as connection:
                return await connection.fetchrow(f"SELECT adl, executed FROM adl_orders WHERE {OPEN}")

        for _ in range(KILLS_MAX):
            directory = fresh_directories()
            begun = await order_at_kill(directory)
            if begun:
                break
        assert begun
        dsn = EmbeddedServers(directory / "data").dsn

        with contextlib.closing(Demo(directory)) as running:

            async def is_done():
                async with connected(dsn) as connection:
                    find = "SELECT executed FROM adl_orders WHERE symbol = 'SOLUSDTM' AND adl = $1 AND state = 'done'"
                    return await connection.fetchval(find, begun["adl"])

            assert await eventually(is_done, 30) > begun["executed"]
            async with connected(dsn) as connection:
                assert await connection.fetch("SELECT * FROM rejected") == []
                assert await connection.fetch("SELECT * FROM mutual_rejected") == []
            count = running.counts()[-1]
            await eventually(lambda: running.counts()[-1] > count + 50, 30)
            family = running.remember_family()
            running.signal(signal.SIGINT)
            assert running.end() == 0
        await eventually(lambda: not alive(family))
        assert differences_in_ledger(directory) == 0
        assert differences_in_ledger(directory, "mutual") == 0

    async def test_a_terminal_shows_a_table_and_is_restored_at_the_end(self, directory):
        ours, its = pty.openpty()
        fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        os.set_blocking(ours, False)
        shown = bytearray()

        def shows(*words):
            with contextlib.suppress(BlockingIOError, OSError):
                while part := os.read(ours, 65536):
                    shown.extend(part)
            return all(word.encode() in shown for word in words)

        with contextlib.closing(Demo(directory, terminal=its)) as running:
            os.close(its)
            await eventually(lambda: shows("events", *SYMBOLS, "surplus", "fills/s", "fundsvc.log"), 60)
            family = running.remember_family()
            running.signal(signal.SIGINT)
            await eventually(lambda: shows(SCREEN_BACK) and not running.is_running(), STOP_SECONDS)
            assert running.end() == 0
            shows(SCREEN_BACK)
            _, _, left_behind = shown.decode().partition(SCREEN_BACK)
            assert all(symbol in left_behind for symbol in SYMBOLS)
        os.close(ours)
        await eventually(lambda: not alive(family))
        assert "market continues" in (directory / "data" / "fundsvc.log").read_text()
