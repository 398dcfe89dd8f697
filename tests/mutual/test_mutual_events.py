"""Events of the mutual on the wire, and the reasons for rejecting one."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from streams import POOL, START, STREAMS, small_rules

from fundsvc.core.commitment import LedgerSecret
from fundsvc.core.events import Reason, Rejection
from fundsvc.mutual.codec import decode, encode
from fundsvc.mutual.core.chain import GENESIS, link, seal_domain
from fundsvc.mutual.core.events import Cancel, Disable, Enable, Payout, TermsChange, Tick, TopUp, Trade, Transfer
from fundsvc.mutual.core.pool import Pool
from fundsvc.mutual.core.rows import PoolRow

MINUTES_5 = 300_000
RULES = small_rules()
TRADE = Trade(POOL, START, 3, "a", "X", "x3", START, "-9.5", "5.25", ("self",))
EVENTS = [
    Transfer(POOL, START, 1, "a", "-20.5", "t"),
    Enable(POOL, START, 2, "a"),
    Disable(POOL, START, 2, "a"),
    TRADE,
    msgspec.structs.replace(TRADE, tags=()),
    TopUp(POOL, START, 4, "1", "u"),
    Cancel(POOL, START, 5, "a", 1),
    Payout(POOL, START, 6, "a"),
    Tick(POOL, START),
    TermsChange(POOL, START, 2, RULES),
]
"""One event of each kind and shape."""


def new_pool(**changes):
    return Pool(PoolRow(POOL), {1: small_rules(**changes)})


def funded_pool(**changes):
    pool = new_pool(**changes)
    pool.apply(Transfer(POOL, START, 1, "a", "40", "t"))
    pool.apply(Enable(POOL, START, 2, "a"))
    return pool


def reason_of(pool, event, stream_ms=0):
    """Returns the reason for which a pool rejects an event, and checks that nothing but the time changes."""
    before = pool.row()
    with pytest.raises(Rejection) as raised:
        pool.apply(event, stream_ms)
    assert pool.row() == before._replace(time=pool.row().time, next_cutoff=pool.row().next_cutoff)
    return raised.value.reason


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_events_survive_encoding_alone_and_in_an_array(codec):
    assert decode(codec, encode(EVENTS, codec)) == EVENTS
    for event in EVENTS:
        (raw,) = (msgspec.json.encode(event),) if codec == "json" else (msgspec.msgpack.encode(event),)
        assert decode(codec, raw) == [event]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", Reason.UNDECODABLE),
        (b"7", Reason.UNDECODABLE),
        (b'{"type":"fill","pool":"P","ts":1}', Reason.UNKNOWN_TYPE),
        (b'{"type":"tick","pool":"P"}', Reason.INVALID_FIELD),
        (b'{"type":"tick","pool":"P","ts":1,"note":""}', Reason.INVALID_FIELD),
        (b'{"type":"tick","pool":"P","ts":1,"ts":2}', Reason.INVALID_FIELD),
        (b'{"type":"enable","pool":"P","ts":1,"seq":0,"account":"a"}', Reason.INVALID_FIELD),
        (b'{"type":"topUp","pool":"P","ts":1,"seq":1,"amount":5,"id":""}', Reason.INVALID_FIELD),
        (encode([TRADE]).replace(b'"self"', b'"other"')[1:-1], Reason.INVALID_FIELD),
    ],
)
def test_illegal_events_are_rejected_with_their_reason(body, reason):
    tick = Tick(POOL, 1)
    assert [event.reason for event in decode("json", body)] == [reason]
    if reason != Reason.UNDECODABLE or body == b"7":
        first, event, last = decode(
            "json", b"[" + msgspec.json.encode(tick) + b"," + body + b"," + msgspec.json.encode(tick) + b"]"
        )
        assert (first, event.reason, last) == (tick, reason, tick)


@given(st.binary(max_size=60), st.sampled_from(["json", "msgpack"]))
def test_any_bytes_give_events_or_rejections(body, codec):
    assert all(isinstance(event, Rejection) or hasattr(event, "pool") for event in decode(codec, body))


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (Transfer(POOL, START, 3, "a", "0", ""), Reason.INVALID_FIELD),
        (Transfer(POOL, START, 3, "a", "-0.0", ""), Reason.TOO_MANY_DECIMALS),
        (Transfer(POOL, START, 3, "a", "1e3", ""), Reason.INVALID_NUMBER),
        (Transfer(POOL, START, 3, "a", "--1", ""), Reason.INVALID_NUMBER),
        (Transfer(POOL, START, 3, "a", "9" * 20, ""), Reason.OUT_OF_RANGE),
        (Transfer(POOL, START, 3, "=a", "1", ""), Reason.INVALID_FIELD),
        (Transfer("Q", START, 3, "a", "1", ""), Reason.UNKNOWN_POOL),
        (TopUp(POOL, START, 3, "0", ""), Reason.INVALID_FIELD),
        (TopUp(POOL, START, 3, "-5", ""), Reason.INVALID_FIELD),
        (TopUp(POOL, START, 3, "0.1", ""), Reason.TOO_MANY_DECIMALS),
        (msgspec.structs.replace(TRADE, opened_at=START + 1), Reason.INVALID_FIELD),
        (msgspec.structs.replace(TRADE, volume="-1"), Reason.INVALID_FIELD),
        (msgspec.structs.replace(TRADE, realised_pnl="nan"), Reason.INVALID_NUMBER),
        (msgspec.structs.replace(TRADE, symbol="X\n"), Reason.INVALID_FIELD),
    ],
)
def test_a_malformed_event_does_not_move_the_time(event, reason):
    pool = funded_pool()
    later = msgspec.structs.replace(event, ts=START + 10**6)
    assert reason_of(pool, later if reason != Reason.INVALID_FIELD else event) == reason
    assert pool.row().time == START


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (Transfer(POOL, START + 9, 3, "a", "-41", ""), Reason.INSUFFICIENT),
        (Transfer(POOL, START + 9, 3, "new", "-1", ""), Reason.INSUFFICIENT),
        (Transfer(POOL, START + 9, 3, "a", str(2**63 - 1), ""), Reason.OUT_OF_RANGE),
        (Enable(POOL, START + 9, 3, "new"), Reason.NOT_FUNDED),
        (Cancel(POOL, START + 9, 3, "a", 1), Reason.UNKNOWN_POLICY),
        (Cancel(POOL, START + 9, 3, "new", 1), Reason.UNKNOWN_POLICY),
        (TermsChange(POOL, START + 9, 3, RULES), Reason.SUPERSEDED),
        (TermsChange(POOL, START + 9, 2, small_rules(cycle_ms=5)), Reason.TERMS_FIXED),
    ],
)
def test_a_refused_event_moves_the_time_but_not_the_sequence(event, reason):
    pool = funded_pool()
    assert reason_of(pool, event) == reason
    assert (pool.row().time, pool.row().seq) == (START + 9, 2)
    assert "new" not in pool.register.accounts


def test_sums_beyond_64_bits_are_refused():
    pool = funded_pool()
    pool.apply(TopUp(POOL, START, 3, str(2**63 - 1), "u"))
    assert reason_of(pool, TopUp(POOL, START, 4, "1", "u")) == Reason.OUT_OF_RANGE
    assert reason_of(pool, Trade(POOL, START, 4, "a", "X", "x", START, "10", "1")) == Reason.OUT_OF_RANGE
    pool = funded_pool(premium_tiers=((0, 0),))
    pool.apply(Trade(POOL, START, 3, "a", "X", "x", START, str(2**63 - 1), "1"))
    assert reason_of(pool, Trade(POOL, START, 4, "a", "X", "x", START, "1", "1")) == Reason.OUT_OF_RANGE


def test_not_funded_says_what_is_missing():
    pool = new_pool()
    pool.apply(Transfer(POOL, START, 1, "a", "4", "t"))
    with pytest.raises(Rejection, match="a has 4 and owes 0: transfer 6 to the insurance account"):
        pool.apply(Enable(POOL, START, 2, "a"))


def test_an_event_is_at_most_five_minutes_ahead_of_its_message():
    pool = new_pool()
    pool.apply(Tick(POOL, START + MINUTES_5), START)
    assert reason_of(pool, Tick(POOL, START + MINUTES_5 + 1), START) == Reason.TS_AHEAD
    pool.apply(Tick(POOL, START + MINUTES_5 + 1), 5)  # The id of the message is not a time.


def test_an_earlier_time_counts_as_that_of_the_pool():
    pool = funded_pool()
    pool.apply(Payout(POOL, START - 1_000, 3, "a"))
    pool.apply(TopUp(POOL, START - 1_000, 4, "5", "u"))
    assert (pool.row().time, pool.take().entries[-1].ts) == (START, START)


def test_another_event_with_an_applied_sequence_is_a_conflict():
    pool = funded_pool()
    assert reason_of(pool, Enable(POOL, START, 1, "a")) == Reason.CONFLICT
    pool.apply(Enable(POOL, START, 2, "a"))
    assert pool.take().duplicates == 1


def test_an_unknown_number_below_the_last_sequence_is_a_duplicate():
    pool = new_pool()
    pool.apply(TopUp(POOL, START, 9, "5", "u"))
    pool.apply(TopUp(POOL, START, 5, "5", "u"))
    assert (pool.row().balance, pool.take().duplicates) == (5, 1)


def test_a_policy_keeps_the_terms_of_its_issue():
    pool = funded_pool()
    pool.apply(Trade(POOL, START, 3, "a", "X", "x", START, "-7", "9"))
    pool.apply(TermsChange(POOL, START, 2, small_rules(face=20, expiry_ms=9_000_000)))
    pool.apply(Trade(POOL, START, 4, "a", "X", "x", START, "-7", "9"))
    pool.apply(Tick(POOL, START + 2_000))
    batch = pool.take()
    assert [(row.face, row.cap, row.expires_at) for row in batch.policies] == [
        (10, 7, START + 2_000 + 6_000 - START % 1_000),
        (20, 14, START + 2_000 + 9_000_000 - START % 1_000),
    ]
    assert list(batch.terms) == [2]
    assert {entry.terms for entry in batch.entries} == {1, 2}


def test_the_chain_seals_terms_and_accounts():
    secret = LedgerSecret("secret")
    pool = Pool(PoolRow(POOL), {1: RULES}, secret=secret)
    pool.apply(Transfer(POOL, START, 1, "a", "40", "t"))
    pool.apply(Enable(POOL, START, 2, "a"))
    batch, head = pool.take(), GENESIS
    for entry, digest in zip(batch.entries, batch.hashes, strict=True):
        assert entry.seal == secret.seal(seal_domain(POOL), entry.entry, "a")
        head = link(head, entry, RULES.digest)
        assert head == digest
    assert (batch.pool.entry, batch.pool.head) == (2, head)
    assert link(head, batch.entries[-1], RULES.digest) != link(head, batch.entries[-1], small_rules(face=11).digest)


@given(STREAMS)
def test_other_money_in_an_entry_gives_another_hash(events):
    pool = new_pool()
    for event, _ in events:
        try:
            pool.apply(event)
        except Rejection:
            continue
    for entry in pool.take().entries:
        altered = msgspec.structs.replace(entry, amount=entry.amount + 1)
        assert link(GENESIS, entry, RULES.digest) != link(GENESIS, altered, RULES.digest)
