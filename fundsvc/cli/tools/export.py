"""Exports a ledger as rows of text that `scripts/verify-export` verifies without any code of the service.

The column `line` is the kind of a row: `entry`, `record` (an ADL record), or `fund` at the end. Entries and records are in the
order of their creation; a record follows the entry that it names. A row has only the columns of its kind.
"""

from collections.abc import AsyncIterator
from datetime import UTC, datetime

from fundsvc.cli.tools.writers import Row
from fundsvc.core.commitment import NO_SECRETS, Secrets, seal_parts
from fundsvc.core.contracts import Contract
from fundsvc.core.fund.settlement import FundState
from fundsvc.core.numbers import format_units
from fundsvc.store.exports import Ledger, Line, RecordLine

COLUMNS = (
    "line",
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
    "record",
    "adl",
    "round",
    "body",
    "recordedAt",
    "hash",
    "settleCurrency",
    "settleDecimals",
    "priceDecimals",
    "multiplier",
    "isInverse",
    "outstanding",
    "recordHash",
    "keyId",
    "commitment",
    "salt",
    "closes",
    "forced",
)
"""Money and prices are decimal text; `ts` is in milliseconds; `body` (MessagePack), `keyId`, `commitment` and `salt` are
hexadecimal digits.
"""

_PRIVATE = {"account", "salt", "record", "adl", "round", "body", "recordHash"}

PUBLIC_COLUMNS = tuple(name for name in COLUMNS if name not in _PRIVATE)
"""The columns of a public export: without accounts, their salts, and ADL records."""


async def export_rows(ledger: Ledger, secrets: Secrets = NO_SECRETS) -> AsyncIterator[Row]:
    """Yields a row per current entry and ADL record, in order, then the row of the fund.

    An entry with a commitment to its account has the salt too, if `secrets` contains the secret.
    """
    async for line in ledger.lines():
        if isinstance(line, Line):
            yield _entry_row(ledger.contract, line) | _opening(line, secrets)
        else:
            yield _record_row(line)
    yield _fund_row(ledger.contract, ledger.fund)


async def public_rows(ledger: Ledger) -> AsyncIterator[Row]:
    """Yields the rows of a public export: entries with commitments instead of accounts, and the fund; no ADL records."""
    async for row in export_rows(ledger):
        if row["line"] != "record":
            yield {name: value for name, value in row.items() if name not in _PRIVATE}


def _entry_row(contract: Contract, line: Line) -> Row:
    entry = line.entry
    money, price = contract.settle_decimals, contract.price_decimals
    return {
        "line": "entry",
        "symbol": entry.symbol,
        "entry": entry.entry,
        "seq": entry.seq,
        "kind": entry.kind,
        "change": format_units(entry.change, money),
        "balance": format_units(entry.balance, money),
        "uncovered": format_units(entry.uncovered, money),
        "repaid": format_units(entry.repaid, money),
        "side": entry.side,
        "lots": entry.lots,
        "price": format_units(entry.price, price),
        "bankruptcyPrice": format_units(entry.bankruptcy_price, price),
        "tradeId": entry.trade_id,
        "orderId": entry.order_id,
        "account": entry.account,
        "ts": entry.ts,
        "recordedAt": _written(line.recorded_at),
        "hash": line.hash.hex(),
        **_terms(contract),
        "closes": entry.closes,
        "forced": entry.forced,
    }


def _opening(line: Line, secrets: Secrets) -> Row:
    entry = line.entry
    seal, salt = seal_parts(entry.seal), secrets.salt(entry.symbol, entry.entry, entry.seal)
    found = {"keyId": seal.key_id.hex(), "commitment": seal.commitment.hex(), "salt": salt.hex() if salt else ""}
    return {name: value for name, value in found.items() if value}


def _record_row(line: RecordLine) -> Row:
    record = line.record
    return {
        "line": "record",
        "symbol": record.symbol,
        "record": record.record,
        "entry": record.entry,
        "kind": record.kind,
        "adl": record.adl,
        "round": record.round,
        "seq": record.seq,
        "ts": record.ts,
        "account": record.account,
        "lots": record.lots,
        "body": record.body.hex(),
        "recordedAt": _written(line.recorded_at),
        "hash": line.hash.hex(),
    }


def _fund_row(contract: Contract, fund: FundState) -> Row:
    return {
        "line": "fund",
        "symbol": fund.symbol,
        "entry": fund.entry,
        "balance": format_units(fund.balance, contract.settle_decimals),
        "outstanding": format_units(fund.outstanding, contract.settle_decimals),
        "adl": fund.adl,
        "record": fund.adl_record,
        "hash": fund.head.hex(),
        "recordHash": fund.adl_head.hex(),
        **_terms(contract),
    }


def _terms(contract: Contract) -> Row:
    return {
        "settleCurrency": contract.settle_currency,
        "settleDecimals": contract.settle_decimals,
        "priceDecimals": contract.price_decimals,
        "multiplier": format(contract.multiplier, "f"),
        "isInverse": contract.is_inverse,
    }


def _written(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")
