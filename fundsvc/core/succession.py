"""Moves the balance of a closed contract to the contract that continues it: the only move between funds.

It is off unless the policy has `on_close = "successor"`. An entry `carry_out` in the chain of the closed contract and an entry
`carry_in` in that of its successor have the same amount, name each other, and are written in one commit, so both contracts must
belong to the same partition.
"""

from fundsvc.core.batch import Draft
from fundsvc.core.fund.settlement import Fund
from fundsvc.core.numbers import INT64_MAX


def carry(fund: Fund, successor: Fund, batch: Draft, ts: int) -> None:
    """Moves the whole balance of a fund to its successor at a time (ms)."""
    amount = fund.balance
    batch.record(fund, fund.carry_out(successor.contract.symbol, ts))
    batch.record(successor, successor.carry_in(amount, fund.contract.symbol, ts))


def obstacle(fund: Fund, successor: Fund) -> str:
    """Returns why the balance of a closed contract cannot move to its successor; "" if it can."""
    ours, theirs = fund.contract, successor.contract
    if (ours.settle_currency, ours.settle_decimals) != (theirs.settle_currency, theirs.settle_decimals):
        return f"{theirs.symbol} settles in {theirs.settle_currency} with {theirs.settle_decimals} decimals"
    if successor.closing is not None:
        return f"{theirs.symbol} is closed"
    if successor.suspended:
        return f"the terms of {theirs.symbol} are in doubt"
    for one in (fund, successor):
        if one.outstanding:
            return f"something is outstanding in {one.contract.symbol}"
    if successor.balance + fund.balance > INT64_MAX:
        return f"the balance does not fit the 64-bit balance of {theirs.symbol}"
    return ""
