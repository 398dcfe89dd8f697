"""The ceiling of publishing to many clients in Python: uvloop, a list of connections, and prepared frames.

    bare_topic.py FILE SECONDS

FILE is a MessagePack list of byte strings; the server sends one to every client, then the next SECONDS later. A line on
standard input starts it. It implements only the parts of WebSocket that the clients of the benchmark need. Prints its port.
"""

import asyncio
import sys
from pathlib import Path

import msgspec
import uvloop
from subscribers import ACK, WELCOME

UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


class Client(asyncio.Protocol):
    """A connection that receives a welcome, an acknowledgement, and then pushes."""

    def __init__(self, subscribed: list[asyncio.Transport]) -> None:
        self._subscribed = subscribed
        self._greeted = False
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:  # noqa: ARG002 - its end is all that counts
        """Answers the upgrade request first, then the subscription."""
        if not self._greeted:
            self._greeted = True
            self._transport.write(UPGRADED + WELCOME)
        else:
            self._transport.write(ACK)
            self._subscribed.append(self._transport)


async def main(groups: list[bytes], seconds: float) -> None:
    """Publishes everything after the start, then serves until killed."""
    loop = asyncio.get_running_loop()
    subscribed: list[asyncio.Transport] = []
    server = await loop.create_server(lambda: Client(subscribed), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    due = loop.time()
    for group in groups:
        for transport in subscribed:
            transport.write(group)
        due += seconds
        await asyncio.sleep(due - loop.time())
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(msgspec.msgpack.decode(Path(sys.argv[1]).read_bytes(), type=list[bytes]), float(sys.argv[2])))
