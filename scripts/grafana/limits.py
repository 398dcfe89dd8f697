"""Thresholds of colours, read from the alert rules of deploy/prometheus, so that both agree."""

import re
from pathlib import Path

import yaml
from grafana_foundation_sdk.builders.dashboard import ThresholdsConfig
from grafana_foundation_sdk.models.dashboard import Threshold, ThresholdsMode

GOOD, PLAIN = "green", "text"
COLOURS = {"info": "blue", "warning": "orange", "critical": "red"}
"""Colours by severity."""

SMALLEST = 1e-10
"""The smallest amount of money. A colour starts at a value, not above it, so "above 0" starts here."""

_RULES = Path(__file__).parents[2] / "deploy" / "prometheus" / "alerts.yml"
_ALERTS = {rule["alert"]: rule for group in yaml.safe_load(_RULES.read_text())["groups"] for rule in group["rules"]}


def limit(alert: str) -> float:
    """Returns the number at the end of an alert's expression; parentheses may close after it."""
    found = re.search(r"(?:[<>]=?|==) ([\d.]+)\)*$", _ALERTS[alert]["expr"])
    assert found, f"{alert} does not end with a comparison with a number"
    return float(found[1])


def colour(alert: str) -> str:
    """Returns the colour of an alert's severity."""
    return COLOURS[_ALERTS[alert]["labels"]["severity"]]


def bad_from(*alerts: str) -> ThresholdsConfig:
    """Good below the first of these alerts; they are in the order of their limits."""
    return _steps((None, GOOD), *((limit(alert) or SMALLEST, colour(alert)) for alert in alerts))


def bad_until(*alerts: str) -> ThresholdsConfig:
    """Good above the last of these alerts; they are in the order of their limits."""
    ends = [limit(alert) or SMALLEST for alert in alerts]
    return _steps(*zip([None, *ends], [*map(colour, alerts), GOOD], strict=True))


def none_of(alert: str) -> ThresholdsConfig:
    """For counts of what an alert is about: good at 0."""
    return _steps((None, GOOD), (SMALLEST, colour(alert)))


def failing(alert: str) -> ThresholdsConfig:
    """For values that are 1 normally and 0 when the alert fires."""
    return _steps((None, colour(alert)), (1, GOOD))


def neither() -> ThresholdsConfig:
    """For values without a rating."""
    return _steps((None, PLAIN))


def _steps(*steps: tuple[float | None, str]) -> ThresholdsConfig:
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps([Threshold(value, name) for value, name in steps])
