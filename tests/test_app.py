"""A service that starts before its database waits for it; a command says that it is away."""

import asyncio

import msgspec
import pytest
from structlog.testing import capture_logs

from fundsvc.app import prepared
from fundsvc.config import Config
from fundsvc.store.database import StoreFault
from fundsvc.store.migrations import check_schema
from tests.eventually import eventually

NOWHERE = "postgresql://nobody@127.0.0.1:1/nowhere"


def _away(config: Config) -> Config:
    return msgspec.structs.replace(config, database=msgspec.structs.replace(config.database, dsn=NOWHERE, owner_dsn=""))


async def test_a_command_says_that_the_database_is_away(config):
    with pytest.raises(StoreFault):
        async with prepared(_away(config)):
            pass


async def test_a_service_waits_for_its_database_until_it_is_told_to_stop(config, monkeypatch):
    monkeypatch.setattr("fundsvc.app.RETRY_SECONDS", 0.02)
    stop, tries = asyncio.Event(), []

    async def asked(*arguments) -> None:
        tries.append(arguments)
        await check_schema(*arguments)

    monkeypatch.setattr("fundsvc.app.check_schema", asked)

    async def start() -> None:
        async with prepared(_away(config), stop):
            pass

    with capture_logs() as logs:
        starting = asyncio.create_task(start())
        await eventually(lambda: logs, seconds=10)
        tries.clear()
        await eventually(lambda: len(tries) > 1, seconds=10)
    assert [(line["event"], line["part"]) for line in logs] == [("fault", "schema")]
    assert not starting.done()
    stop.set()
    with pytest.raises(StoreFault):
        await starting
