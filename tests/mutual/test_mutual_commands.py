"""The command line of the mutual."""

import os

import pytest
from commands import command


async def simulate(tmp_path, *arguments, **environment):
    small = ("--accounts", 20, "--days", 15, "--report", tmp_path / "report.html")
    others = {name: value for name, value in os.environ.items() if not name.startswith("FUNDSVC_")}
    return await command("mutual", "simulate", *small, *arguments, environment=others | environment)


async def test_simulate_prints_what_policies_are_paid_within_80_columns(tmp_path):
    done = await simulate(tmp_path)
    assert (done.code, done.error) == (0, "")
    rows = [line for line in done.output.splitlines() if line.startswith("│")]
    assert "days 1 to 10" in rows[0]
    assert max(map(len, rows)) <= 80


async def test_report_is_one_file_that_loads_nothing(tmp_path):
    await simulate(tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "plotly.js v" in text
    own = text.replace(text[text.index("<script>") : text.index("</script>")], "")
    assert "http" not in own
    assert "$" not in own.split("<script>")[0]


async def test_summary_as_json_has_cohorts_and_farms(tmp_path):
    result = (await simulate(tmp_path, "--days", 200, "--json")).result
    assert [cohort["first_day"] for cohort in result["cohorts"]] == [0, 10, 93]
    assert {farm["size"] for farm in result["farms"]} == {"threshold", "market"}
    assert all(farm["back"] <= farm["cost"] for farm in result["farms"])


async def test_terms_of_a_configured_pool_are_simulated_and_warned_of(tmp_path):
    config = tmp_path / "fundsvc.toml"
    config.write_text("[mutual.pools.USDT]\ncap = 500_000\n")
    done = await simulate(tmp_path, "--pool", "USDT", FUNDSVC_CONFIG=str(config))
    assert done.code == 0
    assert "these terms can be farmed: a policy pays up to 50 " in done.output
    assert "these terms can be farmed" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--pool", "BTC"], "no pool 'BTC' is configured; mutual.pools has: none"),
        (["--term", "cap 3"], "--term 'cap 3' is not TOML such as 'cap = 1000000'"),
        (["--term", "caps = 3"], "--term: Object contains unknown field `caps`"),
        (["--term", "cap = 0"], "--term: cap 0 ppm of the face is less than one atom: raise cap or face"),
        (["--term", "premium_tiers = [[0, 9], [1, 8]]"], "--term: premium_tiers: rates [9, 8] fall"),
    ],
)
async def test_wrong_terms_are_refused_in_one_line(tmp_path, arguments, error):
    done = await simulate(tmp_path, *arguments)
    assert (done.code, done.output) == (2, "")
    assert done.error.startswith(f"fundsvc: {error}")
    assert not (tmp_path / "report.html").exists()


async def test_simulate_shows_progress_on_a_terminal_only(tmp_path):
    assert "15/15" in (await simulate(tmp_path, FORCE_COLOR="1")).error
    assert (await simulate(tmp_path)).error == ""
