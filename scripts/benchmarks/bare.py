"""The ceiling of an HTTP service in Python: aiohttp with one route and a constant answer.

    bare.py BODY_FILE HEADERS

answers GET /api/v1/insurance-fund/{symbol} with the bytes of a file and the given number of additional headers. Prints its
port.
"""

import asyncio
import sys
from pathlib import Path

import uvloop
from aiohttp import web


async def main(body: bytes, headers: int) -> None:
    """Serves until it is killed."""

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(body=body, content_type="application/json", headers=own)

    own = {f"gw-header-{number}": "1234567" for number in range(headers)}
    application = web.Application()
    application.router.add_get("/api/v1/insurance-fund/{symbol}", answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1]).read_bytes(), int(sys.argv[2])))
