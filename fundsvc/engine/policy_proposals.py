"""Appends a changed configuration of policies to each partition's stream, as an event."""

from fundsvc.config.settings import Config
from fundsvc.core.events import PolicyChange
from fundsvc.core.policy import Policies
from fundsvc.streams.client import StreamClient, server_time_ms, stream_key
from fundsvc.streams.producer import Producer
from fundsvc.wire.codec import encode


class Proposals:
    """The policies that a process proposes, once to each partition that it comes to own.

    Engines with different configurations may own a partition in turn. Each proposes its own configuration once after its
    start, so they do not alternate.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._compared: set[int] = set()

    async def propose(self, client: StreamClient, partition: int, recorded: Policies) -> int | None:
        """Appends the configured policies if they differ from the recorded ones; returns their version, or None."""
        if partition in self._compared:
            return None
        configured = self._config.policy.version(recorded.version + 1)
        if configured.same_rules(recorded):
            self._compared.add(partition)
            return None
        now_ms = await server_time_ms(client, stream_key(partition))
        change = PolicyChange(configured.version, configured.default, configured.contracts, now_ms)
        producer = Producer.configured(client, self._config.stream)
        await producer.append_bodies(partition, "json", [encode([change])])
        self._compared.add(partition)
        return configured.version
