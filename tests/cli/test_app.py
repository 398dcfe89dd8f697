"""Starting and composing a process: waiting for the database, checked settings, garbage collection, refused connections."""

import asyncio
import gc
import sys
from contextlib import contextmanager

import msgspec
import pytest
from aiohttp import ClientSession
from conftest import with_section
from eventually import eventually
from exposed import sample_sum
from ledgers import listing, owned
from raw import raw
from structlog.testing import capture_logs
from tokens import with_secret
from watchdog import HOLD_MS_MAX, watched

from fundsvc.api.docs.handbook import chapters
from fundsvc.app import SWITCH_SECONDS, http_side, prepared, run_service, tune_interpreter
from fundsvc.config.settings import Config
from fundsvc.metrics import Metrics
from fundsvc.store.database import StoreFault, open_pool
from fundsvc.store.server_checks import check_sessions
from fundsvc.streams.client import open_client

NOWHERE = "postgresql://nobody@127.0.0.1:1/nowhere"


def _unreachable(config: Config) -> Config:
    return msgspec.structs.replace(config, database=msgspec.structs.replace(config.database, dsn=NOWHERE, owner_dsn=""))


async def test_a_command_fails_if_the_database_is_unreachable(config):
    with pytest.raises(StoreFault):
        async with prepared(_unreachable(config)):
            pass


async def test_a_starting_service_waits_for_its_database_until_it_is_stopped(config, monkeypatch):
    monkeypatch.setattr("fundsvc.app.RETRY_SECONDS", 0.02)
    stop, tries = asyncio.Event(), []

    async def counted(*arguments) -> None:
        tries.append(arguments)
        await check_sessions(*arguments)

    monkeypatch.setattr("fundsvc.app.check_sessions", counted)

    async def start() -> None:
        async with prepared(_unreachable(config), stop):
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


@pytest.mark.parametrize(("bounds", "limit"), [({"clients_max": 1}, "all"), ({"client_connections_max": 1}, "client")])
async def test_refused_connections_are_counted_by_limit(config, bounds, limit):
    metrics = Metrics()
    config = with_section(config, "http", port=0, **bounds)
    async with (
        open_pool(config.database.dsn, 2) as pool,
        open_client(config.stream) as client,
        http_side(config, metrics, pool, client, engine=None, public=True) as url,
        raw(url) as first,
    ):
        await first.send("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await first.head())[0] == 200
        async with raw(url) as second:
            assert (await second.head())[0] == 503
        counted = {name: sample_sum(metrics, "fundsvc_connections_refused_total", limit=name) for name in ("all", "client")}
        assert counted == {"all": 0, "client": 0} | {limit: 1}


@contextmanager
def _collections():
    """Yields a list of all garbage collections: the oldest generation of each, and the number of objects that it examines."""
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


async def test_start_of_a_service_and_its_first_description_do_not_hold_the_loop(config):
    """The first start in a process renders the handbook; the first request generates the schemas of all answers."""
    chapters.cache_clear()
    stop, address = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def note_start(url):
        address.set_result(url)

    async def description(http):
        async with http.get("/openapi.json") as answer:
            return answer.status, await answer.read()

    async with watched() as watchdog:
        running = asyncio.create_task(run_service(with_section(with_secret(config), "http", port=0), stop, note_start))
        async with ClientSession(await address) as http:
            first, second = await asyncio.gather(description(http), description(http))
        assert first == second
        assert first[0] == 200
        stop.set()
        await running
    assert watchdog.longest_ms < HOLD_MS_MAX


def test_each_collection_examines_few_objects_while_many_are_kept():
    with _collections() as seen:
        tune_interpreter()
        seen.clear()
        kept = [[number] for number in range(200_000)]
    assert len(kept) == 200_000
    assert len(seen) >= 30
    assert all(generation == 0 and objects < 10_000 for generation, objects in seen)


def test_tuned_interpreter_switches_threads_more_often_than_by_default():
    with _collections():
        sys.setswitchinterval(10 * SWITCH_SECONDS)
        tune_interpreter()
        assert sys.getswitchinterval() == pytest.approx(SWITCH_SECONDS)
    assert SWITCH_SECONDS < 0.005


@pytest.mark.parametrize(
    ("decimals", "default", "remedy"),
    [({"USDT": 6}, 10, "set USDT = 8"), ({}, 10, "set USDT = 8"), ({"USDT": 8}, 10, ""), ({}, 8, "")],
)
async def test_a_service_with_other_decimals_than_the_ledger_does_not_start(config, decimals, default, remedy):
    async with owned(config) as owner:
        await owner.settle([listing("ABC")])
    currency = msgspec.structs.replace(config.currency, decimals=decimals, decimals_default=default)
    other = msgspec.structs.replace(config, currency=currency)
    try:
        async with prepared(other, asyncio.Event()):
            assert not remedy
    except ValueError as error:
        assert remedy
        assert remedy in str(error)  # noqa: PT017 - half of the cases raise nothing
    async with prepared(other):
        pass  # commands such as audit and export use the ledger's decimals
