"""What the contracts of one partition share."""

from dataclasses import dataclass, field

from fundsvc.core.batch import Draft, RateState
from fundsvc.core.policy import Policies
from fundsvc.core.sequences import Sequences


@dataclass(slots=True)
class Shared:
    """What the markets of one partition share.

    `batch` is the draft of the next commit, `policies` the recorded policies by version, and `books_due` the symbols of the
    books to save with the next batches. `rates` are the latest rates by currency.
    `now_ms` is the time in the stream id of the current event. `postponed` counts the postponed events of books that are not
    loaded yet.
    """

    batch: Draft
    sequences: Sequences
    policies: dict[int, Policies]
    books_due: dict[str, None] = field(default_factory=dict)
    rates: dict[str, RateState] = field(default_factory=dict)
    now_ms: int = 0
    postponed: int = 0
