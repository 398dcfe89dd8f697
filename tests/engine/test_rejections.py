"""Rejected events: operators list them and send them again."""

from commands import fundsvc

from fundsvc.core.batch import Batch, Offset
from fundsvc.core.events import Reason, Rejected
from fundsvc.store.database import open_pool
from fundsvc.store.leases import open_leases
from fundsvc.store.rejections import list_rejected
from fundsvc.store.writer import open_writer

PLACES = [("999-7", 0), ("1000-2", 0), ("1000-2", 2), ("1000-2", 10), ("1000-10", 0), ("10000-0", 0)]
"""In stream order, which differs from the order as text."""


async def test_rejected_events_are_listed_in_stream_order(config):
    for place in reversed(PLACES):
        await reject(config, place)
    async with open_pool(config.database.dsn, 1) as pool:
        assert [(event.stream_id, event.position) for event in await list_rejected(pool)] == PLACES
        assert [event.stream_id for event in await list_rejected(pool, limit=2)] == ["999-7", "1000-2"]
    listed = (await fundsvc(config, "rejected", "list", "--json")).result
    assert [event["event"] for event in listed] == [f"0/{stream_id}/{position}" for stream_id, position in PLACES]


async def reject(config, place):
    async with open_leases(config.database.dsn, "owner", 30) as leases:
        (epoch,) = (await leases.keep()).values()
        async with open_writer(config.database.dsn, "owner", 0, epoch) as writer:
            offset, _ = await writer.load()
            batch = Batch(rejected=[Rejected(*place, Reason.LATE, "", "json", b"{}")])
            await writer.commit(batch, offset, Offset(f"{offset.messages + 1}-0", offset.messages + 1))
