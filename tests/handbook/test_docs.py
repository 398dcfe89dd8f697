import aiohttp
from playwright.async_api import expect
from test_page import Window, browser, config, needs_browser, producer, url  # noqa: F401 - fixtures

CONDITIONS = ("script-src 'self';", "connect-src 'self';", "default-src 'none';")


@needs_browser
async def test_reference_renders_and_executes_requests_without_other_hosts(browser, url, tmp_path):  # noqa: F811
    page = await browser.new_page()
    window = Window(page, url)
    document = await (await page.request.get(f"{url}/openapi.json")).json()
    await window.go("docs/reference/")
    await expect(page.locator(".opblock")).to_have_count(sum(map(len, document["paths"].values())))
    clock = page.locator(".opblock", has_text="/api/v1/timestamp")
    await clock.locator("button.opblock-summary-control").click()
    await clock.get_by_role("button", name="Try it out").click()
    await clock.get_by_role("button", name="Execute").click()
    await expect(clock.locator(".live-responses-table .response .response-col_status")).to_contain_text("200")
    await page.screenshot(path=tmp_path / "docs.png")
    assert window.errors == []
    assert {address.removeprefix(url)[0] for address in window.requests if not address.startswith("data:")} == {"/"}


async def test_reference_serves_only_named_files_under_its_policy(url):  # noqa: F811
    async with aiohttp.ClientSession(url) as http:
        async with http.get("/docs/reference/") as answer:
            policy = answer.headers["Content-Security-Policy"]
            assert all(condition in policy + ";" for condition in CONDITIONS)
        async with http.get("/docs/reference/none.js") as answer:
            assert (answer.status, (await answer.json())["code"]) == (404, "404000")
        async with http.get("/docs/reference/swagger-ui.css") as answer:
            assert answer.headers["Content-Encoding"] == "gzip"
            tag = answer.headers["ETag"]
        async with http.get("/docs/reference/swagger-ui.css", headers={"If-None-Match": tag}) as answer:
            assert answer.status == 304
