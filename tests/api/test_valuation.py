import time
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fundsvc.api.answers import fund_answer
from fundsvc.api.policy_answers import policy_answers
from fundsvc.api.valuation import FundValuation, Past
from fundsvc.core.contracts import Contract
from fundsvc.core.fund.fullness import Target
from fundsvc.core.policy import DrawdownGuard, Policy, SavedGuard
from fundsvc.store.reader import FundRow

AMOUNTS = st.integers(0, 2**63 - 1)
PRICES = st.integers(1, 2**63 - 1)
STEP = Fraction(1, 10**8)
AS_OF = 1_700_000_000_000


@st.composite
def funds(draw):
    contract = Contract(
        symbol="AAA",
        settle_currency="B",
        settle_decimals=draw(st.integers(0, 18)),
        price_decimals=draw(st.integers(0, 12)),
        multiplier=Decimal(draw(st.integers(1, 10**6))).scaleb(-draw(st.integers(0, 8))),
        is_inverse=draw(st.booleans()),
    )
    return FundRow(contract, "A", 0, draw(AMOUNTS), 0, 1, 1, bytes(32), None, datetime.now(UTC), escalated=False)


VALUATIONS = st.builds(
    FundValuation,
    rate=PRICES,
    rate_missing=st.just(""),
    mark=PRICES,
    open_interest=st.integers(0, 2**70),
    past=st.builds(Past, AMOUNTS, AMOUNTS, AMOUNTS),
    target=st.none() | st.builds(Target, st.just("cover"), st.none() | AMOUNTS, *map(st.just, (0.5, 1.0, 1.0, 50.0))),
)


def whole(fund, amount):
    return Fraction(amount, 10**fund.settle_decimals)


@given(funds(), VALUATIONS)
def test_converted_amounts_are_exact_and_rounded_down(fund, valuation):
    answer, balance = fund_answer(fund, Policy(), valuation, AS_OF), whole(fund, fund.balance)
    mark = Fraction(valuation.mark, 10**fund.contract.price_decimals)
    assert 0 <= balance * Fraction(valuation.rate, 10**12) - Fraction(answer.balance_usdt) < STEP
    if fund.contract.is_inverse:
        assert Fraction(answer.balance_base) == balance
    else:
        assert 0 <= balance / mark - Fraction(answer.balance_base) < STEP
    assert Decimal(answer.balance_usdt).as_tuple().exponent >= -8


@given(funds(), VALUATIONS)
def test_changes_peak_and_drawdown_follow_from_past_balances(fund, valuation):
    answer, past, balance = fund_answer(fund, Policy(), valuation, AS_OF), valuation.past, fund.balance
    assert Fraction(answer.change24h) == whole(fund, balance - past.day)
    assert Fraction(answer.change7d) == whole(fund, balance - past.week)
    peak = max(past.peak, balance)
    assert Fraction(answer.peak8h) == whole(fund, peak)
    assert answer.drawdown8h == pytest.approx(float(1 - Fraction(balance, peak)) if peak else 0)
    assert 0 <= answer.drawdown8h <= 1


@given(funds(), VALUATIONS)
def test_open_interest_is_valued_at_the_mark(fund, valuation):
    ratio = fund_answer(fund, Policy(), valuation, AS_OF).balance_to_open_interest
    if not valuation.open_interest:
        assert ratio is None
        return
    size = valuation.open_interest * Fraction(fund.contract.multiplier)
    mark = Fraction(valuation.mark, 10**fund.contract.price_decimals)
    notional = size / mark if fund.contract.is_inverse else size * mark
    assert ratio == pytest.approx(float(whole(fund, fund.balance) / notional))


@given(funds(), VALUATIONS)
def test_missing_values_are_null_with_a_reason(fund, valuation):
    known = msgspec.to_builtins(fund_answer(fund, Policy(), valuation, AS_OF))
    assert not {"balanceUsdtReason", "balanceBaseReason"} & known.keys()
    unknown = fund_answer(
        fund, Policy(), valuation._replace(rate=None, rate_missing="why", mark=None, open_interest=None), AS_OF
    )
    assert (unknown.balance_usdt, unknown.balance_usdt_reason, unknown.open_interest) == (None, "why", None)
    assert unknown.balance_to_open_interest is None
    assert (unknown.balance_base is None) == (not fund.contract.is_inverse)


@given(funds(), VALUATIONS)
def test_fullness_compares_balance_and_target(fund, valuation):
    answer, known = fund_answer(fund, Policy(), valuation, AS_OF), valuation.target
    if known is None or known.amount is None:
        assert (answer.target, answer.fullness, answer.leverage_cap, answer.state) == (None, None, None, "ok")
        return
    assert Fraction(answer.target) == whole(fund, known.amount)
    assert answer.fullness == (pytest.approx(float(Fraction(fund.balance, known.amount))) if known.amount else None)
    assert 1 <= answer.leverage_cap <= 50
    assert answer.state == ("warning" if fund.balance < known.amount else "ok")


def test_payable_is_the_balance_above_the_line_of_the_guard():
    listed = Contract(
        symbol="AAA", settle_currency="USDT", settle_decimals=8, price_decimals=2, multiplier=Decimal(1), is_inverse=False
    )
    kept = SavedGuard(active=False, peaks=[(time.time_ns() // 60_000_000_000, 100 * 10**8)])
    fund = FundRow(listed, None, 0, 90 * 10**8, 0, 1, 1, bytes(32), kept, datetime.now(UTC), escalated=False)
    valuation = FundValuation(None, "", None, None, Past(0, 0, 0))
    guarded = fund_answer(fund, Policy(drawdown_guard=DrawdownGuard(start=0.3, stop=0.25)), valuation, AS_OF)
    assert (guarded.payable, guarded.guard_line) == ("20", "70")
    unguarded = fund_answer(fund, Policy(), valuation, AS_OF)
    assert (unguarded.payable, unguarded.guard_line) == ("90", None)


def test_policies_are_grouped_and_explained():
    guarded = Policy(eligible="all", allocation="capped", cap_share=0.25, drawdown_guard=DrawdownGuard(start=0.3, stop=0.25))
    first, second = policy_answers([("AAA", Policy()), ("BBB", guarded), ("CCC", Policy())])
    assert (first.symbols, second.symbols, second.guard_start) == (["AAA", "CCC"], ["BBB"], 0.3)
    assert "ADL reduces positions with a profit, in the order of their ranks." in first.words
    assert "each at most 25 % of its lots a round" in second.words
    assert "when the balance is 30 % below its peak of 8 hours, and ends at 25 %" in second.words
