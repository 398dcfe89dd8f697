"""Duplicate keys are rejected in every event of both codecs, and wherever JSON is read."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from served import contract, fill, served
from tokens import bearer

from fundsvc.api.http.tokens import read_keys
from fundsvc.config.settings import ConfigError
from fundsvc.core.events import AdlEnd, AdlFill, Fill, Listing, Mark, Position, Rate, Reason, Rejection, Snapshot
from fundsvc.wire.codec import Message, decode, encode
from fundsvc.wire.duplicate_keys import RepeatedKey, check_keys, decode_json, may_repeat

EVENTS = [
    Fill("S", 1, "sell", 1, "2", "1", 5),
    Fill("S", 2, "sell", 1, "2", "1", 5, "t", "o:1", 'a"b\\'),
    Fill("S", 2, "sell", 1, "2", "1", 5, prev_seq=1),
    Mark("S", "1", 5),
    Mark("S", "1", 5, "2", 3),
    Position("S", "a", 1, "1", "1", 5),
    Position("S", "a", 1, "1", "1", 5, "LONG", "owner", 7),
    Snapshot("S", "begin", 5),
    AdlFill("S", 3, 1, "a", 1, 5),
    AdlEnd("S", 4, 1, 5),
    Rate("XBT", "1", 5),
    Listing({"symbol": "S", "settleCurrency": "USDT", "multiplier": "0.001", "isInverse": False, "n": {"a": [{"b": 1}]}}),
]
MANY = st.lists(st.sampled_from(EVENTS), min_size=1, max_size=40)
CODECS = ["json", "msgpack"]


def pairs_of(event, codec):
    """Returns the encoded pairs of an event."""
    module = msgspec.json if codec == "json" else msgspec.msgpack
    return [(module.encode(key), module.encode(value)) for key, value in msgspec.to_builtins(event).items()]


def object_of(pairs, codec):
    if codec == "json":
        return b"{" + b",".join(key + b" :\n" + value for key, value in pairs) + b"}"
    return b"\xde" + len(pairs).to_bytes(2, "big") + b"".join(key + value for key, value in pairs)


def array_of(raws, codec):
    return b"[" + b",".join(raws) + b"]" if codec == "json" else b"\xdc" + len(raws).to_bytes(2, "big") + b"".join(raws)


@pytest.mark.parametrize("codec", CODECS)
@given(events=MANY, data=st.data())
def test_only_the_event_with_a_duplicate_key_is_rejected(codec, events, data):
    at = data.draw(st.integers(0, len(events) - 1))
    raws = [object_of(pairs_of(event, codec), codec) for event in events]
    pairs = pairs_of(events[at], codec)
    twice = data.draw(st.sampled_from(pairs))
    pairs.insert(data.draw(st.integers(0, len(pairs))), twice)
    raws[at] = object_of(pairs, codec)
    decoded = decode(Message("1-0", codec, array_of(raws, codec)))
    assert [index for index, event in enumerate(decoded) if isinstance(event, Rejection)] == [at]
    assert decoded[at].reason == Reason.INVALID_FIELD
    assert "twice" in decoded[at].detail
    (alone,) = decode(Message("1-0", codec, raws[at]))
    assert isinstance(alone, Rejection)


@pytest.mark.parametrize("codec", CODECS)
@given(events=MANY)
def test_events_without_duplicate_keys_decode_in_any_notation(codec, events):
    assert decode(Message("1-0", codec, encode(events, codec))) == events
    raws = [object_of(pairs_of(event, codec), codec) for event in events]
    assert decode(Message("1-0", codec, array_of(raws, codec))) == events


@pytest.mark.parametrize("codec", CODECS)
def test_events_of_engines_are_not_parsed_twice(codec):
    fills = [Fill("S", seq, "sell", 1, "2", "1", 5, f"t{seq}") for seq in range(1, 200)]
    assert not may_repeat(codec, encode(fills, codec), fills)
    assert not may_repeat(
        codec, msgspec.json.encode(fills[0]) if codec == "json" else msgspec.msgpack.encode(fills[0]), fills[:1]
    )
    assert not may_repeat(codec, encode(EVENTS[2:-1], codec), EVENTS[2:-1])


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        (b'{"a":1,"a":2}', True),
        (b'{"a":1,"\\u0061":2}', True),
        (b'{"b":{"a":1,"a":2}}', True),
        (b'[[{"a":1}],[{"a":1,"b":[{"c":1,"c":1}]}]]', True),
        (b'{"a":{"a":{"a":"a\\":1,\\"a"}}}', False),
        (b'[{"a":1},{"a":1}]', False),
        (b"1" * 5000, False),
    ],
)
def test_json_keys_are_compared_at_any_depth_in_any_notation(text, repeats):
    if repeats:
        with pytest.raises(RepeatedKey):
            check_keys("json", text)
        with pytest.raises(msgspec.DecodeError):
            decode_json(text, object)
    else:
        check_keys("json", text)


@pytest.mark.parametrize(
    "value",
    [
        b"\x82\xa1a\x01\xa1a\x02",
        b"\x82\xa1a\x01\xd9\x01a\x02",
        b"\x91\xdf\x00\x00\x00\x02\xa1a\x01\xa1a\x02",
        b"\x81\xa1b\xdd\x00\x00\x00\x01\x82\xa1a\xc0\xa1a\xc0",
    ],
)
def test_messagepack_keys_are_compared_at_any_depth(value):
    with pytest.raises(RepeatedKey):
        check_keys("msgpack", value)


@pytest.mark.parametrize("kind", ["application/json", "application/x-ndjson", "application/msgpack"])
async def test_duplicate_key_is_rejected_over_http_and_on_the_stream(config, kind):
    body = msgspec.json.encode(fill("TWICEUSDTM", 1)).replace(b'"lots":1000', b'"lots":1,"lots":1000000')
    if kind == "application/msgpack":
        body = msgspec.msgpack.encode(fill("TWICEUSDTM", 1, lots=1))
        body = bytes([body[0] + 1]) + body[1:] + b"\xa4lots\x02"
    async with served(config) as service:
        await service.send(contract("TWICEUSDTM"))
        answer = await service.send(body=body, kind=kind)
        assert [refused["reason"] for refused in answer["rejected"]] == ["invalid_field"]
        await service.client.xadd("fundsvc:{0}:in", {"msgpack" if "msgpack" in kind else "json": body})
        await service.settled()
        assert await service.reasons() == ["invalid_field"] * 2
        assert await service.entries("TWICEUSDTM") == []


async def test_listing_with_a_duplicate_key_is_rejected(config):
    body = msgspec.json.encode(contract("TWICEUSDTM")).replace(b'"multiplier":0.001', b'"multiplier":"0.001","multiplier":"1"')
    async with served(config) as service:
        answer = await service.send(body=body)
        assert [refused["reason"] for refused in answer["rejected"]] == ["invalid_field"]
        assert await service.pool.fetchval("SELECT count(*) FROM contracts") == 0


async def test_previews_and_topic_commands_with_a_duplicate_key_are_rejected(config):
    async with served(config) as service:
        await service.send(contract("TWICEUSDTM"))
        body = b'{"side":"sell","lots":1,"lots":2,"price":"1","bankruptcyPrice":"1"}'
        headers = {**bearer("risk"), "Content-Type": "application/json"}
        async with service.http.post("/api/v1/adl/TWICEUSDTM/preview", data=body, headers=headers) as answer:
            assert answer.status == 400
            assert "twice" in (await answer.json())["msg"]
        async with service.http.post("/api/v1/bullet-public") as answer:
            (server,) = (await answer.json())["data"]["instanceServers"]
            token = (await answer.json())["data"]["token"]
        async with service.http.ws_connect(server["endpoint"], params={"token": token}) as socket:
            assert (await socket.receive_json())["type"] == "welcome"
            await socket.send_str('{"id":"1","type":"ping","type":"ping"}')
            answer = await socket.receive_json()
            assert (answer["type"], "twice" in answer["data"]) == ("error", True)


def test_key_set_with_a_duplicate_key_is_refused(tmp_path):
    path = tmp_path / "keys.json"
    path.write_text('{"keys":[],"keys":[]}')
    with pytest.raises(ConfigError):
        read_keys(path)
