"""Settles fills of a contract without an inventory, as an engine does, and prints fills per second.

It runs as a program on this revision and, in turns, on an earlier one, so it uses only what both have.
"""

import gc
import sys
import time

from fundsvc.core.events import Fill, Listing
from fundsvc.core.partition import Partition
from fundsvc.store.rows import copy_rows

FILLS = 100_000
BATCH = 1_000
SYMBOL = "XBTUSDTM"


def fills_per_second() -> float:
    """Measures the settle loop and the encoding of its entries for COPY."""
    partition = Partition(0, 1, [], {"USDT": 8}, 8)
    partition.apply(Listing({"symbol": SYMBOL, "settleCurrency": "USDT", "multiplier": "0.001", "isInverse": False}))
    fills = [
        Fill(
            SYMBOL,
            seq,
            "sell",
            100,
            f"{40_000 + seq % 90}.5",
            "40000",
            1_700_000_000_000 + seq,
            f"t{seq}",
            f"o{seq}",
            "account-1",
        )
        for seq in range(1, FILLS + 1)
    ]
    gc.collect()
    gc.disable()
    started = time.process_time()
    for first in range(0, FILLS, BATCH):
        for fill in fills[first : first + BATCH]:
            partition.apply(fill)
        batch = partition.take()
        copy_rows(batch.entries, batch.hashes)
    return FILLS / (time.process_time() - started)


if __name__ == "__main__":
    sys.stdout.write(f"{fills_per_second()}\n")
