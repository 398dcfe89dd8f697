"""A contract whose fund takes a position over: the worked case of the handbook, as events of a stream."""

from ledgers import fill, listing

from fundsvc.core.events import AdlEnd, AdlFill, Mark, Position, Takeover, Unwind

SYMBOL = "HELDUSDTM"
TS = 1_700_000_000_000
LISTING = listing(SYMBOL)
FUNDED = fill(SYMBOL, 1, 100, TS)
"""The fund has a balance of 100."""

SHORT = Position(SYMBOL, "secret-short", -30, "60", "3000", TS)
"""Profits at marks below 60."""


def mark(price, ts=TS):
    return Mark(SYMBOL, str(price), ts)


def takeover(seq, lots, price=50, side="sell", ts=TS):
    return Takeover(SYMBOL, seq, side, lots, str(price), ts, account="secret-taken")


def unwind(seq, lots, price, side="sell"):
    return Unwind(SYMBOL, seq, side, lots, str(price), TS)


def executed(seq, adl, lots):
    return AdlFill(SYMBOL, seq, adl, "secret-short", lots, TS)


def ended(seq, adl):
    return AdlEnd(SYMBOL, seq, adl, TS)
