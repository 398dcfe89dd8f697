"""The metrics of contracts: names, descriptions, and the sources of their values."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from operator import attrgetter
from typing import Literal, get_args

from fundsvc.core.adl.order import State
from fundsvc.core.adl.valuation import SideName
from fundsvc.core.fund.chain import Kind
from fundsvc.core.fund.inventory import Outcome
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
    kind: Literal["counter", "gauge"], name: str, documentation: str, atoms: Callable[[FundView], int | None]
) -> Family[FundView]:
    """Returns a family of amounts in whole units of the settlement currency."""

    def units(view: FundView) -> float | None:
        amount = atoms(view)
        return None if amount is None else amount / view.unit

    return Family(name, kind, documentation, _OF_CURRENCY, units)


def _each(
    make: Callable[[str, str, Read, str], Family[FundView]],
    name: str,
    documentation: str,
    label: str,
    values: Iterable[str],
    read: Callable[[str, FundView], float | None],
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
    _money(
        "gauge",
        "fundsvc_outstanding_high",
        "Highest outstanding amount of the last minute.",
        lambda view: view.outstanding_high,
    ),
    _counter("fundsvc_dry_total", "Payments that took the last atom of a fund.", lambda view: view.fund.dry),
    _counter("fundsvc_dry_seconds_total", "Time with a balance of 0.", lambda view: view.fund.dry_seconds(view.now)),
    _counter(
        "fundsvc_guard_starts_total",
        "How often the drawdown guard of a fund became active.",
        lambda view: view.fund.guarded,
    ),
    Family("fundsvc_target", "gauge", "Target size of a fund.", _OF_CURRENCY, lambda view: view.target),
    _gauge("fundsvc_fullness_ratio", "Balance of a fund / its target size.", lambda view: view.fullness),
    _gauge("fundsvc_leverage_cap", "Highest leverage that the fullness of a fund recommends.", lambda view: view.leverage_cap),
    _gauge(
        "fundsvc_drawdown_ratio",
        "Share of the highest balance of the last eight hours that was lost within the last minute, at most.",
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
    _counter(
        "fundsvc_balances_not_carried_total",
        "Balances of closed contracts that could not move to the successor.",
        lambda view: view.fund.uncarried,
    ),
    *_each(
        _counter,
        "fundsvc_adl_orders_total",
        "ADL orders that entered a state: open, done, uncovered or returned.",
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
    *_each(
        _gauge,
        "fundsvc_inventory_lots",
        "Lots that a fund holds.",
        "side",
        get_args(SideName),
        lambda side, view: view.fund.held.get(side) or None,
    ),
    _money("gauge", "fundsvc_unrealised_pnl", "Worth of an inventory at the mark.", lambda view: view.unrealised),
    _money("gauge", "fundsvc_equity", "Balance of a fund + worth of its inventory at the mark.", lambda view: view.equity),
    _money("gauge", "fundsvc_equity_low", "Lowest equity of the last minute.", lambda view: view.equity_low),
    _gauge(
        "fundsvc_inventory_oldest_timestamp_seconds",
        "Time of the oldest tranche of an inventory.",
        lambda view: view.exposure and view.exposure.oldest_ts / 1000,
    ),
    _gauge(
        "fundsvc_inventory_open_orders",
        "Open ADL orders that relieve an inventory.",
        lambda view: view.inventory_orders,
    ),
    _gauge(
        "fundsvc_inventory_unrelieved",
        "1 while the equity is below the lower line and no position can be requested, else 0.",
        lambda view: view.exposure and int(view.exposure.is_unrelieved),
    ),
    *_each(
        _counter,
        "fundsvc_takeover_outcomes_total",
        "Outcomes of takeovers.",
        "outcome",
        get_args(Outcome),
        lambda outcome, view: view.fund.outcomes[outcome] if view.fund.held else None,
    ),
    *_each(
        _counter,
        "fundsvc_takeover_lots_total",
        "Lots of the outcomes of takeovers.",
        "outcome",
        get_args(Outcome),
        lambda outcome, view: view.fund.outcome_lots[outcome] if view.fund.held else None,
    ),
)
"""The families in the order of the exposition."""
