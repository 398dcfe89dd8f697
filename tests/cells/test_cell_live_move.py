"""A partition moves while the service runs."""

import asyncio

from eventually import eventually
from served import fill
from two_cells import MANY, PARTITION, cell_templates, cells, escalated, is_gone, owners, run_move, serving_cells, set_sizes

__all__ = ["cell_templates", "cells", "owners"]  # fixtures

FIRST = MANY[0]


async def test_partition_moves_while_the_service_runs(cells, owners, monkeypatch):
    set_sizes(monkeypatch, 100, 0.3)
    async with serving_cells(cells) as service:
        await escalated(service, FIRST, "ann")
        await service.shows(FIRST, 3)
        bullet = await service.http.post("/api/v1/bullet-public")
        answer = (await bullet.json())["data"]
        endpoint = answer["instanceServers"][0]["endpoint"]
        async with service.http.ws_connect(endpoint, params={"token": answer["token"]}) as socket:
            await socket.receive_json()
            await socket.send_json({"id": "1", "type": "subscribe", "topic": f"/insuranceFund/entry:{FIRST}", "after": 0})
            stop, sent = asyncio.Event(), []

            async def send():
                for seq in range(5, 10_000):
                    if stop.is_set():
                        return
                    status, body = await service.post(fill(FIRST, seq, price="39000.1"))
                    assert status == 200, body
                    sent.append(body["data"]["messages"][0]["id"])
                    await asyncio.sleep(0.01)

            async def read():
                while not stop.is_set():
                    for path in ("", "/history", "/inventory"):
                        status, _, body = await service.answer(f"/api/v1/insurance-fund/{FIRST}{path}")
                        assert status == 200, (path, body)
                    await asyncio.sleep(0.01)

            working = [asyncio.create_task(send()), asyncio.create_task(read())]
            await asyncio.sleep(0.3)
            moved = await run_move(cells)
            settled = await owners["b"].fetchval("SELECT last_id FROM partitions WHERE partition = $1", PARTITION)

            async def settles_again():
                return settled != await owners["b"].fetchval("SELECT last_id FROM partitions WHERE partition = $1", PARTITION)

            await eventually(settles_again)
            assert moved.paused_seconds < 5
            await asyncio.sleep(0.3)
            stop.set()
            await asyncio.gather(*working)
            await service.settled({PARTITION: sent[-1]})
            seqs = [
                row["seq"] for row in await owners["b"].fetch("SELECT seq FROM entries WHERE symbol = $1 ORDER BY entry", FIRST)
            ]
            fills = [seq for seq in seqs if seq >= 5]
            assert fills == list(range(5, 5 + len(sent)))
            pause = await owners["b"].fetchval(
                "SELECT max(gap) FROM (SELECT recorded_at - lag(recorded_at) OVER (ORDER BY entry) AS gap FROM entries) g"
            )
            assert pause.total_seconds() < 5
            received = []
            while len(received) < len(seqs):
                message = await socket.receive_json(timeout=10)
                received += [message["data"]["entry"]] if message["type"] == "message" else []
            assert received == list(range(1, len(seqs) + 1))
            await service.shows(FIRST, len(seqs))
            listed = await service.data("/api/v1/insurance-fund")
            assert [fund["symbol"] for fund in listed] == [FIRST]
            positions = await service.data("/api/v1/adl/deleveraged", "trader", account="ann")
            assert len(positions["dataList"]) == 1
        assert await is_gone(owners["main"])
