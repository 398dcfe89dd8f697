"""ADL: which orders are open, how long orders take, what they recover and what they leave."""

import limits
from board import ADL, CONTRACT, board, choice
from funds import STATES, state
from grafana_foundation_sdk.builders.dashboard import Dashboard
from panels import COUNT, MONEY, RATE, SECONDS, THIRD, AnyPanel, Ask, Column, contracts, lines, number
from promql import flow, grown, pace, percentile

CHOSEN = 'symbol=~"$symbol"'
OPEN = f"symbol:fundsvc_adl_open_orders:max{{{CHOSEN}}}"
OLDEST = f"symbol:fundsvc_adl_oldest_open_seconds:max{{{CHOSEN}}}"


def dashboard() -> Dashboard:
    """The dashboard of ADL orders."""
    return board(
        ADL,
        "ADL",
        "Automatic deleveraging: which orders are open, how long they take, what they recover and what they leave uncovered.",
        "risk",
        choices=[choice("symbol", "Contract", "fundsvc_balance")],
        orders_of="$symbol",
        rows={"Now": _now(), "Contracts": [_contracts()], "Orders": _orders(), "Money": _money(), "Books": _books()},
    )


def _now() -> list[AnyPanel]:
    return [
        number(
            "Open orders",
            "ADL orders that are open.",
            COUNT,
            Ask(f"sum({OPEN})", "orders"),
            thresholds=limits.bad_from("AdlOrderOpen"),
        ),
        number(
            "Contracts in ADL",
            "Contracts with an ADL order that is open.",
            COUNT,
            Ask(f"count({OPEN} > 0) or vector(0)", "contracts"),
            thresholds=limits.none_of("AdlOrderOpen"),
        ),
        number(
            "Oldest open order",
            "How long the oldest open order has been open; 0 when none is.",
            SECONDS,
            Ask(f"max({OLDEST})", "age"),
            thresholds=limits.bad_from("AdlOrderOpenTooLong"),
        ),
        number("Opened", "Orders that were opened in the time shown.", COUNT, _came_to("open")),
        number("Done", "Orders whose lots were all executed, in the time shown.", COUNT, _came_to("done")),
        number(
            "Uncovered",
            "Orders that ended with a rest that nobody covered, in the time shown.",
            COUNT,
            _came_to("uncovered"),
            thresholds=limits.none_of("FundUncovered"),
        ),
    ]


def _came_to(order_state: str) -> Ask:
    counted = grown("fundsvc_adl_orders_total", of=f'state="{order_state}", {CHOSEN}')
    return Ask(f"{counted} or vector(0)", "orders")


def _contracts() -> AnyPanel:
    lots = {name: grown(f"fundsvc_adl_lots_{name}_total", "symbol") for name in ("needed", "taken")}
    return contracts(
        "Contracts",
        "Each contract's orders in the time shown, the oldest open one first. A contract leads to its own dashboard.",
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
            "ADL orders that are open, of contracts that have any.",
            COUNT,
            Ask(f"{OPEN} > 0", "{{symbol}}"),
            stacked=True,
            width=THIRD,
        ),
        lines(
            "Oldest open order",
            "How long each contract's oldest open order has been open, where there is one.",
            SECONDS,
            Ask(f"{OLDEST} > 0", "{{symbol}}"),
            thresholds=limits.bad_from("AdlOrderOpenTooLong"),
            width=THIRD,
        ),
        lines(
            "From shortfall to end",
            "How long orders of all contracts took until they were done or uncovered.",
            SECONDS,
            Ask(percentile("fundsvc_adl_seconds", 0.5), "half of them"),
            Ask(percentile("fundsvc_adl_seconds", 0.99), "99 of 100"),
            thresholds=limits.bad_from("AdlOrderOpenTooLong"),
            width=THIRD,
        ),
        lines(
            "Orders an hour",
            "Orders that came into each state.",
            COUNT,
            Ask(flow("fundsvc_adl_orders_total", "state", CHOSEN), "{{state}}"),
            width=THIRD,
        ),
        lines(
            "Lots a second",
            "Lots that orders needed, and lots executed for them.",
            RATE,
            Ask(pace("fundsvc_adl_lots_needed_total", of=CHOSEN), "needed"),
            Ask(pace("fundsvc_adl_lots_taken_total", of=CHOSEN), "taken"),
            width=THIRD,
        ),
        lines(
            "Rounds an hour",
            "Rounds of orders, beside orders: more rounds say that traders who were asked could not be deleveraged.",
            COUNT,
            Ask(flow("fundsvc_adl_rounds_total", "", CHOSEN), "rounds"),
            Ask(flow("fundsvc_adl_orders_total", "", f'state="open", {CHOSEN}'), "orders"),
            width=THIRD,
        ),
    ]


def _money() -> list[AnyPanel]:
    return [
        lines(
            "Asked for and recovered an hour",
            "Losses that funds could not pay, what ADL recovered of them and beyond, and what surpluses repaid of the rest.",
            MONEY,
            *(
                Ask(flow(f"fundsvc_{name}_total", "currency", CHOSEN), f"{name} {{{{currency}}}}")
                for name in ("uncovered", "recovered", "refunded", "repaid")
            ),
            width=THIRD,
        ),
        lines(
            "Overshoot an hour",
            "What completed orders took beyond what they needed: less than one lot's deficit each, and refunded.",
            MONEY,
            Ask(flow("fundsvc_adl_overshoot_total", "currency", CHOSEN), "{{currency}}"),
            width=THIRD,
        ),
        lines(
            "Outstanding",
            "Losses that neither funds nor ADL covered, and no surplus has repaid yet.",
            MONEY,
            Ask(f"symbol:fundsvc_outstanding:max{{{CHOSEN}}} > 0", "{{symbol}} {{currency}}"),
            thresholds=limits.bad_from("FundUncovered"),
            width=THIRD,
        ),
    ]


def _books() -> list[AnyPanel]:
    return [
        lines(
            "Open positions",
            "Positions in the ADL books of all contracts chosen, from which traders are ranked.",
            COUNT,
            Ask(f"sum by (side) (max by (symbol, side) (fundsvc_adl_positions{{{CHOSEN}}}))", "{{side}}"),
            width=THIRD,
        ),
        lines(
            "Ranking a side",
            "How long ranking a side of a book took for those who asked over HTTP.",
            SECONDS,
            Ask(percentile("fundsvc_adl_rank_seconds", 0.5), "half of them"),
            Ask(percentile("fundsvc_adl_rank_seconds", 0.99), "99 of 100"),
            width=THIRD,
        ),
        lines(
            "Age of the books over HTTP",
            "How old the books are that each process shows.",
            SECONDS,
            Ask("max by (instance) (fundsvc_adl_books_age_seconds)", "{{instance}}"),
            width=THIRD,
        ),
    ]
