import hashlib

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fundsvc.core.events import AdlEnd, AdlFill, Event, Fill, Listing, Mark, Position, Rate, Reason, Rejection
from fundsvc.core.partition import Partition
from fundsvc.wire.codec import EVENT_BYTES_MAX, EVENTS_PER_MESSAGE_MAX, RUN_EVENTS, Contents, Message, decode, encode, excerpt

FILL = Fill("XBTUSDTM", 7, "sell", 1000, "39100", "39000.5", 1_765_416_983_918, "t", "o", "a")
EVENTS = [
    FILL,
    Fill("S", 2**63 - 1, "buy", 1, "1", "1", 0),
    Mark("S", "84478.9", 5, "84480"),
    Mark("S", "84478.9", 5),
    Position("S", "a", -(2**63 - 1), "1.5", "-2", 5),
    AdlFill("S", 1, 2, "a", 3, 4),
    AdlEnd("S", 1, 2, 3),
    Rate("XBT", "84478.9", 5),
    Listing({"symbol": "S", "type": "FFWCSX", "multiplier": -1.0, "list": ["a", None, True, 1]}),
]
"""One event of each kind and shape."""


def message(body: bytes, codec="json") -> Message:
    return Message("5-0", codec, body)


def only(body: bytes, codec="json") -> Event | Rejection:
    (event,) = decode(message(body, codec))
    return event


JSON_FILL = (
    b'{"type":"fill","symbol":"XBTUSDTM","seq":7,"side":"sell","lots":1000,"price":"39100","bankruptcyPrice":"39000.5",'
    b'"ts":1765416983918,"tradeId":"t","orderId":"o","account":"a"}'
)
MSGPACK_FILL = (
    b"\x8b\xa4type\xa4fill\xa6symbol\xa8XBTUSDTM\xa3seq\x07\xa4side\xa4sell\xa4lots\xcd\x03\xe8\xa5price\xa539100"
    b"\xafbankruptcyPrice\xa739000.5\xa2ts\xcf\x00\x00\x01\x9b\x0b\x0d\x5d\x6e\xa7tradeId\xa1t\xa7orderId\xa1o\xa7account\xa1a"
)


@pytest.mark.parametrize(
    ("codec", "body", "event"),
    [
        ("json", JSON_FILL, FILL),
        ("msgpack", MSGPACK_FILL, FILL),
        ("json", b'{"type":"mark","symbol":"S","price":"1","ts":5,"indexPrice":null}', Mark("S", "1", 5)),
        (
            "msgpack",
            b"\x85\xa4type\xa6adlEnd\xa6symbol\xa1S\xa3seq\x01\xa3adl\x02\xa2ts\x03",
            AdlEnd("S", 1, 2, 3),
        ),
        ("json", b'{"type":"contract","contract":{"symbol":"S","type":"FFWCSX"}}', Listing({"symbol": "S", "type": "FFWCSX"})),
    ],
)
def test_known_bytes_decode_to_known_events(codec, body, event):
    assert only(body, codec) == event
    array = b"[" + body + b"]" if codec == "json" else b"\x91" + body
    assert only(array, codec) == event


def test_known_events_encode_to_known_bytes():
    assert encode([FILL], "json") == b"[" + JSON_FILL + b"]"
    assert encode([FILL], "msgpack") == b"\x91" + MSGPACK_FILL
    assert encode([FILL]) == encode([FILL], "json")


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_every_event_round_trips(codec):
    assert list(decode(message(encode(EVENTS, codec), codec))) == EVENTS


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_empty_array_has_no_events(codec):
    assert list(decode(message(encode([], codec), codec))) == []


def test_order_of_fields_and_white_space_do_not_matter():
    assert only(b' [ {"ts": 3, "adl": 2, "seq": 1, "symbol": "S", "type": "adlEnd"} ]\n') == AdlEnd("S", 1, 2, 3)


FIELDS = msgspec.json.decode(JSON_FILL)


@pytest.mark.parametrize(
    ("fields", "reason", "detail"),
    [
        ({"type": "trade"}, Reason.UNKNOWN_TYPE, "'trade'"),
        ({"type": ""}, Reason.UNKNOWN_TYPE, "is unknown: use one of"),
        ({"type": "x" * 5000}, Reason.UNKNOWN_TYPE, "is unknown: use one of"),
        ({"type": 5}, Reason.UNDECODABLE, "not an event"),
        ({"type": None}, Reason.UNDECODABLE, "not an event"),
        ({"bankruptcyPrice": ...}, Reason.NOT_A_LIQUIDATION, "not a liquidation"),
        ({"bankruptcyPrice": None}, Reason.INVALID_FIELD, "bankruptcyPrice"),
        ({"bankruptcyprice": "1"}, Reason.INVALID_FIELD, "bankruptcyprice"),
        ({"symbol": ""}, Reason.INVALID_FIELD, "symbol"),
        ({"symbol": "S" * 65}, Reason.INVALID_FIELD, "symbol"),
        ({"symbol": ...}, Reason.INVALID_FIELD, "symbol"),
        ({"seq": 0}, Reason.INVALID_FIELD, "seq"),
        ({"seq": 2**63}, Reason.INVALID_FIELD, "seq"),
        ({"seq": 1.0}, Reason.INVALID_FIELD, "seq"),
        ({"seq": "1"}, Reason.INVALID_FIELD, "seq"),
        ({"seq": True}, Reason.INVALID_FIELD, "seq"),
        ({"lots": -1}, Reason.INVALID_FIELD, "lots"),
        ({"side": "long"}, Reason.INVALID_FIELD, "side"),
        ({"price": 39100}, Reason.INVALID_FIELD, "price"),
        ({"price": ""}, Reason.INVALID_FIELD, "price"),
        ({"price": "1" * 41}, Reason.INVALID_FIELD, "price"),
        ({"ts": -1}, Reason.INVALID_FIELD, "ts"),
        ({"ts": 253_402_300_800_000}, Reason.INVALID_FIELD, "ts"),
        ({"account": "a" * 65}, Reason.INVALID_FIELD, "account"),
    ],
)
def test_wrong_field_is_rejected_with_its_reason(fields, reason, detail):
    given = {key: value for key, value in (FIELDS | fields).items() if value is not ...}
    rejection = only(msgspec.json.encode(given))
    assert isinstance(rejection, Rejection)
    assert rejection.reason == reason
    assert detail in rejection.detail
    assert len(rejection.detail) <= 500


def test_only_a_fill_is_rejected_as_not_a_liquidation():
    rejection = only(b'{"type":"mark","symbol":"S","price":"1","ts":5,"bankruptcyPrice":"1"}')
    assert rejection.reason == Reason.INVALID_FIELD


@pytest.mark.parametrize("number", [b"9" * 60, b"9" * 6000, b"1e5", b"1e999", b"7.0", b"9223372036854775808", b"-0"])
def test_number_that_is_no_64_bit_integer_is_rejected(number):
    rejection = only(JSON_FILL.replace(b'"seq":7', b'"seq":' + number))
    assert rejection.reason == Reason.INVALID_FIELD
    assert "seq" in rejection.detail


def nested(depth: int) -> bytes:
    return b'{"type":"contract","contract":{"symbol":"S","x":' + b"[" * depth + b"]" * depth + b"}}"


@pytest.mark.parametrize(
    ("codec", "body"),
    [
        *(
            ("json", body)
            for body in (b"", b" ", b"nonsense", b"[", b"{", b"null", b"5", b'"fill"', b"[]]", b"\xff\xfe", b"\xef\xbb\xbf[]")
        ),
        ("json", JSON_FILL + JSON_FILL),
        ("json", JSON_FILL[:-1]),
        ("json", JSON_FILL.replace(b'"t"', b'"\\ud800"')),
        ("json", JSON_FILL.replace(b'"t"', b'"\xed\xa0\x80"')),
        ("json", JSON_FILL.replace(b'"t"', b'"\xff"')),
        ("json", b"[" * 100_000),
        ("json", b"[" * 100_000 + b"]" * 100_000),
        ("json", b'{"a":' * 20_000),
        ("json", nested(20_000)),
        *(
            ("msgpack", body)
            for body in (b"", b"\xc1", b"\xc0", b"\x81", b"\x91", b"\x91\x91\x91", b"\xa4fill", b"\xdb\xff\xff\xff\xff")
        ),
        ("msgpack", MSGPACK_FILL[:-1]),
        ("msgpack", MSGPACK_FILL + b"\xc0"),
        ("msgpack", MSGPACK_FILL.replace(b"\xa1t", b"\xa1\xff")),
        ("msgpack", MSGPACK_FILL.replace(b"\xa1t", b"\xa3\xed\xa0\x80")),
        ("msgpack", b"\x91" * 100_000),
        ("msgpack", b"\xdd\xff\xff\xff\xff"),
        ("msgpack", b"\xdf\xff\xff\xff\xff"),
        ("msgpack", b"\xc6\xff\xff\xff\xff"),
        ("msgpack", b"\xd6\xff\x00\x00\x00\x01"),
        ("", b"\x90"),
    ],
)
def test_bytes_without_an_event_are_rejected_as_a_whole(codec, body):
    rejection = only(body, codec)
    assert isinstance(rejection, Rejection)
    assert rejection.reason == Reason.UNDECODABLE
    assert rejection.detail.isprintable()
    assert Contents(message(body, codec)).raw(0) == body


def test_illegal_event_does_not_affect_its_neighbours():
    parts = [JSON_FILL, b'{"type":"trade"}', b"5", b'["x"]', b'{"type":"adlEnd","symbol":"S","seq":1,"adl":2,"ts":3}']
    body = b" [" + b" , ".join(parts) + b" ] "
    events = decode(message(body))
    assert events[0] == FILL
    assert [event.reason for event in events[1:4]] == [Reason.UNKNOWN_TYPE, Reason.UNDECODABLE, Reason.UNDECODABLE]
    assert events[4] == AdlEnd("S", 1, 2, 3)
    assert [Contents(message(body)).raw(position) for position in range(5)] == parts


def test_raw_returns_the_bytes_of_one_messagepack_event():
    parts = [MSGPACK_FILL, b"\xc0", b"\x81\xa4type\xa5trade"]
    body = b"\x93" + b"".join(parts)
    events = decode(message(body, "msgpack"))
    assert events[0] == FILL
    assert [event.reason for event in events[1:]] == [Reason.UNDECODABLE, Reason.UNKNOWN_TYPE]
    assert [Contents(message(body, "msgpack")).raw(position) for position in range(3)] == parts


def test_raw_returns_the_whole_message_of_a_single_event():
    assert Contents(message(JSON_FILL)).raw(0) == JSON_FILL
    assert Contents(message(MSGPACK_FILL, "msgpack")).raw(0) == MSGPACK_FILL


def test_message_with_too_many_events_is_rejected():
    end = AdlEnd("S", 1, 2, 3)
    full = encode([end] * EVENTS_PER_MESSAGE_MAX)
    assert len(decode(message(full))) == EVENTS_PER_MESSAGE_MAX
    over = encode([end] * (EVENTS_PER_MESSAGE_MAX + 1))
    for body in (over, over.replace(b'"ts":3', b'"ts":"3"', 1)):
        rejection = only(body)
        assert rejection.reason == Reason.UNDECODABLE
        assert str(EVENTS_PER_MESSAGE_MAX) in rejection.detail
        assert Contents(message(body)).raw(0) == body


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize("count", [1, 3, RUN_EVENTS, 5 * RUN_EVENTS + 7, EVENTS_PER_MESSAGE_MAX])
def test_contents_returns_the_same_events_in_any_portions(codec, count):
    events = [FILL, AdlEnd("S", 1, 2, 3)] * count
    whole = message(encode(events[:count], codec), codec)
    contents, position, found = Contents(whole), 0, []
    while position < contents.size:
        run = contents.run(position, 1 + position % 600)
        found += run
        position += len(run)
    assert found == events[:count] == list(decode(whole))
    assert decode(message(contents.raw(count - 1), codec)) == [events[count - 1]]


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize("neighbours", [[], [FILL]])
def test_event_above_the_byte_limit_is_rejected(codec, neighbours):
    large = Listing({"symbol": "A", "notes": "x" * EVENT_BYTES_MAX})
    whole = message(encode([large, *neighbours], codec), codec)
    events = Contents(whole).run(0, 2)
    assert events[0].reason == Reason.TOO_LARGE
    assert list(events[1:]) == neighbours
    assert decode(whole)[0].reason == Reason.TOO_LARGE
    if codec == "json":
        assert only(encode([large])[1:-1]).reason == Reason.TOO_LARGE


def test_excerpt_keeps_beginning_and_digest_of_an_oversized_message():
    whole = message(b"x" * 100_000)
    kept = excerpt(whole, 50_000)
    assert kept.body == whole.body[:1000]
    (rejection,) = decode(kept)
    assert rejection.reason == Reason.TOO_LARGE
    assert hashlib.sha256(whole.body).hexdigest() in rejection.detail
    assert Contents(kept).raw(0) == kept.body


def test_quoted_text_of_a_message_is_printable_and_short():
    rejection = only(msgspec.json.encode({"type": "\0\n" + "x" * 5000}))
    assert rejection.detail.isprintable()
    assert only(msgspec.json.encode(FIELDS | {"\0" * 900: 1})).detail.isprintable()


def settle(codec: str, body: bytes) -> None:
    """Decodes a message as the pipeline does; fails on anything but legal events and rejections."""
    found = decode(message(body, codec))
    partition = Partition(0, 1, [], {"USDT": 8}, 10)
    partition.apply(Listing({"symbol": "XBTUSDTM", "settleCurrency": "USDT", "multiplier": 1, "isInverse": False}))
    for position, event in enumerate(found):
        assert isinstance(event, Event | Rejection)
        raw = Contents(message(body, codec)).raw(position)
        assert len(found) > 1 or raw == body or raw in body
        try:
            partition.apply(event)
        except Rejection as rejection:
            assert_can_be_kept(rejection)
    for entry in partition.batch.entries:
        for text in (entry.symbol, entry.trade_id, entry.order_id, entry.account):
            assert "\0" not in text.encode().decode()
    for _, specification in partition.batch.listings.values():
        assert b"\\u0000" not in msgspec.json.encode(specification)


def assert_can_be_kept(rejection: Rejection) -> None:
    """PostgreSQL's text accepts any UTF-8 except NUL."""
    assert "\0" not in rejection.detail.encode().decode()
    assert rejection.reason in Reason


CODECS = st.sampled_from(["json", "msgpack"])


@settings(max_examples=4 * settings().max_examples)
@given(CODECS, st.binary(max_size=200))
@example("msgpack", b"\xc7\x0c\xff\xff\xff\xff\xff\x7f\xff\xff\xff\xff\xff\xff\xff")
def test_any_bytes_decode_to_legal_events_or_rejections(codec, body):
    settle(codec, body)


@settings(max_examples=8 * settings().max_examples)
@given(CODECS, st.lists(st.sampled_from(EVENTS), min_size=1, max_size=3), st.booleans(), st.data())
def test_mutated_message_decodes_to_legal_events_or_rejections(codec, events, single, data):
    body = bytearray(encode(events, codec) if not single else getattr(msgspec, codec).encode(events[0]))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(body)))
        end = data.draw(st.integers(start, min(len(body), start + 8)))
        body[start:end] = data.draw(st.binary(max_size=8) | TOKENS)
    settle(codec, bytes(body))


TOKENS = st.sampled_from(
    [
        *(
            b"\\u0000",
            b"\\ud800",
            b'"',
            b"[",
            b"{",
            b"}",
            b"]",
            b",",
            b":",
            b"1e999",
            b"-",
            b"9" * 30,
            b"NaN",
            b"null",
            b"\x00",
        ),
        *(b"\xff", b"\xc0", b"\xc1", b"\xcf" + b"\xff" * 8, b"\xcb\x7f\xf8" + b"\0" * 6, b"\xd4\x05\x00", b"\x81\x90\x01"),
        *(b"\xd6\xff\x00\x00\x00\x01", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc7\x0c\xff" + b"\xff" * 12),
    ]
)
"""Values that cause errors in decoders."""

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63 - 1), 2**64 - 1)
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
    | st.binary(max_size=3)
    | st.datetimes()
    | st.builds(msgspec.msgpack.Ext, st.integers(0, 100), st.binary(max_size=3))
)
KEYS = (
    st.text(st.characters(exclude_categories=["Cs"]), max_size=3) | st.integers(0, 9) | st.none() | st.tuples(st.integers(0, 9))
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6
)
CONTRACTS = st.fixed_dictionaries(
    {"symbol": st.just("XBTUSDTM"), "settleCurrency": st.just("USDT"), "multiplier": st.just("1"), "isInverse": st.just(False)},
    optional={"extra": VALUES, "maxPrice": VALUES},
)


@settings(max_examples=4 * settings().max_examples)
@given(CONTRACTS | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=3), VALUES))
def test_any_messagepack_contract_can_be_stored_or_is_rejected(contract):
    settle("msgpack", msgspec.msgpack.encode({"type": "contract", "contract": contract}))


@pytest.mark.parametrize("depth", [1, 7, 100, 500, 900, 950, 990])
def test_deeply_nested_contract_is_listed_or_rejected(depth):
    settle("json", nested(depth).replace(b'"S"', b'"S","settleCurrency":"USDT","multiplier":1,"isInverse":false'))
