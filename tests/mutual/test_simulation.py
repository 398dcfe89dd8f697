"""The simulation reproduces the documented payouts, and what farming gets back."""

import msgspec
import pytest

from fundsvc.mutual.core.terms import Terms
from fundsvc.mutual.simulation.market import Market
from fundsvc.mutual.simulation.report import html_report
from fundsvc.mutual.simulation.simulate import simulate

UNCAPPED = Terms(premium_tiers=((0, 100_000),), cap=1_000_000)
FROM_FIVE = Terms(premium_tiers=((0, 50_000), (100, 80_000), (1_000, 100_000)), cap=1_000_000)
PRESET = Terms()


def simulated(terms, days=200, accounts=100, **market):
    return simulate(Market(accounts=accounts, days=days, **market), terms)


@pytest.mark.parametrize(("ratio", "share"), [(0.5, 0.05), (1, 0.10), (2, 0.20)])
def test_a_policy_is_paid_the_premium_rate_times_profits_over_losses(ratio, share):
    first, _, later = simulated(UNCAPPED, days=220, ratio=ratio).cohorts
    assert later.open == 0
    assert later.ratio == pytest.approx(share, rel=0.08)
    assert first.ratio == pytest.approx(3 * share, rel=0.15)


@pytest.mark.parametrize("changes", [{"release": ((0, 300_000),)}, {"expiry_days": 30}])
def test_release_and_expiry_do_not_change_the_later_share(changes):
    later = simulated(msgspec.structs.replace(UNCAPPED, **changes), days=220).cohorts[-1]
    assert later.ratio == pytest.approx(0.10, rel=0.08)


def test_farming_pays_back_more_than_it_costs_without_a_low_cap():
    outcome = simulated(FROM_FIVE)
    first, later = (farm for farm in outcome.farms if farm.size == "threshold")
    assert (first.first_day, first.cost, later.cost) == (0, 0.05, 0.05)
    assert first.back == pytest.approx(0.17, abs=0.02)
    assert later.back == pytest.approx(0.06, abs=0.01)
    assert "can be farmed" in outcome.warning


@pytest.mark.parametrize("ratio", [0.5, 1, 3])
def test_farming_gains_nothing_in_the_preset(ratio):
    outcome = simulated(PRESET, ratio=ratio, accounts=50)
    assert outcome.warning is None
    for farm in outcome.farms:
        assert farm.cost == pytest.approx(0.08, rel=0.01)
        assert farm.paid <= farm.premiums + 1
        if farm.size == "market":
            assert farm.back <= 0.073


def test_the_same_seed_gives_the_same_outcome():
    assert simulated(PRESET, days=30, seed=7) == simulated(PRESET, days=30, seed=7)
    assert simulated(PRESET, days=30, seed=7) != simulated(PRESET, days=30, seed=8)


def test_policies_of_simulated_accounts_wait_share_and_freeze():
    days = simulated(PRESET, days=120, accounts=200).days
    for state in ("waiting", "active", "frozen"):
        assert max(getattr(day, state) for day in days) > 0, state


def test_no_policy_is_paid_more_than_its_cap():
    outcome = simulated(PRESET, days=150, ratio=5)
    assert all(cohort.ratio <= 0.08 for cohort in outcome.by_day if cohort.policies)


@pytest.mark.parametrize("changes", [{"decimals": 2}, {"decimals": 8}, {"cycle_seconds": 3600, "cycle_anchor": 1800}])
def test_other_units_and_cycles_are_simulated(changes):
    outcome = simulated(msgspec.structs.replace(PRESET, **changes), days=12, accounts=20)
    assert outcome.losses > outcome.premiums > 0


def test_a_market_too_short_for_a_whole_life_has_no_farms():
    outcome = simulated(PRESET, days=1, accounts=1, seed=3)
    assert (outcome.farms, [cohort.end_day for cohort in outcome.cohorts]) == ([], [1])
    assert "<script>" in html_report(outcome)
