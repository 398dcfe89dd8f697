"""The loss cover view of the page in Chromium: pools, the calculator, and the account of the holder of a token."""

import re
from fractions import Fraction
from urllib.parse import urlsplit

import pytest
from conftest import with_section
from live import serving
from mutuals import ANNA, BERT, CARL, POOL, STORY, Events, pool_owner, settled_pool
from playwright.async_api import expect
from ports import free_port
from test_page import becomes, browser, needs_browser, open_window  # noqa: F401 - fixtures
from tokens import signed, with_secret

CUT_OFFS = "document.querySelector('.cycles .plot').chart?.data[0].length"
"""The number of cut-offs in the chart."""

NOTHING_IS_GUARANTEED = re.compile("nothing is guaranteed", re.IGNORECASE)


@pytest.fixture
def config(config):
    config = with_section(with_secret(config), "http", port=free_port(), tail_seconds=0.005, requests_max=100_000)
    return with_section(config, "engine", lease_seconds=0.6)


@pytest.fixture
async def service(config):
    async with serving(config) as service:
        await settled_pool(config, STORY, service)
        yield service


@pytest.fixture
def url(service):
    return service.url


async def enter(window, token):
    await window.page.get_by_label("Access token").fill(f"{token[:50]}\n{token[50:]} ")  # as copied from a terminal
    await window.page.get_by_role("button", name="Show my cover").click()


def fact(page, title):
    return page.locator(".facts > div", has=page.locator("dt", has_text=title)).locator("dd")


@needs_browser
async def test_pool_is_shown_and_follows_its_changes(open_window, service, config):  # noqa: F811
    pool = (await service.data("/api/v1/mutual/pools"))[0]
    async with open_window() as window, pool_owner(config) as owner:
        page = window.page
        await window.go("#/")
        await page.get_by_role("link", name="Loss cover").click()
        await expect(page.locator(".warning")).to_contain_text(NOTHING_IS_GUARANTEED)
        await expect(page.locator(".bar nav a[aria-current]")).to_have_text("Loss cover")
        await expect(fact(page, "Balance").first).to_have_text(f"{pool['balance']} {POOL}")
        await expect(fact(page, "Active policies").first).to_have_text("3")
        for words in (f"policies over {pool['payouts']['faces']} {POOL}", "the last 9 cut-offs", "It promises nothing"):
            await expect(page.locator(".ratio")).to_contain_text(re.compile(words, re.IGNORECASE))
        await becomes(lambda: page.evaluate(CUT_OFFS), 9)
        await window.connection("live")
        await owner.settle(Events(seq=99).top_up(1000, 9 * 24))
        await expect(fact(page, "Balance").first).to_have_text(
            f"{owner.pool.row().balance / 10**6:.6f}".rstrip("0") + f" {POOL}"
        )
        await owner.settle(Events(seq=999).tick(10 * 24))
        await becomes(lambda: page.evaluate(CUT_OFFS), 10)


@needs_browser
async def test_terms_name_the_one_number_of_xt(open_window):  # noqa: F811
    async with open_window() as window:
        await window.go("#/cover")
        await window.page.get_by_text("Terms", exact=True).click()
        rows = window.page.locator(".pool tbody tr")
        await expect(rows).to_have_count(19)
        await expect(rows.filter(has_text="XT Exchange")).to_have_count(1)
        await expect(rows.filter(has_text="XT Exchange")).to_contain_text("10 USDT")


def paid_by(cycles, weight, cap):
    """The exact amount that further policies would have been paid, beside those of each cut-off."""
    shares = (Fraction(one["released"]) * weight / (Fraction(one["weight"]) + weight) for one in cycles if one["weight"] != "0")
    return min(sum(shares), cap)


@needs_browser
async def test_calculator_computes_with_the_past_cut_offs(open_window, service):  # noqa: F811
    cycles = (await service.data(f"/api/v1/mutual/pools/{POOL}/cycles", params={"maxCount": 30}))["dataList"]
    async with open_window() as window:
        await window.go("#/cover")
        loss, result = window.page.get_by_label("A qualifying loss"), window.page.locator(".calculator output")
        for given, policies, kept in (("250", 2, "50 USDT"), ("100", 1, ""), ("99999999", 1000, "100 USDT")):
            paid = paid_by(cycles, Fraction(100 * policies), Fraction(8 * policies))
            shown = f"{int(paid * 10**6) / 10**6:.6f}".rstrip("0").rstrip(".")
            await loss.fill(given)
            await expect(result).to_contain_text(f"It makes {policies} polic")
            await expect(result).to_contain_text(f"they would have been paid {shown} USDT")
            await expect(result).to_contain_text("It promises nothing")
            if kept:
                await expect(result).to_contain_text(f"keeps {kept} for the next")
        await loss.fill("99.5")
        await expect(result).to_have_text("99.5 USDT of losses make no policy yet: 100 USDT do.")
        for wrong in ("", "-5", "1e3", "abc"):
            await loss.fill(wrong)
            await expect(result).to_contain_text("Enter an amount")


@needs_browser
async def test_account_shows_progress_and_stages_and_follows_changes(open_window, config):  # noqa: F811
    token = signed("trader", account=ANNA)
    async with open_window() as window, pool_owner(config) as owner:
        page = window.page
        await window.go("#/cover")
        await enter(window, token)
        await expect(page.locator(".owner")).to_have_text(ANNA)
        await expect(page.locator(".towards")).to_have_text("15 USDT of 100 USDT of losses towards the next policy")
        await expect(page.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "15")
        rows = page.locator(".insured tbody tr")
        await expect(rows).to_have_count(3)
        await expect(rows.first.locator(".stages .now")).to_have_text("active")
        await expect(page.locator(".insured")).to_contain_text(NOTHING_IS_GUARANTEED)
        await window.connection("live")
        await owner.settle(Events(seq=99).trade(ANNA, -90, 9 * 24 + 1))
        await expect(rows).to_have_count(4)
        await expect(rows.first.locator(".stages .now")).to_have_text("waiting")
        await expect(rows.first).to_contain_text("shares from")
        await owner.settle(Events(seq=999).cancel(ANNA, 1, 9 * 24 + 2))
        await expect(rows.last.locator(".stages .now")).to_have_text("cancelled")
        assert not any(token in each for each in window.requests)
        await page.get_by_role("button", name="Remove the token").click()
        await expect(page.get_by_label("Access token")).to_be_visible()


@needs_browser
@pytest.mark.parametrize(
    ("account", "state", "action"),
    [(BERT, "Inactive", "a volume of 1000 more"), (CARL, "Unfunded", "transfer 38 to the insurance account")],
)
async def test_account_without_cover_shows_what_to_do(open_window, account, state, action):  # noqa: F811
    async with open_window() as window:
        await window.go("#/cover")
        await window.page.get_by_label("Access token").fill(signed("risk"))
        await window.page.get_by_label("Account (required").fill(account)
        await window.page.get_by_role("button", name="Show my cover").click()
        await expect(window.page.locator(".insured-pool .state")).to_have_text(state)
        await expect(window.page.locator(".actions")).to_contain_text(action)


@needs_browser
async def test_rejected_token_shows_the_form_with_the_reason(open_window):  # noqa: F811
    async with open_window() as window:
        await window.go("#/cover")
        await enter(window, signed("trader", account=ANNA, exp=1))
        await expect(window.page.get_by_role("alert").last).to_contain_text("expired")
        await expect(window.page.get_by_label("Access token")).to_be_visible()
        window.errors.clear()  # the browser logs the answer 401


@needs_browser
async def test_service_without_pools_says_so(browser, config):  # noqa: F811
    async with serving(config) as service, await browser.new_context() as context:
        page = await context.new_page()
        await page.goto(f"{service.url}/#/cover")
        await expect(page.locator(".cover")).to_have_text("This service has no pool.")
        assert urlsplit(page.url).fragment == "/cover"


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
async def test_nothing_overflows_on_any_screen(open_window, scheme, width, tmp_path):  # noqa: F811
    async with open_window(viewport={"width": width, "height": 900}, color_scheme=scheme) as window:
        page = window.page
        await window.go("#/cover")
        await enter(window, signed("trader", account=ANNA))
        await expect(page.locator(".insured tbody tr")).to_have_count(3)
        await becomes(lambda: page.evaluate(CUT_OFFS), 9)
        await page.screenshot(path=tmp_path / f"cover-{width}-{scheme}.png", full_page=True)
        assert await page.evaluate("document.documentElement.scrollWidth") <= width
