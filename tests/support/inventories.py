"""Events of a contract whose fund holds positions: takeovers, unwinds, and orders of every origin and end."""

from fundsvc.core.events import AdlEnd, AdlFill, Fill, Mark, Position, Takeover, Unwind

HELD = "HELDUSDTM"
"""A contract whose lots are worth one USDT per point."""

TS = 1_765_400_000_000


def mark(price, ts=0):
    return Mark(HELD, price, TS + ts)


def position(account, lots, entry_price):
    return Position(HELD, account, lots, entry_price, "500", TS)


def sold(seq, lots, price):
    return Fill(HELD, seq, "sell", lots, price, "100", TS + seq)


def executed(seq, account, lots, adl):
    return AdlFill(HELD, seq, adl, account, lots, TS + seq)


def ended(seq, adl):
    return AdlEnd(HELD, seq, adl, TS + seq)


def taken(seq, lots, side="sell", price="50"):
    return Takeover(HELD, seq, side, lots, price, TS + seq, account="long")


def unwound(seq, lots, price):
    return Unwind(HELD, seq, "sell", lots, price, TS + seq, "t", "o")


INVENTORY = [
    *(mark("45"), position("anna", -60, "60"), position("bert", -60, "55")),
    *(sold(1, 100, "101"), taken(2, 10), taken(3, 2, "buy", "40")),
    *(unwound(4, 2, "55"), unwound(5, 1, "50"), unwound(6, 1, "48")),
    *(taken(7, 40), executed(8, "anna", 5, 1), *(ended(seq, 1) for seq in range(9, 20))),
    mark("42", 100_000),
    *(executed(20, "anna", 2, 2), mark("60", 100_001), ended(21, 2)),
    *(mark("41", 200_000), executed(22, "anna", 1, 3), unwound(23, 16, "45"), taken(24, 5)),
]
"""Events of a fund that holds positions."""
