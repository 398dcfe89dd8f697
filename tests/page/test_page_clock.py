"""The page in other time zones: axis, hover, list and zoom show the same times, also at clock changes."""

import re
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit
from zoneinfo import ZoneInfo

import pytest
from eventually import eventually
from ledgers import fill
from playwright.async_api import expect
from test_page import (  # noqa: F401 - fixtures
    browser,
    config,
    listed,
    needs_browser,
    open_window,
    producer,
    settled,
    url,
)

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
MOMENTS = (
    ("Asia/Tokyo", "2024-11-30T15:00"),
    ("Europe/Berlin", "2024-10-27T01:00"),
    ("America/New_York", "2024-11-03T06:00"),
)
"""Midnight, and times at which clocks are set back."""

ODD_MOMENTS = (
    ("Europe/Berlin", "2024-03-31T01:00"),
    ("Australia/Lord_Howe", "2024-04-06T15:00"),
    ("Asia/Kathmandu", "2024-06-01T18:15"),
    ("Asia/Beirut", "2024-03-30T22:00"),
)
"""A clock set forward, one set back by half an hour, an offset of 5:45 from UTC, and a day without midnight."""

AT = (-90, -45.5, -20, -6.25, 0, 10, 40.25, 75, 110)
"""Times of entries in minutes relative to that."""


TICKS = """() => {
  const { axes, scales, over, valToPos } = document.querySelector(".plot").chart;
  const { left, width } = over.getBoundingClientRect();
  const found = axes[0]._splits.map((ts, place) => [axes[0]._values[place], left + valToPos(ts, "x")]);
  return [{ x: left, width }, [scales.x.min, scales.x.max], found];
}"""


def ms(moment):
    return int(datetime.fromisoformat(moment).replace(tzinfo=UTC).timestamp() * 1000)


def local(ts, zone):
    return datetime.fromtimestamp(ts / 1000, ZoneInfo(zone))


class Chart:
    """The chart of an open page, addressed by pixels."""

    def __init__(self, window):
        self.page = window.page
        self.requests = window.requests

    async def range(self):
        return await self.page.evaluate("(({ min, max }) => [min, max])(document.querySelector('.plot').chart.scales.x)")

    async def pixel(self, ts):
        """Returns the pixel position of a time, at half the height of the chart."""
        box = await self.page.locator(".plot .u-over").bounding_box()
        begin, end = await self.range()
        return box["x"] + box["width"] * (ts - begin) / (end - begin), box["y"] + box["height"] / 2

    async def shows(self, ts, text):
        """Waits until hovering over a time shows a text."""
        across, down = await self.pixel(ts)

        async def is_shown():
            await self.page.mouse.move(across + 3, down)
            await self.page.mouse.move(across + 1, down)
            return text in await self.page.locator(".readout").text_content()

        await eventually(is_shown)

    async def ticks(self):
        """Returns the text of each tick with the time of its pixel."""
        box, (begin, end), found = await self.page.evaluate(TICKS)
        return [(text, begin + (end - begin) * (middle - box["x"]) / box["width"]) for text, middle in found]

    async def drag(self, begin, end):
        (left, height), (right, _) = await self.pixel(begin), await self.pixel(end)
        await self.page.mouse.move(left, height)
        await self.page.mouse.down()
        await self.page.mouse.move(right, height, steps=4)
        await self.page.mouse.up()

    def requested_times(self):
        """Returns the times in the page's requests of charts."""
        spans = [parse_qs(urlsplit(each).query) for each in self.requests if "/chart?" in each]
        return [int(span[name][0]) for span in spans for name in ("from", "to") if name in span]


@pytest.fixture
def open_chart(open_window, producer, url):  # noqa: F811
    """Opens the chart of a contract with entries at several times, two and a half hours after the middle one."""

    async def opened(stack, zone, middle):
        times = [int(middle + minutes * MINUTE_MS) for minutes in AT]
        await listed(producer, "AAA")
        await producer.append([fill("AAA", seq, 5, ts) for seq, ts in enumerate(times, 1)])
        await settled(url, "AAA", len(times))
        window = await stack.enter_async_context(open_window(timezone_id=zone))
        await window.page.clock.install(time=(middle + 150 * MINUTE_MS) / 1000)
        await window.go("#/contract/AAA")
        await expect(window.page.locator(".plot canvas")).to_be_visible()
        return Chart(window), times

    return opened


@needs_browser
@pytest.mark.parametrize(("zone", "moment"), MOMENTS + ODD_MOMENTS)
async def test_axis_hover_and_list_show_the_same_time_and_the_line_never_runs_back(open_chart, exits, zone, moment):
    chart, times = await open_chart(exits, zone, ms(moment))
    shown = await chart.page.locator(".entries time").all_text_contents()
    for ts, text in zip(reversed(times), shown, strict=True):
        assert text.endswith(local(ts, zone).strftime("%H:%M:%S"))
        await chart.shows(ts, local(ts, zone).strftime("%Y-%m-%d %H:%M:%S"))
    ticks = await chart.ticks()
    assert len(ticks) >= 4
    minute = (ticks[-1][1] - ticks[0][1]) / 500
    for text, ts in ticks:
        near = {local(ts + minutes * minute, zone).strftime("%H:%M") for minutes in range(-3, 4)}
        assert text[:5] in near, (text, near)
    dates = {local(ts, zone).strftime("%Y-%m-%d") for _, ts in ticks}
    assert set(re.findall(r"\d{4}-\d\d-\d\d", " ".join(text for text, _ in ticks))) == dates
    across = await chart.page.evaluate("document.querySelector('.plot').chart.data[0]")
    assert len(across) >= len(AT)
    assert across == sorted(across)


@needs_browser
@pytest.mark.parametrize(("zone", "moment"), MOMENTS)
async def test_zoom_requests_the_dragged_range(open_chart, exits, zone, moment):
    middle = ms(moment)
    chart, times = await open_chart(exits, zone, middle)
    begin, end = middle - 30 * MINUTE_MS, middle + 30 * MINUTE_MS
    chart.requests.clear()
    await chart.drag(begin, end)
    await eventually(lambda: len(chart.requested_times()) >= 2)
    pixel_ms = 4 * HOUR_MS / 600
    assert [
        abs(found - wanted) < 2 * pixel_ms for found, wanted in zip(sorted(chart.requested_times()), (begin, end), strict=True)
    ]
    assert all(abs(found - wanted) < 2 * pixel_ms for found, wanted in zip(await chart.range(), (begin, end), strict=True))
    inside = min(times, key=lambda ts: abs(ts - middle))
    await chart.shows(inside, local(inside, zone).strftime("%Y-%m-%d %H:%M:%S"))
    await chart.page.get_by_role("button", name="Zoom in").click()
    assert all(begin <= found <= end for found in await chart.range())
