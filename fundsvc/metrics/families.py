"""The metrics of contracts: names, descriptions, and the sources of their values."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from operator import attrgetter
from typing import Literal, get_args

from fundsvc.core.adl.order import State
from fundsvc.core.adl.valuation import SideName
from fundsvc.core.fund.chain import Kind
from fundsvc.core.fund.state import FundStateName
from fundsvc.metrics.exposition import Family
from fundsvc.metrics.funds import FundView

Read = Callable[[FundView], float | None]

_OF_SYMBOL: Callable[[FundView], str] = attrgetter("symbol_label")
_OF_CURRENCY: Callable[[FundView], str] = attrgetter("money_labels")


def _gauge(name: str, documentation: str, value: Read, label: str = "") -> Family[FundView]:
    return Family(name, "gauge", documentation, _OF_SYMBOL, value, label)


def _counter(name: str, documentation: str, value: Read, label: str = "") -> Family[FundView]:
    return Family(name, "counter", documentation, _OF_SYMBOL, value, label)


def _money(
    kind: Literal["counter", "gauge"], name: str, documentation: str, atoms: Callable[[FundView], int]
) -> Family[FundView]:
    """Returns a family of amounts in whole units of the settlement currency."""
    return Family(name, kind, documentation, _OF_CURRENCY, lambda view: atoms(view) / view.unit)


def _each(
    make: Callable[[str, str, Read, str], Family[FundView]],
    name: str,
    documentation: str,
    label: str,
    values: Iterable[str],
    read: Callable[[str, FundView], float],
) -> Iterator[Family[FundView]]:
    """Returns a family per value of a further label."""
    return (make(name, documentation, partial(read, value), f',{label}="{value}"') for value in values)


FUND_FAMILIES: tuple[Family[FundView], ...] = (
    _money("gauge", "fundsvc_balance", "Balance of a contract's fund.", lambda view: view.balance),
    _money(
        "gauge",
        "fundsvc_outstanding",
        "Amount that ADL did not recover and no surplus has repaid yet.",
        lambda view: view.state.outstanding,
    ),
    _money(
        "gauge",
        "fundsvc_payable",
        "Amount that a fund may pay now: its balance minus its reserve line.",
        lambda view: view.payable,
    ),
    _money("gauge", "fundsvc_peak", "Highest balance of the last eight hours.", lambda view: view.peak),
    Family("fundsvc_target", "gauge", "Target size of a fund.", _OF_CURRENCY, lambda view: view.target),
    _gauge("fundsvc_fullness_ratio", "Balance of a fund / its target size.", lambda view: view.fullness),
    _gauge("fundsvc_leverage_cap", "Highest leverage that the fullness of a fund recommends.", lambda view: view.leverage_cap),
    _gauge(
        "fundsvc_drawdown_ratio",
        "Share of the highest balance of the last eight hours that is lost.",
        lambda view: view.drawdown,
    ),
    *_each(
        _gauge,
        "fundsvc_fund_state",
        "1 for the current state of a fund, 0 for the others.",
        "state",
        get_args(FundStateName),
        lambda state, view: int(view.state_name == state),
    ),
    _money("counter", "fundsvc_credited_total", "What was credited to a fund.", lambda view: view.fund.credited),
    _money("counter", "fundsvc_paid_total", "What a fund paid.", lambda view: view.fund.paid),
    _money(
        "counter",
        "fundsvc_uncovered_total",
        "Amounts that a fund did not pay, for which ADL orders exist.",
        lambda view: view.fund.uncovered,
    ),
    _money(
        "counter",
        "fundsvc_recovered_total",
        "Amounts that ADL recovered of the uncovered ones.",
        lambda view: view.fund.recovered,
    ),
    _money(
        "counter",
        "fundsvc_refunded_total",
        "Amounts that completed ADL orders recovered beyond the uncovered ones, credited to the fund.",
        lambda view: view.fund.refunded,
    ),
    _money("counter", "fundsvc_repaid_total", "What surpluses repaid of outstanding amounts.", lambda view: view.fund.repaid),
    *_each(
        _counter,
        "fundsvc_entries_total",
        "Ledger entries written.",
        "kind",
        get_args(Kind),
        lambda kind, view: view.fund.kinds[kind],
    ),
    _counter(
        "fundsvc_duplicates_total",
        "Events ignored because their sequence was settled before.",
        lambda view: view.fund.duplicates,
    ),
    _gauge(
        "fundsvc_contract_suspended",
        "1 while the terms of a contract are in doubt, so that its events are rejected.",
        lambda view: int(view.fund.suspended),
    ),
    _counter(
        "fundsvc_old_events_total",
        "Events settled over a day after their time.",
        lambda view: view.fund.old,
    ),
    _counter(
        "fundsvc_sequence_gaps_total",
        "Events whose prevSeq was not the last sequence of their contract.",
        lambda view: view.fund.gaps,
    ),
    _counter(
        "fundsvc_trade_ids_repeated_total",
        "Fills settled with a trade id that a recent fill of their contract had.",
        lambda view: view.fund.repeated_trades,
    ),
    *_each(
        _counter,
        "fundsvc_adl_orders_total",
        "ADL orders that entered a state: open, done or uncovered.",
        "state",
        get_args(State),
        lambda state, view: view.fund.orders[state],
    ),
    _gauge("fundsvc_adl_open_orders", "ADL orders that are open.", lambda view: len(view.fund.open)),
    _gauge(
        "fundsvc_adl_oldest_open_seconds",
        "Age of the oldest open ADL order; 0 without one.",
        lambda view: view.oldest_open_seconds,
    ),
    _counter("fundsvc_adl_rounds_total", "Rounds of ADL orders.", lambda view: view.fund.rounds),
    _counter("fundsvc_adl_lots_needed_total", "Lots that ADL orders needed.", lambda view: view.fund.lots_needed),
    _counter("fundsvc_adl_lots_taken_total", "Lots executed for ADL orders.", lambda view: view.fund.lots_taken),
    _money(
        "counter",
        "fundsvc_adl_overshoot_total",
        "Amounts that completed ADL orders took beyond their need, and refunded: less than one lot's deficit each.",
        lambda view: view.fund.refunded,
    ),
    *_each(
        _gauge,
        "fundsvc_adl_positions",
        "Open positions in the ADL book.",
        "side",
        get_args(SideName),
        lambda side, view: view.fund.positions.get(side, 0),
    ),
)
"""The families in the order of the exposition."""
