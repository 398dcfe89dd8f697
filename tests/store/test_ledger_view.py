"""The view `ledger` shows entries as people write them, exactly."""

from datetime import UTC, datetime
from decimal import Decimal

import msgspec
from explaining import explained
from ledgers import TS, fill, listing, owned

LARGE = msgspec.structs.replace(fill("AAA", 1, 0), price="8189362.95885545", lots=11)
"""A surplus of 9007199254740995 atoms, which a double cannot represent."""


async def test_view_shows_exact_decimal_prices_amounts_and_utc_times(config, owner_connection):
    async with owned(config) as owner:
        await owner.settle([listing("AAA"), listing("BBB")])
        await owner.settle([LARGE, fill("BBB", 1, 5), msgspec.structs.replace(fill("AAA", 2, -1), ts=TS + 1)])
    entries = await owner_connection.fetch("SELECT * FROM entries JOIN contracts USING (symbol) ORDER BY symbol, entry")
    shown = await owner_connection.fetch("SELECT * FROM ledger ORDER BY symbol, entry")
    assert [row["balance"] for row in shown] == [
        Decimal("90071992.54740995"),
        Decimal("90071991.54740995"),
        Decimal("5.00000000"),
    ]
    for row, entry in zip(shown, entries, strict=True):
        for name in ("symbol", "entry", "seq", "kind", "side", "lots", "trade_id", "account", "hash"):
            assert row[name] == entry[name]
        for name in ("change", "balance", "uncovered", "repaid"):
            assert row[name].as_tuple() == Decimal(entry[name]).scaleb(-entry["settle_decimals"]).as_tuple()
        for name in ("price", "bankruptcy_price"):
            assert row[name].as_tuple() == Decimal(entry[name]).scaleb(-entry["price_decimals"]).as_tuple()
        assert row["at"] == datetime.fromtimestamp(entry["ts"] / 1000, UTC).replace(tzinfo=None)
        assert row["currency"] == entry["settle_currency"]


async def test_view_reads_one_entry_by_the_index(config, owner_connection, monkeypatch):
    async with owned(config) as owner:
        await owner.settle([listing("AAA"), *(fill("AAA", seq, 1) for seq in range(1, 5_001))])
    await owner_connection.execute("ANALYZE")
    with explained(monkeypatch) as reads:
        (row,) = await owner_connection.fetch("SELECT * FROM ledger WHERE symbol = 'AAA' AND entry = 4000")
        newest = await owner_connection.fetch("SELECT * FROM ledger WHERE symbol = 'AAA' ORDER BY entry DESC LIMIT 10")
    assert (row["entry"], [entry["entry"] for entry in newest]) == (4000, list(range(5000, 4990, -1)))
    assert reads.rows["entries"] <= 20
    assert "entries" not in reads.scanned
