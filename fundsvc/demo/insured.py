"""The insured traders of the demo: the events of a pool of the mutual at every step, as a pure function of seed and step.

They are traders of the demo market. Each transfers money to its insurance account, enables the insurance, and then reports the
ends of its positions in one contract: gains owe premiums, losses become policies. Some pause until their policies freeze. Some
transfer too little, so that they are unfunded for a while. The exchange fetches payouts.

The terms of the pool are those of the preset, but an hour takes a second: a policy waits for 24 seconds, and a cut-off comes
every 24 seconds.
"""

from collections.abc import Iterator

import msgspec

from fundsvc.config.settings import MutualConfig
from fundsvc.core.numbers import format_units
from fundsvc.demo.market import SEQ_PER_STEP, STEP_SECONDS, SimulatedMarket
from fundsvc.demo.prices import seeded
from fundsvc.demo.stakes import Closing, identifier
from fundsvc.mutual.core.events import Enable, Numbered, Payout, TopUp, Trade, Transfer
from fundsvc.mutual.core.terms import HOUR_MS, SECOND_MS, Rules, Terms

POOL = "USDT"
SYMBOL = "XBTUSDTM"
"""The contract of the insured positions. It has no ADL, which would change what traders gain and lose."""

TRADERS = 40
"""Together they close a position about every second."""

HASTE = HOUR_MS // SECOND_MS
"""How many times faster than its terms the pool of the demo is."""

SEQ_PER_TRADER = 10
"""Sequences reserved for a trader in a step."""

TOP_UP, TOP_UP_STEPS = "100", 240
"""What the operator adds to the pool each minute, so that most policies complete before they expire."""

FIRST_TRANSFER = "150"
JOIN_STEPS = 3
"""Traders join one after another, at this distance."""

TRANSFER_STEPS = 240
"""The steps between two transfers of a trader: one minute."""

TRANSFERS = ("60", "30", "30", "8")
"""What a trader transfers each time, by its number: the premiums of most, and too little for every fourth."""

PAYOUT_STEPS = 480
"""The steps between two payouts of a trader: two minutes."""

PAUSE_EVERY, PAUSE_NUMBER = 4, 2
"""Every fourth trader pauses now and then; not one of those that transfer too little."""

PAUSE_CYCLE_STEPS, PAUSE_STEPS = 2400, 1200
"""Such a trader pauses for five minutes in ten: longer than the seven days, here seconds, after which its policies freeze."""


class HastyTerms(Terms, frozen=True):
    """Terms whose hours take seconds. The day of premiums remains that of UTC."""

    def rules(self) -> Rules:
        """Returns the exact terms."""
        rules = super().rules()
        spans = ("waiting_ms", "cycle_ms", "anchor_ms", "expiry_ms", "activity_ms")
        return msgspec.structs.replace(rules, **{name: getattr(rules, name) // HASTE for name in spans})


MUTUAL = MutualConfig({POOL: HastyTerms(symbols=(SYMBOL,))})
"""The configuration of the demo's pool."""


class InsuredTraders:
    """The insured traders of a market. The same market and step give the same events, apart from their time."""

    def __init__(self, market: SimulatedMarket) -> None:
        self._contract = market.contracts[SYMBOL]
        self.accounts = self._contract.accounts[:TRADERS]

    def events(self, step: int, ts: int) -> Iterator[Numbered]:
        """Yields the events of a step, with `ts` as their time."""
        if step % TOP_UP_STEPS == 0:
            yield TopUp(POOL, ts, step * SEQ_PER_STEP + 1, TOP_UP, str(step))
        for number, account in enumerate(self.accounts):
            if step >= number * JOIN_STEPS:
                yield from self._of_trader(number, account, step, ts)

    def _of_trader(self, number: int, account: str, step: int, ts: int) -> Iterator[Numbered]:
        since = step - number * JOIN_STEPS
        seq = step * SEQ_PER_STEP + (number + 1) * SEQ_PER_TRADER
        if since == 0:
            yield Transfer(POOL, ts, seq, account, FIRST_TRANSFER, f"{account}/{step}")
            yield Enable(POOL, ts, seq + 1, account)
            return
        if since % TRANSFER_STEPS == 0:
            yield Transfer(POOL, ts, seq, account, TRANSFERS[number % len(TRANSFERS)], f"{account}/{step}")
        if since % PAYOUT_STEPS == 0:
            yield Payout(POOL, ts, seq + 1, account)
        closing = self._contract.closing(account, step)
        if closing and not is_pausing(number, since):
            yield self._trade(account, closing, step, ts, seq + 2)

    def _trade(self, account: str, closing: Closing, step: int, ts: int, seq: int) -> Trade:
        decimals = self._contract.settle_decimals
        return Trade(
            POOL,
            ts,
            seq,
            account,
            SYMBOL,
            identifier(seeded("insured", account, step)),
            ts - round(closing.steps * STEP_SECONDS * SECOND_MS),
            format_units(closing.realised, decimals),
            format_units(closing.volume, decimals),
        )


def is_pausing(number: int, since: int) -> bool:
    """Whether a trader trades elsewhere, by its number and the steps since it joined."""
    pauses = number % PAUSE_EVERY == PAUSE_NUMBER
    return pauses and since % PAUSE_CYCLE_STEPS >= PAUSE_CYCLE_STEPS - PAUSE_STEPS
