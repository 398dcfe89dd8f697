import os
import sys
import time
from pathlib import Path

import msgspec
import pytest
from commands import program
from conftest import with_section
from escalations import BEGINNING, SYMBOL, TS, executed, mark, shortfall
from eventually import eventually
from jsonschema import Draft202012Validator
from ledgers import listing
from mutuals import STORY, settled_pool
from openapi_spec_validator import OpenAPIV31SpecValidator
from test_adl_api import config, world_of  # noqa: F401 - a fixture
from tokens import bearer, signed

from fundsvc.api.http.application import make_app
from fundsvc.core.events import Takeover

EXAMPLES = Path(__file__).parents[2] / "fundsvc" / "api" / "docs" / "examples.json"

RECORDING = "RECORD_EXAMPLES" in os.environ
"""Whether the examples are recorded, as `scripts/examples` does."""

LINES_MAX = 12
"""The lines of an example that is text."""

CONFIGURATION = Path(__file__).parents[1] / "schemathesis.toml"

HISTORY = [
    listing(SYMBOL, multiplier=0.001, type="FFWCSX", status="Open", baseCurrency="XBT", quoteCurrency="USDT"),
    *BEGINNING[1:],
    *(
        msgspec.structs.replace(event, ts=TS + second * 1000)
        for second, event in enumerate(
            (
                shortfall(1, 50, 39100),
                shortfall(2),
                executed(3, 1, "secret-anna", 40),
                shortfall(4, 30, 39050),
                mark(39010),
                Takeover(SYMBOL, 5, "sell", 10, "39000", TS, "trade-5", account="secret-long"),
            )
        )
    ),
]
"""A surplus, a shortfall that the fund pays in part, a partly executed order, another surplus, and a takeover."""

CALLERS = {"engine": {}, "trader": {"account": "secret-anna"}, "risk": {}}
"""The claims of the tokens that the examples use, by role."""

VENUES = ["binance", "bybit", "gate", "okx"]
SECTIONS = ["adl", *VENUES, "contracts", "funds", "health", "ingest", "mutual", "openapi", "websocket"]
"""The tags of the operations."""

UNDESCRIBED = {
    *("/", "/page/{digest}/{name}", "/docs", "/docs/{name}", "/docs/producers/{name}", "/docs/reference/"),
    *("/docs/reference/{name}", "/asyncapi.json", "/schemas", "/schemas/{name}", "/ws"),
}
"""Paths for browsers, other descriptions, and the WebSocket."""


INGESTION = ("/api/v1/ingest/events", "post")
"""The operation that changes the fund; the other answers show the fund after its events."""


@pytest.fixture
def application(monkeypatch):
    """The created applications."""
    made = []
    monkeypatch.setattr("fundsvc.app.make_app", lambda *arguments: made.append(make_app(*arguments)) or made[0])
    return made


@pytest.fixture
async def world(config, application):  # noqa: F811 - the fixture
    config = with_section(config, "http", venues=tuple(VENUES), requests_max=1_000_000)
    config = with_section(config, "engine", rollup_seconds=0.1, target_seconds=0.1)
    async with world_of(config) as world:
        await world.send(*HISTORY)
        await eventually(lambda: world.pool.fetchval("SELECT target > 0 FROM targets"))
        await settled_pool(config, STORY, world)
        yield world


async def document_of(world):
    async with world.http.get("/openapi.json") as answer:
        assert (answer.status, answer.content_type) == (200, "application/json")
        return await answer.json()


def operations(document):
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


async def test_document_is_valid_openapi(world):
    document = await document_of(world)
    assert list(OpenAPIV31SpecValidator(document).iter_errors()) == []
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(names) == len(set(names))
    assert [section["name"] for section in document["tags"]] == sorted(SECTIONS)
    assert {name for _, _, operation in operations(document) for name in operation["tags"]} == set(SECTIONS)


async def test_every_route_is_described(world, application):
    served = {(route.resource.canonical, route.method.lower()) for route in application[0].router.routes()}
    described = {(path, method) for path, method, _ in operations(await document_of(world))}
    also = {(path, "head") for path, method in described if method == "get"}
    assert {path for path, _ in served - described - also} == UNDESCRIBED
    assert described <= served


def validator(document, schema):
    """Returns a validator of a schema within a document."""
    return Draft202012Validator({**schema, "components": document["components"]})


def token(operation):
    if "trader" in operation["description"]:
        return bearer("trader", account="secret-anna")
    needs_risk = "engine" not in operation["description"] and {} not in operation["security"]
    return bearer("risk" if needs_risk else "engine")


async def ask(world, path, method, operation, example):
    """Sends the request of an example; returns content type and body of the answer."""
    ((kind, body),) = example.get("body", {None: None}).items()
    target = path.format(**example.get("path", {}))
    headers = {**(token(operation) if "security" in operation else {}), **({"Content-Type": kind} if kind else {})}
    data = body if isinstance(body, str) or body is None else msgspec.json.encode(body)
    async with world.http.request(method, target, params=example.get("query"), data=data, headers=headers) as answer:
        assert answer.status == 200, (target, await answer.text())
        text = await answer.text()
        return answer.content_type, msgspec.json.decode(text) if answer.content_type == "application/json" else text


async def test_example_of_every_operation_matches_its_answer(world, subtests):
    document, examples = await document_of(world), msgspec.json.decode(EXAMPLES.read_bytes())
    keys = {f"{method.upper()} {path}" for path, method, _ in operations(document)}
    assert set(examples) == keys, "add the request of the operation to examples.json, then run scripts/examples"
    for path, method, operation in operations(document):
        with subtests.test(path=path):
            example = examples[f"{method.upper()} {path}"]
            content_type, answer = await ask(world, path, method, operation, example)
            schema = validator(document, operation["responses"]["200"]["content"][content_type]["schema"])
            schema.validate(answer)
            if RECORDING and path != "/openapi.json":
                example["answer"] = "\n".join(answer.splitlines()[:LINES_MAX]) if isinstance(answer, str) else answer
            if path != "/openapi.json":
                schema.validate(example["answer"])
                assert shape(example["answer"]) == shape(answer), "run scripts/examples"
            if (path, method) == INGESTION:
                await eventually(lambda: world.pool.fetchval("SELECT max(seq) = 8 FROM entries"))
    if RECORDING:
        EXAMPLES.write_bytes(msgspec.json.format(msgspec.json.encode(examples).replace(b"secret-", b""), indent=1) + b"\n")


def shape(answer):
    """Returns the names in an answer with their nesting."""
    if isinstance(answer, dict):
        return {name: shape(value) for name, value in answer.items()}
    return [shape(answer[0])] if isinstance(answer, list) and answer else None


async def test_schemathesis_finds_no_errors(world):
    done = await program(
        Path(sys.executable).parent / "schemathesis",
        "--config-file",
        CONFIGURATION,
        "run",
        f"{world.url}/openapi.json",
        environment={
            **os.environ,
            **{role.upper(): signed(role, exp=time.time() + 900, **claims) for role, claims in CALLERS.items()},
        },
    )
    assert done.code == 0, done.output
