"""The /metrics of a running service: valid for promtool, as in the handbook, with the amounts of the ledger."""

import asyncio
import re
import time
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import get_args

import aiohttp
import msgspec
import pytest
import takeovers
from commands import program
from conftest import with_section
from escalations import BEGINNING, SYMBOL, allocated, ended, executed, shortfall, written_records
from eventually import eventually
from exposed import sample_sum, samples
from hypothesis import given
from hypothesis import strategies as st
from ledgers import fill, listing
from prometheus_client.parser import text_string_to_metric_families

from fundsvc.app import http_side
from fundsvc.core.adl.order import AdlOrder
from fundsvc.core.batch import Durations
from fundsvc.core.contracts import Contract
from fundsvc.core.fund.inventory import Outcome
from fundsvc.core.fund.settlement import Fund, FundState
from fundsvc.core.partition import Partition
from fundsvc.core.policy import DrawdownGuard, Policy
from fundsvc.engine.engine import Engine
from fundsvc.metrics import Metrics
from fundsvc.metrics.exposition import Family, exposition, labels_text
from fundsvc.metrics.extremes import Extreme
from fundsvc.store.database import open_pool
from fundsvc.streams.client import open_client
from fundsvc.streams.producer import Producer

OPERATIONS = Path(__file__).parents[2] / "fundsvc" / "handbook" / "operations.md"
ATOMS = 10**8


class Process:
    """Engine and HTTP side in one process, as `fundsvc up` runs them."""

    def __init__(self, http, metrics, producer):
        self._http = http
        self._metrics = metrics
        self._producer = producer

    async def text(self):
        async with self._http.get("/metrics") as answer:
            assert answer.status == 200
            return await answer.text()

    async def send(self, *events):
        await self._producer.append(events)

    def sum(self, name, **labels):
        return sample_sum(self._metrics, f"fundsvc_{name}", **labels)

    async def settled(self, entries):
        await eventually(lambda: self.sum("entries_total") == entries)


@asynccontextmanager
async def running(config):
    metrics, stop = Metrics(), asyncio.Event()
    async with open_pool(config.database.dsn, 4) as pool, open_client(config.stream) as client:
        metrics.add_pool(pool)
        engine = Engine(config, metrics)
        running = asyncio.create_task(engine.run(stop))
        try:
            async with (
                http_side(with_section(config, "http", port=0), metrics, pool, client, public=True, engine=engine) as url,
                aiohttp.ClientSession(url) as http,
            ):
                yield Process(http, metrics, Producer(client, config.stream.partitions))
        finally:
            stop.set()
            await running


@pytest.fixture
async def process(config):
    async with running(config) as process:
        yield process


@pytest.fixture
async def busy(process):
    """A process that has shown every metric: fills of all kinds, orders, an inventory, duplicates, rejections."""
    await process.send(*BEGINNING, fill(SYMBOL, 1, 3), fill(SYMBOL, 1, 3), fill("NOSUCH", 1, 1))
    await process.send(shortfall(2), executed(3, 1, "secret-anna", 10), shortfall(4), ended(5, 1))
    await process.send(takeovers.LISTING, takeovers.mark(50), takeovers.takeover(1, 10))
    await process.settled(4)
    await eventually(lambda: process.sum("audit_success", symbol=SYMBOL))
    await eventually(lambda: process.sum("inventory_oldest_timestamp_seconds"))
    return process


async def test_promtool_reports_no_problem(busy):
    checked = await program("promtool", "check", "metrics", given=await busy.text())
    assert checked == (0, "", "")


async def test_handbook_lists_every_metric_with_its_labels(busy):
    text = await busy.text()
    shown = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    rows = re.findall(r"^\| (`fundsvc_[^|]*)\|([^|]*)\| ([^|]*) \|$", OPERATIONS.read_text(), re.MULTILINE)
    listed = {name: (set(code(labels)), text) for names, labels, text in rows for name in code(names)}
    assert set(listed) == set(shown)
    for name, kind in shown.items():
        assert (kind == "histogram") == listed[name][1].startswith("histogram"), name
    for sample in samples(text):
        name = re.sub(r"_(bucket|sum|count)$", "", sample.name) if sample.name not in shown else sample.name
        assert set(sample.labels) - {"le"} == listed[name][0], name


def code(cell):
    return re.findall(r"`([^`]+)`", cell)


MOVED = """
SELECT sum(greatest(change, 0)) AS credited, sum(greatest(-change, 0)) AS paid, sum(uncovered) AS uncovered,
       sum(repaid) AS repaid, sum(change) FILTER (WHERE kind = 'refund') AS refunded,
       (SELECT sum(recovered) FROM adl_orders) AS recovered
FROM entries
"""


async def test_amounts_equal_those_of_the_ledger(process, service_connection):
    await process.send(*BEGINNING, fill(SYMBOL, 1, 3000), shortfall(2, lots=70_000))
    await process.settled(2)
    assert process.sum("fund_state", symbol=SYMBOL, state="adl") == 1
    assert process.sum("adl_oldest_open_seconds", symbol=SYMBOL) > 0
    order = await service_connection.fetchrow("SELECT * FROM adl_orders")
    allocations = allocated(await written_records(service_connection))
    await process.send(*(executed(seq, 1, row.account, row.requested) for seq, row in enumerate(allocations, 3)))
    await process.send(*(ended(seq, 1) for seq in range(20, 24)))
    await eventually(lambda: process.sum("adl_open_orders") == 0)
    assert process.sum("adl_orders_total", state="uncovered") == 1
    assert process.sum("adl_lots_needed_total") == order["lots"]
    assert process.sum("adl_lots_taken_total") == sum(row.requested for row in allocations)
    assert process.sum("fund_state", symbol=SYMBOL, state="uncovered") == 1
    await process.send(fill(SYMBOL, 30, 9_000_000), shortfall(31, lots=7))
    await process.settled(4)
    moved = await service_connection.fetchrow(MOVED)
    assert moved["repaid"] > 0
    assert moved["recovered"] > 0
    for name in ("credited", "paid", "uncovered", "recovered", "repaid"):
        assert process.sum(f"{name}_total", symbol=SYMBOL, currency="USDT") == int(moved[name]) / ATOMS, name
    assert process.sum("fund_state", symbol=SYMBOL, state="ok") == 1
    assert process.sum("balance") == process.sum("payable") == int(moved["credited"] - moved["paid"]) / ATOMS


async def test_refund_is_counted(process, service_connection):
    await process.send(*BEGINNING, fill(SYMBOL, 1, 1), shortfall(2, lots=100))
    await process.settled(2)
    allocations = allocated(await written_records(service_connection))
    await process.send(*(executed(seq, 1, row.account, row.requested) for seq, row in enumerate(allocations, 3)))
    await eventually(lambda: process.sum("adl_orders_total", state="done") == 1)
    moved = await service_connection.fetchrow(MOVED)
    assert process.sum("refunded_total") == process.sum("adl_overshoot_total") == int(moved["refunded"]) / ATOMS
    assert process.sum("credited_total") == int(moved["credited"]) / ATOMS
    assert process.sum("adl_seconds_count") == 1


HELD = {"symbol": takeovers.SYMBOL}
GAUGES = ("inventory_lots", "equity", "unrealised_pnl", "inventory_oldest_timestamp_seconds", "inventory_open_orders")


def outcomes(process):
    """Returns the number of each outcome of takeovers and its lots; without those that did not occur."""
    names = get_args(Outcome)
    numbers = {name: process.sum("takeover_outcomes_total", outcome=name, **HELD) for name in names}
    return {name: (number, process.sum("takeover_lots_total", outcome=name)) for name, number in numbers.items() if number}


async def test_inventory_of_the_worked_case_is_shown_until_it_is_empty(process):
    taken = takeovers.takeover(2, 10, ts=takeovers.TS - 5000)
    beginning = [takeovers.LISTING, takeovers.FUNDED, takeovers.mark(45), takeovers.SHORT]
    await process.send(listing("AAA"), fill("AAA", 1, 5), *beginning, taken)
    await eventually(lambda: process.sum("equity") == 50)
    assert process.sum("inventory_lots", side="long", **HELD) == process.sum("inventory_lots") == 10
    assert process.sum("unrealised_pnl", currency="USDT", **HELD) == -50
    assert process.sum("inventory_oldest_timestamp_seconds", **HELD) == takeovers.TS / 1000 - 5
    await process.send(takeovers.mark(38))
    await eventually(lambda: process.sum("inventory_open_orders", **HELD) == 1 and process.sum("equity") == -20)
    assert process.sum("inventory_unrelieved") == 0
    await process.send(takeovers.executed(3, 1, 3))
    await eventually(lambda: process.sum("equity") == 16)
    assert (process.sum("inventory_lots"), process.sum("inventory_open_orders")) == (7, 0)
    await process.send(takeovers.unwind(4, 5, 40))
    await eventually(lambda: process.sum("equity") == 50 - 24)
    await process.send(takeovers.unwind(5, 2, 55))
    await eventually(lambda: process.sum("balance", **HELD) == 60)
    text = await process.text()
    assert not [name for name in (*GAUGES, "inventory_unrelieved") if f"fundsvc_{name}{{" in text]
    assert outcomes(process) == {"accepted": (1, 10), "relieved": (1, 3), "unwound": (2, 7)}
    assert 'fundsvc_takeover_lots_total{symbol="AAA"' not in text


async def test_rest_of_a_takeover_is_deleveraged_and_forced(process):
    short = msgspec.structs.replace(takeovers.SHORT, lots=-3)
    funded = fill(takeovers.SYMBOL, 1, 30)
    await process.send(takeovers.LISTING, funded, takeovers.mark(45), short, takeovers.takeover(2, 10))
    await eventually(lambda: process.sum("inventory_lots") == 6)
    await process.send(takeovers.executed(3, 1, 3), *(takeovers.ended(seq, 1) for seq in (4, 5, 6, 7)))
    await eventually(lambda: process.sum("inventory_lots") == 7)
    assert outcomes(process) == {"accepted_in_part": (1, 6), "deleveraged": (1, 3), "forced": (1, 1)}
    assert process.sum("adl_orders_total", state="returned") == 1


@pytest.mark.parametrize("side", ["sell", "buy"])
async def test_inventory_without_candidates_for_relief_is_shown(process, side):
    worse, better = (38, 50) if side == "sell" else (62, 50)
    taken = takeovers.takeover(2, 10, side=side)
    await process.send(takeovers.LISTING, takeovers.FUNDED, takeovers.mark(50), taken, takeovers.mark(worse))
    await eventually(lambda: process.sum("inventory_unrelieved", **HELD) == 1)
    assert process.sum("equity") == -20
    await process.send(takeovers.mark(better))
    await eventually(lambda: process.sum("inventory_unrelieved", **HELD) == 0 and process.sum("equity") == 100)


async def test_inventory_without_a_mark_has_no_equity(process):
    await process.send(takeovers.LISTING, takeovers.takeover(1, 10))
    await eventually(lambda: process.sum("inventory_oldest_timestamp_seconds") > 0)
    text = await process.text()
    assert "fundsvc_equity{" not in text
    assert "fundsvc_unrealised_pnl{" not in text
    assert process.sum("inventory_unrelieved") == 0


async def test_restart_shows_the_inventory_and_counts_outcomes_from_zero(config):
    events = [takeovers.LISTING, takeovers.FUNDED, takeovers.mark(45), takeovers.SHORT, takeovers.takeover(2, 10)]
    async with running(config) as process:
        await process.send(*events, takeovers.mark(38))
        await eventually(lambda: process.sum("inventory_open_orders") == 1 and process.sum("equity") == -20)
        shown = {name: process.sum(name) for name in GAUGES}
    async with running(config) as process:
        await eventually(lambda: {name: process.sum(name) for name in GAUGES} == shown)
        assert outcomes(process) == {}
        await process.send(takeovers.executed(3, 1, 3))
        await eventually(lambda: outcomes(process) == {"relieved": (1, 3)})


async def test_restart_shows_the_balance_and_counts_from_zero(config):
    now = time.time_ns() // 1_000_000
    async with running(config) as process:
        await process.send(listing("AAA"), fill("AAA", 1, 50, now), fill("AAA", 2, -20, now))
        await process.settled(2)
    async with running(config) as process:
        await eventually(lambda: process.sum("balance", symbol="AAA") == 30)
        await process.send(fill("AAA", 3, -10))
        await process.settled(1)
        assert process.sum("credited_total") == 0
        assert process.sum("paid_total") == 10
        await eventually(lambda: process.sum("peak", symbol="AAA") == 50, seconds=30)
        assert process.sum("drawdown_ratio", symbol="AAA") == pytest.approx(0.6)


async def test_counters_continue_after_a_fault(process, owner_connection):
    await process.send(listing("AAA"), fill("AAA", 1, 50), fill("AAA", 2, -20))
    await process.settled(2)
    await owner_connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'fundsvc engine %'"
    )
    await process.send(fill("AAA", 3, -10), fill("AAA", 4, 1))
    await process.settled(4)
    assert process.sum("faults_total", part="database") == 1
    assert process.sum("credited_total") == 51
    assert process.sum("paid_total") == 30
    assert process.sum("balance") == 21


CONTRACT = Contract(symbol="AAA", settle_currency="USDT", settle_decimals=8, price_decimals=12, multiplier=1, is_inverse=False)


def batch_of(*events):
    partition = Partition(0, 1, [Fund(CONTRACT, FundState(CONTRACT.symbol))], {"USDT": 8}, 10)
    for event in events:
        partition.apply(event)
    return partition.take()


class TestShortStates:
    """What changes and changes back within one transaction or one second is counted, or shown for a minute."""

    def shown(self, *batches, policy=Policy(), balance=0):  # noqa: B008 - frozen
        metrics = Metrics()
        fund = Fund(CONTRACT, FundState(CONTRACT.symbol, balance=balance * ATOMS), policy)
        metrics.loaded([fund], [])
        partition = Partition(0, 1, [fund], {"USDT": 8}, 10)
        for events in batches:
            for event in events:
                partition.apply(event)
            metrics.committed(partition.take(), Durations(0.0, 0.0, 0.0))
        return partial(sample_sum, metrics)

    def test_fund_that_is_dry_within_a_transaction_is_counted(self):
        fills = [fill("AAA", seq, worth) for seq, worth in enumerate((10, -10, 10, -9, -1, -5, 7), 1)]
        shown = self.shown(fills)
        assert shown("fundsvc_balance") == 2
        assert shown("fundsvc_dry_total") == 2

    def test_balance_that_moves_to_another_contract_does_not_run_dry(self):
        fund = Fund(CONTRACT, FundState(CONTRACT.symbol, balance=10))
        fund.carry_out("BBB", 0)
        assert (fund.balance, fund.dried) == (0, 0)

    @pytest.mark.parametrize("adopted", [None, Policy(drawdown_guard=DrawdownGuard(start=0.2, stop=0.1))])
    def test_each_start_of_the_drawdown_guard_is_counted(self, adopted):
        fund = Fund(CONTRACT, FundState(CONTRACT.symbol), Policy(drawdown_guard=DrawdownGuard()))
        fund.settle(fill("AAA", 1, 100))
        for seq in (2, 4):
            fund.settle(fill("AAA", seq, -40))
            fund.settle(fill("AAA", seq + 1, 40))
        if adopted:
            fund.adopt(adopted, 2)
            fund.settle(fill("AAA", 6, -25))
        assert fund.guarded == (3 if adopted else 2)

    def test_largest_drawdown_of_the_last_minute_is_shown(self):
        shown = self.shown([fill("AAA", 1, 100)], [fill("AAA", 2, -60)], [fill("AAA", 3, 60)])
        assert shown("fundsvc_balance") == 100
        assert shown("fundsvc_drawdown_ratio") == pytest.approx(0.6)

    def test_new_fund_has_no_drawdown(self):
        shown = self.shown([fill("AAA", 1, 100)])
        assert shown("fundsvc_peak") == 100
        assert shown("fundsvc_drawdown_ratio") == 0

    def test_time_without_a_balance_is_counted(self):
        shown = self.shown([fill("AAA", 1, 100)], balance=0)
        before = shown("fundsvc_dry_seconds_total")
        assert 0 < before < 1
        assert shown("fundsvc_dry_seconds_total") == before

    @pytest.mark.parametrize(
        ("choose", "at", "expected"),
        [(min, 61, 1), (min, 125, 1), (min, 185, 5), (max, 61, 9), (max, 125, 9), (max, 185, 5)],
    )
    def test_extreme_stays_for_a_minute_at_least(self, choose, at, expected):
        extreme = Extreme(choose, 5, 0.0)
        for value in (1, 9, 5):
            extreme.note(value, 61.0)
        assert extreme.at(at) == expected

    def test_value_before_a_quiet_time_counts_in_the_minute_of_the_change(self):
        extreme = Extreme(min, 3, 0.0)
        extreme.note(8, 600.0)
        assert [extreme.at(now) for now in (600.0, 660.0, 720.0)] == [3, 3, 8]

    def test_halts_are_counted_although_the_partition_settles_again(self):
        metrics = Metrics()
        metrics.own(0, 1)
        for halted in (1, 0, 1, 0):
            metrics.show_halted(0, halted)
        assert sample_sum(metrics, "fundsvc_partition_halted") == 0
        assert sample_sum(metrics, "fundsvc_partition_halts_total", partition="0") == 2

    def test_audit_that_found_a_difference_once_is_counted(self):
        metrics = Metrics()
        for good in (True, False, True):
            metrics.audited("AAA", "newest", good=good, verified_at=None)
            metrics.mutual.audited("USDT", good=good)
        assert sample_sum(metrics, "fundsvc_audit_success") == sample_sum(metrics, "fundsvc_mutual_audit_success") == 1
        assert sample_sum(metrics, "fundsvc_audit_failures_total", symbol="AAA") == 1
        assert sample_sum(metrics, "fundsvc_mutual_audit_failures_total", pool="USDT") == 1


class TestLettingGo:
    def test_released_partition_is_hidden_and_its_counters_begin_again(self):
        metrics = Metrics()
        metrics.own(0, 1)
        metrics.loaded([Fund(CONTRACT, FundState(CONTRACT.symbol, balance=5 * ATOMS))], [])
        metrics.audited("AAA", "full", good=True, verified_at=1.0)
        metrics.committed(batch_of(*(fill("AAA", seq, 0) for seq in range(1, 4))), Durations(0.0, 0.0, 0.0))
        metrics.lag_messages.labels(0).set(4)
        metrics.release(0, 1, 1)
        text = metrics.render().decode()
        assert 'symbol="AAA"' not in text
        assert "fundsvc_stream_lag_messages{" not in text
        assert sample_sum(metrics, "fundsvc_partition_owned", partition="0") == 0
        metrics.own(0, 3)
        metrics.loaded([Fund(CONTRACT, FundState(CONTRACT.symbol, balance=7 * ATOMS))], [])
        assert sample_sum(metrics, "fundsvc_balance") == 7
        assert sample_sum(metrics, "fundsvc_entries_total", kind="flat") == 0
        assert sample_sum(metrics, "fundsvc_partition_epoch") == 3

    def test_loaded_orders_are_the_open_orders(self):
        metrics = Metrics()
        order = AdlOrder(
            symbol="AAA",
            adl=1,
            cause=1,
            reduce="long",
            lots=1,
            price=1,
            deficit=2,
            deficit_lots=1,
            uncovered=2,
            ts=0,
            seq=1,
            account="",
        )
        for orders in ([order], [order, msgspec.structs.replace(order, adl=2)], []):
            metrics.loaded([Fund(CONTRACT)], orders)
            assert sample_sum(metrics, "fundsvc_adl_open_orders") == len(orders)


@given(st.text(), st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53))
def test_any_label_and_number_round_trips(text, number):
    family = Family("a_b", "gauge", "What it is.", lambda row: row[0], lambda row: row[1], ',c="d"')
    (shown,) = text_string_to_metric_families(exposition([family], [(labels_text(symbol=text), number)]))
    (sample,) = shown.samples
    assert (sample.labels, sample.value) == ({"symbol": text, "c": "d"}, number)


def test_row_without_a_value_has_no_sample():
    family = Family("a", "counter", "What it is.", lambda row: "", lambda row: row)
    assert exposition([family], [None]) == "# HELP a What it is.\n# TYPE a counter\n"
