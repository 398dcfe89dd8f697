"""Stores the checkpoints of streams beside the ledger, in the transactions of commits.

A checkpoint is therefore true of every state of the database that has it. The same statements serve the events of a partition
(`pool` is "") and those of a pool, whose home the partition is.
"""

from typing import Any, NamedTuple

import asyncpg

from fundsvc.core.checkpoints import Checkpoint, Saving
from fundsvc.store.database import SQL


class StoredCheckpoint(NamedTuple):
    """A checkpoint, and for how long it has been stored, in seconds."""

    checkpoint: Checkpoint
    age: float


async def load_checkpoints(connection: asyncpg.Connection, partition: int, pool: str = "") -> list[StoredCheckpoint]:
    """Returns the checkpoints of a stream in the order in which they were stored."""
    rows = await connection.fetch(SQL["load_checkpoints"], partition, pool)
    return [StoredCheckpoint(Checkpoint(*checkpoint), age) for *checkpoint, age in rows]


def checkpoint_parameters(saving: Saving, partition: int, pool: str = "") -> tuple[Any, ...]:
    """Returns the parameters of the statement `commit_checkpoint`."""
    return partition, pool, *saving.checkpoint, saving.dropped
