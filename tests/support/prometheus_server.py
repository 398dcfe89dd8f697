"""A real Prometheus with the rules of deploy/ that scrapes each second."""

import asyncio
import os
import shutil
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import yaml
from eventually import eventually
from ports import free_port

DEPLOYED = Path(__file__).parents[2] / "deploy" / "prometheus"
NEEDED = ("prometheus", "promtool")

SCRAPE_SECONDS = 1

LOOK_SECONDS = SCRAPE_SECONDS / 2
"""The longest pause between two checks of what Prometheus has scraped."""

needs_prometheus = pytest.mark.skipif(
    any(shutil.which(program) is None for program in NEEDED) and os.environ.get("CI") != "true",
    reason="prometheus or promtool is missing: scripts/prometheus describes the installation",
)


class Prometheus:
    """A running Prometheus at a URL."""

    def __init__(self, http, url):
        self._http = http
        self.url = url

    async def ready(self):
        try:
            async with self._http.get("/-/ready") as answer:
                return answer.status == 200
        except aiohttp.ClientConnectionError:
            return False

    async def get(self, path, **parameters):
        async with self._http.get(f"/api/v1/{path}", params=parameters) as answer:
            body = await answer.json()
            assert body["status"] == "success", body
            return body["data"]

    async def query(self, expression):
        """Returns the labels and the current value of each series of an instant vector query."""
        series = (await self.get("query", query=expression))["result"]
        return [(one["metric"], float(one["value"][1])) for one in series]

    async def firing(self):
        """Returns the firing alerts by name and, if present, symbol."""
        alerts = (await self.get("alerts"))["alerts"]
        return {
            (alert["labels"]["alertname"], alert["labels"].get("symbol")): alert
            for alert in alerts
            if alert["state"] == "firing"
        }


@asynccontextmanager
async def prometheus(directory, targets):
    """Runs Prometheus as deploy/ configures it, with these jobs (addresses by name) and its data in the directory."""
    config = yaml.safe_load((DEPLOYED / "prometheus.yml").read_text())
    config["global"] |= dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), f"{SCRAPE_SECONDS}s")
    config["rule_files"] = [str(DEPLOYED / name) for name in config["rule_files"]]
    config["scrape_configs"] = [
        {"job_name": job, "static_configs": [{"targets": addresses}]} for job, addresses in targets.items()
    ]
    del config["alerting"]
    path = directory / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    process = await asyncio.create_subprocess_exec(
        "prometheus",
        f"--config.file={path}",
        f"--storage.tsdb.path={directory / 'prometheus'}",
        f"--web.listen-address={address}",
        "--log.level=error",
    )
    try:
        async with aiohttp.ClientSession(f"http://{address}") as http:
            server = Prometheus(http, f"http://{address}")
            await eventually(server.ready)
            yield server
    finally:
        process.terminate()
        assert await process.wait() == 0
