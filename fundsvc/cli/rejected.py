"""Commands on rejected events: list, show, replay."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC
from typing import Annotated

import msgspec
import typer

from fundsvc.app import at_primary, connected, prepared
from fundsvc.cli.actions import Why, record_action
from fundsvc.cli.commands import cli
from fundsvc.cli.running import DONE, NO, Json, Terminal, print_json, run
from fundsvc.cli.tables import left, show_table
from fundsvc.config.settings import Config
from fundsvc.core.events import Reason as Reasons
from fundsvc.core.events import Rejection, check_replayable
from fundsvc.mutual.store.reader import KeptEvent as KeptPoolEvent
from fundsvc.mutual.store.reader import MutualReader
from fundsvc.store.database import Pool, main_pool
from fundsvc.store.rejections import KeptEvent, list_rejected, mark_sent
from fundsvc.streams.client import pool_stream_key
from fundsvc.streams.producer import Producer
from fundsvc.wire.codec import Codec, Message, decode

rejected = typer.Typer(help="Rejected events, which the service keeps until they are replayed.")
cli.add_typer(rejected, name="rejected")

AnyEvent = KeptEvent | KeptPoolEvent
"""A rejected event of a contract or of a pool."""

Reason = Annotated[str | None, typer.Option(help="Only events with this reason.")]
Key = Annotated[str, typer.Argument(help="partition or pool/stream id/position, as `rejected list` shows it.")]


@rejected.command("list")
def list_command(
    context: typer.Context,
    reason: Reason = None,
    everything: Annotated[bool, typer.Option("--all", help="Include events that were settled later.")] = False,
    limit: Annotated[int, typer.Option(min=1)] = 100,
    json: Json = False,
) -> None:
    """List rejected events in stream order, by partition and pool."""

    async def command(config: Config) -> int:
        async with prepared(config) as complete, connected(complete) as (pool, _):
            events = await _kept(pool, reason=reason, settled_too=everything, limit=limit)
        if json:
            print_json([_shown(event) for event in events])
        else:
            _print_table(events)
        return DONE

    run(context, command)


@rejected.command()
def show(context: typer.Context, key: Key) -> None:
    """Show one rejected event with its content."""

    async def command(config: Config) -> int:
        async with prepared(config) as complete, connected(complete) as (pool, _):
            events = await _kept(pool, key=key)
        if not events:
            Terminal(stderr=True).print(f"fundsvc: there is no rejected event {key}; see fundsvc rejected list", style="red")
            return NO
        print_json(_shown(events[0]))
        return DONE

    run(context, command)


@rejected.command()
def replay(
    context: typer.Context, key: Annotated[str | None, typer.Argument()] = None, reason: Reason = None, why: Why = ""
) -> None:
    """Resend rejected events to the stream: all, those with a reason, or one; each is settled at most once.

    Marks, positions and rates are not resent, because they could overwrite newer ones. Exit with 1 if no other event is left.
    """

    async def command(config: Config) -> int:
        async with prepared(config) as complete, connected(at_primary(complete)) as (pool, client):
            record_action(config.log, "rejected replay", why, key=key or "", reason=reason or "")
            producer = Producer.configured(client, complete.stream)
            events = await _kept(pool, reason=reason, key=key, limit=1_000_000)
            refusals = {event.key: refusal for event in events if (refusal := _refusal(event))}
            sent = 0
            for event in events:
                if event.codec != "" and event.settled_at is None and event.key not in refusals:
                    await _resend(pool, producer, event, event.codec)
                    sent += 1
        for name, refusal in refusals.items():
            Terminal(stderr=True, soft_wrap=True).print(f"{name}: {refusal}")
        Terminal().print(f"resent {sent} of {len(events)} events; `fundsvc rejected list` shows those that stay rejected")
        return NO if refusals and not sent else DONE

    run(context, command)


async def _kept(
    pool: Pool, *, reason: str | None = None, settled_too: bool = False, key: str | None = None, limit: int = 100
) -> Sequence[AnyEvent]:
    """Returns rejected events of contracts, then those of pools; `key` selects one."""
    events: list[AnyEvent] = []
    if not key or key[:1].isdecimal():
        events += await list_rejected(pool, reason=reason, settled_too=settled_too, key=key, limit=limit)
    if not key or not key[:1].isdecimal():
        events += await MutualReader(main_pool(pool)).rejected(reason=reason, settled_too=settled_too, key=key, limit=limit)
    return events[:limit]


async def _resend(pool: Pool, producer: Producer, event: AnyEvent, codec: Codec) -> None:
    if isinstance(event, KeptPoolEvent):
        await producer.replay_to(pool_stream_key(event.pool), codec, event.body, event.origin)
        await MutualReader(main_pool(pool)).mark_sent(event)
    else:
        await producer.append_replay(event.partition, codec, event.body, event.origin)
        await mark_sent(pool, event)


def _refusal(event: AnyEvent) -> Rejection | None:
    """Returns the reason for which an event cannot be replayed, or None."""
    if isinstance(event, KeptPoolEvent):
        if event.reason != Reasons.CONFLICT:
            return None
        return Rejection(Reasons.CONFLICT, "another event with its seq was applied: let the sender send it under a new seq")
    try:
        for decoded in decode(Message(event.stream_id, event.codec, event.body)):
            check_replayable(decoded)
    except Rejection as refusal:
        return refusal
    return None


def _print_table(events: Sequence[AnyEvent]) -> None:
    rows = []
    for event in events:
        entry = None if isinstance(event, KeptPoolEvent) or not event.entry else f"{event.symbol} {event.entry}"
        settled = entry or ("yes" if event.settled_at else "")
        rows.append((event.key, event.rejected_at.astimezone(UTC).isoformat(), event.reason, event.detail, settled))
    show_table(Terminal(), left("event", "rejected at", "reason", "detail", "settled by entry"), rows)


def _shown(event: AnyEvent) -> dict[str, object]:
    """Returns an event for JSON output: its bytes as text or decoded MessagePack if possible, else as hexadecimal digits."""
    body: dict[str, object] = {"hex": event.body.hex()}
    if event.codec == "json" and (text := event.body.decode(errors="ignore")).encode() == event.body:
        body = {"text": text}
    elif event.codec == "msgpack":
        with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
            body["decoded"] = msgspec.msgpack.decode(event.body)
    return {
        "event": event.key,
        "reason": event.reason,
        "detail": event.detail,
        "codec": event.codec,
        "body": body,
        "rejectedAt": event.rejected_at,
        "replayedAt": event.replayed_at,
        "settledAt": event.settled_at,
        **_settlement(event),
    }


def _settlement(event: AnyEvent) -> dict[str, object]:
    """Returns what settled an event of a contract or a pool, or could."""
    if isinstance(event, KeptPoolEvent):
        return {"pool": event.pool, "seq": event.event_seq, "settledBy": event.settled_by}
    return {"symbol": event.symbol, "entry": event.entry}
