"""The dashboard of ADL: open orders, durations, recovered and uncovered amounts."""

import limits
from board import ADL, CONTRACT, board, choice
from funds import STATES, state
from grafana_foundation_sdk.builders.dashboard import Dashboard
from panels import COUNT, MONEY, RATE, SECONDS, THIRD, AnyPanel, Column, Query, contracts, lines, number
from promql import flow, grown, pace, percentile

CHOSEN = 'symbol=~"$symbol"'
OPEN = f"symbol:fundsvc_adl_open_orders:max{{{CHOSEN}}}"
OLDEST = f"symbol:fundsvc_adl_oldest_open_seconds:max{{{CHOSEN}}}"


def dashboard() -> Dashboard:
    """Returns the dashboard of ADL orders."""
    return board(
        ADL,
        "ADL",
        "Auto-deleveraging: open orders, their durations, recovered and uncovered amounts.",
        "risk",
        choices=[choice("symbol", "Contract", "fundsvc_balance")],
        orders_of="$symbol",
        rows={
            "Now": _now(),
            "Contracts": [_contracts()],
            "Orders": _orders(),
            "Announcements": _announcements(),
            "Money": _money(),
            "Books": _books(),
        },
    )


def _now() -> list[AnyPanel]:
    return [
        number(
            "Open orders",
            "Open ADL orders.",
            COUNT,
            Query(f"sum({OPEN})", "orders"),
            thresholds=limits.bad_from("AdlOrderOpen"),
        ),
        number(
            "Contracts in ADL",
            "Contracts with an open ADL order.",
            COUNT,
            Query(f"count({OPEN} > 0) or vector(0)", "contracts"),
            thresholds=limits.none_of("AdlOrderOpen"),
        ),
        number(
            "Oldest open order",
            "Age of the oldest open order; 0 without one.",
            SECONDS,
            Query(f"max({OLDEST})", "age"),
            thresholds=limits.bad_from("AdlOrderOpenTooLong"),
        ),
        number("Opened", "Orders opened in the time range.", COUNT, _came_to("open")),
        number("Done", "Orders completed in the time range.", COUNT, _came_to("done")),
        number(
            "Uncovered",
            "Orders that ended uncovered in the time range.",
            COUNT,
            _came_to("uncovered"),
            thresholds=limits.none_of("FundUncovered"),
        ),
    ]


def _came_to(order_state: str) -> Query:
    counted = grown("fundsvc_adl_orders_total", of=f'state="{order_state}", {CHOSEN}')
    return Query(f"{counted} or vector(0)", "orders")


def _contracts() -> AnyPanel:
    lots = {name: grown(f"fundsvc_adl_lots_{name}_total", "symbol") for name in ("needed", "taken")}
    return contracts(
        "Contracts",
        "Orders per contract in the time range, the oldest open order first. The contract links to its dashboard.",
        f"symbol:fundsvc_balance:max{{{CHOSEN}}}",
        Column("State", state("$symbol"), "none", words=STATES),
        Column("Open orders", "symbol:fundsvc_adl_open_orders:max", COUNT, limits.bad_from("AdlOrderOpen")),
        Column("Oldest open", "symbol:fundsvc_adl_oldest_open_seconds:max", SECONDS, limits.bad_from("AdlOrderOpenTooLong")),
        Column("Opened", grown("fundsvc_adl_orders_total", "symbol", 'state="open"'), COUNT),
        Column("Lots needed", lots["needed"], COUNT),
        Column("Lots taken", lots["taken"], COUNT),
        Column("Rounds", grown("fundsvc_adl_rounds_total", "symbol"), COUNT),
        Column("Recovered", grown("fundsvc_recovered_total", "symbol")),
        Column("Outstanding", "max by (symbol) (symbol:fundsvc_outstanding:max)", thresholds=limits.bad_from("FundUncovered")),
        sort="Oldest open",
        descending=True,
        link=CONTRACT,
    )


def _orders() -> list[AnyPanel]:
    return [
        lines(
            "Open orders",
            "Open ADL orders by contract.",
            COUNT,
            Query(f"{OPEN} > 0", "{{symbol}}"),
            stacked=True,
            width=THIRD,
        ),
        lines(
            "Oldest open order",
            "Age of the oldest open order by contract.",
            SECONDS,
            Query(f"{OLDEST} > 0", "{{symbol}}"),
            thresholds=limits.bad_from("AdlOrderOpenTooLong"),
            width=THIRD,
        ),
        lines(
            "Duration of orders",
            "Time from the shortfall to the end of the order, over all contracts.",
            SECONDS,
            Query(percentile("fundsvc_adl_seconds", 0.5), "median"),
            Query(percentile("fundsvc_adl_seconds", 0.99), "99th percentile"),
            thresholds=limits.bad_from("AdlOrderOpenTooLong"),
            width=THIRD,
        ),
        lines(
            "Orders per hour",
            "Orders that entered each state.",
            COUNT,
            Query(flow("fundsvc_adl_orders_total", "state", CHOSEN), "{{state}}"),
            width=THIRD,
        ),
        lines(
            "Lots per second",
            "Lots that orders needed, and lots executed for them.",
            RATE,
            Query(pace("fundsvc_adl_lots_needed_total", of=CHOSEN), "needed"),
            Query(pace("fundsvc_adl_lots_taken_total", of=CHOSEN), "taken"),
            width=THIRD,
        ),
        lines(
            "Rounds per hour",
            "Rounds and orders. More rounds than orders mean that allocations were not executed completely.",
            COUNT,
            Query(flow("fundsvc_adl_rounds_total", "", CHOSEN), "rounds"),
            Query(flow("fundsvc_adl_orders_total", "", f'state="open", {CHOSEN}'), "orders"),
            width=THIRD,
        ),
    ]


def _announcements() -> list[AnyPanel]:
    return [
        lines(
            "Unacknowledged rounds",
            "Announced rounds that the matching engine has not acknowledged, by partition.",
            COUNT,
            Query("max by (partition) (fundsvc_adl_unacknowledged_rounds)", "{{partition}}"),
            width=THIRD,
        ),
        lines(
            "Oldest unacknowledged round",
            "Time since the announcement of the oldest such round, by partition; 0 without one.",
            SECONDS,
            Query("partition:fundsvc_adl_unacknowledged_seconds:max", "{{partition}}"),
            thresholds=limits.bad_from("AdlRoundUnacknowledged"),
            width=THIRD,
        ),
        lines(
            "Repeated announcements in 10 minutes",
            "Announcements of rounds that the service repeated, by partition.",
            COUNT,
            Query("sum by (partition) (increase(fundsvc_adl_announced_again_total[10m]))", "{{partition}}"),
            width=THIRD,
        ),
    ]


def _money() -> list[AnyPanel]:
    return [
        lines(
            "Uncovered and recovered per hour",
            "Losses that funds could not pay, the part that ADL recovered, refunds, and the part that surpluses repaid.",
            MONEY,
            *(
                Query(flow(f"fundsvc_{name}_total", "currency", CHOSEN), f"{name} {{{{currency}}}}")
                for name in ("uncovered", "recovered", "refunded", "repaid")
            ),
            width=THIRD,
        ),
        lines(
            "Overshoot per hour",
            "Amounts that completed orders took beyond their need, less than the deficit of one lot each; they are refunded.",
            MONEY,
            Query(flow("fundsvc_adl_overshoot_total", "currency", CHOSEN), "{{currency}}"),
            width=THIRD,
        ),
        lines(
            "Outstanding",
            "Losses that neither funds nor ADL covered and no surplus has repaid yet.",
            MONEY,
            Query(f"symbol:fundsvc_outstanding:max{{{CHOSEN}}} > 0", "{{symbol}} {{currency}}"),
            thresholds=limits.bad_from("FundUncovered"),
            width=THIRD,
        ),
    ]


def _books() -> list[AnyPanel]:
    return [
        lines(
            "Open positions",
            "Positions in the ADL books of the selected contracts.",
            COUNT,
            Query(f"sum by (side) (max by (symbol, side) (fundsvc_adl_positions{{{CHOSEN}}}))", "{{side}}"),
            width=THIRD,
        ),
        lines(
            "Ranking a side",
            "Time to rank a side of a book for an HTTP request.",
            SECONDS,
            Query(percentile("fundsvc_adl_rank_seconds", 0.5), "median"),
            Query(percentile("fundsvc_adl_rank_seconds", 0.99), "99th percentile"),
            width=THIRD,
        ),
        lines(
            "Age of the books over HTTP",
            "Age of the books that each process shows.",
            SECONDS,
            Query("max by (instance) (fundsvc_adl_books_age_seconds)", "{{instance}}"),
            width=THIRD,
        ),
    ]
