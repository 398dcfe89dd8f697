"""The command line of the mutual."""

import os
from decimal import Decimal

import msgspec
import pytest
from commands import command, fundsvc
from owners import POOL, owned_pool

from fundsvc.mutual.core.events import Enable, Tick, TopUp, Trade, Transfer
from fundsvc.mutual.core.terms import DAY_MS, Terms


async def simulate(tmp_path, *arguments, **environment):
    small = ("--accounts", 20, "--days", 15, "--report", tmp_path / "report.html")
    others = {name: value for name, value in os.environ.items() if not name.startswith("FUNDSVC_")}
    return await command("mutual", "simulate", *small, *arguments, environment=others | environment)


async def test_simulate_prints_what_policies_are_paid_within_80_columns(tmp_path):
    done = await simulate(tmp_path)
    assert (done.code, done.error) == (0, "")
    rows = [line for line in done.output.splitlines() if line.startswith("days ")]
    assert rows[0].startswith("days 1 to 10 ")
    assert max(map(len, rows)) <= 80


async def test_report_is_one_file_that_loads_nothing(tmp_path):
    await simulate(tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "plotly.js v" in text
    own = text.replace(text[text.index("<script>") : text.index("</script>")], "")
    assert "http" not in own
    assert "$" not in own.split("<script>")[0]


async def test_summary_as_json_has_cohorts_and_farms(tmp_path):
    result = (await simulate(tmp_path, "--days", 200, "--json")).result
    assert [cohort["first_day"] for cohort in result["cohorts"]] == [0, 10, 93]
    assert {farm["size"] for farm in result["farms"]} == {"threshold", "market"}
    assert all(farm["back"] <= farm["cost"] for farm in result["farms"])


async def test_terms_of_a_configured_pool_are_simulated_and_warned_of(tmp_path):
    config = tmp_path / "fundsvc.toml"
    config.write_text("[mutual.pools.USDT]\ncap = 500_000\n")
    done = await simulate(tmp_path, "--pool", "USDT", FUNDSVC_CONFIG=str(config))
    assert done.code == 0
    assert "these terms can be farmed: a policy pays up to 50 " in done.output
    assert "these terms can be farmed" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--pool", "BTC"], "no pool 'BTC' is configured; mutual.pools has: none"),
        (["--term", "cap 3"], "--term 'cap 3' is not TOML such as 'cap = 1000000'"),
        (["--term", "caps = 3"], "--term: Object contains unknown field `caps`"),
        (["--term", "cap = 0"], "--term: cap 0 ppm of the face is less than one atom: raise cap or face"),
        (["--term", "premium_tiers = [[0, 9], [1, 8]]"], "--term: premium_tiers: rates [9, 8] fall"),
    ],
)
async def test_wrong_terms_are_refused_in_one_line(tmp_path, arguments, error):
    done = await simulate(tmp_path, *arguments)
    assert (done.code, done.output) == (2, "")
    assert done.error.startswith(f"fundsvc: {error}")
    assert not (tmp_path / "report.html").exists()


async def test_simulate_shows_progress_on_a_terminal_only(tmp_path):
    assert "15/15" in (await simulate(tmp_path, FORCE_COLOR="1")).error
    assert (await simulate(tmp_path)).error == ""


START = 20_454 * DAY_MS
LONG_NAME = "a" * 64


@pytest.fixture
async def pools(config):
    """A pool in the database. Its accounts have an active policy (it thawed), no funding, a frozen policy, a waiting one."""
    rules = msgspec.structs.replace(Terms().rules(), cap_rate=1_000_000)
    async with owned_pool(config, rules) as owner:
        seq = 0

        def apply(kind, day, *fields):
            nonlocal seq
            seq += 1
            owner.pool.apply(kind(POOL, START + int(day * DAY_MS), seq, *fields))

        def trade(account, day, pnl):
            apply(Trade, day, account, "XBTUSDTM", "t", START + int(day * DAY_MS), pnl, "2000")

        for account in ("anna", "bert", "carl", LONG_NAME):
            apply(Transfer, 0, account, "10", "t")
            apply(Enable, 0, account)
        apply(Transfer, 0, "dora", "4", "t")
        apply(TopUp, 0, "50", "u")
        trade("anna", 0.1, "-130.5")
        trade("carl", 0.1, "-100")
        trade("bert", 0.2, "300")
        trade("anna", 8.5, "-1")
        trade(LONG_NAME, 8.6, "-100")
        owner.pool.apply(Tick(POOL, START + 9 * DAY_MS))
        await owner.commit()
        yield


async def test_status_shows_pools_within_80_columns(pools, config):
    done = await fundsvc(config, "mutual", "status")
    assert (done.code, done.error) == (0, "")
    assert max(map(len, done.output.splitlines())) <= 80
    lines = dict(line.split(maxsplit=1) for line in done.output.splitlines() if len(line.split()) > 1)
    assert lines["state"].strip() == "running"
    assert lines["balance"].strip() == "28.697814"
    assert lines["policies"].strip() == "1 active, 3 live"
    assert lines["next"].split()[1:] == ["2026-01-11", "00:00"]
    assert "Nothing is guaranteed" in done.output
    assert "can be farmed" in done.output


async def test_status_as_json_has_exact_amounts(pools, config):
    [pool] = (await fundsvc(config, "mutual", "status", "--json")).result
    assert (pool["pool"], pool["balance"], pool["active"], pool["accounts"], pool["unfunded"]) == (POOL, "28.697814", 1, 5, 1)
    assert pool["nextCutoff"] == START + 10 * DAY_MS
    assert pool["ratio"] == pytest.approx((60 - 28.697814) / 300)


CONFIGURED = "[mutual.pools.USDT]\n[mutual.pools.OTHER]\n"


async def test_status_and_config_check_warn_of_a_pool_that_is_not_configured(pools, config, tmp_path):
    path = tmp_path / "fundsvc.toml"
    for text, warned in (("[mutual.pools.OTHER]\n", True), (CONFIGURED, False)):
        path.write_text(text)
        [pool] = (await fundsvc(config, "mutual", "status", "--json", FUNDSVC_CONFIG=str(path))).result
        assert any("configure [mutual.pools.USDT]" in one for one in pool["warnings"]) == warned
        done = await fundsvc(config, "config", "check", "--reachable", FUNDSVC_CONFIG=str(path))
        assert done.code == 0
        assert ("warning: mutual.pools.USDT: the ledger has this pool" in done.error) == warned
        assert "OTHER" not in done.error


async def test_account_shows_policies_and_what_to_do(pools, config):
    [anna] = (await fundsvc(config, "mutual", "account", "anna", "--json")).result
    assert (anna["covered"], anna["accumulated"], anna["advice"]) == (True, "31.5", [])
    [policy] = anna["policies"]
    assert (policy["state"], policy["due"]) == ("ACTIVE", anna["due"])
    assert Decimal(policy["accrued"]) == Decimal(anna["due"]) + Decimal(anna["payable"]) > Decimal(anna["due"]) > 0
    waiting = (await fundsvc(config, "mutual", "account", LONG_NAME, "--json")).result[0]["policies"][0]
    assert (waiting["state"], waiting["activeAt"]) == ("WAITING", START + int(9.6 * DAY_MS))


@pytest.mark.parametrize(
    ("account", "advice"),
    [
        ("bert", "not funded: transfer 24 to the insurance account"),
        ("carl", "frozen since 2026-01-09 00:00: be covered, and trade a volume of 1000 within 7 days"),
        ("dora", "not funded: transfer 6 to the insurance account"),
    ],
)
async def test_account_names_what_it_lacks(pools, config, account, advice):
    [found] = (await fundsvc(config, "mutual", "account", account, "--json")).result
    assert advice in found["advice"]


@pytest.mark.parametrize("account", ["anna", "bert", "carl", LONG_NAME])
async def test_account_is_printed_within_80_columns(pools, config, account):
    done = await fundsvc(config, "mutual", "account", account)
    assert done.code == 0
    assert max(map(len, done.output.splitlines())) <= 80
    assert account in done.output.replace("\n", "")


async def test_cycles_are_listed_newest_first(pools, config):
    cycles = (await fundsvc(config, "mutual", "cycles", POOL, "--json")).result
    assert [cycle["cycle"] for cycle in cycles] == list(range(9, 0, -1))
    first_with_policies = cycles[-2]
    assert (first_with_policies["balance"], first_with_policies["released"]) == ("60", "6")
    assert first_with_policies["share"] == 0.03
    done = await fundsvc(config, "mutual", "cycles", POOL, "--count", "3")
    assert max(map(len, done.output.splitlines())) <= 80
    assert [line.split()[0] for line in done.output.splitlines() if line[:1].isdigit()] == ["9", "8", "7"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("account", "nemo"), "no pool has the account 'nemo'"),
        (("account", "anna", "--pool", "BTC"), "BTC has no account 'anna'"),
        (("cycles", "BTC"), "there is no pool 'BTC'; there are: USDT"),
    ],
)
async def test_unknown_names_are_reported_in_one_line(pools, config, arguments, error):
    done = await fundsvc(config, "mutual", *arguments)
    assert (done.code, done.output, done.error) == (2, "", f"fundsvc: {error}\n")


async def test_status_without_pools_tells_how_to_configure_one(config):
    done = await fundsvc(config, "mutual", "status")
    assert (done.code, done.output) == (0, "there is no pool: configure one as [mutual.pools.NAME]\n")
