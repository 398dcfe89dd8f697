import asyncio
from importlib.resources import files

import aiohttp
import msgspec
import pytest
from conftest import with_section
from escalations import BEGINNING, SYMBOL, executed, mark, shortfall
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from test_adl_api import config, world_of  # noqa: F401 - a fixture
from tokens import bearer

UNDESCRIBED = {"/", "/page/{digest}/{name}", "/docs", "/docs/{name}", "/ws"}
"""What is for browsers, and what does not speak HTTP."""


@pytest.fixture
async def world(config):  # noqa: F811 - the fixture
    config = with_section(config, "http", venues=("binance", "bybit", "gate", "okx"))
    async with world_of(config) as world:
        await world.send(*BEGINNING, shortfall(1, 3, 39100), shortfall(2), executed(3, 1, "secret-anna", 40), mark(39010))
        yield world


async def described(world):
    async with world.http.get("/openapi.json") as answer:
        assert (answer.status, answer.content_type) == (200, "application/json")
        return await answer.json()


def operations(document):
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


async def test_the_description_is_valid_openapi(world):
    document = await described(world)
    assert list(OpenAPIV31SpecValidator(document).iter_errors()) == []
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(names) == len(set(names))
