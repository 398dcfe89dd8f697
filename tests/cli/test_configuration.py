"""Compares the configuration reference with the settings; tests environment variables and error messages."""

import re
import sys
import tomllib
from pathlib import Path
from typing import get_args, get_origin

import msgspec
import pytest
from commands import command, environment_of, fundsvc, program
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import inspect

from fundsvc import __version__ as fundsvc_version
from fundsvc.cli.configuration import effective, lines
from fundsvc.config.settings import CellConfig, Config, ConfigError, DatabaseConfig, load_config, read_config
from fundsvc.config.validation import Key, allowed, find, keys, presentable, span, struct_of
from fundsvc.core.policy import DrawdownGuard
from fundsvc.mutual.core.terms import Terms

REFERENCE = Path(__file__).parents[2] / "config" / "fundsvc.toml"
OUTCOMMENTED = re.compile(r"^# (?=\[|[a-z_]+ += )", re.MULTILINE)
LINE = re.compile(r"^(?:\[(?P<table>[\w.]+)\]|(?P<key>\w+) += (?P<value>.*?))\s*(?:# (?P<description>.*))?$", re.MULTILINE)

KEYS = [key for key in keys(Config) if get_origin(key.kind) is not dict or not struct_of(get_args(key.kind)[1])]
"""All keys but the tables with a table per contract."""


def reference():
    """Returns the reference with its optional keys uncommented."""
    return OUTCOMMENTED.sub("", REFERENCE.read_text())


def descriptions():
    """Returns the description of each key, by path."""
    table, found = "", {}
    for line in LINE.finditer(reference()):
        table = line["table"] or table
        if line["key"]:
            found[f"{table}.{line['key']}"] = line["description"] or ""
    return found


def names(path):
    return f"FUNDSVC_{'_'.join(path).upper()}"


def defaults():
    values = msgspec.to_builtins(Config())
    values["policy"]["default"]["escalate_min"] = 1.0
    values["policy"]["default"]["drawdown_guard"] = msgspec.to_builtins(DrawdownGuard())
    values["policy"]["default"]["takeover"]["value_max"] = 600_000
    further = {"dsn": "postgresql://...", "owner_dsn": "", "reader_dsn": "", "archive_dsn": "", "partitions": ["8-15"]}
    values["database"]["cells"]["b"] = further
    values["mutual"]["pools"]["USDT"] = numbers_of(msgspec.to_builtins(Terms(symbols=("XBTUSDTM",))))
    for section in values.values():
        if section.get("contracts") == {}:
            del section["contracts"]
    return values


def numbers_of(terms):
    """Returns terms with their amounts as numbers, as TOML files have them."""
    if isinstance(terms, list | tuple):
        return [numbers_of(one) for one in terms]
    if isinstance(terms, dict):
        return {key: numbers_of(value) for key, value in terms.items()}
    return int(terms) if isinstance(terms, str) and terms.isdecimal() else terms


def test_reference_lists_every_key_with_its_default():
    assert tomllib.loads(reference()) == msgspec.json.decode(msgspec.json.encode(defaults()))


@pytest.mark.parametrize("key", KEYS, ids=lambda key: ".".join(key.path))
def test_reference_describes_each_key_with_its_range(key):
    path = ".".join(key.path)
    if get_origin(key.kind) is dict:
        path = f"{path}.{next(iter(value_at(Config(), key.path)))}"
        assert path in descriptions()
        return
    words = descriptions()[path]
    assert len(words.split()) >= 2, "the description is missing"
    assert re.search(rf"(?<![\d.]){re.escape(span(key.kind))}(?![\d])", words), f"the range is missing: {span(key.kind)}"
    for one in choices(key.kind):
        assert f'"{one}"' in words or value_at(defaults(), key.path) == one
    schemes = re.findall(r"\w+://", allowed(key.kind))
    assert not schemes or any(scheme in words for scheme in schemes)


def choices(kind):
    """Returns the allowed texts of a type, or ()."""
    found = inspect.type_info(kind)
    found = getattr(found, "item_type", found)
    return found.values if isinstance(found, inspect.LiteralType) else ()


def value_at(values, path):
    for name in path:
        values = values[name] if isinstance(values, dict) else getattr(values, name)
    return values


def another(key):  # noqa: PLR0911 - one for each kind of key
    """Returns a legal value that is not the default, as text of the environment and as a value."""
    default = value_at(defaults(), key.path)
    if get_origin(key.kind) is dict:
        return '{"XBT":3}', {"XBT": 3}
    if key.path == ("engine", "cells"):
        return "main", ["main"]
    if get_origin(key.kind) is tuple:
        return ("gate,okx", ["gate", "okx"]) if choices(key.kind) else ("https://a.example,*", ["https://a.example", "*"])
    if choices(key.kind):
        other = next(one for one in choices(key.kind) if one != default)
        return other, other
    if isinstance(default, bool):
        return str(not default).lower(), not default
    if isinstance(default, str):
        other = f"{next(iter(re.findall(r'[a-z]+://', allowed(key.kind))), '')}other"
        return other, other
    other = next(value for value in numbers(key, default) if value != default)
    return str(other), other


def numbers(key, default):
    """Yields legal numbers near the default."""
    kind = int if isinstance(default, int) else float
    for value in (kind(default * 0.98), default + 1, default - 1, kind(default * 1.02)):
        try:
            yield msgspec.convert(value, key.kind)
        except msgspec.ValidationError:
            continue


NEEDED = {
    "FUNDSVC_STREAM_SENTINELS": {"FUNDSVC_STREAM_MODE": "sentinel", "FUNDSVC_STREAM_SENTINELS": "one:1,two:2"},
    "FUNDSVC_STREAM_MODE": {"FUNDSVC_STREAM_MODE": "cluster", "FUNDSVC_STREAM_URL": "redis://one"},
    "FUNDSVC_POLICY_DEFAULT_DRAWDOWN_GUARD_STOP": {"FUNDSVC_POLICY_DEFAULT_DRAWDOWN_GUARD_STOP": "0.2"},
}
"""Further variables that a key requires to have another value."""


@pytest.mark.parametrize("key", KEYS, ids=lambda key: ".".join(key.path))
def test_environment_sets_each_key_and_nothing_else(key):
    name = names(key.path)
    text, value = another(key)
    if name in NEEDED:
        text = NEEDED[name][name]
        value = text.split(",") if get_origin(key.kind) is tuple else load_text(text)
    config = msgspec.to_builtins(load_config(None, NEEDED.get(name) or {name: text}))
    assert list(value_at(config, key.path)) == value if isinstance(value, list) else value_at(config, key.path) == value
    others = [
        other for other in KEYS if names(other.path) not in {name, *NEEDED.get(name, ())} and other.path[:3] != key.path[:3]
    ]
    assert len(others) > 50
    plain = msgspec.to_builtins(Config())
    for other in others:
        if "drawdown_guard" not in other.path:
            assert value_at(config, other.path) == value_at(plain, other.path)


def load_text(text):
    try:
        return float(text)
    except ValueError:
        return text


def test_environment_sets_tables_as_json_before_their_keys():
    config = load_config(
        None,
        {
            "FUNDSVC_POLICY_DEFAULT_ALLOCATION": "pro_rata",
            "FUNDSVC_POLICY_DEFAULT": '{"waterfall":"adl_then_fund","allocation":"capped"}',
            "FUNDSVC_POLICY_CONTRACTS": '{"XBTUSDTM":{"rounds_max":5,"drawdown_guard":{"hours":1}}}',
        },
    )
    assert (config.policy.default.waterfall, config.policy.default.allocation) == ("adl_then_fund", "pro_rata")
    assert config.policy.of("XBTUSDTM").rounds_max == 5
    assert config.policy.of("XBTUSDTM").drawdown_guard == DrawdownGuard(hours=1)


def test_empty_variable_is_an_empty_list():
    assert load_config(None, {"FUNDSVC_HTTP_ORIGINS": ""}).http.origins == ()


def refusal(tmp_path, text="", **environment):
    path = tmp_path / "fundsvc.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_config(path, environment)
    return str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[htpp]\nport = 1", "htpp is not a key: did you mean http?"),
        ("[http]\nprot = 1", "http.prot is not a key: did you mean http.port?"),
        ("[log]\ncolour = 1", "log.colour is not a key: log has level, format"),
        ("http = 5", "http is 5: it must be a table of host, port, "),
        ("[http]\nport = 65536", "http.port is 65536: it must be a whole number, 0 to 65535"),
        ('[http]\nport = "8080"', 'http.port is "8080": it must be a whole number, 0 to 65535'),
        ("[http]\nport = true", "http.port is true: it must be a whole number, 0 to 65535"),
        ("[http]\nhost = 1979-05-27", 'http.host is "1979-05-27": it must be text'),
        ('[http]\nvenues = ["x"]', 'http.venues is ["x"]: it must be a list, each of it "binance", "bybit", "gate" or "okx"'),
        ("[http]\norigins = 3", 'http.origins is 3: it must be a list, each of it "https://HOST" without a path'),
        ('[http]\norigins = ["a.example"]', 'http.origins is ["a.example"]: it must be a list, each of it "https://HOST"'),
        ('[http]\norigins = ["https://a.example/"]', 'a list, each of it "https://HOST" without a path, or "*"'),
        ('[http]\nhost = ""', 'http.host is "": it must be text, not empty'),
        ('[http]\npublic_url = "a.example"', 'http.public_url is "a.example": it must be "https://...", "http://..." or ""'),
        ('[data]\ndirectory = ""', 'data.directory is "": it must be text, not empty'),
        ('[database]\ndsn = "mysql://secret@h/d"', 'database.dsn is ***: it must be "postgresql://..." or ""'),
        ('[database]\nreader_dsn = "host=h"', 'database.reader_dsn is ***: it must be "postgresql://..." or ""'),
        ('[stream]\nurl = "h:6379"', 'stream.url is ***: it must be "redis://...", "rediss://...", "unix://..." or ""'),
        ('[http]\nhost = ["' + 90 * "a" + '"]', f'http.host is ["{58 * "a"}...: it must be text'),
        ("[engine]\nlease_seconds = 0.1", "engine.lease_seconds is 0.1: it must be a number, 0.5 to 60"),
        ("[engine]\nbook_seconds = 0", "engine.book_seconds is 0: it must be a number, above 0 to 3600"),
        ("[engine]\nbook_seconds = nan", "engine.book_seconds is NaN: it must be a number, above 0 to 3600"),
        ('[log]\nlevel = "loud"', 'log.level is "loud": it must be "debug", "error", "info" or "warning"'),
        ("[currency.decimals]\nUSDT = 30", "currency.decimals.USDT is 30: it must be a whole number, 0 to 18"),
        ("[currency]\ndecimals = 5", "currency.decimals is 5: it must be a table, each of it a whole number, 0 to 18"),
        ("[policy.default]\nrounds_max = 0", "policy.default.rounds_max is 0: it must be a whole number, 1 to 100"),
        ("[policy.default]\nround_max = 1", "policy.default.round_max is not a key: did you mean policy.default.rounds_max?"),
        ("[policy.contracts.A.drawdown_guard]\nhours = 999", "A.drawdown_guard.hours is 999: it must be a number, above 0"),
        ('[mutual.pools."a b"]', 'mutual: pools: "a b" must be 1 to 64 letters, digits'),
        ("[mutual.pools.A]\nmin_funding = true", "mutual.pools.A.min_funding is true: it must be a number"),
        ("[mutual.pools.A]\nmin_funding = -1", "mutual.pools.A: Expected `int` >= 0 - at `$.min_funding`"),
        ("[mutual.pools.A]\nthreshhold = 1", "mutual.pools.A.threshhold is not a key: did you mean mutual.pools.A.threshold?"),
        ("[mutual.pools.A]\npremium_tiers = [[0]]", "a list, each of it a list of a number and a whole number, 0 to 1000000"),
        ("[mutual.pools.A]\nmin_loss = 0.0000001", "mutual.pools.A: min_loss: 1E-7 is not a number with at most 6 decimals"),
        ("[policy.contracts.A]\ndrawdown_guard = 1", "policy.contracts.A.drawdown_guard is 1: it must be a table of start, "),
        ("[policy.default.drawdown_guard]\nminimum_balance = -1", "minimum_balance is -1: it must be a number, 0 or more"),
        ("[policy.default.drawdown_guard]\nstart = 0.1", "policy.default.drawdown_guard: stop 0.25 is above start 0.1"),
        ('[stream]\nmode = "sentinel"', 'stream: mode = "sentinel" requires sentinels'),
        ('[stream]\nsentinels = ["a:1"]', 'requires sentinels, and sentinels require mode = "sentinel"'),
        ('[stream]\nmode = "cluster"', 'stream: mode = "cluster" requires url'),
        ('[stream]\nmode = "sentinel"\nsentinels = ["a:1", "b"]', 'stream: sentinels: "b" is not "host:port"'),
        ('[stream]\nmode = "sentinel"\nsentinels = ["a:65536"]', 'stream: sentinels: "a:65536" is not "host:port"'),
    ],
)  # fmt: skip
def test_error_states_path_value_and_allowed_values(tmp_path, text, message):
    assert message in refusal(tmp_path, text)


def test_all_errors_are_reported_at_once_with_their_variables(tmp_path):
    message = refusal(tmp_path, "[http]\nport = -1\n[log]\nlevel = 1", FUNDSVC_ENGINE_PORT="many", FUNDSVC_LOG_FORMAT="xml")
    assert message.splitlines() == [
        "configuration: http.port is -1: it must be a whole number, 0 to 65535",
        'log.level is 1: it must be "debug", "error", "info" or "warning"',
        'log.format is "xml": it must be "console" or "json" (set by FUNDSVC_LOG_FORMAT)',
        'engine.port is "many": it must be a whole number, 0 to 65535 (set by FUNDSVC_ENGINE_PORT)',
    ]


@pytest.mark.parametrize(
    "key", ["token.secret", "ledger.secret", "ledger.previous", "database.dsn", "database.owner_dsn", "stream.url"]
)
def test_error_hides_a_wrong_secret(tmp_path, key):
    section, name = key.split(".")
    message = refusal(tmp_path, f"[{section}]\n{name} = 123454321")
    assert f"{key} is ***: it must be " in message
    assert "123454321" not in message


def test_environment_table_that_is_not_json_is_an_error(tmp_path):
    message = refusal(tmp_path, FUNDSVC_CURRENCY_DECIMALS="USDT=8")
    assert "FUNDSVC_CURRENCY_DECIMALS must be JSON, a table, each of it a whole number, 0 to 18" in message


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("postgresql://user:hidden@host:1/db", "postgresql://user:***@host:1/db"),
        ("postgresql://user:hid/de@n@host/db", "postgresql://user:***@host/db"),
        ("postgresql://user@host/db?password=hidden&a=b", "postgresql://user@host/db?password=***&a=b"),
        ("postgresql://u:hidden@h/db?sslpassword=hidden", "postgresql://u:***@h/db?sslpassword=***"),
        ("rediss://:hidden@host:6379/0", "rediss://:***@host:6379/0"),
        ("postgresql://user@/fundsvc?host=/run/a:b", "postgresql://user@/fundsvc?host=/run/a:b"),
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("unix:///run/valkey.sock", "unix:///run/valkey.sock"),
        ("", ""),
    ],
)
def test_password_of_an_address_is_hidden(value, shown):
    assert presentable(value, find(Config, "database_dsn").kind) == shown


@given(st.text(st.characters(codec="utf-8", exclude_characters="&"), min_size=1))
@example("a:b@c/d?e#f")
def test_any_password_is_hidden(password):
    hidden = f"§{password}§"
    for address in (f"redis://user:{hidden}@host/0", f"redis://host/0?a=b&password={hidden}"):
        assert "§" not in presentable(address, find(Config, "stream_url").kind)


def test_key_of_any_type_has_a_description():
    assert {allowed(key.kind) for key in KEYS} >= {"text", "a list, each of it text", "a whole number, 0 to 65535"}
    assert Key(("http", "port"), find(Config, "http_port").kind) in list(keys(Config))


def test_effective_configuration_is_shown_as_an_equivalent_file(tmp_path):
    text = '[policy.contracts."A B"]\nrounds_max = 7\n[policy.default.drawdown_guard]\n[token]\naudience = "ü\\n\\"x"\n'
    path = tmp_path / "one.toml"
    path.write_text(text)
    config = load_config(path, {})
    again = tmp_path / "two.toml"
    again.write_text("\n".join(lines(effective(config))))
    assert load_config(again, {}) == config != Config()


async def check(*arguments, **environment):
    ours = {name: value for name, value in environment_of(NOTHING).items() if not name.startswith("FUNDSVC_")}
    return await command("config", "check", *arguments, environment={**ours, **environment})


NOTHING = Config()


async def test_config_check_shows_the_effective_configuration_without_secrets():
    ledger = {"FUNDSVC_LEDGER_SECRET": 32 * "hidden", "FUNDSVC_LEDGER_PREVIOUS": f"{32 * 'hidden'},{33 * 'hidden'}"}
    secrets = {
        "FUNDSVC_TOKEN_SECRET": 32 * "s",
        **ledger,
        "FUNDSVC_DATABASE_DSN": "postgresql://u:hidden@h/d",
        "FUNDSVC_HTTP_PORT": "81",
    }
    done = await check(**secrets)
    assert (done.code, done.error) == (0, "")
    shown = tomllib.loads(done.output)
    assert (shown["token"]["secret"], shown["http"]["port"]) == ("***", 81)
    assert shown["ledger"] == {"secret": "***", "previous": "***"}
    assert shown["database"]["dsn"] == "postgresql://u:***@h/d"
    done = await check("--json", **secrets)
    assert done.result == {"configuration": shown}
    assert "hidden" not in done.output


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"FUNDSVC_HTTP_PORT": "x"}, "http.port"),
        ({"FUNDSVC_HTTP_PROT": "1"}, "FUNDSVC_HTTP_PROT is not a configuration key"),
        ({"FUNDSVC_HTTP_CERTIFICATE": "/nowhere/one.pem"}, "http.certificate: cannot read /nowhere/one.pem"),
        ({"FUNDSVC_HTTP_CERTIFICATE_KEY": "/nowhere/key.pem"}, "http.certificate_key is set, but http.certificate is not"),
        ({"FUNDSVC_TOKEN_KEYS": "/nowhere/keys.json"}, "token.keys: cannot read /nowhere/keys.json"),
        ({"FUNDSVC_TOKEN_SECRET": "short"}, "token.secret has 5 characters"),
        ({"FUNDSVC_LEDGER_SECRET": "short"}, "ledger.secret has 5 characters"),
        ({"FUNDSVC_CONFIG": "/nowhere/fundsvc.toml"}, "cannot read /nowhere/fundsvc.toml"),
    ],
)
async def test_config_check_exits_with_2_and_names_the_error(environment, message):
    done = await check(**environment)
    assert (done.code, done.output) == (2, "")
    assert message in done.error


async def test_config_check_names_the_problems_of_file_environment_and_secrets_at_once(tmp_path):
    path = tmp_path / "fundsvc.toml"
    path.write_text('[http]\nport = -1\n[stream]\nmode = "many"\n[token]\nsecret = "short"\n')
    environment = {
        "FUNDSVC_CONFIG": str(path),
        "FUNDSVC_HTTP_PROT": "1",
        "FUNDSVC_ENGINE_PORT": "many",
        "FUNDSVC_CURRENCY_DECIMALS": "USDT=8",
        "FUNDSVC_DATABASE_DSN_FILE": str(tmp_path / "absent"),
        "FUNDSVC_LEDGER_SECRET": "short",
        "FUNDSVC_HTTP_CERTIFICATE": "/nowhere/one.pem",
    }
    done = await check(**environment)
    assert (done.code, done.output) == (2, "")
    named = ("http.port", "stream.mode", "token.secret has 5", "FUNDSVC_HTTP_PROT", "engine.port", "FUNDSVC_CURRENCY_DECIMALS")
    for name in (*named, "FUNDSVC_DATABASE_DSN_FILE", "ledger.secret has 5", "http.certificate: cannot read"):
        assert done.error.count(name) == 1, name
    assert len(done.error.splitlines()) == 9


@pytest.mark.parametrize(
    "text",
    [
        "http = 5",
        '[stream]\nmode = "sentinel"\nsentinels = 5',
        '[policy.contracts."A.B"]\nrounds_max = 0',
        "[http]\ningest_bytes_max = 900000000",
        "[policy.default.drawdown_guard]\nstart = 0.1",
    ],
)
def test_wrong_values_are_left_out_of_what_is_checked_further(tmp_path, text):
    path = tmp_path / "fundsvc.toml"
    path.write_text(text + '\n[log]\nlevel = "debug"\n')
    config, problems = read_config(path, {})
    assert len(problems) == 1
    assert config.log.level == ("debug" if "ingest" not in text else "info")


async def test_data_directory_that_cannot_be_created_is_named(tmp_path):
    (tmp_path / "file").touch()
    environment = {**environment_of(NOTHING), "FUNDSVC_DATABASE_DSN": "", "FUNDSVC_STREAM_URL": ""}
    environment["FUNDSVC_DATA_DIRECTORY"] = str(tmp_path / "file" / "data")
    done = await command("migrate", environment=environment)
    assert (done.code, done.error.splitlines()[-1]) == (1, f"fundsvc: {tmp_path}/file/data: Not a directory")


async def test_version_is_printed_with_any_configuration():
    done = await program(sys.executable, "-m", "fundsvc", "--version", environment={"FUNDSVC_HTTP_PORT": "x"})
    assert (done.code, done.output, done.error) == (0, f"fundsvc {fundsvc_version}\n", "")


async def test_config_check_reachable_reports_the_servers(config):
    done = await fundsvc(config, "config", "check", "--reachable", "--json")
    parts = done.result["parts"]
    assert (done.code, {name: part["ok"] for name, part in parts.items()}) == (0, dict.fromkeys(parts, True))
    assert parts["database"]["found"].startswith("PostgreSQL 18.")
    assert parts["stream"]["found"].startswith("Valkey 9.")
    assert parts["schema"]["found"] == "current, 1 partitions"


async def test_config_check_reachable_reports_unreachable_and_wrong_servers(config):
    nowhere = {"FUNDSVC_STREAM_URL": "redis://127.0.0.1:1", "FUNDSVC_STREAM_PARTITIONS": "3"}
    done = await fundsvc(config, "config", "check", "--reachable", "--json", **nowhere)
    parts = done.result["parts"]
    assert (done.code, {name: part["ok"] for name, part in parts.items()}) == (
        1,
        {"database": True, "schema": False, "stream": False},
    )
    assert "stream.partitions = 3" in parts["schema"]["found"]
    done = await check("--reachable")
    assert (done.code, done.error.count("embedded")) == (0, 2)


FARMED = "[mutual.pools.USDT]\ncap = 1000000\n[mutual.pools.OTHER]\n"


async def test_config_check_warns_of_terms_that_can_be_farmed(tmp_path):
    path = tmp_path / "fundsvc.toml"
    path.write_text(FARMED)
    done = await check(FUNDSVC_CONFIG=str(path))
    assert done.code == 0
    assert done.error.startswith("warning: mutual.pools.USDT: these terms can be farmed: a policy pays up to 100")
    assert "OTHER" not in done.error
    done = await check("--json", FUNDSVC_CONFIG=str(path))
    assert list(done.result["warnings"]) == ["USDT"]


CELL = '[database]\ndsn = "postgresql://main"\n[stream]\npartitions = 4\n[database.cells.b]\ndsn = "postgresql://b"\n'


def test_cells_hold_their_ranges_and_the_first_cell_holds_the_rest(tmp_path):
    (tmp_path / "config").write_text(CELL + 'partitions = ["1-2"]\n')
    config = load_config(tmp_path / "config", {})
    assert config.cells == ("main", "b")
    assert config.placement == ("main", "b", "b", "main")
    assert config.in_cell("b").database.dsn == "postgresql://b"
    assert config.in_cell("b").stream.partitions == 4
    assert config.in_cell("main").cells == ("main",)


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ('partitions = ["1-4"]', "partitions has '1-4': with stream.partitions = 4, the partitions are 0 to 3"),
        ('partitions = ["2-1"]', "partitions has '2-1'"),
        ('partitions = ["x"]', '"PARTITION" or "FIRST-LAST"'),
        (
            'partitions = ["1"]\n[database.cells.c]\ndsn = "postgresql://c"\npartitions = ["0-1"]',
            "cells.c: cell b has partition 1 too",
        ),
        ('[database.cells.main]\ndsn = "postgresql://c"', 'and not "main"'),
        ('[engine]\ncells = ["c"]', 'engine.cells: "c" is not a cell: there are main, b'),
        ('[database.cells.c]\nowner_dsn = "postgresql://u:secret@c"', "database.cells.c: dsn must be set"),
        ('partitions = ["0-3"]\n[mutual.pools.USDT]\nsymbols = ["A"]', "leave partition"),
    ],
)
def test_wrong_cells_are_named_without_passwords(tmp_path, lines, problem):
    (tmp_path / "config").write_text(CELL + lines)
    with pytest.raises(ConfigError, match=re.escape(problem)) as raised:
        load_config(tmp_path / "config", {})
    assert "secret" not in str(raised.value)


def test_cells_need_an_external_first_cell(tmp_path):
    (tmp_path / "config").write_text('[database.cells.b]\ndsn = "postgresql://b"')
    with pytest.raises(ConfigError, match="cells require dsn"):
        load_config(tmp_path / "config", {})


def test_effective_configuration_hides_passwords_of_cells():
    cells = {"b": CellConfig("postgresql://ann:hunter2@b", "postgresql://bob:hunter2@b")}
    shown = effective(Config(database=DatabaseConfig("postgresql://ann:hunter2@a", cells=cells)))
    assert "hunter2" not in str(shown)
    assert shown["database"]["cells"]["b"]["dsn"] == "postgresql://ann:***@b"
