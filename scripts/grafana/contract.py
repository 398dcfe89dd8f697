"""The dashboard of one contract."""

import limits
from board import CONTRACT, board, choice
from funds import HOLDS, STATES, state
from grafana_foundation_sdk.builders.dashboard import Dashboard
from panels import (
    COUNT,
    HALF,
    MONEY,
    MULTIPLE,
    QUARTER,
    RATE,
    SECONDS,
    SHARE,
    THIRD,
    WHOLE,
    AnyPanel,
    Query,
    lines,
    number,
    states,
)
from promql import flow, grown, pace

OF = 'symbol="$symbol"'


def dashboard() -> Dashboard:
    """Returns the dashboard of one contract."""
    return board(
        CONTRACT,
        "Insurance fund of one contract",
        "The fund of a contract with its peak and target, its changes, its ADL orders, and the audit of its ledger.",
        "risk",
        choices=[choice("symbol", "Contract", "fundsvc_balance", several=False)],
        orders_of="$symbol",
        rows={"Now": _now(), "Balance": _balance(), "Inventory": _inventory(), "ADL": _adl(), "Ledger": _ledger()},
    )


def _amount(name: str) -> Query:
    return Query(f"symbol:fundsvc_{name}:max{{{OF}}}", f"{name} {{{{currency}}}}")


def _now() -> list[AnyPanel]:
    return [
        number(
            "State",
            "ok; warning: near the guard or below the target; ADL: an order is open; uncovered: an amount is outstanding.",
            "none",
            Query(state("$symbol"), "{{symbol}}"),
            meanings=STATES,
        ),
        number("Balance", "The balance of the fund.", MONEY, _amount("balance"), thresholds=limits.bad_until("FundDry")),
        number(
            "Payable",
            "The amount that the fund may pay now: balance minus reserve line.",
            MONEY,
            _amount("payable"),
            thresholds=limits.bad_until("FundGuardActive"),
        ),
        number(
            "Outstanding",
            "Uncovered losses that no surplus has repaid yet.",
            MONEY,
            _amount("outstanding"),
            thresholds=limits.bad_from("FundUncovered"),
        ),
        number(
            "Open orders",
            "Open ADL orders.",
            COUNT,
            Query(f"symbol:fundsvc_adl_open_orders:max{{{OF}}}", "orders"),
            thresholds=limits.bad_from("AdlOrderOpen"),
        ),
        number(
            "Oldest open order",
            "Age of the oldest open ADL order; 0 without one.",
            SECONDS,
            Query(f"symbol:fundsvc_adl_oldest_open_seconds:max{{{OF}}}", "age"),
            thresholds=limits.bad_from("AdlOrderOpenTooLong"),
        ),
        number(
            "Drawdown",
            "Share by which the balance is below its peak of 8 hours.",
            SHARE,
            Query(f"symbol:fundsvc_drawdown_ratio:max{{{OF}}}", "drawdown"),
            thresholds=limits.bad_from("FundDrawdown"),
            width=QUARTER,
        ),
        number(
            "Target",
            "The size that the fund should have under the configured rule.",
            MONEY,
            _amount("target"),
            width=QUARTER,
        ),
        number(
            "Fullness",
            "Balance divided by target.",
            SHARE,
            Query(f"symbol:fundsvc_fullness_ratio:max{{{OF}}}", "fullness"),
            thresholds=limits.bad_until("FundBelowTarget"),
            width=QUARTER,
        ),
        number(
            "Leverage cap",
            "The recommended leverage at this fullness; it is not enforced.",
            MULTIPLE,
            Query(f"max by (symbol) (fundsvc_leverage_cap{{{OF}}})", "cap"),
            width=QUARTER,
        ),
    ]


def _balance() -> list[AnyPanel]:
    return [
        lines(
            "Balance",
            "Balance, peak of 8 hours, target, and payable amount.",
            MONEY,
            *map(_amount, ("balance", "peak", "target", "payable")),
            width=WHOLE,
        ),
        states(
            "State",
            "The states of the fund over time.",
            Query(state("$symbol"), "{{symbol}}"),
            meanings=STATES,
        ),
        _moved(
            "Credits and payments per hour",
            "Surpluses and refunds that the fund received; shortfalls that it paid.",
            "credited",
            "-paid",
            "refunded",
        ),
        _moved(
            "Uncovered amounts per hour",
            "Losses that the fund could not pay, the part that ADL recovered, and the part that surpluses repaid.",
            "uncovered",
            "recovered",
            "repaid",
        ),
        lines(
            "Outstanding",
            "Uncovered losses that no surplus has repaid yet.",
            MONEY,
            _amount("outstanding"),
            thresholds=limits.bad_from("FundUncovered"),
            width=THIRD,
        ),
        lines(
            "Drawdown",
            "Largest share of each minute by which the balance is below its peak of 8 hours.",
            SHARE,
            Query(f"symbol:fundsvc_drawdown_ratio:max{{{OF}}}", "drawdown"),
            thresholds=limits.bad_from("FundDrawdown"),
            width=THIRD,
        ),
        lines(
            "Share of time without a balance",
            "Time with a balance of 0; a fund may run dry and be filled between two scrapes.",
            SHARE,
            Query(pace("fundsvc_dry_seconds_total", of=OF), "dry"),
            width=THIRD,
        ),
        lines(
            "Fullness",
            "Balance divided by target.",
            SHARE,
            Query(f"symbol:fundsvc_fullness_ratio:max{{{OF}}}", "fullness"),
            thresholds=limits.bad_until("FundBelowTarget"),
            width=THIRD,
        ),
    ]


def _moved(title: str, description: str, *flows: str, width: int = THIRD) -> AnyPanel:
    """Returns a panel of flows per hour; a name with a minus is a payment, shown below zero."""

    def query(name: str) -> Query:
        counter = f"fundsvc_{name.removeprefix('-')}_total"
        sign = "-" if name.startswith("-") else ""
        return Query(sign + flow(counter, "currency", OF), f"{name.removeprefix('-')} {{{{currency}}}}")

    return lines(title, description, MONEY, *map(query, flows), width=width)


def _inventory() -> list[AnyPanel]:
    return [
        lines(
            "Lots held",
            "Lots that the fund holds, by side; none while it holds nothing.",
            COUNT,
            Query(f"max by (side) (fundsvc_inventory_lots{{{OF}}})", "{{side}}"),
            width=THIRD,
        ),
        lines(
            "Equity and balance",
            "Balance, and balance plus the worth of the inventory at the mark.",
            MONEY,
            _amount("equity"),
            _amount("balance"),
            thresholds=limits.bad_until("EquityNegative"),
            width=THIRD,
        ),
        lines(
            "Unrealised P&L",
            "Worth of the inventory at the mark.",
            MONEY,
            _amount("unrealised_pnl"),
            width=THIRD,
        ),
        lines(
            "Age of the oldest tranche",
            "Time since the takeover of the oldest lots that the fund holds.",
            SECONDS,
            Query(f"time() - symbol:fundsvc_inventory_oldest_timestamp_seconds:min{{{OF}}}", "age"),
            thresholds=limits.bad_from("InventoryOld"),
            width=THIRD,
        ),
        lines(
            "Relief",
            "Open ADL orders that relieve the inventory; 1 while it needs relief and no position can be requested.",
            COUNT,
            Query(f"max by (symbol) (fundsvc_inventory_open_orders{{{OF}}})", "orders"),
            Query(f"symbol:fundsvc_inventory_unrelieved:max{{{OF}}}", "unrelieved"),
            width=THIRD,
        ),
        lines(
            "Inventory conservation error",
            "Lots taken over minus unwound, deleveraged, held and ordered lots; correct is 0.",
            COUNT,
            Query(f"max by (symbol) (abs(fundsvc_inventory_conservation_error_lots{{{OF}}}))", "lots"),
            thresholds=limits.bad_from("InventoryConservationError"),
            width=THIRD,
        ),
        lines(
            "Takeovers in the time range",
            "Outcomes: takeovers accepted, in part, or forced; executions by ADL; unwinds.",
            COUNT,
            Query(grown("fundsvc_takeover_outcomes_total", "outcome", OF), "{{outcome}}"),
        ),
        lines(
            "Lots by outcome in the time range",
            "The lots of these outcomes.",
            COUNT,
            Query(grown("fundsvc_takeover_lots_total", "outcome", OF), "{{outcome}}"),
        ),
    ]


def _adl() -> list[AnyPanel]:
    return [
        lines(
            "Orders in the time range",
            "ADL orders that entered each state within the time range.",
            COUNT,
            Query(grown("fundsvc_adl_orders_total", "state", OF), "{{state}}"),
            width=THIRD,
        ),
        lines(
            "Oldest open order",
            "Age of the oldest open ADL order; 0 without one.",
            SECONDS,
            Query(f"symbol:fundsvc_adl_oldest_open_seconds:max{{{OF}}}", "age"),
            thresholds=limits.bad_from("AdlOrderOpenTooLong"),
            width=THIRD,
        ),
        lines(
            "Open positions",
            "Positions in the ADL book.",
            COUNT,
            Query(f"max by (side) (fundsvc_adl_positions{{{OF}}})", "{{side}}"),
            width=THIRD,
        ),
        lines(
            "Lots per second",
            "Lots that ADL orders needed, and lots executed for them.",
            RATE,
            Query(pace("fundsvc_adl_lots_needed_total", of=OF), "needed"),
            Query(pace("fundsvc_adl_lots_taken_total", of=OF), "taken"),
        ),
        _moved(
            "Overshoot per hour",
            "Amounts that completed orders took beyond their need; they are refunded to the fund.",
            "adl_overshoot",
            width=HALF,
        ),
    ]


def _ledger() -> list[AnyPanel]:
    return [
        number(
            "Audit",
            "Result of the last recomputation of the ledger.",
            "none",
            Query(f"min by (symbol) (fundsvc_audit_success{{{OF}}})", "{{symbol}}"),
            thresholds=limits.failing("AuditFailed"),
            meanings=HOLDS,
            width=QUARTER,
        ),
        number(
            "Audited",
            "Time since the last audit without a difference to the end of the ledger.",
            SECONDS,
            Query(f"time() - max by (symbol) (fundsvc_audit_last_timestamp_seconds{{{OF}}})", "age"),
            thresholds=limits.bad_from("AuditStale"),
            width=QUARTER,
        ),
        number(
            "Audited from entry 1",
            "Time since the last audit without a difference from entry 1.",
            SECONDS,
            Query(f"time() - max by (symbol) (fundsvc_audit_full_timestamp_seconds{{{OF}}})", "age"),
            thresholds=limits.bad_from("FullAuditStale"),
            width=QUARTER,
        ),
        number(
            "Conservation error",
            "Uncovered losses minus recovered, repaid, outstanding and open amounts, in atoms; correct is 0.",
            COUNT,
            Query(f"max by (symbol) (abs(fundsvc_conservation_error_atoms{{{OF}}}))", "atoms"),
            thresholds=limits.bad_from("ConservationError"),
            width=QUARTER,
        ),
        lines(
            "Entries per second",
            "Ledger entries by kind.",
            RATE,
            Query(pace("fundsvc_entries_total", "kind", OF), "{{kind}}"),
            stacked=True,
        ),
        lines(
            "Duplicates per second",
            "Events that had been settled before.",
            RATE,
            Query(f"symbol:fundsvc_duplicates:rate5m{{{OF}}}", "duplicates"),
            thresholds=limits.bad_from("DuplicatesStorm"),
        ),
    ]
