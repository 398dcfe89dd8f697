"""The short form of the fuzz test, and a property test whose failing messages shrink."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fundsvc.core.events import Reason
from fundsvc.streams.source import message_of
from tests.fuzz.messages import Messages
from tests.fuzz.oracle import Oracle
from tests.fuzz.run import any_messages, fuzz

HOLD_MS_MAX = 500
"""Fifty times loop_ms_max, for a busy machine. Unbounded work takes seconds."""

MEMORY_MB_MAX = 300

FOUND = {
    "a replay without an event id": (b"json", b"[]", b"replayOf", b"x"),
    "an execution for a symbol with a NUL, read again by the next engine": (
        b"json",
        b'{"type":"adlFill","symbol":"a\\u0000b","seq":1,"adl":1,"account":"a","lots":1,"ts":1765000000000}',
    ),
    "a sequence passed within the message, for a symbol with a NUL": (
        b"json",
        b"[%s]"
        % b",".join(b'{"type":"adlEnd","symbol":"a\\u0000b","seq":%d,"adl":1,"ts":1765000000000}' % seq for seq in (2, 1)),
    ),
}
"""Messages that once stopped every engine that read them."""

NOW = 1_800_000_000_000


@given(st.randoms(use_true_random=False))
def test_each_event_is_settled_duplicate_or_rejected(chance):
    messages, oracle = Messages(chance, NOW), Oracle()
    written = [messages.listings(), *(messages.next() for _ in range(5))]
    oracle.settle(message_of(f"{NOW + number}-0".encode(), list(fields)) for number, fields in enumerate(written))
    assert oracle.outcomes.total() == oracle.events


@pytest.mark.alone
async def test_engine_settles_or_keeps_every_event_of_any_message(config, tmp_path):
    figures = await fuzz(config, tmp_path, 1, any_messages(3000))
    assert figures.wrong == []
    assert figures.messages > 3000
    assert figures.engines == 2
    assert figures.hold_ms < HOLD_MS_MAX
    assert figures.memory_mb < MEMORY_MB_MAX
    assert {"entry", "state", "duplicate", "rejected"} <= figures.outcomes.keys()
    assert {Reason.UNDECODABLE, Reason.INVALID_FIELD, Reason.UNKNOWN_SYMBOL, Reason.ADL_NOT_ASKED} <= figures.reasons.keys()


@pytest.mark.parametrize("fields", FOUND.values(), ids=FOUND)
async def test_messages_found_by_fuzzing_stop_no_engine(config, tmp_path, fields):
    figures = await fuzz(config, tmp_path, 1, lambda messages: ([messages.listings()], [fields], [], [messages.next()]))
    assert figures.wrong == []
    assert figures.engines == 2
