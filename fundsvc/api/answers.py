"""Types of answers: money and prices are exact decimal text, times are milliseconds, names are camelCase."""

import time
from datetime import UTC, datetime, timedelta
from typing import Generic, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from fundsvc.api.valuation import (
    FundValuation,
    balance_base,
    balance_to_open_interest,
    balance_usdt,
    base_currency,
    base_missing,
)
from fundsvc.core.adl.valuation import SideName
from fundsvc.core.commitment import seal_parts
from fundsvc.core.contracts import Contract
from fundsvc.core.fund.chain import Kind
from fundsvc.core.fund.fullness import Target
from fundsvc.core.fund.state import FundStateName, drawdown, guard_at, state_of
from fundsvc.core.generations import generation_of
from fundsvc.core.numbers import format_units
from fundsvc.core.policy import Policy, payable
from fundsvc.readmodel.inventories import HeldInventory, HeldSide
from fundsvc.store.reader import EntryRow, FundRow, Listed

T = TypeVar("T")

ContractAnswer = dict[str, msgspec.Raw | int | str | None]
"""KuCoin's contract object with all fields as listed, plus generation, partition, settleDecimals, priceDecimals,
suspended, closed, closedAt and settlementPrice. The last two are null while the contract is open.
"""

_EPOCH = datetime.fromtimestamp(0, UTC)
_MILLISECOND = timedelta(milliseconds=1)


class Answer(msgspec.Struct, rename="camel", frozen=True):
    """Base of the types of answers."""


class SettlementCurrency(Answer, frozen=True):
    """A settlement currency in KuCoin's shape. `precision` are the decimals of its amounts. The service moves no coins, so
    `chains` is empty.
    """

    currency: str
    name: str
    full_name: str
    precision: int
    confirms: None = None
    contract_address: None = None
    is_margin_enabled: bool = False
    is_debit_enabled: bool = False
    chains: list[str] = []


class Envelope(Answer, Generic[T], frozen=True, kw_only=True):
    """KuCoin's envelope of every answer."""

    code: str = "200000"
    data: T


class HeldSideAnswer(Answer, frozen=True):
    """One side of a fund's inventory: its lots in `tranches`, the oldest from `oldestTs`.

    `averagePrice` is the average of the bankruptcy prices weighted by lots, rounded down to the decimals of prices.
    """

    side: SideName
    lots: int
    average_price: str
    tranches: int
    oldest_ts: int


class FundAnswer(Answer, frozen=True, kw_only=True):
    """A fund at present. `entry` and `head` (hex) are the number and hash of its last entry, `seq` is its engine sequence.

    Keep `entry` and `head` to detect later changes of earlier entries: `fundsvc audit --heads FILE` reads a file of such
    answers, one per line.

    The answer includes every commit before `asOf` by the database's clock. A replica that is behind has an earlier `asOf`.

    `balanceUsdt` uses the last rate of the settlement currency, `balanceBase` the contract's mark price; both are rounded down
    to eight decimals. If one is null, its reason states why. `change24h` and `change7d` are changes of the balance by the
    engine's clock. `peak8h` is the highest balance of the last eight hours; `drawdown8h` is 1 - balance / peak8h.
    `openInterest` is in lots, and null until the books are loaded. `balanceToOpenInterest` is the balance divided by the value
    of the open interest at the mark. `target` is the size that the fund should have, `fullness` is balance / target, and
    `leverageCap` is the recommended highest leverage. They are null without a target; `/target` explains it. `suspended` is
    true while the contract's terms are in doubt: its events are rejected with `terms_in_doubt`, and kept. `status` is that of
    KuCoin's object, null without one. `closed` is true for a closed contract: its events are rejected with `contract_closed`.
    `generation` counts the lives of the symbol: the path `SYMBOL@1` has the fund of the first, `SYMBOL` that of the last.

    `inventory` are the positions that the fund took over and still holds: at most one element per side, none for a side without
    lots. `unrealisedPnl` is their worth at the mark, each tranche rounded down, and `equity` is balance + unrealisedPnl; both
    are null without a mark. They change with the mark, at most once a second. `equityDrawdown` is 1 - max(0, equity) / its
    highest value of the drawdown guard's hours; null unless the guard watches the equity.

    `payable` is what the fund may pay of a loss now: the balance above `guardLine`, below which the drawdown guard begins ADL;
    null without a guard.
    """

    symbol: str
    generation: int
    settle_currency: str
    balance: str
    balance_usdt: str | None
    balance_base: str | None
    base_currency: str | None
    outstanding: str
    payable: str
    guard_line: str | None
    equity: str | None
    unrealised_pnl: str | None
    inventory: list[HeldSideAnswer]
    state: FundStateName
    entry: int
    seq: int
    head: str
    updated_at: int
    as_of: int
    change24h: str
    change7d: str
    peak8h: str
    drawdown8h: float
    equity_drawdown: float | None
    open_interest: int | None
    balance_to_open_interest: float | None
    target: str | None
    fullness: float | None
    leverage_cap: float | None
    suspended: bool
    status: str | None
    closed: bool
    balance_usdt_reason: str | UnsetType = UNSET
    balance_base_reason: str | UnsetType = UNSET


class EntryAnswer(Answer, frozen=True):
    """A ledger entry without its account, which is never public.

    The hash covers `keyId` and `commitment` (hex) instead of the account, so anyone can recompute it. Both are "" in entries
    without an account and in entries from before the ledger secret, whose hash covers the account itself.

    The hash covers the ledger key as symbol: `symbol`, followed by @ and `generation` if that is not 1.

    `closes` is the takeover entry whose tranche the entry closes lots of, else 0. `forced` is true for a takeover of lots that
    ADL could not close.
    """

    symbol: str
    generation: int
    entry: int
    seq: int
    kind: Kind
    change: str
    balance: str
    uncovered: str
    repaid: str
    side: str
    lots: int
    price: str
    bankruptcy_price: str
    trade_id: str
    order_id: str
    ts: int
    recorded_at: int
    hash: str
    key_id: str
    commitment: str
    closes: int
    forced: bool


class Page(Answer, Generic[T], frozen=True):
    """A page of rows. The number of the last row is the offset of the next page. It includes every commit before `asOf`."""

    data_list: list[T]
    has_more: bool
    as_of: int | UnsetType = UNSET


class PartitionCursor(Answer, frozen=True):
    """The last message of a partition's stream whose events are settled, and the run id of the stream server."""

    partition: int
    stream: str
    last_id: str
    run_id: str


class ContractCursor(Answer, frozen=True):
    """The last settled sequence of a contract. An engine resends from the next sequence."""

    symbol: str
    partition: int
    seq: int


class PoolCursor(Answer, frozen=True):
    """The last settled message of a pool's stream and the last applied sequence. An engine resends from the next sequence."""

    pool: str
    partition: int
    stream: str
    last_id: str
    seq: int


class CursorAnswer(Answer, frozen=True):
    """The positions from which an engine resends, and the current stream epoch.

    `pools` are those of the mutual, if there are any.
    """

    stream_epoch: int
    partitions: list[PartitionCursor]
    contracts: list[ContractCursor]
    pools: list[PoolCursor] | UnsetType = UNSET


def contract_answer(listed: Listed) -> ContractAnswer:
    """Returns a contract in the form of KuCoin's contract object."""
    fields = msgspec.json.decode(listed.specification, type=dict[str, msgspec.Raw])
    contract = listed.contract
    ours = {
        "generation": generation_of(contract.symbol).number,
        "partition": listed.partition,
        "settleDecimals": contract.settle_decimals,
        "priceDecimals": contract.price_decimals,
        "suspended": listed.suspended,
        "closed": listed.closing is not None,
        "closedAt": listed.closing.at if listed.closing else None,
        "settlementPrice": _settlement_price(listed),
    }
    return {**fields, **ours}


def _settlement_price(listed: Listed) -> str | None:
    """Returns the price of the settlement that closed a contract; None without a settlement."""
    closing = listed.closing
    return format_units(closing.price, listed.contract.price_decimals) if closing and closing.seq else None


def fund_answer(
    fund: FundRow, policy: Policy, valuation: FundValuation, as_of: int, held: HeldInventory | None = None
) -> FundAnswer:
    """Returns the answer for a fund, valued by `valuation`; `as_of` is in milliseconds.

    `held` is the inventory after the fund's last entry; None if it never had one.
    """
    decimals, past, target = fund.settle_decimals, valuation.past, valuation.target
    generation = generation_of(fund.symbol)
    peak = max(past.peak, fund.balance)
    unrealised = _unrealised(valuation, held)
    watched = _watched(fund, policy, unrealised)
    guard = guard_at(time.time_ns() // 1_000_000, policy, decimals, fund.guard, watched)
    in_usdt, in_base = balance_usdt(fund, valuation), balance_base(fund, valuation)
    return FundAnswer(
        symbol=generation.symbol,
        generation=generation.number,
        settle_currency=fund.settle_currency,
        balance=format_units(fund.balance, decimals),
        balance_usdt=in_usdt,
        balance_usdt_reason=valuation.rate_missing if in_usdt is None else UNSET,
        balance_base=in_base,
        balance_base_reason=base_missing(fund) if in_base is None else UNSET,
        base_currency=base_currency(fund),
        outstanding=format_units(fund.outstanding, decimals),
        payable=format_units(payable(fund.balance, guard), decimals),
        guard_line=format_units(guard.line, decimals) if guard else None,
        equity=None if unrealised is None else format_units(fund.balance + unrealised, decimals),
        unrealised_pnl=None if unrealised is None else format_units(unrealised, decimals),
        inventory=[_held_side(side, fund.contract) for side in held.sides] if held else [],
        state=state_of(fund.balance, fund.outstanding, guard, target, escalated=fund.escalated, watched=watched),
        entry=fund.entry,
        seq=fund.seq,
        head=fund.head.hex(),
        updated_at=milliseconds(fund.updated_at),
        as_of=as_of,
        change24h=format_units(fund.balance - past.day, decimals),
        change7d=format_units(fund.balance - past.week, decimals),
        peak8h=format_units(peak, decimals),
        drawdown8h=drawdown(fund.balance, peak),
        equity_drawdown=drawdown(watched, guard.peak) if guard and guard.watches_equity else None,
        open_interest=valuation.open_interest,
        balance_to_open_interest=balance_to_open_interest(fund, valuation),
        target=target_size(target, decimals),
        fullness=target.fullness(fund.balance) if target else None,
        leverage_cap=target.leverage_cap(fund.balance) if target else None,
        suspended=fund.suspended,
        status=fund.status,
        closed=fund.closed,
    )


def _unrealised(valuation: FundValuation, held: HeldInventory | None) -> int | None:
    """Returns the worth of an inventory at its mark, None without one."""
    if held is None or not held.sides:
        return None if valuation.mark is None else 0
    return None if held.mark is None else held.unrealised


def _watched(fund: FundRow, policy: Policy, unrealised: int | None) -> int:
    """Returns the amount that the drawdown guard of a policy watches: the balance, or the equity if it is above 0."""
    guard = policy.drawdown_guard
    return fund.balance if guard is None or guard.on == "balance" else max(0, fund.balance + (unrealised or 0))


def _held_side(held: HeldSide, contract: Contract) -> HeldSideAnswer:
    price = format_units(held.average_price, contract.price_decimals)
    return HeldSideAnswer(held.side, held.lots, price, held.tranches, held.oldest_ts)


def target_size(target: Target | None, decimals: int) -> str | None:
    """Returns a target as text in its settlement currency, or None without a target."""
    return None if target is None or target.amount is None else format_units(target.amount, decimals)


def entry_answer(entry: EntryRow, contract: Contract) -> EntryAnswer:
    """Returns the answer for a ledger entry of a contract."""
    money, price = contract.settle_decimals, contract.price_decimals
    seal, generation = seal_parts(entry.seal), generation_of(entry.symbol)
    return EntryAnswer(
        symbol=generation.symbol,
        generation=generation.number,
        entry=entry.entry,
        seq=entry.seq,
        kind=entry.kind,
        change=format_units(entry.change, money),
        balance=format_units(entry.balance, money),
        uncovered=format_units(entry.uncovered, money),
        repaid=format_units(entry.repaid, money),
        side=entry.side,
        lots=entry.lots,
        price=format_units(entry.price, price),
        bankruptcy_price=format_units(entry.bankruptcy_price, price),
        trade_id=entry.trade_id,
        order_id=entry.order_id,
        ts=entry.ts,
        recorded_at=milliseconds(entry.recorded_at),
        hash=entry.hash.hex(),
        key_id=seal.key_id.hex(),
        commitment=seal.commitment.hex(),
        closes=entry.closes,
        forced=entry.forced,
    )


def milliseconds(moment: datetime) -> int:
    """Returns a time in milliseconds since the epoch."""
    return (moment - _EPOCH) // _MILLISECOND
