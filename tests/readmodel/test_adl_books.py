import asyncio
import time

import pytest
from conftest import with_section
from escalations import (
    BEGINNING,
    LISTING,
    SYMBOL,
    TS,
    allocated,
    crowd,
    ended,
    executed,
    mark,
    position,
    ranks,
    records_of,
    shortfall,
    undisturbed,
    written_records,
)
from eventually import eventually
from ledgers import listing
from test_engine import Running, running, stopped

from fundsvc.core.contracts import contract_of
from fundsvc.core.events import Fill, Position
from fundsvc.core.partition import Partition
from fundsvc.metrics import Metrics
from fundsvc.readmodel.adl_books import AdlBooks, NotFollowed, open_adl_books
from fundsvc.store.database import StoreFault, open_pool
from fundsvc.streams.client import StreamFault, stream_key
from fundsvc.streams.producer import Producer
from fundsvc.wire.codec import encode

CONTRACT = contract_of(LISTING.contract, {"USDT": 8}, 10)


@pytest.fixture
def config(config):
    return with_section(config, "engine", book_seconds=0.2, lease_seconds=0.6)


@pytest.fixture
def producer(config, client):
    return Producer(client, config.stream.partitions)


@pytest.fixture
async def pool(config):
    async with open_pool(config.database.dsn, 4) as pool:
        yield pool


@pytest.fixture
def books(config, pool, client):
    return AdlBooks(config, pool, client, Metrics())


async def settled(client, pool):
    """Waits until the ledger contains everything in the stream."""

    async def reached():
        newest = await client.xrevrange(stream_key(0), count=1)
        return await pool.fetchval("SELECT last_id FROM partitions") == newest[0][0].decode()

    await eventually(reached)


async def kept(pool):
    """Waits until all books are saved at the offset."""
    await eventually(lambda: pool.fetchval("SELECT bool_and(b.last_id = p.last_id) FROM books b, partitions p"))


def followed(books, contract=CONTRACT):
    return books.view(contract, 0).book


async def test_ranks_equal_those_of_a_service_that_never_stopped(config, producer, client, pool, books):
    events = [LISTING, *crowd(1)]
    async with running(config):
        await producer.append(events[:100], per_message=7)
        await settled(client, pool)
        await books.step()
        assert ranks(followed(books)) == ranks(undisturbed(events[:100]).book(SYMBOL))
        for start in range(100, len(events), 60):
            await producer.append(events[start : start + 60], per_message=7)
            await settled(client, pool)
            await books.step()
        assert ranks(followed(books)) == ranks(undisturbed(events).book(SYMBOL))


async def test_follower_that_starts_late_shows_the_same_books(config, producer, client, pool, books):
    events = [*BEGINNING, *crowd(2), mark(39000), shortfall(1)]
    async with running(config):
        await producer.append(events, per_message=10)
        await settled(client, pool)
        await kept(pool)
        await books.step()
    async with running(with_section(config, "engine", book_seconds=3600)):
        account = allocated(await written_records(pool))[0].account
        await producer.append([executed(2, 1, account, 1), executed(2, 1, account, 1), executed(3, 9, account, 1), *crowd(3)])
        await settled(client, pool)
        await books.step()
        late = AdlBooks(config, pool, client, Metrics())
        await late.step()
    expected = undisturbed([*events, executed(2, 1, account, 1), *crowd(3)])
    assert ranks(followed(books)) == ranks(followed(late)) == ranks(expected.book(SYMBOL))


async def test_shown_ranks_equal_the_ranks_in_rounds_of_the_engine(config, producer, client, pool, books):
    async with running(config):
        await producer.append([LISTING, *crowd(4), mark(39000)])
        await settled(client, pool)
        await books.step()
        await producer.append([shortfall(1, lots=1000)])
        await settled(client, pool)
    allocations = allocated(await written_records(pool))
    assert allocations
    view = books.view(CONTRACT, 0)
    for row in allocations:
        assert books.rank(view, "short", row.account, "all") == (row.rank, row.ranked)
    assert len(allocations) > 10


async def test_replayed_event_applies_where_it_was_settled(config, producer, client, pool, books):
    early = executed(9, 1, "secret-anna", 3)
    keep_running = with_section(config, "engine", book_seconds=3600)
    async with running(keep_running):
        await producer.append([*BEGINNING, early])
        await settled(client, pool)
        await books.step()
        row = await pool.fetchrow("SELECT stream_id, position FROM rejected")
        await producer.append([shortfall(1, lots=60)])
        await producer.append_replay(0, "json", encode([early]), f"{row['stream_id']}/{row['position']}")
        await settled(client, pool)
        await books.step()
        assert lots_of("secret-anna", books) == ("short", 47)
    async with running(keep_running):
        # Books are saved at a start: a books that loads them reads only the second replay.
        await eventually(
            lambda: pool.fetchval("SELECT b.last_id = p.last_id FROM books b, partitions p WHERE symbol = $1", SYMBOL)
        )
        await producer.append([position("secret-anna", -9, 41000, 10)])
        await producer.append_replay(0, "json", encode([early]), f"{row['stream_id']}/{row['position']}")
        await settled(client, pool)
        assert await pool.fetchval("SELECT settled_at IS NOT NULL FROM rejected")
        late = AdlBooks(config, pool, client, Metrics())
        for either in (books, late):
            await either.step()
            assert lots_of("secret-anna", either) == ("short", 9)


def lots_of(account, books):
    ((side, lots),) = (
        (side, view.book.sides[side].valued(row, 10**12).lots)
        for view in books.views()
        for side, row in view.book.positions(account)
    )
    return side, lots


async def test_newly_listed_contracts_are_followed(config, producer, client, pool, books):
    async with running(config):
        await producer.append(BEGINNING)
        await settled(client, pool)
        await books.step()
        before = followed(books)
        await producer.append([listing("NEWUSDTM"), mark(5, "NEWUSDTM"), position("late", -3, 6, symbol="NEWUSDTM"), LISTING])
        await settled(client, pool)
        await producer.append([position("later", 2, 4, symbol="NEWUSDTM"), mark(39001)])
        await settled(client, pool)
        await books.step()
    views = {view.contract.symbol: view for view in books.views()}
    assert set(views) == {SYMBOL, "NEWUSDTM"}
    assert [standing.account for side in ranks(views["NEWUSDTM"].book).values() for standing in side] == ["later", "late"]
    assert followed(books) is before
    assert before.mark == 39001 * 10**12


async def test_changed_terms_before_the_first_entry_reload_the_books(config, producer, client, pool, books):
    other = listing(SYMBOL, multiplier=0.001, maxPrice=10**9)
    async with running(config):
        await producer.append(BEGINNING)
        await settled(client, pool)
        await books.step()
        before = followed(books)
        await producer.append([other])
        await settled(client, pool)
        late = AdlBooks(config, pool, client, Metrics())
        await late.step()
        assert [view.book.open for view in late.views()] == [0]
        await producer.append([position("new", -3), mark(39000)])
        await settled(client, pool)
        await books.step()
        await late.step()
    assert followed(books) is not before
    expected = ranks(undisturbed([*BEGINNING, other, position("new", -3), mark(39000)]).book(SYMBOL))
    for either in (books, late):
        (view,) = either.views()
        assert view.contract == contract_of(other.contract, {"USDT": 8}, 10) != CONTRACT
        assert ranks(view.book) == expected
    async with running(config):
        await producer.append([shortfall(1)])
        await settled(client, pool)
    assert [row.account for row in allocated(await written_records(pool))] == ["new"]


async def test_stream_is_not_read_without_positions(config, producer, client, pool, books):
    async with running(config):
        await producer.append([LISTING, mark(39000), shortfall(1)])
        await settled(client, pool)
        await kept(pool)
    await client.config_resetstat()
    await books.step()
    await books.step()
    assert "cmdstat_xread" not in await client.info("commandstats")
    assert followed(books).open == 0
    async with running(config):
        await producer.append([position("first", -1)])
        await settled(client, pool)
        await books.step()
    assert followed(books).open == 1


async def test_books_are_not_loaded_before_the_first_step(books):
    with pytest.raises(NotFollowed):
        books.view(CONTRACT, 0)
    with pytest.raises(NotFollowed):
        books.views()


@pytest.mark.parametrize("part", ["postgres", "valkey"])
async def test_outage_keeps_the_last_state_and_its_time(config, producer, client, pool, books, servers, part):
    async with running(config):
        await producer.append(BEGINNING)
        await settled(client, pool)
        await books.step()
        before = books.view(CONTRACT, 0)
        shown = ranks(before.book)
        await producer.append([mark(39500)])
        await settled(client, pool)
        with stopped(servers, getattr(servers, part)):
            with pytest.raises((StoreFault, StreamFault)):
                await books.step()
            assert books.view(CONTRACT, 0) == before
            assert ranks(before.book) == shown
        await eventually(lambda: quietly(books))
        after = books.view(CONTRACT, 0)
        assert after.ts > before.ts
        assert after.book is before.book
        assert after.book.mark == 39500 * 10**12


async def quietly(books):
    try:
        await books.step()
    except (StoreFault, StreamFault):
        return False
    return True


@pytest.mark.parametrize("behind", [False, True])
async def test_stream_without_its_tail_reloads_the_books(config, producer, client, pool, books, behind):
    """Engine and books read the remaining stream from its start, and apply it to the saved book.

    Messages with ids read before do not change the book again.
    """
    first = "1-1" if behind else "*"
    left = position("secret-anna", -7, 41000, 10)
    async with running(config):
        await producer.append(BEGINNING, per_message=2)
        await settled(client, pool)
        await kept(pool)
        await books.step()
    before = followed(books)
    await client.delete(stream_key(0))
    await client.xadd(stream_key(0), {"json": encode([left])}, id=first)
    async with running(config):
        await settled(client, pool)
        await books.step()
    expected = undisturbed(BEGINNING if behind else [*BEGINNING, left])
    assert followed(books) is not before
    assert ranks(followed(books)) == ranks(expected.book(SYMBOL))


async def test_follower_recovers_from_faults(config, producer, client, pool, servers):
    quick = with_section(config, "http", book_seconds=0.05)
    async with open_adl_books(quick, pool, client, Metrics()) as books, running(config):
        await producer.append(BEGINNING)
        await eventually(lambda: shows(books, 39000))
        with stopped(servers, servers.postgres):
            assert shows(books, 39000)
        await producer.append([mark(39600)])
        await eventually(lambda: shows(books, 39600))
        assert time.time() * 1000 - books.view(CONTRACT, 0).ts < 10_000


def shows(books, price):
    try:
        return followed(books).mark == price * 10**12
    except NotFollowed:
        return False


async def test_ended_order_leaves_positions_reduced(config, producer, client, pool, books):
    async with running(config):
        await producer.append([*BEGINNING, shortfall(1, lots=50)])
        await settled(client, pool)
        await producer.append([executed(2, 1, "secret-anna", 20), ended(3, 1)])
        await settled(client, pool)
        await books.step()
    short = {standing.account: (standing.lots, standing.margin) for standing in ranks(followed(books))["short"]}
    assert short["secret-anna"] == (30, 6 * 10**8)


async def test_execution_does_not_change_an_account_that_changed_sides(config, producer, client, pool, books):
    keep_running = with_section(config, "engine", book_seconds=3600, lease_seconds=0.6)
    events = [
        shortfall(1, lots=60),
        position("secret-anna", 40, 38500, 10),
        executed(2, 1, "secret-anna", 30),
        executed(3, 1, "secret-bert", 5),
    ]
    engine = Running(keep_running)
    await producer.append(BEGINNING)
    await settled(client, pool)  # now the book is saved, and not again
    await producer.append(events)
    await settled(client, pool)
    await books.step()
    engine.task.cancel()
    await asyncio.wait([engine.task])
    more = Fill(SYMBOL, 4, "buy", 1000, "39100", "39000", TS)
    async with running(keep_running):
        await producer.append([more])
        await settled(client, pool)
    expected = undisturbed([*BEGINNING, *events, more])
    assert ranks(followed(books)) == ranks(expected.book(SYMBOL))
    assert ("secret-anna", 40) in [(standing.account, standing.lots) for standing in ranks(followed(books))["long"]]
    allocations = allocated(await written_records(pool))
    assert allocations == allocated(records_of(expected.take()))
    assert ("secret-anna", 40, 40) in [(row.account, row.lots, row.requested) for row in allocations if row.adl == 2]


async def test_prices_finer_than_the_known_terms_reload_the_books(config, producer, client, pool, books):
    """The books reads the listing and the finer prices in one step."""
    coarse, fine = listing(SYMBOL, multiplier=0.001, maxPrice=10**9), listing(SYMBOL, multiplier=0.001)
    finest = Position(SYMBOL, "new", -3, "40000.000000000001", "1", TS)
    async with running(config):
        await producer.append([coarse, mark(39000), position("old", -5)])
        await settled(client, pool)
        await books.step()
        await producer.append([fine, mark(39000), finest])
        await settled(client, pool)
        await books.step()
    (view,) = books.views()
    assert view.contract == contract_of(fine.contract, {"USDT": 8}, 10)
    assert ranks(view.book) == ranks(undisturbed([coarse, position("old", -5), fine, mark(39000), finest]).book(SYMBOL))


async def test_internal_error_in_the_follower_is_retried(config, producer, client, pool, monkeypatch):
    monkeypatch.setattr("fundsvc.readmodel.adl_books.RELOAD_SECONDS", 0.1)
    quick = with_section(config, "http", book_seconds=0.05)
    async with running(config), open_adl_books(quick, pool, client, Metrics()) as books:
        await producer.append(BEGINNING)
        await settled(client, pool)
        await eventually(lambda: is_followed(books))
        apply_to_book = Partition.apply_to_book
        monkeypatch.setattr(Partition, "apply_to_book", mistaken)
        await producer.append([mark(39001)])
        await settled(client, pool)
        await eventually(lambda: not is_followed(books))
        monkeypatch.setattr(Partition, "apply_to_book", apply_to_book)
        await eventually(lambda: is_followed(books))
        (view,) = books.views()
        assert view.book.mark == 39001 * 10**12


def mistaken(*_):
    raise KeyError("mistaken")


def is_followed(books):
    try:
        return bool(books.views())
    except NotFollowed:
        return False
