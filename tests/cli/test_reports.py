"""Exports of spans of time and the report of a day, from a ledger with two currencies and three days."""

import csv
import io
import json
import re
import shutil
from datetime import UTC, datetime

import pytest
from commands import fundsvc, program
from ledgers import fill, listing, owned

from fundsvc.store.database import open_pool
from fundsvc.store.rollups import condense

DAY_MS = 86_400_000
MIDNIGHT = int(datetime(2026, 3, 10, tzinfo=UTC).timestamp() * 1000)
HOUR = 3_600_000

FILLS = [
    ("AAA", 100, MIDNIGHT - 1),
    ("AAA", -40, MIDNIGHT),
    ("AAA", -60, MIDNIGHT + 5 * HOUR),
    ("AAA", -5, MIDNIGHT + 5 * HOUR + 1),
    ("AAA", 12, MIDNIGHT + 23 * HOUR),
    ("BBB", 7, MIDNIGHT + HOUR),
    ("BBB", -3, MIDNIGHT + DAY_MS - 1),
    ("BBB", 50, MIDNIGHT + DAY_MS),
]


@pytest.fixture
async def ledger(config):
    numbered = [fill(symbol, seq, worth, ts) for seq, (symbol, worth, ts) in enumerate(FILLS, 1)]
    async with owned(config) as owner:
        await owner.settle([listing("AAA"), listing("BBB", settleCurrency="USDC"), listing("QUIET"), *numbered])
    async with open_pool(config.database.dsn, 1) as pool:
        await condense(pool, 0)
    return config


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], FILLS),
        (["--from", "2026-03-10"], FILLS[1:]),
        (["--to", "2026-03-10"], FILLS[:1]),
        (["--from", "2026-03-10", "--to", "2026-03-11"], FILLS[1:7]),
        (["--from", "2026-03-10T05:00:00", "--to", "2026-03-10T06:00:00"], FILLS[2:4]),
        (["BBB", "--to", "2026-03-11"], FILLS[5:7]),
        (["QUIET"], []),
    ],
)
async def test_entries_of_a_span_are_written_for_all_contracts_or_some(ledger, arguments, expected):
    done = await fundsvc(ledger, "entries", *arguments)
    rows = list(csv.DictReader(io.StringIO(done.output)))
    assert done.code == 0, done.error
    assert [(row["symbol"], int(row["ts"])) for row in rows if row["kind"] in {"surplus", "shortfall"}] == [
        (symbol, ts) for symbol, _, ts in expected
    ]
    lines = (await fundsvc(ledger, "entries", *arguments, "--format", "ndjson")).output.splitlines()
    assert [{name: str(value) for name, value in json.loads(line).items()} for line in lines] == rows
    assert "secret" not in done.output


async def test_span_or_contract_that_cannot_be_is_refused(ledger):
    done = await fundsvc(ledger, "entries", "--from", "2026-03-11", "--to", "2026-03-11")
    assert (done.code, "is not before" in done.error) == (2, True)
    done = await fundsvc(ledger, "entries", "NONE")
    assert (done.code, "no contract 'NONE' is listed" in done.error) == (2, True)


def cells(page, heading):
    """Returns the rows of the table below a heading, by their first cell."""
    table = page[page.index(f"<h2>{heading}</h2>") :].split("</table>")[0]
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in table.split("<tr>")]
    return {row[0]: row[1:] for row in rows if row}


async def test_report_of_a_day_has_balances_changes_and_shortfalls(ledger, tmp_path):
    path = tmp_path / "day.html"
    done = await fundsvc(ledger, "report", "--day", "2026-03-10", "--output", path)
    assert done.code == 0, done.error
    page = path.read_text()
    own = page.replace(page[page.index("<script>") : page.index("</script>")], "")
    contracts = cells(own, "By contract")
    assert contracts.keys() == {"AAA", "BBB"}
    # before, lowest, after, change, credited, paid, uncovered, outstanding, fills
    assert contracts["AAA"] == ["100", "0", "7 USDT", "-93", "7", "100", "5", "0", "4"]
    assert contracts["BBB"] == ["0", "0", "4 USDC", "4", "7", "3", "0", "0", "2"]
    assert cells(own, "By settlement currency")["USDT"] == ["1", "100", "7", "-93", "7", "100", "5", "0"]
    assert re.findall(r"<td>(60|40|3|0) (?:USDT|USDC)</td>", own) == ["3", "60", "40", "0"]
    assert "Ran dry: AAA" in own
    assert "http" not in own
    series = json.loads(re.search(r"const series = (.*);", own)[1])
    usdc, usdt = series["currencies"]
    assert (usdt["currency"], usdt["balance"][0], usdt["balance"][5], usdt["balance"][23]) == ("USDT", 60, 0, 7)
    assert (usdt["paid"][5], usdt["uncovered"][5], sum(usdt["paid"])) == (60, 5, 100)
    assert len(series["hours"]) == len(usdc["balance"]) == 24


async def test_report_of_a_day_without_events_and_of_yesterday(ledger, tmp_path):
    for options in (["--day", "2025-01-01"], []):
        path = tmp_path / "day.html"
        done = await fundsvc(ledger, "report", *options, "--output", path)
        assert done.code == 0, done.error
        assert '<p class="note">None.</p>' in path.read_text()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed: run scripts/browser")
async def test_report_is_printed_as_pdf(ledger, tmp_path):
    paths = tmp_path / "day.html", tmp_path / "day.pdf"
    done = await fundsvc(ledger, "report", "--day", "2026-03-10", "--output", paths[0], "--pdf", paths[1])
    assert done.code == 0, done.error
    assert paths[1].read_bytes().startswith(b"%PDF-")
    drawn = await program(
        *("chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"),
        *("--virtual-time-budget=10000", "--dump-dom", paths[0].as_uri()),
    )
    ticks = re.findall(r'class="ytick"><text[^>]*>([^<]*)<', drawn.output)
    assert {"0", "20", "40", "60"} <= set(ticks)


async def test_pdf_without_a_browser_is_refused_before_anything_is_written(ledger, tmp_path):
    path = tmp_path / "day.html"
    done = await fundsvc(ledger, "report", "--output", path, "--pdf", tmp_path / "day.pdf", "--browser", "no-such-browser")
    assert (done.code, "there is no program no-such-browser" in done.error) == (2, True)
    assert not path.exists()
