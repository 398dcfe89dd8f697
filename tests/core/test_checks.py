"""HTTP and settlement reject the same events for the same reason."""

from collections import Counter
from typing import get_args

import pytest
from any_event import BY_TYPE, types
from builders import LINEAR, ONE, UNIT, a_fund, fill, partition, position
from hypothesis import given
from hypothesis import strategies as st

from fundsvc.api.ingest_checks import BodyChecks, ContractState
from fundsvc.config.settings import Config
from fundsvc.core.checks import check
from fundsvc.core.events import Event, Fill, Mark, Position, Rate, Reason, Rejection, Takeover, Unwind
from fundsvc.core.fund.settlement import Fund
from fundsvc.wire.codec import OwnEvent, PostedEvent

KNOWN_TO_THE_LEDGER = {
    Reason.ADL_ORDER_UNKNOWN,
    Reason.ADL_ORDER_CLOSED,
    Reason.ADL_NOT_ASKED,
    Reason.ADL_TOO_MANY_LOTS,
    Reason.INVENTORY_SHORT,
}
"""Reasons that depend on the state of the ledger, which HTTP does not have."""


def over_http(event: Event) -> Rejection | None:
    """The rejection that HTTP predicts for the first event of two contracts."""
    known = {
        contract.symbol: ContractState(contract, has_entries=False, suspended=False, seq=0, last=0)
        for contract in (UNIT, LINEAR)
    }
    checks = BodyChecks(known, Config(), Counter())
    return rejection_of(checks.check, event)


def in_settlement(event: Event) -> Rejection | None:
    return rejection_of(partition(Fund(UNIT), Fund(LINEAR)).apply, event)


def rejection_of(apply, event: Event) -> Rejection | None:
    try:
        apply(event)
    except Rejection as rejection:
        return rejection
    return None


def is_known_to_the_ledger(rejection: Rejection) -> bool:
    out_of_range = rejection.reason is Reason.OUT_OF_RANGE and "64-bit" in rejection.detail
    return rejection.reason in KNOWN_TO_THE_LEDGER or out_of_range


def test_strategies_cover_every_type_of_event():
    assert set(BY_TYPE) == types()
    assert set(get_args(PostedEvent)) == types() - {*get_args(OwnEvent)}


@pytest.mark.parametrize("kind", get_args(PostedEvent), ids=lambda kind: kind.__name__)
@given(st.data())
def test_http_and_settlement_reject_the_same_events_for_the_same_reason(kind, data):
    event = data.draw(BY_TYPE[kind])
    foreseen, settled = over_http(event), in_settlement(event)
    if settled is None or is_known_to_the_ledger(settled):
        assert foreseen is None
    else:
        assert foreseen is not None
        assert foreseen.reason == settled.reason
        assert foreseen.detail == settled.detail or settled.reason is Reason.UNKNOWN_SYMBOL


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (fill(account="a\n"), Reason.INVALID_FIELD),
        (fill(trade_id="=1"), Reason.INVALID_FIELD),
        (fill(price="0"), Reason.OUT_OF_RANGE),
        (fill(bankruptcy_price="1e5"), Reason.INVALID_NUMBER),
        (Takeover(UNIT.symbol, 1, "sell", 1, "1", 1, account="=a"), Reason.INVALID_FIELD),
        (Takeover(UNIT.symbol, 1, "sell", 1, "-1", 1), Reason.INVALID_NUMBER),
        (Unwind(UNIT.symbol, 1, "sell", 1, "0", 1), Reason.OUT_OF_RANGE),
        (Unwind(UNIT.symbol, 1, "sell", 1, "1", 1, order_id="@"), Reason.INVALID_FIELD),
        (position("a\tb", 1), Reason.INVALID_FIELD),
        (position("a", 1, owner="@b"), Reason.INVALID_FIELD),
        (position("a", 1, position_side="SHORT"), Reason.INVALID_FIELD),
        (position("a", 1, margin="1.000000001"), Reason.TOO_MANY_DECIMALS),
        (Mark(UNIT.symbol, "1", 1, "-1"), Reason.INVALID_NUMBER),
        (Rate("US-DT", "1", 1), Reason.INVALID_FIELD),
    ],
)
def test_both_reject_a_field_that_is_not_legal(event, reason):
    foreseen, settled = over_http(event), in_settlement(event)
    assert (foreseen.reason, settled.reason) == (reason, reason)
    assert foreseen.detail == settled.detail


@given(st.one_of(BY_TYPE[Fill], BY_TYPE[Takeover], BY_TYPE[Unwind], BY_TYPE[Mark], BY_TYPE[Position]))
def test_check_accepts_exactly_what_a_contract_can_settle(event):
    rejection = rejection_of(lambda given: check(given, UNIT), event)
    settled = rejection_of(partition(a_fund(UNIT, balance=ONE)).apply, event)
    if event.symbol == UNIT.symbol and not (settled and is_known_to_the_ledger(settled)):
        assert (rejection is None) == (settled is None)
