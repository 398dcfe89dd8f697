"""The dashboards of deploy/grafana: written by scripts/grafana, of queries that parse and of metrics that there are."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_server import DEPLOYED, needs_prometheus

ROOT = Path(__file__).parents[1]
DASHBOARDS = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
RECORDED = {
    rule["record"]: rule["expr"]
    for group in yaml.safe_load((DEPLOYED / "recording.yml").read_text())["groups"]
    for rule in group["rules"]
}
PROMETHEUS_OWN = {"up", "ALERTS"}
VARIABLES = {"$__rate_interval": "1m", "$__range": "24h"}


def all_under(name, value):
    """What stands under this key, however deep."""
    if isinstance(value, dict):
        found = [value[name]] if name in value else []
        return found + [one for inner in value.values() for one in all_under(name, inner)]
    return [one for inner in value for one in all_under(name, inner)] if isinstance(value, list) else []


def expressions(path):
    """The PromQL of a dashboard, as Grafana sends it when all contracts, currencies and partitions are chosen."""

    def filled(expression):
        for variable, value in VARIABLES.items():
            expression = expression.replace(variable, value)
        return re.sub(r"\$(symbol|currency|partition)\b", ".+", expression)

    return sorted({filled(expression) for expression in all_under("expr", json.loads(path.read_text()))})


def metrics_in(expression):
    """The names of metrics: what no label, no function and no word of PromQL is."""
    bare = re.sub(r'\{[^}]*\}|"[^"]*"|\[[^]]*\]|\b(by|on)\s*\([^)]*\)', " ", expression)
    names = set(re.findall(r"(?<![\w:.])[A-Za-z_][\w:]*(?!\s*\(|[\w:])", bare))
    return names - {"and", "or", "unless", "by", "on"}


def documented_metrics():
    rows = re.findall(
        r"^\| (`fundsvc_[^|]*)\|[^|]*\| ([^|]*) \|$",
        (ROOT / "fundsvc" / "handbook" / "operations.md").read_text(),
        re.MULTILINE,
    )
    for names, text in rows:
        for name in re.findall(r"`(\w+)`", names):
            yield from [f"{name}_{part}" for part in ("bucket", "sum", "count")] if text.startswith("histogram") else [name]


def test_there_are_four():
    assert [path.stem for path in DASHBOARDS] == ["fundsvc-adl", "fundsvc-contract", "fundsvc-engine", "fundsvc-overview"]


def test_they_are_what_the_program_writes(tmp_path):
    subprocess.run([sys.executable, ROOT / "scripts" / "grafana", tmp_path], check=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        path.name: path.read_bytes() for path in DASHBOARDS
    }


@needs_prometheus
@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_query_parses(path, tmp_path):
    asked = expressions(path)
    assert "$" not in "".join(asked)
    rules = [{"record": f"query:{number}", "expr": expression} for number, expression in enumerate(asked)]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": path.stem, "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"SUCCESS: {len(rules)} rules found" in done.stdout


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_metric_is_recorded_or_told_in_the_readme(path):
    asked = set().union(*map(metrics_in, expressions(path)))
    assert asked
    assert asked <= {*documented_metrics(), *RECORDED, *PROMETHEUS_OWN}


def test_contracts_are_led_to_from_the_overview_and_from_adl():
    led = {path.stem: set(re.findall(r'"/d/([\w-]+)', path.read_text())) for path in DASHBOARDS}
    contract = {"fundsvc-contract"}
    assert led == {"fundsvc-overview": contract, "fundsvc-adl": contract, "fundsvc-contract": set(), "fundsvc-engine": set()}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_panel_says_what_it_shows_in_which_unit(path):
    board = json.loads(path.read_text())
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert panels
    assert all(panel["description"] and panel["fieldConfig"]["defaults"]["unit"] and panel["targets"] for panel in panels)
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_grafanas_own_types_know_all_of_it(path):
    register_default_plugins()
    known = Dashboard.from_json(json.loads(path.read_text()))
    assert json.loads(JSONEncoder().encode(known)) == json.loads(path.read_text())


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_fill_the_grid_and_do_not_overlap(path):
    places = [panel["gridPos"] for panel in json.loads(path.read_text())["panels"]]
    cells = [(at["x"] + x, at["y"] + y) for at in places for x in range(at["w"]) for y in range(at["h"])]
    height = max(y for _, y in cells) + 1
    assert sorted(cells) == [(x, y) for x in range(24) for y in range(height)]
