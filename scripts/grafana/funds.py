"""What several dashboards ask of funds."""

from panels import words

STATES = words(("ok", "green"), ("warning", "orange"), ("ADL", "purple"), ("uncovered", "red"))
"""What the numbers of `state` mean."""

HOLDS = words(("differs", "red"), ("holds", "green"))
"""What the numbers of an audit's success mean."""


def state(symbols: str) -> str:
    """The states of contracts as numbers."""

    def told(name: str) -> str:
        return f'fundsvc_fund_state{{state="{name}", symbol=~"{symbols}"}}'

    return f"max by (symbol) (0 * {told('ok')} or {told('warning')} or 2 * {told('adl')} or 3 * {told('uncovered')})"
