"""Recordings: what the readers accept and say, and the way of a file through the command line into a verified ledger."""

import csv
import io
import json
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from commands import engine_process, fundsvc, program
from conftest import connected
from eventually import eventually

from fundsvc.core.events import Fill, Listing, Rate
from fundsvc.core.partition import Partition
from fundsvc.recordings import RecordingError, read_contracts, read_recording
from fundsvc.streams.client import open_client
from fundsvc.streams.source import Source

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
FORCE_ORDERS = SHARED / "binance_force_orders_2025-12-11.ndjson"
KUCOIN_CONTRACTS = SHARED / "kucoin_contracts_active.json"

LISTING = {"symbol": "ABCUSDTM", "settleCurrency": "USDT", "multiplier": 0.01, "isInverse": False}


def force_order(**fields):
    order = {"s": "ABCUSDT", "S": "SELL", "o": "LIMIT", "f": "IOC", "q": "3", "p": "1.5", "ap": "1.6", "z": "3", "T": 1000}
    return json.dumps({"e": "forceOrder", "E": 1000, "o": order | fields})


def fill(seq, symbol="ABCUSDTM", price="101", **fields):
    given = {"symbol": symbol, "seq": seq, "side": "sell", "lots": 100, "price": price, "bankruptcyPrice": "100", "ts": seq}
    return {"type": "fill"} | given | fields


@pytest.fixture
def write(tmp_path):
    def write(*lines):
        path = tmp_path / "recording"
        path.write_text("".join(line if isinstance(line, str) else json.dumps(line) for line in _ended(lines)))
        return path

    return write


def _ended(lines):
    return [part for line in lines for part in (line, "\n")]


class TestEvents:
    def test_a_line_holds_one_event_or_an_array_and_may_be_empty(self, write):
        rate = {"type": "rate", "currency": "XBT", "price": "84000", "ts": 1}
        path = write({"type": "contract", "contract": LISTING}, "", [fill(1), fill(2)], rate)
        recording = read_recording(path, "events")
        assert recording.listings == []
        assert [type(event) for event in recording.events] == [Listing, Fill, Fill, Rate]
        assert recording.symbols == {"ABCUSDTM"}

    @pytest.mark.parametrize(
        ("line", "what"),
        [
            ("{", "line 3: not json"),
            (fill(1, lots=0), "line 3: fill: Expected `int` >= 1"),
            ([fill(1), {"type": "deposit"}], "line 3: type 'deposit' is none of"),
            ({"type": "contract", "contract": LISTING | {"multiplier": 0}}, "line 3: multiplier 0 is not a size"),
            ({"type": "contract", "contract": {}}, "line 3: Object missing required field `symbol`"),
        ],
    )
    def test_what_is_wrong_is_said_with_its_line(self, write, line, what):
        with pytest.raises(RecordingError, match="recording, ") as error:
            read_recording(write(fill(1), "", line), "events")
        assert what in str(error.value)


class TestForceOrders:
    def test_an_order_is_a_fill_at_the_average_price_against_its_limit(self, write):
        recording = read_recording(write(force_order(), force_order(S="BUY", T=1001)), "binance-force-orders")
        sold, bought = recording.events
        assert (sold.side, sold.lots, sold.price, sold.bankruptcy_price, sold.ts) == ("sell", 3, "1.6", "1.5", 1000)
        assert bought.side == "buy"

    def test_every_quantity_is_a_whole_number_of_lots(self, write):
        quantities = ["3", "0.25", "1.500", "1e2"]
        recording = read_recording(write(*(force_order(z=quantity) for quantity in quantities)), "binance-force-orders")
        (listing,) = recording.listings
        size = Decimal(listing.contract["multiplier"])
        assert size == Decimal("0.01")
        assert [event.lots * size for event in recording.events] == [Decimal(quantity) for quantity in quantities]

    def test_orders_of_one_millisecond_have_sequences_of_their_own_and_those_of_the_past_none_below(self, write):
        times = [1000, 1000, 1000, 1001, 900]
        recording = read_recording(write(*(force_order(T=time) for time in times)), "binance-force-orders")
        sequences = [event.seq for event in recording.events]
        assert sequences == [1_000_000, 1_000_001, 1_000_002, 1_001_000, 1_001_001]

    @pytest.mark.parametrize(
        ("symbol", "base", "quote"),
        [
            ("BTCUSDT", "BTC", "USDT"),
            ("BTCUSDT_251226", "BTC", "USDT"),
            ("XFDUSD", "X", "FDUSD"),
            ("1000PEPEUSDC", "1000PEPE", "USDC"),
        ],
    )
    def test_the_quote_currency_is_the_end_of_the_symbol(self, write, symbol, base, quote):
        (listing,) = read_recording(write(force_order(s=symbol)), "binance-force-orders").listings
        assert (listing.contract["baseCurrency"], listing.contract["settleCurrency"]) == (base, quote)

    @pytest.mark.parametrize(
        ("line", "what"),
        [
            ("{", "line 2 is no forceOrder message: "),
            ('{"e":"aggTrade"}', "line 2 is no forceOrder message: Object missing required field `o`"),
            (force_order(S="HOLD"), "line 2 is no forceOrder message: Invalid enum value 'HOLD'"),
            (force_order(z="many"), "line 2 is no forceOrder message: "),
            (force_order(T=0), "line 2 is no forceOrder message: Expected `int` >= 1"),
            (force_order(z="0"), "line 2: a filled quantity (z) of 0 is no fill"),
            (force_order(z="NaN"), "line 2: a filled quantity (z) of NaN is no fill"),
            (force_order(s="ABCDEF"), "the quote currency of ABCDEF is none of USDT"),
        ],
    )
    def test_what_is_wrong_is_said_with_its_line(self, write, line, what):
        with pytest.raises(RecordingError) as error:
            read_recording(write(force_order(), line), "binance-force-orders")
        assert what in str(error.value)


class TestContracts:
    def test_an_answer_or_a_bare_array(self, write):
        answer = read_contracts(write({"code": "200000", "data": [LISTING]}))
        assert answer == read_contracts(write([LISTING]))
        assert answer.listings == [Listing(LISTING)]
        assert answer.symbols == {"ABCUSDTM"}

    @pytest.mark.parametrize(
        ("content", "what"),
        [
            ("{", "is not a KuCoin contracts answer: "),
            ({"code": "400100", "msg": "no"}, "is not a KuCoin contracts answer: Object missing required field `data`"),
            ([LISTING, {"symbol": "X"}], "contract 2: Object missing required field `settleCurrency`"),
            ([LISTING | {"multiplier": -1}], "contract 1: multiplier -1 is not a size"),
        ],
    )
    def test_what_is_wrong_is_said(self, write, content, what):
        with pytest.raises(RecordingError) as error:
            read_contracts(write(content))
        assert what in str(error.value)

    def test_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(RecordingError, match=r"cannot read .*nowhere: No such file or directory"):
            read_contracts(tmp_path / "nowhere")


async def test_a_recording_of_events_comes_into_the_ledger(config, write):
    path = write({"type": "contract", "contract": LISTING}, [fill(1), fill(2, price="99"), fill(2)], fill(3, symbol="NOSUCH"))
    done = await fundsvc(config, "replay", path, "--json")
    assert done.code == 0, done.error
    assert (done.result["events"], done.result["duplicates"], done.result["rejected"]) == (5, 1, {"unknown_symbol": 1})
    gains = {gain["kind"]: (gain["entries"], gain["credited"], gain["paid"]) for gain in done.result["gains"]}
    assert gains == {"surplus": (1, 10**8, 0), "shortfall": (1, 0, 10**8)}


async def test_events_are_not_sent_when_their_contract_means_other_money(config, write):
    assert (await fundsvc(config, "replay", write(force_order()), "--format", "binance-force-orders")).code == 0
    done = await fundsvc(config, "replay", write(force_order(z="0.5", T=2000)), "--format", "binance-force-orders", "--json")
    assert done.code == 1
    assert (done.result["gains"], done.result["rejected"]) == ([], {"contract_fixed": 1})
    assert "contract_fixed: ABCUSDT has 1 entries" in done.result["refused"][0]


class TestExport:
    @pytest.fixture
    async def ledger(self, config, write):
        ids = {"tradeId": "t-1", "orderId": "ordre-é", "account": "a" * 40}
        inverse = {"symbol": "XBTUSDM", "settleCurrency": "XBT", "multiplier": -1.0, "isInverse": True}
        listings = [{"type": "contract", "contract": contract} for contract in (LISTING, inverse)]
        fills = [
            fill(seq, symbol, price, **ids)
            for seq, price in enumerate(("101", "90", "100", "130"), 1)
            for symbol in ("ABCUSDTM", "XBTUSDM")
        ]
        assert (await fundsvc(config, "replay", write(*listings, *fills))).code == 0
        return config

    async def test_an_export_verifies_and_ends_in_the_head_of_the_fund(self, ledger):
        for symbol, head in (await heads_by_audit(ledger)).items():
            for form in ("csv", "ndjson"):
                verified = await verify((await fundsvc(ledger, "export", symbol, "--format", form)).output)
                assert verified.code == 0, verified.error
                assert verified.output.strip() == f"4 entries, 0 wrong, head {head}"

    async def test_no_field_can_be_altered(self, ledger):
        rows = list(csv.DictReader(io.StringIO((await fundsvc(ledger, "export", "ABCUSDTM")).output)))
        believed = []
        for name in rows[1]:
            altered = [*rows[:1], rows[1] | {name: another(rows[1][name])}, *rows[2:]]
            if not (await verify(as_csv(altered))).code:
                believed.append(name)
        assert believed == ["recordedAt"], "the time of recording is our own clock's and not sealed; all else is"

    async def test_no_entry_can_be_left_out_or_moved(self, ledger):
        rows = list(csv.DictReader(io.StringIO((await fundsvc(ledger, "export", "ABCUSDTM")).output)))
        for altered in ([*rows[:1], *rows[2:]], rows[1:], [rows[0], rows[2], rows[1], rows[3]], [*rows, rows[3]]):
            assert (await verify(as_csv(altered))).code == 1
        shorter = await verify(as_csv(rows[:3]))
        assert shorter.output.strip() == f"3 entries, 0 wrong, head {rows[2]['hash']}", "only the head tells of a lost end"

    async def test_what_is_no_export_is_said_so(self):
        for text in ("nonsense\n", "a,b\n1,2\n", "{\n", '{"symbol": "X"}\n'):
            verified = await verify(text)
            assert verified.code == 2, text
            assert "Traceback" not in verified.error


class TestRejected:
    async def test_fills_of_an_unlisted_contract_are_settled_late_exactly_once(self, config, write):
        await fundsvc(config, "replay", write(fill(1), fill(2)))
        kept = (await fundsvc(config, "rejected", "list", "--json")).result
        assert [event["reason"] for event in kept] == ["unknown_symbol"] * 2
        assert (await fundsvc(config, "replay", write({"type": "contract", "contract": LISTING}, fill(3)))).code == 0
        async with engine_process(config), connected(config.database.dsn) as connection:
            for _ in range(2):
                assert (await fundsvc(config, "rejected", "replay")).code == 0
            await eventually(lambda: all_read(config, connection))
            sequences = await connection.fetch("SELECT seq FROM entries WHERE symbol = 'ABCUSDTM' ORDER BY entry")
        assert [row["seq"] for row in sequences] == [3, 1, 2]
        assert (await fundsvc(config, "rejected", "list", "--json")).result == []
        settled = (await fundsvc(config, "rejected", "list", "--all", "--json")).result
        assert [(event["symbol"], event["entry"]) for event in settled] == [("ABCUSDTM", 2), ("ABCUSDTM", 3)]
        assert (await fundsvc(config, "audit")).code == 0

    async def test_a_state_is_not_sent_again(self, config, write):
        state = {"type": "mark", "symbol": "ABCUSDTM", "price": "5", "ts": 1}
        await fundsvc(config, "replay", write(state, fill(1)))
        kept = {event["body"]["text"]: event["event"] for event in (await fundsvc(config, "rejected", "list", "--json")).result}
        (key,) = (key for text, key in kept.items() if '"mark"' in text)
        refused = await fundsvc(config, "rejected", "replay", key)
        assert refused.code == 1
        assert f"{key}: a mark is not replayed" in refused.error
        everything = await fundsvc(config, "rejected", "replay")
        assert (everything.code, everything.error.count("not replayed")) == (0, 1)
        assert "sent 1 of 2" in everything.output
        left = (await fundsvc(config, "rejected", "list", "--json")).result
        assert [event["event"] for event in left if event["replayedAt"] is None] == [key]

    async def test_what_the_engine_has_sent_again_meanwhile_is_not_settled_twice(self, config, write):
        await fundsvc(config, "replay", write(fill(1), fill(2)))
        again = write({"type": "contract", "contract": LISTING}, fill(1), fill(2), fill(3))
        assert (await fundsvc(config, "replay", again)).code == 0
        async with engine_process(config), connected(config.database.dsn) as connection:
            await fundsvc(config, "rejected", "replay")
            await eventually(lambda: all_read(config, connection))
            sequences = await connection.fetch("SELECT seq FROM entries WHERE symbol = 'ABCUSDTM' ORDER BY entry")
        assert [row["seq"] for row in sequences] == [1, 2, 3]
        assert (await fundsvc(config, "audit")).code == 0


@pytest.mark.skipif(not KUCOIN_CONTRACTS.exists(), reason="the recorded data is not part of the repository")
async def test_contracts_of_kucoin_are_listed_and_their_terms_stay(config, write):
    for _ in range(2):
        loaded = await fundsvc(config, "contracts", "load", KUCOIN_CONTRACTS, "--json")
        assert (loaded.code, loaded.result["rejected"]) == (0, {})
    async with connected(config.database.dsn) as connection:
        assert await connection.fetchval("SELECT count(*) FROM contracts") == 11
    contracts = json.loads(KUCOIN_CONTRACTS.read_text())["data"]
    linear = next(contract for contract in contracts if not contract["isInverse"])
    assert (await fundsvc(config, "replay", write(fill(1, linear["symbol"])))).code == 0
    for change in ({"multiplier": "7"}, {"settleCurrency": "EUR"}, {"isInverse": True}):
        refused = await fundsvc(config, "contracts", "load", write([linear | change]), "--json")
        assert (refused.code, refused.result["rejected"]) == (1, {"contract_fixed": 1}), change
    kept = (await fundsvc(config, "rejected", "list", "--reason", "contract_fixed", "--json")).result
    assert len(kept) == 3
    assert (await fundsvc(config, "contracts", "load", write([linear | {"tickSize": 5}]))).code == 0


@pytest.mark.skipif(not FORCE_ORDERS.exists(), reason="the recorded data is not part of the repository")
class TestRealLiquidations:
    async def test_they_are_settled_once_however_often_they_are_replayed(self, config):
        first = await replay_liquidations(config)
        gains = first.result["gains"]
        assert sum(gain["entries"] for gain in gains) == 10_000
        assert sum(gain["entries"] for gain in gains if gain["kind"] == "flat") == 57
        assert sum(gain["credited"] for gain in gains) == 48_207_884_227_040
        assert {gain["decimals"] for gain in gains} == {8}
        assert (first.result["duplicates"], first.result["rejected"]) == (0, {})
        heads = await heads_by_audit(config)
        assert len(heads) == 550
        assert heads == undisturbed_heads()

        second = await replay_liquidations(config)
        assert (second.result["gains"], second.result["duplicates"], second.result["rejected"]) == ([], 10_000, {})
        assert await heads_by_audit(config) == heads

        for symbol in ("BTCUSDT", "ETHUSDT", min(heads)):
            exported = await fundsvc(config, "export", symbol)
            verified = await verify(exported.output)
            assert (verified.code, verified.output.split()[-1]) == (0, heads[symbol])

    @pytest.mark.parametrize("partitions", [4])
    async def test_two_engines_on_four_partitions_come_to_the_same_heads(self, config):
        async with engine_process(config), engine_process(config), connected(config.database.dsn) as connection:
            await eventually(lambda: owners(connection, 2))
            assert (await replay_liquidations(config)).result["rejected"] == {}
            shares = await connection.fetch("SELECT messages FROM partitions")
            assert all(row["messages"] for row in shares)
        assert await heads_by_audit(config) == undisturbed_heads()


async def replay_liquidations(config):
    done = await fundsvc(config, "replay", FORCE_ORDERS, "--format", "binance-force-orders", "--json")
    assert done.code == 0, done.error
    return done


async def heads_by_audit(config):
    done = await fundsvc(config, "audit", "--json")
    assert done.code == 0, done.output
    return {contract["symbol"]: contract["head"] for contract in done.result["contracts"]}


def undisturbed_heads():
    """The heads of a partition in memory."""
    recording = read_recording(FORCE_ORDERS, "binance-force-orders")
    partition = Partition(0, 1, (), {"USDT": 8, "USDC": 8}, 8)
    for event in (*recording.listings, *recording.events):
        partition.apply(event)
    return {state.symbol: state.head.hex() for state in partition.take().funds}


async def owners(connection, number):
    rows = await connection.fetch("SELECT owner FROM partitions WHERE lease_until > clock_timestamp()")
    return len(rows) == 4 and len({row["owner"] for row in rows}) == number


async def all_read(config, connection):
    """Whether every message of the stream is settled."""
    async with open_client(config.stream) as client:
        end = (await Source(client, 0).state()).last_id
    return await connection.fetchval("SELECT last_id FROM partitions") == end


async def verify(export):
    return await program(sys.executable, ROOT / "scripts" / "verify-export", given=export)


def as_csv(rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def another(text):
    """A value of the same kind that is not this one."""
    if text in ("True", "False"):
        return str(text == "False")
    try:
        return str(Decimal(text) + 1)
    except ArithmeticError:
        return {"surplus": "flat", "sell": "buy"}.get(text, "0" + text[1:] if text[:1] != "0" else "1" + text[1:])
