"""The state of a partition beside its offset: the reason why it is halted, what its stream must still contain, its units."""

from collections import defaultdict
from collections.abc import Mapping

from fundsvc.core.batch import Offset
from fundsvc.store.database import SQL, CellPool, connect, faults
from fundsvc.store.reader import fetch_in_cell


async def note_halted(pool: CellPool, partition: int, epoch: int, reason: str) -> None:
    """Records why a partition is halted, or "" when it continues, if `epoch` is still the owner's; raises StoreFault."""
    await fetch_in_cell(pool, "halt", partition, epoch, reason)


async def trim_bounds(pool: CellPool, partition: int) -> tuple[Offset, list[str]]:
    """Returns the offset, and the ids of the messages after which books are read from the stream; raises StoreFault."""
    ((*offset, kept),) = await fetch_in_cell(pool, "trim_bounds", partition)
    return Offset(*offset), kept


async def check_decimals(dsn: str, decimals: Mapping[str, int], default: int) -> None:
    """Raises ValueError if the configured decimals of a currency differ from those of the ledger, and StoreFault.

    A new contract would count in other units than the other funds of its currency.
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
