"""Tests the page in Chromium, on a service with a running engine."""

import asyncio
import os
import re
import shutil
import time
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import aiohttp
import pytest
from conftest import with_section
from escalations import BEGINNING, SYMBOL, executed, shortfall
from eventually import eventually
from ledgers import fill as any_fill
from ledgers import listing
from live import serving as service_of
from playwright.async_api import async_playwright, expect
from ports import free_port
from test_engine import running
from tokens import signed, with_secret

from fundsvc.api import valuation_inputs
from fundsvc.api.websocket import endpoints
from fundsvc.core.contracts import contract_of
from fundsvc.core.events import AdlFill, Fill, Mark, Position, Rate, Settle, Takeover, Unwind
from fundsvc.core.fund.fullness import Target, TargetPolicy
from fundsvc.core.fund.target_sizing import Deficits, size_by_deficits
from fundsvc.store.database import open_pool
from fundsvc.store.target_sizes import Targets
from fundsvc.streams.producer import Producer

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CONNECTION_REFUSED = "ERR_CONNECTION_REFUSED"
"""The error that the browser logs for each request while the service is stopped."""

REST = [(3, "bert", 30), (4, "emil", 5), (5, "carl", 15)]
"""The other executions of an order of 100 lots, after anna's 50: seq, account, lots."""

expect.set_options(timeout=60_000)

needs_browser = pytest.mark.skipif(
    CHROMIUM is None and os.environ.get("CI") != "true", reason="chromium is not installed: run scripts/browser"
)


@pytest.fixture
def config(config):
    config = with_section(with_secret(config), "engine", lease_seconds=0.6)
    config = with_section(config, "ledger", secret=32 * "s")
    return with_section(config, "http", port=free_port(), book_seconds=0.05, tail_seconds=0.005, requests_max=100_000)


@pytest.fixture
async def producer(config, client):
    async with running(config):
        yield Producer(client, config.stream.partitions)


@asynccontextmanager
async def serving(config):
    """Runs the HTTP side and yields its URL."""
    async with service_of(config) as service:
        yield service.url


@pytest.fixture
async def url(config, producer):
    async with serving(config) as url:
        yield url


@pytest.fixture
async def browser():
    assert CHROMIUM, "chromium is not installed: run scripts/browser"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        await browser.close()


def fill(symbol, seq, points):
    """Returns a fill of one lot now, with a change of `points`."""
    return any_fill(symbol, seq, points, time.time_ns() // 1_000_000)


class Window:
    """A page with its requests and its errors."""

    def __init__(self, page, url):
        self.page, self.url = page, url
        self.errors, self.requests = [], []
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    async def go(self, address):
        await self.page.goto(f"{self.url}/{address}")

    def row(self, symbol):
        return self.page.locator(".contracts tbody tr", has_text=symbol)

    def cell(self, symbol, column):
        return self.row(symbol).locator(f"[data-column={column}]")

    async def symbols(self):
        return await self.page.locator(".contracts tbody a").all_text_contents()

    async def entries(self):
        """Returns the numbers of the entries in the list, newest first."""
        return [int(text) for text in await self.page.locator(".entries tbody a").all_text_contents()]

    async def show_account(self, token, account=""):
        """Enters a token, and an account for a token of any account, into the form of the account view."""
        await self.page.get_by_label("Access token").fill(token)
        if account:
            await self.page.get_by_label("Account", exact=False).last.fill(account)
        await self.page.get_by_role("button", name="Show positions").click()

    async def connection(self, words):
        await expect(self.page.locator("#connection")).to_contain_text(words)


@pytest.fixture
def open_window(browser, url, tmp_path):
    """Opens windows. Takes a screenshot of each if the test fails."""

    @asynccontextmanager
    async def opened(**options):
        async with await browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options}) as context:
            window = Window(await context.new_page(), url)
            try:
                yield window
                await window.page.evaluate("new Promise(requestAnimationFrame)")  # errors of its frame are among the errors
            except BaseException:
                await window.page.screenshot(path=tmp_path / "page.png")
                raise
            assert [each for each in window.errors if CONNECTION_REFUSED not in each] == []
            assert {urlsplit(each).netloc for each in window.requests} == {urlsplit(url).netloc}

    return opened


async def listed(producer, *symbols):
    await producer.append([listing(symbol) for symbol in symbols])


async def fund_of(url, symbol):
    async with aiohttp.ClientSession(url) as http, http.get(f"/api/v1/insurance-fund/{symbol}") as answer:
        return (await answer.json()).get("data")


async def time_of_first_entry(url, symbol):
    async with aiohttp.ClientSession(url) as http, http.get(f"/api/v1/insurance-fund/{symbol}/entries/1") as answer:
        return (await answer.json())["data"]["entry"]["ts"]


async def has(url, symbol, field):
    """Returns a field of a fund, which may be null."""
    return (await fund_of(url, symbol))[field]


async def settled(url, symbol, entry):
    """Waits until a fund has `entry` entries."""

    async def is_so():
        fund = await fund_of(url, symbol)
        return fund and fund["entry"] == entry

    await eventually(is_so)


async def shows_open_interest(url, symbol, lots):
    return (await fund_of(url, symbol))["openInterest"] == lots


@needs_browser
async def test_contracts_are_updated_by_each_fill(open_window, producer, url):
    await listed(producer, "AAA", "BBB")
    await producer.append([fill("AAA", 1, 1234567)])
    await settled(url, "AAA", 1)
    async with open_window() as window:
        await window.go("#/")
        await window.connection("live")
        await expect(window.cell("AAA", "balance")).to_have_text("1234567")
        for seq in range(1, 6):
            await producer.append([fill("BBB", seq, 10)])
            await expect(window.cell("BBB", "balance")).to_have_text(str(10 * seq))
        await expect(window.cell("BBB", "change24h")).to_have_text("50")
        await expect(window.cell("BBB", "state")).to_have_text("OK")
        await expect(window.page.locator(".total.all")).to_contain_text("1234617")


@needs_browser
async def test_view_of_a_contract_receives_no_other_fund_and_the_list_is_current_after_it(open_window, producer, url):
    await listed(producer, "AAA", "BBB")
    await producer.append([fill("AAA", 1, 5)])
    await settled(url, "AAA", 1)
    frames = []
    async with open_window() as window:
        window.page.on("websocket", lambda socket: socket.on("framereceived", lambda frame: frames.append(str(frame))))
        await window.go("#/contract/AAA")
        await window.connection("live")
        balance = window.page.locator(".balance .number")
        await expect(balance).to_have_text("5")
        await producer.append([fill("BBB", 1, 7), fill("AAA", 2, 5)])
        await expect(balance).to_have_text("10")
        assert any("balance:AAA" in frame for frame in frames)
        assert not any("BBB" in frame for frame in frames)
        await window.page.get_by_role("link", name="Contracts").click()
        await expect(window.cell("BBB", "balance")).to_have_text("7")
        await producer.append([fill("BBB", 2, 1)])
        await expect(window.cell("BBB", "balance")).to_have_text("8")


@needs_browser
async def test_amounts_equal_those_of_the_api_to_the_last_digit(open_window, producer, url):
    contract = listing("ODD", settleCurrency="XBT", multiplier=-1, isInverse=True, baseCurrency="XBT")
    await producer.append([contract, fill("ODD", 1, 500), fill("ODD", 2, 77)])
    await settled(url, "ODD", 2)
    fund = await fund_of(url, "ODD")
    assert len(fund["balance"]) > 10
    async with open_window() as window:
        await window.go("#/")
        await expect(window.cell("ODD", "balance")).to_have_text(fund["balance"])
        await expect(window.cell("ODD", "usdt")).to_have_text("\N{EN DASH}")
        await producer.append([Rate("XBT", "84000.5", 1_800_000_000_000)])
        await window.go("#/contract/ODD")
        await expect(window.page.locator(".balance .number")).to_have_text(fund["balance"])
        await expect(window.page.locator(".facts .hash")).to_have_text(fund["head"])


@pytest.fixture
def frequent(monkeypatch):
    """Makes the service read targets frequently. A test must list this fixture before those that start the service."""
    monkeypatch.setattr(valuation_inputs, "STATISTICS_SECONDS", 0.05)


@needs_browser
async def test_fund_is_shown_with_its_target_and_fullness(frequent, open_window, producer, url, config):
    await producer.append([listing("AAA"), listing("BBB"), fill("AAA", 1, 50)])
    await settled(url, "AAA", 1)
    size = size_by_deficits(
        contract_of(listing("AAA").contract, {"USDT": 8}, 10), TargetPolicy(), Deficits(0, 1, 1, 1, [200 * 10**8])
    )
    async with open_pool(config.database.dsn, 1) as pool:
        await Targets(pool).keep({"AAA": (Target("value_at_risk", size.amount, 0.0, 1.0, 1.0, 101.0), size)})
    await eventually(lambda: has(url, "AAA", "target"))
    async with open_window() as window:
        await window.go("#/")
        await expect(window.cell("AAA", "fullness")).to_have_text("25.00 %")
        await expect(window.cell("AAA", "state")).to_have_text("Warning")
        await expect(window.cell("BBB", "fullness")).to_have_text("\N{EN DASH}")
        await window.go("#/contract/AAA")
        facts = window.page.locator(".facts > div")
        for name, shown in (("Target", "200 USDT"), ("Fullness", "25.00 %"), ("Leverage cap", "26")):
            await expect(facts.filter(has_text=name)).to_have_text(name + shown)


@pytest.fixture
async def quiet(producer, url):
    """Creates a fund in XBT without a rate. Returns a function that sends the rate, which changes only its value in USDT."""
    await producer.append([listing("QUIET", settleCurrency="XBT", baseCurrency="XBT"), listing("BUSY")])
    await producer.append([fill("QUIET", 1, 3), fill("BUSY", 1, 10)])
    await settled(url, "BUSY", 1)

    async def rated():
        await producer.append([Rate("XBT", "84000.5", time.time_ns() // 1_000_000)])
        return await eventually(lambda: has(url, "QUIET", "balanceUsdt"))

    return rated


async def set_hidden(page, hidden):
    """Simulates that the tab of a page becomes hidden or visible."""
    await page.evaluate("hidden => Object.defineProperty(document, 'hidden', { value: hidden, configurable: true })", hidden)
    await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


UNKNOWN = "\N{EN DASH}"
FUNDS = re.compile(r"/api/v1/insurance-fund\?")
"""The URL of all funds, with its parameters."""

HALF_A_MINUTE = 30_000
HOUR_MS = 3_600_000


@needs_browser
async def test_values_that_change_without_an_entry_are_refreshed(open_window, quiet):
    async with open_window() as contracts, open_window() as contract:
        for window, address in ((contracts, "#/"), (contract, "#/contract/QUIET")):
            await window.page.clock.install()
            await window.go(address)
            await window.connection("live")
        await expect(contracts.cell("QUIET", "usdt")).to_have_text(UNKNOWN)
        await expect(contract.page.locator(".worth")).to_contain_text(f"{UNKNOWN} USDT")
        worth = await quiet()
        for window in (contracts, contract):
            await window.page.clock.fast_forward(HALF_A_MINUTE)
        await expect(contracts.cell("QUIET", "usdt")).to_have_text(worth)
        await expect(contracts.page.locator(".totals")).to_contain_text(worth)
        await expect(contract.page.locator(".worth")).to_contain_text(f"{worth} USDT")


@needs_browser
async def test_hidden_page_sends_no_requests_until_it_is_visible(open_window, quiet):
    async with open_window() as window:
        await window.page.clock.install()
        await window.go("#/")
        await window.connection("live")
        worth = await quiet()
        await set_hidden(window.page, hidden=True)
        window.requests.clear()
        await window.page.clock.fast_forward(HALF_A_MINUTE)
        await window.page.clock.fast_forward(HALF_A_MINUTE)
        assert window.requests == []
        await set_hidden(window.page, hidden=False)
        await expect(window.cell("QUIET", "usdt")).to_have_text(worth)


@needs_browser
async def test_late_answer_does_not_overwrite_newer_pushes(open_window, producer, quiet):
    async with open_window() as window:
        await window.page.clock.install()
        await window.go("#/")
        await window.connection("live")
        worth = await quiet()
        read, released = asyncio.Event(), asyncio.Event()

        async def late(route):
            answer = await route.fetch()
            read.set()
            await released.wait()
            await route.fulfill(response=answer)

        await window.page.route(FUNDS, late)
        await window.page.clock.fast_forward(HALF_A_MINUTE)
        await read.wait()
        await producer.append([fill("BUSY", 2, 7)])
        await expect(window.cell("BUSY", "balance")).to_have_text("17")
        released.set()
        await expect(window.cell("QUIET", "usdt")).to_have_text(worth)
        await expect(window.cell("BUSY", "balance")).to_have_text("17")


@needs_browser
async def test_failed_refresh_is_shown_as_reconnecting(open_window, quiet):
    async with open_window() as window:
        page = window.page
        await page.clock.install()
        await window.go("#/")
        await window.connection("live")
        await page.route(FUNDS, lambda route: route.fulfill(status=503, json={"code": "", "msg": "away"}))
        await page.clock.fast_forward(HALF_A_MINUTE)
        await window.connection("reconnecting, data as of")
        worth = await quiet()
        await page.unroute(FUNDS)
        await window.connection("live")
        await expect(window.cell("QUIET", "usdt")).to_have_text(worth)
        window.errors.clear()  # The browser logs every 503.


@needs_browser
async def test_times_gain_their_date_after_midnight(open_window, quiet, url):
    moment = await time_of_first_entry(url, "QUIET")
    async with open_window(timezone_id="UTC") as window:
        await window.page.clock.install()
        await window.go("#/contract/QUIET")
        time_of_day = time.strftime("%H:%M:%S", time.gmtime(moment / 1000))
        shown = window.page.locator(".entries time")
        await expect(shown).to_have_text(time_of_day)
        await window.page.clock.fast_forward(24 * HOUR_MS)
        await expect(shown).to_have_text(time.strftime("%Y-%m-%d ", time.gmtime(moment / 1000)) + time_of_day)


@needs_browser
async def test_contracts_are_sorted_and_filtered(open_window, producer, url):
    await producer.append([listing("AAA"), listing("BBB"), listing("CCC", settleCurrency="USDC")])
    await producer.append([fill("AAA", 1, 9), fill("BBB", 1, 100), fill("CCC", 1, 20)])
    await settled(url, "CCC", 1)
    async with open_window() as window:
        page = window.page
        await window.go("#/")
        await expect(window.cell("CCC", "balance")).to_have_text("20")
        balance = page.get_by_role("columnheader", name="Balance")
        await balance.get_by_role("button").click()
        await expect(balance).to_have_attribute("aria-sort", "descending")
        await becomes(window.symbols, ["BBB", "CCC", "AAA"])
        await balance.get_by_role("button").click()
        await expect(balance).to_have_attribute("aria-sort", "ascending")
        await becomes(window.symbols, ["AAA", "CCC", "BBB"])
        await page.get_by_label("Filter by").fill("usdc")
        await expect(page.locator(".count")).to_have_text("1 of 3 contracts")
        await becomes(window.symbols, ["CCC"])
        await page.get_by_label("State").select_option("uncovered")
        await expect(page.locator(".count")).to_have_text("0 of 3 contracts")
        await expect(page.get_by_role("region", name="Contracts")).to_contain_text("No contract matches the filter.")


@needs_browser
async def test_page_is_usable_by_keyboard(open_window, producer, url):
    await listed(producer, "AAA", "BBB")
    await producer.append([fill("AAA", 1, 1)])
    await settled(url, "AAA", 1)
    async with open_window() as window:
        page = window.page
        await window.go("#/")
        await expect(window.row("BBB")).to_be_visible()
        await page.keyboard.press("Tab")
        await expect(page.get_by_text("Skip to content")).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(page.locator("main")).to_be_focused()
        await page.keyboard.press("/")
        await expect(page.get_by_label("Filter by")).to_be_focused()
        await page.get_by_role("link", name="AAA").focus()
        await page.keyboard.press("End")
        await expect(page.get_by_role("link", name="BBB")).to_be_focused()
        await page.keyboard.press("ArrowUp")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", level=1)).to_be_focused()
        await expect(page.get_by_role("heading", level=1)).to_have_text("AAA")
        await page.get_by_role("link", name="Entry 1").press("Enter")
        await expect(page.get_by_role("dialog")).to_contain_text("AAA, entry 1")
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("dialog")).to_be_hidden()
        await expect(page).to_have_url(f"{url}/#/contract/AAA")
        await page.go_back()
        await page.go_back()
        await page.go_back()
        await expect(window.row("BBB")).to_be_visible()


@needs_browser
async def test_entries_appear_live_in_list_and_chart(open_window, producer, url):
    await listed(producer, "AAA")
    await producer.append([fill("AAA", seq, 5) for seq in range(1, 121)])
    await settled(url, "AAA", 120)
    async with open_window() as window:
        page = window.page
        await window.go("#/")
        await window.connection("live")
        await page.get_by_role("link", name="AAA").click()
        await expect(page.locator(".plot canvas").first).to_be_visible()
        await becomes(window.entries, list(range(120, 20, -1)))
        await producer.append([fill("AAA", seq, 5) for seq in range(121, 131)])
        await expect(page.get_by_role("link", name="Entry 130")).to_be_visible()
        await becomes(window.entries, list(range(130, 30, -1)))
        await eventually(lambda: page.evaluate("document.querySelector('.plot').chart.data[1].includes(650)"))
        await page.get_by_role("button", name="Older entries").click()
        await expect(page.get_by_role("link", name="Entry 1", exact=True)).to_be_attached()
        await becomes(window.entries, list(range(130, 0, -1)))


@needs_browser
async def test_browser_recomputes_the_hashes_of_the_entries(open_window, producer, url):
    await listed(producer, "AAA")
    await producer.append([fill("AAA", seq, 5 if seq % 3 else -7) for seq in range(1, 31)])
    await settled(url, "AAA", 30)
    async with open_window() as window:
        await window.go("#/contract/AAA")
        await expect(window.page.locator(".entries tbody tr")).to_have_count(30)
        await window.page.get_by_role("button", name="Verify").click()
        proof = window.page.locator(".entries .proof")
        await expect(proof).to_contain_text("Entries 1 to 30: this browser recomputed every hash")

        async def forge(route):
            response = await route.fetch()
            body = await response.json()
            body["data"]["dataList"][9]["lots"] = "1000"
            await route.fulfill(response=response, json=body)

        await window.page.route("**/history?*", forge)
        await window.page.get_by_role("button", name="Verify").click()
        await expect(proof).to_contain_text("The hash of entry 21 does not follow")


@needs_browser
async def test_chart_zooms_and_has_a_log_scale(open_window, producer, url):
    hours_ago = time.time_ns() // 1_000_000 - 12 * HOUR_MS  # The shown range grows only slightly during the test.
    await listed(producer, "AAA")
    await producer.append([any_fill("AAA", seq, 5, hours_ago) for seq in range(1, 4)])
    await settled(url, "AAA", 3)
    async with open_window() as window:
        page = window.page
        await window.go("#/contract/AAA")
        await expect(page.locator(".plot canvas").first).to_be_visible()
        width = "(() => { const { min, max } = document.querySelector('.plot').chart.scales.x; return max - min; })()"
        before = await page.evaluate(width)
        await page.get_by_role("button", name="Zoom in").click()
        await eventually(lambda: _about_half(page, width, before))
        scale = page.get_by_role("button", name="Log scale")
        await scale.click()
        await expect(scale).to_have_attribute("aria-pressed", "true")
        await becomes(lambda: page.evaluate("document.querySelector('.plot').chart.scales.y.distr"), 3)
        await drag(page, page.locator(".plot .u-over"))
        everything = page.get_by_role("button", name="All")
        await expect(page.locator(".chart [aria-pressed=true]")).to_have_text(["Log scale"])
        assert await page.evaluate(width) < before / 2
        await everything.click()
        await expect(everything).to_have_attribute("aria-pressed", "true")
        await eventually(lambda: _wider(page, width, before))


async def drag(page, target):
    """Drags from a quarter to three quarters of the target's width."""
    box = await target.bounding_box()
    await page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 20)
    await page.mouse.down()
    await page.mouse.move(box["x"] + box["width"] * 3 / 4, box["y"] + 20, steps=4)
    await page.mouse.up()


async def _wider(page, width, before):
    return await page.evaluate(width) >= before


async def becomes(read, wanted):
    """Waits until the page shows the expected state: it draws one frame after it receives data."""

    async def is_there():
        return await read() == wanted

    await eventually(is_there)


async def _about_half(page, width, before):
    return 0.4 < await page.evaluate(width) / before < 0.6


@needs_browser
@pytest.mark.parametrize("missed", [7, 700])
async def test_restart_is_shown_and_leaves_no_gap(browser, config, producer, missed):
    async with serving(config) as url:
        await listed(producer, "AAA")
        await producer.append([fill("AAA", seq, 5) for seq in range(1, 11)])
        await settled(url, "AAA", 10)
        page = await browser.new_page()
        window = Window(page, url)
        await window.go("#/contract/AAA")
        await window.connection("live")
        await expect(page.get_by_role("link", name="Entry 10")).to_be_visible()
    await window.connection("reconnecting, data as of")
    last = 10 + missed
    await producer.append([fill("AAA", seq, 5) for seq in range(11, last + 1)])
    async with serving(config) as url:
        await settled(url, "AAA", last)
        await window.connection("live")
        await expect(page.get_by_role("link", name=f"Entry {last}")).to_be_visible()
        await producer.append([fill("AAA", last + 1, 5)])
        await expect(page.get_by_role("link", name=f"Entry {last + 1}")).to_be_visible()
        await expect(page.locator(".balance .number")).to_have_text(str(5 * (last + 1)))
        numbers = await window.entries()
        assert numbers == list(range(last + 1, last + 1 - len(numbers), -1))
        assert len(numbers) >= min(100, last + 1)


@needs_browser
async def test_page_reconnects_after_the_delay_of_a_stopping_service(browser, config, producer, monkeypatch):
    monkeypatch.setattr(endpoints, "stop_reason", lambda _: "the service stops: reconnect in 2000 ms")
    page, requested = await browser.new_page(), []
    page.on("request", lambda request: "bullet" in request.url and requested.append(time.monotonic()))
    async with serving(config) as url:
        await listed(producer, "AAA")
        window = Window(page, url)
        await window.go("#/contract/AAA")
        await window.connection("live")
    stopped, before = time.monotonic(), len(requested)
    await eventually(lambda: len(requested) > before)
    assert requested[before] - stopped > 1.0


@needs_browser
async def test_new_entries_wait_while_the_reader_has_scrolled_down(open_window, producer, url):
    await listed(producer, "AAA")
    await producer.append([fill("AAA", seq, 5) for seq in range(1, 61)])
    await settled(url, "AAA", 60)
    async with open_window() as window:
        page = window.page
        await window.go("#/contract/AAA")
        await window.connection("live")
        await expect(page.get_by_role("link", name="Entry 60")).to_be_visible()
        await page.locator(".entries .scroller").evaluate("scroller => { scroller.scrollTop = 400; }")
        await producer.append([fill("AAA", 61, 5), fill("AAA", 62, 5)])
        newer = page.get_by_role("button", name="2 newer")
        await expect(newer).to_be_enabled()
        assert (await window.entries())[0] == 60
        await newer.click()
        await expect(page.get_by_role("link", name="Entry 62")).to_be_visible()
        await becomes(window.entries, list(range(62, 0, -1)))


@needs_browser
async def test_adl_order_shows_needed_and_taken_amounts(open_window, producer, url):
    await producer.append(BEGINNING)
    async with open_window() as window:
        page = window.page
        await eventually(lambda: fund_of(url, SYMBOL))
        await window.go(f"#/contract/{SYMBOL}")
        await window.connection("live")
        await expect(page.locator(".queue")).to_contain_text("Shorts")
        await producer.append([shortfall(1)])
        order = page.locator(".order")
        await expect(order).to_contain_text("open")
        await expect(page.locator(".notices")).to_contain_text(
            f"ADL 1 of {SYMBOL}: 100 lots of short positions must be reduced"
        )
        await expect(page.locator("header.contract .state")).to_have_text("ADL open")
        await expect(order.get_by_role("img")).to_have_attribute("aria-label", "taken 0 of needed 10")
        await order.locator("summary").click()
        await expect(order.locator("tbody tr")).to_have_count(4)
        assert "secret" not in await page.content()
        rows = [await row.locator("td").all_text_contents() for row in await order.locator("tbody tr").all()]
        assert [(row[0], row[3]) for row in rows] == [("1 of 5", "50"), ("2 of 5", "30"), ("3 of 5", "5"), ("4 of 5", "15")]
        await producer.append([executed(2, 1, "secret-anna", 50)])
        await expect(order.get_by_role("img").first).to_have_attribute("aria-label", "taken 5 of needed 10")
        await producer.append([executed(seq, 1, f"secret-{name}", lots) for seq, name, lots in REST])
        await expect(order).to_contain_text("done")
        await expect(order.get_by_role("img").first).to_have_attribute("aria-label", "taken 10 of needed 10")
        await order.get_by_role("link", name="cause: entry 1").click()
        await expect(page.get_by_role("dialog")).to_contain_text("ADL 1")
        await expect(page.get_by_role("dialog")).to_contain_text((await fund_of(url, SYMBOL))["head"])


@needs_browser
async def test_inventory_is_shown_beside_the_balance_and_follows_marks_and_adl(open_window, producer, url):
    ts = time.time_ns() // 1_000_000 - 7_200_000
    await producer.append([listing("AAA"), any_fill("AAA", 1, 100, ts), Mark("AAA", "45", ts)])
    await settled(url, "AAA", 1)
    async with open_window() as window:
        page = window.page
        panel, header = page.locator(".inventory"), page.locator("header.contract")

        def fact(name):
            return header.get_by_text(name, exact=True).locator("+ dd")

        await window.go("#/contract/AAA")
        await window.connection("live")
        await expect(page.get_by_role("link", name="Entry 1", exact=True)).to_be_visible()
        await expect(panel).to_be_hidden()

        await producer.append([Takeover("AAA", 2, "sell", 10, "50", ts, account="secret-long")])
        await expect(fact("Equity")).to_have_text("50 USDT")
        await expect(fact("Unrealised PnL")).to_have_text("-50 USDT")
        await expect(panel.locator("section, p", has_text="equity")).to_contain_text("equity 50 USDT · unrealised -50 USDT")
        sides = panel.get_by_role("region", name="Sides of the inventory").locator("tbody tr")
        assert [await sides.locator("td").all_text_contents()] == [["long", "10", "50", "1", "2 h"]]
        tranches = panel.get_by_role("region", name="Tranches").locator("tbody tr")
        await expect(tranches).to_have_count(1)
        assert await tranches.locator("td").all_text_contents() == ["2", "long", "10", "0", "50", "-50", "2 h", ""]

        await producer.append([Position("AAA", "secret-short", -100, "60", "1000", ts), Mark("AAA", "38", ts + 1)])
        await expect(fact("Equity")).to_have_text("-20 USDT")
        await expect(tranches.locator("td").nth(3)).to_have_text("3")
        order = page.locator(".order")
        await expect(order).to_contain_text("inventory too heavy")
        await expect(order.get_by_role("link", name="closes lots of entry 2")).to_be_visible()
        await expect(order.get_by_role("img").first).to_have_attribute("aria-label", "taken 0 of needed 3 lots")

        await producer.append([AdlFill("AAA", 3, 1, "secret-short", 3, ts)])
        await expect(fact("Equity")).to_have_text("16 USDT")
        closed = panel.get_by_role("region", name="Lots closed by ADL").locator("tbody tr")
        await expect(closed).to_have_count(1)
        cells = await closed.locator("td").all_text_contents()
        assert (cells[0], cells[2:]) == ("3", ["ADL 1", "3", "50", "2"])
        await expect(page.locator(".entries tbody tr").first).to_contain_text("ADL order 1, 3 lots at 50, of entry 2")
        await expect(tranches.locator("td").nth(2)).to_have_text("7")

        await producer.append([Unwind("AAA", 4, "sell", 5, "40", ts), Takeover("AAA", 5, "sell", LARGE_LOTS, "38", ts)])
        await expect(page.locator(".entries tbody tr").nth(1)).to_contain_text("unwind: sell 5 at 40, of entry 2 at 50")
        await expect(sides.locator("td").nth(1)).to_have_text(str(LARGE_LOTS + 2))
        await expect(tranches).to_have_count(2)
        await page.reload()
        await expect(sides.locator("td").nth(1)).to_have_text(str(LARGE_LOTS + 2))
        await expect(closed).to_have_count(1)
        await window.go("#/contract/AAA/entry/3")
        await expect(page.get_by_role("dialog").locator("dt", has_text="Closes lots of").locator("+ dd")).to_have_text(
            "entry 2"
        )
        assert "secret" not in await page.content()


def dry(seq):
    """Returns a fill that an empty fund cannot pay. Without positions its ADL order ends as uncovered."""
    return any_fill("AAA", seq, -1, time.time_ns() // 1_000_000)


@needs_browser
async def test_orders_created_while_disconnected_are_listed_without_gap(browser, config, producer):
    def numbers():
        return page.locator(".order h3").all_text_contents()

    async with serving(config) as url:
        await listed(producer, "AAA")
        await producer.append([dry(1), dry(2)])
        await settled(url, "AAA", 2)
        page = await browser.new_page()
        window = Window(page, url)
        await window.go("#/contract/AAA")
        await window.connection("live")
        await expect(page.locator(".order")).to_have_count(2)
    await window.connection("reconnecting")
    await producer.append([dry(seq) for seq in range(3, 13)])
    async with serving(config) as url:
        await settled(url, "AAA", 12)
        await window.connection("live")
        await expect(page.locator(".order h3").first).to_have_text("ADL 12")
        await becomes(numbers, [f"ADL {number}" for number in range(12, 6, -1)])
        await page.get_by_role("button", name="Older orders").click()
        await expect(page.locator(".order")).to_have_count(12)
        await becomes(numbers, [f"ADL {number}" for number in range(12, 0, -1)])


@needs_browser
async def test_page_keeps_a_hundred_orders_and_loads_older_ones_on_request(open_window, producer, url):
    await listed(producer, "AAA")
    await producer.append([dry(1)])
    await settled(url, "AAA", 1)
    async with open_window() as window:
        page = window.page
        orders, older = page.locator(".order"), page.get_by_role("button", name="Older orders")
        await window.go("#/contract/AAA")
        await window.connection("live")
        await expect(orders).to_have_count(1)
        await producer.append([dry(seq) for seq in range(2, 104)])
        await expect(orders.locator("h3").first).to_have_text("ADL 103")
        await expect(orders).to_have_count(100)
        assert await page.locator(".notices p").count() <= 4
        await older.click()
        await expect(orders).to_have_count(103)
        await expect(older).to_be_hidden()
        await becomes(orders.locator("h3").all_text_contents, [f"ADL {number}" for number in range(103, 0, -1)])


@needs_browser
async def test_unknown_contract_is_reported_and_does_not_affect_others(open_window, producer, url):
    await listed(producer, "AAA")
    await eventually(lambda: fund_of(url, "AAA"))
    async with open_window() as window:
        await window.go("#/contract/NOPE")
        await window.connection("live")
        await expect(window.page.locator("main")).to_contain_text("No contract NOPE is listed")
        assert not any("NOPE" in urlsplit(each).path for each in window.requests)
        await listed(producer, "NOPE")
        await producer.append([fill("NOPE", 1, 3)])
        await expect(window.page.get_by_role("link", name="Entry 1")).to_be_visible()
        await window.go("#/contract/%")
        await producer.append([fill("AAA", 1, 7)])
        await expect(window.cell("AAA", "balance")).to_have_text("7")


@needs_browser
async def test_closed_contracts_are_apart_and_earlier_generations_are_reachable(open_window, producer, url):
    await producer.append([listing("AAA"), listing("BBB", status="Open"), fill("AAA", 1, 9), fill("BBB", 1, 4)])
    await settled(url, "BBB", 1)
    async with open_window() as window:
        page = window.page
        await window.go("#/contract/BBB")
        await expect(page.locator(".worth")).to_contain_text("4")
        await window.connection("live")
        await producer.append([Settle("BBB", 5, "100", 1)])
        await expect(page.locator("header .state")).to_have_text("Closed")
        await window.go("#/")
        await becomes(window.symbols, ["AAA"])
        await expect(page.locator(".count")).to_have_text("1 contracts")
        await page.get_by_label("State").select_option("closed")
        await becomes(window.symbols, ["BBB"])
        await window.go("#/contract/BBB")
        await expect(page.get_by_role("link", name="Entry 1")).to_be_visible()
        await producer.append([listing("BBB", status="Open"), fill("BBB", 6, 3), fill("BBB", 7, 2)])
        await expect(page.locator(".worth")).to_contain_text("5")
        await expect(page.locator("header .state")).to_have_text("OK")
        await becomes(window.entries, [2, 1])
        await page.get_by_role("link", name="1", exact=True).first.click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("BBB@1")
        await expect(page.locator(".worth")).to_contain_text("4")
        await becomes(window.entries, [1])
        await page.get_by_role("link", name="Entry 1").click()
        await expect(page).to_have_url(f"{url}/#/contract/BBB%401/entry/1")
        await expect(page.locator("dialog#entry")).to_contain_text("Balance after")
        assert window.errors == []


LONG = "A" * 60
"""A symbol that is wider than a column and a narrow screen."""


@needs_browser
@pytest.mark.parametrize("width", [390, 1440])
async def test_long_symbol_does_not_move_columns(open_window, producer, url, width):
    await listed(producer, LONG, "BBB")
    await producer.append([fill(LONG, 1, 5), fill("BBB", 1, 5)])
    await settled(url, "BBB", 1)
    async with open_window(viewport={"width": width, "height": 800}) as window:
        page = window.page
        for address in ("#/", f"#/contract/{LONG}"):
            await window.go(address)
            await expect(page.get_by_text(LONG).first).to_be_visible()
            assert await page.evaluate("document.documentElement.scrollWidth") <= width
        await window.go("#/")
        await expect(window.row("BBB")).to_be_visible()
        places = "row => [...row.cells].map(cell => cell.getBoundingClientRect().left)"
        long, short = [await window.row(symbol).evaluate(places) for symbol in (LONG, "BBB")]
        assert long[2:] == short[2:]  # The state of a card is at its right edge.
        if width > 1000:
            titles = await page.locator(".contracts thead tr").evaluate(places)
            assert titles == long == short


@needs_browser
async def test_account_shows_positions_and_their_reductions(open_window, producer, url):
    await producer.append(BEGINNING)
    await eventually(lambda: fund_of(url, SYMBOL))
    token = signed("trader", account="secret-anna")
    async with open_window() as window:
        page = window.page
        await window.go("#/account")
        await window.show_account(token)
        positions = page.get_by_role("region", name="Positions").locator("tbody tr")
        await expect(positions).to_have_count(1)
        await expect(positions.first).to_contain_text("1 of 4")
        await expect(positions.locator(".lights")).to_have_attribute("aria-label", "5 of 5 lights")
        await window.connection("live")
        await producer.append([shortfall(1), executed(2, 1, "secret-anna", 20)])
        await expect(page.locator(".notices")).to_contain_text(f"ADL reduced your {SYMBOL} short by 20 lots at 39000")
        await expect(page.get_by_role("region", name="ADL reductions").locator("tbody tr")).to_contain_text("20 of 50")
        await expect(positions.locator("td").nth(2)).to_have_text("30")
        assert not any(token in each for each in window.requests)
        assert token not in str(await page.evaluate("[location.href, {...localStorage}, document.cookie]"))
        await page.reload()
        await expect(positions).to_have_count(1)
        await page.get_by_role("button", name="Remove the token").click()
        await expect(page.get_by_label("Access token")).to_be_visible()
        await becomes(lambda: page.evaluate("sessionStorage.length"), 0)


@needs_browser
async def test_risk_token_shows_any_account(open_window, producer, url):
    await producer.append(BEGINNING)
    await eventually(lambda: fund_of(url, SYMBOL))
    async with open_window() as window:
        page = window.page
        await window.go("#/account")
        await window.show_account(signed("risk"), "secret-bert")
        await expect(page.get_by_role("region", name="Positions").locator("tbody tr")).to_contain_text("2 of 4")
        await window.connection("live")


@needs_browser
async def test_reload_keeps_the_account_and_positions_without_a_profit_say_so(open_window, producer, url):
    await producer.append(BEGINNING)
    await eventually(lambda: fund_of(url, SYMBOL))
    async with open_window() as window:
        page = window.page
        await window.go("#/account")
        await window.show_account(signed("risk"), "secret-long")
        position = page.get_by_role("region", name="Positions").locator("tbody tr")
        await expect(position).to_contain_text("not eligible: no profit")
        await page.reload()
        await expect(position).to_contain_text("not eligible: no profit")
        await expect(page.locator(".owner")).to_have_text("secret-long")


@needs_browser
async def test_invalid_token_is_rejected_with_the_reason(open_window, producer, url):
    async with open_window() as window:
        page = window.page
        await window.go("#/account")
        await window.show_account(signed("trader", account="secret-anna", exp=1))
        await expect(page.get_by_role("alert")).to_contain_text("expired")
        await expect(page.get_by_label("Access token")).to_be_visible()
        window.errors.clear()  # The browser logs every 401.


@needs_browser
async def test_narrow_dark_screen_fits_and_theme_can_be_chosen(open_window, producer, url):
    await producer.append(BEGINNING)
    await producer.append([shortfall(1)])
    await settled(url, SYMBOL, 1)
    async with open_window(viewport={"width": 375, "height": 740}, color_scheme="dark") as window:
        page = window.page
        for address, ready in (
            ("#/", ".contracts td"),
            (f"#/contract/{SYMBOL}", ".plot canvas"),
            ("#/account", ".token"),
        ):
            await window.go(address)
            await expect(page.locator(ready).first).to_be_visible()
            assert await page.evaluate("document.documentElement.scrollWidth") <= 375
        assert await brightness(page) < 60
        theme = page.get_by_role("button", name="Theme")
        await theme.click()
        await theme.click()
        await expect(theme).to_have_text("Theme: light")
        assert await brightness(page) > 200
        await page.reload()
        await expect(theme).to_have_text("Theme: light")
        assert await brightness(page) > 200


LARGE_SEQ, LARGE_LOTS = 1765416983918000123, 9007199254740993
"""Integers that JavaScript rounds, to ...000 and ...992."""


@needs_browser
async def test_integers_above_2_to_the_53_are_shown_exactly(open_window, producer, url):
    now = time.time_ns() // 1_000_000
    await producer.append([listing("BIG", multiplier="0.000000001", maxPrice=1000000), Mark("BIG", "39000", now)])
    for account, held in (("secret-anna", -LARGE_LOTS), ("secret-bert", LARGE_LOTS)):
        await producer.append([Position("BIG", account, held, "45000", "1000000", now)])
    await producer.append([Fill("BIG", LARGE_SEQ, "sell", LARGE_LOTS, "38000", "39000", now)])
    await settled(url, "BIG", 1)
    await eventually(lambda: shows_open_interest(url, "BIG", LARGE_LOTS))
    lots = str(LARGE_LOTS)
    async with open_window() as window:
        page = window.page
        await window.go("#/contract/BIG")
        await expect(page.locator(".entries tbody tr")).to_contain_text(f"sell {lots} at 38000")
        await expect(page.get_by_text("Open interest", exact=True).locator("+ dd")).to_have_text(f"{lots} lots")
        await expect(page.locator(".queue")).to_contain_text("Not shown: there are too few positions")
        await expect(page.locator(".orders")).to_contain_text(f"0 of {lots}")
        await producer.append([Fill("BIG", LARGE_SEQ + 2, "buy", LARGE_LOTS - 2, "39000", "39000", now)])
        await expect(page.locator(".entries tbody tr").first).to_contain_text(f"buy {LARGE_LOTS - 2} at 39000")
        await window.go("#/contract/BIG/entry/1")
        for name, shown in (("Sequence", str(LARGE_SEQ)), ("Lots", lots)):
            await expect(page.locator("#entry dt", has_text=name).locator("+ dd").first).to_have_text(shown)
        await expect(page.locator("#entry")).to_contain_text(f"0 of {lots}")
        await window.go("#/account")
        await window.show_account(signed("trader", account="secret-anna"))
        await expect(page.get_by_role("region", name="Positions").locator("tbody tr")).to_contain_text(lots)
        await producer.append([AdlFill("BIG", LARGE_SEQ + 3, 1, "secret-anna", LARGE_LOTS - 4, now)])
        await expect(page.locator(".notices")).to_contain_text(f"ADL reduced your BIG short by {LARGE_LOTS - 4} lots")
        assert all("numbers=string" in each for each in window.requests if "/api/v1/" in each and "bullet" not in each)


@needs_browser
async def test_past_notices_are_listed_by_mouse_and_keyboard(open_window, producer, url):
    await producer.append(BEGINNING)
    async with open_window() as window:
        page = window.page
        await page.clock.install()
        await window.go(f"#/contract/{SYMBOL}")
        await window.connection("live")
        opener = page.get_by_role("button", name="Notices")
        await expect(opener).to_be_hidden()
        await producer.append([shortfall(1)])
        await expect(page.locator(".notices p")).to_have_count(1)
        await page.clock.fast_forward(HALF_A_MINUTE)
        await expect(page.locator(".notices p")).to_have_count(0)
        await expect(opener).to_have_text("Notices (1)")
        await opener.click()
        dialog = page.get_by_role("dialog", name="Notices")
        notice = f"ADL 1 of {SYMBOL}: 100 lots of short positions must be reduced"
        await expect(dialog.get_by_role("listitem")).to_contain_text([notice])
        await producer.append([executed(seq, 1, f"secret-{name}", lots) for seq, name, lots in ((2, "anna", 50), *REST)])
        await expect(dialog.get_by_role("listitem")).to_contain_text([f"ADL 1 of {SYMBOL} is done", notice])
        await page.keyboard.press("Escape")
        await expect(dialog).to_be_hidden()
        await expect(opener).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(dialog).to_be_visible()
        await dialog.get_by_role("button", name="Close").press("Enter")
        await expect(dialog).to_be_hidden()
        await window.go("#/account")
        await expect(opener).to_have_text("Notices (2)")


@needs_browser
async def test_crafted_link_shows_hidden_and_direction_characters_escaped(open_window, producer):
    await listed(producer, "AAA")
    async with open_window() as window:
        await window.go("#/contract/%E2%80%AEevil%E2%80%8B%1B")
        await expect(window.page.locator("h1")).to_have_text("\\u{202e}evil\\u{200b}\\u{1b}")
        await expect(window.page.get_by_text("is listed.")).to_have_text("No contract \\u{202e}evil\\u{200b}\\u{1b} is listed.")
        shown = await window.page.evaluate("document.title + document.body.innerText")
        assert not {"\u202e", "\u200b", "\x1b"} & set(shown)


async def brightness(page):
    """Returns the brightness of the background, 0 to 255."""
    colour = await page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    parts = [float(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    return sum(parts) / 3


async def test_files_are_compressed_and_cached_and_the_document_is_revalidated(url):
    async with aiohttp.ClientSession(url, auto_decompress=False) as http:
        async with http.get("/", headers={"Accept-Encoding": "identity"}) as index:
            text = await index.text()
            policy = index.headers["Content-Security-Policy"]
            assert index.headers["Cache-Control"] == "no-cache"
            assert index.headers["X-Content-Type-Options"] == "nosniff"
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        script = text.partition('type="module" src="')[2].partition('"')[0]
        async with http.get(f"/{script}", headers={"Accept-Encoding": "gzip"}) as answer:
            assert (answer.headers["Content-Encoding"], answer.content_type) == ("gzip", "text/javascript")
            assert "immutable" in answer.headers["Cache-Control"]
            assert len(await answer.read()) < 100_000
            tag = answer.headers["ETag"]
        async with http.get(f"/{script}", headers={"If-None-Match": tag}) as answer:
            assert answer.status == 304
        async with http.get(script.replace("page/", "/page/0")) as answer:
            assert (answer.status, (await answer.json())["code"]) == (404, "404000")


async def test_invalid_host_header_is_not_copied_into_the_policy(url):
    async with aiohttp.ClientSession(url) as http, http.get("/", headers={"Host": "a; script-src *"}) as answer:
        assert "script-src *" not in answer.headers.get("Content-Security-Policy", "")


def test_continuous_integration_has_a_browser():
    assert CHROMIUM or os.environ.get("CI") != "true", "chromium is not installed: run scripts/browser"
