"""The fund of one contract."""

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
    Ask,
    lines,
    number,
    states,
)
from promql import flow, grown, pace

OF = 'symbol="$symbol"'


def dashboard() -> Dashboard:
    """The dashboard of one contract, by its symbol."""
    return board(
        CONTRACT,
        "Insurance fund of one contract",
        "A contract's fund beside its peak and its target, what moved it, its ADL orders, and whether its ledger holds.",
        "risk",
        choices=[choice("symbol", "Contract", "fundsvc_balance", several=False)],
        orders_of="$symbol",
        rows={"Now": _now(), "Balance": _balance(), "ADL": _adl(), "Ledger": _ledger()},
    )


def _amount(name: str) -> Ask:
    return Ask(f"symbol:fundsvc_{name}:max{{{OF}}}", f"{name} {{{{currency}}}}")


def _now() -> list[AnyPanel]:
    return [
        number(
            "State",
            "ok; warning: guard near or below target; ADL: an order is open; uncovered: something is outstanding.",
            "none",
            Ask(state("$symbol"), "{{symbol}}"),
            meanings=STATES,
        ),
        number("Balance", "What the fund holds.", MONEY, _amount("balance"), thresholds=limits.bad_until("FundDry")),
        number(
            "Payable",
            "What the fund may pay now: its balance down to the line of its guard.",
            MONEY,
            _amount("payable"),
            thresholds=limits.bad_until("FundGuardActive"),
        ),
        number(
            "Outstanding",
            "Losses that nobody covered and no surplus has repaid yet.",
            MONEY,
            _amount("outstanding"),
            thresholds=limits.bad_from("FundUncovered"),
        ),
        number(
            "Open orders",
            "ADL orders that are open.",
            COUNT,
            Ask(f"symbol:fundsvc_adl_open_orders:max{{{OF}}}", "orders"),
            thresholds=limits.bad_from("AdlOrderOpen"),
        ),
        number(
            "Oldest open order",
            "How long the oldest open ADL order has been open; 0 when none is.",
            SECONDS,
            Ask(f"symbol:fundsvc_adl_oldest_open_seconds:max{{{OF}}}", "age"),
            thresholds=limits.bad_from("AdlOrderOpenTooLong"),
        ),
        number(
            "Drawdown",
            "How far the balance is below its highest of 8 hours.",
            SHARE,
            Ask(f"symbol:fundsvc_drawdown_ratio:max{{{OF}}}", "drawdown"),
            thresholds=limits.bad_from("FundDrawdown"),
            width=QUARTER,
        ),
        number(
            "Target",
            "The size that the fund should have, by the rule that the configuration names.",
            MONEY,
            _amount("target"),
            width=QUARTER,
        ),
        number(
            "Fullness",
            "Balance beside target.",
            SHARE,
            Ask(f"symbol:fundsvc_fullness_ratio:max{{{OF}}}", "fullness"),
            thresholds=limits.bad_until("FundBelowTarget"),
            width=QUARTER,
        ),
        number(
            "Leverage cap",
            "The highest leverage that this fullness recommends; nothing enforces it.",
            MULTIPLE,
            Ask(f"max by (symbol) (fundsvc_leverage_cap{{{OF}}})", "cap"),
            width=QUARTER,
        ),
    ]


def _balance() -> list[AnyPanel]:
    return [
        lines(
            "Balance",
            "The fund, the highest it was within 8 hours, the size it should have, and what it may pay now.",
            MONEY,
            *map(_amount, ("balance", "peak", "target", "payable")),
            width=WHOLE,
        ),
        states(
            "State",
            "When the fund was ok, near or below its target or its guard, in ADL, or left something uncovered.",
            Ask(state("$symbol"), "{{symbol}}"),
            meanings=STATES,
        ),
        _moved(
            "What moved it an hour",
            "Surpluses and refunds that joined it; shortfalls that left it.",
            "credited",
            "-paid",
            "refunded",
        ),
        _moved(
            "Beyond it an hour",
            "Losses that it could not pay, what ADL recovered of them, and what surpluses repaid of the rest.",
            "uncovered",
            "recovered",
            "repaid",
        ),
        lines(
            "Outstanding",
            "Losses that nobody covered and no surplus has repaid yet.",
            MONEY,
            _amount("outstanding"),
            thresholds=limits.bad_from("FundUncovered"),
            width=THIRD,
        ),
        lines(
            "Drawdown",
            "How far the balance is below its highest of 8 hours.",
            SHARE,
            Ask(f"symbol:fundsvc_drawdown_ratio:max{{{OF}}}", "drawdown"),
            thresholds=limits.bad_from("FundDrawdown"),
        ),
        lines(
            "Fullness",
            "Balance beside target.",
            SHARE,
            Ask(f"symbol:fundsvc_fullness_ratio:max{{{OF}}}", "fullness"),
            thresholds=limits.bad_until("FundBelowTarget"),
        ),
    ]


def _moved(title: str, description: str, *flows: str, width: int = THIRD) -> AnyPanel:
    """Flows an hour; one that leaves the fund is named with a minus and shown below zero."""

    def ask(name: str) -> Ask:
        counter = f"fundsvc_{name.removeprefix('-')}_total"
        sign = "-" if name.startswith("-") else ""
        return Ask(sign + flow(counter, "currency", OF), f"{name.removeprefix('-')} {{{{currency}}}}")

    return lines(title, description, MONEY, *map(ask, flows), width=width)


def _adl() -> list[AnyPanel]:
    return [
        lines(
            "Orders in the time shown",
            "ADL orders that came into each state, counted over the time shown.",
            COUNT,
            Ask(grown("fundsvc_adl_orders_total", "state", OF), "{{state}}"),
            width=THIRD,
        ),
        lines(
            "Oldest open order",
            "How long the oldest open ADL order has been open; 0 when none is.",
            SECONDS,
            Ask(f"symbol:fundsvc_adl_oldest_open_seconds:max{{{OF}}}", "age"),
            thresholds=limits.bad_from("AdlOrderOpenTooLong"),
            width=THIRD,
        ),
        lines(
            "Open positions",
            "Positions in the ADL book, from which traders are ranked.",
            COUNT,
            Ask(f"max by (side) (fundsvc_adl_positions{{{OF}}})", "{{side}}"),
            width=THIRD,
        ),
        lines(
            "Lots a second",
            "Lots that ADL orders needed, and lots executed for them.",
            RATE,
            Ask(pace("fundsvc_adl_lots_needed_total", of=OF), "needed"),
            Ask(pace("fundsvc_adl_lots_taken_total", of=OF), "taken"),
        ),
        _moved(
            "Overshoot an hour",
            "What completed orders took beyond what they needed: refunded to the fund.",
            "adl_overshoot",
            width=HALF,
        ),
    ]


def _ledger() -> list[AnyPanel]:
    return [
        number(
            "Audit",
            "Whether everything held when the ledger was last recomputed.",
            "none",
            Ask(f"min by (symbol) (fundsvc_audit_success{{{OF}}})", "{{symbol}}"),
            thresholds=limits.failing("AuditFailed"),
            meanings=HOLDS,
            width=QUARTER,
        ),
        number(
            "Audited",
            "How long ago the ledger was last found good to its end.",
            SECONDS,
            Ask(f"time() - max by (symbol) (fundsvc_audit_last_timestamp_seconds{{{OF}}})", "age"),
            thresholds=limits.bad_from("AuditStale"),
            width=QUARTER,
        ),
        number(
            "Audited from its beginning",
            "How long ago the ledger was last found good from entry 1 on.",
            SECONDS,
            Ask(f"time() - max by (symbol) (fundsvc_audit_full_timestamp_seconds{{{OF}}})", "age"),
            thresholds=limits.bad_from("FullAuditStale"),
            width=QUARTER,
        ),
        number(
            "Conservation error",
            "Uncovered losses less what was recovered, repaid, is outstanding or open in ADL, in atoms: 0 is right.",
            COUNT,
            Ask(f"max by (symbol) (abs(fundsvc_conservation_error_atoms{{{OF}}}))", "atoms"),
            thresholds=limits.bad_from("ConservationError"),
            width=QUARTER,
        ),
        lines(
            "Entries a second",
            "Ledger entries, by what they do.",
            RATE,
            Ask(pace("fundsvc_entries_total", "kind", OF), "{{kind}}"),
            stacked=True,
        ),
        lines(
            "Duplicates a second",
            "Events ignored because their sequence was settled before.",
            RATE,
            Ask(f"symbol:fundsvc_duplicates:rate5m{{{OF}}}", "duplicates"),
            thresholds=limits.bad_from("DuplicatesStorm"),
        ),
    ]
