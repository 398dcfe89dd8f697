"""Ingest over HTTP takes events of pools, in both codecs, and beside those of contracts."""

from contextlib import asynccontextmanager

import aiohttp
import msgspec
import pytest
from conftest import with_section
from eventually import eventually
from ledgers import fill, listing
from pools import KEY, POOL, running, with_pools
from tokens import bearer, with_secret

from fundsvc.api.contracts import ContractResources
from fundsvc.api.http.access import AccessControl
from fundsvc.api.http.application import make_app
from fundsvc.api.http.middleware import Middleware
from fundsvc.api.http.server import serve
from fundsvc.api.http.shared_limits import local_windows
from fundsvc.api.ingest import Ingest
from fundsvc.api.stream_epochs import StreamEpochs
from fundsvc.metrics import Metrics
from fundsvc.mutual.codec import encode
from fundsvc.mutual.core.events import Enable, TermsChange, Tick, TopUp, Trade, Transfer
from fundsvc.mutual.core.terms import Terms
from fundsvc.mutual.store.reader import MutualReader
from fundsvc.store.database import open_pool
from fundsvc.store.reader import Reader
from fundsvc.store.rejections import list_rejected
from fundsvc.store.stream_epochs import EpochStore
from fundsvc.streams.client import open_client, stream_key
from fundsvc.streams.producer import Producer

JSON, NDJSON, MSGPACK = "application/json", "application/x-ndjson", "application/msgpack"
PATH = "/api/v1/ingest/events"
TS = 1_700_000_000_000
TERMS = Terms(cycle_seconds=31_622_400, cycle_anchor=TS // 1_000 - 1)
EVENTS = [
    Transfer(POOL, TS, 1, "a", "50", "x"),
    Enable(POOL, TS, 2, "a"),
    Trade(POOL, TS, 3, "a", "XBTUSDTM", "t", TS, "-120", "9"),
]


class World:
    """The ingest API with an engine that settles a pool."""

    def __init__(self, http, client, database, engine):
        self.http = http
        self.client = client
        self.database = database
        self.reader = MutualReader(database)
        self.engine = engine

    async def post(self, body, kind=JSON):
        headers = {**bearer("engine"), "Content-Type": kind}
        async with self.http.post(PATH, data=body, headers=headers) as answer:
            return answer.status, await answer.json()

    async def data(self, body, kind=JSON):
        status, answer = await self.post(body, kind)
        assert status == 200, answer
        return answer["data"]

    async def settled(self):
        async def is_at_end():
            state = await self.reader.pool(POOL)
            last = (await self.client.xinfo_stream(KEY))["last-generated-id"]
            return state and state.last_id.encode() == last

        await eventually(is_at_end)
        return await self.reader.pool(POOL)


@asynccontextmanager
async def world_of(config):
    config = with_pools(with_secret(config), USDT=TERMS)
    async with open_pool(config.database.dsn, 4) as pool, open_client(config.stream) as client:
        access_control = AccessControl(config.http, config.token, *local_windows(config.http))
        reader, producer = Reader(pool), Producer(client, config.stream.partitions)
        epochs = StreamEpochs(EpochStore(pool), producer, config.stream.partitions)
        ingest = Ingest(config, reader, producer, epochs, access_control)
        contracts = ContractResources(reader, stream_key, epochs, MutualReader(pool))
        app = make_app(Middleware(Metrics(), access_control), (ingest.endpoint, *contracts.routes))
        async with serve(app, "127.0.0.1", 0) as url, aiohttp.ClientSession(url) as http, running(config) as engine:
            yield World(http, client, pool, engine)


@pytest.fixture
async def world(config):
    async with world_of(with_section(config, "engine", lease_seconds=0.6)) as world:
        yield world


BODIES = {JSON: encode(EVENTS), NDJSON: b"\n".join(map(msgspec.json.encode, EVENTS)), MSGPACK: encode(EVENTS, "msgpack")}


@pytest.mark.parametrize("kind", [JSON, NDJSON, MSGPACK])
async def test_events_of_a_pool_are_appended_to_its_stream_and_settled(world, kind):
    data = await world.data(BODIES[kind], kind)
    assert (data["accepted"], data["rejected"]) == (3, [])
    (message,) = data["messages"]
    assert (message["stream"], message["partition"]) == (KEY, 0)
    state = await world.settled()
    assert (state.row.seq, state.row.policies, state.last_id) == (3, 1, message["id"])
    if kind != NDJSON:
        ((_, fields),) = await world.client.xrange(KEY)
        assert list(fields.values()) == [BODIES[kind]], "the body is appended unchanged"


@pytest.mark.parametrize("partitions", [1, 3])
async def test_events_of_contracts_and_pools_may_share_a_body(world):
    body = msgspec.json.encode([EVENTS[0], listing("XBTUSDTM"), EVENTS[1], fill("XBTUSDTM", 1, 5)])
    data = await world.data(body)
    assert (data["accepted"], len(data["messages"])) == (4, 2)
    assert (await world.settled()).row.seq == 2
    await eventually(lambda: world.engine.count("fundsvc_entries_total") == 1)


async def test_rejected_events_are_predicted_and_kept_in_the_stream_of_their_pool(world):
    bad = [
        {"type": "transfer", "pool": POOL, "ts": TS, "seq": 4, "account": "a", "amount": "0", "id": "x"},
        {"type": "transfer", "pool": POOL, "ts": TS, "seq": 4, "account": "a", "amount": "0.0000001", "id": "x"},
        {"type": "topUp", "pool": POOL, "ts": TS, "seq": 4, "amount": "1"},
        {"type": "topUp", "pool": POOL, "ts": 9 * TS, "seq": 4, "amount": "1", "id": "x"},
        {"type": "nonsense", "pool": POOL},
    ]
    data = await world.data(msgspec.json.encode([*EVENTS, *bad]))
    reasons = ["invalid_field", "too_many_decimals", "invalid_field", "ts_ahead", "unknown_type"]
    assert [(one["index"], one["reason"]) for one in data["rejected"]] == list(enumerate(reasons, 3))
    await world.settled()
    assert [one.reason for one in await world.reader.rejected()] == reasons


OF_OTHER_POOLS = [TopUp("OTHER", TS, 1, "5", "x"), Enable("OTHER", TS, 2, "a"), Transfer("", TS, 3, "a", "1", "y")]


@pytest.mark.parametrize("kind", [JSON, NDJSON, MSGPACK])
async def test_events_of_unknown_pools_are_rejected_and_kept_with_that_reason(world, kind):
    codec = "msgpack" if kind == MSGPACK else "json"
    body = b"\n".join(map(msgspec.json.encode, OF_OTHER_POOLS)) if kind == NDJSON else encode(OF_OTHER_POOLS, codec)
    data = await world.data(body, kind)
    assert [one["reason"] for one in data["rejected"]] == ["unknown_pool"] * 3
    assert await world.client.xlen(stream_key(0)) == 1
    await eventually(lambda: world.engine.count("fundsvc_rejected_total", reason="unknown_pool") == 3)
    kept = await list_rejected(world.database)
    assert {(one.reason, one.settled_at) for one in kept} == {("unknown_pool", None)}
    assert "no pool 'OTHER' is configured" in kept[0].detail


async def test_an_event_without_a_pool_is_of_an_unknown_type(world):
    data = await world.data(msgspec.json.encode([{"type": "deposit"}, {"type": "topUp", "pool": 5}]))
    assert [one["reason"] for one in data["rejected"]] == ["unknown_type"] * 2
    await eventually(lambda: world.engine.count("fundsvc_rejected_total", reason="unknown_type") == 2)


@pytest.mark.parametrize("event", [Tick(POOL, TS), TermsChange(POOL, TS, 2, TERMS.rules())])
async def test_events_of_the_owner_are_not_accepted(world, event):
    status, answer = await world.post(encode([*EVENTS, event]))
    assert (status, answer["code"]) == (400, "400100")
    assert f"type {event.__struct_config__.tag}, which only the service appends" in answer["msg"]
    assert not await world.client.exists(KEY)


async def test_cursor_has_the_last_sequence_of_each_pool(world):
    await world.data(encode(EVENTS))
    state = await world.settled()
    async with world.http.get("/api/v1/ingest/cursor", headers=bearer("engine")) as answer:
        (cursor,) = (await answer.json())["data"]["pools"]
    assert cursor == {"pool": POOL, "partition": 0, "stream": KEY, "lastId": state.last_id, "seq": 3}
