"""What an engine gives to the sessions of a partition that it owns."""

from concurrent.futures import Executor
from typing import NamedTuple

from fundsvc.engine.continuity import Streams
from fundsvc.store.database import CellPool


class Ownership(NamedTuple):
    """A partition that an engine owns, and what its sessions share. `worker` runs long work."""

    streams: Streams
    pool: CellPool
    engine: str
    partition: int
    epoch: int
    worker: Executor
