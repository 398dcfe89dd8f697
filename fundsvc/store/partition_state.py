"""How a partition stands beside its offset: whether it is halted, what its stream must still hold, in which units it counts."""

from collections import defaultdict
from collections.abc import Mapping

from fundsvc.core.batch import Offset
from fundsvc.store.database import SQL, Pool, connect, faults
from fundsvc.store.reader import fetch


async def note_halted(pool: Pool, partition: int, epoch: int, reason: str) -> None:
    """Notes why a partition is halted, "" when it goes on, for as long as the epoch is the owner's; raises StoreFault."""
    await fetch(pool, "halt", partition, epoch, reason)


async def trim_bounds(pool: Pool, partition: int) -> tuple[Offset, list[str]]:
    """The offset, and the messages after which books are read from the stream; raises StoreFault."""
    ((*offset, kept),) = await fetch(pool, "trim_bounds", partition)
    return Offset(*offset), kept


async def check_decimals(dsn: str, decimals: Mapping[str, int], default: int) -> None:
    """Raises ValueError where the configuration has other decimals of a currency than the ledger, and StoreFault.

    A new contract would count in other units than the currency's funds.
    """
    scales: dict[str, dict[int, str]] = defaultdict(dict)
    async with connect(dsn, "fundsvc decimals check") as connection:
        with faults():
            for currency, found, symbol in await connection.fetch(SQL["scales"]):
                scales[currency][found] = symbol
    for currency, known in scales.items():
        configured = decimals.get(currency, default)
        if configured not in known:
            found, symbol = next(iter(known.items()))
            raise ValueError(
                f"the ledger has {currency} with {found} decimals ({symbol}), the configuration with {configured}:"
                f" set {currency} = {found} in [currency.decimals]"
            )
