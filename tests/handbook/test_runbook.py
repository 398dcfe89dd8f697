"""The commands of the handbook: shell syntax, the command line, SQL, PromQL, Valkey commands, and HTTP requests.

test_backup.py runs backup and restore, the change of passwords, and the change of partitions, tests/ha those of Patroni.
test_runbook_hosts.py checks the commands of docker, systemctl and kubectl.
"""

import asyncio
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path

import pytest
import redis
import typer.main
import yaml
from commands import environment_of, program
from conftest import with_section
from escalations import BEGINNING, SYMBOL, shortfall
from eventually import eventually
from ledgers import owned
from ports import free_port
from prometheus_server import needs_prometheus, prometheus
from test_engine import running
from tokens import SECRET, with_secret

from fundsvc.app import http_side
from fundsvc.cli.commands import cli, load
from fundsvc.metrics import Metrics
from fundsvc.store.database import open_pool
from fundsvc.streams.client import open_client

ROOT = Path(__file__).parents[2]
CHAPTERS = {path.name: path.read_text() for path in (*sorted((ROOT / "fundsvc" / "handbook").glob("*.md")), ROOT / "README.md")}
RUNBOOK = CHAPTERS["runbook.md"]


def is_complete(text):
    return subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False).returncode == 0


def commands_in(text):
    """Returns the commands in the indented blocks of a text; a command ends where bash can parse it."""
    found, pending = [], ""
    for line in text.splitlines():
        if line.startswith("    ") or pending:
            pending += re.sub(r"^ {4,8}", "", line) + "\n"
            if not pending.endswith("\\\n") and is_complete(pending):
                found.append(pending.strip())
                pending = ""
    assert not pending, f"bash cannot parse {pending}"
    return [command for command in found if command]


ALERTS = RUNBOOK[RUNBOOK.index("### FundDry") :]
PROCEDURES = RUNBOOK[RUNBOOK.index("## Components") : RUNBOOK.index("## Alerts")]
CONFIGURATION = ("archive_", "restore_", "recovery_", "[database", "dsn ", "owner_dsn ", "END", "cat >>")
COMMANDS = [each for each in commands_in(ALERTS) + commands_in(PROCEDURES) if not each.startswith(CONFIGURATION)]
PREAMBLE = commands_in(RUNBOOK[: RUNBOOK.index("## Components")])


def quoted(*programs):
    """Returns the last quoted argument of each call of some functions in the runbook, with variables replaced."""
    calls = re.findall(
        rf"\b(?:{'|'.join(programs)})(?: -h \S+| -[\w]+| --?\w+ \S+| \S+(?= -c))* (?:\"([^\"]+)\"|'([^']+)'|(fundsvc_\w+))",
        RUNBOOK,
    )
    texts = ["".join(call) for call in calls]
    return [text.replace("$SYMBOL", SYMBOL).replace("${part}", "commit") for text in texts]


RUN_HERE = {"ledger", "owner", "redis-cli", "curl", "as", "checks", "metric", "for", "fundsvc", "ss", "psql"}
RUN_WITH_BACKUPS = {"echo", "PGPASSFILE=~/.pgpass-backup", "pg_verifybackup", "cp"}
RUN_WITH_PATRONI = {"patronictl", "printf"}
CHECKED_WITH_MANIFESTS = {"kubectl"}


def test_each_program_of_the_runbook_has_a_test():
    programs = {re.split(r"\s", command)[0] for command in COMMANDS}
    assert programs == RUN_HERE | RUN_WITH_BACKUPS | RUN_WITH_PATRONI | CHECKED_WITH_MANIFESTS
    assert len(COMMANDS) > 60


def invocations():
    """Yields the words behind `fundsvc` in all code of the handbook."""
    for name, text in CHAPTERS.items():
        code = re.findall(r"`([^`\n]+)`", text) + re.findall(r"^    (.+)$", text, re.MULTILINE)
        for line in code:
            for call in re.findall(
                r"(?<!--namespace)(?:^|[ (])(?:\.venv/bin/)?fundsvc ([a-z-][^|`)#;]*)", line.replace(r"\|", "/")
            ):
                yield name, call.strip().rstrip('"')


def resolve(words):
    """Walks the command tree; returns the command and the remaining words."""
    load()
    command = typer.main.get_command(cli)
    context = command.make_context("fundsvc", [], resilient_parsing=True)
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        alternatives = [command.get_command(context, name) for name in words[0].split("/")]
        assert all(alternatives), f"there is no command {words[0]}"
        command, words = alternatives[0], words[1:]
    return command, words


def test_commands_in_the_handbook_exist_with_their_options():
    checked = 0
    for chapter, call in invocations():
        words = call.replace("--config FILE", "").split()
        if not words or words[0] == "COMMAND" or not re.fullmatch(r"[a-z/-]+", words[0]):
            continue
        command, rest = resolve(words)
        known = set(chain.from_iterable(parameter.opts for parameter in command.params)) | {"--help", "--version"}
        unknown = {word for word in rest if word.startswith("--")} - known
        assert not unknown, f"{chapter}: fundsvc {call}: {unknown}"
        checked += 1
    assert checked > 40


async def test_sql_of_the_runbook_fits_the_schema(service_connection):
    statements = quoted("ledger", "owner", "psql")
    assert len(statements) > 15
    assert {"pg_stat_replication", "pg_stat_archiver"} <= set(re.findall(r"pg_stat_\w+", " ".join(statements)))
    for statement in statements:
        if statement.startswith("SELECT"):
            await service_connection.prepare(statement)


@needs_prometheus
def test_promql_of_the_runbook_is_valid(tmp_path):
    expressions = quoted("metric")
    assert len(expressions) > 12
    rules = [{"record": f"query:{number}", "expr": expression} for number, expression in enumerate(expressions)]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "runbook", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def shell(script, environment):
    """Runs a script that must succeed and report no error; returns its output."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), script
    return done.stdout


@needs_prometheus
async def test_commands_for_prometheus_run(tmp_path):
    functions = "\n".join(line for line in PREAMBLE if line.startswith("metric()"))
    commands = [each for each in COMMANDS if each.startswith(("metric ", "for part")) or "$PROMETHEUS" in each]
    assert len(commands) > 10
    async with prometheus(tmp_path, {"fundsvc-api": [f"127.0.0.1:{free_port()}"]}) as server:
        await eventually(lambda: server.query('up{job="fundsvc-api"} == 0'))
        environment = os.environ | {"PROMETHEUS": server.url, "SYMBOL": SYMBOL}
        for command in dict.fromkeys(commands):
            output = await asyncio.to_thread(shell, f"{functions}\n{command}", environment)
            assert "$PROMETHEUS" not in command or "connection refused" in output


@pytest.mark.skipif(shutil.which("ss") is None, reason="ss is not installed")
def test_connections_are_counted_by_peer():
    (command,) = [each for each in COMMANDS if each.startswith("ss ")]
    with ExitStack() as opened:
        listener = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = listener.getsockname()[1]
        for _ in range(3):
            opened.enter_context(socket.create_connection(("127.0.0.1", port)))
        output = shell(command.replace(":8080", f":{port}"), os.environ)
    assert output.split() == ["3", "127.0.0.1"]


async def test_stream_commands_of_the_runbook_run(config):
    async with owned(config) as owner:
        await owner.settle(BEGINNING)
    calls = [shlex.split(command.partition("|")[0], comments=True) for command in COMMANDS if command.startswith("redis-cli")]
    assert len(calls) > 8
    with redis.Redis.from_url(config.stream.url) as client:
        client.xadd("fundsvc:{0}:in", {"json": "[]"})
        for _, *words in calls:
            if "ACL" not in words:
                client.xadd("fundsvc:{0}:in", {"json": "[]"})
                client.execute_command(*words)


@pytest.fixture
async def api(config):
    """The URL of a service with an open ADL order."""
    config = with_section(with_secret(config), "http", port=0)
    async with owned(config) as owner:
        await owner.settle([*BEGINNING, shortfall(1)])
    async with (
        running(config),
        open_pool(config.database.dsn, 4) as pool,
        open_client(config.stream) as client,
        http_side(config, Metrics(), pool, client, engine=None, public=True) as url,
    ):
        yield url


async def test_requests_of_the_runbook_return_data(api, tmp_path):
    functions = "\n".join(line for line in PREAMBLE if re.match(r"(as|checks)\(\)", line))
    environment = os.environ | {
        "API": api,
        "SYMBOL": SYMBOL,
        "FUNDSVC_TOKEN_SECRET": SECRET,
        "FUNDSVC_LOG_ACTIONS": str(tmp_path / "actions"),  # standard error must be empty
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }

    async def answer(command):
        process = await asyncio.create_subprocess_exec(
            *("bash", "-o", "pipefail", "-c", f"{functions}\n{command}"),
            env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, error = await process.communicate()
        return output if process.returncode == 0 and output.strip() and not error else None

    requests = [each for each in COMMANDS if each.startswith(("curl", "as ", "checks")) and "$PROMETHEUS" not in each]
    assert len(requests) > 12
    empty = ("state=uncovered", "candles", "kind=shortfall")
    for command in dict.fromkeys(each.replace("account=...", "account=secret-anna") for each in requests):
        if not any(part in command for part in empty):
            output = await eventually(partial(answer, command), seconds=120)
            assert not re.fullmatch(rb"\[(null,?)+\]", output.strip()), command


WITHOUT_SUBJECT = ("fundsvc rejected show", "fundsvc contracts resume", "fundsvc stream acknowledge-gap")
"""Commands for an event, a suspension or a gap that this ledger does not have. Their exit code is 1."""


WITH_CELLS = ("fundsvc migrate", "fundsvc cells move", "fundsvc cells undo")
"""Commands that need the owner's DSN or several cells. tests/cells/test_cell_commands.py runs them."""


async def test_commands_of_the_service_run(config):
    async with owned(config) as owner:
        await owner.settle([*BEGINNING, shortfall(1)])
    environment = environment_of(config, SYMBOL=SYMBOL, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    calls = [each.replace("echo $?", "exit $?") for each in COMMANDS if each.startswith("fundsvc ")]
    calls = [each for each in calls if not each.startswith(WITH_CELLS)]
    assert len(calls) > 10
    for call in dict.fromkeys(calls):
        done = await program("bash", "-o", "pipefail", "-c", call, environment=environment)
        assert done.code == int(call.startswith(WITHOUT_SUBJECT)), (call, done)
