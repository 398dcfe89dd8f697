"""A ledger as rows of text, complete enough to be verified by anyone: `scripts/verify-export` does it with nothing of ours."""

from collections.abc import AsyncIterator
from datetime import UTC

from fundsvc.core.contracts import Contract
from fundsvc.core.numbers import format_units
from fundsvc.store.exports import Ledger, Line

COLUMNS = (
    "symbol",
    "entry",
    "seq",
    "kind",
    "change",
    "balance",
    "uncovered",
    "repaid",
    "side",
    "lots",
    "price",
    "bankruptcyPrice",
    "tradeId",
    "orderId",
    "account",
    "ts",
    "recordedAt",
    "hash",
    "settleCurrency",
    "settleDecimals",
    "priceDecimals",
    "multiplier",
    "isInverse",
)
"""The sealed fields in the order of the hash, then the rest; money and prices are decimal text, `ts` is in milliseconds."""


async def export_rows(ledger: Ledger) -> AsyncIterator[tuple[str | int | bool, ...]]:
    """One row of COLUMNS for each entry that there is now, in order: what is added meanwhile could be without an end."""
    last = ledger.fund.entry
    async for line in ledger.lines():
        if line.entry.entry > last:
            return
        yield _row(ledger.contract, line)


def _row(contract: Contract, line: Line) -> tuple[str | int | bool, ...]:
    entry = line.entry
    money, price = contract.settle_decimals, contract.price_decimals
    return (
        entry.symbol,
        entry.entry,
        entry.seq,
        entry.kind,
        *(format_units(amount, money) for amount in (entry.change, entry.balance, entry.uncovered, entry.repaid)),
        entry.side,
        entry.lots,
        format_units(entry.price, price),
        format_units(entry.bankruptcy_price, price),
        entry.trade_id,
        entry.order_id,
        entry.account,
        entry.ts,
        line.recorded_at.astimezone(UTC).isoformat(timespec="milliseconds"),
        line.hash.hex(),
        contract.settle_currency,
        money,
        price,
        format(contract.multiplier, "f"),
        contract.is_inverse,
    )
