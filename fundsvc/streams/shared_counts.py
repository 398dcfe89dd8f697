"""Counts that several processes share in the stream server: of a window of time, and of what is open at the moment."""

from collections.abc import Mapping
from typing import NamedTuple

from fundsvc.streams.client import StreamClient, faults

_ADD = """
local totals = {}
for i = 2, #ARGV, 2 do
    totals[i / 2] = redis.call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1])
end
if redis.call('PTTL', KEYS[1]) < 0 then
    redis.call('PEXPIRE', KEYS[1], ARGV[1])
end
return {redis.call('PEXPIRETIME', KEYS[1]), redis.call('PTTL', KEYS[1]), totals}
"""
"""Adds amounts to the counts of a window, which begins with the first of them."""

_CHANGE = """
local process, lifetime, is_new = ARGV[1], ARGV[2], ARGV[3]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function change(name, step)
    local total = redis.call('HINCRBY', KEYS[2], name, step)
    if total <= 0 then redis.call('HDEL', KEYS[2], name) end
    return total
end
for _, dead in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)) do
    local counts = redis.call('HGETALL', KEYS[2] .. ':' .. dead)
    for i = 1, #counts, 2 do change(counts[i], -counts[i + 1]) end
    redis.call('DEL', KEYS[2] .. ':' .. dead)
    redis.call('ZREM', KEYS[1], dead)
end
if is_new == '0' and not redis.call('ZSCORE', KEYS[1], process) then return false end
redis.call('ZADD', KEYS[1], now + lifetime, process)
local totals = {}
for i = 4, #ARGV, 2 do
    local own = redis.call('HINCRBY', KEYS[2] .. ':' .. process, ARGV[i], ARGV[i + 1])
    if own == 0 then redis.call('HDEL', KEYS[2] .. ':' .. process, ARGV[i]) end
    totals[i / 2 - 1] = change(ARGV[i], ARGV[i + 1])
end
return totals
"""
"""Changes the counts of a process, and thereby the totals. Removes the counts of processes that were silent for a lifetime."""


class WindowCounts(NamedTuple):
    """The counts of a window of all processes.

    `id` distinguishes the window from earlier ones, `left_seconds` is the time until its end.
    """

    id: int
    left_seconds: float
    totals: dict[str, int]


async def add_to_window(client: StreamClient, name: str, seconds: float, amounts: Mapping[str, int]) -> WindowCounts:
    """Adds amounts to the counts of the window `name`, which lasts for `seconds`; raises StreamFault."""
    words = [word for pair in amounts.items() for word in pair]
    with faults():
        ends, left, totals = await client.eval(_ADD, 1, f"fundsvc:limits:{name}", round(seconds * 1000), *words)
    return WindowCounts(ends, left / 1000, dict(zip(amounts, totals, strict=True)))


async def change_open(
    client: StreamClient, name: str, process: str, lifetime_seconds: float, changes: Mapping[str, int], *, is_new: bool
) -> dict[str, int] | None:
    """Changes what a process has open of `name`; returns the totals of all processes, by the keys of `changes`.

    The counts of a process disappear when it was silent for its lifetime. Returns None, and changes nothing, if that happened
    to this one; `is_new` announces a process. Raises StreamFault.
    """
    keys = f"fundsvc:limits:{{{name}}}:processes", f"fundsvc:limits:{{{name}}}:open"
    words = [word for pair in changes.items() for word in pair]
    with faults():
        totals = await client.eval(_CHANGE, 2, *keys, process, round(lifetime_seconds * 1000), int(is_new), *words)
    return None if totals is None else dict(zip(changes, totals, strict=True))


async def claim(client: StreamClient, name: str, seconds: float) -> bool:
    """Returns whether this is the first claim of a name within `seconds`; raises StreamFault."""
    with faults():
        return bool(await client.set(f"fundsvc:limits:claimed:{name}", b"", nx=True, px=max(1, round(seconds * 1000))))
