"""Events with a sequence that the contract has passed: duplicates, conflicts, late events and gaps, in a whole service."""

import msgspec
import pytest
from served import contract, fill, now_ms, restarted, served
from structlog.testing import capture_logs

from fundsvc.streams.client import stream_key

SYMBOL, OTHER = "IDEMUSDTM", "IDEMTOOUSDTM"
TS = now_ms() - 60_000


@pytest.fixture
async def service(config):
    async with served(config) as service:
        await service.send(contract(SYMBOL))
        yield service


@pytest.fixture
async def deleveraged(service):
    """An order of 3 lots with allocations of 2 for alice and 1 for bob. Sequence 1 is its shortfall."""
    await service.send(
        contract(SYMBOL, multiplier=1),
        {"type": "mark", "symbol": SYMBOL, "price": "80", "ts": TS},
        position("alice", "10"),
        position("bob", "100"),
        f(1, lots=3, price="80", bankruptcyPrice="100"),
    )
    return service


def position(account, margin):
    terms = {"lots": -2, "entryPrice": "150", "margin": margin, "ts": TS}
    return {"type": "position", "symbol": SYMBOL, "account": account} | terms


def f(seq, **fields):
    return fill(SYMBOL, seq, **({"ts": TS} | fields))


OTHERS = {
    "side": "buy",
    "lots": 999,
    "price": "30000",
    "bankruptcyPrice": "39000.000000000001",
    "ts": TS + 1,
    "tradeId": "t2-other",
    "orderId": "o2",
    "account": "b",
}


@pytest.mark.parametrize("field", OTHERS)
async def test_known_sequence_with_other_content_is_a_conflict(service, field):
    await service.send(f(1, tradeId="t1"))
    other = f(1, **({"tradeId": "t1"} | {field: OTHERS[field]}))
    with capture_logs() as logs:
        answer = await service.send(other)
    assert (answer["accepted"], [refused["reason"] for refused in answer["rejected"]]) == (0, ["conflict"])
    assert await service.reasons() == ["conflict"]
    assert await service.entries(SYMBOL) == [(1, 100 * 10**8, 0)]
    assert service.count("fundsvc_rejected_total", reason="conflict") == 1
    assert [line["reason"] for line in logs if line["event"] == "events rejected"] == ["conflict"]


async def test_equal_content_in_other_notation_is_a_duplicate(service):
    await service.send(f(1, price="39100", bankruptcyPrice="39000"))
    answer = await service.send(f(1, price="39100.0", bankruptcyPrice="39000.000", prevSeq=0, tradeId=""))
    assert (answer["accepted"], answer["rejected"]) == (1, [])
    assert await service.reasons() == []
    assert service.count("fundsvc_duplicates_total", symbol=SYMBOL) == 1


async def test_conflicts_and_late_events_are_rejected_on_the_stream_and_within_a_message(service):
    await service.append(f(1), f(5), f(5, price="39200"), f(4), f(4, price="1"), f(5), f(4))
    assert await service.reasons() == ["conflict", "late", "late"]
    assert [seq for seq, *_ in await service.entries(SYMBOL)] == [1, 5]
    assert service.count("fundsvc_duplicates_total", symbol=SYMBOL) == 2


async def test_repeated_rejected_event_is_kept_once(service, config):
    mistakes = [f(5, price="39200"), f(4), f(4, price="1")]
    await service.append(f(1), f(5), *mistakes)
    for _ in range(2):
        await service.append(*mistakes)
        await service.send(*mistakes)
    async with restarted(service, config) as again:
        await again.append(*mistakes, f(5), f(1))
        assert await again.reasons() == ["conflict", "late", "late"]
        assert again.count("fundsvc_duplicates_total", symbol=SYMBOL) == 5


async def test_duplicates_are_recognised_from_the_ledger_after_a_restart(service, config):
    await service.send(f(1), f(3), f(7), *(f(seq) for seq in range(10, 1500, 2)))
    async with restarted(service, config) as again:
        await again.append(f(1), f(3, price="1"), f(4), f(7), f(1000), f(1001), f(1490, lots=1), f(1498), f(1500))
        assert await again.reasons() == ["conflict", "late", "late", "conflict"]
        assert again.count("fundsvc_duplicates_total", symbol=SYMBOL) == 4
        answer = await again.send(f(3, price="1"), f(5), f(1500), f(1499, price="1"), f(1502))
        assert [(refused["index"], refused["reason"]) for refused in answer["rejected"]] == [
            (0, "conflict"),
            (1, "late"),
            (3, "late"),
        ]


@pytest.mark.parametrize("gain", [-100, 0, 100])
async def test_fill_is_a_duplicate_after_a_restart_with_any_outcome(service, config, gain):
    """A shortfall of an empty fund creates an order that ends at once, under the fill's sequence."""
    fills = [f(seq, price=str(39000 + gain)) for seq in (1, 2)]
    await service.send(*fills)
    async with restarted(service, config) as again:
        await again.send(*fills)
        assert await again.reasons() == []
        assert again.count("fundsvc_duplicates_total", symbol=SYMBOL) == 2


@pytest.mark.parametrize("asked_first", [{SYMBOL: 20, OTHER: 10}, {SYMBOL: 10, OTHER: 20}])
async def test_equal_sequences_of_two_contracts_are_independent(service, config, asked_first):
    """Each fill is a shortfall whose order has no candidates, so the order's end has the sequence of the fill."""
    fills = {(symbol, seq): fill(symbol, seq, ts=TS, price="38900") for symbol in (SYMBOL, OTHER) for seq in (10, 20)}
    await service.send(contract(OTHER), *fills.values())
    async with restarted(service, config) as again:
        await again.append(*(fills[key] for key in asked_first.items()))
        await again.append(fills[SYMBOL, 10], fills[OTHER, 10])
        assert await again.reasons() == []
        assert [again.count("fundsvc_duplicates_total", symbol=symbol) for symbol in (SYMBOL, OTHER)] == [2, 2]


async def test_thousands_of_duplicates_settle_quickly(service, config):
    events = [f(seq) for seq in range(1, 10_001)]
    await service.send(*events)
    async with restarted(service, config) as again:
        started = now_ms()
        await again.append(*events)
        for seq in range(1, 500):
            await again.client.xadd(stream_key(0), {"json": msgspec.json.encode(f(seq))})
        await again.settled()
        assert now_ms() - started < 15_000
        assert again.count("fundsvc_duplicates_total", symbol=SYMBOL) == 10_499
        assert await again.reasons() == []


async def test_replay_settles_a_late_event_once(service, config):
    await service.append(f(5), f(4), f(5, price="1"))
    rows = await service.pool.fetch("SELECT stream_id, position, reason FROM rejected ORDER BY position")
    for row in rows * 2:
        event = f(4) if row["reason"] == "late" else f(5, price="1")
        await service.append(event, replay_of=f"{row['stream_id']}/{row['position']}")
    assert [seq for seq, *_ in await service.entries(SYMBOL)] == [5, 4]
    assert await service.reasons() == ["conflict"]
    async with restarted(service, config) as again:
        await again.append(f(4), f(5), f(4, lots=1))
        assert await again.reasons() == ["conflict", "conflict"]


async def test_resent_rejected_event_is_not_late(service):
    refused = f(2, price="1.1234567890123")
    await service.append(f(1), refused, f(3), refused, f(1))
    assert await service.reasons() == ["too_many_decimals"]


def execution(seq, account, lots, **fields):
    return {"type": "adlFill", "symbol": SYMBOL, "seq": seq, "adl": 1, "account": account, "lots": lots, "ts": TS} | fields


def end(seq, **fields):
    return {"type": "adlEnd", "symbol": SYMBOL, "seq": seq, "adl": 1, "ts": TS} | fields


async def test_adl_answers_are_recognised_as_duplicates_or_conflicts(deleveraged):
    executed = execution(5, "alice", 1)
    await deleveraged.append(executed)
    for other in (execution(5, "alice", 2), execution(5, "bob", 1), execution(5, "alice", 1, ts=TS + 1), end(5), f(5)):
        await deleveraged.append(other, executed)
    await deleveraged.append(execution(3, "bob", 1), end(4))
    assert await deleveraged.reasons() == ["conflict"] * 5 + ["late"] * 2
    assert await deleveraged.pool.fetchval("SELECT executed FROM adl_orders") == 1


async def test_execution_rejected_twice_counts_once_when_both_are_replayed(service, deleveraged):
    await service.append(execution(9, "alice", 1))
    bob = execution(2, "bob", 1)
    await service.append(bob)
    (row,) = await service.pool.fetch("SELECT * FROM rejected")
    await service.pool.execute(
        "INSERT INTO rejected (partition, stream_id, position, reason, detail, codec, body)"
        " VALUES (0, '1-1', 0, 'adl_not_asked', '', 'json', $1)",
        row["body"],
    )
    for key in (f"{row['stream_id']}/0", "1-1/0"):
        await service.append(bob, replay_of=key)
    assert await service.pool.fetchval("SELECT executed FROM adl_orders") == 2
    assert await service.reasons() == []


async def test_end_of_an_ended_order_is_not_late(deleveraged):
    await deleveraged.append(execution(2, "alice", 2), execution(3, "bob", 1), end(4), f(6), end(4), end(5))
    assert await deleveraged.reasons() == []


async def test_sequence_gaps_are_reported_counted_and_logged(service):
    with capture_logs() as logs:
        answer = await service.send(f(1, prevSeq=0), f(2, prevSeq=1), f(5, prevSeq=4), f(6, prevSeq=5), f(7))
    assert answer["gaps"] == [{"index": 2, "symbol": SYMBOL, "seq": 5, "prevSeq": 4, "lastSeq": 2}]
    assert answer["accepted"] == 5
    assert len(await service.entries(SYMBOL)) == 5
    assert service.count("fundsvc_sequence_gaps_total", symbol=SYMBOL) == 1
    (line,) = (line for line in logs if line["event"] == "sequence gap")
    assert (line["seq"], line["prev_seq"], line["last"]) == (5, 4, 2)
    answer = await service.send(f(9, prevSeq=6))
    assert [gap["prevSeq"] for gap in answer["gaps"]] == [6], "another engine has sent 7"
    assert service.count("fundsvc_sequence_gaps_total", symbol=SYMBOL) == 2


async def test_rejected_event_leaves_no_gap(deleveraged):
    await deleveraged.append(
        f(2, prevSeq=1, price="0"), f(3, prevSeq=2), end(4, prevSeq=3), execution(5, "zoe", 1, prevSeq=4), f(6, prevSeq=5)
    )
    assert deleveraged.count("fundsvc_sequence_gaps_total") == 0


async def test_repeated_trade_id_is_settled_counted_and_logged(service):
    with capture_logs() as logs:
        await service.send(contract("OTHERUSDTM"), f(1, tradeId="T-77"), f(2, tradeId="T-77"), f(3), f(4), f(5, tradeId="T-77"))
        await service.send(fill("OTHERUSDTM", 1, tradeId="T-77"), f(1, tradeId="T-77"))
    assert len(await service.entries(SYMBOL)) == 5
    assert service.count("fundsvc_trade_ids_repeated_total") == 2
    assert sum(line["count"] for line in logs if line["event"] == "trade ids repeated") == 2
