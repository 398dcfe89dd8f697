"""Topics of the mutual: pools for everybody, accounts for their owners, now and after each change."""

import asyncio

import pytest
from conftest import with_section
from live import serving
from mutuals import ANNA, BERT, POOL, STORY, Events, pool_owner, settled_pool
from tokens import bearer, signed, with_secret

POOLS, ACCOUNT = "/api/v1/mutual/pools", "/api/v1/mutual/account"
POOL_TOPIC, ACCOUNT_TOPIC = "/mutual/pool", "/mutual/account"


@pytest.fixture
def config(config):
    return with_secret(with_section(config, "http", port=0, tail_seconds=0.005, requests_max=100_000))


@pytest.fixture
async def service(config):
    async with serving(config) as service:
        await settled_pool(config, STORY, service)
        yield service


def token(account):
    return signed("trader", account=account)


async def until(client, topic, subject, is_last):
    """Returns the data of the first push that fulfils a condition."""
    while True:
        data = await client.data(topic, subject)
        if is_last(data):
            return data


async def test_pools_are_sent_at_first_and_after_each_change(config, service):
    async with service.connected() as client, pool_owner(config) as owner:
        await client.subscribe(f"{POOL_TOPIC}:{POOL}")
        received = await client.data(f"{POOL_TOPIC}:{POOL}", "pool.change")
        (answered,) = await service.data(POOLS)
        assert received | {"asOf": 0} == answered | {"asOf": 0}
        for amount in ("5", "6"):
            await owner.settle(Events(seq=owner.pool.row().seq).top_up(amount, 9 * 24))
            entry = owner.pool.row().entry
            received = await until(
                client, f"{POOL_TOPIC}:{POOL}", "pool.change", lambda pool, entry=entry: pool["entry"] == entry
            )
            (answered,) = await service.data(POOLS)
            assert received | {"asOf": 0} == answered | {"asOf": 0}


async def test_subscription_to_all_pools_includes_later_ones(config, service):
    async with service.connected() as client:
        await client.subscribe(f"{POOL_TOPIC}:all")
        await client.data(f"{POOL_TOPIC}:{POOL}", "pool.change")
        await settled_pool(config, [Events("LATER").top_up(3)], service, pool="LATER")
        received = await until(client, f"{POOL_TOPIC}:LATER", "pool.change", lambda pool: pool["entry"] == 1)
        assert received["balance"] == "3"


async def test_account_is_sent_at_first_and_after_each_change(config, service):
    async with service.connected(token(ANNA)) as client, pool_owner(config) as owner:
        await client.subscribe(ACCOUNT_TOPIC)
        received = await client.data(ACCOUNT_TOPIC, "account.change")
        answered = await service.data(ACCOUNT, headers=bearer("trader", account=ANNA))
        assert received["pools"] == answered["pools"]
        await owner.settle(Events(seq=99).transfer(ANNA, 7, 9 * 24))
        received = await until(client, ACCOUNT_TOPIC, "account.change", lambda data: data["pools"][0]["balance"] == "49")
        answered = await service.data(ACCOUNT, headers=bearer("trader", account=ANNA))
        assert received["pools"] == answered["pools"]


async def test_cut_off_changes_every_account(config, service):
    async with service.connected(token(ANNA)) as client, pool_owner(config) as owner:
        await client.subscribe(ACCOUNT_TOPIC)
        before = await client.data(ACCOUNT_TOPIC, "account.change")
        await owner.settle(Events(seq=99).tick(10 * 24))
        received = await client.data(ACCOUNT_TOPIC, "account.change")
        assert float(received["pools"][0]["due"]) > float(before["pools"][0]["due"])


async def test_account_receives_nothing_of_other_accounts(config, service):
    async with service.connected(token(BERT)) as client, pool_owner(config) as owner:
        await client.subscribe(ACCOUNT_TOPIC)
        assert (await client.data(ACCOUNT_TOPIC, "account.change"))["account"] == BERT
        for amount in range(1, 4):
            await owner.settle(Events(seq=owner.pool.row().seq).transfer(ANNA, amount, 9 * 24))
            await asyncio.sleep(0.2)
        await owner.settle(Events(seq=owner.pool.row().seq).transfer(BERT, 1, 9 * 24))
        received = await client.data(ACCOUNT_TOPIC, "account.change")
        assert (received["account"], received["pools"][0]["balance"]) == (BERT, "35")


async def test_first_event_of_an_account_is_sent(config, service):
    async with service.connected(token("dora")) as client, pool_owner(config) as owner:
        await client.subscribe(ACCOUNT_TOPIC)
        assert (await client.data(ACCOUNT_TOPIC, "account.change"))["pools"] == []
        await owner.settle(Events(seq=99).transfer("dora", 3, 9 * 24))
        received = await client.data(ACCOUNT_TOPIC, "account.change")
        assert [pool["balance"] for pool in received["pools"]] == ["3"]


async def test_unsubscribed_client_receives_nothing_more(config, service):
    async with service.connected(token(ANNA)) as client, pool_owner(config) as owner:
        for topic, subject in ((f"{POOL_TOPIC}:{POOL}", "pool.change"), (ACCOUNT_TOPIC, "account.change")):
            await client.subscribe(topic)
            await client.data(topic, subject)
            answer = await client.request(id="u", type="unsubscribe", topic=topic, response=True)
            assert answer == {"id": "u", "type": "ack"}
        await owner.settle(Events(seq=99).transfer(ANNA, 3, 9 * 24))
        await asyncio.sleep(0.5)
        assert (await client.request(id="p", type="ping"))["type"] == "pong"


@pytest.mark.parametrize(
    ("topic", "more", "code", "words"),
    [
        (f"{POOL_TOPIC}:NONE", {}, 404, "'NONE' does not exist"),
        (POOL_TOPIC, {}, 400, "it must be /mutual/pool:{pool,...} or :all"),
        (f"{POOL_TOPIC}:{POOL}", {"after": 3}, 400, "no history"),
        (ACCOUNT_TOPIC, {}, 403, "private"),
    ],
)
async def test_invalid_subscriptions_are_rejected(service, topic, more, code, words):
    async with service.connected() as client:
        answer = await client.request(id="s", type="subscribe", topic=topic, **more)
        assert (answer["type"], answer["code"]) == ("error", code)
        assert words in answer["data"]


async def test_account_topic_has_no_history(service):
    async with service.connected(token(ANNA)) as client:
        answer = await client.request(id="s", type="subscribe", topic=ACCOUNT_TOPIC, after=3)
        assert (answer["code"], "statement" in answer["data"]) == (400, True)
