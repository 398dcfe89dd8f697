"""How a changed configuration of policies becomes part of what happened: as an event in each partition's stream."""

from fundsvc.config import Config
from fundsvc.core.events import PolicyChange
from fundsvc.core.policy import Policies
from fundsvc.streams.client import Client, server_time_ms, stream_key
from fundsvc.streams.producer import Producer
from fundsvc.wire import encode


class Proposals:
    """What one process proposes: its configuration, once to each partition that it comes to own.

    Engines with different configurations may own a partition in turn. Each proposes its own once after it started, and none
    changes back what another proposed later.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._compared: set[int] = set()

    async def propose(self, client: Client, partition: int, recorded: Policies) -> int | None:
        """Appends the configured policies where they differ from the recorded ones; returns their version, if it did."""
        configured = self._config.policy.version(recorded.version + 1)
        if partition in self._compared or configured.same_rules(recorded):
            self._compared.add(partition)
            return None
        now_ms = await server_time_ms(client, stream_key(partition))
        change = PolicyChange(configured.version, configured.default, configured.contracts, now_ms)
        producer = Producer.configured(client, self._config.stream)
        await producer.append_bodies(partition, "json", [encode([change])])
        self._compared.add(partition)
        return configured.version
