"""Expensive bodies: compressed ones, and those with a million tiny events."""

import gzip
import time
import tracemalloc
import zlib

import msgspec
import pytest
from conftest import with_section
from raw import exchange
from served import INGEST, contract, served
from tokens import bearer, signed

from fundsvc.api.http.errors import TooLarge
from fundsvc.api.ingest import read_submission
from fundsvc.core.events import Rejection
from fundsvc.wire.codec import EVENTS_PER_MESSAGE_MAX, Contents, Message, decode

BOMB = gzip.compress(bytes(100_000_000), 9)
"""A hundred thousand bytes that expand to a hundred million."""

ROUTES = [
    ("POST", INGEST),
    ("POST", "/api/v1/adl/XBTUSDTM/preview"),
    ("POST", "/api/v1/bullet-public"),
    ("POST", "/api/v1/bullet-private"),
    ("GET", "/api/v1/insurance-fund"),
    ("GET", "/api/v1/insurance-fund/XBTUSDTM"),
    ("GET", "/readyz"),
    ("POST", "/healthz"),
    ("PUT", "/metrics"),
    ("POST", "/none"),
    ("PATCH", "/api/v1/adl/XBTUSDTM/queue"),
    ("DELETE", "/"),
    ("HEAD", "/page/none/none"),
    ("GET", "/ws"),
]

CODINGS = ["gzip", "deflate", "br", "zstd", "GZIP", "x-gzip", "identity, gzip", "gzip, identity", "gzip,,", "unknown", "\u00e9"]


@pytest.fixture
def config(config):
    return with_section(config, "http", requests_max=100_000)


@pytest.fixture
async def service(config):
    async with served(config) as service:
        yield service


def address(service):
    return service.url


@pytest.mark.parametrize(
    "authorization", ["", "Authorization: Bearer garbage\r\n", f"Authorization: Bearer {signed('engine')}\r\n"]
)
async def test_compressed_body_is_rejected_first_on_every_route(service, authorization, subtests):
    for method, path in ROUTES:
        with subtests.test(method=method, path=path):
            length = f"Content-Encoding: gzip\r\nContent-Length: {len(BOMB)}\r\n"
            head = f"{method} {path} HTTP/1.1\r\nHost: x\r\n{authorization}{length}\r\n"
            started = time.process_time()
            if method == "HEAD":
                async with service.http.head(path, headers={"Content-Encoding": "gzip"}) as answer:
                    status, body = answer.status, b'"415000"'
            else:
                status, body = await exchange(address(service), head.encode() + BOMB)
            assert time.process_time() - started < 0.5
            assert (status, b'"415000"' in body) == (415, True), body


@pytest.mark.parametrize("coding", CODINGS)
async def test_content_coding_is_rejected(service, coding):
    for name in ("Content-Encoding", "content-encoding"):
        head = f"POST {INGEST} HTTP/1.1\r\nHost: x\r\n{name}: {coding}\r\nContent-Length: 2\r\n\r\n[]"
        assert (await exchange(address(service), head.encode()))[0] == 415
    two = head.replace("\r\n\r\n", "\r\nContent-Encoding: identity\r\n\r\n")
    assert (await exchange(address(service), two.encode()))[0] in {415, 400}


@pytest.mark.parametrize("coding", ["gzip, chunked", "deflate, chunked"])
async def test_transfer_coding_is_rejected(service, coding):
    head = f"POST {INGEST} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: {coding}\r\n\r\n"
    packed = zlib.compress(b"[]")
    body = f"{len(packed):x}\r\n".encode() + packed + b"\r\n0\r\n\r\n"
    assert (await exchange(address(service), head.encode() + body))[0] in {415, 400}


@pytest.mark.parametrize("coding", ["identity", "Identity", "", "identity, identity"])
async def test_identity_coding_is_accepted(service, coding):
    headers = {**bearer("engine"), "Content-Encoding": coding, "Content-Type": "application/json"}
    body = msgspec.json.encode([contract("AAA")])
    async with service.http.post(INGEST, data=body, headers=headers) as answer:
        assert (answer.status, (await answer.json())["data"]["accepted"]) == (200, 1)


def arrays():
    """Returns bodies of each kind, close to the size limit, with a million values that are not events."""
    return {
        "lines of ones": ("application/x-ndjson", b"1\n" * 1_950_000),
        "lines that end with CR": ("application/x-ndjson", b"1\r" * 1_950_000),
        "lines that end with CR LF": ("application/x-ndjson", b"1\r\n" * 1_300_000),
        "lines of objects": ("application/x-ndjson", b"{}\n" * 1_300_000),
        "array of ones": ("application/json", b"[" + b"1," * 1_949_999 + b"1]"),
        "array of texts": ("application/json", b"[" + b'"",' * 1_299_999 + b'""]'),
        "array of objects": ("application/json", b"[" + b"{}," * 1_299_999 + b"{}]"),
        "array of arrays": ("application/json", b"[" + b"[]," * 1_299_999 + b"[]]"),
        "array with spaces": ("application/json", b"[" + b"1 , " * 970_000 + b"1]"),
        "packed ones": ("application/msgpack", msgspec.msgpack.encode([1] * 3_900_000)),
        "packed objects": ("application/msgpack", msgspec.msgpack.encode([{}] * 3_900_000)),
        "packed short array": ("application/msgpack", b"\xdc\xff\xff" + b"\x01" * 65_535),
    }


@pytest.mark.parametrize("name", arrays())
async def test_events_are_counted_before_they_are_decoded(name):
    kind, body = arrays()[name]
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(TooLarge, match="the body has at least 10001 events: send at most 10000"):
        await read_submission(kind, body)
    assert time.process_time() - started < 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < max(len(body), 1_000_000)


@pytest.mark.parametrize("name", arrays())
async def test_service_rejects_too_many_events_and_appends_nothing(service, name):
    kind, body = arrays()[name]
    before = await service.client.dbsize()
    status, answer = await service.post(body=body, kind=kind)
    assert (status, answer["code"]) == (413, "413000"), answer
    assert await service.client.dbsize() == before


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_events_of_stream_messages_are_counted_before_they_are_decoded(codec):
    body = arrays()["array of ones" if codec == "json" else "packed ones"][1]
    tracemalloc.start()
    (rejection,) = decode(Message("1-1", codec, body))
    contents = Contents(Message("1-1", codec, body))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(body)
    assert isinstance(rejection, Rejection)
    assert contents.size == 1
    assert str(contents.run(0, 1)[0]) == str(rejection) == "at least 10001 events: send at most 10000 in a message"
    assert contents.raw(0) == body


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/x-ndjson", b"1\n" * EVENTS_PER_MESSAGE_MAX),
        ("application/x-ndjson", b"\n \r\n" * 100_000 + b" 1 \n\t1\r" * (EVENTS_PER_MESSAGE_MAX // 2)),
        ("application/json", msgspec.json.encode([1] * EVENTS_PER_MESSAGE_MAX)),
        ("application/msgpack", msgspec.msgpack.encode([1] * EVENTS_PER_MESSAGE_MAX)),
    ],
)
async def test_maximum_number_of_events_is_accepted(kind, body):
    submission = await read_submission(kind, body)
    assert len(submission.events) == len(submission.raws) == EVENTS_PER_MESSAGE_MAX
    assert {bytes(raw).strip() for raw in submission.raws} <= {b"1", b"\x01"}
