"""What other venues' clients ask about insurance funds and ADL, at those venues' paths and in their words.

Thin translations: each says otherwise what our own resources answer, so nothing is computed a second time. A contract's symbol
stands wherever a venue names a contract, pair or family, and currencies are the settlement currencies.
"""

from collections.abc import Callable, Iterable

from fundsvc.api.adl import DeleveragingResources
from fundsvc.api.http.routes import Endpoint
from fundsvc.api.venues.binance import BinanceEndpoints
from fundsvc.api.venues.bybit import BybitEndpoints
from fundsvc.api.venues.facade import FundsReader
from fundsvc.api.venues.gate import GateEndpoints
from fundsvc.api.venues.okx import OkxEndpoints, SummaryReader
from fundsvc.config.settings import Venue
from fundsvc.core.policy import Policy
from fundsvc.store.reader import Reader
from fundsvc.store.venue_histories import Histories


def venue_endpoints(
    names: Iterable[Venue],
    funds: FundsReader,
    summary: SummaryReader,
    deleveraging: DeleveragingResources,
    reader: Reader,
    histories: Histories,
    policy_of: Callable[[str], Policy],
) -> tuple[Endpoint, ...]:
    """The paths of the venues that are named."""
    by_venue = {
        "binance": BinanceEndpoints(funds, deleveraging).endpoints,
        "bybit": BybitEndpoints(funds, policy_of).endpoints,
        "gate": GateEndpoints(funds, histories, deleveraging).endpoints,
        "okx": OkxEndpoints(summary, reader, histories).endpoints,
    }
    return tuple(endpoint for name in dict.fromkeys(names) for endpoint in by_venue[name])
