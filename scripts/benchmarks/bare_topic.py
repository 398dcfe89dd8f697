"""The ceiling of telling many clients in Python: uvloop, a list of connections, and frames that were made beforehand.

    bare_topic.py FILE SECONDS

FILE is a list in MessagePack: what each client is sent at once, again and again SECONDS later. A line on standard input
begins it. Speaks just enough WebSocket for the benchmark's own clients; prints its port.
"""

import asyncio
import sys
from pathlib import Path

import msgspec
import uvloop
from subscribers import ACK, WELCOME

UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


class Client(asyncio.Protocol):
    """A connection that is greeted, acknowledged, and then told."""

    def __init__(self, told: list[asyncio.Transport]) -> None:
        self._told = told
        self._greeted = False
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes the connection."""
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:  # noqa: ARG002 - its end is all that counts
        """The first that comes is the request to upgrade, the second the subscription."""
        if not self._greeted:
            self._greeted = True
            self._transport.write(UPGRADED + WELCOME)
        else:
            self._transport.write(ACK)
            self._told.append(self._transport)


async def main(groups: list[bytes], seconds: float) -> None:
    """Tells everything once begun, then waits to be killed."""
    loop = asyncio.get_running_loop()
    told: list[asyncio.Transport] = []
    server = await loop.create_server(lambda: Client(told), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    due = loop.time()
    for group in groups:
        for transport in told:
            transport.write(group)
        due += seconds
        await asyncio.sleep(due - loop.time())
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(msgspec.msgpack.decode(Path(sys.argv[1]).read_bytes(), type=list[bytes]), float(sys.argv[2])))
