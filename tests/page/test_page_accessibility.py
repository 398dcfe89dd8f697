"""Accessibility of the page and the handbook: what axe finds in both themes, and what only a keyboard shows."""

from importlib.resources import files

import pytest
from escalations import BEGINNING, SYMBOL, shortfall
from playwright.async_api import expect
from test_page import (  # noqa: F401 - fixtures
    browser,
    config,
    fill,
    listed,
    needs_browser,
    open_window,
    producer,
    settled,
    url,
)
from tokens import signed

from fundsvc.api.docs.handbook import CHAPTERS

AXE = (files("axe_playwright_python") / "axe.min.js").read_text()
VIOLATIONS = """async () => {
    const { violations } = await axe.run({ resultTypes: ["violations"] });  // axe need not describe what passes
    return violations.flatMap(({ id, nodes }) => nodes.map(({ html }) => `${id}: ${html}`));
}"""


async def violations(page):
    await page.evaluate(AXE)
    return await page.evaluate(VIOLATIONS)


@needs_browser
@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_axe_finds_nothing_on_the_page(open_window, producer, url, theme):  # noqa: F811
    await producer.append(BEGINNING)
    await producer.append([shortfall(1)])
    await settled(url, SYMBOL, 1)
    async with open_window(color_scheme=theme) as window:
        page = window.page
        for address, ready in (
            ("#/", ".contracts td"),
            (f"#/contract/{SYMBOL}", ".plot canvas"),
            (f"#/contract/{SYMBOL}/entry/1", "dialog dd"),
            ("#/account", ".token"),
        ):
            await window.go(address)
            await expect(page.locator(ready).first).to_be_visible()
            await window.connection("live")
            assert await violations(page) == [], address
        await window.show_account(signed("trader", account="secret-anna"))
        await expect(page.get_by_role("region", name="Positions")).to_be_visible()
        assert await violations(page) == []


@needs_browser
@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_axe_finds_nothing_in_the_handbook(open_window, theme):  # noqa: F811
    async with open_window(color_scheme=theme) as window:
        for name in CHAPTERS:
            await window.go(f"docs/{name}" if name != "index" else "docs")
            assert await violations(window.page) == [], name


@needs_browser
@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_axe_finds_nothing_in_the_reference(open_window, theme):  # noqa: F811
    async with open_window(color_scheme=theme) as window:
        page = window.page
        page.on("request", lambda request: window.requests.remove(request.url) if request.url.startswith("data:") else None)
        await window.go("docs/reference/")
        for path in ("/api/v1/adl/positions", "/api/v1/adl/{symbol}/preview", "/api/v1/insurance-fund/{symbol}/history.csv"):
            operation = page.locator(".opblock").filter(has=page.get_by_text(path, exact=True))
            await operation.locator("button.opblock-summary-control").click()
            await operation.get_by_role("button", name="Try it out").click()
        await operation.get_by_role("textbox", name="symbol").fill("UNKNOWN")
        await operation.get_by_role("button", name="Execute").click()
        await expect(operation.locator(".live-responses-table")).to_contain_text("404")
        await page.get_by_role("button", name="Authorize", exact=True).click()
        await expect(page.get_by_role("heading", name="Available authorizations")).to_be_visible()
        assert await violations(page) == []
        window.errors.clear()  # The browser logs the 404.


@needs_browser
async def test_entries_are_one_stop_of_the_tab_key(open_window, producer, url):  # noqa: F811
    await listed(producer, "AAA", "BBB")
    await producer.append([fill("AAA", seq, 5) for seq in range(1, 31)])
    await settled(url, "AAA", 30)
    async with open_window() as window:
        page = window.page
        await window.go("#/contract/AAA")
        newest = page.get_by_role("link", name="Entry 30", exact=True)
        await expect(newest).to_be_visible()
        await expect(page.locator(".entries tbody a[tabindex='0']")).to_have_count(1)
        await newest.focus()
        await page.keyboard.press("ArrowDown")
        await expect(page.get_by_role("link", name="Entry 29", exact=True)).to_be_focused()
        await page.keyboard.press("Tab")
        assert not await page.evaluate("document.activeElement.closest('.entries tbody') !== null")


@needs_browser
async def test_switcher_goes_to_another_contract(open_window, producer, url):  # noqa: F811
    await listed(producer, "AAA", "BBB")
    await producer.append([fill("BBB", 1, 7)])
    await settled(url, "BBB", 1)
    async with open_window() as window:
        await window.go("#/contract/AAA")
        await window.page.get_by_label("Go to contract").select_option("BBB")
        await expect(window.page.get_by_role("heading", level=1)).to_have_text("BBB")
        await expect(window.page.locator(".balance .number")).to_have_text("7")
