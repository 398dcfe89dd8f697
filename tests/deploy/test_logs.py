"""Log lines: documented events and keys, no account, few lines in a storm, request ids."""

import ast
import asyncio
import io
import itertools
import json
import logging
import re
import sys
import time
from pathlib import Path
from typing import get_args

import aiohttp
import asyncpg
import msgspec
import pytest
import structlog
import takeovers
from commands import environment_of, program
from conftest import with_section
from escalations import BEGINNING, LISTING, SYMBOL, TS, ended, executed, mark, position, shortfall
from eventually import eventually
from ledgers import fill, listing
from live import serving
from raw import raw
from structlog.testing import capture_logs
from test_engine import ledger, running, settled, stopped  # noqa: F401 - a fixture
from tokens import bearer, with_secret

from fundsvc.api.http.application import make_app
from fundsvc.api.http.middleware import Middleware
from fundsvc.api.http.routes import Endpoint
from fundsvc.api.http.server import serve
from fundsvc.config.settings import Config, LogConfig
from fundsvc.core.batch import Offset
from fundsvc.core.events import Reason, Rejected
from fundsvc.core.fund.inventory import Outcome
from fundsvc.core.partition import Partition
from fundsvc.engine.attempts import Part
from fundsvc.logs import configure_logs, exception_text
from fundsvc.logs.batches import Course, Orders, Outcomes, Rejections
from fundsvc.logs.faults import REPEAT_SECONDS, Outage, ThrottledFaults
from fundsvc.logs.privileged import PrivilegedRequest, PrivilegedRequests
from fundsvc.metrics import Metrics
from fundsvc.store.database import StoreFault
from fundsvc.streams.client import open_client, stream_key
from fundsvc.streams.producer import Producer

ROOT = Path(__file__).parents[2]
LEVELS = ("debug", "info", "warning", "error", "critical")
COMMON = {"event", "level", "timestamp", "request_id", "logger", "exception"}
OF_A_PARTITION = {"engine", "partition", "epoch"}
ACCOUNTS = re.compile("secret-", re.IGNORECASE)


def documented():
    """Returns the level and keys of each event in the handbook."""
    section = (ROOT / "fundsvc" / "handbook" / "operations.md").read_text().split("\n## Logs\n")[1].split("\n## ")[0]
    found = {}
    keys = set()
    for row in re.findall(r"^\| (`.*?) \| (\w+) \| (.*?) ?\| .*\|$", section, re.MULTILINE):
        events, level, columns = row
        keys = keys if columns == "the same" else set(re.findall(r"`(\w+)`", columns))
        found |= dict.fromkeys(re.findall(r"`([^`]+)`", events), (level, keys))
    return found


KINDS = {"adl order ": Course, "takeover ": Outcome}
"""The beginnings of events whose last words are a kind."""


def in_source():
    """Returns each event that the source logs, with its level and keys."""
    found = {}
    for path in (ROOT / "fundsvc").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute | ast.Name) and call.args:
                name = call.func.attr if isinstance(call.func, ast.Attribute) else call.func.id
                keys = {keyword.arg for keyword in call.keywords} - {None, "exc_info"}
                for event in events_of(call.args[0]) if is_logging(call.func, name) else ():
                    known = found.get(event, (name, set()))
                    found[event] = (known[0], known[1] | keys)
    return found


def is_logging(called, name):
    """Returns whether a call is to a logger's level. A stream client has an `info` too."""
    of = getattr(called, "value", None)
    return name in {*LEVELS, "exception", "log_at"} and "client" not in {getattr(of, "id", ""), getattr(of, "attr", "")}


def events_of(argument):
    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
        return [argument.value]
    if isinstance(argument, ast.JoinedStr) and isinstance(argument.values[0], ast.Constant):
        first = argument.values[0].value
        return [first + kind.replace("_", " ") for kind in get_args(KINDS[first])] if first in KINDS else []
    if isinstance(argument, ast.JoinedStr) and isinstance(argument.values[-1], ast.Constant):
        return [part + argument.values[-1].value for part in get_args(Part)]
    return []


def test_handbook_lists_every_log_event_with_its_level_and_keys():
    written, listed = in_source(), documented()
    assert set(written) == set(listed)
    for event, (call, keys) in written.items():
        level, columns = listed[event]
        assert level == {"exception": "error", "log_at": level}.get(call, call), event
        assert keys - OF_A_PARTITION <= columns, event
        if event not in {"fault", "recovered"}:
            assert columns - OF_A_PARTITION == keys - OF_A_PARTITION, event


class Output(io.StringIO):
    """The captured log lines."""

    def lines(self, event=None):
        lines = [json.loads(line) for line in self.getvalue().splitlines()]
        return [line for line in lines if event in {None, line["event"]}]


@pytest.fixture
def logged():
    """Captures JSON lines at level info. A test sets another level with `configure_logs`."""
    before, hook, root = structlog.get_config(), sys.excepthook, logging.getLogger()
    handlers, level = root.handlers[:], root.level
    output = Output()
    configure_logs(LogConfig(format="json"), output)
    yield output
    structlog.configure(**before)
    sys.excepthook = hook
    root.handlers, root.level = handlers, level


@pytest.fixture
def quick(config):
    config = with_section(config, "engine", lease_seconds=0.6, rollup_seconds=0.1, book_seconds=0.2)
    return with_secret(config)


@pytest.fixture
def producer(config, client):
    return Producer(client, config.stream.partitions)


def check_documented(lines):
    listed = documented()
    for line in lines:
        level, keys = listed[line["event"]]
        assert line["level"] == level
        assert set(line) <= COMMON | OF_A_PARTITION | keys, line
        assert {"event", "level", "timestamp"} <= set(line)
        assert keys - set(line) <= ({"suppressed", "walk", "symbol", "cell", *OF_A_PARTITION} if "part" in line else set()), (
            line
        )


ORDER_EVENTS = [f"adl order {course}" for course in ("opened", "advanced", "done", "uncovered")]


@pytest.mark.parametrize("level", ["info", "debug"])
async def test_service_logs_documented_lines_without_accounts(quick, producer, servers, logged, level):
    configure_logs(LogConfig(level=level, format="json"), logged)
    async with running(quick), serving(quick) as service:
        await producer.append(BEGINNING)
        await producer.append([shortfall(1, lots=10)])
        await eventually(lambda: logged.lines("adl order opened"))
        await producer.append([executed(2, 1, "secret-anna", 4)])
        await eventually(lambda: logged.lines("adl order advanced"))
        await producer.append([executed(3, 1, "secret-anna", 6)])
        await eventually(lambda: logged.lines("adl order done"))
        await producer.append([shortfall(4, lots=100_000), ended(5, 2), ended(6, 2), ended(7, 2)])
        await eventually(lambda: logged.lines("adl order uncovered"))
        await reject(quick)
        await eventually(lambda: {line["reason"] for line in logged.lines("events rejected")} >= REASONS)
        await request_accounts(service)
        with stopped(servers, servers.postgres):
            await eventually(lambda: {"leases", "tail"} <= parts(logged, "fault"))
            await request_accounts(service)
        await eventually(lambda: {"leases", "tail"} <= parts(logged, "recovered"))
    check_documented([line for line in logged.lines() if "logger" not in line])
    seen = {line["event"] for line in logged.lines()}
    assert seen >= {"partition owned", "partition loaded", "partition released", "events rejected", "fault", *ORDER_EVENTS}
    assert ("request answered" in seen) == (level == "debug")
    assert not [line for line in logged.lines() if line["level"] != "debug" and ACCOUNTS.search(json.dumps(line))]
    (first,) = logged.lines("adl order opened")[:1]
    assert (first["symbol"], first["adl"], first["entry"], first["lots"]) == (SYMBOL, 1, 1, 10)
    assert re.fullmatch(r"\d+-\d+", first["stream_id"])
    assert all(line["seconds"] > 0 for line in logged.lines("recovered"))


REASONS = {"undecodable", "invalid_field", "adl_order_unknown", "adl_not_asked", "unknown_symbol", "unknown_type"}


async def reject(config):
    """Sends events that are rejected for many reasons, each with an account."""
    async with open_client(config.stream) as client:
        producer = Producer(client, 1)
        await producer.append([shortfall(20, lots=1, price=38000)])
        bodies = [
            b"secret-undecodable",
            b'{"type":"secret-type"}',
            b'{"type":"position","account":"secret-anna"}',
            b'{"type":"fill","symbol":"secret-symbol","seq":1,"side":"sell","lots":1,"price":"1","bankruptcyPrice":"1","ts":1700000000000}',
            msgspec.json.encode(executed(21, 99, "secret-anna", 1)),
            msgspec.json.encode(executed(22, 3, "secret-nobody", 1)),
        ]
        for body in bodies:
            await client.xadd(stream_key(0), {"json": body})


async def request_accounts(service):
    """Sends valid and invalid requests that contain accounts."""
    for headers in ({}, bearer("trader", account="secret-anna")):
        for path in (
            "adl/positions?account=secret-anna",
            "adl/positions?account=secret-%00",
            "contracts/secret-anna",
            "insurance-fund",
        ):
            async with service.http.get(f"/api/v1/{path}", headers=headers) as answer:
                await answer.read()
    async with raw(service.url) as connection:
        await connection.send("GET /api/v1/adl/positions?account=secret-anna HTTP/1.1\r\nHost: x\r\nsecret-anna\r\n\r\n")
        assert (await connection.head())[0] == 400


def parts(logged, event):
    return {line["part"] for line in logged.lines(event)}


async def test_twenty_thousand_rejections_write_few_lines_in_any_number_of_transactions(quick, logged):
    started = time.monotonic()
    async with open_client(quick.stream) as client, running(quick) as engine:
        body = msgspec.json.encode([{"type": "fill", **msgspec.to_builtins(fill("UNKNOWN", seq, 1))} for seq in range(1, 101)])
        for sent in range(100, 20_001, 100):
            await client.xadd(stream_key(0), {"json": body})
            if sent % 2000 == 0:
                await eventually(lambda: engine.count("fundsvc_rejected_total", reason="unknown_symbol") == sent)  # noqa: B023
    lines = logged.lines("events rejected")
    assert len(lines) <= 2 + (time.monotonic() - started) / REPEAT_SECONDS
    assert sum(line["count"] for line in lines) == 20_000
    assert lines[0]["position"] == 0
    assert len(logged.lines()) < len(lines) + 20


def committed(events):
    partition = Partition(0, 1, [], {"USDT": 8}, 10)
    for event in events:
        partition.apply(event)
    return partition.take()


def test_equal_orders_of_one_batch_are_one_line(logged):
    batch = committed([LISTING, mark(39000), position("secret-short", -(10**9), 41000, 10**9), *map(shortfall, range(1, 5001))])
    orders = Orders(structlog.get_logger())
    orders.note(batch.orders.values(), Offset("5-0", 1))
    orders.log_due()
    (line,) = logged.lines()
    assert (line["event"], line["count"], line["adl"], line["entry"]) == ("adl order opened", 5000, 1, 1)
    assert line["stream_id"] == "5-0"


def test_outcomes_of_takeovers_in_a_storm_are_one_line_each(logged, monkeypatch):
    now = 1000.0
    monkeypatch.setattr("fundsvc.logs.batches.time.monotonic", lambda: now)
    beginning = [takeovers.LISTING, takeovers.FUNDED, takeovers.mark(50)]
    outcomes = Outcomes(structlog.get_logger())
    outcomes.note(committed([*beginning, *(takeovers.takeover(seq, 2) for seq in range(2, 1002))]), Offset("5-0", 1))
    later = [*beginning, takeovers.takeover(2, 6), takeovers.unwind(3, 2, 50), takeovers.unwind(4, 3, 50)]
    for number in range(100):
        outcomes.note(committed(later), Offset(f"{6 + number}-0", 1))
    now += 10
    outcomes.log_due()
    outcomes.log_rest()
    keys = "event", "count", "lots", "stream_id"
    assert [tuple(line[key] for key in keys) for line in logged.lines()] == [
        ("takeover accepted", 1000, 2000, "5-0"),
        ("takeover unwound", 2, 5, "6-0"),
        ("takeover accepted", 100, 600, "6-0"),
        ("takeover unwound", 198, 495, "7-0"),
    ]


async def test_each_outcome_of_a_takeover_is_logged(quick, producer, logged):
    short = msgspec.structs.replace(takeovers.SHORT, lots=-3)
    async with running(quick):
        await producer.append([takeovers.LISTING, fill(takeovers.SYMBOL, 1, 30), takeovers.mark(45), short])
        await producer.append([takeovers.takeover(2, 10)])
        await eventually(lambda: logged.lines("adl order opened"))
        await producer.append([takeovers.executed(3, 1, 3), *(takeovers.ended(seq, 1) for seq in (4, 5, 6, 7))])
        await eventually(lambda: logged.lines("takeover forced"))
        relieving = takeovers.SHORT, msgspec.structs.replace(takeovers.mark(40), ts=takeovers.TS + 60_000)
        await producer.append([*relieving, takeovers.unwind(8, 1, 45), takeovers.takeover(9, 1, 40)])
        await eventually(lambda: len(logged.lines("adl order opened")) == 2)
        relief = logged.lines("adl order opened")[1]
        await producer.append([takeovers.executed(10, relief["adl"], relief["lots"])])
        await eventually(lambda: logged.lines("takeover relieved"))
    check_documented(logged.lines())
    lines = {line["event"]: (line["level"], line["lots"]) for line in logged.lines() if line["event"].startswith("takeover ")}
    assert lines == {
        "takeover accepted in part": ("warning", 6),
        "takeover deleveraged": ("info", 3),
        "takeover forced": ("error", 1),
        "takeover unwound": ("info", 1),
        "takeover accepted": ("info", 1),
        "takeover relieved": ("info", relief["lots"]),
    }
    assert {line["origin"] for line in logged.lines("adl order opened")} == {"takeover", "inventory"}
    assert logged.lines("adl order returned")
    assert not [line for line in logged.lines() if ACCOUNTS.search(json.dumps(line))]


def rejected(number, reason):
    return Rejected(f"{number}-0", number, reason, "secret-detail", "json", b"secret-body")


def rejections_in(logged):
    keys = "reason", "count", "stream_id", "position"
    return [tuple(line[key] for key in keys) for line in logged.lines("events rejected")]


def test_first_rejection_per_reason_is_logged_at_once_and_later_ones_as_a_count(logged, monkeypatch):
    now = 1000.0
    monkeypatch.setattr("fundsvc.logs.batches.time.monotonic", lambda: now)
    rejections = Rejections(structlog.get_logger())
    rejections.note([rejected(1, Reason.UNDECODABLE), rejected(2, Reason.OUT_OF_RANGE), rejected(3, Reason.UNDECODABLE)])
    assert rejections_in(logged) == [("undecodable", 2, "1-0", 1), ("out_of_range", 1, "2-0", 2)]
    for number in range(4, 1004):
        rejections.note([rejected(number, Reason.UNDECODABLE)])
        rejections.log_due()
    assert len(rejections_in(logged)) == 2
    now += 10
    rejections.log_due()
    assert rejections_in(logged)[2:] == [("undecodable", 1000, "4-0", 4)]
    rejections.note([rejected(1004, Reason.UNDECODABLE)])
    rejections.log_rest()
    rejections.log_rest()
    assert rejections_in(logged)[3:] == [("undecodable", 1, "1004-0", 1004)]


def test_outage_is_logged_when_it_begins_and_when_it_ends(logged):
    outage = Outage(structlog.get_logger(), "tail", walk="full")
    outage.over()
    for _ in range(1000):
        outage.note(StoreFault("away"))
    outage.over()
    outage.over()
    outage.note(StoreFault("again"))
    assert [(line["event"], line.get("fault")) for line in logged.lines()] == [
        ("fault", "away"), ("recovered", None), ("fault", "again"),
    ]  # fmt: skip
    assert all((line["part"], line["walk"]) == ("tail", "full") for line in logged.lines())


def test_repeated_failures_are_throttled_with_the_number_suppressed(logged):
    now = 1000.0
    throttled = ThrottledFaults(structlog.get_logger(), "requests", lambda: now)
    for _ in range(1000):
        throttled.note(StoreFault("away"))
    now += REPEAT_SECONDS
    throttled.note(StoreFault("still"), partition=1)
    assert [(line["fault"], line["suppressed"]) for line in logged.lines()] == [("away", 0), ("still", 999)]


async def fail(_request):
    """A route with an internal error."""
    structlog.get_logger().warning("on the way")
    await asyncio.sleep(0)
    raise RuntimeError("mistaken")


@pytest.fixture
async def failing_url(logged):
    app = make_app(Middleware(Metrics()), [Endpoint("/fails", fail, {})])
    async with serve(app, "127.0.0.1", 0) as url:
        yield url


@pytest.fixture
async def failing(failing_url):
    async with aiohttp.ClientSession(failing_url) as http:
        yield http


async def request_ids(http, name=None, path="/fails"):
    async with http.get(path, headers={"X-Request-Id": name} if name is not None else {}) as answer:
        return answer.headers.getall("X-Request-Id")


@pytest.mark.parametrize("name", ["a", "A-Z_a.z:0/9+x=", "x" * 128, "0b1c3f5e-9d6e-4a55-8d0b-0f6b5a6f9f10"])
async def test_request_id_of_the_client_is_used(failing, logged, name):
    assert await request_ids(failing, name) == [name]
    assert {line["request_id"] for line in logged.lines()} == {name}


@pytest.mark.parametrize("name", ["", "x" * 129, "a b", "é", 'a"b', "a;b", "<b>"])
async def test_unsafe_request_id_is_replaced(failing, logged, name):
    (given,) = await request_ids(failing, name)
    assert re.fullmatch(r"[0-9a-f]{8}-\d+", given)
    assert {line["request_id"] for line in logged.lines()} == {given}


async def test_every_line_of_a_request_has_its_unique_id(failing, logged):
    configure_logs(LogConfig(level="debug", format="json"), logged)
    named = [name for names in await asyncio.gather(*(request_ids(failing) for _ in range(20))) for name in names]
    assert len(set(named)) == 20
    for name in named:
        lines = [line for line in logged.lines() if line.get("request_id") == name]
        assert [line["event"] for line in lines] == ["on the way", "request failed"]
        assert "RuntimeError: mistaken" in lines[1]["exception"]
    assert await request_ids(failing, path="/none")
    structlog.get_logger().info("later")
    assert "request_id" not in logged.lines("later")[0]


async def test_answers_at_level_debug_are_logged_with_the_route_template(logged):
    configure_logs(LogConfig(level="debug", format="json"), logged)
    app = make_app(Middleware(Metrics()), [Endpoint("/of/{account}", fail, {})])
    async with serve(app, "127.0.0.1", 0) as url, aiohttp.ClientSession(url) as http:
        await request_ids(http, "mine", "/of/secret-anna")
        await request_ids(http, "mine", "/secret-bert")
    lines = [(line["method"], line["route"], line["status"], line["request_id"]) for line in logged.lines("request answered")]
    assert lines == [("GET", "/of/{account}", 500, "mine"), ("GET", "unmatched", 404, "mine")]


async def test_bytes_that_are_not_http_log_nothing(failing_url, logged):
    for garbage in (b"\x16\x03\x01secret-tls\r\n\r\n", b"GET secret-anna HTTP/1.1\r\n:\r\n\r\n", b"GET / HTTP/9.9.9\r\n\r\n"):
        async with raw(failing_url) as connection:
            await connection.send(garbage)
            assert (await connection.head())[0] == 400
    assert logged.lines() == []


def test_library_lines_have_the_same_format(logged):
    logging.getLogger("asyncio").error("it %s", "failed", exc_info=ValueError("why"))
    logging.getLogger("other").warning("mind")
    logging.getLogger("other").info("chatter")
    first, second = logged.lines()
    assert (first["event"], first["level"], first["logger"]) == ("it failed", "error", "asyncio")
    assert "ValueError: why" in first["exception"]
    assert (second["event"], second["logger"]) == ("mind", "other")
    configure_logs(LogConfig(level="debug", format="json"), logged)
    logging.getLogger("other").info("chatter")
    assert len(logged.lines("chatter")) == 1


def break_down(account):
    raise ValueError("mistaken")


def test_console_shows_one_line_and_a_python_traceback(logged):
    output = io.StringIO()
    configure_logs(LogConfig(format="console"), output)
    account = "secret-anna"
    try:
        break_down(account)
    except ValueError:
        structlog.get_logger().exception("failed", code=1)
    text = output.getvalue()
    assert re.search(r"\[error +\] failed +code=1", text)
    assert "Traceback (most recent call last)" in text
    assert "ValueError: mistaken" in text
    assert not ACCOUNTS.search(text), "no local variables"


def test_row_quoted_by_the_database_is_not_logged():
    error = asyncpg.UniqueViolationError("duplicate key")
    error.detail = "Key (account)=(secret-anna) already exists."
    for failure in (error, ExceptionGroup("two", [ExceptionGroup("inner", [error])])):
        text = exception_text((type(failure), failure, None))
        assert "duplicate key" in text
        assert "DETAIL:  (not shown)" in text
        assert not ACCOUNTS.search(text)


UNCAUGHT = """
import sys
from fundsvc.cli.commands import cli
from fundsvc.cli.running import run
from fundsvc import __main__

@cli.command()
def mistaken(context: __import__("typer").Context):
    async def command(config):
        raise RuntimeError("mistaken")
    run(context, command)

cli(["mistaken"])
"""


async def test_uncaught_exception_is_one_line(config):
    environment = environment_of(config, FUNDSVC_LOG_FORMAT="json")
    done = await program(sys.executable, "-c", UNCAUGHT, environment=environment)
    (line,) = map(json.loads, done.error.splitlines())
    assert (done.code, line["event"], line["level"]) == (1, "uncaught", "critical")
    assert "RuntimeError: mistaken" in line["exception"]


@pytest.mark.parametrize(("command", "parts"), [("api", ["api"]), ("engine", ["engine"])])
async def test_json_logging_writes_nothing_but_json(config, command, parts):
    settings = {"FUNDSVC_LOG_FORMAT": "json", "FUNDSVC_LOG_LEVEL": "info", "FUNDSVC_HTTP_PORT": "0"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "fundsvc", command, env=environment_of(config, **settings), stderr=asyncio.subprocess.PIPE
    )
    lines = [json.loads(await asyncio.wait_for(process.stderr.readline(), 30))]
    while lines[-1]["event"] != "started":
        lines.append(json.loads(await process.stderr.readline()))
    process.terminate()
    lines += map(json.loads, (await process.stderr.read()).splitlines())
    assert await process.wait() == 0
    check_documented(lines)
    (started,) = [line for line in lines if line["event"] == "started"]
    assert (started["parts"], bool(started["version"])) == (parts, True)
    assert bool(re.fullmatch(r"http://127\.0\.0\.1:\d+", started["listens_on"])) == (command == "api")
    assert lines[-1]["event"] == "stopped"
    assert 0 <= lines[-1]["seconds"] < 3


async def test_first_start_says_what_it_does_before_it_imports_the_service(tmp_path):
    """Importing the service takes most of a second, creating the database several."""
    environment = environment_of(Config(), FUNDSVC_LOG_FORMAT="json", FUNDSVC_LOG_LEVEL="info", FUNDSVC_HTTP_PORT="0")
    environment |= {"FUNDSVC_DATABASE_DSN": "", "FUNDSVC_STREAM_URL": "", "FUNDSVC_DATA_DIRECTORY": str(tmp_path / "data")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-X", "importtime", "-m", "fundsvc", "up"), env=environment, stderr=asyncio.subprocess.PIPE
    )
    lines, imported_first = [], None
    while not lines or lines[-1]["event"] != "started":
        line = (await asyncio.wait_for(process.stderr.readline(), 60)).decode()
        if not line.startswith("import time:"):
            lines.append(json.loads(line))
        elif line.rstrip().endswith(" fundsvc.store.database") and imported_first is None:
            imported_first = not lines
    process.terminate()
    await process.communicate()
    check_documented(lines)
    assert imported_first is False
    assert (lines[0]["event"], lines[0]["command"], lines[0]["database"]) == ("starting", "up", "embedded")
    assert lines[0]["data_directory"] == str(tmp_path / "data")
    events = [line["event"] for line in lines]
    making = ["embedded database is created", "embedded server starts", "embedded server starts", "schema upgrades"]
    assert [event for event in events if event in making] == making


async def test_privileged_requests_are_logged_with_bearer_and_reason(quick, logged):
    async with serving(quick) as service:
        for role, headers in (("risk", {"X-Reason": "complaint 12"}), ("risk", {"X-Reason": "complaint 12"}), ("engine", {})):
            given = bearer(role, sub="desk", jti="an-id") | headers
            async with service.http.get("/api/v1/ingest/cursor", headers=given) as answer:
                assert answer.status == 200
        async with service.http.get("/api/v1/ingest/cursor", headers=bearer("trader", account="secret-anna")) as answer:
            assert answer.status == 403
        async with service.http.get("/api/v1/insurance-fund", headers=bearer("risk")) as answer:
            assert answer.status == 200
    lines = logged.lines("privileged request")
    check_documented(lines)
    assert [(line["role"], line["who"], line["token"], line["why"], line["count"]) for line in lines] == [
        ("risk", "desk", "an-id", "complaint 12", 1),
        ("engine", "desk", "an-id", "", 1),
    ]


def test_repeated_privileged_requests_share_a_line_each_minute():
    clock, request = itertools.count(step=20), PrivilegedRequest("engine", "a", "id", "POST", "/api/v1/ingest/events", "")
    with capture_logs() as lines:
        requests = PrivilegedRequests(structlog.get_logger(), lambda: next(clock))
        for _ in range(8):
            requests.note(request)
    assert [line["count"] for line in lines] == [1, 3, 3]


async def test_failed_start_is_one_line(config):
    settings = {"FUNDSVC_LOG_FORMAT": "json", "FUNDSVC_STREAM_PARTITIONS": "7"}
    done = await program(sys.executable, "-m", "fundsvc", "engine", environment=environment_of(config, **settings))
    (line,) = map(json.loads, done.error.splitlines())
    assert (done.code, line["event"], line["code"]) == (2, "failed", 2)
    assert "stream.partitions = 7" in line["detail"]


async def test_replaced_owner_logs_partition_lost(quick, producer, logged, owner_connection):
    async with running(quick):
        await producer.append([listing("AAA"), fill("AAA", 1, 1, TS)])
        await eventually(lambda: logged.lines("partition loaded"))
        await owner_connection.execute(
            "UPDATE partitions SET owner = 'other', epoch = epoch + 1, lease_until = clock_timestamp() + interval '1 second'"
        )
        await eventually(lambda: logged.lines("partition lost"))
        await eventually(lambda: len(logged.lines("partition loaded")) == 2)
    check_documented(logged.lines())


async def test_stream_outage_is_logged_with_its_duration_and_the_owner_stays(quick, producer, servers, logged):
    async with running(quick):
        await producer.append([listing("AAA"), fill("AAA", 1, 1, TS)])
        await eventually(lambda: logged.lines("partition loaded"))
        with stopped(servers, servers.valkey):
            await eventually(lambda: "settling" in parts(logged, "fault"))
        await eventually(lambda: "settling" in parts(logged, "recovered"))
        assert len(logged.lines("partition owned")) == 1
    check_documented(logged.lines())


async def test_stream_regression_is_logged(quick, producer, ledger, logged):  # noqa: F811
    async with running(quick):
        await producer.append([listing("AAA"), fill("AAA", 1, 1, TS)])
        await eventually(lambda: logged.lines("partition loaded"))
        await producer.append([fill("AAA", 2, 1, TS)])
        await settled(ledger, 2)
    async with open_client(quick.stream) as client:
        await client.delete(stream_key(0))
        async with running(quick):
            await eventually(lambda: logged.lines("stream regression"))
    check_documented(logged.lines())
