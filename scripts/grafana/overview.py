"""The funds of all contracts: what is dry, what is about to be, what is open, what moved."""

import limits
from board import CONTRACT, OVERVIEW, board, choice
from funds import STATES, state
from grafana_foundation_sdk.builders.dashboard import Dashboard
from panels import (
    COUNT,
    HALF,
    MONEY,
    MULTIPLE,
    SHARE,
    THIRD,
    AnyPanel,
    Ask,
    Column,
    bars,
    contracts,
    leading_to_contracts,
    lines,
    number,
    rows,
)
from promql import flow

CHOSEN = 'currency=~"$currency"'
BALANCE = f"symbol:fundsvc_balance:max{{{CHOSEN}}}"
OUTSTANDING = f"symbol:fundsvc_outstanding:max{{{CHOSEN}}}"
PAYABLE = f"symbol:fundsvc_payable:max{{{CHOSEN}}}"


def dashboard() -> Dashboard:
    """The dashboard that a risk desk looks at first."""
    return board(
        OVERVIEW,
        "Insurance funds",
        "The funds of all contracts: what is dry, what is about to be, what is open, what moved.",
        "risk",
        choices=[choice("currency", "Settled in", "fundsvc_balance")],
        orders_of=".+",
        rows={"Now": _now(), "Contracts": [_contracts()], "What moved": _moved(), "Sums": _sums(), "Alerts": [_alerts()]},
    )


def _now() -> list[AnyPanel]:
    exposed = "symbol:fundsvc_peak:max > 0 or on (symbol) sum by (symbol) (fundsvc_adl_positions) > 0"
    return [
        _how_many(
            "Dry",
            "Funds that hold nothing, although they held something within 8 hours or positions are open.",
            f"{BALANCE} == 0 and on (symbol) ({exposed})",
            "FundDry",
        ),
        _how_many(
            "Held back by the guard",
            "Funds that hold money and pay nothing, because they fell too far from their 8 h peak.",
            f"{BALANCE} > 0 and {PAYABLE} == 0",
            "FundGuardActive",
        ),
        _how_many(
            "Fell far",
            "Funds that are so far below their 8 h peak that an alert calls.",
            f"symbol:fundsvc_drawdown_ratio:max >= {limits.limit('FundDrawdown')} and on (symbol) {BALANCE}",
            "FundDrawdown",
        ),
        _how_many(
            "Below target",
            "Funds that are smaller than their target.",
            f"symbol:fundsvc_fullness_ratio:max < {limits.limit('FundBelowTarget')} and on (symbol) {BALANCE}",
            "FundBelowTarget",
        ),
        _how_many(
            "In ADL",
            "Contracts with an ADL order that is open.",
            f"symbol:fundsvc_adl_open_orders:max > 0 and on (symbol) {BALANCE}",
            "AdlOrderOpen",
        ),
        _how_many(
            "Uncovered",
            "Contracts with a loss that neither the fund nor ADL covered, and no surplus has repaid yet.",
            f"{OUTSTANDING} > 0",
            "FundUncovered",
        ),
    ]


def _how_many(title: str, description: str, expression: str, alert: str) -> AnyPanel:
    ask = Ask(f"count({expression}) or vector(0)", "contracts")
    return number(title, description, COUNT, ask, thresholds=limits.none_of(alert))


def _contracts() -> AnyPanel:
    amounts = {
        name: f"max by (symbol) (symbol:fundsvc_{name}:max)" for name in ("balance", "payable", "peak", "target", "outstanding")
    }
    return contracts(
        "Funds",
        "Each contract's fund, the emptiest beside its target first. A contract leads to its own dashboard.",
        BALANCE,
        Column("State", state(".+"), "none", words=STATES),
        Column("Balance", amounts["balance"], thresholds=limits.bad_until("FundDry")),
        Column("Moved", "max by (symbol) (delta(symbol:fundsvc_balance:max[$__range]))"),
        Column("Payable", amounts["payable"], thresholds=limits.bad_until("FundGuardActive")),
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
            "Fell most",
            "Funds that lost most in the time shown, five of each currency.",
            MONEY,
            Ask(f"bottomk by (currency) (5, {moved} < 0)", "{{symbol}} {{currency}}"),
        ),
        bars(
            "Rose most",
            "Funds that gained most in the time shown, five of each currency.",
            MONEY,
            Ask(f"topk by (currency) (5, {moved} > 0)", "{{symbol}} {{currency}}"),
        ),
        bars(
            "Deepest below their peak",
            "How far funds are below their highest balance of 8 hours.",
            SHARE,
            Ask(f"topk(10, symbol:fundsvc_drawdown_ratio:max and on (symbol) {BALANCE})", "{{symbol}}"),
            thresholds=limits.bad_from("FundDrawdown"),
        ),
    ]
    return [leading_to_contracts(panel, CONTRACT) for panel in shown]


def _sums() -> list[AnyPanel]:
    return [
        number(
            "Held",
            "What all funds of a currency hold. No fund pays for another's contract: the sum is for show.",
            MONEY,
            Ask(f"currency:fundsvc_balance:sum{{{CHOSEN}}}", "{{currency}}"),
            width=HALF,
        ),
        number(
            "Outstanding",
            "Losses of all contracts of a currency that nobody covered and no surplus has repaid yet.",
            MONEY,
            Ask(f"currency:fundsvc_outstanding:sum{{{CHOSEN}}}", "{{currency}}"),
            thresholds=limits.bad_from("FundUncovered"),
            width=HALF,
        ),
        lines(
            "Funds by state",
            "How many funds are in each state.",
            COUNT,
            Ask(f"sum by (state) (max by (symbol, state) (fundsvc_fund_state and on (symbol) {BALANCE}))", "{{state}}"),
            stacked=True,
            width=THIRD,
        ),
        lines(
            "Credited and paid an hour",
            "Surpluses and refunds that joined the funds of a currency; shortfalls that left them.",
            MONEY,
            Ask(flow("fundsvc_credited_total", "currency", CHOSEN), "credited {{currency}}"),
            Ask(f"-{flow('fundsvc_paid_total', 'currency', CHOSEN)}", "paid {{currency}}"),
            width=THIRD,
        ),
        lines(
            "Beyond the funds an hour",
            "Losses that funds could not pay, what ADL recovered of them, and what surpluses repaid of the rest.",
            MONEY,
            Ask(flow("fundsvc_uncovered_total", "currency", CHOSEN), "uncovered {{currency}}"),
            Ask(flow("fundsvc_recovered_total", "currency", CHOSEN), "recovered {{currency}}"),
            Ask(flow("fundsvc_repaid_total", "currency", CHOSEN), "repaid {{currency}}"),
            width=THIRD,
        ),
    ]


def _alerts() -> AnyPanel:
    return rows(
        "Alerts",
        "What calls now, or is about to. The runbook has a section on each, by its name.",
        'ALERTS{team=~"risk|operations"}',
        "alertname",
        "alertstate",
        "severity",
        "symbol",
        "partition",
        "instance",
    )
