"""Engines settle pools exactly once through the real stream and database, and isolate them from each other and the reserve."""

import time

import msgspec
import pytest
from commands import fundsvc
from conftest import with_section
from eventually import eventually
from ledgers import fill, listing
from pools import KEY, POOL, VECTORS, assert_equal, in_memory, read_vector, running, send, with_pools
from structlog.testing import capture_logs

from fundsvc.cli.tools.mutual_vectors import run_mutual_vector
from fundsvc.core.contracts import partition_of
from fundsvc.core.events import Rejection
from fundsvc.metrics import Metrics
from fundsvc.mutual.codec import decode
from fundsvc.mutual.core.events import Disable, Enable, TermsChange, Tick, TopUp, Trade, Transfer
from fundsvc.mutual.core.rows import State
from fundsvc.mutual.core.terms import Terms
from fundsvc.mutual.engine.pools import pool_sessions
from fundsvc.mutual.store.reader import MutualReader
from fundsvc.mutual.store.state import PoolGaps
from fundsvc.store.database import open_pool
from fundsvc.streams.client import pool_stream_key, server_time_ms
from fundsvc.streams.producer import Producer
from fundsvc.streams.source import Source, id_order

DAY = 86_400_000


@pytest.fixture
def quick(config):
    return with_section(config, "engine", lease_seconds=0.6)


@pytest.fixture
async def producer(config, client):
    return Producer(client, config.stream.partitions)


@pytest.fixture
async def database(config):
    async with open_pool(config.database.dsn, 4) as pool:
        yield pool


@pytest.fixture
def reader(database):
    return MutualReader(database)


async def settled(reader, stream_id, name=POOL):
    async def is_settled():
        state = await reader.pool(name)
        return state and id_order(state.last_id) >= id_order(stream_id)

    await eventually(is_settled)
    return await reader.pool(name)


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
async def test_vector_through_the_stream_gives_the_expected_outcome(config, producer, client, database, reader, path, codec):
    terms, events, expect = read_vector(path)
    events = [event for event in events if not isinstance(event, Rejection)]
    ids = await send(producer, *([event] for event in events[:3]), events[3:], codec=codec)
    async with running(with_pools(config, USDT=terms)) as engine:
        state = await settled(reader, ids[-1])
        kept = await reader.rejected()
        assert engine.count("fundsvc_mutual_duplicates_total") == expect["duplicates"]
        assert engine.count("fundsvc_mutual_identity_error") == 0
        assert engine.count("fundsvc_mutual_active_policies") == sum(one["state"] == "ACTIVE" for one in expect["policies"])
    assert [one.reason for one in kept] == [one["reason"] for one in expect["rejected"]]
    await assert_equal(database, await in_memory(client, terms.rules()))
    assert state.row.entry == len(expect["entries"])
    assert run_mutual_vector(msgspec.json.decode(path.read_bytes())).verdict == "passed", "the pool in memory is as expected"


class Sender:
    """Sends events of an account-holder with rising sequences, at times from a start on."""

    def __init__(self, producer, start, pool=POOL):
        self.seq = 0
        self.ts = start
        self._producer = producer
        self._pool = pool

    def make(self, kind, *fields, at=0, **named):
        self.seq += 1
        return kind(self._pool, self.ts + at, self.seq, *fields, **named)

    def fund(self, *accounts):
        return [
            event
            for account in accounts
            for event in (self.make(Transfer, account, "100", f"t-{account}"), self.make(Enable, account))
        ]

    def trade(self, account, pnl, at=0):
        return self.make(Trade, account, "XBTUSDTM", f"trade-{self.seq}", self.ts + at, pnl, "5000", at=at)

    async def send(self, *messages):
        return await send(self._producer, *messages, key=f"fundsvc:mutual:in:{{{self._pool}}}")


START = (int(time.time()) - 3_600) * 1_000
STILL = Terms(cycle_seconds=31_622_400, cycle_anchor=START // 1_000 - 1)
"""Terms with which a test sees no cut-off."""


async def test_events_are_settled_once_across_restarts_and_duplicates_are_counted(quick, producer, client, database, reader):
    sender = Sender(producer, START)
    opening = [sender.fund("a", "b"), [sender.trade("a", "-250"), sender.trade("b", "40")]]
    (*_, last) = await sender.send(*opening, opening[0])
    config = with_pools(quick, USDT=STILL)
    async with running(config) as engine:
        await settled(reader, last)
        assert engine.count("fundsvc_mutual_duplicates_total") == 4
    (*_, last) = await sender.send([sender.trade("b", "-99")], opening[1])
    async with running(config) as engine:
        state = await settled(reader, last)
        assert engine.count("fundsvc_mutual_duplicates_total") == 2
        assert engine.count("fundsvc_mutual_balance") == 3.2
    assert (state.row.policies, state.row.seq) == (2, 7)
    assert not await reader.rejected()
    await assert_equal(database, await in_memory(client, STILL.rules()))


async def test_conflicting_and_refused_events_are_kept_and_others_are_settled(quick, producer, client, database, reader):
    sender = Sender(producer, START)
    funded = sender.fund("a")
    other = [Transfer(POOL, START, 1, "a", "999", "x")]
    misspelt = b'{"type":"topUp","pool":"USDT","ts":1,"seq":9,"amount":"1","id":"x","nonsense":1}'
    bad = b'[%s,{"type":"nonsense"}]' % misspelt
    async with running(with_pools(quick, USDT=STILL)) as engine:
        await sender.send(funded, other)
        await producer.append_to(KEY, "json", [bad, b"[", b"[]"])
        (last,) = await sender.send(
            [sender.make(Enable, "poor"), sender.make(TopUp, "5", "x"), TopUp("OTHER", START, 9, "5", "x")]
        )
        await settled(reader, last)
        assert engine.count("fundsvc_mutual_rejected_total", reason="conflict") == 1
    reasons = [one.reason for one in await reader.rejected()]
    assert reasons == ["conflict", "invalid_field", "unknown_type", "undecodable", "not_funded", "unknown_pool"]
    await assert_equal(database, await in_memory(client, STILL.rules()))


async def replay(producer, event):
    await producer.replay_to(KEY, event.codec, event.body, event.origin)


async def test_rejected_event_is_applied_once_by_a_replay_although_later_ones_were_applied(quick, producer, reader):
    sender = Sender(producer, START)
    early = sender.make(Enable, "a")
    async with running(with_pools(quick, USDT=STILL)):
        (last,) = await sender.send([early, *sender.fund("b")])
        await settled(reader, last)
        (kept,) = await reader.rejected()
        assert (kept.reason, kept.event_seq) == ("not_funded", 1)
        await replay(producer, kept)  # still not funded
        (last,) = await sender.send([sender.make(Transfer, "a", "10", "x")])
        await settled(reader, last)
        assert (await reader.account(POOL, "a")).account.enabled is False
        await replay(producer, kept)
        (last,) = await sender.send([sender.make(Disable, "a")])
        await replay(producer, kept)
        (last,) = await sender.send([sender.make(TopUp, "1", "x")])
        state = await settled(reader, last)
    account = (await reader.account(POOL, "a")).account
    assert (account.enabled, len(account.cover)) == (False, 0), "the replay enabled, and the later event disabled"
    assert state.row.seq == sender.seq
    assert not await reader.rejected()
    kinds = [row.entry.kind for row in await reader.statement(POOL, "a", count=9, forward=True)]
    assert kinds == ["transfer", "covered", "uncovered"]


async def test_command_line_lists_shows_and_replays_rejected_events_of_pools(quick, producer, reader):
    sender = Sender(producer, START)
    config = with_pools(quick, USDT=STILL)
    async with running(config):
        events = [sender.make(Enable, "a"), sender.make(TopUp, "5", "x"), TopUp(POOL, START, 2, "6", "x")]
        (last,) = await sender.send(events)
        await settled(reader, last)
        listed = (await fundsvc(config, "rejected", "list", "--json")).result
        assert [(one["reason"], one["pool"], one["seq"]) for one in listed] == [("not_funded", POOL, 1), ("conflict", POOL, 2)]
        shown = (await fundsvc(config, "rejected", "show", f"{POOL}/{last}/0")).result
        assert shown["event"] == f"{POOL}/{last}/0"
        await sender.send([sender.make(Transfer, "a", "10", "x")])
        done = await fundsvc(config, "rejected", "replay")
        assert (done.code, done.output.split(";")[0]) == (0, "resent 1 of 2 events")
        assert done.error.startswith(f"{POOL}/{last}/2: another event with its seq was applied")
        await eventually(lambda: is_enabled(reader, "a"))
    (left,) = (await fundsvc(config, "rejected", "list", "--json")).result
    assert left["reason"] == "conflict"


async def is_enabled(reader, account):
    state = await reader.account(POOL, account)
    return state is not None and state.account.enabled


async def test_rejected_event_that_was_sent_again_is_not_applied_by_a_replay(quick, producer, reader):
    sender = Sender(producer, START)
    withdrawal = sender.make(Transfer, "a", "-5", "out")
    async with running(with_pools(quick, USDT=STILL)):
        (last,) = await sender.send([withdrawal])
        await settled(reader, last)
        (kept,) = await reader.rejected()
    async with running(with_pools(quick, USDT=STILL)):
        sent = [Transfer(POOL, START, 1, "a", "5", "other")]
        (by, _) = await sender.send(sent, [Transfer(POOL, START, 2, "a", "9", "in")])
        await replay(producer, kept)
        (last,) = await sender.send([Transfer(POOL, START, 3, "a", "1", "in")])
        await settled(reader, last)
    assert (await reader.account(POOL, "a")).account.balance == 15_000_000
    (kept,) = await reader.rejected(settled_too=True)
    assert kept.settled_by == by


async def test_missed_cut_offs_happen_one_by_one_at_the_first_tick_after_downtime(quick, producer, client, database, reader):
    now = await server_time_ms(client, KEY)
    sender, terms = Sender(producer, now - 10 * DAY), Terms(cap=800_000, release=((0, 10_000),))
    config = with_pools(quick, USDT=terms)
    async with running(config):
        (last,) = await sender.send(
            [*sender.fund("a"), sender.make(TopUp, "1000", "x"), sender.trade("a", "-250"), sender.trade("a", "-90", at=DAY)]
        )
        state = await settled(reader, last)
        assert state.row.cycle == 1
    async with running(config):
        state = await eventually(lambda: caught_up(reader, now))
    assert 10 <= state.row.cycle <= 11
    cycles = await reader.cycles(POOL, count=99, forward=True)
    assert [cycle.at for cycle in cycles] == [cycles[0].at + number * DAY for number in range(len(cycles))]
    assert sum(cycle.budget > 0 for cycle in cycles) >= 4
    assert {policy.state for policy in (await reader.account(POOL, "a")).live} == {State.FROZEN}
    await assert_equal(database, await in_memory(client, terms.rules()))


async def caught_up(reader, now):
    state = await reader.pool(POOL)
    return state if state.row.time >= now else None


async def test_long_cut_off_does_not_hold_the_loop_and_is_committed_whole(quick, producer, client, database, reader):
    terms = Terms(activity_volume=0, live_max=10_000, activity_days=90)
    sender = Sender(producer, START - 5 * DAY)
    opening = sender.fund(*(f"a{number}" for number in range(10)))
    losses = [[sender.trade(f"a{number}", "-20000")] for number in range(10)]
    (*_, last) = await sender.send(opening, *losses, [Tick(POOL, START - 3 * DAY)], [Tick(POOL, START - 2 * DAY)])
    async with running(with_pools(quick, USDT=terms)):
        state = await settled(reader, last)
    assert (state.row.policies, state.totals.active) == (2_000, 2_000)
    await assert_equal(database, await in_memory(client, terms.rules()))


async def test_pools_and_the_reserve_are_settled_beside_each_other_and_fail_alone(quick, producer, reader, owner_connection):
    config = with_pools(quick, USDT=STILL, USDC=STILL)
    await owner_connection.execute(
        "INSERT INTO mutual_pools (pool, home) VALUES ('USDT', 0);"
        "INSERT INTO mutual_terms (pool, version, rules, entry) VALUES ('USDT', 1, '{}', 1)"
    )
    other = Sender(producer, START, "USDC")
    async with running(config) as engine:
        (last,) = await other.send(other.fund("a"))
        await settled(reader, last, "USDC")
        await eventually(lambda: engine.count("fundsvc_mutual_halted", pool="USDT") == 1)
        await eventually(lambda: engine.count("fundsvc_mutual_entries_total", pool="USDC") == 2)
        await producer.append([listing("XBTUSDTM"), fill("XBTUSDTM", 1, 5)])
        await eventually(lambda: engine.count("fundsvc_entries_total") == 1)
        await engine.engine.check()
        assert engine.count("fundsvc_partition_halted") == 0
        assert engine.count("fundsvc_mutual_halted", pool="USDC") == 0


@pytest.mark.parametrize("partitions", [2])
async def test_two_engines_settle_pools_of_their_partitions_and_one_takes_over(quick, producer, reader):
    names = {partition_of(name, 2): name for name in ("USDT", "USDC", "XBT", "ETH", "SOL")}
    config = with_pools(quick, **dict.fromkeys(names.values(), STILL))
    senders = {home: Sender(producer, START, name) for home, name in names.items()}
    async with running(config) as first, running(config) as second:
        for home, name in names.items():
            (last,) = await senders[home].send(senders[home].fund("a"))
            await settled(reader, last, name)
        await eventually(lambda: first.count("fundsvc_partition_owned") == second.count("fundsvc_partition_owned") == 1)
        await first.finish()
        for home, name in names.items():
            (last,) = await senders[home].send([senders[home].make(TopUp, "5", "x")])
            assert (await settled(reader, last, name)).row.balance == 5_000_000
        assert {state.home: state.row.pool for state in await reader.pools()} == names


async def test_gap_halts_only_the_pool_until_acknowledged(quick, producer, client, reader, database):
    sender = Sender(producer, START)
    config = with_pools(quick, USDT=STILL)
    async with running(config):
        (first,) = await sender.send(sender.fund("a"))
        await settled(reader, first)
    (lost, _) = await sender.send([sender.make(TopUp, "5", "x")], [sender.make(TopUp, "7", "y")])
    await client.xdel(KEY, lost)
    async with running(config) as engine:
        await eventually(lambda: engine.count("fundsvc_mutual_halted") == 1)
        await eventually(lambda: halted_because(reader, "fundsvc stream acknowledge-gap USDT"))
        assert engine.count("fundsvc_mutual_stream_gaps_total") == 1
        (listed,) = (await fundsvc(config, "stream", "gaps", POOL, "--json")).result
        assert (listed["untilId"], listed["acknowledgedAt"]) == (lost, None)
        assert (await fundsvc(config, "stream", "acknowledge-gap", POOL)).code == 0
        assert (await PoolGaps(database, POOL).known())[0].acknowledged_at
        await eventually(lambda: engine.count("fundsvc_mutual_halted") == 0)
        await eventually(lambda: engine.count("fundsvc_mutual_balance") == 7)
    assert (await reader.pool(POOL)).halted == ""


async def halted_because(reader, text):
    return text in (await reader.pool(POOL)).halted


async def test_stream_without_its_tail_is_read_again_and_known_events_are_dropped(quick, producer, client, reader):
    sender = Sender(producer, START)
    config = with_pools(quick, USDT=STILL)
    events = [*sender.fund("a"), sender.make(TopUp, "5", "x")]
    async with running(config):
        (last,) = await sender.send(events)
        await settled(reader, last)
    await client.delete(KEY)
    (last,) = await send(producer, [*events, sender.make(TopUp, "7", "y")])
    async with running(config) as engine:
        await settled(reader, last)
        assert engine.count("fundsvc_mutual_stream_regressions_total") == 1
        assert engine.count("fundsvc_mutual_duplicates_total") == 3
        assert engine.count("fundsvc_mutual_balance") == 12


async def test_older_copy_of_the_stream_is_read_from_its_newest_checkpoint(quick, producer, client, reader):
    sender = Sender(producer, START)
    config = with_pools(quick, USDT=STILL)
    async with running(config):
        await settled(reader, (await sender.send(sender.fund("a")))[-1])
    async with running(config):
        await settled(reader, (await sender.send([sender.make(TopUp, "5", "x")]))[-1])
        await settled(reader, (await sender.send([sender.make(TopUp, "2", "y")]))[-1])
    copy = await client.dump(KEY)
    lost = [sender.make(TopUp, "7", "z")]
    async with running(config):
        await settled(reader, (await sender.send(lost))[-1])
    await client.restore(KEY, 0, copy, replace=True)
    async with running(config) as engine:
        await settled(reader, (await sender.send(lost))[-1])
        assert engine.count("fundsvc_mutual_stream_regressions_total") == 1
        assert engine.count("fundsvc_mutual_duplicates_total") == 2, "the message after the checkpoint, and the lost one"
        assert engine.count("fundsvc_mutual_balance") == 14


async def test_changed_terms_are_proposed_once_and_keep_the_terms_of_policies(quick, producer, client, reader):
    sender = Sender(producer, START)
    async with running(with_pools(quick, USDT=STILL)):
        (last,) = await sender.send([*sender.fund("a"), sender.trade("a", "-100")])
        await settled(reader, last)
    changed = msgspec.structs.replace(STILL, face=200, cap=40_000)
    for _ in range(2):
        async with running(with_pools(quick, USDT=changed)):
            await eventually(lambda: has_terms(reader, 2))
    (last,) = await sender.send([sender.trade("a", "-100")])
    async with running(with_pools(quick, USDT=changed)):
        state = await settled(reader, last)
    assert [one.rules for one in await reader.terms(POOL)] == [STILL.rules(), changed.rules()]
    assert [policy.face for policy in (await reader.account(POOL, "a")).live] == [100_000_000, 200_000_000]
    assert state.rules == changed.rules()
    events = [event async for event in in_stream(client)]
    assert sum(isinstance(event, TermsChange) for event in events) == 1


async def in_stream(client):
    for message in await Source(client, 0, KEY).read("0-0"):
        for event in decode(message.codec, message.body):
            yield event


async def has_terms(reader, version):
    state = await reader.pool(POOL)
    return state is not None and state.row.terms == version


async def test_units_of_a_pool_never_change(quick, producer, client, reader):
    sender = Sender(producer, START)
    async with running(with_pools(quick, USDT=STILL)):
        (last,) = await sender.send(sender.fund("a"))
        await settled(reader, last)
    async with running(with_pools(quick, USDT=msgspec.structs.replace(STILL, decimals=2))):
        (last,) = await sender.send([sender.make(TopUp, "5.000001", "x")])
        state = await settled(reader, last)
    assert (state.rules.decimals, state.row.terms) == (6, 1)


async def test_event_that_only_the_database_refuses_is_rejected_alone(quick, producer, reader, owner_connection):
    sender = Sender(producer, START)
    await owner_connection.execute("ALTER TABLE mutual_entries ADD CHECK (account <> 'refused')")
    events = [event for number in range(20) for event in sender.fund("refused" if number == 13 else f"a{number}")]
    async with running(with_pools(quick, USDT=STILL)):
        (last,) = await sender.send(events)
        state = await settled(reader, last)
    kept = await reader.rejected()
    assert [one.reason for one in kept] == ["database_refused", "not_funded"]
    assert state.accounts == 19


async def test_settled_messages_beyond_the_retention_are_trimmed(config, producer, client, reader, monkeypatch):
    monkeypatch.setattr("fundsvc.mutual.engine.session.TRIM_SECONDS", 0.1)
    sender = Sender(producer, START)
    old = [await client.xadd(KEY, {"json": b"[]"}, id=f"{number}-1") for number in range(1, 1_000)]
    async with running(with_pools(config, USDT=STILL)):
        (last,) = await sender.send(sender.fund("a"))
        await settled(reader, last)
        await eventually(lambda: is_shorter(client, len(old)))
    assert await client.xrange(KEY, last, last)


async def is_shorter(client, length):
    return await client.xlen(KEY) < length


def test_terms_that_can_be_farmed_are_warned_of_at_start(config):
    with capture_logs() as lines:
        pool_sessions(with_pools(config, USDT=Terms(cap=1_000_000), USDC=STILL), Metrics())
    ((event, pool),) = [(line["event"], line["pool"]) for line in lines]
    assert (event, pool) == ("terms can be farmed", "USDT")


async def test_pool_that_left_the_configuration_is_warned_of(quick, producer, reader):
    names = [POOL, "USDC"]
    async with running(with_pools(quick, USDT=STILL, USDC=STILL)):
        for name in names:
            (last,) = await send(producer, [TopUp(name, START, 1, "5", "x")], key=pool_stream_key(name))
            await settled(reader, last, name)
    with capture_logs() as lines:
        async with running(with_pools(quick, USDC=STILL)) as engine:
            await eventually(lambda: engine.count("fundsvc_mutual_not_configured") == 1)
        assert engine.count("fundsvc_mutual_not_configured") == 0, "the process does not own the partition any more"
    ((pool, detail),) = [(line["pool"], line["detail"]) for line in lines if line["event"] == "pool not configured"]
    assert pool == POOL
    assert "configure [mutual.pools.USDT] with the terms of the ledger" in detail


async def test_what_only_the_database_knows_is_shown(quick, producer, client, reader):
    now = await server_time_ms(client, KEY)
    sender, config = Sender(producer, now - 3 * DAY), with_pools(quick, USDT=Terms())
    async with running(config):
        opening = [*sender.fund("a", "b"), sender.make(TopUp, "100", "x"), sender.trade("a", "-100"), sender.trade("b", "2000")]
        (last,) = await sender.send(opening)
        await settled(reader, last)
    async with running(config):
        await eventually(lambda: caught_up(reader, now))
    async with running(config) as engine:
        await eventually(lambda: engine.count("fundsvc_mutual_unfunded_accounts") == 1)
        await eventually(lambda: engine.count("fundsvc_mutual_payout_ratio") == pytest.approx(0.08))


async def test_money_that_does_not_add_up_is_reported(quick, producer, reader, owner_connection):
    sender, config = Sender(producer, START), with_pools(quick, USDT=STILL)
    async with running(config):
        (last,) = await sender.send([sender.make(TopUp, "100", "x")])
        await settled(reader, last)
    await owner_connection.execute("UPDATE mutual_pools SET balance = balance - 5000000, released = 5000000")
    async with running(config) as engine:
        with capture_logs() as lines:
            await sender.send([sender.make(TopUp, "1", "y")])
            await eventually(lambda: engine.count("fundsvc_mutual_identity_error") == 5)
        assert "identity error" in {line["event"] for line in lines}
