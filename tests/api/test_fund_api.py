import csv
import io
import socket
import time
import tracemalloc
from urllib.parse import quote

import aiohttp
import msgspec
import pytest
from conftest import with_section
from escalations import BEGINNING, SYMBOL, TS, ended, executed, position, shortfall
from eventually import eventually
from ledgers import fill, listing, owned
from test_adl_api import config, world_of  # noqa: F401 - a fixture
from yarl import URL

from fundsvc.api.answers import EntryAnswer
from fundsvc.api.funds import STREAMED_ROWS, FundResources
from fundsvc.api.http.application import make_app
from fundsvc.api.http.middleware import Middleware
from fundsvc.api.http.server import serve
from fundsvc.core.events import Fill, Mark, Rate
from fundsvc.core.fund.chain import GENESIS
from fundsvc.metrics import Metrics
from fundsvc.store.reader import Reader

FUNDS = "/api/v1/insurance-fund"
FUND = f"{FUNDS}/{SYMBOL}"
INVERSE = "XBTUSDM"
HOUR_MS = 3_600_000
COLUMNS = [field.encode_name for field in msgspec.structs.fields(EntryAnswer)]


def now_ms():
    return time.time_ns() // 1_000_000


def surplus(seq, points, ts=TS, symbol=SYMBOL):
    """Closes a long of 1,000 lots of a thousandth at a price `points` above its bankruptcy price."""
    return Fill(symbol, seq, "sell", 1000, str(39000 + points), "39000", ts)


def inverse_listing():
    return listing(INVERSE, settleCurrency="XBT", multiplier=-1, isInverse=True, baseCurrency="XBT")


def inverse_surplus(seq):
    """1/39000 - 1/40000 XBT for each of 100 lots, rounded down to 10 decimals: 0.0000641025."""
    return Fill(INVERSE, seq, "sell", 100, "40000", "39000", TS)


@pytest.fixture
async def world(config):  # noqa: F811 - the fixture
    async with world_of(config) as world:
        await world.send(*BEGINNING)
        yield world


async def fund_once(world, holds, symbol=SYMBOL):
    """Waits until a fund satisfies `holds`. The inputs of its valuation follow the ledger with a delay."""

    async def current():
        status, body = await world.ask(f"{FUNDS}/{symbol}")
        return status == 200 and holds(body["data"]) and body["data"]

    return await eventually(current)


async def test_fund_is_valued_in_usdt_and_base_currency(world):
    await world.send(listing(SYMBOL, multiplier=0.001, baseCurrency="XBT"), surplus(1, 5), surplus(2, 2))
    fund = await fund_once(world, lambda fund: fund["balance"] == "7" and fund["openInterest"])
    assert (fund["balanceUsdt"], fund["balanceBase"], fund["baseCurrency"]) == ("7", "0.00017948", "XBT")
    assert fund["openInterest"] == 300
    assert fund["balanceToOpenInterest"] == pytest.approx(7 / (39000 * 300 * 0.001))
    assert not {"balanceUsdtReason", "balanceBaseReason"} & fund.keys()


async def test_inverse_fund_needs_a_rate_for_usdt(world):
    await world.send(inverse_listing(), inverse_surplus(1), position("secret-long", 40, 39000, 1, INVERSE))
    fund = await fund_once(world, lambda fund: fund["entry"], INVERSE)
    assert (fund["balance"], fund["balanceBase"], fund["baseCurrency"]) == ("0.0000641025", "0.0000641025", "XBT")
    assert (fund["balanceUsdt"], fund["balanceUsdtReason"]) == (None, "no rate of XBT is known yet")
    assert fund["balanceToOpenInterest"] is None
    await world.send(Rate("XBT", "40000.5", now_ms()), Mark(INVERSE, "40000", TS))
    fund = await fund_once(world, lambda fund: fund["balanceUsdt"] and fund["balanceToOpenInterest"], INVERSE)
    assert (fund["balanceUsdt"], fund["openInterest"]) == ("2.56413205", 40)
    assert fund["balanceToOpenInterest"] == pytest.approx(0.0000641025 / (40 / 40000))


async def test_expired_rate_is_not_used(world):
    ts = now_ms() - 700_000
    await world.send(inverse_listing(), inverse_surplus(1), Rate("XBT", "40000", ts))
    fund = await fund_once(world, lambda fund: "before" in fund["balanceUsdtReason"], INVERSE)
    assert fund["balanceUsdt"] is None
    assert fund["balanceUsdtReason"] == f"the last rate of XBT has ts {ts}: more than 600 s before the service's clock"


async def test_future_rate_is_rejected(world):
    await world.send(inverse_listing(), inverse_surplus(1), Rate("XBT", "40000", now_ms() + 700_000))
    fund = await fund_once(world, lambda fund: fund["entry"], INVERSE)
    assert (fund["balanceUsdt"], fund["balanceUsdtReason"]) == (None, "no rate of XBT is known yet")


async def test_missing_mark_is_the_reason_for_a_missing_base_value(world):
    await world.send(listing("NEWUSDTM", baseCurrency="NEW"))
    fund = await fund_once(world, bool, "NEWUSDTM")
    assert (fund["balanceBase"], fund["balanceBaseReason"]) == (None, "no mark price of NEWUSDTM is known yet")
    assert (fund["balanceUsdt"], fund["openInterest"], fund["balanceToOpenInterest"]) == ("0", 0, None)


async def test_mark_of_a_contract_without_positions_is_known(config):  # noqa: F811 - the fixture
    config = with_section(config, "engine", book_seconds=0.1, lease_seconds=0.6)
    async with world_of(config) as world:
        await world.send(listing("AAA", baseCurrency="A"), Mark("AAA", "4", TS), fill("AAA", 1, 10))
        await eventually(lambda: world.pool.fetchval("SELECT mark IS NOT NULL FROM books"))
    async with world_of(config) as world:
        assert (await fund_once(world, lambda fund: fund["balanceBase"], "AAA"))["balanceBase"] == "2.5"


async def test_changes_peak_and_drawdown_use_the_engines_clock(config):  # noqa: F811 - the fixture
    now, hour = now_ms(), HOUR_MS
    times = [(1, 5, -200), (2, 7, -100), (3, 9, -20), (4, 21, -6), (5, -20, -4), (6, 3, 0)]
    async with world_of(config) as world:
        await world.send(listing("AAA"), *(fill("AAA", seq, points, now + at * hour) for seq, points, at in times))
    async with world_of(config) as world:
        fund = await fund_once(world, lambda fund: fund["balance"] == "25", "AAA")
        assert (fund["change24h"], fund["change7d"]) == ("13", "20")
        assert (fund["peak8h"], fund["drawdown8h"]) == ("42", 17 / 42)
        await world.send(fill("AAA", 7, 30, now))
        fund = await fund_once(world, lambda fund: fund["balance"] == "55", "AAA")
        assert (fund["change24h"], fund["change7d"], fund["peak8h"], fund["drawdown8h"]) == ("43", "50", "55", 0.0)


async def test_summary_has_sums_by_currency_and_in_usdt(world):
    await world.send(surplus(1, 5), listing("AAA"), fill("AAA", 1, -3), inverse_listing(), inverse_surplus(1))
    summary = await world.data(f"{FUNDS}/summary")
    assert abs(summary.pop("ts") - now_ms()) < 10_000
    assert abs(summary.pop("asOf") - now_ms()) < 10_000
    assert summary == {
        "currencies": [
            {"currency": "USDT", "balance": "5", "balanceUsdt": "5", "outstanding": "3", "contracts": 2},
            {
                "currency": "XBT",
                "balance": "0.0000641025",
                "balanceUsdt": None,
                "balanceUsdtReason": "no rate of XBT is known yet",
                "outstanding": "0",
                "contracts": 1,
            },
        ],
        "totalUsdt": None,
        "totalUsdtReason": "no rate of XBT is known yet",
    }
    await world.send(Rate("XBT", "40000.5", now_ms()))

    async def rated():
        return (await world.data(f"{FUNDS}/summary"))["totalUsdt"]

    assert await eventually(rated) == "7.56413205"


@pytest.mark.parametrize(
    "symbol", ["...", ".A", "%2e", "%2E%2e", "50%2FUSDT", "$MICHI_USDT", "a?b#c&d=e", "A\\B;C", "币安人生USDT"]
)
async def test_every_valid_symbol_can_be_requested(world, symbol):
    await world.send(listing(symbol), fill(symbol, 1, 5))
    base = f"{FUNDS}/{quote(symbol, safe='')}"

    async def data_of(path):
        async with world.http.get(URL(path, encoded=True)) as answer:
            return answer.status == 200 and (await answer.json())["data"]

    async def settled():
        fund = await data_of(base)
        return fund and (fund["symbol"], fund["balance"]) == (symbol, "5")

    await eventually(settled)
    for suffix in ("/history", "/entries/1", "/at?ts=1"):
        assert await data_of(base + suffix), suffix


async def test_frequent_requests_do_not_query_the_funds_table(world, owner_connection):
    await world.send(surplus(1, 5))
    await fund_once(world, lambda fund: fund["balance"] == "5")
    async with owner_connection.transaction():
        await owner_connection.execute("LOCK TABLE funds IN ACCESS EXCLUSIVE MODE")
        (fund,) = await world.data(FUNDS)
        assert (await world.data(FUND))["balance"] == fund["balance"] == "5"
        (currency,) = (await world.data(f"{FUNDS}/summary"))["currencies"]
        assert currency["balance"] == "5"


async def test_symbol_that_is_a_word_of_the_api_is_rejected(world):
    await world.send(listing("summary"))
    assert [row["detail"] for row in await world.pool.fetch("SELECT detail FROM rejected")] == [
        "symbol 'summary' is reserved: the API uses it in paths. Use another symbol"
    ]
    assert "currencies" in await world.data(f"{FUNDS}/summary")


async def test_fund_at_a_time_is_after_its_last_entry_before(world):
    await world.send(surplus(1, 5, TS + 10), surplus(2, 2, TS + 20), surplus(3, 2, TS + 20))
    expected = [(0, 0, "0", 0), (TS + 9, 0, "0", 0), (TS + 10, 1, "5", TS + 10), (TS + 20, 3, "9", TS + 20)]
    for ts, entry, balance, entry_ts in expected:
        standing = await world.data(f"{FUND}/at", ts=ts)
        assert standing == {
            "symbol": SYMBOL,
            "ts": ts,
            "balance": balance,
            "outstanding": "0",
            "entry": entry,
            "entryTs": entry_ts,
        }


async def test_fund_at_a_time_shows_its_outstanding_amount(world):
    await world.send(shortfall(1), ended(2, 1), ended(3, 1), ended(4, 1), surplus(5, 4, TS + HOUR_MS))
    before, after = [await world.data(f"{FUND}/at", ts=ts) for ts in (TS, now_ms())]
    assert (before["outstanding"], after["outstanding"], after["balance"]) == ("10", "6", "0")
    await fund_once(world, lambda fund: fund["outstanding"] == "6")


async def test_candles_have_no_gaps(world):
    start = TS // HOUR_MS * HOUR_MS
    await world.send(surplus(1, 5, start + 1), surplus(2, 2, start + 2), shortfall(3), surplus(4, 1, start + 3 * HOUR_MS))
    assert await world.data(f"{FUND}/candles", granularity=60, **{"from": start - HOUR_MS, "to": start + 4 * HOUR_MS}) == [
        [start, "0", "7", "0", "0", "7", "7", "3", 3],
        [start + HOUR_MS, "0", "0", "0", "0", "0", "0", "0", 0],
        [start + 2 * HOUR_MS, "0", "0", "0", "0", "0", "0", "0", 0],
        [start + 3 * HOUR_MS, "0", "1", "0", "1", "1", "0", "0", 1],
        [start + 4 * HOUR_MS, "1", "1", "1", "1", "0", "0", "0", 0],
    ]
    latest = await world.data(f"{FUND}/candles")
    assert len(latest) == 500
    assert latest[-1] == [now_ms() // HOUR_MS * HOUR_MS, "1", "1", "1", "1", "0", "0", "0", 0]
    day = start // (24 * HOUR_MS) * 24 * HOUR_MS
    assert await world.data(f"{FUND}/candles", granularity=1440, **{"from": start, "to": start + 3 * HOUR_MS}) == [
        [day, "0", "7", "0", "0", "7", "7", "3", 3],
        [day + 24 * HOUR_MS, "0", "1", "0", "1", "1", "0", "0", 1],
    ]


WRONG = [
    ("candles", {"granularity": "5"}, "granularity is '5': it must be one of 60, 1440"),
    ("candles", {"from": "5", "to": "4"}, "from is 5: it must not be after to, 4"),
    (
        "candles",
        {"from": "0", "to": str(500 * HOUR_MS)},
        f"from 0 to {500 * HOUR_MS} are 501 candles of 60 minutes: request at most 500",
    ),
    ("candles", {"to": str(2**63 - 1)}, f"to is '{2**63 - 1}': it must be an integer from 0 to 253402300799999"),
    ("at", {}, "ts is missing: it must be an integer from 0 to 253402300799999"),
    ("history.csv", {"startAt": "5", "endAt": "4"}, "startAt is 5: it must not be after endAt, 4"),
    ("history.csv", {"kind": "flat"}, "'kind' is not a parameter of this path; allowed: startAt, endAt"),
]


async def test_invalid_query_is_rejected_with_a_reason(world, subtests):
    for path, parameters, message in WRONG:
        with subtests.test(path=path, parameters=parameters):
            assert await world.ask(f"{FUND}/{path}", **parameters) == (400, {"code": "400100", "msg": message})


async def test_missing_contract_or_entry_is_not_found(world, subtests):
    await world.send(surplus(1, 5))
    paths = [f"{FUNDS}/NOPE/{rest}" for rest in ("at?ts=1", "candles", "history.csv", "entries/1")]
    for path in (*paths, *(f"{FUND}/entries/{number}" for number in ("0", "2", "-1", "x", "%C2%B2", "9" * 30))):
        with subtests.test(path=path):
            async with world.http.get(URL(path, encoded=True)) as answer:
                assert (answer.status, (await answer.json())["code"]) == (404, "404000")


async def test_entry_shows_previous_hash_and_caused_order(world):
    await world.send(surplus(1, 5), shortfall(2), executed(3, 1, "secret-anna", 20))
    history = (await world.data(f"{FUND}/history", forward="true"))["dataList"]
    first, second = [await world.data(f"{FUND}/entries/{number}") for number in (1, 2)]
    assert [first["entry"], second["entry"]] == history
    assert (first["previousHash"], second["previousHash"]) == (GENESIS.hex(), history[0]["hash"])
    assert (first["adl"], second["adl"]) == (None, (await world.orders())[0])


async def lines_of(answer):
    return list(csv.DictReader(io.StringIO(await answer.text(), newline="")))


async def test_csv_export_equals_the_history(world):
    fills = [msgspec.structs.replace(surplus(seq, seq, TS + seq), trade_id=f'"tr,ade"\t{seq}'[:64]) for seq in range(1, 4)]
    await world.send(*(msgspec.structs.replace(fill, trade_id=fill.trade_id.replace("\t", "é")) for fill in fills))
    history = (await world.data(f"{FUND}/history", forward="true"))["dataList"]
    async with world.http.get(f"{FUND}/history.csv") as answer:
        assert (answer.status, answer.content_type, answer.charset) == (200, "text/csv", "utf-8")
        assert answer.headers["Content-Disposition"] == f"attachment; filename*=UTF-8''{SYMBOL}.csv"
        text = await answer.text()
        assert "secret" not in text
        assert text.startswith(",".join(COLUMNS) + "\r\n")
        as_text = {True: "true", False: "false"}
        assert await lines_of(answer) == [
            {name: as_text[value] if isinstance(value, bool) else str(value) for name, value in entry.items()}
            for entry in history
        ]
    async with world.http.get(f"{FUND}/history.csv", params={"startAt": TS + 2, "endAt": TS + 2}) as answer:
        assert [line["entry"] for line in await lines_of(answer)] == ["2"]
    async with world.http.head(f"{FUND}/history.csv") as answer:
        assert (answer.status, await answer.read()) == (200, b"")


MANY = 30_000


@pytest.fixture
async def long(config):  # noqa: F811 - the fixture
    """A service with a long ledger of AAA."""
    async with owned(config) as owner:
        await owner.settle([listing("AAA"), *(fill("AAA", seq, 1, TS + seq) for seq in range(1, MANY + 1))])
    async with world_of(config) as world:
        yield world


async def test_long_export_is_complete_and_uses_little_memory(long):
    path, size, entries = f"{FUNDS}/AAA/history.csv", 0, 0
    tracemalloc.start()
    try:
        async with long.http.get(path) as answer:
            async for chunk in answer.content.iter_any():
                size += len(chunk)
                entries += chunk.count(b"\r\n")
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert entries == MANY + 1
    assert size > 5_000_000
    assert held < 2_500_000, "includes the client's buffers"


def small_socket(address):
    """Returns a socket with a small receive buffer."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    return made


class CountingReader(Reader):
    """A reader that counts the pages that it reads."""

    pages = 0

    async def history(self, *arguments, **options):
        self.pages += 1
        return await super().history(*arguments, **options)


async def test_disconnect_ends_the_export(long):
    reader, metrics = CountingReader(long.pool), Metrics()
    resources = FundResources(reader, None, None, None, None, None)
    connector = aiohttp.TCPConnector(socket_factory=small_socket)
    async with serve(make_app(Middleware(metrics), resources.routes), "127.0.0.1", 0) as url:
        async with (
            aiohttp.ClientSession(url, connector=connector) as leaving,
            leaving.get(f"{FUNDS}/AAA/history.csv", read_bufsize=1024) as answer,
        ):
            assert (await answer.content.readline()).startswith(b"symbol,")
            await eventually(lambda: reader.pages > 5)
        await eventually(lambda: b"history.csv" in metrics.render())
    assert reader.pages < MANY / STREAMED_ROWS


async def test_export_is_aborted_when_the_database_becomes_unreachable(long, servers):
    async with long.http.get(f"{FUNDS}/AAA/history.csv", read_bufsize=1024) as answer:
        await answer.content.readline()
        servers.postgres.stop()
        try:
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.read()
        finally:
            servers.postgres.start()
