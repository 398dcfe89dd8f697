"""Heads saved outside the database reveal changes of the chains, even if the chains are consistent."""

import json
import os
import time

import pytest
from commands import engine_process, fundsvc
from conftest import with_section
from escalations import BEGINNING, SYMBOL, executed, shortfall
from eventually import eventually
from exposed import sample_sum
from forging import seal, unlock
from ledgers import fill, listing, owned
from served import served
from structlog.testing import capture_logs
from test_engine import running

from fundsvc.engine.heads import FILE_PATTERN, Head, read_heads, save_heads
from fundsvc.store.database import StoreFault, open_pool

SAVED = "fundsvc_heads_saved_timestamp_seconds"


@pytest.fixture
async def ledger(config):
    """A ledger with two contracts, one of them with an ADL order, and a contract without entries."""
    async with owned(config) as owner:
        await owner.settle([listing("ABC"), listing("NEW"), *(fill("ABC", seq, 5) for seq in range(1, 7))])
        await owner.settle([*BEGINNING, shortfall(1), executed(2, 1, "secret-anna", 20)])
    return config


@pytest.fixture
async def saved(ledger, tmp_path):
    """A directory with the saved heads of the ledger."""
    async with open_pool(ledger.database.dsn, 1) as pool:
        await save_heads(pool, tmp_path / "heads", 1)
    return tmp_path / "heads"


REWRITTEN = {
    "a rewritten entry": (
        "UPDATE entries SET account = 'mine' WHERE symbol = 'ABC' AND entry = 2", "ABC", "ABC entry 6: hash is"
    ),
    "a rewritten first entry": (
        "UPDATE entries SET trade_id = 'x' WHERE symbol = 'ABC' AND entry = 1", "ABC", "ABC entry 6: hash is"
    ),
    "a cut tail": ("DELETE FROM entries WHERE symbol = 'ABC' AND entry > 4", "ABC", "ABC entry 6 is missing"),
    "a tail cut to nothing": ("DELETE FROM entries WHERE symbol = 'ABC'", "ABC", "ABC entry 6 is missing"),
    "a rewritten ADL record": (
        f"UPDATE adl_records SET account = 'mine' WHERE symbol = '{SYMBOL}' AND kind = 'execution'", SYMBOL, "ADL record"
    ),
    "a cut tail of ADL records": (
        f"DELETE FROM adl_records WHERE symbol = '{SYMBOL}' AND kind = 'execution'", SYMBOL, "is missing"
    ),
}  # fmt: skip
"""By change: the statement of the database's owner, the contract, and a part of the expected difference."""

DELETED = {
    "a deleted contract": "ABC",
    "a deleted contract with ADL": SYMBOL,
    "a deleted contract without entries": "NEW",
}


async def test_saved_heads_match_a_ledger_with_later_entries(ledger, saved):
    async with owned(ledger) as owner:
        await owner.settle([fill("ABC", 7, 1), fill("NEW", 1, 1), listing("NEWER")])
    done = await fundsvc(ledger, "audit", "--heads", saved, "--json")
    assert (done.code, done.result["differences"]) == (0, 0)


@pytest.mark.parametrize("what", REWRITTEN)
async def test_a_rewritten_chain_with_valid_hashes_is_found(ledger, saved, owner_connection, what):
    statement, symbol, expected = REWRITTEN[what]
    await unlock(owner_connection)
    await owner_connection.execute(statement)
    await seal(owner_connection, symbol)
    done = await fundsvc(ledger, "audit", "--heads", saved, "--json")
    assert done.code == 1
    found = {one["symbol"]: one["differences"] for one in done.result["contracts"] if one["differences"]}
    assert list(found) == [symbol]
    assert any(expected in difference and "a head that was saved at" in difference for difference in found[symbol]), found


@pytest.mark.parametrize("what", DELETED)
async def test_a_deleted_contract_is_found(ledger, saved, owner_connection, what):
    symbol = DELETED[what]
    await unlock(owner_connection)
    for table in ("entries", "adl_records", "adl_orders", "books", "funds", "contracts"):
        await owner_connection.execute(f"DELETE FROM {table} WHERE symbol = $1", symbol)
    assert (await fundsvc(ledger, "audit")).code == 0, "the database alone is consistent"
    done = await fundsvc(ledger, "audit", "--heads", saved)
    assert done.code == 1
    assert f"{symbol}: the contract is missing" in " ".join(done.output.split())


async def test_answers_of_the_api_serve_as_saved_heads(config, owner_connection, tmp_path):
    file = tmp_path / "saved.jsonl"
    async with served(config) as service:
        await service.append(*({"type": "contract", "contract": listing(symbol).contract} for symbol in ("ABC", "XYZ")))
        await service.append(*({"type": "fill", **fields(symbol)} for symbol in ("ABC", "XYZ")))
        await service.fund("ABC"), await service.fund("XYZ")
        paths = ("/api/v1/insurance-fund", "/api/v1/insurance-fund/ABC")
        answers = [{"code": "200000", "data": await service.get(path)} for path in paths]
        file.write_text("\n".join(map(json.dumps, answers)))
    assert [(head.symbol, head.entry) for head in read_heads(file)] == [("ABC", 1), ("XYZ", 1), ("ABC", 1)]
    assert (await fundsvc(config, "audit", "--heads", file)).code == 0
    await unlock(owner_connection)
    await owner_connection.execute("UPDATE entries SET account = 'mine'")
    for symbol in ("ABC", "XYZ"):
        await seal(owner_connection, symbol)
    assert (await fundsvc(config, "audit")).code == 0
    assert (await fundsvc(config, "audit", "--heads", file)).code == 1


def fields(symbol):
    return {"symbol": symbol, "seq": 1, "side": "sell", "lots": 1, "price": "101", "bankruptcyPrice": "100", "ts": 1}


async def test_an_engine_saves_heads_hourly_without_overwriting_and_removes_old_files(ledger, tmp_path):
    directory = tmp_path / "heads"
    directory.mkdir()
    old, young, other = (directory / name for name in ("heads-2020-01-01T00.jsonl", "heads-2021-01-01T00.jsonl", "mine.jsonl"))
    for path in (old, young, other):
        path.write_text("")
    for path in (old, other):
        os.utime(path, (1, 1))
    settings = {"FUNDSVC_AUDIT_HEADS_DIRECTORY": str(directory), "FUNDSVC_AUDIT_HEADS_DAYS": "1"}
    async with engine_process(ledger, **settings):
        await eventually(lambda: len(list(directory.glob(FILE_PATTERN))) == 2 and not old.exists())
    assert young.exists()
    assert other.exists()
    (kept,) = set(directory.glob(FILE_PATTERN)) - {young}
    heads = {head.symbol: head for head in read_heads(kept)}
    assert {symbol: (head.entry, head.adl_record) for symbol, head in heads.items()} == {
        "ABC": (6, 0), "NEW": (0, 0), SYMBOL: (heads[SYMBOL].entry, heads[SYMBOL].adl_record)
    }  # fmt: skip
    assert heads[SYMBOL].adl_record > 0
    assert abs(heads["ABC"].at / 1000 - time.time()) < 600
    before = kept.read_bytes()
    async with owned(ledger) as owner:
        await owner.settle([fill("ABC", 7, 1)])
    async with open_pool(ledger.database.dsn, 1) as pool:
        await save_heads(pool, directory, 1)
    if time.strftime("%H", time.gmtime()) == kept.name[-8:-6]:
        assert kept.read_bytes() == before
    assert not [path for path in directory.iterdir() if path.name.startswith("tmp")]


async def test_an_engine_exports_the_time_of_the_last_saved_heads(ledger, tmp_path):
    started = time.time()
    written, unwritable = with_section(ledger, "audit", heads_directory=str(tmp_path / "heads")), tmp_path / "file"
    unwritable.touch()
    async with running(written) as engine:
        await eventually(lambda: list((tmp_path / "heads").glob(FILE_PATTERN)))
        assert await eventually(lambda: sample_sum(engine.metrics, SAVED)) >= started
    async with running(with_section(ledger, "audit", heads_directory=str(unwritable / "heads"))) as engine:
        before = sample_sum(engine.metrics, SAVED)
        with capture_logs() as logs:
            await eventually(lambda: [line for line in logs if line.get("part") == "heads"])
        assert sample_sum(engine.metrics, SAVED) == before > started
    async with running(ledger) as engine:
        assert sample_sum(engine.metrics, SAVED) == 0


async def test_an_unwritable_directory_is_a_fault(ledger, tmp_path):
    file = tmp_path / "file"
    file.touch()
    async with open_pool(ledger.database.dsn, 1) as pool:
        with pytest.raises(StoreFault, match="heads are not kept"):
            await save_heads(pool, file / "heads", 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "line 1 has no head"),
        ("[1]", "line 1 has no head"),
        ('{"symbol":"A"', "line 1 is not JSON"),
        ("\n{'a'}", "line 2"),
    ],
)
async def test_a_file_without_heads_exits_with_2(config, tmp_path, text, message):
    file = tmp_path / "heads"
    file.write_text(text)
    done = await fundsvc(config, "audit", "--heads", file)
    assert done.code == 2
    assert message in done.error
    assert (await fundsvc(config, "audit", "--heads", tmp_path / "nowhere")).code == 1


def test_further_keys_of_a_head_are_ignored(tmp_path):
    file = tmp_path / "heads"
    file.write_text('{"symbol":"A","entry":1,"head":"00","balance":"7"}\n\n')
    assert list(read_heads(file)) == [Head("A", 1, "00")]
