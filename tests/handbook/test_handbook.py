import re

import aiohttp
import pytest
from playwright.async_api import expect
from test_page import Window, browser, config, needs_browser, producer, url  # noqa: F401 - fixtures

from fundsvc.api.docs.handbook import CHAPTERS, chapters


def anchors_of(chapter):
    return set(re.findall(r'id="([^"]+)"', chapter.body))


def links_of(chapter):
    return re.findall(r'href="([^"]+)"', chapter.body)


@pytest.mark.parametrize("chapter", chapters(), ids=lambda chapter: chapter.name)
def test_links_between_chapters_lead_to_existing_anchors(chapter):
    by_name = {each.name: anchors_of(each) for each in chapters()}
    for link in links_of(chapter):
        name, _, anchor = link.partition("#")
        if name in ("", *CHAPTERS) and anchor:
            assert anchor in by_name[name or chapter.name], link
        else:
            assert name.startswith(("https://", "reference/", "producers/")) or name in CHAPTERS, link


@pytest.mark.parametrize("chapter", chapters(), ids=lambda chapter: chapter.name)
def test_anchors_of_a_chapter_are_unique(chapter):
    found = re.findall(r'id="([^"]+)"', chapter.body)
    assert len(found) == len(set(found))


def test_html_in_a_chapter_and_in_titles_is_balanced():
    for chapter in chapters():
        for tag in ("table", "ul", "pre", "h1", "h2"):
            assert chapter.body.count(f"<{tag}>") + chapter.body.count(f"<{tag} ") == chapter.body.count(f"</{tag}>")


@needs_browser
async def test_handbook_opens_from_the_page_and_loads_only_own_files(browser, url, tmp_path):  # noqa: F811
    page = await browser.new_page(viewport={"width": 390, "height": 800})
    window = Window(page, url)
    await window.go("")
    await page.get_by_role("link", name="Handbook").click()
    await expect(page.get_by_role("heading", name="fundsvc handbook")).to_be_visible()
    for chapter in chapters():
        await window.go(f"docs/{chapter.name}")
        await expect(page.locator("nav a[aria-current]")).to_have_text(chapter.headings[0].text)
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), chapter.name
        await page.screenshot(path=tmp_path / f"{chapter.name}.png", full_page=True)
    assert window.errors == []
    assert {address.removeprefix(url)[0] for address in window.requests if not address.startswith("data:")} == {"/"}


async def test_unknown_chapter_is_not_found(url):  # noqa: F811
    async with aiohttp.ClientSession(url) as http, http.get("/docs/none") as answer:
        assert (answer.status, (await answer.json())["code"]) == (404, "404000")


async def test_redirect_to_the_contents_is_relative(url):  # noqa: F811
    async with aiohttp.ClientSession(url) as http, http.get("/docs", allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Location"]) == (302, "docs/index")
