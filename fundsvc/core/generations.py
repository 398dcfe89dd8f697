"""Names of contracts whose symbol is reused: each life of a symbol is a generation with a fund and a chain of its own.

    ledger key     the `symbol` of all rows and sealed arrays: SYMBOL for generation 1, SYMBOL@n for generation n >= 2
    public name    SYMBOL for the current generation, SYMBOL@n for any generation; events carry SYMBOL

Sequences rise over all generations of a symbol. So a sequence belongs to one generation, and an event that is sent again after
its contract was closed and listed again is recognised.
"""

from typing import NamedTuple

KEY_LENGTH_MAX = 80
"""Characters of a ledger key: a symbol has up to 64."""

_NUMBER_DIGITS_MAX = 9

GENERATION_MAX = 10**_NUMBER_DIGITS_MAX - 1
"""The largest number of a generation that a name may have."""


class Generation(NamedTuple):
    """One life of a symbol, numbered from 1."""

    symbol: str
    number: int

    @property
    def key(self) -> str:
        """The ledger key."""
        return self.symbol if self.number == 1 else f"{self.symbol}@{self.number}"

    @property
    def name(self) -> str:
        """The public name with the number."""
        return f"{self.symbol}@{self.number}"

    @property
    def next(self) -> "Generation":
        """The generation after this one."""
        return Generation(self.symbol, self.number + 1)

    @property
    def previous(self) -> "Generation":
        """The generation before this one."""
        return Generation(self.symbol, self.number - 1)


def is_reserved(symbol: str) -> bool:
    """Whether a symbol ends like the name of a generation, so that no listing may have it."""
    _, at, number = symbol.rpartition("@")
    return bool(at) and number.isascii() and number.isdecimal()


def named_generation(name: str) -> Generation | None:
    """Returns the generation that a name with a number selects; None for the name of the current generation."""
    symbol, at, number = name.rpartition("@")
    if not at or not number.isascii() or not number.isdecimal() or number.startswith("0"):
        return None
    return Generation(symbol, int(number)) if len(number) <= _NUMBER_DIGITS_MAX else None


def generation_of(key: str) -> Generation:
    """Returns the generation of a ledger key."""
    return named_generation(key) or Generation(key, 1)


def public_symbol(key: str) -> str:
    """Returns the symbol of a ledger key without its generation."""
    return generation_of(key).symbol if "@" in key else key
