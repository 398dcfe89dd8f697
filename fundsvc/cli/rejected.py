"""Commands about rejected events: list, show, replay."""

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

rejected = typer.Typer(help="Events that could not be settled: kept whole, listed, and sent again after a fix.")
cli.add_typer(rejected, name="rejected")

Reason = Annotated[str | None, typer.Option(help="Only those rejected for this reason.")]
Key = Annotated[str, typer.Argument(help="partition/stream id/position, as `rejected list` shows it.")]


@rejected.command("list")
def list_command(
    context: typer.Context,
    reason: Reason = None,
    everything: Annotated[bool, typer.Option("--all", help="Also those that have been settled since.")] = False,
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
    """Show one rejected event whole."""

    async def command(config: Config) -> int:
        async with prepared(config) as complete, connected(complete) as (pool, _):
            events = await list_rejected(pool, key=key)
        if not events:
            Terminal(stderr=True).print(f"fundsvc: no rejected event {key}", style="red")
            return NO
        print_json(_shown(events[0]))
        return DONE

    run(context, command)


@rejected.command()
def replay(context: typer.Context, key: Annotated[str | None, typer.Argument()] = None, reason: Reason = None) -> None:
    """Send rejected events into the stream again, all or one; each is settled at most once.

    A mark, position or rate is not sent: the engine's next one replaces it. Exit with 1 if that leaves nothing to send.
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
        Terminal().print(f"sent {sent} of {len(events)} events again; `fundsvc rejected list` shows what is left")
        return NO if refusals and not sent else DONE

    run(context, command)


def _refusal(event: KeptEvent) -> Rejection | None:
    """Why an event must not be sent again, if that can be told already."""
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
    """The event for programs: its bytes as text where they are text, else as hexadecimal."""
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
