"""The terms of a pool: the preset, illegal terms, the farming check, and the premium."""

import re
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from streams import RULES, small_rules

from fundsvc.mutual.core.premium import premium
from fundsvc.mutual.core.terms import XT_SHAPE, Rules, Terms, farming_warning

UNIT = 10**6


def test_the_preset_is_exact():
    rules = XT_SHAPE.rules()
    assert (rules.min_funding, rules.threshold, rules.face, rules.cap) == (10 * UNIT, 100 * UNIT, 100 * UNIT, 8 * UNIT)
    assert rules.premium_tiers == ((0, 80_000), (1_000 * UNIT, 90_000), (10_000 * UNIT, 100_000))
    assert (rules.waiting_ms, rules.cycle_ms, rules.expiry_ms) == (86_400_000, 86_400_000, 90 * 86_400_000)
    assert msgspec.convert({"preset": "xt_shape"}, Terms) == XT_SHAPE


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"waiting_hours": 0}, "`int` >= 1"),
        ({"waiting_hours": 73}, "`int` <= 72"),
        ({"threshold": "0"}, ">= 1 - at `$.threshold`"),
        ({"min_funding": "-1"}, "min_funding"),
        ({"min_funding": "0.0000001"}, "min_funding: 1E-7 is not a number with at most 6 decimals"),
        ({"face": "0.000001"}, "cap 80000 ppm of the face is less than one atom"),
        ({"premium_tiers": []}, "premium_tiers: [] do not rise"),
        ({"premium_tiers": [["0", 5], ["0", 6]]}, "premium_tiers: [0, 0] do not rise"),
        ({"premium_tiers": [["0", 6], ["1", 5]]}, "premium_tiers: rates [6, 5] fall"),
        ({"premium_tiers": [["0", 1_000_001]]}, "<= 1000000"),
        ({"release": [[1, 5]]}, "release begins at health 1"),
        ({"release": [[0, 5], [0, 6]]}, "release: [0, 0] do not rise"),
        ({"tier_mode": "flat"}, "flat"),
        ({"exclude": ["cop"]}, "cop"),
        ({"payout": 1}, "payout"),
        ({"preset": "other"}, "other"),
    ],
)
def test_illegal_terms_are_refused_with_the_key(keys, message):
    with pytest.raises(msgspec.ValidationError, match=re.escape(message)):
        msgspec.convert(keys, Terms)


def test_the_preset_cannot_be_farmed():
    assert farming_warning(XT_SHAPE.rules()) is None


@pytest.mark.parametrize(
    "keys",
    [
        {"cap": 80_001},
        {"face": Decimal("100.000001")},
        {"threshold": Decimal("99.999999")},
        {"premium_tiers": ((Decimal(0), 79_999),)},
        {"premium_tiers": ((Decimal(1), 500_000),)},
    ],
)
def test_terms_that_can_be_farmed_are_warned_of(keys):
    assert "these terms can be farmed" in (farming_warning(msgspec.structs.replace(XT_SHAPE, **keys).rules()) or "")


def test_rules_survive_encoding_with_their_digest():
    rules = XT_SHAPE.rules()
    again = msgspec.json.decode(msgspec.json.encode(rules), type=Rules)
    assert (again, again.digest) == (rules, rules.digest)
    assert small_rules(face=11).digest != small_rules(face=12).digest


@pytest.mark.parametrize(
    ("mode", "profits", "owed"),
    [("slab", 99_999_999, 4_999_999), ("slab", 100 * UNIT, 8 * UNIT), ("marginal", 150 * UNIT, 9 * UNIT), ("slab", 0, 0)],
)
def test_the_premium_of_the_worked_case(mode, profits, owed):
    tiers = ((Decimal(0), 50_000), (Decimal(100), 80_000))
    assert premium(profits, Terms(premium_tiers=tiers, tier_mode=mode).rules()) == owed


@given(RULES, st.integers(0, 10**6), st.integers(0, 10**6))
def test_the_premium_does_not_fall_and_is_at_most_the_profits(rules, profits, more):
    assert 0 <= premium(profits, rules) <= premium(profits + more, rules) <= profits + more


@given(RULES, st.integers(0, 10**13))
def test_cut_offs_lie_on_the_grid_of_the_anchor(rules, ts):
    after, start, last = rules.cutoff_after(ts), rules.cutoff_from(ts), rules.last_cutoff_with(ts)
    assert {(cutoff - rules.anchor_ms) % rules.cycle_ms for cutoff in (after, start, last)} == {0}
    assert ts < after <= ts + rules.cycle_ms
    assert ts <= start < ts + rules.cycle_ms
    assert ts + rules.activity_ms - rules.cycle_ms < last <= ts + rules.activity_ms
