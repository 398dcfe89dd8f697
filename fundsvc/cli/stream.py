"""Commands on gaps in the streams: messages that left a stream before they were settled."""

from typing import Annotated

import typer
from rich.table import Table

from fundsvc.app import connected, prepared
from fundsvc.cli.running import DONE, NO, Json, Terminal, at_primary, cli, print_json, run
from fundsvc.config.settings import Config
from fundsvc.store.gaps import Gaps, KnownGap

stream = typer.Typer(help="Gaps in the streams: messages that left a stream before they were settled.")
cli.add_typer(stream, name="stream")

Partition = Annotated[int, typer.Argument(help="The number of the partition.", min=0)]


@stream.command("gaps")
def gaps_command(context: typer.Context, partition: Partition, json: Json = False) -> None:
    """List the gaps of a partition's stream."""

    async def command(config: Config) -> int:
        async with prepared(config) as complete, connected(at_primary(complete)) as (pool, _):
            _print(await Gaps(pool, partition).known(), json=json)
        return DONE

    run(context, command)


@stream.command("acknowledge-gap")
def acknowledge_gap(context: typer.Context, partition: Partition, json: Json = False) -> None:
    """Let a partition continue after a gap in its stream; exit with 1 if there is no unacknowledged gap.

    The missing events stay unsettled. If the matching engine resends them later, they are rejected as late and can be replayed.
    """

    async def command(config: Config) -> int:
        async with prepared(config) as complete, connected(at_primary(complete)) as (pool, _):
            acknowledged = await Gaps(pool, partition).acknowledge()
        _print(acknowledged, json=json)
        return DONE if acknowledged else NO

    run(context, command)


def _print(gaps: list[KnownGap], *, json: bool) -> None:
    if json:
        print_json([_shown(gap) for gap in gaps])
        return
    table = Table("after id", "up to id", "messages", "acknowledged at")
    for gap in gaps:
        acknowledged = gap.acknowledged_at.isoformat() if gap.acknowledged_at else ""
        table.add_row(gap.after_id, gap.until_id, str(gap.messages), acknowledged)
    Terminal().print(table)


def _shown(gap: KnownGap) -> dict[str, object]:
    return {
        "afterId": gap.after_id,
        "untilId": gap.until_id,
        "messages": gap.messages,
        "acknowledgedAt": gap.acknowledged_at,
    }
