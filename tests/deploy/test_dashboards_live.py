"""Every query of the dashboards returns data from a real Prometheus while funds fill and run dry."""

import aiohttp
from escalations import BEGINNING, SYMBOL, TS, executed
from eventually import eventually
from ledgers import fill, listing
from prometheus_server import LOOK_SECONDS, needs_prometheus
from test_alerts import liquidation, watched
from test_dashboards import DASHBOARDS, expressions

from fundsvc.core.events import Rate, Takeover

EMPTY_WITHOUT_ERRORS = {
    "max by (symbol) (abs(fundsvc_conservation_error_atoms)) > 0",
    "time() - max(fundsvc_wal_archived_timestamp_seconds > 0)",  # The tests' PostgreSQL archives nothing.
}

LISTED = [listing(SYMBOL, multiplier=0.001, maxLeverage=100), listing("RISING"), listing("FAILED")]

HELD = Takeover(SYMBOL, 2, "sell", 10, "39000", TS, account="secret-long")

FILLED = [liquidation(1, 1000, 39100), HELD, fill("RISING", 1, 5)]

DRAINED = [
    liquidation(3, 100, 37000),
    *(executed(seq, 1, account, lots) for seq, account, lots in ((4, "secret-anna", 50), (5, "secret-bert", 30))),
    executed(6, 1, "secret-emil", 5),
    liquidation(7, 10, 38000),
    fill("RISING", 2, 7),
    fill("RISING", 2, 7),
    fill("FAILED", 1, -7),
    fill("UNKNOWN", 1, 1),
]
"""An order that completes, one that stays open, one without candidates, a duplicate event and a rejected one."""

PATIENCE_SECONDS = 60
"""The engine reads peaks every 20 seconds, and rates need several scrapes."""


def queries():
    """Returns all queries; those of one contract select SYMBOL."""
    found = {expression for path in DASHBOARDS for expression in expressions(path)}
    assert found > EMPTY_WITHOUT_ERRORS
    return sorted(expression.replace('symbol=".+"', f'symbol="{SYMBOL}"') for expression in found - EMPTY_WITHOUT_ERRORS)


@needs_prometheus
async def test_every_query_returns_data(config, tmp_path):
    settings = {"FUNDSVC_TARGET_DEFAULT_RULE": "open_interest", "FUNDSVC_AUDIT_HEADS_DIRECTORY": str(tmp_path)}
    async with watched(config, tmp_path, **settings) as (server, producer):
        await producer.append([*LISTED, Rate("XBT", "60000", TS), *BEGINNING[1:], *FILLED])
        await eventually(
            lambda: server.query('symbol:fundsvc_balance:max{symbol="RISING"} == 5'), PATIENCE_SECONDS, LOOK_SECONDS
        )
        await producer.append(DRAINED)

        ((labels, _),) = await eventually(lambda: server.query('up{job="fundsvc-api"} == 1'))
        async with aiohttp.ClientSession(f"http://{labels['instance']}") as http:

            async def ranked():
                async with http.get(f"/api/v1/adl/{SYMBOL}/queue"):
                    return await server.query("sum(rate(fundsvc_adl_rank_seconds_count[1m])) > 0")

            await eventually(ranked, pause_max=LOOK_SECONDS)
        empty = queries()

        async def all_return_data():
            empty[:] = [expression for expression in empty if not await server.query(expression)]
            return not empty

        try:
            await eventually(all_return_data, PATIENCE_SECONDS, LOOK_SECONDS)
        finally:
            assert empty == []
