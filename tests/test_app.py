"""A service that starts before its database waits for it; a command says that it is away."""

import asyncio
import gc
import sys
from contextlib import contextmanager

import msgspec
import pytest
from structlog.testing import capture_logs

from fundsvc.app import SWITCH_SECONDS, prepared, tune_interpreter
from fundsvc.config.settings import Config
from fundsvc.store.database import StoreFault
from fundsvc.store.schema import check_schema
from tests.eventually import eventually
from tests.ledgers import listing, owned

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
    thresholds, switch_seconds, seen = gc.get_threshold(), sys.getswitchinterval(), []

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
        sys.setswitchinterval(switch_seconds)
        gc.unfreeze()


def test_the_collector_looks_at_few_objects_at_a_time_while_a_storm_keeps_many():
    with _collections() as seen:
        tune_interpreter()
        seen.clear()
        kept = [[number] for number in range(200_000)]
    assert len(kept) == 200_000
    assert len(seen) >= 30
    assert all(generation == 0 and objects < 10_000 for generation, objects in seen)


def test_threads_that_compute_give_the_interpreter_up_sooner_than_by_default():
    default = sys.getswitchinterval()
    with _collections():
        tune_interpreter()
        assert sys.getswitchinterval() == pytest.approx(SWITCH_SECONDS)
    assert sys.getswitchinterval() == default > SWITCH_SECONDS


@pytest.mark.parametrize(
    ("decimals", "default", "told"),
    [({"USDT": 6}, 10, "set USDT = 8"), ({}, 10, "set USDT = 8"), ({"USDT": 8}, 10, ""), ({}, 8, "")],
)
async def test_an_engine_with_other_decimals_than_the_ledgers_refuses_to_start(config, decimals, default, told):
    async with owned(config) as owner:
        await owner.settle([listing("ABC")])
    currency = msgspec.structs.replace(config.currency, decimals=decimals, decimals_default=default)
    other = msgspec.structs.replace(config, currency=currency)
    try:
        async with prepared(other, asyncio.Event()):
            assert not told
    except ValueError as refusal:
        assert told
        assert told in str(refusal)  # noqa: PT017 - in half of the cases nothing is raised
    async with prepared(other):
        pass  # an audit, or an export, is by the ledger's own decimals
