"""The visibility of accounts and single positions for the public, traders and risk."""

import hashlib
import hmac
import re

import msgspec
import pytest
from conftest import connected, with_section
from escalations import BEGINNING, SYMBOL, TS, mark
from eventually import eventually
from live import ENTRY, ORDER, Listener
from test_adl_api import config, world_of  # noqa: F401 - a fixture
from test_engine import running
from tokens import bearer

from fundsvc.core.events import AdlFill, Fill, Position
from fundsvc.core.fund.chain import Entry, link

LEDGER_SECRET = "a ledger secret of tests that is long enough"
ACCOUNTS = [f"holder-{number}" for number in range(12)]
LIQUIDATED = "liquidated-holder"
FUND, ADL = f"/api/v1/insurance-fund/{SYMBOL}", f"/api/v1/adl/{SYMBOL}"
FILL = {"side": "sell", "lots": 1234, "price": "38900", "bankruptcyPrice": "39000", "ts": TS}


def lots(number):
    return 1357 + 11 * number


def entry_price(number):
    return f"{40123 + 7 * number}.25"


def margin(number):
    return f"{1517 + 13 * number}.75"


def held(number, sign=-1, **changes):
    fields = {"lots": sign * lots(number), "entry_price": entry_price(number), "margin": margin(number)} | changes
    return Position(SYMBOL, ACCOUNTS[number], ts=TS, **fields)


def liquidated(seq, count, price="38900"):
    return Fill(SYMBOL, seq, "sell", count, price, "39000", TS, f"trade-{seq}", f"order-{seq}", LIQUIDATED)


EVENTS = [
    BEGINNING[0],
    mark(39000),
    *(held(number) for number in range(8)),
    *(held(number, 1) for number in range(8, 12)),
    liquidated(1, 3000, "39100"),
    liquidated(2, 9876),
    AdlFill(SYMBOL, 3, 1, ACCOUNTS[7], 1001, TS),
]
"""Eight shorts, four longs, a surplus, and an order that allocates all lots of seven shorts."""


@pytest.fixture
def config_with_secret(config):  # noqa: F811 - the fixture
    config = with_section(config, "ledger", secret=LEDGER_SECRET)
    config = with_section(config, "target", default=msgspec.structs.replace(config.target.default, rule="cover"))
    return with_section(config, "http", venues=("binance", "bybit", "gate", "okx"))


@pytest.fixture
async def world(config_with_secret):
    config_with_secret = with_section(config_with_secret, "engine", target_seconds=0.1)
    async with world_of(config_with_secret) as world:
        await world.send(*EVENTS)
        yield world


async def read(world, path, headers=None, **options):
    async with world.http.request("POST" if "json" in options else "GET", path, headers=headers or {}, **options) as answer:
        return answer.status, await answer.text()


async def data(world, path, headers=None, **options):
    status, text = await read(world, path, headers, **options)
    assert status == 200, text
    return msgspec.json.decode(text)["data"]


async def explained(world):
    """Waits for a target whose explanation has positions."""
    await eventually(lambda: world.pool.fetchval("SELECT explanation::text LIKE '%entryPrice%' FROM targets"))


async def public_paths(world):
    """Yields the path of every GET without a required token, with parameter values."""
    _, text = await read(world, "/openapi.json")
    values = {"symbol": SYMBOL, "entry": "2", "adl": "1", "round": "1", "settle": "usdt", "pool": "USDT"}
    queries = {"ts": str(TS), "symbol": SYMBOL}
    for path, methods in msgspec.json.decode(text)["paths"].items():
        operation = methods.get("get")
        if operation and (not operation.get("security") or {} in operation["security"]):
            needed = [one["name"] for one in operation["parameters"] if one["in"] == "query" and one["required"]]
            query = "&".join(f"{name}={queries[name]}" for name in needed if name in queries)
            yield re.sub(r"{(\w+)}", lambda found: values[found[1]], path) + (f"?{query}" if query else "")


def numbers_in(text):
    return set(re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?![\w])", text))


HIDDEN = {str(lots(n)) for n in range(12)} | {entry_price(n) for n in range(12)} | {margin(n) for n in range(12)}


async def test_no_public_answer_shows_accounts_secrets_salts_or_positions(world):
    rows = await world.pool.fetch("SELECT f.adl_head, r.hash FROM funds f JOIN adl_records r USING (symbol)")
    adl_hashes = {row[name].hex() for row in rows for name in ("adl_head", "hash")}
    await explained(world)
    paths = [path async for path in public_paths(world)]
    assert {f"{ADL}/queue", f"{ADL}/orders", f"{FUND}/target", f"{FUND}/history", f"{FUND}/entries/2"} <= set(paths)
    for path in paths:
        _, text = await read(world, path)
        assert not any(account in text for account in (*ACCOUNTS, LIQUIDATED)), path
        assert LEDGER_SECRET not in text, path
        assert "salt" not in text or path.startswith(("/openapi", "/docs")), path
        assert not any(digest in text for digest in adl_hashes), path
        if not path.startswith(("/openapi", "/docs", "/metrics")):
            assert not numbers_in(text) & HIDDEN, path


async def test_no_public_push_shows_accounts_or_positions(world):
    bullet = msgspec.json.decode((await read(world, "/api/v1/bullet-public", json={}))[1])["data"]
    parameters = {"token": bullet["token"], "connectId": "c"}
    async with world.http.ws_connect(bullet["instanceServers"][0]["endpoint"], params=parameters) as connection:
        client = Listener(connection)
        await client.next()
        await client.subscribe(f"{ORDER}:{SYMBOL}")
        order = await client.data(f"{ORDER}:{SYMBOL}", "order.change")
        await client.subscribe(f"{ENTRY}:{SYMBOL}", after=0)
        entries = [await client.data(f"{ENTRY}:{SYMBOL}", "entry") for _ in range(2)]
    text = msgspec.json.encode([order, entries]).decode()
    assert not any(account in text for account in (*ACCOUNTS, LIQUIDATED))
    assert not numbers_in(text) & HIDDEN
    assert [entry["commitment"] != "" for entry in entries] == [True, True]


async def test_public_hashes_do_not_reveal_the_account(world):
    second = await data(world, f"{FUND}/entries/2")
    row = await world.pool.fetchrow("SELECT * FROM entries WHERE entry = 2")
    public = Entry(*(row[name] for name in Entry.__struct_fields__ if name in row))
    public = msgspec.structs.replace(public, account="", seal=b"")
    previous = bytes.fromhex(second["previousHash"])
    tried = (link(previous, msgspec.structs.replace(public, account=one)).hex() for one in (*ACCOUNTS, LIQUIDATED))
    assert second["entry"]["hash"] not in tried


async def test_hash_can_be_recomputed_from_the_public_answer(world):
    second = await data(world, f"{FUND}/entries/2")
    shown = second["entry"]
    fields = [SYMBOL, 2, shown["seq"], shown["kind"]]
    fields += [round(float(shown[name]) * 10**8) for name in ("change", "balance", "uncovered", "repaid")]
    decimals = await world.pool.fetchval("SELECT price_decimals FROM contracts")
    fields += [shown["side"], shown["lots"], *(int(shown[name]) * 10**decimals for name in ("price", "bankruptcyPrice"))]
    seal = bytes.fromhex(shown["keyId"] + shown["commitment"])
    array = msgspec.msgpack.encode([2, *fields, shown["tradeId"], shown["orderId"], seal, shown["ts"]])
    assert hashlib.sha256(bytes.fromhex(second["previousHash"]) + array).hexdigest() == shown["hash"]


@pytest.mark.parametrize(
    ("caller", "opened"),
    [
        ({"role": "trader", "account": LIQUIDATED}, True),
        ({"role": "risk"}, True),
        ({"role": "trader", "account": ACCOUNTS[0]}, False),
        ({"role": "engine"}, False),
        (None, False),
    ],
)
async def test_commitment_is_opened_to_its_owner_and_to_risk(world, caller, opened):
    shown = await data(world, f"{FUND}/entries/2", bearer(**caller) if caller else None)
    assert (shown.get("account"), "salt" in shown) == ((LIQUIDATED, True) if opened else (None, False))
    if opened:
        made = hmac.new(bytes.fromhex(shown["salt"]), LIQUIDATED.encode(), "sha256").hexdigest()
        assert made == shown["entry"]["commitment"]


async def test_entry_without_a_commitment_has_no_opening(config):  # noqa: F811 - the fixture
    async with world_of(config) as world:
        await world.send(*EVENTS)
        shown = await data(world, f"{FUND}/entries/2", bearer("trader", account=LIQUIDATED))
        assert ("account" in shown, "salt" in shown, shown["entry"]["commitment"]) == (False, False, "")


async def test_queue_sections_have_at_least_k_min_positions(world):
    queue = await data(world, f"{ADL}/queue")
    assert [section["positions"] for section in queue["short"]] == [8]
    assert [(section["lights"], section["toLights"]) for section in queue["short"]] == [(5, 1)]
    assert queue["long"] == []
    exact = await data(world, f"{ADL}/queue", bearer("risk"))
    assert [section["positions"] for section in exact["short"]] == [2, 2, 1, 2, 1]
    own = await data(world, f"{ADL}/queue", bearer("trader", account=ACCOUNTS[0]))
    assert own["short"] == queue["short"]


@pytest.mark.parametrize("size", [7, 38, 777, 12345])
async def test_queue_does_not_reveal_the_change_of_one_position(world, size):
    before = (await data(world, f"{ADL}/queue"))["short"]
    await world.send(held(11, -1, lots=-size))
    after = (await data(world, f"{ADL}/queue"))["short"]
    total_before, total_after = (sum(section["lots"] for section in found) for found in (before, after))
    assert total_after - total_before != size
    assert all(section["positions"] >= 5 for section in (*before, *after))


async def rounds(world, headers):
    return (await data(world, f"{ADL}/orders", headers))["dataList"][0]["rounds"][0]


async def test_order_shows_own_position_exactly_and_others_rounded(world):
    exact = await rounds(world, bearer("risk"))
    public = await rounds(world, None)
    own = await rounds(world, bearer("trader", account=ACCOUNTS[3]))
    (mine,) = [one for one in exact["allocations"] if one["entryPrice"] == entry_price(3)]
    assert mine in own["allocations"]
    assert mine not in public["allocations"]
    for rounded, whole in zip(public["allocations"], exact["allocations"], strict=True):
        assert (rounded["rank"], rounded["ranked"], rounded["lights"]) == (whole["rank"], whole["ranked"], whole["lights"])
        for name in ("lots", "entryPrice", "margin", "unrealisedPnl", "return", "leverage", "score", "asked", "equityAtPrice"):
            assert float(rounded[name]) == pytest.approx(float(whole[name]), rel=0.051)
            assert len(re.sub(r"[.\-]|e-?\d+", "", f"{float(rounded[name]):.12g}").strip("0")) <= 2, (name, rounded[name])
    assert (
        sum(one == two for one, two in zip(own["allocations"], public["allocations"], strict=True))
        == len(public["allocations"]) - 1
    )
    page = await data(world, f"{ADL}/orders/1/rounds/1")
    assert page["dataList"] == public["allocations"]
    linked = await data(world, f"{FUND}/entries/2")
    assert linked["adl"]["rounds"][0] == public


async def test_preview_requires_a_token(world):
    assert (await read(world, f"{ADL}/preview", json=FILL))[0] == 401
    assert (await read(world, f"{ADL}/preview", bearer("engine"), json=FILL))[0] == 403


PROBE = {**FILL, "lots": 7654, "policy": {"eligible": "all"}}


async def test_preview_shows_a_trader_its_position_and_sums_of_others(world):
    exact = (await data(world, f"{ADL}/preview", bearer("risk"), json=PROBE))["order"]
    (mine,) = [one for one in exact["allocations"] if one["entryPrice"] == entry_price(1)]
    shown = (await data(world, f"{ADL}/preview", bearer("trader", account=ACCOUNTS[1]), json=PROBE))["order"]
    (own,) = shown["allocations"]
    assert {name: own[name] for name in ("lots", "entryPrice", "margin", "rank", "score")} == {
        name: mine[name] for name in ("lots", "entryPrice", "margin", "rank", "score")
    }
    assert shown["lotsNeeded"] == exact["lotsNeeded"]
    text = msgspec.json.encode({**shown, "allocations": []}).decode()
    assert not numbers_in(text) & HIDDEN
    assert all(other["positions"] >= 5 for other in shown["others"])


async def test_preview_shows_no_position_to_an_account_without_one(world):
    shown = (await data(world, f"{ADL}/preview", bearer("trader", account="unknown"), json=PROBE))["order"]
    assert shown["allocations"] == []
    assert not numbers_in(msgspec.json.encode(shown).decode()) & HIDDEN


@pytest.mark.parametrize("side", ["sell", "buy"])
async def test_repeated_previews_do_not_reveal_the_lots_of_a_position(world, side):
    """Previews with slightly different lots do not reveal where the first position of the queue ends."""
    price = {"sell": "38900", "buy": "39100"}[side]
    seen = []
    for lots_ in range(1290, 1340, 10):
        probe = {**PROBE, "side": side, "lots": lots_, "price": price}
        shown = (await data(world, f"{ADL}/preview", bearer("trader", account="unknown"), json=probe))["order"]
        seen.append((shown["positions"], msgspec.json.encode(shown["others"])))
    assert len(set(seen)) <= 2


async def test_target_shows_positions_rounded(world):
    await explained(world)
    shown = await data(world, f"{FUND}/target")
    exact = await data(world, f"{FUND}/target", bearer("risk"))
    for rounded, whole in zip(shown["explanation"]["positions"], exact["explanation"]["positions"], strict=True):
        assert rounded["lots"] == pytest.approx(whole["lots"], rel=0.05)
        assert rounded != whole
    assert not numbers_in(msgspec.json.encode(shown).decode()) & HIDDEN


async def test_engine_without_the_ledger_secret_halts_a_sealed_ledger(config_with_secret):
    async with world_of(config_with_secret) as world:
        await world.send(*EVENTS)
    bare = with_section(config_with_secret, "ledger", secret="")
    async with running(bare), connected(bare.database.dsn) as connection:

        async def reason():
            return await connection.fetchval("SELECT halted FROM partitions")

        await eventually(reason)
        assert "ledger.secret is not set" in await reason()
