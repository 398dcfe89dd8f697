"""A service that starts before its database waits for it; a command says that it is away."""

import asyncio
import gc
from contextlib import contextmanager

import msgspec
import pytest
from structlog.testing import capture_logs

from fundsvc.app import prepared, spare_collector
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


@contextmanager
def _collections():
    """What each run of the collector looks at: the oldest generation, and how many objects of it and the younger ones."""
    thresholds, seen = gc.get_threshold(), []

    def note(phase: str, about: dict[str, int]) -> None:
        if phase == "start":
            oldest = about["generation"]
            seen.append((oldest, sum(len(gc.get_objects(generation)) for generation in range(oldest + 1))))

    gc.callbacks.append(note)
    try:
        yield seen
    finally:
        gc.callbacks.remove(note)
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def test_the_collector_looks_at_few_objects_at_a_time_while_a_storm_keeps_many():
    with _collections() as seen:
        spare_collector()
        seen.clear()
        kept = [[number] for number in range(200_000)]
    assert len(kept) == 200_000
    assert len(seen) >= 30
    assert all(generation == 0 and objects < 10_000 for generation, objects in seen)
