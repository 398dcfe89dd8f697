"""Checkpoints are stored with a commit or not at all."""

import pytest
from ledgers import fill, listing
from test_store import NEXT, START, batch_of, epoch, keep, saved_book, writer  # noqa: F401 - fixtures

from fundsvc.core.batch import Offset
from fundsvc.core.checkpoints import Checkpoint, Saving
from fundsvc.store.database import StoreRefusal
from fundsvc.store.writer import OwnershipLost

FIRST, SECOND = Checkpoint("1-0", 1, b"first"), Checkpoint("2-0", 2, b"second")


async def stored(writer):  # noqa: F811
    return [checkpoint for checkpoint, age in await writer.load_checkpoints() if 0 <= age < 60]


async def test_commit_stores_a_checkpoint_and_deletes_others(writer):  # noqa: F811
    await writer.commit(batch_of(listing("AAA")), START, NEXT, Saving(FIRST, []))
    assert await stored(writer) == [FIRST]
    await writer.commit(batch_of(), NEXT, Offset("2-0", 2), Saving(SECOND, []))
    assert await stored(writer) == [FIRST, SECOND]
    again = FIRST._replace(messages=9, fingerprint=b"again")
    await writer.commit(batch_of(), Offset("2-0", 2), Offset("3-0", 3), Saving(again, [SECOND.last_id]))
    assert await stored(writer) == [again]


async def test_commit_that_fails_stores_no_checkpoint(writer, service_connection):  # noqa: F811
    await writer.commit(batch_of(listing("AAA"), fill("AAA", 2, 5)), START, NEXT)
    with pytest.raises(StoreRefusal):
        await writer.commit(batch_of(listing("AAA")), NEXT, Offset("2-0", 2), Saving(SECOND, []))
    await service_connection.execute("UPDATE partitions SET epoch = 2")
    with pytest.raises(OwnershipLost):
        await writer.commit(batch_of(), NEXT, Offset("2-0", 2), Saving(SECOND, []))
    assert not await service_connection.fetchval("SELECT count(*) FROM stream_checkpoints")


async def test_books_are_set_back_to_the_message_from_which_the_stream_is_read_again(writer, owner_connection):  # noqa: F811
    saved_at = "SELECT last_id FROM books"
    await writer.commit(keep(saved_book(4)), START, Offset("10-5", 3))
    for last_id, expected in (("10-6", "10-5"), ("9-7", "9-7"), ("100-0", "9-7")):
        writer.begin_again(last_id)
        (before, _) = await writer.load()
        await writer.commit(batch_of(), before, before._replace(messages=before.messages + 1))
        assert await owner_connection.fetchval(saved_at) == expected
    await owner_connection.execute("UPDATE books SET last_id = '99-0'")
    (before, _) = await writer.load()
    await writer.commit(batch_of(), before, before._replace(messages=9))
    assert await owner_connection.fetchval(saved_at) == "99-0", "only the next commit sets books back"
