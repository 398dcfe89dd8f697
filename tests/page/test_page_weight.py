"""What the page costs: bytes, requests, time to the chart, processor time while fills arrive, and layout shift.

Chromium's own counters measure it. Limits that depend on the machine's speed are relative to an empty page, or to one that does
the least for as many messages.
"""

import asyncio
import hashlib
import time
from contextlib import asynccontextmanager
from importlib.resources import files

import aiohttp
import pytest
from eventually import eventually
from ledgers import fill
from test_page import (  # noqa: F401 - fixtures
    ARGUMENTS,
    CHROMIUM,
    browser,
    config,
    listed,
    needs_browser,
    open_window,
    producer,
    settled,
    url,
)

from fundsvc.api.page_bundle import bundle

SYMBOLS = ("AAA", *(f"OTHER{number}" for number in range(7)))
ENTRIES = 4000
PAST_MS = 20_000
BYTES_MAX = 400_000
REQUESTS_MAX = 25
SHIFT_MAX = 0.1
FILLS_PER_SECOND = 30
WATCHED_SECONDS = 8

SETTLED_SECONDS = 3
"""After these, a browser has started and drawn a page."""

PEER = """data:text/html,<table></table><script>
const push = JSON.stringify(Object.fromEntries(Array.from({length: 40}, (_, place) => ["field" + place, String(place * 1e9)])));
let pushes = 0;
setInterval(() => { pushes += JSON.parse(push).field1.length; }, 1000 / 30);
setInterval(() => {
  const cells = Array.from({length: 9}, () => "<td>" + pushes).join("");
  document.querySelector("table").innerHTML = ("<tr>" + cells).repeat(8);
}, 1500);
</script>"""
"""A page that decodes as many messages, and draws a table of eight contracts as often as the page."""

SHARE_MAX = 2.5
"""Of the processor time that the peer takes, in turns in the same test: a noisy machine makes light work cost twice as much."""

CHART_SECONDS_MAX = 1.5
"""Until the chart, beyond what an empty page takes to load."""

SHIFTS = """
  window.shifts = [];
  new PerformanceObserver((list) => window.shifts.push(...list.getEntries().filter((each) => !each.hadRecentInput)))
    .observe({ type: "layout-shift", buffered: true });
"""


class Meter:
    """Counts what a page requests and receives."""

    def __init__(self, session):
        self.session = session
        self.bytes = self.requests = 0
        session.on("Network.loadingFinished", self._finished)
        session.on("Network.requestWillBeSent", self._sent)

    def _finished(self, event):
        self.bytes += event["encodedDataLength"]

    def _sent(self, _event):
        self.requests += 1


async def metered(page):
    session = await page.context.new_cdp_session(page)
    await session.send("Network.enable")
    return Meter(session)


class Plain:
    """A browser that nothing instruments: a driver that watches the network would double the cost of each message."""

    def __init__(self, socket):
        self.socket = socket

    async def busy_seconds(self):
        """Returns the processor time of all processes of the browser: page, drawing and network."""
        await self.socket.send_json({"id": 1, "method": "SystemInfo.getProcessInfo"})
        answer = await self.socket.receive_json()
        return sum(process["cpuTime"] for process in answer["result"]["processInfo"])

    async def share_of_a_core(self, during):
        """Returns the share of a core that the browser takes while something happens."""
        busy, started = await self.busy_seconds(), time.monotonic()
        await during
        return (await self.busy_seconds() - busy) / (time.monotonic() - started)


@asynccontextmanager
async def plain_browser(folder, address):
    """Opens an address in a browser of its own."""
    own = ("--headless=new", "--remote-debugging-port=0", "--window-size=1280,900", f"--user-data-dir={folder}")
    process = await asyncio.create_subprocess_exec(CHROMIUM, *ARGUMENTS, *own, address, stderr=asyncio.subprocess.DEVNULL)
    try:
        port, path = (await eventually(lambda: active_port(folder))).split()
        async with aiohttp.ClientSession() as http, http.ws_connect(f"ws://127.0.0.1:{port}{path}") as socket:
            yield Plain(socket)
    finally:
        process.terminate()
        await process.wait()


async def share_of_the_peer(folder):
    async with plain_browser(folder, PEER) as peer:
        await asyncio.sleep(SETTLED_SECONDS)
        return await peer.share_of_a_core(asyncio.sleep(WATCHED_SECONDS))


def active_port(folder):
    file = folder / "DevToolsActivePort"
    return file.exists() and file.read_text()


async def fill_at_rate(producer, seq, seconds):  # noqa: F811
    """Sends fills of all contracts in turn for some seconds, one at a time."""
    start = time.monotonic()
    for step in range(int(seconds * FILLS_PER_SECOND)):
        await asyncio.sleep(max(0, start + step / FILLS_PER_SECOND - time.monotonic()))
        points = 5 if step % 7 else -20
        await producer.append([fill(SYMBOLS[step % len(SYMBOLS)], seq + step, points, time.time_ns() // 1_000_000)])


@pytest.fixture
async def long_history(producer, url):  # noqa: F811
    """Settles thousands of entries of a fund that runs dry again and again."""
    await listed(producer, *SYMBOLS)
    begin = time.time_ns() // 1_000_000 - ENTRIES * PAST_MS
    for first in range(1, ENTRIES, 500):
        seqs = range(first, first + 500)
        await producer.append([fill("AAA", seq, 5 if seq % 7 else -30, begin + seq * PAST_MS) for seq in seqs])
    await settled(url, "AAA", ENTRIES)


@needs_browser
@pytest.mark.alone
@pytest.mark.usefixtures("long_history")
async def test_contract_page_is_light_fast_and_steady(open_window, producer, url):  # noqa: F811
    async with open_window() as window:
        page = window.page
        await page.add_init_script(SHIFTS)
        started = time.monotonic()
        await page.goto(f"{url}/api/v1/timestamp")
        bare_seconds = time.monotonic() - started
        await eventually(lambda: window.errors)
        window.errors.clear()  # The browser logs the 404 of the bare page and its icon.
        meter = await metered(page)
        started = time.monotonic()
        await window.go("#/contract/AAA")
        await eventually(lambda: page.evaluate("document.querySelector('.plot')?.chart?.data[0].length > 1000"))
        seconds, requests, received = time.monotonic() - started, meter.requests, meter.bytes
        await window.connection("live")
        await fill_at_rate(producer, ENTRIES + 1, 3)
        shift = await page.evaluate("window.shifts.reduce((sum, { value }) => sum + value, 0)")
        print(f"{requests} requests, {received} bytes, {seconds:.2f} s, shift {shift:.3f}")
        assert requests <= REQUESTS_MAX
        assert received <= BYTES_MAX
        assert seconds - bare_seconds <= CHART_SECONDS_MAX
        assert shift <= SHIFT_MAX


@needs_browser
@pytest.mark.alone
@pytest.mark.usefixtures("long_history")
@pytest.mark.parametrize("address", ["#/", "#/contract/AAA"])
async def test_open_page_takes_little_of_a_processor(producer, url, tmp_path, address):  # noqa: F811
    before = await share_of_the_peer(tmp_path / "before")
    async with plain_browser(tmp_path / "page", f"{url}/{address}") as page:
        await asyncio.sleep(SETTLED_SECONDS)
        share = await page.share_of_a_core(fill_at_rate(producer, ENTRIES + 1, WATCHED_SECONDS))
    least = (before + await share_of_the_peer(tmp_path / "after")) / 2
    print(f"{address}: {share:.1%} of a core, the peer {least:.1%}")
    assert share <= SHARE_MAX * least


LIBRARY = {
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    "LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
}
"""SHA-256 of the files of the package uplot 1.6.32 of the npm registry."""


def test_chart_library_is_that_of_its_package():
    folder = files("fundsvc") / "page" / "uplot"
    assert {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()} == LIBRARY


def test_modules_become_one_script_in_the_order_of_their_imports():
    script = bundle(
        {
            "app": 'import {\n  shown,\n} from "./dom.js";\nshown();\n',
            "dom": "const COLUMNS = 1;\nexport function shown() {}\nexport const ROWS = COLUMNS;\nexport class Row {}\n",
        }
    )
    assert script.index("module_dom = ") < script.index("module_app = ")
    assert "const {\n  shown,\n} = module_dom;" in script
    assert "return { shown, ROWS, Row };" in script
    assert "export" not in script
    assert "import" not in script


@pytest.mark.parametrize("line", ['import dom from "./dom.js";', "export default 1;", "export { shown };"])
def test_other_forms_of_imports_and_exports_are_refused(line):
    with pytest.raises(ValueError, match=line.split()[0]):
        bundle({"app": f"{line}\n"})
