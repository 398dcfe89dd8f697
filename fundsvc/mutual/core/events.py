"""The events of a pool's stream. The structs define the wire format, in which names are camelCase.

Amounts are decimal text, because only the pool determines their scale. `seq` rises strictly per pool.
"""

from typing import Annotated

import msgspec

from fundsvc.core.events import Account, Identifier, Positive, Symbol, Timestamp
from fundsvc.mutual.core.terms import Rules, Tag

PoolName = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Amount = Annotated[str, msgspec.Meta(min_length=1, max_length=64, extra_json_schema={"pattern": r"^-?[0-9]+(\.[0-9]+)?$"})]
"""A plain decimal number, possibly negative. The pattern is only part of the schema; the parser rejects other text."""


class Event(
    msgspec.Struct, tag_field="type", rename="camel", forbid_unknown_fields=True, omit_defaults=True, frozen=True, gc=False
):
    """The base of all events of a pool; `ts` is in ms, by the exchange's clock."""

    pool: PoolName
    ts: Timestamp


class Transfer(Event, frozen=True, tag="transfer"):
    """Moves money into (+) or out of (-) an insurance account."""

    seq: Positive
    account: Account
    amount: Amount
    id: Identifier


class Enable(Event, frozen=True, tag="enable"):
    """Begins the cover of a funded account."""

    seq: Positive
    account: Account


class Disable(Event, frozen=True, tag="disable"):
    """Ends the cover of an account."""

    seq: Positive
    account: Account


class Trade(Event, frozen=True, tag="trade"):
    """A closed position, or the closed part of one. `realised_pnl` is the price difference only, before fees and funding.

    `opened_at` is the time at which the position was first opened, however it grew.
    """

    seq: Positive
    account: Account
    symbol: Symbol
    trade_id: Identifier
    opened_at: Timestamp
    realised_pnl: Amount
    volume: Amount
    tags: tuple[Tag, ...] = ()


class TopUp(Event, frozen=True, tag="topUp"):
    """The operator adds money to the pool."""

    seq: Positive
    amount: Amount
    id: Identifier


class Cancel(Event, frozen=True, tag="cancel"):
    """Ends a policy of an account: what is due becomes payable, the rest is forfeited."""

    seq: Positive
    account: Account
    policy: Positive


class Payout(Event, frozen=True, tag="payout"):
    """The exchange fetches all that is payable to an account, including what is due of its active policies."""

    seq: Positive
    account: Account


class Tick(Event, frozen=True, tag="tick"):
    """Moves the pool's time. The owner of the partition appends one a minute, so that a replay has the same time."""


class TermsChange(Event, frozen=True, tag="terms"):
    """Applies new terms to a pool; policies keep the terms of their issue.

    The owner of the partition appends the event when the configuration has changed. Versions count from 1.
    """

    version: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
    rules: Rules


Numbered = Transfer | Enable | Disable | Trade | TopUp | Cancel | Payout
"""Events with a sequence."""
