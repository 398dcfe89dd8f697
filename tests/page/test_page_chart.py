"""The chart shows what happened to a fund: each moment without money at every range, and lines at its present values."""

import time

from eventually import eventually
from ledgers import fill as any_fill
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

HOUR_MS = 3_600_000
ENTRIES = 4000
STEP_MS = 30 * HOUR_MS // ENTRIES

SHOWN = {"1 h": 10, "24 h": 250, "30 d": 300}
"""The least pixels of a row near the axis that are painted, by range. The fund is empty 400 times in 30 hours."""

PAINTED = """() => {
  const chart = document.querySelector(".plot").chart;
  if (!chart) return 0;
  const { ctx, bbox } = chart;
  const row = ctx.getImageData(bbox.left, Math.round(chart.valToPos(0, "y", true)) - 6, bbox.width, 1).data;
  return row.filter((value, place) => place % 4 === 3 && value > 100).length;
}"""


def history(now):
    """Returns fills of 30 hours. Every tenth takes all of the fund, and the next one brings it back a millisecond later."""
    begin = now - 30 * HOUR_MS
    yield any_fill("AAA", 1, 500, begin)
    for seq in range(2, ENTRIES + 1):
        points = {5: -500, 6: 500}.get(seq % 10, 0)
        back = (STEP_MS - 1) * (seq % 10 == 6)
        yield any_fill("AAA", seq, points, begin + seq * STEP_MS - back)


@needs_browser
async def test_no_empty_fund_vanishes_at_any_range(open_window, producer, url):  # noqa: F811
    await listed(producer, "AAA")
    entries = list(history(time.time_ns() // 1_000_000))
    for first in range(0, ENTRIES, 500):
        await producer.append(entries[first : first + 500])
    await settled(url, "AAA", ENTRIES)
    async with open_window() as window:
        page = window.page
        await window.go("#/contract/AAA")
        for name, least in SHOWN.items():
            await page.get_by_role("button", name=name, exact=True).click()

            async def shows(least=least):
                return await page.evaluate(PAINTED) >= least

            await eventually(shows)
        await page.get_by_role("button", name="Log scale").click()
        await expect(page.locator(".chart .note")).to_contain_text("A balance of 0 is at the lower edge.")
        await expect(page.locator(".legend")).to_contain_text("8 h peak 500")
        await expect(page.locator(".chart h2")).to_have_text("Balance in USDT")


@needs_browser
async def test_chart_names_losses_with_their_exact_time_and_amount(open_window, producer, url):  # noqa: F811
    await listed(producer, "AAA")
    await producer.append([fill("AAA", 1, 12), fill("AAA", 2, -30)])
    await settled(url, "AAA", 2)
    async with open_window() as window:
        await window.go("#/contract/AAA")
        readout = window.page.locator(".chart .readout")
        await expect(readout).to_contain_text("0 USDT")
        box = await window.page.locator(".plot .u-over").bounding_box()
        loss = await window.page.evaluate(
            "(({ chart }) => chart.valToPos(chart.data[0].at(-2), 'x'))(document.querySelector('.plot'))"
        )
        await window.page.mouse.move(box["x"] + loss + 1, box["y"] + 50)
        await expect(readout).to_contain_text("paid 12")
        await expect(readout).to_contain_text("ADL for 18")
