"""Insurance fund and ADL endpoints of other venues, at their paths and in their formats, for clients written for them.

Each endpoint converts an answer of the service's own resources and computes nothing itself. The symbol of a contract is used
wherever a venue names a contract, pair or family. Currencies are settlement currencies.
"""

from collections.abc import Callable, Iterable

from fundsvc.api.adl import AdlResources
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
    adl: AdlResources,
    reader: Reader,
    histories: Histories,
    policy_of: Callable[[str], Policy],
) -> tuple[Endpoint, ...]:
    """Returns the endpoints of the named venues."""
    by_venue = {
        "binance": BinanceEndpoints(funds, adl).endpoints,
        "bybit": BybitEndpoints(funds, policy_of).endpoints,
        "gate": GateEndpoints(funds, histories, adl).endpoints,
        "okx": OkxEndpoints(summary, reader, histories).endpoints,
    }
    return tuple(endpoint for name in dict.fromkeys(names) for endpoint in by_venue[name])
