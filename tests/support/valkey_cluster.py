"""A Valkey Cluster of three primaries, each with a replica, for tests that kill and freeze its nodes."""

import asyncio
import signal
import subprocess
from contextlib import asynccontextmanager

import redis.exceptions
from eventually import eventually
from ports import free_port
from redis import Redis

from fundsvc.config.settings import StreamConfig
from fundsvc.local.servers import valkey_binary

PRIMARIES = 3
SLOTS = 16384
NODE_TIMEOUT_MS = 1500
"""The cluster declares a silent node failed after this time."""


class Node:
    """A server of a cluster."""

    def __init__(self, directory, port, bus):
        self.port, self.bus = port, bus
        self.address = f"127.0.0.1:{port}"
        directory.mkdir()
        self._log = (directory / "log").open("ab")
        self._command = [
            *(valkey_binary(), "--port", str(port), "--cluster-port", str(bus), "--bind", "127.0.0.1", "--save", ""),
            *("--cluster-enabled", "yes", "--cluster-node-timeout", str(NODE_TIMEOUT_MS), "--appendonly", "no"),
            *("--cluster-replica-validity-factor", "0", "--repl-diskless-sync-delay", "0"),
        ]
        self._directory = directory
        self.start()

    def start(self):
        self._process = subprocess.Popen(self._command, cwd=self._directory, stdout=self._log, stderr=self._log)

    def ask(self, *command):
        """Runs a command; returns its reply."""
        with Redis(port=self.port, socket_timeout=2) as client:
            return client.execute_command(*command)

    def is_up(self):
        try:
            return self.ask("PING")
        except (redis.exceptions.RedisError, OSError):
            return False

    def kill(self):
        self._process.kill()
        self._process.wait()

    def freeze(self):
        self._process.send_signal(signal.SIGSTOP)

    def wake(self):
        self._process.send_signal(signal.SIGCONT)

    def close(self):
        self.wake()
        self.kill()
        self._log.close()


class Cluster:
    """A cluster whose slots are covered."""

    def __init__(self, nodes):
        self.nodes = nodes
        self.primaries = nodes[:PRIMARIES]

    def config(self, partitions, **more):
        """Returns the configuration of streams on the cluster."""
        return StreamConfig(mode="cluster", url=f"redis://{self.nodes[0].address}", partitions=partitions, **more)

    def primary_of(self, key):
        """Returns the node that owns the slot of a key."""
        slot = self.nodes[-1].ask("CLUSTER", "KEYSLOT", key)
        for first, last, (_, port, *_), *_ in self._slots():
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == port)
        raise LookupError(key)

    def move(self, key, how):
        """Moves the slot of a key to another primary: its keys one by one, or all at once, which Valkey 9 can."""
        source = self.primary_of(key)
        target = next(node for node in self.primaries if node is not source)
        slot, name = source.ask("CLUSTER", "KEYSLOT", key), target.ask("CLUSTER", "MYID")
        if how == "at once":
            source.ask("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", name)
            return
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.ask("CLUSTER", "MYID"))
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", name)
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 10):
            source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        for node in (target, source):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", name)

    def _slots(self):
        """Returns the raw reply of CLUSTER SLOTS of the first node that answers."""
        for node in reversed(self.nodes):
            if node.is_up():
                return node.ask("CLUSTER", "SLOTS")
        raise LookupError("no node answers")


@asynccontextmanager
async def valkey_cluster(directory):
    """Runs a cluster in a directory."""
    nodes = [Node(directory / f"node{number}", free_port(), free_port()) for number in range(2 * PRIMARIES)]
    try:
        for node in nodes:
            await eventually(node.is_up)
        await asyncio.to_thread(_join, nodes)
        await eventually(lambda: all(_knows_all(node, len(nodes)) for node in nodes))
        for primary, replica in zip(nodes[:PRIMARIES], nodes[PRIMARIES:], strict=True):
            replica.ask("CLUSTER", "REPLICATE", primary.ask("CLUSTER", "MYID"))
        await eventually(lambda: all(_is_ready(node) for node in nodes))
        yield Cluster(nodes)
    finally:
        for node in nodes:
            node.close()


def _join(nodes):
    share = -(-SLOTS // PRIMARIES)
    for number, primary in enumerate(nodes[:PRIMARIES]):
        primary.ask("CLUSTER", "ADDSLOTSRANGE", number * share, min(SLOTS, (number + 1) * share) - 1)
    for number, node in enumerate(nodes):
        node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        if node is not nodes[0]:
            node.ask("CLUSTER", "MEET", "127.0.0.1", nodes[0].port, nodes[0].bus)


def _knows_all(node, count):
    return len(node.ask("CLUSTER", "NODES").splitlines()) == count


def _is_ready(node):
    link = node.ask("INFO", "replication").get("master_link_status", "up")
    return b"cluster_state:ok" in node.ask("CLUSTER", "INFO") and link == "up"
