"""Ingest over HTTP: the answers, and the decisions of settlement, with real streams and a real ledger."""

import gzip
import random
from contextlib import asynccontextmanager
from typing import get_args

import aiohttp
import msgspec
import pytest
from conftest import with_section
from escalations import LISTING, SYMBOL, TS, crowd, mark
from eventually import eventually
from ledgers import fill, listing
from structlog.testing import capture_logs
from test_engine import running
from tokens import bearer, with_secret

from fundsvc.api.contracts import ContractResources
from fundsvc.api.http.access import AccessControl
from fundsvc.api.http.application import make_app
from fundsvc.api.http.middleware import Middleware
from fundsvc.api.http.server import serve
from fundsvc.api.http.shared_limits import local_windows
from fundsvc.api.ingest import Ingest
from fundsvc.api.stream_epochs import StreamEpochs
from fundsvc.core.contracts import partition_of
from fundsvc.core.events import AdlTimeout, PolicyChange, Position, Rate
from fundsvc.core.policy import Policy
from fundsvc.metrics import Metrics
from fundsvc.mutual.codec import AnyEvent as AnyPoolEvent
from fundsvc.mutual.codec import OwnEvent as OwnPoolEvent
from fundsvc.mutual.codec import PostedEvent as PostedPoolEvent
from fundsvc.mutual.store.reader import MutualReader
from fundsvc.store.database import open_pool
from fundsvc.store.reader import Reader
from fundsvc.store.stream_epochs import EpochStore
from fundsvc.streams.client import StreamFault, open_client, stream_key
from fundsvc.streams.producer import Producer
from fundsvc.wire.codec import AnyEvent, OwnEvent, PostedEvent, encode

JSON, NDJSON, MSGPACK = "application/json", "application/x-ndjson", "application/msgpack"
PATH = "/api/v1/ingest/events"
UNKNOWN_TYPE = b'{"type":"fil","symbol":"XBTUSDTM"}'
EVENTS = [LISTING, mark(39000), fill(SYMBOL, 1, 5, TS), fill(SYMBOL, 2, -3, TS + 1)]


def lines(events):
    return b"\n".join(map(msgspec.json.encode, events)) + b"\n"


BODIES = {JSON: encode(EVENTS), NDJSON: lines(EVENTS), MSGPACK: encode(EVENTS, "msgpack")}


class World:
    """The ingest API with its stream, database and engine."""

    def __init__(self, http, client, pool, config, engine):
        self._engine = engine
        self.http = http
        self.client = client
        self.pool = pool
        self._partitions = config.stream.partitions

    def regressions(self):
        return self._engine.count("fundsvc_stream_regressions_total")

    async def post(self, body, kind=JSON, **headers):
        headers = {**bearer("engine"), "Content-Type": kind, **headers}
        async with self.http.post(PATH, data=body, headers=headers) as answer:
            return answer.status, await answer.json()

    async def cursor(self, **claims):
        async with self.http.get("/api/v1/ingest/cursor", headers=bearer("engine", **claims)) as answer:
            assert answer.status == 200
            return (await answer.json())["data"]

    async def data(self, body, kind=JSON):
        status, answer = await self.post(body, kind)
        assert (status, answer["code"]) == (200, "200000"), answer
        return answer["data"]

    async def messages(self, partition=0):
        return [(key.decode(), fields) for key, fields in await self.client.xrange(stream_key(partition))]

    async def settled(self):
        async def done():
            rows = await self.pool.fetch("SELECT partition, last_id FROM partitions")
            return all([await self._is_at_end(row["partition"], row["last_id"]) for row in rows])

        await eventually(done)

    async def entries(self):
        await self.settled()
        return [tuple(row) for row in await self.pool.fetch("SELECT symbol, seq FROM entries ORDER BY symbol, entry")]

    async def kept(self):
        await self.settled()
        rows = await self.pool.fetch("SELECT position, reason, body FROM rejected ORDER BY stream_id, position")
        return [(row["position"], row["reason"], row["body"]) for row in rows]

    async def _is_at_end(self, partition, last_id):
        messages = await self.messages(partition)
        return not messages or messages[-1][0] == last_id


@asynccontextmanager
async def world_of(config, make=Producer):
    """Serves the ingest routes with access control; `make` creates the producer."""
    config = with_secret(config)
    async with open_pool(config.database.dsn, 4) as pool, open_client(config.stream) as client:
        access_control = AccessControl(config.http, config.token, *local_windows(config.http))
        reader, producer = Reader(pool), make(client, config.stream.partitions)
        epochs = StreamEpochs(EpochStore(pool), producer, config.stream.partitions)
        ingest = Ingest(config, reader, producer, epochs, access_control)
        contracts = ContractResources(reader, stream_key, epochs, MutualReader(pool))
        app = make_app(Middleware(Metrics(), access_control), (ingest.endpoint, *contracts.routes))
        async with serve(app, "127.0.0.1", 0) as url, aiohttp.ClientSession(url) as http, running(config) as engine:
            yield World(http, client, pool, config, engine)


@pytest.fixture
def config(config):
    return with_section(config, "engine", lease_seconds=0.6)


@pytest.fixture
async def world(config):
    async with world_of(config) as world:
        yield world


@pytest.mark.parametrize("kind", BODIES)
async def test_events_after_their_contracts_listing_in_one_body_are_settled(world, kind):
    answer = await world.data(BODIES[kind], kind)
    ((stream_id, fields),) = await world.messages()
    run_id = (await world.client.info("server"))["run_id"]
    assert answer == {
        "accepted": 4,
        "messages": [{"partition": 0, "stream": stream_key(0), "id": stream_id, "runId": run_id}],
        "rejected": [],
        "streamEpoch": 1,
    }
    assert await world.entries() == [(SYMBOL, 1), (SYMBOL, 2)]
    assert await world.kept() == []
    if kind != NDJSON:
        assert list(fields.values()) == [BODIES[kind]]


FORMULAS = ({"trade_id": "=1"}, {"order_id": "@SUM(1+1)"}, {"account": "-1"}, {"account": "+1"}, {"trade_id": "\uff1d1"})
NAMELESS = [
    *(msgspec.structs.replace(fill(SYMBOL, 1, 5, TS), **fields) for fields in FORMULAS),
    *(Position(SYMBOL, account, 1, "39000", "1", TS, owner=owner) for account, owner in (("=a", ""), ("a", "-a"), ("\ta", ""))),
    Rate("=A", "1", TS),
]


async def test_spreadsheet_formulas_as_names_are_rejected_by_answer_and_settlement(world):
    listed = [listing(symbol) for symbol in (".", "..", "=A", "@A")]
    answer = await world.data(encode([LISTING, *NAMELESS, *listed]))
    predicted = [(row["index"], row["reason"]) for row in answer["rejected"]]
    reasons = ["invalid_field"] * len(NAMELESS) + ["contract_invalid"] * len(listed)
    assert predicted == list(enumerate(reasons, 1))
    assert [(position, reason) for position, reason, _ in await world.kept()] == predicted
    assert await world.entries() == []


async def test_single_event_is_accepted(world):
    assert (await world.data(msgspec.json.encode(LISTING)))["accepted"] == 1
    assert (await world.data(msgspec.msgpack.encode(EVENTS[2]), MSGPACK))["accepted"] == 1
    assert await world.entries() == [(SYMBOL, 1)]


@pytest.mark.parametrize("kind", [JSON, NDJSON])
async def test_rejected_events_are_answered_and_kept_and_the_others_settled(world, kind):
    odd = [
        UNKNOWN_TYPE,
        msgspec.json.encode(fill("NONEUSDTM", 1, 1)),
        msgspec.json.encode(mark("39000.1234567890123")),
        b'{"type":"fill","symbol":"XBTUSDTM","seq":9,"side":"sell","lots":1,"price":"1","ts":1}',
        b'{"type":"mark","symbol":"XBTUSDTM","price":"1","ts":1,"indexprice":"1"}',
        b'{"type":"rate","currency":"XBT","price":"-1","ts":1700000000000}',
        b'{"type":"contract","contract":{"symbol":"X"}}',
    ]
    parts = [*map(msgspec.json.encode, EVENTS[:3]), *odd, msgspec.json.encode(EVENTS[3])]
    answer = await world.data(b"[" + b",".join(parts) + b"]" if kind == JSON else b"\n".join(parts), kind)
    reasons = [
        "unknown_type",
        "unknown_symbol",
        "too_many_decimals",
        "not_a_liquidation",
        "invalid_field",
        "invalid_number",
        "contract_invalid",
    ]
    assert answer["accepted"] == 4
    assert [(row["index"], row["reason"]) for row in answer["rejected"]] == list(enumerate(reasons, 3))
    assert all(row["detail"] for row in answer["rejected"])
    assert await world.kept() == list(zip(range(3, 10), reasons, odd, strict=True))
    assert await world.entries() == [(SYMBOL, 1), (SYMBOL, 2)]


async def test_undecodable_lines_do_not_affect_other_lines(world):
    body = b"\r\n".join([msgspec.json.encode(LISTING), b"{half", b"", msgspec.json.encode(EVENTS[2]), b"7", b"[]"])
    answer = await world.data(body, NDJSON)
    assert (answer["accepted"], [row["index"] for row in answer["rejected"]]) == (2, [1, 3, 4])
    assert len(answer["messages"]) == 2
    assert await world.entries() == [(SYMBOL, 1)]
    assert await world.kept() == [(0, "undecodable", b"{half\n7\n[]")]


@pytest.mark.parametrize(
    ("kind", "body", "kept"),
    [
        (JSON, b"[{]", [b"[{]"]),
        (JSON, b"7", [b"7"]),
        (JSON, b"[1,{}]", [b"1", b"{}"]),
        (MSGPACK, b"\xc1", [b"\xc1"]),
        (NDJSON, b"<html>\n", [b"<html>"]),
    ],
)
async def test_body_without_any_event_is_answered_400_and_kept(world, kind, body, kept):
    status, answer = await world.post(body, kind)
    assert (status, answer["code"]) == (400, "400100")
    assert "kept" in answer["msg"]
    assert await world.kept() == [(position, "undecodable", raw) for position, raw in enumerate(kept)]


OWN = AdlTimeout(SYMBOL, 1, 1, TS), PolicyChange(2, Policy(), {}, TS)


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("event", OWN, ids=lambda event: type(event).__name__)
async def test_event_that_only_the_service_appends_is_refused_with_the_whole_body(world, event, kind):
    events = [*EVENTS, event]
    body = {JSON: encode(events), NDJSON: lines(events), MSGPACK: encode(events, "msgpack")}[kind]
    status, answer = await world.post(body, kind)
    assert (status, answer["code"]) == (400, "400100")
    assert f"event 4 has the type {event.__struct_config__.tag}, which only the service appends" in answer["msg"]
    assert await world.messages() == []


def test_only_the_types_of_the_documented_events_may_be_posted():
    owned = {*get_args(AnyEvent), *get_args(AnyPoolEvent)} - {*get_args(PostedEvent), *get_args(PostedPoolEvent)}
    assert {kind.__struct_config__.tag for kind in owned} == {"adlTimeout", "policy", "tick", "terms"}
    assert owned == {*get_args(OwnEvent), *get_args(OwnPoolEvent)}


async def test_empty_array_appends_nothing(world):
    assert await world.data(b"[]") == {"accepted": 0, "messages": [], "rejected": [], "streamEpoch": 1}
    assert await world.messages() == []


@pytest.mark.parametrize("partitions", [3])
@pytest.mark.parametrize("kind", BODIES)
async def test_each_partition_receives_its_events_in_order(config, kind):
    symbols = [f"S{number}USDTM" for number in range(12)]
    events = [listing(symbol) for symbol in symbols]
    events += [fill(symbol, seq, seq % 3 - 1) for seq in range(1, 5) for symbol in symbols]
    events += [Rate("XBT", "90000", TS), fill("NONEUSDTM", 1, 1)]
    body = {JSON: encode(events), NDJSON: lines(events), MSGPACK: encode(events, "msgpack")}[kind]
    async with world_of(config) as world:
        answer = await world.data(body, kind)
        assert (answer["accepted"], [row["index"] for row in answer["rejected"]]) == (61, [61])
        assert [message["partition"] for message in answer["messages"]] == [0, 1, 2]
        assert await world.entries() == [(symbol, seq) for symbol in sorted(symbols) for seq in range(1, 5)]
        assert [reason for _, reason, _ in await world.kept()] == ["unknown_symbol"]
        for partition in range(3):
            ((_, fields),) = await world.messages(partition)
            decode = msgspec.msgpack.decode if kind == MSGPACK else msgspec.json.decode
            sent = decode(next(iter(fields.values())))
            assert sum(event["type"] == "rate" for event in sent) == 1
            assert {partition_of(event["symbol"], 3) for event in sent if "symbol" in event} == {partition}


async def test_answer_predicts_rejection_of_lots_that_contradict_their_leg(world):
    symbol = LISTING.contract["symbol"]
    legs = [("LONG", 1), ("LONG", -1), ("LONG", 0), ("SHORT", -1), ("SHORT", 1), ("SHORT", 0), ("BOTH", -1)]
    events = [Position(symbol, "anna", lots, "5", "1", TS, position_side=side) for side, lots in legs]
    answer = await world.data(encode([LISTING, *events]))
    predicted = [(row["index"], row["reason"]) for row in answer["rejected"]]
    assert predicted == [(2, "invalid_field"), (5, "invalid_field")]
    assert [(position, reason) for position, reason, _ in await world.kept()] == predicted


async def test_large_undecodable_line_does_not_affect_other_lines(world):
    symbol = LISTING.contract["symbol"]
    answer = await world.data(lines([LISTING, fill(symbol, 1, 1)]) + b"x" * 300_000 + b"\n", NDJSON)
    assert answer["accepted"] == 2
    assert await world.entries() == [(symbol, 1)]


async def test_answer_predicts_the_rejections_of_settlement(world):
    """Shuffled events with numbers, accounts and contracts of all kinds."""
    await world.data(encode([LISTING]))
    events = list(crowd(3, changes=600))
    random.Random(1).shuffle(events)
    await world.settled()
    before = len(await world.kept())
    answer = await world.data(encode(events))
    predicted = [(row["index"], row["reason"]) for row in answer["rejected"]]
    assert predicted == [(position, reason) for position, reason, _ in (await world.kept())[before:]]
    assert len(predicted) > 20


@pytest.mark.parametrize("partitions", [1, 3])
async def test_answer_predicts_listings_beyond_contracts_max(config, partitions):
    """In one body, in bodies that are posted before settlement, and for contracts that are listed already."""
    config = with_section(config, "stream", contracts_max=2)
    symbols = [f"S{number}USDTM" for number in range(12)]
    async with world_of(config) as world:
        predicted = []
        for batch in (symbols[:3], symbols[3:5], symbols[5:], symbols[:2]):
            answer = await world.data(encode([listing(symbol) for symbol in batch]))
            predicted += [batch[row["index"]] for row in answer["rejected"]]
            assert {row["reason"] for row in answer["rejected"]} <= {"too_many_contracts"}
        await world.settled()
        kept = [msgspec.json.decode(body)["contract"]["symbol"] for _, _, body in await world.kept()]
        assert sorted(kept) == sorted(predicted)
        assert len(predicted) == len(symbols) - 2 * partitions
        answer = await world.data(encode([fill(symbol, 1, 1) for symbol in symbols]))
        assert [symbols[row["index"]] for row in answer["rejected"]] == [one for one in symbols if one in predicted]


async def test_arbitrary_bytes_receive_an_answer(world):
    chance = random.Random(7)
    whole = [*BODIES.items(), (JSON, b"[[[" * 2000), (JSON, b'{"type":"contract","contract":{"symbol":"\\ud800"}}')]
    whole.append((JSON, b'[{"type":"mark","symbol":"\\udfff","price":"1","ts":1},{"type":"contract","contract":{}}]'))
    for _ in range(300):
        kind, body = chance.choice(whole)
        changed = bytearray(body)
        for _ in range(chance.randrange(4)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        status, _ = await world.post(bytes(changed)[: chance.randrange(1, len(changed) + 1)], kind)
        assert status in {200, 400}
    await world.settled()


async def test_body_declared_as_compressed_is_rejected(world):
    packed = gzip.compress(BODIES[JSON])
    for body in (packed, BODIES[JSON], packed[:10] + packed[:9:-1]):
        with capture_logs() as logs:
            status, answer = await world.post(body, **{"Content-Encoding": "gzip"})
        assert (status, answer["code"]) == (415, "415000")
        assert "send the body uncompressed" in answer["msg"]
        assert [line for line in logs if line["event"] == "request failed"] == []


async def test_body_size_is_limited(config):
    async with world_of(with_section(config, "http", ingest_bytes_max=1_000_000)) as world:
        assert (await world.post(b" " * 999_999 + b"x"))[0] == 400
        status, answer = await world.post(b" " * 1_000_001)
        assert (status, answer["code"]) == (413, "413000")
        status, answer = await world.post(b"1\n" * 10_001, NDJSON)
        assert (status, answer["code"]) == (413, "413000")
        assert "10001 events: send at most 10000" in answer["msg"]
        assert (await world.post(b""))[0] == 400
        for kind in ("text/plain", "application/octet-stream"):
            status, answer = await world.post(BODIES[JSON], kind)
            assert (status, answer["code"]) == (415, "415000")
            assert all(known in answer["msg"] for known in BODIES)
        assert len(await world.messages()) == 1


async def test_events_have_a_separate_rate_limit(config):
    async with world_of(with_section(config, "http", ingest_events_max=10_000, requests_seconds=3600, requests_max=1)) as world:
        async with world.http.post(
            PATH, data=encode([mark(1)] * 6000), headers={**bearer("engine"), "Content-Type": JSON}
        ) as first:
            assert first.status == 200
            assert (first.headers["gw-ratelimit-limit"], first.headers["gw-ratelimit-remaining"]) == ("10000", "3999")
        status, answer = await world.post(encode([mark(1)] * 6000))
        assert (status, answer["code"]) == (429, "429000")
        assert len(await world.messages()) == 1
        assert (await world.post(encode([mark(1)] * 3000)))[0] == 200


async def test_unreachable_stream_is_answered_with_503_and_events_can_be_resent(config, servers):
    async with world_of(config) as world:
        await world.data(BODIES[JSON])
        assert await world.entries() == [(SYMBOL, 1), (SYMBOL, 2)]
        more = encode([EVENTS[3], fill(SYMBOL, 3, 1)])
        servers.valkey.stop()
        try:
            status, answer = await world.post(more)
            assert (status, answer["code"]) == (503, "503000")
            assert "partitions with all events: none" in answer["msg"]
        finally:
            servers.start()

        async def rejected():
            return (await world.post(more))[0] == 409

        await eventually(rejected)
        await world.cursor()
        await world.data(more)
        assert await world.entries() == [(SYMBOL, 1), (SYMBOL, 2), (SYMBOL, 3)]


class HalfUnreachable(Producer):
    """A producer whose stream of one partition is unreachable, as with a failed cluster node."""

    async def append_after(self, known, partition, field, bodies):
        if partition == 1:
            raise StreamFault("this node is unreachable")
        return await super().append_after(known, partition, field, bodies)


@pytest.mark.parametrize("partitions", [3])
async def test_partial_append_names_the_complete_partitions(config):
    async with world_of(config, HalfUnreachable) as world:
        status, answer = await world.post(encode([Rate("XBT", "90000", TS)]))
        assert (status, answer["code"]) == (503, "503000")
        assert "partitions with all events: 0;" in answer["msg"]
        assert [len(await world.messages(partition)) for partition in range(3)] == [1, 0, 0]
