"""The terms of a pool: as configured (`Terms`), and as exact integers (`Rules`), which the pool applies and its ledger seals.

Money in `Terms` is in whole units of the pool's asset, in `Rules` in atoms of 10**-decimals. Rates and health are ppm.
"""

from decimal import Decimal
from functools import cached_property
from hashlib import sha256
from itertools import pairwise
from typing import Annotated, Literal

import msgspec

from fundsvc.core.numbers import CURRENCY_DECIMALS_MAX, INT64_MAX, format_units, to_units

PPM = 10**6
SECOND_MS, HOUR_MS, DAY_MS = 1_000, 3_600_000, 86_400_000

Tag = Literal["copy", "grid", "subaccount", "bonus", "self", "hedge"]
TierMode = Literal["marginal", "slab"]
Rate = Annotated[int, msgspec.Meta(ge=0, le=PPM)]
Span = Annotated[int, msgspec.Meta(ge=1, le=10**13)]
Atoms = Annotated[int, msgspec.Meta(ge=0, le=INT64_MAX)]
PositiveAtoms = Annotated[int, msgspec.Meta(ge=1, le=INT64_MAX)]
Decimals = Annotated[int, msgspec.Meta(ge=0, le=CURRENCY_DECIMALS_MAX)]
LiveMax = Annotated[int, msgspec.Meta(ge=1, le=10_000)]
Tier = tuple[Atoms, Rate]
"""The lower end of a band of profits, and the rate of the band."""

Step = tuple[Annotated[int, msgspec.Meta(ge=0, le=INT64_MAX)], Rate]
"""The health from which a release rate applies, and the rate."""

FIXED = ("decimals", "cycle_ms", "anchor_ms")
"""Rules that a pool keeps for ever: its amounts and its schedules are in these units."""


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """The exact terms of a pool: atoms, ppm and milliseconds. A version of them is sealed in each entry, by `digest`."""

    decimals: Decimals
    min_funding: Atoms
    threshold: PositiveAtoms
    face: PositiveAtoms
    min_loss: Atoms
    exclude: tuple[Tag, ...]
    exclude_losses: tuple[Tag, ...]
    symbols: tuple[str, ...] | None
    waiting_ms: Span
    cycle_ms: Span
    anchor_ms: Annotated[int, msgspec.Meta(ge=0, le=10**15)]
    premium_tiers: tuple[Tier, ...]
    tier_mode: TierMode
    platform_fee: Rate
    reserve_floor: Atoms
    release: tuple[Step, ...]
    cap_rate: Rate
    expiry_ms: Span
    live_max: LiveMax
    activity_ms: Span
    activity_volume: Atoms

    def __post_init__(self) -> None:
        _check_rising("premium_tiers", [start for start, _ in self.premium_tiers])
        _check_rising("release", [start for start, _ in self.release])
        rates = [rate for _, rate in self.premium_tiers]
        if any(later < earlier for earlier, later in pairwise(rates)):
            raise ValueError(f"premium_tiers: rates {rates} fall: a higher tier must have the same rate or a higher one")
        if self.release[0][0]:
            raise ValueError(f"release begins at health {self.release[0][0]}: let the first step begin at 0")
        if not self.cap:
            raise ValueError(f"cap {self.cap_rate} ppm of the face is less than one atom: raise cap or face")

    @cached_property
    def cap(self) -> int:
        """The most that a policy is paid over its life, in atoms (rule 4)."""
        return self.face * self.cap_rate // PPM

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that identify these rules: SHA-256 of their MessagePack map in the order of the fields."""
        return sha256(msgspec.msgpack.encode(self)).digest()

    @property
    def lowest_rate(self) -> int:
        """The rate of the first profit of a day, in ppm."""
        start, rate = self.premium_tiers[0]
        return 0 if start else rate

    def release_rate(self, available: int, caps_left: int) -> int:
        """Returns the release rate (ppm) of the highest step with `health_from <= available / caps_left` (rule 5d)."""
        return max((start, rate) for start, rate in self.release if start * caps_left <= available * PPM)[1]

    def cutoff_after(self, ts: int) -> int:
        """Returns the first cut-off later than a time; both in ms."""
        return ts - (ts - self.anchor_ms) % self.cycle_ms + self.cycle_ms

    def cutoff_from(self, ts: int) -> int:
        """Returns the first cut-off at or after a time; both in ms."""
        return ts + (self.anchor_ms - ts) % self.cycle_ms

    def last_cutoff_with(self, ts: int) -> int:
        """Returns the last cut-off T at which a trade at `ts` counts for the activity test: `T - activity_ms <= ts`."""
        end = ts + self.activity_ms
        return end - (end - self.anchor_ms) % self.cycle_ms

    def same_units(self, other: "Rules") -> bool:
        """Whether both have the rules that a pool keeps for ever."""
        return all(getattr(self, name) == getattr(other, name) for name in FIXED)


class Terms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The terms of a pool as configured, `[mutual.pools.NAME]`. The defaults are the preset `xt_shape`.

    XT has published `min_funding` (10 USDT); that there are tiers and that inactivity freezes. All other numbers are ours.
    """

    preset: Literal["xt_shape"] = "xt_shape"
    decimals: Decimals = 6
    min_funding: Decimal = Decimal(10)
    threshold: Decimal = Decimal(100)
    face: Decimal = Decimal(100)
    min_loss: Decimal = Decimal(1)
    exclude: tuple[Tag, ...] = ("copy", "grid", "subaccount", "bonus")
    exclude_losses: tuple[Tag, ...] = ("self", "hedge")
    symbols: tuple[str, ...] | None = None
    waiting_hours: Annotated[int, msgspec.Meta(ge=1, le=72)] = 24
    cycle_seconds: Annotated[int, msgspec.Meta(ge=1, le=366 * 86_400)] = 86_400
    cycle_anchor: Annotated[int, msgspec.Meta(ge=0, le=10**11)] = 0
    premium_tiers: tuple[tuple[Decimal, Rate], ...] = (
        (Decimal(0), 80_000),
        (Decimal(1_000), 90_000),
        (Decimal(10_000), 100_000),
    )
    tier_mode: TierMode = "marginal"
    platform_fee: Rate = 0
    reserve_floor: Decimal = Decimal(0)
    release: tuple[Step, ...] = ((0, 100_000),)
    cap: Rate = 80_000
    expiry_days: Annotated[int, msgspec.Meta(ge=1, le=3_650)] = 90
    live_max: LiveMax = 1_000
    activity_days: Annotated[int, msgspec.Meta(ge=1, le=3_650)] = 7
    activity_volume: Decimal = Decimal(1_000)

    def __post_init__(self) -> None:
        self.rules()

    def rules(self) -> Rules:
        """Returns the exact terms; raises ValueError that names the key, its value and what is allowed."""
        fields = {
            "decimals": self.decimals,
            "min_funding": self._atoms("min_funding"),
            "threshold": self._atoms("threshold"),
            "face": self._atoms("face"),
            "min_loss": self._atoms("min_loss"),
            "exclude": tuple(sorted(set(self.exclude))),
            "exclude_losses": tuple(sorted(set(self.exclude_losses))),
            "symbols": None if self.symbols is None else tuple(sorted(set(self.symbols))),
            "waiting_ms": self.waiting_hours * HOUR_MS,
            "cycle_ms": self.cycle_seconds * SECOND_MS,
            "anchor_ms": self.cycle_anchor * SECOND_MS,
            "premium_tiers": tuple((self._exact("premium_tiers", start), rate) for start, rate in self.premium_tiers),
            "tier_mode": self.tier_mode,
            "platform_fee": self.platform_fee,
            "reserve_floor": self._atoms("reserve_floor"),
            "release": self.release,
            "cap_rate": self.cap,
            "expiry_ms": self.expiry_days * DAY_MS,
            "live_max": self.live_max,
            "activity_ms": self.activity_days * DAY_MS,
            "activity_volume": self._atoms("activity_volume"),
        }
        try:
            return msgspec.convert(fields, Rules)
        except msgspec.ValidationError as error:
            raise ValueError(str(error)) from None

    def _atoms(self, name: str) -> int:
        return self._exact(name, getattr(self, name))

    def _exact(self, name: str, amount: Decimal) -> int:
        try:
            return to_units(amount, self.decimals)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


def farming_warning(rules: Rules) -> str | None:
    """Returns a warning if losses brought about on purpose may pay back more than they cost; None otherwise.

    Being long in one account and short in another makes a loss of `threshold` for a premium on as much at the lowest rate.
    """
    gain, cost = rules.face * rules.cap_rate, rules.threshold * rules.lowest_rate
    if gain <= cost:
        return None
    paid, premium = format_units(rules.cap, rules.decimals), format_units(cost // PPM, rules.decimals)
    return (
        f"these terms can be farmed: a policy pays up to {paid} (face * cap), and the profits opposite its losses cost"
        f" {premium} (threshold * lowest premium rate): lower cap or face, or raise threshold or the lowest rate"
    )


def _check_rising(name: str, starts: list[int]) -> None:
    if not starts or any(later <= earlier for earlier, later in pairwise(starts)):
        raise ValueError(f"{name}: {starts} do not rise: give at least one, each above the one before")


XT_SHAPE = Terms()
"""The preset."""
