"""A published generator makes a Python client from our OpenAPI document, and the client reads the service."""

import os
from pathlib import Path

import msgspec
import pytest
from commands import program
from conftest import with_section
from environments import BIN, python_environment
from escalations import SYMBOL
from test_adl_api import world_of
from test_openapi import HISTORY, VENUES
from tokens import signed, with_secret


@pytest.fixture
async def world(config):
    config = with_section(with_secret(config), "http", port=0, book_seconds=0.05, venues=tuple(VENUES))
    async with world_of(config) as world:
        await world.send(*HISTORY)
        yield world


SETTINGS = """
content_type_overrides:
  application/msgpack: application/octet-stream
  application/x-ndjson: application/octet-stream
"""
"""The generator knows no other binary type."""


async def test_client_is_generated_and_reads_the_service(world, tmp_path):
    python_environment()
    async with world.http.get("/openapi.json") as answer:
        (tmp_path / "openapi.json").write_bytes(await answer.read())
    (tmp_path / "settings.yaml").write_text(SETTINGS)
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(tmp_path), "ENGINE": signed("engine")}
    files = ("--path", tmp_path / "openapi.json", "--config", tmp_path / "settings.yaml")
    target = ("--meta", "none", "--output-path", tmp_path / "fundsvc_client", "--fail-on-warning")
    done = await program(BIN / "openapi-python-client", "generate", *files, *target, environment=environment)
    assert done.code == 0, done.output + done.error
    fund, candles = [await world.data(f"/api/v1/insurance-fund/{SYMBOL}{rest}") for rest in ("", "/candles")]
    history = await world.data(f"/api/v1/insurance-fund/{SYMBOL}/history", maxCount="2")
    done = await program(
        BIN / "python", Path(__file__).parent / "read_generated.py", world.url, SYMBOL, environment=environment
    )
    assert done.code == 0, done.error
    answers = msgspec.json.decode(done.output)
    assert answers["fund"]["data"]["head"] == fund["head"]
    assert answers["strings"]["data"]["seq"] == str(fund["seq"])
    assert answers["history"]["data"]["dataList"] == history["dataList"]
    assert answers["candles"]["data"] == candles
    assert [order["adl"] for order in answers["orders"]["data"]["dataList"]] == [1]
    assert answers["order"]["data"]["instruction"]["allocations"] == [{"account": "secret-anna", "lots": 10}]
    assert [contract["seq"] for contract in answers["cursor"]["data"]["contracts"]] == [5]
    assert (answers["posted"]["data"]["accepted"], answers["posted"]["data"]["rejected"]) == (1, [])
    assert answers["missing"]["code"] == "404000"
