"""The dashboard of all funds: states, balances, changes, alerts."""

import limits
from board import CONTRACT, OVERVIEW, board, choice
from funds import STATES, state
from grafana_foundation_sdk.builders.dashboard import Dashboard
from panels import (
    COUNT,
    HALF,
    MONEY,
    MULTIPLE,
    QUARTER,
    SECONDS,
    SHARE,
    SIXTH,
    THIRD,
    AnyPanel,
    Column,
    Query,
    bars,
    contracts,
    leading_to_contracts,
    lines,
    number,
    rows,
)
from promql import flow, grown

CHOSEN = 'currency=~"$currency"'
BALANCE = f"symbol:fundsvc_balance:max{{{CHOSEN}}}"
OUTSTANDING = f"symbol:fundsvc_outstanding:max{{{CHOSEN}}}"
EQUITY = f"symbol:fundsvc_equity:max{{{CHOSEN}}}"
PAYABLE = f"symbol:fundsvc_payable:max{{{CHOSEN}}}"


def dashboard() -> Dashboard:
    """Returns the first dashboard for the risk team."""
    return board(
        OVERVIEW,
        "Insurance funds",
        "The funds of all contracts: states, balances, changes, alerts.",
        "risk",
        choices=[choice("currency", "Settlement currency", "fundsvc_balance")],
        orders_of=".+",
        rows={
            "Now": _now(),
            "Contracts": [_contracts()],
            "Changes": _moved(),
            "Inventories": _inventories(),
            "Sums": _sums(),
            "Alerts": [_alerts()],
        },
    )


def _now() -> list[AnyPanel]:
    exposed = "symbol:fundsvc_peak:max > 0 or on (symbol) sum by (symbol) (fundsvc_adl_positions) > 0"
    return [
        _count(
            "Dry",
            "Funds with a balance of 0 whose peak of 8 hours is above 0, or that have open positions.",
            f"{BALANCE} == 0 and on (symbol) ({exposed})",
            "FundDry",
        ),
        _count(
            "Guard active",
            "Funds with a balance that pay nothing, because their drawdown guard is active.",
            f"{BALANCE} > 0 and {PAYABLE} == 0",
            "FundGuardActive",
        ),
        _count(
            "Drawdown",
            "Funds whose drawdown from their 8 h peak fires an alert.",
            f"symbol:fundsvc_drawdown_ratio:max >= {limits.limit('FundDrawdown')} and on (symbol) {BALANCE}",
            "FundDrawdown",
        ),
        _count(
            "Below target",
            "Funds below their target.",
            f"symbol:fundsvc_fullness_ratio:max < {limits.limit('FundBelowTarget')} and on (symbol) {BALANCE}",
            "FundBelowTarget",
        ),
        _count(
            "In ADL",
            "Contracts with an open ADL order.",
            f"symbol:fundsvc_adl_open_orders:max > 0 and on (symbol) {BALANCE}",
            "AdlOrderOpen",
        ),
        _count(
            "Uncovered",
            "Contracts with an outstanding amount.",
            f"{OUTSTANDING} > 0",
            "FundUncovered",
        ),
    ]


def _count(title: str, description: str, expression: str, alert: str, width: int = SIXTH) -> AnyPanel:
    query = Query(f"count({expression}) or vector(0)", "contracts")
    return number(title, description, COUNT, query, thresholds=limits.none_of(alert), width=width)


def _contracts() -> AnyPanel:
    amounts = {
        name: f"max by (symbol) (symbol:fundsvc_{name}:max)"
        for name in ("balance", "equity", "payable", "peak", "target", "outstanding")
    }
    return contracts(
        "Funds",
        "The fund of each contract, the lowest fullness first. The contract links to its dashboard.",
        BALANCE,
        Column("State", state(".+"), "none", words=STATES),
        Column("Balance", amounts["balance"], thresholds=limits.bad_until("FundDry")),
        Column("Equity", amounts["equity"], thresholds=limits.bad_until("EquityNegative")),
        Column("Change", "max by (symbol) (delta(symbol:fundsvc_balance:max[$__range]))"),
        Column("Payable", amounts["payable"], thresholds=limits.bad_until("FundGuardActive")),
        Column("Times dry", grown("fundsvc_dry_total", "symbol"), COUNT, limits.none_of("FundDry")),
        Column("Time dry", grown("fundsvc_dry_seconds_total", "symbol"), SECONDS, limits.none_of("FundEmpty")),
        Column("8 h peak", amounts["peak"]),
        Column("Drawdown", "symbol:fundsvc_drawdown_ratio:max", SHARE, limits.bad_from("FundDrawdown")),
        Column("Target", amounts["target"]),
        Column("Fullness", "symbol:fundsvc_fullness_ratio:max", SHARE, limits.bad_until("FundBelowTarget")),
        Column("Leverage cap", "max by (symbol) (fundsvc_leverage_cap)", MULTIPLE),
        Column("Outstanding", amounts["outstanding"], thresholds=limits.bad_from("FundUncovered")),
        Column("Open orders", "symbol:fundsvc_adl_open_orders:max", COUNT, limits.bad_from("AdlOrderOpen")),
        sort="Fullness",
        descending=False,
        link=CONTRACT,
    )


def _moved() -> list[AnyPanel]:
    moved = f"delta({BALANCE}[$__range])"
    shown = [
        bars(
            "Largest decreases",
            "The five funds per currency that fell most in the time range.",
            MONEY,
            Query(f"bottomk by (currency) (5, {moved} < 0)", "{{symbol}} {{currency}}"),
        ),
        bars(
            "Largest increases",
            "The five funds per currency that rose most in the time range.",
            MONEY,
            Query(f"topk by (currency) (5, {moved} > 0)", "{{symbol}} {{currency}}"),
        ),
        bars(
            "Largest drawdowns",
            "Share by which funds are below their peak of 8 hours.",
            SHARE,
            Query(f"topk(10, symbol:fundsvc_drawdown_ratio:max and on (symbol) {BALANCE})", "{{symbol}}"),
            thresholds=limits.bad_from("FundDrawdown"),
        ),
    ]
    return [leading_to_contracts(panel, CONTRACT) for panel in shown]


def _inventories() -> list[AnyPanel]:
    of = f"and on (symbol) {BALANCE}"
    return [
        _count("Equity below 0", "Funds whose equity is below 0.", f"{EQUITY} < 0", "EquityNegative", QUARTER),
        _count(
            "Unrelieved",
            "Funds that need relief of their inventory, while no position can be requested.",
            f"symbol:fundsvc_inventory_unrelieved:max > 0 {of}",
            "InventoryUnrelieved",
            QUARTER,
        ),
        _count(
            "Forced takeovers",
            "Contracts with forced takeovers in the last 15 minutes.",
            f"symbol:fundsvc_takeovers_forced:increase15m > 0 {of}",
            "TakeoverForced",
            QUARTER,
        ),
        _count(
            "Old inventories",
            "Funds whose oldest tranche fires an alert.",
            f"time() - symbol:fundsvc_inventory_oldest_timestamp_seconds:min > {limits.limit('InventoryOld')} {of}",
            "InventoryOld",
            QUARTER,
        ),
        lines(
            "Equity",
            "Balance plus the worth of the inventory at the mark, of funds that hold positions.",
            MONEY,
            Query(EQUITY, "{{symbol}} {{currency}}"),
            thresholds=limits.bad_until("EquityNegative"),
        ),
        lines(
            "Lots held",
            "Lots that funds hold, by contract and side.",
            COUNT,
            Query(f"max by (symbol, side) (fundsvc_inventory_lots) {of}", "{{symbol}} {{side}}"),
        ),
    ]


def _sums() -> list[AnyPanel]:
    return [
        number(
            "Total balance",
            "Sum of the balances by currency. It is only informative, because no fund pays for another contract.",
            MONEY,
            Query(f"currency:fundsvc_balance:sum{{{CHOSEN}}}", "{{currency}}"),
            width=HALF,
        ),
        number(
            "Outstanding",
            "Outstanding amounts of all contracts by currency.",
            MONEY,
            Query(f"currency:fundsvc_outstanding:sum{{{CHOSEN}}}", "{{currency}}"),
            thresholds=limits.bad_from("FundUncovered"),
            width=HALF,
        ),
        lines(
            "Funds by state",
            "Number of funds in each state.",
            COUNT,
            Query(f"sum by (state) (max by (symbol, state) (fundsvc_fund_state and on (symbol) {BALANCE}))", "{{state}}"),
            stacked=True,
            width=THIRD,
        ),
        lines(
            "Credits and payments per hour",
            "Surpluses and refunds that the funds received, and shortfalls that they paid, by currency.",
            MONEY,
            Query(flow("fundsvc_credited_total", "currency", CHOSEN), "credited {{currency}}"),
            Query(f"-{flow('fundsvc_paid_total', 'currency', CHOSEN)}", "paid {{currency}}"),
            width=THIRD,
        ),
        lines(
            "Uncovered amounts per hour",
            "Losses that funds could not pay, the part that ADL recovered, and the part that surpluses repaid.",
            MONEY,
            Query(flow("fundsvc_uncovered_total", "currency", CHOSEN), "uncovered {{currency}}"),
            Query(flow("fundsvc_recovered_total", "currency", CHOSEN), "recovered {{currency}}"),
            Query(flow("fundsvc_repaid_total", "currency", CHOSEN), "repaid {{currency}}"),
            width=THIRD,
        ),
    ]


def _alerts() -> AnyPanel:
    return rows(
        "Alerts",
        "Firing and pending alerts. The runbook has a section for each.",
        'ALERTS{team=~"risk|operations"}',
        "alertname",
        "alertstate",
        "severity",
        "symbol",
        "partition",
        "instance",
    )
