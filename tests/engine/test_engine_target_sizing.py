"""Target sizes on a real ledger: deficits from the database, targets stored by the engine, and answers of HTTP and commands."""

import random
import time
from collections import Counter

import msgspec
import pytest
from commands import fundsvc
from conftest import with_section
from eventually import eventually
from ledgers import clocked, fill, listing, owned, restamp
from live import serving
from test_engine import running
from tokens import bearer, with_secret

from fundsvc.concurrency.exclusive import Exclusive
from fundsvc.config.settings import TargetConfig
from fundsvc.core.events import AdlEnd, Mark, Position
from fundsvc.core.fund.fullness import Target, TargetPolicy
from fundsvc.core.fund.target_sizing import Deficits, quantile_rank
from fundsvc.core.policy import Policy
from fundsvc.engine.target_sizing import TargetSizing
from fundsvc.metrics import Metrics
from fundsvc.store.database import open_pool
from fundsvc.store.rollups import condense
from fundsvc.store.target_sizes import Targets
from fundsvc.streams.client import open_client
from fundsvc.streams.producer import Producer

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
START_MS = 1_700_000_000_000 // DAY_MS * DAY_MS
ONE = 10**8
PLAIN = Policy()
HALF = TargetPolicy(period_hours=1, history_days=30, cost_of_capital=0.5, cost_of_loss=1.0)


@pytest.fixture
async def pool(config):
    async with open_pool(config.database.dsn, 4) as pool:
        yield pool


async def settle(config, *events, policy=PLAIN):
    async with owned(config, lambda _: policy) as owner:
        await owner.settle(events)


async def brute_force(connection, symbol, policy):
    """Computes the deficits of all periods of a contract from its entries, one by one."""
    period = policy.period_hours * HOUR_MS
    deficits = Counter()
    for clock, entry in clocked(await connection.fetch("SELECT * FROM entries WHERE symbol = $1 ORDER BY entry", symbol)):
        deficit = entry["uncovered"] - entry["change"] if entry["kind"] == "shortfall" else 0
        deficits[clock // period] += deficit
    last = max(deficits)
    first = max(min(deficits), last - policy.periods_max + 1)
    return [deficits[number] for number in range(first, last + 1)]


@pytest.mark.parametrize(
    "policy",
    [
        HALF,
        TargetPolicy(period_hours=1, history_days=1, cost_of_capital=0.1, cost_of_loss=1.0),
        TargetPolicy(period_hours=7, cost_of_capital=0.05, cost_of_loss=1.0),
        TargetPolicy(period_hours=24, history_days=3, cost_of_capital=0.34, cost_of_loss=1.0),
        TargetPolicy(),
    ],
)
@pytest.mark.parametrize("waterfall", ["fund_then_adl", "adl_then_fund"])
async def test_deficits_of_periods_equal_those_of_the_entries(config, pool, service_connection, policy, waterfall):
    events = [*history("AAA", 100, waterfall), *history("BBB", 3, waterfall)]
    await settle(config, *events, policy=Policy(waterfall=waterfall, rounds_max=1))
    await condense(pool, 0)
    covers = await service_connection.fetchval("SELECT count(*) FROM entries WHERE kind = 'cover'")
    assert (covers > 10) == (waterfall == "adl_then_fund")
    found = await Targets(pool).deficits({"AAA": policy, "BBB": policy, "CCC": policy})
    assert found.keys() == {"AAA", "BBB"}
    for symbol, deficits in found.items():
        expected = await brute_force(service_connection, symbol, policy)
        falling = sorted((deficit for deficit in expected if deficit), reverse=True)
        assert (deficits.periods, deficits.number) == (len(expected), len(falling))
        assert list(deficits.largest) == falling[: quantile_rank(policy.periods_max, policy.level)]
        assert deficits.end_ms - deficits.start_ms == len(expected) * policy.period_hours * HOUR_MS


def history(symbol, hours, waterfall):
    """Fills within some hours, some of them late. With `adl_then_fund` some orders end without execution, and the fund pays."""
    dice, seq, orders = random.Random(hours), 0, 0
    yield from (listing(symbol), Mark(symbol, "900", 0), Position(symbol, "anna", -1000, "1100", "500", 0))
    for at in sorted(dice.randint(0, hours * HOUR_MS) for _ in range(150)):
        points, ts = dice.randint(-12, 10), START_MS + at - dice.choice((0, 0, 2 * HOUR_MS))
        yield fill(symbol, seq := seq + 1, points, ts)
        if points < 0 and waterfall == "adl_then_fund":
            orders += 1
            if dice.random() < 0.5:
                yield AdlEnd(symbol, seq := seq + 1, orders, ts + 5 * HOUR_MS)


async def test_entry_with_a_far_future_time_counts_at_its_recording_time(config, pool, owner_connection):
    today = time.time_ns() // 1_000_000 // DAY_MS * DAY_MS
    start = today - 4 * DAY_MS
    await settle(config, listing("AAA"), fill("AAA", 1, 9, start), fill("AAA", 2, -4, start), fill("AAA", 3, -3, start))
    await restamp(owner_connection, "AAA", 3, today + 2 * 365 * DAY_MS)
    await condense(pool, 0)
    found = await Targets(pool).deficits({"AAA": TargetPolicy()})
    assert found == {"AAA": Deficits(start, start + DAY_MS, 1, 1, [4 * ONE])}


async def test_unfinished_period_does_not_count(config, pool):
    now = time.time_ns() // 1_000_000
    today = now // DAY_MS * DAY_MS
    changes = [(50, today - DAY_MS), (-4, today - 1), (-30, now)]
    events = [fill("AAA", seq, worth, ts) for seq, (worth, ts) in enumerate(changes, 1)]
    await settle(config, listing("AAA"), *events, listing("NEW"), fill("NEW", 1, 5, now))
    await condense(pool, 0)
    targets = Targets(pool)
    assert await targets.deficits({"AAA": TargetPolicy(), "NEW": TargetPolicy()}) == {
        "AAA": Deficits(today - DAY_MS, today, 1, 1, [4 * ONE])
    }
    await recomputed(config, pool, TargetPolicy(), Metrics())
    assert (await targets.explained("AAA")).target.amount == 4 * ONE
    assert "no history of a completed period of 24 hours" in (await targets.explained("NEW")).reason


async def recomputed(config, pool, policy, metrics):
    async with owned(config) as owner:
        await TargetSizing(owner.partition, Exclusive(), Targets(pool), lambda _: policy, metrics).recompute()


async def test_targets_are_stored_with_their_explanations_and_replaced(config, pool):
    await settle(config, listing("AAA", maxLeverage=50), fill("AAA", 1, 9, START_MS), fill("AAA", 2, -4, START_MS))
    targets, metrics = Targets(pool), Metrics()
    await recomputed(config, pool, HALF, metrics)
    nothing = await targets.explained("AAA")
    assert (nothing.target.amount, nothing.explanation) == (None, None)
    assert "no history" in nothing.reason
    await condense(pool, 0)
    await recomputed(config, pool, HALF, metrics)
    found = await targets.explained("AAA")
    assert found.target == Target("value_at_risk", 4 * ONE, 0.5, 1.0, 1.0, 50.0)
    assert (found.explanation.periods, found.explanation.rank) == (1, 1)
    assert "it has 1 of the 2 periods" in found.reason
    assert found.computed_at > nothing.computed_at
    assert await targets.all() == {"AAA": found.target}
    assert await targets.explained("BBB") is None


@pytest.mark.parametrize("listed", [None, "many", 0, -5, [1], "1e999", "NaN"])
async def test_listing_without_a_valid_leverage_has_no_leverage_cap(config, pool, listed):
    await settle(config, listing("AAA", maxLeverage=listed))
    assert await Targets(pool).leverages(["AAA"]) == {"AAA": None}


async def test_rule_none_gives_no_target(config, pool):
    await settle(config, listing("AAA"))
    await recomputed(config, pool, TargetPolicy(rule="none"), Metrics())
    assert "no rule" in (await Targets(pool).explained("AAA")).reason


async def test_more_contracts_than_one_step_takes_have_targets(config, pool):
    await settle(config, *(listing(f"A{number}") for number in range(50)))
    await recomputed(config, pool, TargetPolicy(rule="none"), Metrics())
    assert len(await Targets(pool).all()) == 50


def market():
    """A fund of 5 USDT whose longs lose more than their margins when the mark falls by 10 %."""
    return (
        listing("AAA", maxLeverage=20),
        Mark("AAA", "1000", START_MS),
        Position("AAA", "secret-anna", 3, "1000", "20", START_MS),
        Position("AAA", "secret-bert", -3, "1000", "500", START_MS),
        fill("AAA", 1, 9, START_MS),
        fill("AAA", 2, -4, START_MS),
    )


RULES = [
    ("value_at_risk", "4", 1.25, 20.0, "ok"),
    ("cover", "280", 5 / 280, 1.0, "warning"),
    ("open_interest", "30", 5 / 30, 1.0, "warning"),
    ("none", None, None, None, "ok"),
]


@pytest.mark.parametrize(("rule", "target", "fullness", "cap", "state"), RULES)
async def test_engine_computes_targets_and_all_interfaces_show_them(config, pool, rule, target, fullness, cap, state):
    config = msgspec.structs.replace(
        with_section(config, "engine", target_seconds=0.05, rollup_seconds=0.05, book_seconds=0.05),
        target=TargetConfig(default=TargetPolicy(rule="none"), contracts={"AAA": TargetPolicy(rule=rule)}),
    )
    async with open_client(config.stream) as client:
        await Producer(client, 1).append(market())
    async with running(config) as engine:
        await eventually(lambda: found(pool, rule, target))
        async with serving(config) as service:
            fund = await eventually(lambda: answered(service))
            explained = await service.data("/api/v1/insurance-fund/AAA/target")
        shown = [engine.count(name, symbol="AAA") for name in METRICS]
        warned = engine.count("fundsvc_fund_state", symbol="AAA", state="warning")
    assert (fund["target"], fund["fullness"], fund["leverageCap"], fund["state"]) == (target, fullness, cap, state)
    assert (explained["target"], explained["fullness"], explained["leverageCap"]) == (target, fullness, cap)
    assert (explained["rule"], explained["balance"], explained["leverageMax"]) == (rule, "5", 20)
    assert (explained["explanation"] or {}).get("rule") == (rule if target else None)
    assert "secret" not in str(explained)
    assert shown == [float(target or 0), fullness or 0, cap or 0]
    assert warned == (state == "warning")
    done = await fundsvc(config, "target", "AAA", "--rule", rule, "--json")
    assert done.code == 0, done.error
    assert {**done.result, "computedAt": 0} == {**explained, "computedAt": 0}


async def answered(service):
    """Returns the fund, once the tail has read the ledger."""
    async with service.http.get("/api/v1/insurance-fund/AAA") as answer:
        return answer.status == 200 and (await answer.json())["data"]


METRICS = ("fundsvc_target", "fundsvc_fullness_ratio", "fundsvc_leverage_cap")


async def found(pool, rule, target):
    """Whether an engine has stored the target for everything settled."""
    explained = await Targets(pool).explained("AAA")
    amount = None if target is None else int(target) * ONE
    return explained and (explained.target.rule, explained.target.amount) == (rule, amount)


@pytest.mark.parametrize(("rule", "texts"), [
    ("value_at_risk", ["AAA has the target 4 USDT", "1 periods of 24 h", "fullness 1.25", "recommended leverage 20"]),
    ("cover", ["AAA has the target 280 USDT", "largest long positions", "900", "the other side would lose 0 USDT", "280"]),
    ("open_interest", ["AAA has the target 30 USDT", "0.01 of 3000 USDT, the value of 3 open lots"]),
    ("none", ["AAA has no target under the rule none: the configuration names no rule"]),
])  # fmt: skip
async def test_command_explains_a_target(config, pool, rule, texts):
    async with open_client(config.stream) as client:
        await Producer(client, 1).append(market())
    async with running(with_section(config, "engine", rollup_seconds=0.05, book_seconds=0.05)):
        await eventually(lambda: pool.fetchval("SELECT entry = 2 FROM rollup_progress WHERE symbol = 'AAA'"))
    done = await fundsvc(config, "target", "AAA", "--rule", rule)
    assert done.code == 0, done.error
    for text in texts:
        assert text in done.output
    assert "secret" not in done.output


async def test_what_if_has_the_parameters_of_the_policy_or_those_that_are_given(config, pool):
    config = with_secret(with_section(config, "engine", rollup_seconds=0.05, book_seconds=0.05))
    async with open_client(config.stream) as client:
        await Producer(client, 1).append(market())
    async with running(config):
        await eventually(lambda: pool.fetchval("SELECT entry = 2 FROM rollup_progress WHERE symbol = 'AAA'"))
    stored = await pool.fetch("SELECT * FROM targets")
    async with serving(config) as service:
        await eventually(lambda: answered(service))
        path = "/api/v1/insurance-fund/AAA/target/what-if"
        for query, options, target in (
            ({}, [], "4"),
            ({"rule": "cover"}, ["--rule", "cover"], "280"),
            ({"rule": "cover", "move": "0.2"}, ["--rule", "cover", "--move", "0.2"], "580"),
            ({"rule": "open_interest", "share": "0.5"}, ["--rule", "open_interest", "--share", "0.5"], "1500"),
        ):
            answer = await service.data(path, params=query, headers=bearer("risk"))
            done = await fundsvc(config, "target", "AAA", *options, "--json")
            assert (answer["target"], done.result["target"]) == (target, target), query
            assert {**done.result, "computedAt": 0} == {**answer, "computedAt": 0}
        for query, words in (
            ({"costOfLoss": "0.0001"}, "cost_of_capital 0.0003 must be below cost_of_loss 0.0001"),
            ({"move": "1"}, "move is '1': it must be a number above 0 and below 1"),
            ({"share": "2"}, "share is '2': it must be a number above 0, at most 1"),
            ({"fullnessLow": "1"}, "not a parameter"),
        ):
            async with service.http.get(path, params=query, headers=bearer("risk")) as refused:
                assert (refused.status, words in (await refused.json())["msg"]) == (400, True)
    assert await pool.fetch("SELECT * FROM targets") == stored
    done = await fundsvc(config, "target", "AAA", "--cost-of-loss", "0.0001")
    assert (done.code, "must be below cost_of_loss" in done.error) == (2, True)


async def test_command_fails_for_an_unknown_contract(config):
    unlisted = await fundsvc(config, "target", "NONE")
    assert (unlisted.code, "no contract 'NONE' is listed" in unlisted.error) == (2, True)
    assert (await fundsvc(config, "target", "NONE", "--rule", "luck")).code == 2


async def test_http_reports_a_target_that_is_not_computed_yet(config):
    await settle(config, listing("AAA"))
    async with serving(config) as service:
        assert (await eventually(lambda: answered(service)))["target"] is None
        for symbol, text in (("AAA", "not computed yet"), ("BBB", "listed")):
            async with service.http.get(f"/api/v1/insurance-fund/{symbol}/target") as answer:
                assert (answer.status, text in (await answer.json())["msg"]) == (404, True)
