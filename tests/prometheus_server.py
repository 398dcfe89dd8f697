"""A real Prometheus, with the rules of deploy/, that asks what it scrapes each second."""

import asyncio
import os
import shutil
import socket
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import yaml
from eventually import eventually

DEPLOYED = Path(__file__).parents[1] / "deploy" / "prometheus"
NEEDED = ("prometheus", "promtool")

needs_prometheus = pytest.mark.skipif(
    any(shutil.which(program) is None for program in NEEDED) and os.environ.get("CI") != "true",
    reason="there is no prometheus or no promtool: scripts/prometheus says how to get them",
)


def free_port():
    """A port that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Prometheus:
    """A running Prometheus."""

    def __init__(self, http):
        self._http = http

    async def ready(self):
        try:
            async with self._http.get("/-/ready") as answer:
                return answer.status == 200
        except aiohttp.ClientConnectionError:
            return False

    async def ask(self, path, **parameters):
        async with self._http.get(f"/api/v1/{path}", params=parameters) as answer:
            body = await answer.json()
            assert body["status"] == "success", body
            return body["data"]

    async def query(self, expression):
        """What an instant query of a vector answers now: each series' labels with its value."""
        series = (await self.ask("query", query=expression))["result"]
        return [(one["metric"], float(one["value"][1])) for one in series]

    async def firing(self):
        """The alerts that fire, by name and, of those that have one, symbol."""
        alerts = (await self.ask("alerts"))["alerts"]
        return {
            (alert["labels"]["alertname"], alert["labels"].get("symbol")): alert
            for alert in alerts
            if alert["state"] == "firing"
        }


@asynccontextmanager
async def prometheus(directory, targets):
    """Prometheus as deploy/ configures it, but with these jobs: addresses by name. What it keeps goes into the directory."""
    config = yaml.safe_load((DEPLOYED / "prometheus.yml").read_text())
    config["global"] |= {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DEPLOYED / name) for name in config["rule_files"]]
    config["scrape_configs"] = [
        {"job_name": job, "static_configs": [{"targets": addresses}]} for job, addresses in targets.items()
    ]
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
            server = Prometheus(http)
            await eventually(server.ready)
            yield server
    finally:
        process.terminate()
        assert await process.wait() == 0
