"""Recordings: accepted and refused lines, and replays of files through the command line into a verified ledger."""

import csv
import io
import itertools
import json
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from commands import engine_process, fundsvc, program
from conftest import connected
from eventually import eventually

from fundsvc.cli.tools.recordings import RecordingError, read_contracts, read_recording
from fundsvc.core.events import Fill, Listing, Rate
from fundsvc.core.partition import Partition
from fundsvc.streams.client import open_client
from fundsvc.streams.source import Source

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
FORCE_ORDERS = SHARED / "binance_force_orders_2025-12-11.ndjson"
KUCOIN_CONTRACTS = SHARED / "kucoin_contracts_active.json"

START = 1_765_400_000_000
"""The time of the first events."""

LISTING = {"symbol": "ABCUSDTM", "settleCurrency": "USDT", "multiplier": 0.01, "isInverse": False}


def force_order(**fields):
    order = {"s": "ABCUSDT", "S": "SELL", "o": "LIMIT", "f": "IOC", "q": "3", "p": "1.5", "ap": "1.6", "z": "3", "T": START}
    return json.dumps({"e": "forceOrder", "E": 1000, "o": order | fields})


def fill(seq, symbol="ABCUSDTM", price="101", **fields):
    given = {
        "symbol": symbol,
        "seq": seq,
        "side": "sell",
        "lots": 100,
        "price": price,
        "bankruptcyPrice": "100",
        "ts": START + seq,
    }
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
    def test_a_line_contains_one_event_or_an_array_or_nothing(self, write):
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
            ([fill(1), {"type": "deposit"}], "line 3: type 'deposit' is unknown"),
            (
                {"type": "contract", "contract": LISTING | {"multiplier": 0}},
                "line 3: multiplier 0 must be a finite number above 0",
            ),
            ({"type": "contract", "contract": {}}, "line 3: Object missing required field `symbol`"),
        ],
    )
    def test_an_error_names_its_line(self, write, line, what):
        with pytest.raises(RecordingError, match="recording, ") as error:
            read_recording(write(fill(1), "", line), "events")
        assert what in str(error.value)


class TestForceOrders:
    def test_an_order_is_a_fill_at_the_average_price_against_its_limit(self, write):
        recording = read_recording(write(force_order(), force_order(S="BUY", T=START + 1)), "binance-force-orders")
        sold, bought = recording.events
        assert (sold.side, sold.lots, sold.price, sold.bankruptcy_price, sold.ts) == ("sell", 3 * 10**8, "1.6", "1.5", START)
        assert bought.side == "buy"

    def test_quantities_are_whole_numbers_of_a_fixed_lot(self, write):
        quantities = ["3", "0.25", "1.500", "1e2", "0.00000001"]
        recording = orders_of(write(*(force_order(z=quantity, T=time) for time, quantity in enumerate(quantities, START))))
        (listing,) = recording.listings
        size = Decimal(listing.contract["multiplier"])
        assert [event.lots * size for event in recording.events] == [Decimal(quantity) for quantity in quantities]
        assert orders_of(write(force_order())).listings == recording.listings

    def test_a_sequence_depends_on_the_order_only(self, write):
        lines = [force_order(T=time, z=str(filled)) for time in (START, START + 1, START - 100) for filled in (1, 2)]
        recording = orders_of(write(*lines))
        assert [event.ts - START for event in recording.events] == [-100, -100, 0, 0, 1, 1]
        assert strictly_rising([event.seq for event in recording.events])
        for other in (lines[::-1], [*lines, force_order(T=START - 200, s="XYZUSDT")], lines[2:4]):
            again = [event for event in orders_of(write(*other)).events if event.symbol == "ABCUSDT"]
            assert set(again) <= set(recording.events)

    @pytest.mark.parametrize("field", [{"S": "BUY"}, {"p": "1.51"}, {"ap": "1.61"}, {"z": "4"}, {"T": 1001}, {"q": "5"}])
    def test_orders_that_differ_in_a_field_are_not_duplicates(self, write, field):
        recording = orders_of(write(force_order(), force_order(**field)))
        assert (len({event.seq for event in recording.events}), recording.duplicates) == (2, 0)

    @pytest.mark.parametrize(
        "again",
        [
            force_order(),
            force_order(p="1.50", ap="1.600", z="3.0"),
            json.dumps(json.loads(force_order()) | {"E": 2000}),
            json.dumps({"stream": "!forceOrder@arr", "data": json.loads(force_order())}),
            json.dumps(json.loads(force_order()), indent=None, separators=(",", ":")),
            json.dumps({"o": dict(reversed(json.loads(force_order())["o"].items()))}),
        ],
    )
    def test_an_equal_order_in_another_notation_is_a_duplicate(self, write, again):
        recording = orders_of(write(force_order(), force_order(T=START + 1), again))
        assert (len(recording.events), recording.duplicates) == (2, 1)

    @pytest.mark.parametrize(
        ("symbol", "base", "quote"),
        [
            ("BTCUSDT", "BTC", "USDT"),
            ("BTCUSDT_251226", "BTC", "USDT"),
            ("BTC_251226USDT", "BTC", "USDT"),
            ("XFDUSD", "X", "FDUSD"),
            ("BNBBUSD", "BNB", "BUSD"),
            ("BTCBUSD_210129", "BTC", "BUSD"),
            ("1000PEPEUSDC", "1000PEPE", "USDC"),
            ("\u5e01\u5b89\u4eba\u751fUSDT", "\u5e01\u5b89\u4eba\u751f", "USDT"),
        ],
    )
    def test_the_quote_currency_is_the_end_of_the_symbol(self, write, symbol, base, quote):
        (listing,) = orders_of(write(force_order(s=symbol))).listings
        contract = listing.contract
        assert (contract["baseCurrency"], contract["settleCurrency"], contract["isInverse"]) == (base, quote, False)

    @pytest.mark.parametrize(
        ("fields", "base", "size"),
        [
            ({"s": "BTCUSD_200925"}, "BTC", 100),
            ({"s": "BTCUSD_PERP"}, "BTC", 100),
            ({"s": "BTCUSD"}, "BTC", 100),
            ({"s": "ETHUSD_PERP"}, "ETH", 10),
            ({"s": "BNBUSD_PERP"}, "BNB", 10),
            ({"s": "BNBUSD_200925"}, "BNB", 10),
            ({"s": "ARBUSD_250328", "ps": "ARBUSD"}, "ARB", 10),
        ],
    )
    def test_a_coin_margined_order_is_inverse(self, write, fields, base, size):
        recording = orders_of(write(force_order(**fields)))
        (contract,) = (listing.contract for listing in recording.listings)
        assert (contract["settleCurrency"], contract["isInverse"], contract["multiplier"]) == (base, True, str(-size))
        assert recording.events[0].lots == 3

    @pytest.mark.parametrize(
        ("line", "passed_over"),
        [
            ('{"result":null,"id":1}', 1),
            ('{"id":2,"error":{"code":2,"msg":"no"}}', 1),
            ("ping", 1),
            ('{"ping":1765416983918}', 1),
            ("17", 1),
            ('{"e":"aggTrade","s":"ABCUSDT"}', 1),
            (json.dumps(json.loads(force_order()) | {"e": "ORDER_TRADE_UPDATE"}), 1),
            ('{"stream":"abcusdt@markPrice","data":{"e":"markPriceUpdate"}}', 1),
            ("[]", 1),
            ("", 0),
            ("\ufeff", 0),
        ],
    )
    def test_lines_without_an_order_are_counted_and_skipped(self, write, line, passed_over):
        recording = orders_of(write(line, force_order()))
        assert (len(recording.events), recording.passed_over, recording.refused) == (1, passed_over, [])

    @pytest.mark.parametrize(
        "line",
        [
            json.dumps({"stream": "!forceOrder@arr", "data": json.loads(force_order())}),
            json.dumps({"stream": "abcusdt@forceOrder", "data": [json.loads(force_order())]}),
            json.dumps([json.loads(force_order())]),
            "\ufeff" + force_order(),
        ],
    )
    def test_an_order_is_read_in_every_wrapping(self, write, line):
        assert orders_of(write(line)).events == orders_of(write(force_order())).events

    @pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
    def test_a_byte_order_mark_is_read(self, tmp_path, write, encoding):
        path = tmp_path / "marked"
        path.write_text(force_order() + "\r\n", encoding)
        assert orders_of(path).events == orders_of(write(force_order())).events

    @pytest.mark.parametrize(
        ("line", "reason", "what"),
        [
            ("{", "undecodable", "not json: "),
            ("\x00\x01", "undecodable", "not json: "),
            (force_order()[:-9], "undecodable", "not json: "),
            ('{"e":"forceOrder"}', "invalid_field", "no forceOrder message: "),
            (force_order(S="HOLD"), "invalid_field", "Invalid enum value 'HOLD'"),
            (force_order(z="many"), "invalid_field", "no forceOrder message: "),
            (force_order(T=0), "invalid_field", "Expected `int` >= 1"),
            (force_order(T=str(START)), "invalid_field", "Expected `int`"),
            (force_order(z="0"), "out_of_range", "the filled quantity (z) is 0: it must be above 0"),
            (force_order(z="-1"), "out_of_range", "the filled quantity (z) is -1: it must be above 0"),
            (force_order(z="NaN"), "invalid_number", "NaN is not a number"),
            (force_order(z="sNaN"), "invalid_number", "sNaN is not a number"),
            (force_order(q="1e99999999"), "invalid_number", "is not a number"),
            (force_order(z="1e-99999999"), "invalid_number", "is not a number"),
            (force_order(z="0.000000001"), "too_many_decimals", "must be a whole number of lots of 0.00000001"),
            (force_order(z="1e12"), "out_of_range", "it must be at most 9223372036854775807 lots"),
            (force_order(ap="0"), "out_of_range", "price '0' is not above 0"),
            (force_order(ap="1.6e0"), "invalid_number", "'1.6e0' is not a plain decimal number"),
            (force_order(p="1E-7"), "invalid_number", "'1E-7' is not a plain decimal number"),
            (force_order(p="-1"), "invalid_number", "'-1' is not a plain decimal number"),
            (force_order(p="0.0000000000001"), "too_many_decimals", "has more than 12 decimals"),
            (force_order(s="BTCUSD_PERP", p="0"), "out_of_range", "price '0' is not above 0"),
            (force_order(s="BTCUSD_PERP", z="0.5"), "too_many_decimals", "must be a whole number of lots of 100"),
            (force_order(T=1_765_416_983_918_000), "ts_out_of_range", "T 1765416983918000 is not a time in milliseconds"),
            (force_order(T=1_765_416_983_918_000_000), "ts_out_of_range", "is not a time in milliseconds"),
            (force_order(s="ABCDEF"), "unknown_symbol", "the quote currency of ABCDEF is none of USDT"),
            (force_order(s="USDT"), "unknown_symbol", "the quote currency of USDT is none of USDT"),
            (force_order(s="A:USDT"), "contract_invalid", "must be printable without space , : or /"),
        ],
    )
    def test_an_invalid_line_is_refused_with_its_reason_and_the_others_are_read(self, write, line, reason, what):
        recording = orders_of(write(force_order(T=START - 1), line, force_order()))
        assert len(recording.events) == 2
        (refused,) = recording.refused
        assert (refused.line, refused.reason) == (2, reason)
        assert what in refused.detail


class TestContracts:
    def test_an_answer_or_a_bare_array_is_read(self, write):
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
            ([LISTING | {"multiplier": -1}], "contract 1: multiplier -1 must be a finite number above 0"),
        ],
    )
    def test_an_invalid_file_is_an_error(self, write, content, what):
        with pytest.raises(RecordingError) as error:
            read_contracts(write(content))
        assert what in str(error.value)

    def test_a_missing_file_is_an_error(self, tmp_path):
        with pytest.raises(RecordingError, match=r"cannot read .*nowhere: No such file or directory"):
            read_contracts(tmp_path / "nowhere")


async def test_a_recording_of_events_is_settled(config, write):
    path = write({"type": "contract", "contract": LISTING}, [fill(1), *[fill(2, price="99")] * 2], fill(3, symbol="NOSUCH"))
    done = await fundsvc(config, "replay", path, "--json")
    assert done.code == 0, done.error
    assert (done.result["events"], done.result["duplicates"], done.result["rejected"]) == (5, 1, {"unknown_symbol": 1})
    gains = {gain["kind"]: (gain["entries"], gain["credited"], gain["paid"]) for gain in done.result["gains"]}
    assert gains == {"surplus": (1, 10**8, 0), "shortfall": (1, 0, 10**8)}


class TestReplayOfOrders:
    """Recordings of Binance's liquidation orders, through the command line."""

    async def test_a_coin_margined_order_is_settled_in_the_coin(self, config, write):
        lines = [
            force_order(s="BTCUSD_200925", p="9425.5", ap="9496.5", z="1", q="1"),
            force_order(s="BTCUSD_PERP", S="BUY", p="30756.6", ap="30631.6", z="43", q="43"),
            force_order(s="ETHUSD_PERP", p="2000", ap="2500", z="7", q="7"),
            force_order(s="BNBUSD_PERP", S="BUY", p="500", ap="400", z="1", q="1"),
        ]
        done = await replay(config, write(*lines))
        assert (done.code, done.result["settled"]) == (0, 4)
        gains = {
            (gain["currency"], gain["kind"]): gain["credited"] - gain["paid"] - gain["uncovered"]
            for gain in done.result["gains"]
        }
        assert gains == {
            # 100 USD (1/9425.5 - 1/9496.5) and 4300 USD (1/30631.6 - 1/30756.6)
            ("BTC", "surplus"): 793_214 + 5_705_194,
            ("ETH", "surplus"): 70_000_000,  # 70 USD (1/2000 - 1/2500)
            ("BNB", "surplus"): 50_000_000,  # 10 USD (1/400 - 1/500)
        }
        assert (await fundsvc(config, "audit")).code == 0

    async def test_equal_lines_are_duplicates(self, config, write):
        lines = [
            force_order(p="1", ap="1.5"),
            force_order(p="1", ap="1.5"),
            force_order(S="BUY", T=START + 1, p="2", ap="1.5", z="4"),
        ]
        done = await replay(config, write(*lines, lines[2]))
        assert (done.code, credited(done), done.result["duplicates"], done.result["settled"]) == (0, 3.5, 2, 2)
        printed = await fundsvc(config, "replay", write(*lines), "--format", "binance-force-orders")
        assert (printed.code, "3 duplicates" in printed.output) == (0, True)

    async def test_an_overlapping_recording_continues_the_first_one(self, config, write):
        lines = [force_order(T=START + number, p="1", ap="2", z=str(number)) for number in range(1, 11)]
        assert credited(await replay(config, write(*lines[:7]))) == 28 - 0
        done = await replay(config, write(*lines[4:]))
        assert (done.code, credited(done), done.result["duplicates"]) == (0, 27, 3)
        again = await replay(config, write(*lines))
        assert (again.code, again.result["gains"], again.result["duplicates"], again.result["settled"]) == (0, [], 10, 10)

    async def test_older_orders_after_newer_ones_are_late_and_settled_by_a_replay(self, config, write):
        lines = [force_order(T=START + number, p="1", ap="2", z=str(number)) for number in range(1, 11)]
        assert credited(await replay(config, write(*lines[6:]))) == 34
        for _ in range(2):
            older = await replay(config, write(*lines[:6]))
            assert (older.code, older.result["settled"], older.result["gains"]) == (1, 0, [])
            assert older.result["rejected"] == {"late": 6}
        overlapping = await replay(config, write(*lines[:8]))
        assert (overlapping.code, overlapping.result["settled"], overlapping.result["rejected"]) == (0, 2, {"late": 6})
        printed = await fundsvc(config, "replay", write(*lines[:6]), "--format", "binance-force-orders")
        assert (printed.code, "`fundsvc rejected replay --reason late` settles them" in printed.output) == (1, True)
        async with engine_process(config), connected(config.database.dsn) as connection:
            assert (await fundsvc(config, "rejected", "replay", "--reason", "late")).code == 0
            await eventually(lambda: all_read(config, connection))
        whole = await replay(config, write(*lines))
        assert (whole.code, whole.result["settled"], whole.result["gains"], whole.result["rejected"]) == (0, 10, [], {})
        async with connected(config.database.dsn) as connection:
            assert await connection.fetchval("SELECT balance FROM funds") == 55 * 10**8
        assert (await fundsvc(config, "audit")).code == 0

    async def test_finer_quantities_of_a_later_recording_are_settled(self, config, write):
        for time, quantity in enumerate(("3", "0.5", "0.001", "1.25")):
            done = await replay(config, write(force_order(T=START + time, p="1", ap="2", z=quantity, q=quantity)))
            assert (done.code, credited(done)) == (0, float(quantity))

    async def test_skipped_and_refused_lines_are_counted(self, config, write):
        wrapped = json.dumps({"stream": "!forceOrder@arr", "data": json.loads(force_order(p="1", ap="2", z="3"))})
        done = await replay(
            config, write('{"result":null,"id":1}', wrapped, force_order(z="0"), force_order(ap="0"), "ping", "{")
        )
        assert (done.code, credited(done), done.result["passedOver"]) == (0, 3, 2)
        assert done.result["rejected"] == {"out_of_range": 2, "undecodable": 1}
        first, *_, last = done.result["lines"]
        assert first == "line 3: out_of_range: the filled quantity (z) is 0: it must be above 0"
        assert last == "line 6: undecodable: not json: Input data was truncated"

    @pytest.mark.parametrize(
        "lines",
        [
            [],
            [""],
            ['{"result":null,"id":1}'],
            [force_order(z="0")],
            [force_order(ap="0"), force_order(p="1e1"), force_order(T=1_765_416_983_918_000)],
            [force_order(s="ABCDEF")],
        ],
    )
    async def test_the_exit_code_is_1_when_nothing_was_settled(self, config, write, lines):
        done = await replay(config, write(*lines))
        assert (done.code, done.result["settled"], done.result["gains"]) == (1, 0, [])

    async def test_the_exit_code_is_1_when_all_events_were_rejected(self, config, write):
        unlisted = await fundsvc(config, "replay", write(fill(1), fill(2)), "--json")
        assert (unlisted.code, unlisted.result["settled"]) == (1, 0)
        listed = {"type": "contract", "contract": LISTING}
        assert (await fundsvc(config, "replay", write(listed), "--json")).code == 0
        beyond = await fundsvc(config, "replay", write(listed, fill(1, price="9" * 30)), "--json")
        assert (beyond.code, beyond.result["settled"], beyond.result["rejected"]) == (1, 0, {"out_of_range": 1})

    async def test_given_contracts_determine_the_terms(self, config, write, tmp_path):
        contracts = tmp_path / "contracts.json"
        given = {"symbol": "ABCUSDT", "settleCurrency": "USDT", "multiplier": 0.5, "isInverse": False}
        contracts.write_text(json.dumps([given]))
        path = write(
            force_order(p="1", ap="2", z="2.5", q="2.5"), force_order(T=START + 1, z="0.75", q="0.75"), force_order(s="XYZUSDT")
        )
        done = await replay(config, path, "--contracts", contracts)
        assert (done.code, done.result["settled"], done.result["rejected"]) == (0, 2, {"too_many_decimals": 1})
        async with connected(config.database.dsn) as connection:
            assert await connection.fetchval("SELECT lots FROM entries WHERE symbol = 'ABCUSDT'") == 5
            assert await connection.fetchval("SELECT multiplier FROM contracts WHERE symbol = 'XYZUSDT'") == Decimal(
                "0.00000001"
            )

    async def test_the_terms_of_a_listed_contract_stay(self, config, write, tmp_path):
        contracts = tmp_path / "contracts.json"
        given = {"symbol": "ABCUSDT", "settleCurrency": "USDT", "multiplier": 1, "isInverse": False}
        contracts.write_text(json.dumps([given]))
        assert (await fundsvc(config, "contracts", "load", contracts)).code == 0
        done = await replay(config, write(force_order(p="1", ap="2", z="3"), force_order(T=START + 1, z="0.5", q="0.5")))
        assert (done.code, credited(done), done.result["rejected"]) == (0, 3, {"too_many_decimals": 1})
        contracts.write_text(json.dumps([given | {"multiplier": 0.5}]))
        other = await replay(
            config, write(force_order(T=START + 1, z="0.5", q="0.5"), force_order(s="XYZUSDT")), "--contracts", contracts
        )
        assert (other.code, other.result["refused"]) == (1, ["contract_fixed: the ledger has ABCUSDT with other terms"])
        assert (other.result["settled"], other.result["rejected"]) == (1, {"contract_fixed": 1})
        assert (await fundsvc(config, "rejected", "list", "--json")).result == [], "the ledger's terms were put in no doubt"

    @pytest.mark.parametrize("terms", [{"isInverse": True, "multiplier": -1}, {"settleCurrency": "EUR"}])
    async def test_a_contract_in_another_currency_is_refused(self, config, write, tmp_path, terms):
        contracts = tmp_path / "contracts.json"
        contracts.write_text(
            json.dumps([{"symbol": "ABCUSDT", "settleCurrency": "USDT", "multiplier": 1, "isInverse": False} | terms])
        )
        done = await replay(config, write(force_order()), "--contracts", contracts)
        assert (done.code, done.result["rejected"]) == (1, {"contract_fixed": 1})
        assert "ABCUSDT is listed as" in done.result["lines"][0]

    async def test_orders_of_a_contract_with_fills_of_an_engine_are_refused(self, config, write):
        listed = {"type": "contract", "contract": LISTING | {"symbol": "ABCUSDT"}}
        await fundsvc(config, "replay", write(listed, fill(7, symbol="ABCUSDT")))
        done = await replay(config, write(force_order()))
        assert (done.code, done.result["rejected"]) == (1, {"conflict": 1})
        assert "ABCUSDT has fills of another source: sequence 7" in done.result["lines"][0]


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

    async def test_an_export_verifies_and_ends_with_the_head_of_the_fund(self, ledger):
        for symbol, head in (await heads_by_audit(ledger)).items():
            for form in ("csv", "ndjson"):
                verified = await verify((await fundsvc(ledger, "export", symbol, "--format", form)).output)
                assert verified.code == 0, verified.error
                assert verified.output.startswith(f"4 entries with head {head}, ")
                assert verified.output.endswith(": verified\n")

    async def test_an_altered_field_is_found(self, ledger):
        rows = list(csv.DictReader(io.StringIO((await fundsvc(ledger, "export", "ABCUSDTM")).output)))
        accepted = []
        for name in rows[1]:
            altered = [*rows[:1], rows[1] | {name: another(rows[1][name])}, *rows[2:]]
            if not (await verify(as_csv(altered))).code:
                accepted.append(name)
        assert accepted == ["recordedAt"], "the chain covers all fields but recordedAt"

    async def test_amounts_must_fit_the_kind_of_an_entry(self, ledger):
        rows = list(csv.DictReader(io.StringIO((await fundsvc(ledger, "export", "ABCUSDTM")).output)))
        assert [row["kind"] for row in rows] == ["surplus", "shortfall", "order", "end", "flat", "surplus", ""]
        for number, fields, sentence in (
            (0, {"kind": "flat"}, "entry 1: its amounts are not those of a flat"),
            (0, {"kind": "refund"}, "entry 1: its amounts are not those of a refund"),
            (4, {"kind": "cover", "change": "-1", "repaid": "1"}, "entry 3: its amounts are not those of a cover"),
            (1, {"repaid": "1", "change": "-2"}, "entry 2: its amounts are not those of a shortfall"),
            (5, {"repaid": "25", "change": "5"}, "entry 4: it repays more than is outstanding"),
        ):
            verified = await verify(as_csv([*rows[:number], rows[number] | fields, *rows[number + 1 :]]))
            assert (verified.code, sentence in verified.error) == (1, True), verified.error

    async def test_missing_and_moved_entries_are_found(self, ledger):
        rows = list(csv.DictReader(io.StringIO((await fundsvc(ledger, "export", "ABCUSDTM")).output)))
        fund = rows.pop()
        for altered in ([*rows[:1], *rows[2:]], rows[1:], [rows[4], *rows[:4], rows[5]], [*rows, rows[5]]):
            assert (await verify(as_csv([*altered, fund]))).code == 1
        for lines in ([*rows[:5], fund], rows[:5], rows):
            assert (await verify(as_csv(lines))).code == 1, "an end is missing"

    async def test_other_input_exits_with_2(self):
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

    async def test_a_mark_is_not_replayed(self, config, write):
        state = {"type": "mark", "symbol": "ABCUSDTM", "price": "5", "ts": 1}
        await fundsvc(config, "replay", write(state, fill(1)))
        kept = {event["body"]["text"]: event["event"] for event in (await fundsvc(config, "rejected", "list", "--json")).result}
        (key,) = (key for text, key in kept.items() if '"mark"' in text)
        refused = await fundsvc(config, "rejected", "replay", key)
        assert refused.code == 1
        assert f"{key}: a mark cannot be replayed" in refused.error
        everything = await fundsvc(config, "rejected", "replay")
        assert (everything.code, everything.error.count("cannot be replayed")) == (0, 1)
        assert "resent 1 of 2" in everything.output
        left = (await fundsvc(config, "rejected", "list", "--json")).result
        assert [event["event"] for event in left if event["replayedAt"] is None] == [key]

    async def test_a_replay_of_an_event_that_was_resent_meanwhile_is_a_duplicate(self, config, write):
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
async def test_kucoin_contracts_are_listed_and_their_terms_stay(config, write):
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
    async def test_a_repeated_replay_settles_nothing(self, config):
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
            assert verified.code == 0
            assert heads[symbol] in verified.output

    def test_repeated_lines_and_partial_recordings_give_the_same_orders(self, tmp_path):
        lines = FORCE_ORDERS.read_bytes().splitlines()
        whole = orders_of(FORCE_ORDERS)
        path = tmp_path / "twice"
        path.write_bytes(b"\n".join(lines + lines[:1673]))
        twice = orders_of(path)
        assert (twice.events, twice.duplicates) == (whole.events, 1673)
        path.write_bytes(b"\n".join(lines[4000:7000]))
        assert set(orders_of(path).events) <= set(whole.events)

    @pytest.mark.parametrize("partitions", [4])
    async def test_two_engines_on_four_partitions_give_the_same_heads(self, config):
        async with engine_process(config), engine_process(config), connected(config.database.dsn) as connection:
            await eventually(lambda: owners(connection, 2))
            assert (await replay_liquidations(config)).result["rejected"] == {}
            shares = await connection.fetch("SELECT messages FROM partitions")
            assert all(row["messages"] for row in shares)
        assert await heads_by_audit(config) == undisturbed_heads()


async def replay(config, path, *more):
    done = await fundsvc(config, "replay", path, "--format", "binance-force-orders", *more, "--json")
    assert done.output, done.error
    return done


def credited(done):
    """Returns the credits of all funds in whole units of currencies with eight decimals."""
    return sum(gain["credited"] for gain in done.result["gains"]) / 10**8


def orders_of(path):
    return read_recording(path, "binance-force-orders")


def strictly_rising(numbers):
    return all(first < second for first, second in itertools.pairwise(numbers))


async def replay_liquidations(config):
    done = await fundsvc(config, "replay", FORCE_ORDERS, "--format", "binance-force-orders", "--json")
    assert done.code == 0, done.error
    return done


async def heads_by_audit(config):
    done = await fundsvc(config, "audit", "--json")
    assert done.code == 0, done.output
    return {contract["symbol"]: contract["head"] for contract in done.result["contracts"]}


def undisturbed_heads():
    """Returns the heads that a partition in memory gives."""
    recording = read_recording(FORCE_ORDERS, "binance-force-orders")
    partition = Partition(0, 1, (), {"USDT": 8, "USDC": 8}, 8)
    for event in (*recording.listings, *recording.events):
        partition.apply(event)
    return {state.symbol: state.head.hex() for state in partition.take().funds}


async def owners(connection, number):
    rows = await connection.fetch("SELECT owner FROM partitions WHERE lease_until > clock_timestamp()")
    return len(rows) == 4 and len({row["owner"] for row in rows}) == number


async def all_read(config, connection):
    """Returns whether every message of the stream is settled."""
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
    """Returns another value of the same kind."""
    if text in ("True", "False"):
        return str(text == "False")
    try:
        return str(Decimal(text) + 1)
    except ArithmeticError:
        return {"surplus": "flat", "sell": "buy"}.get(text, "0" + text[1:] if text[:1] != "0" else "1" + text[1:])
