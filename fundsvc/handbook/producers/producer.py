"""Connects a matching engine to fundsvc: passes its events on, and passes ADL rounds to it.

Reads events from standard input, one JSON object per line, without `seq` and `prevSeq`. Numbers each event, writes it to the
journal, then sends it. After a restart or a lost connection it resends what the service has not settled. Prints each ADL round
once; the engine answers it with adlFill, position and adlEnd.

    FUNDSVC_STREAM=redis://localhost:6379 FUNDSVC_API=http://localhost:8080 FUNDSVC_TOKEN=... python producer.py journal.ndjson
"""

import asyncio
import json
import os
import sys
import time
import urllib.request
import zlib

from redis.asyncio import Redis
from redis.exceptions import RedisError

NUMBERED = {"fill", "takeover", "unwind", "settle", "adlFill", "adlEnd"}
STATES = {"mark", "position"}
EVENTS_PER_MESSAGE = 100
RETRY_SECONDS = 1


class Producer:
    """Numbers, journals and sends events. `lock` keeps the order of the journal in the streams."""

    def __init__(self, path):
        self.stream = Redis.from_url(os.environ["FUNDSVC_STREAM"])
        self.lock = asyncio.Lock()
        self.partitions = 0
        self.epoch = None  # the stream epoch of the last cursor
        self.sequences = {}  # the last one of each contract: of numbered events, and of marks and positions
        self.positions = {}  # by symbol, and there by account and side
        self.rounds = set()  # a round may be announced again
        self.journal = open(path, "a+b")
        self.journal.seek(0)
        self.events = [json.loads(line) for line in self.journal]
        for event in self.events:
            self.remember(event)

    def remember(self, event):
        """Updates the memory with an event of the journal."""
        symbol, kind = event.get("symbol"), event["type"]
        if "seq" in event:
            self.sequences[symbol, kind in STATES] = event["seq"]
        if kind == "position":
            key = event["account"], event.get("positionSide", "BOTH")
            self.positions.setdefault(symbol, {})[key] = event
        elif kind == "adlAck":
            self.rounds.add((symbol, event["adl"], event["round"]))
        elif kind == "settle":  # ends the contract; in its next generation the numbers of orders begin at 1 again
            self.positions.pop(symbol, None)
            self.rounds = {known for known in self.rounds if known[0] != symbol}

    async def emit(self, event):
        """Numbers an event, writes it to the journal, and sends it. It is not lost if sending fails."""
        async with self.lock:
            self.record([event])
            try:
                await self.send([event])
            except (OSError, RedisError):
                await self.resume()

    def record(self, events):
        """Numbers events and writes them to the journal."""
        for event in events:
            key = event.get("symbol"), event["type"] in STATES
            if event["type"] in NUMBERED:
                event["prevSeq"] = self.sequences.get(key, 0)
            if event["type"] in NUMBERED | STATES:
                event["seq"] = self.sequences.get(key, 0) + 1
            self.remember(event)
            self.events.append(event)
            self.journal.write(json.dumps(event).encode() + b"\n")
        self.journal.flush()
        os.fsync(self.journal.fileno())

    async def send(self, events):
        """Appends events to the streams of their partitions, in order."""
        routed = {}
        for event in events:
            for partition in self.partitions_of(event):
                routed.setdefault(partition, []).append(event)
        for partition, run in routed.items():
            for start in range(0, len(run), EVENTS_PER_MESSAGE):
                body = json.dumps(run[start : start + EVENTS_PER_MESSAGE])
                await self.stream.xadd(f"fundsvc:{{{partition}}}:in", {"json": body})

    def partitions_of(self, event):
        """Returns the partition of an event's contract; a rate belongs to all partitions."""
        if event["type"] == "rate":
            return range(self.partitions)
        symbol = event["contract"]["symbol"] if event["type"] == "contract" else event["symbol"]
        return [zlib.crc32(symbol.encode()) % self.partitions]

    async def resume(self):
        """Sends everything that is not settled again; retries until that succeeds.

        Marks and positions have sequences of their own, so the service ignores those that it knows. If the stream may have lost
        events, snapshots make the books complete.
        """
        while True:
            try:
                cursor = await asyncio.to_thread(read_cursor)
                self.partitions = len(cursor["partitions"])
                settled = {contract["symbol"]: contract["seq"] for contract in cursor["contracts"]}
                await self.send([e for e in self.events if e["type"] not in NUMBERED or e["seq"] > settled.get(e["symbol"], 0)])
                if cursor["streamEpoch"] != self.epoch:
                    for symbol in list(self.positions):
                        await self.send(self.snapshot(symbol))
            except (OSError, RedisError) as fault:
                print(f"{fault}: retries in {RETRY_SECONDS} s", file=sys.stderr)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                self.epoch = cursor["streamEpoch"]
                return

    def snapshot(self, symbol):
        """Returns a snapshot of a contract's positions. The journal contains only the positions: an old snapshot that is sent
        again would close later positions.
        """
        ts = time.time_ns() // 1_000_000
        frame = {"type": "snapshot", "symbol": symbol, "ts": ts}
        positions = [{**position, "ts": ts} for position in self.positions[symbol].values() if position["lots"]]
        self.record(positions)
        return [{**frame, "phase": "begin"}, *positions, {**frame, "phase": "end"}]

    async def pass_rounds(self):
        """Acknowledges and prints each ADL round once."""
        after = {f"fundsvc:{{{partition}}}:adl": "0-0" for partition in range(self.partitions)}
        while True:
            try:
                found = await self.stream.xread(after, block=1000)
            except (OSError, RedisError):
                async with self.lock:
                    await self.resume()
                continue
            for key, messages in found:
                for stream_id, fields in messages:
                    after[key.decode()] = stream_id
                    await self.pass_round(json.loads(fields[b"json"]))

    async def pass_round(self, announced):
        """Acknowledges and prints a round, unless it is known. The journal remembers it by its acknowledgement."""
        known = {name: announced[name] for name in ("symbol", "adl", "round")}
        if tuple(known.values()) not in self.rounds:
            await self.emit({"type": "adlAck", **known, "ts": time.time_ns() // 1_000_000})
            print(json.dumps(announced), flush=True)


def read_cursor():
    """Returns what the service has settled."""
    headers = {"Authorization": f"Bearer {os.environ['FUNDSVC_TOKEN']}"}
    request = urllib.request.Request(f"{os.environ['FUNDSVC_API']}/api/v1/ingest/cursor", headers=headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)["data"]


async def main():
    producer = Producer(sys.argv[1])
    async with producer.lock:
        await producer.resume()
    passing = asyncio.create_task(producer.pass_rounds())
    while line := await asyncio.to_thread(sys.stdin.readline):
        await producer.emit(json.loads(line))
    passing.cancel()


asyncio.run(main())
