"""The commands of the archive, with an engine that settles meanwhile and an API that reads what it moved."""

import asyncio
import json
import sys
from pathlib import Path

import pytest
from archives import BEGINNING, HOUR_MS, POLICY, SYMBOLS, TS, history, settle
from commands import command, environment_of, fundsvc, program
from conftest import with_section
from eventually import eventually
from ledgers import fill, listing, owned
from served import served
from test_engine import running

from fundsvc.core.partition import Partition
from fundsvc.store.database import open_pool
from fundsvc.store.rollups import condense
from fundsvc.streams.client import open_client
from fundsvc.streams.producer import Producer

VERIFY_EXPORT = Path(__file__).parents[2] / "scripts" / "verify-export"


@pytest.fixture
def archived(config, tmp_path):
    """The configuration with an archive and an old ledger."""
    return with_section(config, "archive", location=str(tmp_path / "archive"))


@pytest.fixture
async def ledger(archived):
    async with owned(archived, lambda _: POLICY) as owner, open_pool(archived.database.dsn, 1) as pool:
        await settle(owner, [*BEGINNING, *history(4, range(1, 60))])
        await condense(pool, 0)
    return archived


async def archive(config, *arguments):
    """Runs a command as the owner of the database, which may remove archived entries."""
    overrides = {"FUNDSVC_DATABASE_OWNER_DSN": config.database.owner_dsn, "FUNDSVC_ARCHIVE_LOCATION": config.archive.location}
    return await fundsvc(config, *arguments, **overrides)


async def test_commands_archive_list_verify_and_restore(ledger):
    exported = (await fundsvc(ledger, "export", "HELD")).output
    done = await archive(ledger, "archive", "run", "--json")
    assert done.code == 0, done.error
    found = {one["symbol"]: one for one in done.result["archived"]}
    assert found.keys() == set(SYMBOLS)
    assert done.result["differences"] == []
    listed = (await archive(ledger, "archive", "list", "--json")).result
    assert [(one["symbol"], one["firstEntry"], one["restored"]) for one in listed] == [(name, 1, False) for name in SYMBOLS]
    assert (await archive(ledger, "export", "HELD")).output == exported
    verified = await program(sys.executable, VERIFY_EXPORT, given=(await archive(ledger, "export", "HELD")).output)
    assert verified.code == 0, verified.output + verified.error
    for arguments in (["audit"], ["audit", "--archives"], ["rebuild-rollups"]):
        assert (await archive(ledger, *arguments)).code == 0
    assert "nothing to archive" in (await archive(ledger, "archive", "run")).output
    restored = await archive(ledger, "archive", "restore", "HELD", "--from", ledger.archive.location)
    assert restored.output == f"restored {found['HELD']['entries']} entries of HELD\n"
    assert (await fundsvc(ledger, "export", "HELD")).output == exported


@pytest.mark.parametrize(
    ("arguments", "overrides", "sentence"),
    [
        (["--days", "7"], {}, "entries of the last 8 days stay in the database"),
        (["--before", "2999-01-01"], {}, "entries of the last 8 days stay in the database"),
        ([], {"FUNDSVC_DATABASE_OWNER_DSN": ""}, "archive.dsn is not set"),
        ([], {"FUNDSVC_ARCHIVE_LOCATION": ""}, "archive.location is not set"),
        ([], {"FUNDSVC_ARCHIVE_LOCATION": "no://where"}, "the archive no://where cannot be used"),
        ([], {"FUNDSVC_ARCHIVE_LOCATION": "/proc/none"}, "the archive /proc/none cannot be used"),
    ],
)
async def test_command_states_why_it_archives_nothing(ledger, arguments, overrides, sentence):
    environment = environment_of(
        ledger,
        **{"FUNDSVC_DATABASE_OWNER_DSN": ledger.database.owner_dsn, "FUNDSVC_ARCHIVE_LOCATION": "/dev/shm"} | overrides,
    )
    done = await command("archive", "run", *arguments, environment=environment)
    assert done.code in (1, 2)
    assert sentence in " ".join(done.error.split())


async def test_api_reads_archived_entries_and_fails_only_where_the_files_are_away(ledger):
    base = "/api/v1/insurance-fund/AAA"
    paths = [
        *(f"{base}/history?{query}" for query in ("maxCount=100", "maxCount=2&forward=true&offset=0")),
        *(
            f"{base}/at?ts={TS + 3 * HOUR_MS}",
            f"{base}/chart",
            f"{base}/entries/3",
            "/api/v1/insurance-fund/AAA/history?maxCount=2",
        ),
        *(
            f"{base}/candles?granularity=60&from={TS}&to={TS + 5 * HOUR_MS}",
            f"{base}/history?maxCount=5&kind=flat&forward=true",
        ),
    ]
    async with served(ledger) as service:
        before = [await payload(service, path) for path in paths]
        assert (await archive(ledger, "archive", "run")).code == 0
        assert [await payload(service, path) for path in paths] == before
        location = ledger.archive.location
        await asyncio.to_thread(Path(location).rename, f"{location}-away")
    async with served(ledger) as service:
        for path, answer in zip(paths, before, strict=True):
            async with service.http.get(path) as found:
                if "candles" in path or path.endswith("history?maxCount=2"):
                    assert found.status == 200
                    assert await payload(service, path) == answer
                else:
                    assert found.status == 503, path
                    assert "the archive is unreachable" in (await found.json())["msg"]
        assert (await service.get(base))["entry"] > 3


async def payload(service, path):
    data = await service.get(path)
    if isinstance(data, dict):
        data.pop("asOf", None)
    return data


async def test_engine_settles_while_entries_are_archived(archived):
    quick = with_section(archived, "engine", rollup_seconds=0.05)
    old = [fill("LOAD", seq, (seq % 7) - 3, TS + 30_000 * seq) for seq in range(1, 3000)]
    live = [fill("LOAD", seq, (seq % 5) - 2, TS + 30_000 * seq) for seq in range(3000, 5000)]
    control = Partition(0, 1, [], {"USDT": 8}, 10)
    for event in (listing("LOAD"), *old, *live):
        control.apply(event)
    (fund,) = control.funds()
    async with running(quick), open_client(quick.stream) as client, open_pool(quick.database.dsn, 2) as pool:
        producer = Producer(client, 1)
        await producer.append([listing("LOAD"), *old])
        await eventually(lambda: pool.fetchval("SELECT entry = 2999 FROM rollup_progress"))

        async def produce():
            for first in range(0, len(live), 20):
                await producer.append(live[first : first + 20])
                await asyncio.sleep(0)

        done, _ = await asyncio.gather(archive(archived, "archive", "run", "--json"), produce())
        assert done.code == 0, done.error
        assert done.result["archived"][0]["entries"] > 2500
        await eventually(lambda: pool.fetchval("SELECT entry = 4999 FROM funds"))
        assert await pool.fetchval("SELECT head FROM funds") == fund.head
        assert await pool.fetchval("SELECT count(*) FROM entries") < 2500
    assert (await archive(archived, "audit", "--archives")).code == 0
    rows = [json.loads(line) for line in (await archive(archived, "export", "LOAD", "--format", "ndjson")).output.splitlines()]
    assert [row["entry"] for row in rows if row["line"] == "entry"] == [*range(1, 5000)]
    assert rows[-1]["hash"] == fund.head.hex()
