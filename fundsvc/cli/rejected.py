"""Commands on rejected events: list, show, replay."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC
from typing import Annotated

import msgspec
import typer
from rich.table import Table

from fundsvc.app import connected, prepared
from fundsvc.cli.running import DONE, NO, Json, Terminal, at_primary, cli, print_json, run
from fundsvc.config.settings import Config
from fundsvc.core.events import Rejection, check_replayable
from fundsvc.store.rejections import KeptEvent, list_rejected, mark_sent
from fundsvc.streams.producer import Producer
from fundsvc.wire.codec import Message, decode

rejected = typer.Typer(help="Rejected events, which the service keeps until they are replayed.")
cli.add_typer(rejected, name="rejected")

Reason = Annotated[str | None, typer.Option(help="Only events with this reason.")]
Key = Annotated[str, typer.Argument(help="partition/stream id/position, as `rejected list` shows it.")]


@rejected.command("list")
def list_command(
    context: typer.Context,
    reason: Reason = None,
    everything: Annotated[bool, typer.Option("--all", help="Include events that were settled later.")] = False,
    limit: Annotated[int, typer.Option(min=1)] = 100,
    json: Json = False,
) -> None:
    """List rejected events in stream order, partition by partition."""

    async def command(config: Config) -> int:
        async with prepared(config) as complete, connected(complete) as (pool, _):
            events = await list_rejected(pool, reason=reason, settled_too=everything, limit=limit)
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
            events = await list_rejected(pool, key=key)
        if not events:
            Terminal(stderr=True).print(f"fundsvc: there is no rejected event {key}; see fundsvc rejected list", style="red")
            return NO
        print_json(_shown(events[0]))
        return DONE

    run(context, command)


@rejected.command()
def replay(context: typer.Context, key: Annotated[str | None, typer.Argument()] = None, reason: Reason = None) -> None:
    """Resend rejected events to the stream: all, those with a reason, or one; each is settled at most once.

    Marks, positions and rates are not resent, because they could overwrite newer ones. Exit with 1 if no other event is left.
    """

    async def command(config: Config) -> int:
        async with prepared(config) as complete, connected(at_primary(complete)) as (pool, client):
            producer = Producer.configured(client, complete.stream)
            events = await list_rejected(pool, reason=reason, key=key, limit=1_000_000)
            refusals = {event.key: refusal for event in events if (refusal := _refusal(event))}
            sent = 0
            for event in events:
                if event.codec != "" and event.settled_at is None and event.key not in refusals:
                    await producer.append_replay(event.partition, event.codec, event.body, event.origin)
                    await mark_sent(pool, event)
                    sent += 1
        for name, refusal in refusals.items():
            Terminal(stderr=True, soft_wrap=True).print(f"{name}: {refusal}")
        Terminal().print(f"resent {sent} of {len(events)} events; `fundsvc rejected list` shows those that stay rejected")
        return NO if refusals and not sent else DONE

    run(context, command)


def _refusal(event: KeptEvent) -> Rejection | None:
    """Returns the reason for which an event cannot be replayed, or None."""
    try:
        for decoded in decode(Message(event.stream_id, event.codec, event.body)):
            check_replayable(decoded)
    except Rejection as refusal:
        return refusal
    return None


def _print_table(events: Sequence[KeptEvent]) -> None:
    table = Table("event", "rejected at", "reason", "detail", "settled by entry")
    for event in events:
        settled = f"{event.symbol} {event.entry}" if event.entry else "yes" if event.settled_at else ""
        table.add_row(event.key, event.rejected_at.astimezone(UTC).isoformat(), event.reason, event.detail, settled)
    Terminal().print(table)


def _shown(event: KeptEvent) -> dict[str, object]:
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
        "symbol": event.symbol,
        "entry": event.entry,
    }
