"""The command line itself: what it imports, its lists and completion, tables and progress, and the commands on the state."""

import io
import sys

import pytest
import typer
from commands import engine_process, environment_of, fundsvc, program
from conftest import connected
from eventually import eventually
from ledgers import fill, listing
from rich.console import Console

from fundsvc.cli.commands import COMMANDS, cli, load
from fundsvc.cli.running import Bars, Terminal
from fundsvc.cli.tables import left, right, show_table
from fundsvc.config.settings import Config
from fundsvc.streams.client import open_client
from fundsvc.streams.producer import Producer

LIGHT = {"fundsvc", "fundsvc.__main__", "fundsvc.cli", "fundsvc.cli.commands", "fundsvc.config"}

IMPORTED = """
import sys
from fundsvc.__main__ import main
sys.argv = ["fundsvc", *sys.argv[1:]]
try:
    main()
finally:
    print(len(sys.modules), *(name for name in sys.modules if name.split(".")[0] == "fundsvc"), file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [["--version"], ["--help"]])
async def test_version_and_list_of_commands_import_no_part_of_the_service(arguments):
    done = await program(sys.executable, "-c", IMPORTED, *arguments, environment=environment_of(Config()))
    number, *ours = done.error.split()
    assert (done.code, set(ours)) == (0, LIGHT)
    assert int(number) < 400  # all commands import 1,500


def commands():
    load()
    group = typer.main.get_command(cli)
    return {name: group.commands[name] for name in COMMANDS}


@pytest.mark.parametrize("name", COMMANDS)
def test_line_in_the_list_is_the_beginning_of_the_help(name):
    text = " ".join(commands()[name].help.split())
    assert text.startswith(COMMANDS[name].summary.rstrip("."))


def test_every_command_is_in_the_list():
    load()
    assert set(typer.main.get_command(cli).commands) == set(COMMANDS)


async def test_wrong_command_is_named_with_the_nearest_one():
    done = await program(sys.executable, "-m", "fundsvc", "statsu", environment=environment_of(Config()))
    assert done.code == 2
    assert "Did you mean 'status'?" in done.error


@pytest.mark.parametrize(("words", "expected"), [("st", {"status", "stream"}), ("adl ", {"preview", "orders"})])
async def test_shell_completes_names_of_commands(words, expected):
    environment = environment_of(Config(), _FUNDSVC_COMPLETE="complete_bash", COMP_WORDS=f"fundsvc {words}")
    environment["COMP_CWORD"] = str(len(words.split(" ")))
    done = await program(
        sys.executable, "-c", "from fundsvc.__main__ import cli; cli(prog_name='fundsvc')", environment=environment
    )
    assert set(done.output.split()) == expected


ACCOUNT = "account-with-a-long-name-0123456789"
ROWS = [(ACCOUNT, "XBTUSDTM", "123,456.00000001"), ("b", "XBTUSDCM", "1")]


def shown(*, width, is_terminal):
    output = io.StringIO()
    console = Terminal(file=output, width=width, force_terminal=is_terminal, color_system=None)
    show_table(console, (*left("account", "contract"), *right("amount")), ROWS)
    return [line.rstrip() for line in output.getvalue().splitlines()]


def test_table_in_a_pipe_has_whole_cells_in_columns():
    assert shown(width=20, is_terminal=False) == [
        "account                              contract            amount",
        f"{ACCOUNT}  XBTUSDTM  123,456.00000001",
        "b                                    XBTUSDCM                 1",
    ]


def test_table_on_a_terminal_that_is_wide_enough_has_a_line_per_row():
    lines = shown(width=80, is_terminal=True)
    assert lines[0] == "account                              contract            amount"
    assert lines[-2:] == [
        f"{ACCOUNT}  XBTUSDTM  123,456.00000001",
        "b                                    XBTUSDCM                 1",
    ]


def test_table_on_a_narrow_terminal_has_a_block_per_row():
    assert shown(width=40, is_terminal=True) == [
        f"account   {ACCOUNT}",
        "contract  XBTUSDTM",
        "amount    123,456.00000001",
        "",
        "account   b",
        "contract  XBTUSDCM",
        "amount    1",
        "",
    ]


@pytest.mark.parametrize(("steps", "end"), [((6262, 9), 6271), ((6000, 200), 6200)])
def test_progress_ends_at_what_was_done(steps, end):
    with Bars() as bars:
        task = bars.add_task("entries", total=6262)
        for step in steps:
            bars.advance(task, step)
            assert bars.tasks[0].completed <= bars.tasks[0].total
        bars.finish(task)
    assert (bars.tasks[0].completed, bars.tasks[0].total, bars.tasks[0].percentage) == (end, end, 100)


def test_progress_prints_nothing_without_a_terminal(capfd):
    assert not Console(stderr=True).is_terminal
    with Bars() as bars:
        bars.advance(bars.add_task("entries", total=1))
    assert capfd.readouterr().err == ""


async def test_status_and_funds_show_a_running_service(config):
    events = [listing("XBTUSDTM"), listing("XBTUSDCM"), fill("XBTUSDTM", 1, 5), fill("XBTUSDCM", 1, -3), fill("NOSUCH", 1, 1)]
    async with engine_process(config), open_client(config.stream) as client:
        await Producer(client, config.stream.partitions).append(events)

        async def settled():
            async with connected(config.database.dsn) as connection:
                return await connection.fetchval("SELECT count(*) FROM rejected")

        await eventually(settled, seconds=30)
        done = await fundsvc(config, "status", "--json")
        (partition,) = done.result["partitions"]
        assert (done.code, done.result["settles"], partition["state"], partition["unsettled"]) == (0, True, "settles", 0)
        assert len(done.result["engines"]) == 1
        assert done.result["waiting"] == {"rejected": {"unknown_symbol": 1}, "gaps": 0, "orders": 0, "suspended": []}
        text = await fundsvc(config, "status")
        assert "rejected events that wait: 1 unknown_symbol" in text.output
    funds = {fund["symbol"]: fund for fund in (await fundsvc(config, "funds", "--json")).result}
    assert (funds["XBTUSDTM"]["balance"], funds["XBTUSDTM"]["payable"], funds["XBTUSDTM"]["state"]) == ("5", "5", "ok")
    assert (funds["XBTUSDCM"]["outstanding"], funds["XBTUSDCM"]["state"]) == ("3", "uncovered")
    lines = (await fundsvc(config, "funds")).output.splitlines()
    assert [line.split()[0] for line in lines] == ["contract", "XBTUSDCM", "XBTUSDTM"]


async def test_status_of_a_service_without_engines_exits_with_1(config):
    done = await fundsvc(config, "status")
    assert done.code == 1
    assert "without an owner" in done.output
    assert "no engine runs" in done.output
