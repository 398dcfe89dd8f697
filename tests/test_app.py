"""A service that starts before its database waits for it; a command says that it is away."""

import asyncio

import msgspec
import pytest
from structlog.testing import capture_logs

from fundsvc.app import prepared
from fundsvc.config import Config
from fundsvc.store.database import StoreFault
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
    stop = asyncio.Event()

    async def start() -> None:
        async with prepared(_away(config), stop):
            pass

    with capture_logs() as logs:
        starting = asyncio.create_task(start())
        await eventually(lambda: len(logs) > 1, seconds=10)
    assert {line["event"] for line in logs} == {"database away, waiting for it"}
    assert not starting.done()
    stop.set()
    with pytest.raises(StoreFault):
        await starting
