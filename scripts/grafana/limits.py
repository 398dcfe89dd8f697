"""Where colours change: where the alerts of deploy/prometheus begin, read from the rules, so that neither can say otherwise."""

import re
from pathlib import Path

import yaml
from grafana_foundation_sdk.builders.dashboard import ThresholdsConfig
from grafana_foundation_sdk.models.dashboard import Threshold, ThresholdsMode

GOOD, PLAIN = "green", "text"
COLOURS = {"info": "blue", "warning": "orange", "critical": "red"}
"""By severity."""

SMALLEST = 1e-10
"""A colour begins at a value, not above it: more than nothing begins at the smallest amount of money that there is."""

_RULES = Path(__file__).parents[2] / "deploy" / "prometheus" / "alerts.yml"
_ALERTS = {rule["alert"]: rule for group in yaml.safe_load(_RULES.read_text())["groups"] for rule in group["rules"]}


def limit(alert: str) -> float:
    """The number that an alert compares with at the end of its expression."""
    found = re.search(r"(?:[<>]=?|==) ([\d.]+)$", _ALERTS[alert]["expr"])
    assert found, f"{alert} does not end with a comparison with a number"
    return float(found[1])


def colour(alert: str) -> str:
    """The colour of what an alert calls for."""
    return COLOURS[_ALERTS[alert]["labels"]["severity"]]


def bad_from(*alerts: str) -> ThresholdsConfig:
    """Good until the first of these alerts begins; they are in the order of their limits."""
    return _steps((None, GOOD), *((limit(alert) or SMALLEST, colour(alert)) for alert in alerts))


def bad_until(*alerts: str) -> ThresholdsConfig:
    """Good once the last of these alerts ends; they are in the order of their limits."""
    ends = [limit(alert) or SMALLEST for alert in alerts]
    return _steps(*zip([None, *ends], [*map(colour, alerts), GOOD], strict=True))


def none_of(alert: str) -> ThresholdsConfig:
    """For how many there are of what an alert calls for: good while there are none."""
    return _steps((None, GOOD), (SMALLEST, colour(alert)))


def failing(alert: str) -> ThresholdsConfig:
    """For what is 1 when all is well and 0 when this alert calls."""
    return _steps((None, colour(alert)), (1, GOOD))


def neither() -> ThresholdsConfig:
    """For what is neither good nor bad."""
    return _steps((None, PLAIN))


def _steps(*steps: tuple[float | None, str]) -> ThresholdsConfig:
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps([Threshold(value, name) for value, name in steps])
