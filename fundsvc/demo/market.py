"""The demo market: the events of every step, as a pure function of seed and step.

The market keeps no state between steps, so a restart continues at any step without a replay. The caller passes the lots that
ADL has executed to each step.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from fundsvc.config.settings import CurrencyConfig
from fundsvc.core.contracts import contract_of
from fundsvc.core.events import Event, Fill, Listing, Mark, Position, Rate, Settle, Takeover, Unwind
from fundsvc.core.numbers import format_units
from fundsvc.demo.instruments import INSTRUMENTS, Instrument
from fundsvc.demo.prices import THIN_STEPS, Prices, seeded, steps_into
from fundsvc.demo.stakes import Closing, Side, Stake, Stakes, closing_side, identifier, toward

STEP_SECONDS = 0.25
"""The duration of a step."""

SEQ_PER_STEP = 1000
"""Sequences reserved for a step, per contract: room for its fills and for the answers to ADL orders."""

FIRST_TAKEOVER, UNWINDING = 400, 450
"""Sequences of takeovers and of an unwind within a step: between those of fills and of ADL answers."""

UNWIND_STEPS = range(28, THIN_STEPS, 2)
"""When lots are unwound, after the beginning of a time with a thin book: ADL has relieved the inventory before."""

RATE_STEPS = 20
"""Steps between two rates of a currency: five seconds."""


class Holding(NamedTuple):
    """Identifies an open position; `entry_price`, in the contract's units, distinguishes the positions of an account."""

    symbol: str
    account: str
    entry_price: int


Taken = Mapping[Holding, int]
"""Lots that ADL has executed, by position."""


class SimulatedMarket:
    """The market of all contracts. The same seed and step give the same events, apart from their time."""

    def __init__(self, currency: CurrencyConfig, seed: str = "fundsvc") -> None:
        markets = [ContractMarket(seed, instrument, currency) for instrument in INSTRUMENTS]
        self.contracts = {market.instrument.symbol: market for market in markets}

    def events(self, step: int, ts: int, taken: Taken = MappingProxyType({})) -> list[Event]:
        """The events of a step, with `ts` as their time. Step 0 lists the contracts and opens their first positions."""
        markets = [market for market in self.contracts.values() if market.is_traded(step)]
        listings = [market.listing() for market in markets] if step == 0 else []
        rates = self._rates(step, ts) if step % RATE_STEPS == 0 else []
        marks = [market.mark(step, ts) for market in markets]
        moves = [event for market in markets for event in market.moves(step, ts, taken)]
        return [*listings, *rates, *marks, *moves]

    def _rates(self, step: int, ts: int) -> list[Rate]:
        coins = {
            market.instrument.base: market.index(step) for market in self.contracts.values() if market.instrument.is_inverse
        }
        return [Rate(currency, price, ts) for currency, price in {"USDT": "1", "USDC": "0.9998", **coins}.items()]


def step_to_resume(settled: Collection[int]) -> int:
    """The first step that may not be completely settled; `settled` is the last settled sequence of each contract.

    The contract that is furthest behind decides. The service recognises repeated events of the others by their sequence.
    """
    return min(settled, default=0) // SEQ_PER_STEP


class ContractMarket:
    """The market of one contract."""

    def __init__(self, seed: str, instrument: Instrument, currency: CurrencyConfig) -> None:
        self.instrument = instrument
        self._name = f"{seed}:{instrument.symbol}"
        self._contract = contract_of(instrument.specification(), currency.decimals, currency.decimals_default)
        self._prices = Prices(seed, instrument, self._contract.price_decimals)
        self._stakes = Stakes(seed, instrument, self._contract, self._prices)

    def listing(self) -> Listing:
        """The event that lists the contract."""
        return Listing(self.instrument.specification())

    def is_traded(self, step: int) -> bool:
        """Whether the contract is open before a step."""
        return self.instrument.settles is None or step <= self.instrument.settles

    def index(self, step: int) -> str:
        """The index price of a step."""
        return self._text(self._prices.index(step))

    def mark(self, step: int, ts: int) -> Mark:
        """The mark price of a step."""
        return Mark(self.instrument.symbol, self._text(self._prices.mark(step)), ts, index_price=self.index(step))

    def moves(self, step: int, ts: int, taken: Taken) -> Iterator[Event]:
        """Liquidation fills and position changes: first the ends, then the openings. Step 0 has all open positions.

        The step in which the contract is settled has only that.
        """
        if step == self.instrument.settles:
            yield Settle(self.instrument.symbol, step * SEQ_PER_STEP + 1, self._text(self._prices.mark(step)), ts)
            return
        if step == 0:
            begun = self._stakes.open_at_start()
        else:
            yield from self._endings(self._stakes.ending(step), step * SEQ_PER_STEP, ts, taken)
            yield from self._takeovers(step, ts)
            begun = self._stakes.beginning(step)
        for stake in begun:
            yield self.position(stake, self.left(stake, taken), ts)

    def held(self, account: str, side: Side, step: int) -> Stake | None:
        """The position that an account has on a side at the end of a step, before deleveraging."""
        stake = self._stakes.held(account, step)
        return stake if stake and stake.side == side else None

    @property
    def settle_decimals(self) -> int:
        """The decimals of amounts in the settlement currency."""
        return self._contract.settle_decimals

    @property
    def accounts(self) -> Sequence[str]:
        """All accounts. The first SLOTS of them always have a position."""
        return self._stakes.accounts

    def closing(self, account: str, step: int) -> Closing | None:
        """The end of the position of one of the first SLOTS accounts in this step, if it ends then; for linear contracts."""
        return self._stakes.closing(account, step)

    def holding(self, stake: Stake) -> Holding:
        """The key of a position."""
        return Holding(self.instrument.symbol, stake.account, stake.entry_price)

    def is_open(self, holding: Holding, step: int) -> bool:
        """Whether a position is open at the end of a step."""
        stake = self._stakes.held(holding.account, step)
        return stake is not None and self.holding(stake) == holding

    def left(self, stake: Stake, taken: Taken) -> int:
        """The lots of a position that remain after ADL."""
        return stake.lots - taken.get(self.holding(stake), 0)

    def _endings(self, ended: Iterable[Stake], seq: int, ts: int, taken: Taken) -> Iterator[Event]:
        for stake in ended:
            if stake.exit_price is not None:
                seq += 1
                if lots := self.left(stake, taken):
                    yield self._fill(stake, lots, stake.exit_price, seq, ts)
            yield self.position(stake, 0, ts)

    def _takeovers(self, step: int, ts: int) -> Iterator[Event]:
        for seq, stake in enumerate(self._stakes.taken_over(step), step * SEQ_PER_STEP + FIRST_TAKEOVER):
            draw = seeded(self._name, "takeover", seq)
            yield Takeover(
                self.instrument.symbol,
                seq,
                closing_side(stake.side),
                stake.lots,
                self._text(stake.bankruptcy_price),
                ts,
                identifier(draw),
                identifier(draw),
                stake.account,
            )
            yield self.position(stake, 0, ts)

    def unwind(self, step: int, held: int, ts: int) -> Unwind | None:
        """The unwind of a step, if it has one: an equal part of the held lots in each of the steps that are left."""
        thin = self.instrument.thin
        since = steps_into(thin.first, step) if thin else -1
        if since not in UNWIND_STEPS or not held:
            return None
        lots = -(-held // (len(UNWIND_STEPS) - UNWIND_STEPS.index(since)))
        seq = step * SEQ_PER_STEP + UNWINDING
        return Unwind(self.instrument.symbol, seq, "sell", lots, self._text(self._prices.mark(step)), ts)

    def is_of_takeover(self, price: str, step: int) -> bool:
        """Whether a price is the bankruptcy price of a takeover of the latest time with a thin book."""
        thin = self.instrument.thin
        began = step - steps_into(thin.first, step) if thin else step
        return any(
            self._text(stake.bankruptcy_price) == price
            for after, _ in (thin.overshoots if thin and began <= step else ())
            for stake in self._stakes.taken_over(began + after)
        )

    def _text(self, price: int) -> str:
        return format_units(price, self._contract.price_decimals)

    def _fill(self, stake: Stake, lots: int, exit_price: int, seq: int, ts: int) -> Fill:
        draw = seeded(self._name, "fill", seq)
        return Fill(
            symbol=self.instrument.symbol,
            seq=seq,
            side=closing_side(stake.side),
            lots=lots,
            price=self._text(exit_price),
            bankruptcy_price=self._text(stake.bankruptcy_price),
            ts=ts,
            trade_id=identifier(draw),
            order_id=identifier(draw),
            account=stake.account,
        )

    def position(self, stake: Stake, lots: int, ts: int) -> Position:
        """The event that sets an account's position to so many lots."""
        return Position(
            symbol=self.instrument.symbol,
            account=stake.account,
            lots=toward(stake.side, lots),
            entry_price=self._text(stake.entry_price),
            margin=format_units(self._stakes.margin(stake, lots), self._contract.settle_decimals),
            ts=ts,
        )
