"""The demo: its market as a pure function, settled by the real rules, and the whole of it as a newcomer starts it."""

import contextlib
import fcntl
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

import psutil
import pytest
from eventually import eventually

from fundsvc.config import CurrencyConfig
from fundsvc.core.events import Fill, Position
from fundsvc.core.numbers import to_units
from fundsvc.core.partition import Partition
from fundsvc.demo.instruments import INSTRUMENTS
from fundsvc.demo.market import STEP_SECONDS, Market, step_to_resume
from fundsvc.demo.prices import CASCADE_STEPS, CYCLE_STEPS, last_step
from fundsvc.embedded import EmbeddedServers
from fundsvc.wire import Message, decode, encode

CURRENCY = CurrencyConfig()
STEPS = 3 * CYCLE_STEPS
SYMBOLS = [instrument.symbol for instrument in INSTRUMENTS]
CASCADING = [instrument for instrument in INSTRUMENTS if instrument.cascade]
STOP_SECONDS = 5.0
SCREEN_BACK = "\x1b[?1049l"


def events_of(step, market=None):
    """A step of the market at a time that is the same in every run."""
    return (market or Market(CURRENCY)).events(step, 1_700_000_000_000 + int(step * STEP_SECONDS * 1000))


def empty_partition():
    return Partition(0, 1, (), CURRENCY.decimals, CURRENCY.decimals_default)


def settle(partition, events):
    for event in events:
        partition.apply(event)
    return partition.take()


@pytest.fixture(scope="module")
def run():
    """Three cycles of the market, settled: the entries of each step, and the funds after it."""
    market, partition = Market(CURRENCY), empty_partition()
    entries, funds, latest = [], [], {}
    for step in range(STEPS):
        batch = settle(partition, events_of(step, market))
        assert not batch.duplicates
        latest |= {state.symbol: state for state in batch.funds}
        entries.append(batch.entries)
        funds.append(dict(latest))
    return entries, funds


class TestMarket:
    market = Market(CURRENCY)

    @pytest.mark.parametrize("step", [0, 1, 81, 200, 12_345])
    def test_a_step_is_the_same_whatever_was_asked_before(self, step):
        busy = Market(CURRENCY)
        for other in (step + 1, step + 130, max(0, step - 60)):
            events_of(other, busy)
        assert events_of(step, busy) == events_of(step)

    def test_another_seed_is_another_market(self):
        assert Market(CURRENCY, "another").events(200, 0) != Market(CURRENCY).events(200, 0)

    def test_events_survive_the_wire(self):
        for step in (0, 81):
            events = events_of(step)
            assert list(decode(Message("1-1", "json", encode(events)))) == events

    def test_contracts_settle_in_tether_in_dollar_coin_and_in_the_coin_itself(self):
        specifications = [event.contract for event in events_of(0)[: len(INSTRUMENTS)]]
        kinds = Counter((each["settleCurrency"], each["isInverse"]) for each in specifications)
        assert kinds[("USDT", False)] >= 2
        assert kinds[("USDC", False)] >= 1
        assert kinds[("XBT", True)] == kinds[("ETH", True)] == 1
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

    def test_who_is_liquidated_held_that_position_and_holds_it_no_longer(self):
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
    def test_every_contract_mostly_earns(self, run):
        entries, _ = run
        kinds = Counter((entry.symbol, entry.kind) for step in entries for entry in step)
        for symbol in SYMBOLS:
            of_symbol = {kind: kinds[symbol, kind] for kind in ("surplus", "flat", "shortfall")}
            assert of_symbol["surplus"] > 0.75 * sum(of_symbol.values())
            assert of_symbol["flat"]

    @pytest.mark.parametrize("instrument", CASCADING, ids=lambda instrument: instrument.symbol)
    def test_cascades_empty_the_fund_and_surplus_repays_what_they_left(self, run, instrument):
        _, funds = run
        last_steps = [last_step(instrument.cascade, cycle) for cycle in range(3)]
        for end in (step for step in last_steps if step < STEPS):
            fund = funds[end][instrument.symbol]
            assert fund.balance == 0
            decimals = CURRENCY.decimals.get(instrument.settle, CURRENCY.decimals_default)
            wanted = to_units(Decimal(instrument.cascade.uncovered), decimals)
            assert wanted <= fund.outstanding <= wanted + 1000
            assert fund.adl > 0
            before_next = end + CYCLE_STEPS - CASCADE_STEPS
            if before_next < STEPS:
                repaid = funds[before_next][instrument.symbol]
                assert repaid.outstanding == 0
                assert repaid.balance > 0

    def test_whoever_watches_sees_a_cascade_within_half_a_minute(self, run):
        entries, _ = run
        uncovered = [step for step, settled in enumerate(entries) if any(entry.uncovered > 1e8 for entry in settled)]
        gaps = [after - before for before, after in zip([0, *uncovered], [*uncovered, STEPS], strict=True)]
        assert max(gaps) * STEP_SECONDS <= 31

    def test_resuming_from_the_ledger_gives_the_ledger_of_an_undisturbed_run(self, run):
        _, funds = run
        torn, market, partition = 90, Market(CURRENCY), empty_partition()
        for step in range(torn):
            lost = ["SOLUSDTM"] if step > torn - 8 else []
            settle(partition, [event for event in events_of(step, market) if getattr(event, "symbol", None) not in lost])
        resumed = step_to_resume([partition._funds[symbol].seq for symbol in SYMBOLS])
        assert torn - 12 < resumed <= torn - 8
        duplicates = 0
        for step in range(resumed, 120):
            duplicates += settle(partition, events_of(step, market)).duplicates.total()
        assert 0 < duplicates < 200
        assert {symbol: partition._funds[symbol].state() for symbol in SYMBOLS} == funds[119]


class TestResuming:
    def test_begins_with_nothing_settled(self):
        assert step_to_resume([]) == step_to_resume([0, 5001]) == 0

    def test_sends_the_last_settled_step_again(self):
        assert step_to_resume([7003, 6999]) == 6


def environment(directory):
    """What names the data directory to a process, and leaves the rest as it is by default."""
    theirs = {name: value for name, value in os.environ.items() if not name.startswith("FUNDSVC_")}
    return theirs | {"FUNDSVC_DATA_DIRECTORY": str(directory / "data"), "FUNDSVC_HTTP_PORT": "0", "TERM": "xterm-256color"}


class Demo:
    """`fundsvc up --demo` in a process of its own, and what it has printed so far."""

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
        """The numbers of ledger entries that the plain lines tell."""
        return [int(count) for count in re.findall(r"(\d+) entries:", self.printed())]

    def is_running(self):
        return self._process.poll() is None

    def remember_family(self):
        """Its process and those it has started, to be looked for when it has ended."""
        process = psutil.Process(self._process.pid)
        self._family = [process, *process.children(recursive=True)]
        return self._family

    def duplicates(self):
        """How many events its engine has ignored."""
        address = re.search(r"http://[\d.:]+", self.printed())[0]
        with urllib.request.urlopen(f"{address}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("fundsvc_duplicates_total"))

    def signal(self, number):
        """As a terminal would: to all of its process group."""
        os.killpg(self._process.pid, number)

    def end(self):
        """The exit code, within the time that is promised."""
        return self._process.wait(STOP_SECONDS)

    def kill(self):
        self.signal(signal.SIGKILL)
        self.end()

    def close(self):
        """Does not outlive the test, whatever becomes of it."""
        if self.is_running():
            self.kill()
        self._output.close()


def differences_in_ledger(directory):
    command = [sys.executable, "-m", "fundsvc", "audit", "--json"]
    audit = subprocess.run(command, env=environment(directory), check=True, capture_output=True)
    return json.loads(audit.stdout)["differences"]


def alive(processes):
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture(scope="module")
def directory():
    """A data directory of the demo's own, with a path short enough for sockets; nothing of it stays."""
    directory = Path(tempfile.mkdtemp(prefix="fsd-"))
    yield directory
    servers = EmbeddedServers(directory / "data")
    for server in (servers.postgres, servers.valkey):
        server.kill()
    shutil.rmtree(directory)


class TestWhole:
    async def test_goes_on_where_it_stopped_and_leaves_nothing_behind(self, directory):
        with contextlib.closing(Demo(directory)) as first:
            await eventually(lambda: first.counts() and first.counts()[-1] > 20, 60)
            family = first.remember_family()
            assert len(family) > 2
            first_count = first.counts()[-1]
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

    async def test_goes_on_when_its_servers_are_killed(self, directory):
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

    async def test_a_terminal_shows_a_table_and_gets_its_screen_back(self, directory):
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
            await eventually(lambda: shows("what happened", *SYMBOLS, "surplus", "fills/s", "fundsvc.log"), 60)
            family = running.remember_family()
            running.signal(signal.SIGINT)
            await eventually(lambda: shows(SCREEN_BACK) and not running.is_running(), STOP_SECONDS)
            assert running.end() == 0
            shows(SCREEN_BACK)
            _, _, left_behind = shown.decode().partition(SCREEN_BACK)
            assert all(symbol in left_behind for symbol in SYMBOLS)
        os.close(ours)
        await eventually(lambda: not alive(family))
        assert "market goes on" in (directory / "data" / "fundsvc.log").read_text()
