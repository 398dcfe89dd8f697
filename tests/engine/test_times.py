"""Times of events: implausible times are rejected and affect no window."""

import msgspec
import pytest
from conftest import with_section
from served import contract, fill, now_ms, served
from structlog.testing import capture_logs

from fundsvc.config.settings import PolicyConfig
from fundsvc.core.policy import DrawdownGuard, Policy

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
SYMBOL = "TIMEUSDTM"
KINDS = {
    "fill": {"seq": 9, "side": "sell", "lots": 1, "price": "2", "bankruptcyPrice": "1"},
    "mark": {"price": "2"},
    "position": {"account": "a", "lots": 1, "entryPrice": "1", "margin": "1"},
    "adlFill": {"seq": 9, "adl": 1, "account": "a", "lots": 1},
    "adlEnd": {"seq": 9, "adl": 1},
    "rate": {"currency": "XBT", "price": "1"},
}


@pytest.fixture
async def service(config):
    async with served(config) as service:
        yield service


def event(kind, ts):
    return {"type": kind, "ts": ts, **({} if kind == "rate" else {"symbol": SYMBOL}), **KINDS[kind]}


@pytest.mark.parametrize("kind", KINDS)
async def test_implausible_time_is_rejected(service, kind):
    now = now_ms()
    wrong = [now + 6 * MINUTE, now + 365 * DAY, 253_402_300_799_999, now // 1000, 500_000_000, 99_999_999_999]
    answer = await service.send(contract(SYMBOL), *(event(kind, ts) for ts in wrong))
    assert [row["reason"] for row in answer["rejected"]] == ["ts_out_of_range"] * len(wrong)
    await service.append(*(event(kind, ts) for ts in wrong))
    assert await service.reasons() == ["ts_out_of_range"] * 2 * len(wrong)
    assert await service.entries(SYMBOL) == []


async def test_time_within_the_tolerance_or_far_in_the_past_is_settled(service):
    now = now_ms()
    with capture_logs() as logs:
        times = [now + 4 * MINUTE, now - 2 * DAY, now - 3 * DAY, now, 1_262_304_000_000, 100_000_000_000, 0]
        await service.send(contract(SYMBOL), *(fill(SYMBOL, seq, ts=ts) for seq, ts in enumerate(times, 1)))
    assert [seq for seq, *_ in await service.entries(SYMBOL)] == [1, 2, 3, 4, 5, 6, 7]
    assert service.count("fundsvc_old_events_total", symbol=SYMBOL) == 5
    assert [line["symbol"] for line in logs if line["event"] == "old events"] == [SYMBOL]


async def test_tolerance_is_configurable(config):
    async with served(with_section(config, "stream", ts_ahead_seconds_max=1.0)) as service:
        await service.send(contract(SYMBOL), fill(SYMBOL, 1, ts=now_ms() + 10_000), fill(SYMBOL, 2))
        assert await service.reasons() == ["ts_out_of_range"]


async def test_event_rejected_for_a_future_time_is_settled_by_a_later_replay(config):
    async with served(with_section(config, "stream", ts_ahead_seconds_max=0.0)) as service:
        await service.send(contract(SYMBOL))
        ahead = fill(SYMBOL, 1, ts=now_ms() + 700)
        await service.append(ahead)
        (row,) = await service.pool.fetch("SELECT stream_id FROM rejected")
        await service.append(ahead, replay_of=f"{row['stream_id']}/0")
        assert await service.reasons() == ["ts_out_of_range"]
        await service.append(fill(SYMBOL, 2, ts=1_700_000_000_000), stream_id=f"{now_ms() + 1000}-0")
        await service.append(ahead, replay_of=f"{row['stream_id']}/0")
        assert await service.reasons() == []


def guarded(config):
    guard = Policy(drawdown_guard=DrawdownGuard(start=0.3, stop=0.25, hours=8))
    return msgspec.structs.replace(config, policy=PolicyConfig(default=guard))


def moved(seq, points, ts):
    return fill(SYMBOL, seq, lots=1, price=str(10_000 + points), bankruptcyPrice="10000", ts=ts)


def history(start):
    """The moves of a fund that rises to 2000 and then falls. At the end its peak is older than the guard's window."""
    return [(1000, start + HOUR), (-100, start + 2 * HOUR), (-500, start + 11 * HOUR), (-10, start + 36 * HOUR)]


async def test_future_time_does_not_affect_the_guard(config):
    start = now_ms() - 40 * HOUR
    async with served(guarded(config)) as service:
        await service.send(contract(SYMBOL, multiplier=1), moved(1, 1000, start), moved(2, 0, now_ms() + 365 * DAY))
        await service.send(*(moved(seq, points, ts) for seq, (points, ts) in enumerate(history(start), 3)))
        assert (await service.entries(SYMBOL))[-1] == (6, -10 * 10**8, 0)


async def test_guard_stored_with_a_future_time_recovers(config, owner_connection):
    start = now_ms() - 40 * HOUR
    async with served(guarded(config)) as service:
        await service.send(contract(SYMBOL, multiplier=1), moved(1, 1000, start))
        await service.send(*(moved(seq, points, ts) for seq, (points, ts) in enumerate(history(start)[:3], 3)))
    future = (now_ms() + 365 * DAY) // MINUTE
    await owner_connection.execute("UPDATE funds SET guard = $1", f"[true,[[{future},200000000000]]]")
    async with served(guarded(config)) as service:
        assert (await service.fund(SYMBOL))["state"] == "ok"
        await service.send(moved(6, -10, start + 36 * HOUR))
        assert (await service.entries(SYMBOL))[-1] == (6, -10 * 10**8, 0)


def rate(price, ts):
    return {"type": "rate", "currency": "XBT", "price": price, "ts": ts}


async def test_future_rate_does_not_block_newer_rates(service):
    now = now_ms()
    await service.send(rate("39000", now), rate("1", now + 400 * DAY), rate("39001", now))
    assert await service.pool.fetchval("SELECT price / 10^12 FROM rates") == 39001


async def test_stored_future_rate_is_replaced(config, owner_connection):
    await owner_connection.execute("INSERT INTO rates VALUES (0, 'XBT', 1, $1)", now_ms() + 400 * DAY)
    async with served(config) as service:
        await check_replacement(service)


async def test_future_rate_of_another_writer_is_replaced(service):
    await service.send(rate("1", now_ms() - 3000))  # The partition is loaded.
    await service.pool.execute("UPDATE rates SET ts = $1", now_ms() + 400 * DAY)
    await check_replacement(service)


async def check_replacement(service):
    await service.send(rate("39000", now_ms() - 1000))
    assert await service.pool.fetchval("SELECT price / 10^12 FROM rates") == 39000
    await service.send(rate("38000", now_ms() - 2000))
    assert await service.pool.fetchval("SELECT price / 10^12 FROM rates") == 39000
