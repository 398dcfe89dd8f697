"""Commands on gaps in the streams: messages that left a stream before they were settled."""

from typing import Annotated

import typer

from fundsvc.app import at_primary, connected, prepared
from fundsvc.cli.actions import Why, record_action
from fundsvc.cli.commands import cli
from fundsvc.cli.running import DONE, NO, Json, Terminal, print_json, run
from fundsvc.cli.tables import left, right, show_table
from fundsvc.config.settings import Config
from fundsvc.mutual.store.state import PoolGaps
from fundsvc.store.database import Pool, main_pool
from fundsvc.store.gaps import Gaps, KnownGap

streams = typer.Typer(help="Gaps in the streams: messages that left a stream before they were settled.")
cli.add_typer(streams, name="stream")

Stream = Annotated[str, typer.Argument(help="The number of a partition, or the name of a pool.")]


@streams.command("gaps")
def gaps_command(context: typer.Context, stream: Stream, json: Json = False) -> None:
    """List the gaps of the stream of a partition or a pool."""

    async def command(config: Config) -> int:
        async with prepared(config) as complete, connected(at_primary(complete)) as (pool, _):
            _print(await _gaps(pool, stream).known(), json=json)
        return DONE

    run(context, command)


@streams.command("acknowledge-gap")
def acknowledge_gap(context: typer.Context, stream: Stream, why: Why = "", json: Json = False) -> None:
    """Let a partition or a pool continue after a gap in its stream; exit with 1 if there is no unacknowledged gap.

    The missing events stay unsettled. If the matching engine resends them later, they are rejected as late and can be replayed.
    """

    async def command(config: Config) -> int:
        async with prepared(config) as complete, connected(at_primary(complete)) as (pool, _):
            record_action(config.log, "stream acknowledge-gap", why, stream=stream)
            acknowledged = await _gaps(pool, stream).acknowledge()
        _print(acknowledged, json=json)
        return DONE if acknowledged else NO

    run(context, command)


def _gaps(pool: Pool, stream: str) -> Gaps | PoolGaps:
    """Returns the gaps of a partition by its number, or of a pool by its name."""
    return Gaps(pool, int(stream)) if stream.isdecimal() else PoolGaps(main_pool(pool), stream)


def _print(gaps: list[KnownGap], *, json: bool) -> None:
    if json:
        print_json([_shown(gap) for gap in gaps])
        return
    rows = [
        (gap.after_id, gap.until_id, str(gap.messages), gap.acknowledged_at.isoformat() if gap.acknowledged_at else "")
        for gap in gaps
    ]
    show_table(Terminal(), (*left("after id", "up to id"), *right("messages"), *left("acknowledged at")), rows)


def _shown(gap: KnownGap) -> dict[str, object]:
    return {
        "afterId": gap.after_id,
        "untilId": gap.until_id,
        "messages": gap.messages,
        "acknowledgedAt": gap.acknowledged_at,
    }
