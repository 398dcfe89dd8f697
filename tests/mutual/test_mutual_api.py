"""The mutual over HTTP: pools for everybody, accounts for their owners and risk, each answer of one commit."""

import asyncio
import csv
import io
from fractions import Fraction

import msgspec
import pytest
from conftest import with_section
from live import serving
from mutuals import ANNA, BERT, CARL, POOL, STORY, TS, Events, pool_owner, settled_pool, shown
from tokens import bearer, with_secret

from fundsvc.mutual.core.terms import DAY_MS, HOUR_MS, Terms
from fundsvc.store.database import open_pool

POOLS, ACCOUNT = "/api/v1/mutual/pools", "/api/v1/mutual/account"


@pytest.fixture
def config(config):
    return with_secret(with_section(config, "http", port=0, tail_seconds=0.005, requests_max=100_000))


@pytest.fixture
async def service(config):
    async with serving(config) as service:
        await settled_pool(config, STORY, service)
        yield service


def of(account):
    return {"headers": bearer("trader", account=account)}


async def insured(service, account, **parameters):
    """The answer for an account that is in one pool."""
    answer = await service.data(ACCOUNT, params=parameters, **of(account))
    assert answer["account"] == account
    (found,) = answer["pools"]
    return found


async def status(service, path, **options):
    async with service.http.get(path, **options) as answer:
        body = await answer.json()
        return answer.status, body["msg"]


async def test_pool_shows_balance_health_release_and_ratio(service):
    (listed,) = await service.data(POOLS)
    detail = await service.data(f"{POOLS}/{POOL}")
    terms = detail.pop("terms")
    listed.pop("asOf"), detail.pop("asOf")
    assert listed == detail
    assert Fraction(listed["inflow"]) == Fraction(listed["released"]) + Fraction(listed["balance"])
    assert Fraction(listed["available"]) == Fraction(listed["balance"])
    assert Fraction(listed["health"]) == Fraction(
        int(10**6 * Fraction(listed["available"]) / Fraction(listed["capsLeft"])), 10**6
    )
    assert (listed["release"], listed["state"], listed["halted"]) == ("0.1", "waiting", "")
    assert (listed["accounts"], listed["policies"], listed["activePolicies"], listed["weight"]) == (3, 4, 3, "300")
    assert listed["nextCutoff"] == TS - HOUR_MS + 10 * DAY_MS
    payouts = listed["payouts"]
    assert (payouts["cycles"], payouts["faces"]) == (9, "400")
    assert Fraction(payouts["ratio"]) == Fraction(int(10**6 * Fraction(payouts["released"]) / 400), 10**6)
    assert payouts["released"] == listed["released"]
    assert terms["version"] == listed["termsVersion"] == 1


async def test_exactly_one_number_of_the_preset_is_that_of_xt(service):
    terms = (await service.data(f"{POOLS}/{POOL}"))["terms"]
    terms.pop("version")
    assert {name: term["value"] for name, term in terms.items() if term["whose"] == "XT"} == {"minFunding": "10"}
    assert {term["whose"] for term in terms.values()} == {"XT", "ours"}
    assert terms["waitingHours"]["value"] == "24"
    assert terms["premiumTiers"]["value"][1] == {"from": "1000", "rate": "0.09"}
    assert terms["release"]["value"] == [{"from": "0", "rate": "0.1"}]


async def test_another_minimum_than_that_of_xt_is_not_called_theirs(config, service):
    await settled_pool(config, [Events("OTHER").top_up(1)], service, Terms(min_funding=20).rules(), "OTHER")
    terms = (await service.data(f"{POOLS}/OTHER"))["terms"]
    assert terms["minFunding"] == {"value": "20", "whose": "ours"}


async def test_cycles_are_paged_in_both_directions(service):
    whole = await service.data(f"{POOLS}/{POOL}/cycles", params={"maxCount": 500})
    assert not whole["hasMore"]
    assert [cycle["cycle"] for cycle in whole["dataList"]] == list(range(9, 0, -1))
    for forward, order in (("false", whole["dataList"]), ("true", whole["dataList"][::-1])):
        pages, more = [], {}
        while True:
            page = await service.data(f"{POOLS}/{POOL}/cycles", params={"maxCount": 2, "forward": forward, **more})
            pages += page["dataList"]
            if not page["hasMore"]:
                break
            more = {"offset": pages[-1]["cycle"]}
        assert pages == order
    newest = whole["dataList"][0]
    assert Fraction(newest["released"]) == Fraction(newest["budget"]) - Fraction(newest["returned"])


async def rows_of(service, path, **options):
    async with service.http.get(path, **options) as answer:
        assert (answer.status, answer.content_type) == (200, "text/csv")
        return list(csv.DictReader(io.StringIO(await answer.text())))


async def test_cycles_as_csv_equal_the_pages(service, monkeypatch):
    page = await service.data(f"{POOLS}/{POOL}/cycles", params={"maxCount": 500, "forward": "true"})
    for rows in (500, 4, 3):
        monkeypatch.setattr("fundsvc.mutual.api.pools.STREAMED_ROWS", rows)
        found = await rows_of(service, f"{POOLS}/{POOL}/cycles.csv")
        assert found == [{name: str(value) for name, value in cycle.items()} for cycle in page["dataList"]]


async def test_unknown_pools_are_not_found(service):
    for path in (f"{POOLS}/NONE", f"{POOLS}/NONE/cycles", f"{POOLS}/NONE/cycles.csv"):
        found, text = await status(service, path)
        assert found == 404
        assert "'NONE'" in text
    for path in ("", "/policies", "/statement", "/statement.csv"):
        assert (await status(service, ACCOUNT + path, params={"pool": "NONE"}, **of(ANNA)))[0] == 400


async def test_account_shows_progress_policies_and_what_is_payable(service):
    anna = await insured(service, ANNA)
    assert (anna["state"], anna["enabled"], anna["unfunded"], anna["coveredSince"]) == ("covered", True, False, TS)
    # losses of 260 and 55: three policies and 15 more; a profit of 100 cost a premium of 8
    assert (anna["accumulated"], anna["threshold"], anna["toNextPolicy"]) == ("15", "100", "85")
    assert (anna["balance"], anna["arrears"]) == ("42", "0")
    assert [policy["state"] for policy in anna["policies"]] == ["active"] * 3
    assert (anna["livePolicies"], anna["liveMax"], anna["hasMorePolicies"]) == (3, 1000, False)
    assert Fraction(anna["due"]) == sum(Fraction(policy["due"]) for policy in anna["policies"]) > 0
    for policy in anna["policies"]:
        assert Fraction(policy["accrued"]) == Fraction(policy["paid"]) + Fraction(policy["due"]) <= Fraction(policy["cap"])
    assert (anna["payable"], Fraction(anna["paidOut"])) == ("0", sum(Fraction(policy["paid"]) for policy in anna["policies"]))
    assert anna["actions"] == []


async def test_account_shows_until_when_a_policy_waits(config, service):
    make = Events(seq=99)
    async with pool_owner(config) as owner:
        await owner.settle(make.trade(ANNA, -90, 9 * 24 + 1))
        await shown(service, POOL, owner.pool.row().entry)
    policy = (await insured(service, ANNA))["policies"][-1]
    assert (policy["state"], policy["issuedAt"]) == ("waiting", TS + (9 * 24 + 1) * HOUR_MS)
    assert policy["waitingUntil"] == policy["issuedAt"] + 24 * HOUR_MS
    assert policy["sharesFrom"] == TS - HOUR_MS + 11 * DAY_MS
    assert (policy["accrued"], policy["due"], policy["paid"]) == ("0", "0", "0")


async def test_account_with_frozen_policies_learns_what_to_trade(service):
    bert = await insured(service, BERT)
    assert (bert["state"], [policy["state"] for policy in bert["policies"]]) == ("inactive", ["frozen"])
    assert bert["activity"] == {
        "at": TS - HOUR_MS + 10 * DAY_MS,
        "volume": "0",
        "needed": "1000",
        "missing": "1000",
        "hasTraded": False,
    }
    (action,) = bert["actions"]
    assert (action["kind"], action["amount"], action["until"]) == ("trade", "1000", bert["activity"]["at"])
    assert "a volume of 1000" in action["text"]
    assert "7 days" in action["text"]


async def test_following_the_actions_thaws_the_policies(config, service):
    make = Events(seq=99)
    async with pool_owner(config) as owner:
        await owner.settle(make.trade(BERT, 0, 9 * 24 + 1, volume=1000))
        await shown(service, POOL, owner.pool.row().entry)
        assert (await insured(service, BERT))["actions"] == []
        await owner.settle(make.tick(10 * 24))
        await shown(service, POOL, owner.pool.row().entry)
    bert = await insured(service, BERT)
    assert (bert["state"], [policy["state"] for policy in bert["policies"]]) == ("covered", ["active"])


async def test_unfunded_account_learns_what_to_transfer_and_is_covered_after_that(config, service):
    carl = await insured(service, CARL)
    # a premium of 40, of which 12 were there
    assert (carl["state"], carl["balance"], carl["arrears"], carl["coveredSince"]) == ("unfunded", "0", "28", None)
    (action,) = carl["actions"]
    assert (action["kind"], action["amount"], action["until"]) == ("transfer", "38", None)
    async with pool_owner(config) as owner:
        for amount, state in (("37.999999", "unfunded"), ("0.000001", "covered")):
            await owner.settle(Events(seq=owner.pool.row().seq).transfer(CARL, amount, 9 * 24))
            await shown(service, POOL, owner.pool.row().entry)
            assert (await insured(service, CARL))["state"] == state
    assert (await insured(service, CARL))["actions"] == []


async def test_disabled_account_learns_to_transfer_and_to_enable(config, service):
    make = Events(seq=99)
    async with pool_owner(config) as owner:
        await owner.settle(make.transfer("dora", 3, 9 * 24))
        await shown(service, POOL, owner.pool.row().entry)
    dora = await insured(service, "dora")
    assert dora["state"] == "disabled"
    assert [(action["kind"], action["amount"]) for action in dora["actions"]] == [("transfer", "7"), ("enable", None)]


async def test_policies_are_paged_from_the_newest(config, service):
    make = Events(seq=99)
    async with pool_owner(config) as owner:
        await owner.settle(make.cancel(ANNA, 2, 9 * 24))
        await shown(service, POOL, owner.pool.row().entry)
    pages, more = [], {}
    while True:
        page = await service.data(f"{ACCOUNT}/policies", params={"maxCount": 2, **more}, **of(ANNA))
        pages += page["dataList"]
        if not page["hasMore"]:
            break
        more = {"offset": pages[-1]["policy"]}
    assert [(policy["policy"], policy["state"]) for policy in pages] == [(4, "active"), (2, "cancelled"), (1, "active")]
    live = {policy["policy"]: policy for policy in (await insured(service, ANNA))["policies"]}
    assert {policy["policy"]: policy for policy in pages if policy["state"] == "active"} == live


async def test_account_shows_a_bounded_number_of_policies(service, monkeypatch):
    whole = await insured(service, ANNA)
    monkeypatch.setattr("fundsvc.mutual.api.account_answers.POLICIES_MAX", 2)
    short = await insured(service, ANNA)
    assert short["policies"] == whole["policies"][:2]
    assert short["hasMorePolicies"]
    assert (short["livePolicies"], short["due"]) == (3, whole["due"])


async def test_statement_has_the_entries_of_the_account_alone(service, monkeypatch):
    pages, more = [], {}
    while True:
        page = await service.data(f"{ACCOUNT}/statement", params={"maxCount": 3, **more}, **of(ANNA))
        pages += page["dataList"]
        if not page["hasMore"]:
            break
        more = {"offset": pages[-1]["entry"]}
    kinds = [entry["kind"] for entry in pages[::-1]]
    assert kinds == [
        *("transfer", "covered", "loss", "issue", "issue", "activate", "activate", "premium"),
        *("loss", "issue", "payout", "activate"),
    ]
    forward = await service.data(f"{ACCOUNT}/statement", params={"maxCount": 500, "forward": "true"}, **of(ANNA))
    assert forward["dataList"] == pages[::-1]
    for rows in (500, 5):
        monkeypatch.setattr("fundsvc.mutual.api.accounts.STREAMED_ROWS", rows)
        found = await rows_of(service, f"{ACCOUNT}/statement.csv", **of(ANNA))
        assert found == [{name: str(value) for name, value in entry.items()} for entry in forward["dataList"]]


async def test_other_accounts_are_forbidden_and_risk_names_one(service):
    for path in ("", "/policies", "/statement", "/statement.csv"):
        assert (await status(service, ACCOUNT + path, params={"account": BERT}, **of(ANNA)))[0] == 403
        found, text = await status(service, ACCOUNT + path, headers=bearer("risk"))
        assert (found, "account is required" in text) == (400, True)
        async with service.http.get(ACCOUNT + path, params={"account": BERT}, headers=bearer("risk")) as answer:
            assert answer.status == 200
            assert answer.headers["Cache-Control"] == "no-store"


async def test_account_without_events_is_in_no_pool(service):
    assert (await service.data(ACCOUNT, **of("nobody")))["pools"] == []
    for path in ("/policies", "/statement"):
        assert (await service.data(ACCOUNT + path, **of("nobody")))["dataList"] == []
        assert (await service.data(ACCOUNT + path, params={"pool": POOL}, **of("nobody")))["dataList"] == []
    assert await rows_of(service, f"{ACCOUNT}/statement.csv", **of("nobody")) == []
    strange = {"account": "a\0b"}
    assert (await service.data(ACCOUNT, params=strange, headers=bearer("risk")))["pools"] == []
    assert (await service.data(f"{ACCOUNT}/statement", params=strange, headers=bearer("risk")))["dataList"] == []


async def test_account_in_two_pools_has_an_answer_for_each(config, service):
    await settled_pool(config, Events("USDC").insured(ANNA, 20), service, pool="USDC")
    answer = await service.data(ACCOUNT, **of(ANNA))
    assert [(found["pool"], found["balance"]) for found in answer["pools"]] == [("USDC", "20"), ("USDT", "42")]
    assert (await insured(service, ANNA, pool="USDC"))["balance"] == "20"
    for path in ("/policies", "/statement", "/statement.csv"):
        found, text = await status(service, ACCOUNT + path, **of(ANNA))
        assert (found, text) == (400, "pool is required: the account is in USDC, USDT")
    entries = await service.data(f"{ACCOUNT}/statement", params={"pool": "USDC"}, **of(ANNA))
    assert [entry["kind"] for entry in entries["dataList"]] == ["covered", "transfer"]


async def test_public_answers_name_no_account(service):
    for path in ("", f"/{POOL}", f"/{POOL}/cycles", f"/{POOL}/cycles.csv"):
        async with service.http.get(POOLS + path) as answer:
            assert "secret" not in await answer.text()


async def test_integers_can_be_strings(service):
    (found,) = await service.data(POOLS, params={"numbers": "string"})
    assert (found["entry"], found["seq"]) == (str(int(found["entry"])), str(int(found["seq"])))


async def test_answer_of_an_account_is_of_one_commit(config, service):
    """Answers while the pool distributes and pays out equal those of memory after the commit that they name."""
    make, stop, expected = Events(seq=99), asyncio.Event(), {}

    async def settle():
        async with pool_owner(config) as owner:
            for hours in range(9 * 24, 40 * 24, 12):
                events = (
                    make.top_up("0.5", hours),
                    make.trade(ANNA, 0, hours),
                    *([make.payout(ANNA, hours)] if hours % 72 else []),
                )
                await owner.settle(*events)
                row, pool = owner.pool.register.accounts[ANNA].row(), owner.pool
                dues = [pool.standing(policy).due for policy in pool.register.save_policies() if policy.account == ANNA]
                expected[pool.row().entry] = row.payable + row.paid_out, sum(dues)
        stop.set()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(settle())
        seen = {}
        while not stop.is_set():
            anna = await insured(service, ANNA)
            moved = Fraction(anna["payable"]) + Fraction(anna["paidOut"])
            seen[anna["entry"]] = int(10**6 * moved), int(10**6 * Fraction(anna["due"]))
    assert len(seen.keys() & expected.keys()) > 10
    assert {entry: expected.get(entry, amounts) for entry, amounts in seen.items()} == seen


async def test_sealed_entries_show_commitments(config):
    sealed = with_section(config, "ledger", secret=32 * "s")
    async with serving(sealed) as service:
        await settled_pool(sealed, STORY, service)
        page = await service.data(f"{ACCOUNT}/statement", **of(ANNA))
    assert all(len(entry["commitment"]) == 64 and entry["keyId"] for entry in page["dataList"])


async def test_answers_are_unavailable_while_the_database_is_silent(config, monkeypatch):
    monkeypatch.setattr("fundsvc.mutual.readmodel.SILENCE_SECONDS_MAX", -1.0)
    async with serving(config) as service:
        for path, options in ((POOLS, {}), (f"{POOLS}/{POOL}", {}), (ACCOUNT, of(ANNA))):
            assert (await status(service, path, **options))[0] == 503


async def test_service_without_pools_has_an_empty_list(config):
    async with serving(config) as service, open_pool(config.database.dsn, 1):
        assert await service.data(POOLS) == []


async def test_fractions_of_hours_are_shown(config, service):
    rules = msgspec.structs.replace(Terms().rules(), waiting_ms=5_000, activity_ms=HOUR_MS)
    await settled_pool(config, [Events("FAST").top_up(1)], service, rules, "FAST")
    terms = (await service.data(f"{POOLS}/FAST"))["terms"]
    assert terms["waitingHours"]["value"] == "0.001388"
    assert terms["activityDays"]["value"] == "0.041666"
