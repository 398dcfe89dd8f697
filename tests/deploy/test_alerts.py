"""The rules of deploy/prometheus: cases of promtool for each alert, and a real Prometheus that scrapes a drained fund."""

import re
import subprocess
import time
from contextlib import asynccontextmanager
from itertools import chain
from pathlib import Path

import pytest
import takeovers
import yaml
from commands import engine_process, process
from conftest import with_section
from escalations import BEGINNING, SYMBOL
from eventually import eventually
from ledgers import fill, listing
from mutuals import POOL, some_life
from ports import free_port
from prometheus_server import DEPLOYED, LOOK_SECONDS, needs_prometheus, prometheus

from fundsvc.core.events import Fill, Rate
from fundsvc.mutual.codec import encode
from fundsvc.streams.client import open_client, pool_stream_key
from fundsvc.streams.producer import Producer

CASES = sorted((Path(__file__).parents[1] / "prometheus").glob("*.yml"))
RUNBOOK = (DEPLOYED.parents[1] / "fundsvc" / "handbook" / "runbook.md").read_text()


def rules_of(name):
    groups = yaml.safe_load((DEPLOYED / name).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in rules_of("alerts.yml")}
RECORDED = {rule["record"]: rule["expr"] for rule in rules_of("recording.yml")}


def promtool(*words):
    done = subprocess.run(["promtool", *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def metrics_in(expression):
    """Returns the metrics of an expression; recorded series are replaced by those of their rules."""
    names = re.findall(r"\b(?:\w+:fundsvc_|fundsvc_|fundsvc:)\w+(?::\w+)?", expression)
    return set(chain.from_iterable(metrics_in(RECORDED[name]) if name in RECORDED else {name} for name in names))


USED = set(
    chain.from_iterable(
        metrics_in(text) for rule in ALERTS.values() for text in (rule["expr"], rule["annotations"]["description"])
    )
)


@needs_prometheus
def test_promtool_accepts_the_rules():
    answer = promtool("check", "rules", "--lint-fatal", DEPLOYED / "recording.yml", DEPLOYED / "alerts.yml")
    assert answer.count("SUCCESS") == 2


@needs_prometheus
@pytest.mark.parametrize("cases", CASES, ids=lambda path: path.stem)
def test_alerts_fire_as_their_cases_expect(cases):
    assert "SUCCESS" in promtool("test", "rules", cases)


@pytest.mark.parametrize("name", ALERTS)
def test_each_alert_has_firing_and_silent_cases(name):
    groups = chain.from_iterable(yaml.safe_load(path.read_text())["tests"] for path in CASES)
    cases = [case for group in groups if group["name"].split(",")[0] == name for case in group["alert_rule_test"]]
    assert {case["alertname"] for case in cases} == {name}
    assert {bool(case["exp_alerts"]) for case in cases} == {True, False}


def test_each_alert_has_a_case_of_one_second_between_two_scrapes():
    groups = chain.from_iterable(yaml.safe_load(path.read_text())["tests"] for path in CASES)
    assert {group["name"] for group in groups} >= {f"{name}, for one second" for name in ALERTS}


@pytest.mark.parametrize("name", ALERTS)
def test_each_alert_has_labels_annotations_and_a_runbook_section(name):
    labels, annotations = ALERTS[name]["labels"], ALERTS[name]["annotations"]
    assert labels.keys() == {"severity", "team"}
    assert labels["severity"] in {"critical", "warning", "info"}
    assert labels["team"] in {"risk", "operations"}
    assert annotations.keys() == {"summary", "description", "runbook_url"}
    assert annotations["runbook_url"] == "{{ $externalLabels.runbook }}#" + name.lower()
    assert RUNBOOK[RUNBOOK.index("## Alerts") :].count(f"\n### {name}\n") == 1


def test_every_alert_section_of_the_runbook_belongs_to_an_alert():
    assert set(re.findall(r"^### (\w+)$", RUNBOOK[RUNBOOK.index("## Alerts") :], re.MULTILINE)) == ALERTS.keys()


@pytest.fixture
def config(config):
    return with_section(config, "http", port=free_port())


@asynccontextmanager
async def watched(config, directory, **overrides):
    """Yields a Prometheus that scrapes an engine and an API in separate processes, and a producer of events.

    The engine settles a pool, too. `overrides` are variables of its environment.
    """
    pools = directory / "pools.toml"
    pools.write_text(f"[mutual.pools.{POOL}]\n")
    overrides |= {"FUNDSVC_CONFIG": str(pools)}
    engine, api = free_port(), free_port()
    targets = {"fundsvc-engine": [f"127.0.0.1:{engine}"], "fundsvc-api": [f"127.0.0.1:{api}"]}
    async with (
        engine_process(config, FUNDSVC_ENGINE_PORT=str(engine), FUNDSVC_ENGINE_TARGET_SECONDS="1", **overrides),
        process(config, "api", FUNDSVC_HTTP_PORT=str(api)),
        open_client(config.stream) as client,
        prometheus(directory, targets) as server,
    ):
        producer = Producer(client, config.stream.partitions)
        await producer.append_to(pool_stream_key(POOL), "json", [encode(some_life())])
        yield server, producer


def liquidation(seq, lots, price):
    """Returns a fill that closes a long with the bankruptcy price 39000."""
    return Fill(SYMBOL, seq, "sell", lots, str(price), "39000", time.time_ns() // 1_000_000, f"trade-{seq}")


@needs_prometheus
async def test_prometheus_alerts_on_a_drained_fund(config, tmp_path):
    async with watched(config, tmp_path) as (server, producer):

        async def shows(expression, value):
            return [found for _, found in await server.query(expression)] == [value]

        async def fires(*names):
            firing = await server.firing()
            return firing if firing.keys() == set(names) else None

        await producer.append([Rate("XBT", "60000", time.time_ns() // 1_000_000)])
        held = takeovers.takeover(2, 10, ts=time.time_ns() // 1_000_000)
        await producer.append([takeovers.LISTING, takeovers.FUNDED, takeovers.mark(50), held])
        await producer.append([*BEGINNING, listing("EMPTY"), liquidation(1, 1000, 39100)])
        await eventually(lambda: shows(f'symbol:fundsvc_balance:max{{symbol="{SYMBOL}"}}', 100.0), 40, LOOK_SECONDS)
        refused = {("MutualEventsRejected", None)}
        await eventually(lambda: fires(*refused), 40, LOOK_SECONDS)

        refilled = liquidation(3, 1000, 39050)
        await producer.append([liquidation(2, 100, 37000), refilled, fill("EMPTY", 1, -7), fill("UNKNOWN", 1, 1)])
        dry = {("FundDry", SYMBOL), ("FundDrawdown", SYMBOL), ("FundUncovered", "EMPTY"), ("EventsRejected", None), *refused}
        # The order of EMPTY has no candidate, so it opens and ends at once.
        opened = {("AdlOrderOpen", SYMBOL), ("AdlOrderOpen", "EMPTY")}
        firing = await eventually(lambda: fires(*dry, *opened), 40, LOOK_SECONDS)
        # No scrape sees the fund without a balance: it is dry within one transaction.
        assert firing["FundDry", SYMBOL]["annotations"] == {
            "summary": f"The fund of {SYMBOL} ran dry; its peak was 100 USDT",
            "description": "Payments took its last atom about 1 times within 5 minutes. Its balance is 50;"
            " the peak is of the last 8 hours. While it is dry, shortfalls go to ADL completely.",
            "runbook_url": "http://127.0.0.1:8080/docs/runbook#funddry",
        }
        summaries = {name: alert["annotations"]["summary"] for (name, _), alert in firing.items()}
        assert summaries["FundUncovered"] == "7 USDT of losses in EMPTY were not covered"
        fallen = firing["FundDrawdown", SYMBOL]["annotations"]["description"]
        assert fallen == "The peak is 100 USDT, the balance is 50; the threshold is 30%."

        missing = set(USED)

        async def all_metrics_of_alerts_exist():
            found = await server.query('count by (__name__) ({__name__=~"fundsvc_.*"})')
            missing.difference_update(metric["__name__"] for metric, _ in found)
            return not missing

        try:
            await eventually(all_metrics_of_alerts_exist, 40, LOOK_SECONDS)
        finally:
            assert missing == set()
