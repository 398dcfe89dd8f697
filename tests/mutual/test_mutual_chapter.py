"""The chapter of the handbook about the mutual: its preset is that of the code, and its worked cases come out of the core."""

import json
import re
from pathlib import Path

import msgspec
import pytest

from fundsvc.core.numbers import format_units
from fundsvc.mutual.core.events import Enable, Tick, TopUp, Trade, Transfer
from fundsvc.mutual.core.pool import Pool
from fundsvc.mutual.core.premium import premium
from fundsvc.mutual.core.rows import PoolRow
from fundsvc.mutual.core.terms import DAY_MS, XT_SHAPE, Terms

CHAPTER = (Path(__file__).parents[2] / "fundsvc" / "handbook" / "mutual.md").read_text()
PRESET = {
    key: (value, whose)
    for key, value, whose in re.findall(r"^\| `(\w+)` \| ([^|]+) \| (XT|ours) \| [^|]+ \|$", CHAPTER, re.MULTILINE)
}
CASES = CHAPTER[CHAPTER.index("## Worked cases") : CHAPTER.index("## Preset")]
UNIT = 10**6
START = 20_000 * DAY_MS
WORKED = msgspec.structs.replace(Terms().rules(), cap_rate=1_000_000)


def shown(key, value):
    """Returns a default as the chapter shows it."""
    match value:
        case None:
            return "all"
        case [[_, _], *_]:
            return ", ".join(f"{start}: {rate}" for start, rate in value)
        case [*words]:
            return ", ".join(words)
        case _:
            return str(value)


def test_preset_of_the_chapter_has_every_default():
    defaults = json.loads(msgspec.json.encode(XT_SHAPE))
    del defaults["preset"]
    for name, value in defaults.items():
        if isinstance(value, str) and value.isdigit():
            defaults[name] = int(value)
    defaults["premium_tiers"] = [[int(start), rate] for start, rate in XT_SHAPE.premium_tiers]
    assert {key: value for key, (value, _) in PRESET.items()} == {key: shown(key, value) for key, value in defaults.items()}


def test_exactly_one_number_is_that_of_xt():
    assert [key for key, (_, whose) in PRESET.items() if whose == "XT"] == ["min_funding"]


class Market:
    """A pool with accounts that have one policy each."""

    def __init__(self, rules=WORKED):
        self.pool = Pool(PoolRow("USDT"), {1: rules})
        self.seq = 0

    def apply(self, kind, hours, *fields):
        self.seq += 1
        self.pool.apply(kind("USDT", START + int(hours * 3_600_000), self.seq, *fields))

    def insure(self, *accounts):
        for account in accounts:
            self.apply(Transfer, 0, account, "10", "t")
            self.apply(Enable, 0, account)

    def lose(self, account, hours, amount):
        opened = START + int(hours * 3_600_000)
        self.apply(Trade, hours, account, "XBTUSDTM", "t", opened, f"-{amount}", "2000")

    def pass_days(self, days):
        self.pool.apply(Tick("USDT", START + days * DAY_MS))

    def dues(self):
        policies = self.pool.register.save_policies()
        return [f"{self.pool.standing(policy).due / UNIT:.6f}" for policy in policies]


def test_worked_cycles_give_the_amounts_of_the_chapter():
    market = Market()
    market.insure("a", "b", "c", "d")
    for account in "abc":
        market.lose(account, 0, 100)
    market.apply(TopUp, 0, "50", "u")
    market.pass_days(1)
    assert market.dues() == ["1.666666"] * 3
    market.lose("d", 24, 100)
    market.apply(TopUp, 24.5, "12", "u")
    market.pass_days(2)
    assert market.dues() == ["3.091666"] * 3 + ["1.425000"]
    budgets = [cycle.budget for cycle in market.pool.take().cycles]
    assert budgets == [5_000_000, 5_700_000]
    for number in ("5.000000", "1.666666", "5.700000", "3.091666", "1.425000"):
        assert number in CASES


@pytest.mark.parametrize(("losses", "policies", "kept"), [((60, 60), 1, 20), ((250,), 2, 50)])
def test_losses_of_the_chapter_become_policies(losses, policies, kept):
    market = Market()
    market.insure("a")
    for loss in losses:
        market.lose("a", 1, loss)
    account = market.pool.register.accounts["a"]
    assert (len(account.live), account.accumulated) == (policies, kept * UNIT)
    assert f"{kept} are kept" in CASES


@pytest.mark.parametrize("mode", ["slab", "marginal"])
def test_premiums_of_the_chapter(mode):
    rules = msgspec.structs.replace(WORKED, premium_tiers=((0, 50_000), (100 * UNIT, 80_000)), tier_mode=mode)
    cases = {"slab": [(99_999_999, "4.999999"), (100 * UNIT, "8")], "marginal": [(150 * UNIT, "9")]}
    for profits, owed in cases[mode]:
        assert format_units(premium(profits, rules), 6) == owed
        assert owed in CASES
