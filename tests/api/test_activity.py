"""What ADL did in all contracts, the ranks that other orders requested, and the reductions of an account as CSV."""

import csv
import io
import time
from datetime import UTC, datetime

import msgspec
import pytest
from escalations import BEGINNING, LISTING, SYMBOL, ended, executed, mark, position, shortfall
from eventually import eventually
from ledgers import listing
from test_adl_api import config, with_policy, world, world_of  # noqa: F401 - fixtures
from tokens import bearer

from fundsvc.api import adl
from fundsvc.api.fund_answers import audit_answer
from fundsvc.core.contracts import contract_of
from fundsvc.store.database import SQL
from fundsvc.store.reader import AuditRow

CONTRACT = contract_of(LISTING.contract, {"USDT": 8}, 8)
ACTIVITY = "/api/v1/adl/activity"
OTHER = "XBTUSDM"
INVERSE = listing(OTHER, multiplier=-1, isInverse=True, settleCurrency="XBT")


def at(event, seconds):
    return msgspec.structs.replace(event, ts=event.ts + seconds * 1000)


def told(rows, *fields):
    return [tuple(row[field] for field in fields) for row in rows]


async def test_activity_tells_what_an_order_did_without_accounts(world):  # noqa: F811
    await world.send(shortfall(1), at(executed(2, 1, "secret-anna", 37), 1), at(ended(3, 1), 2))
    rows = await world.data(ACTIVITY)
    # The order opens with its round 1; 63 lots are left for round 2, shown with two significant digits.
    assert told(rows, "kind", "round", "lots", "state", "ts") == [
        ("round", 2, 63, "open", shortfall(1).ts + 2000),
        ("executed", 1, 37, "open", shortfall(1).ts + 1000),
        ("opened", 1, 100, "open", shortfall(1).ts),
    ]
    assert {(row["symbol"], row["adl"], row["origin"], row["cause"], row["reduce"]) for row in rows} == {
        (SYMBOL, 1, "shortfall", 1, "short")
    }
    assert not any("account" in name.lower() for row in rows for name in row)


async def test_numbers_of_single_positions_are_rounded(world):  # noqa: F811
    await world.send(
        position("secret-anna", -50_000, 41000, 10_000), shortfall(1, 23_457), executed(2, 1, "secret-anna", 12_345)
    )
    rows = await world.data(ACTIVITY)
    assert told(rows, "kind", "lots") == [("executed", 12_000), ("opened", 23_457)]
    await world.send(executed(3, 1, "secret-anna", 11_112))
    assert told(await world.data(ACTIVITY), "kind", "lots", "state") == [
        ("ended", 23_457, "done"),
        ("executed", 23_000, "done"),
        ("opened", 23_457, "done"),
    ]


async def test_activity_of_all_contracts_is_valued_in_usdt(world):  # noqa: F811
    await world.send(
        INVERSE,
        mark(39000, OTHER),
        position("secret-anna", -100, 41000, 1, OTHER),
        shortfall(1),
        at(shortfall(1, 70, 30000, symbol=OTHER), 1),
    )
    inverse, linear = [row for row in await world.data(ACTIVITY) if row["kind"] == "opened"]
    assert told([linear], "symbol", "notional", "settleCurrency", "notionalUsdt") == [(SYMBOL, "3900", "USDT", "3900")]
    assert told([inverse], "symbol", "notional", "settleCurrency", "notionalUsdt") == [(OTHER, "0.0017948717", "XBT", None)]
    assert inverse["notionalUsdtReason"] == "no rate of XBT is known yet"


async def test_order_without_candidates_ends_at_once(world):  # noqa: F811
    await world.send(*(position(f"secret-{name}", 0) for name in ("anna", "bert", "carl", "dora", "emil")), shortfall(1))
    rows = await world.data(ACTIVITY)
    assert told(rows, "kind", "state", "lots") == [("ended", "uncovered", 0), ("opened", "uncovered", 100)]


async def test_activity_is_bounded(world):  # noqa: F811
    await world.send(*(shortfall(seq, lots=10) for seq in range(1, 9)))
    rows = await world.data(ACTIVITY, maxCount=3)
    assert told(rows, "adl", "kind") == [(8, "opened"), (7, "opened"), (6, "opened")]
    for count in ("0", "101", "x"):
        assert (await world.ask(ACTIVITY, maxCount=count))[0] == 400


async def test_round_names_the_ranks_that_other_orders_requested(world):  # noqa: F811
    await world.send(shortfall(1, lots=40), shortfall(2, lots=50), shortfall(3, lots=10))
    rounds = [order["rounds"][0] for order in await world.orders(forward="true")]
    assert [[row["rank"] for row in each["allocations"]] for each in rounds] == [[1], [1, 2, 3, 4], [4]]
    assert [each["promised"] for each in rounds] == [
        [],
        [],
        [{"adl": 1, "fromRank": 1, "toRank": 1}, {"adl": 2, "fromRank": 1, "toRank": 4}],
    ]


async def test_ended_orders_promise_nothing(world):  # noqa: F811
    await world.send(shortfall(1, lots=10), executed(2, 1, "secret-anna", 10), shortfall(3, lots=60))
    second, _ = await world.orders()
    assert second["rounds"][0]["promised"] == []


async def test_account_exports_its_reductions(world):  # noqa: F811
    await world.send(shortfall(1), executed(2, 1, "secret-anna", 20), shortfall(3), executed(4, 2, "secret-bert", 5))
    path = "/api/v1/adl/deleveraged"
    async with world.http.get(f"{path}.csv", headers=bearer("trader", account="secret-anna")) as answer:
        assert (answer.status, answer.content_type) == (200, "text/csv")
        assert "deleveraged.csv" in answer.headers["Content-Disposition"]
        (row,) = csv.DictReader(io.StringIO(await answer.text()))
    (shown,) = (await world.data(path, account="secret-anna"))["dataList"]
    assert set(row) == set(shown)
    assert {name: row[name] for name in ("number", "adl", "executed", "price", "entryPrice")} == {
        name: str(shown[name]) for name in ("number", "adl", "executed", "price", "entryPrice")
    }
    async with world.http.get(f"{path}.csv", headers=bearer("risk"), params={"account": "\n"}) as answer:
        assert len((await answer.text()).splitlines()) == 1


async def test_export_of_reductions_in_parts_equals_the_pages(world, monkeypatch):  # noqa: F811
    monkeypatch.setattr(adl, "STREAMED_ROWS", 2)
    for number in range(1, 6):
        await world.send(shortfall(2 * number, lots=10), executed(2 * number + 1, number, "secret-anna", 10))
    async with world.http.get("/api/v1/adl/deleveraged.csv", headers=bearer("trader", account="secret-anna")) as answer:
        rows = list(csv.DictReader(io.StringIO(await answer.text())))
    shown = (await world.data("/api/v1/adl/deleveraged", account="secret-anna", forward="true"))["dataList"]
    assert [(row["number"], row["adl"]) for row in rows] == [(str(row["number"]), str(row["adl"])) for row in shown]
    assert [row["number"] for row in shown] == [1, 2, 3, 4, 5]


async def test_plan_of_the_latest_orders_visits_few_of_many(owner_connection):
    """The cost depends on the number of contracts and on the limit, not on the number of past orders."""
    await owner_connection.execute(
        """
        INSERT INTO contracts (symbol, partition, specification, settle_currency, settle_decimals, price_decimals, multiplier,
                               is_inverse)
        SELECT 'C' || n, 0, '{}', 'USDT', 8, 2, 1, false FROM generate_series(1, 20) n;
        INSERT INTO adl_orders (symbol, adl, cause, reduce, lots, price, deficit, deficit_lots, uncovered, recovered, state,
                                seq, ts)
        SELECT 'C' || n, adl, adl, 'long', 1, 1, 1, 1, 1, 0, 'uncovered', adl, adl
        FROM generate_series(1, 20) n, generate_series(1, 2000) adl;
        ANALYZE contracts, adl_orders;
        """
    )
    plan = await owner_connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {SQL['orders_latest']}", 10)
    assert visited(msgspec.json.decode(plan)[0]["Plan"], "adl_orders") <= 20 + 10 * 10


def visited(node, table):
    """Returns the rows of a table that a plan reads."""
    own = node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0))
    return own * (node.get("Relation Name") == table) + sum(visited(child, table) for child in node.get("Plans", ()))


async def test_audit_shows_its_progress(world):  # noqa: F811
    path = f"/api/v1/insurance-fund/{SYMBOL}/audit"
    await world.send(shortfall(1), shortfall(2))

    async def at_the_end():
        audit = await world.data(path)
        return audit if audit["entry"] == 2 and audit["good"] and audit["fullyVerifiedAt"] else None

    audit = await eventually(at_the_end)
    assert audit["verifiedAt"] >= audit["fullyVerifiedAt"] > time.time() * 1000 - 600_000
    await world.send(listing("OTHERUSDTM"))
    assert (await world.ask("/api/v1/insurance-fund/UNKNOWN/audit"))[0] == 404


def walk(kind, entry, good, verified_at=None):
    return AuditRow(kind, entry, good, verified_at and datetime.fromtimestamp(verified_at, UTC))


@pytest.mark.parametrize(
    ("walks", "expected"),
    [
        ([], (None, 0, None, None)),
        ([walk("full", 1000, True)], (True, 1000, None, None)),
        ([walk("full", 0, True, 5), walk("newest", 70, True, 9)], (True, 70, 9000, 5000)),
        ([walk("full", 30, False, 5), walk("newest", 70, True, 9)], (False, 70, 9000, 5000)),
        ([walk("full", 0, True, 5), walk("newest", 70, False, 9)], (False, 70, 9000, 5000)),
    ],
)
def test_audit_combines_both_walks(walks, expected):
    (answer,) = told([msgspec.to_builtins(audit_answer(CONTRACT, walks))], "good", "entry", "verifiedAt", "fullyVerifiedAt")
    assert answer == expected


async def test_orders_name_a_version_whose_policy_is_shown(config):  # noqa: F811
    path = f"/api/v1/insurance-fund/{SYMBOL}/policies"
    async with world_of(with_policy(config, eligible="profitable")) as service:
        await service.send(*BEGINNING, shortfall(1))
    async with world_of(with_policy(config, eligible="all")) as service:

        async def versions_shown():
            return {policy["version"]: policy for policy in await service.data(path)}

        async def is_changed():
            return 2 in await versions_shown()

        await eventually(is_changed)
        await service.send(shortfall(2))
        versions = await versions_shown()
        second, first = await service.orders()
        assert versions[first["policyVersion"]]["eligible"] == "profitable"
        assert versions[second["policyVersion"]]["eligible"] == "all"
        assert "ADL reduces all positions" in versions[second["policyVersion"]]["words"]
