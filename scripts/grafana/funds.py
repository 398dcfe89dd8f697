"""Queries and value mappings of funds for several dashboards."""

from panels import words

STATES = words(("ok", "green"), ("warning", "orange"), ("ADL", "purple"), ("uncovered", "red"))
"""The words for the numbers of `state`."""

HOLDS = words(("differs", "red"), ("holds", "green"))
"""The words for the result of an audit."""


def state(symbols: str) -> str:
    """Returns a query for the states of contracts as numbers."""

    def in_state(name: str) -> str:
        return f'fundsvc_fund_state{{state="{name}", symbol=~"{symbols}"}}'

    ok, warning, adl, uncovered = map(in_state, ("ok", "warning", "adl", "uncovered"))
    return f"max by (symbol) (0 * {ok} or {warning} or 2 * {adl} or 3 * {uncovered})"
