"""What the page tells beside the funds: ADL of all contracts, audits, policies of orders, kept notices, an account's export."""

import asyncio
import csv
import io
import time
from fractions import Fraction
from pathlib import Path

import aiohttp
import msgspec
import pytest
from escalations import BEGINNING, SYMBOL, executed, shortfall
from eventually import eventually
from ledgers import listing
from playwright.async_api import expect
from test_page import (  # noqa: F401 - fixtures
    REST,
    browser,
    config,
    fill,
    fund_of,
    has,
    needs_browser,
    open_window,
    producer,
    settled,
    url,
)
from tokens import signed

from fundsvc.core.events import Rate


async def texts(rows):
    """Returns the texts of the cells of each row, without the time and the price."""
    return [[await cell.inner_text() for cell in await row.locator("td").all()][1:6] for row in await rows.all()]


@needs_browser
async def test_home_shows_what_adl_does_while_it_happens(open_window, producer, url):  # noqa: F811
    await producer.append(BEGINNING)
    await eventually(lambda: fund_of(url, SYMBOL))
    async with open_window() as window:
        activity = window.page.get_by_role("region", name="ADL activity")
        await window.go("#/")
        await window.connection("live")
        await expect(activity).to_contain_text("ADL has not reduced a position yet.")
        await producer.append([shortfall(1)])
        rows = activity.locator("tbody tr")
        opened = [SYMBOL, "ADL 1", "order opened", "shorts", "100"]
        await expect(rows.first).to_contain_text("order opened")
        assert await texts(rows) == [opened]
        await expect(rows.first.locator("td").last).to_have_text("3900")
        await producer.append([executed(2, 1, "secret-anna", 50)])
        await expect(rows).to_have_count(2)
        assert await texts(rows) == [[SYMBOL, "ADL 1", "executed in round 1", "shorts", "≈ 50"], opened]
        await producer.append([executed(seq, 1, f"secret-{name}", lots) for seq, name, lots in REST])
        await expect(rows).to_have_count(3)
        assert [row[2] for row in await texts(rows)] == ["done", "executed in round 1", "order opened"]
        assert "secret" not in await window.page.content()
        await rows.first.get_by_role("link", name=SYMBOL).click()
        await expect(window.page.get_by_role("heading", level=1)).to_have_text(SYMBOL)


@needs_browser
async def test_home_shows_an_order_that_begins_and_ends_within_one_frame(open_window, producer, url):  # noqa: F811
    await producer.append(BEGINNING)
    await eventually(lambda: fund_of(url, SYMBOL))
    async with open_window() as window:
        activity = window.page.get_by_role("region", name="ADL activity")
        await window.go("#/")
        await window.connection("live")
        await expect(activity).to_contain_text("ADL has not reduced a position yet.")
        ends = [executed(seq, 1, f"secret-{name}", lots) for seq, name, lots in ((2, "anna", 50), *REST)]
        await producer.append([shortfall(1)])
        await eventually(lambda: has_order(url))
        await producer.append(ends)
        await expect(activity.locator("tbody tr").first).to_contain_text("done")


async def has_order(url):  # noqa: F811
    return (await fund_of(url, SYMBOL))["state"] == "adl"


@needs_browser
async def test_contract_shows_its_last_audit(open_window, producer, url):  # noqa: F811
    await producer.append([listing("AAA"), *(fill("AAA", seq, 5) for seq in range(1, 4))])
    await settled(url, "AAA", 3)
    await eventually(lambda: last_audit_of(url, "AAA"))
    async with open_window() as window:
        await window.go("#/contract/AAA")
        await expect(window.page.locator(".audit")).to_contain_text("entry 3, last to the end at")


async def last_audit_of(url, symbol):  # noqa: F811 - the name of a fixture
    """Returns when an audit last reached the end of a ledger; None before."""
    async with aiohttp.ClientSession(url) as http, http.get(f"/api/v1/insurance-fund/{symbol}/audit") as answer:
        return (await answer.json())["data"]["verifiedAt"]


@needs_browser
async def test_order_shows_its_policy_and_the_ranks_promised_to_others(open_window, producer, url):  # noqa: F811
    await producer.append([*BEGINNING, shortfall(1, lots=60), shortfall(2, lots=20)])
    await eventually(lambda: has_orders(url, SYMBOL, 2))
    async with open_window() as window:
        await window.go(f"#/contract/{SYMBOL}")
        order = window.page.locator(".order").first
        await expect(order).to_contain_text("ADL 2")
        await expect(order).to_contain_text("policy version 1")
        await order.locator("summary").click()
        await expect(order).to_contain_text(
            "Policy version 1: The fund pays a loss first, ADL takes the rest. ADL reduces positions"
        )
        await expect(order).to_contain_text("Ranks 1 to 2 were promised to ADL 1.")


async def has_orders(url, symbol, count):  # noqa: F811 - the name of a fixture
    async with aiohttp.ClientSession(url) as http, http.get(f"/api/v1/adl/{symbol}/orders") as answer:
        return answer.status == 200 and len((await answer.json())["data"]["dataList"]) == count


@needs_browser
async def test_notices_survive_a_reload_and_own_ones_leave_with_the_token(open_window, producer, url):  # noqa: F811
    await producer.append(BEGINNING)
    await eventually(lambda: fund_of(url, SYMBOL))
    async with open_window() as window:
        page = window.page
        await window.go("#/account")
        await window.show_account(signed("trader", account="secret-anna"))
        await window.connection("live")
        await window.page.get_by_role("link", name=SYMBOL).click()
        await expect(page.get_by_role("heading", name="ADL orders")).to_be_visible()
        await producer.append([shortfall(1)])
        opener = page.get_by_role("button", name="Notices")
        await expect(opener).to_have_text("Notices (1)")
        await window.go("#/account")
        await expect(page.get_by_role("region", name="Positions").locator("tbody tr")).to_have_count(1)
        await producer.append([executed(2, 1, "secret-anna", 20)])
        await expect(opener).to_have_text("Notices (2)")
        await page.reload()
        await expect(opener).to_have_text("Notices (2)")
        await opener.click()
        dialog = page.get_by_role("dialog", name="Notices")
        began = f"ADL 1 of {SYMBOL}: 100 lots of short positions must be reduced"
        own = f"ADL reduced your {SYMBOL} short by 20 lots at 39000"
        await expect(dialog.get_by_role("listitem")).to_contain_text([own, began])
        await page.keyboard.press("Escape")
        await page.get_by_role("button", name="Remove the token").click()
        await expect(opener).to_have_text("Notices (1)")
        assert own not in str(await page.evaluate("[{...localStorage}, {...sessionStorage}]"))


@needs_browser
async def test_kept_notices_are_bounded_and_other_content_is_ignored(open_window, producer):  # noqa: F811
    many = msgspec.json.encode([{"ts": 1, "text": f"old {number}"} for number in range(200)]).decode()
    await producer.append(BEGINNING)
    async with open_window() as window:
        page = window.page
        await window.go("#/")
        for kept, shown in (('{"x":1}', 0), ('[{"ts":"x","text":1}]', 0), ("}", 0), (many, 200)):
            await page.evaluate("kept => localStorage.setItem('notices', kept)", kept)
            await page.reload()
            await window.connection("live")
            await expect(page.get_by_role("button", name=f"Notices ({shown})")).to_be_visible(visible=shown > 0)
        await window.go(f"#/contract/{SYMBOL}")
        await expect(page.locator(".orders")).to_contain_text("no ADL order")
        await producer.append([shortfall(1)])
        await expect(page.locator(".notices p")).to_have_count(1)
        kept = msgspec.json.decode(await page.evaluate("localStorage.getItem('notices')"))
        assert (len(kept), kept[0]["text"][:5], kept[-1]["text"]) == (200, "ADL 1", "old 198")


@needs_browser
@pytest.mark.parametrize(
    ("role", "claims", "account"), [("trader", {"account": "secret-anna"}, ""), ("risk", {}, "secret-anna")]
)
async def test_account_exports_its_reductions(open_window, producer, url, role, claims, account):  # noqa: F811
    await producer.append([*BEGINNING, shortfall(1), executed(2, 1, "secret-anna", 20)])
    await eventually(lambda: fund_of(url, SYMBOL))
    async with open_window() as window:
        await window.go("#/account")
        await window.show_account(signed(role, **claims), account)
        await expect(window.page.get_by_role("region", name="ADL reductions").locator("tbody tr")).to_contain_text("20 of 50")
        for region in await window.page.get_by_role("region").all():
            assert await region.evaluate("region => region.scrollWidth <= region.clientWidth")
        async with window.page.expect_download() as download:
            await window.page.get_by_role("button", name="CSV").click()
        file = await download.value
        assert file.suggested_filename == "adl-reductions.csv"
        (row,) = csv.DictReader(io.StringIO(await asyncio.to_thread(Path(await file.path()).read_text)))
        assert (row["number"], row["symbol"], row["executed"], row["price"]) == ("1", SYMBOL, "20", "39000")


ROWS_AND_TOTAL = """
() => ({
  rows: [...document.querySelectorAll(".contracts tbody [data-column=usdt]")].map((cell) => cell.textContent),
  balances: [...document.querySelectorAll(".contracts tbody tr")].map((row) => [
    row.querySelector("[data-column=currency]").textContent, row.querySelector("[data-column=balance]").textContent
  ]),
  total: document.querySelector(".total.all .number").textContent,
  currencies: [...document.querySelectorAll(".total:not(.all)")].map((tile) => [
    tile.querySelector("h2").textContent.split(" ")[0], tile.querySelector(".number").textContent
  ]),
})
"""


@needs_browser
async def test_totals_equal_the_sums_of_their_rows_while_fills_are_settled(open_window, producer, url):  # noqa: F811
    symbols = ["AAA", "BBB", "CCC", "DDD"]
    now = time.time_ns() // 1_000_000
    await producer.append(
        [
            *(listing(symbol) for symbol in symbols[:2]),
            *(listing(symbol, settleCurrency="ETH") for symbol in symbols[2:]),
            Rate("ETH", "2345.67890123", now),
            *(fill(symbol, 1, 1000) for symbol in symbols),
        ]
    )
    await settled(url, "DDD", 1)
    await eventually(lambda: has(url, "DDD", "balanceUsdt"))
    async with open_window() as window:
        await window.go("#/")
        await expect(window.page.locator(".contracts tbody tr")).to_have_count(4)

        async def write():
            for seq in range(2, 60):
                await producer.append([fill(symbol, seq, (seq * place) % 13 - 5) for place, symbol in enumerate(symbols, 1)])
                await asyncio.sleep(0.04)

        writing = asyncio.create_task(write())
        seen = set()
        while not writing.done():
            shown = await window.page.evaluate(ROWS_AND_TOTAL)
            assert sum(map(Fraction, shown["rows"])) == Fraction(shown["total"])
            for currency, total in shown["currencies"]:
                assert sum(Fraction(balance) for name, balance in shown["balances"] if name == currency) == Fraction(total)
            seen.add(shown["total"])
            await asyncio.sleep(0.01)
        await writing
        assert len(seen) > 1
