"""Embedded runs generate their secrets; `fundsvc token` signs with the configured or the generated one."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
import typer
from commands import fundsvc
from conftest import with_section
from tokens import SECRET

from fundsvc.api.http.errors import WrongToken
from fundsvc.api.http.tokens import Caller, Tokens, read_revoked
from fundsvc.cli.commands import cli, load
from fundsvc.config.settings import Config, ConfigError, DatabaseConfig, DataConfig, LedgerConfig, StreamConfig, TokenConfig
from fundsvc.local.token_secret import LEDGER_FILE, SECRET_FILE, stored_secret, with_ledger_secret, with_secret


def of_directory(directory):
    return Config(data=DataConfig(directory=str(directory)))


def test_secret_is_created_once_readable_only_for_its_owner(tmp_path):
    made = stored_secret(tmp_path / "data")
    assert len(made) >= 32
    assert stat.S_IMODE((tmp_path / "data" / SECRET_FILE).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    assert stored_secret(tmp_path / "data") == made != stored_secret(tmp_path / "other")
    assert [path.name for path in (tmp_path / "data").iterdir()] == [SECRET_FILE]


def test_concurrent_callers_get_the_same_secret(tmp_path):
    with ThreadPoolExecutor(16) as threads:
        for attempt in range(50):
            assert len(set(threads.map(stored_secret, [tmp_path / str(attempt)] * 16))) == 1


@pytest.mark.parametrize("token", [TokenConfig(secret=SECRET), TokenConfig(keys="keys.json")])
def test_configured_key_is_the_only_one(tmp_path, token):
    config = msgspec.structs.replace(of_directory(tmp_path), token=token)
    assert with_secret(config) == config
    assert list(tmp_path.iterdir()) == []


def test_service_without_embedded_servers_has_no_generated_secret(tmp_path, config):
    elsewhere = with_section(config, "data", directory=str(tmp_path))
    assert with_secret(elsewhere) == elsewhere
    half = with_section(elsewhere, "stream", url="")
    assert with_secret(half).token.secret == (tmp_path / SECRET_FILE).read_text()


async def test_token_is_minted_from_the_data_directory_before_the_first_start(tmp_path, config):
    environment = {"FUNDSVC_STREAM_URL": "", "FUNDSVC_DATA_DIRECTORY": str(tmp_path / "data")}
    done = await fundsvc(config, "token", "--role", "trader", "--account", "anna", "--hours", "1", **environment)
    assert (done.code, done.output) == (0, done.output.strip() + "\n")
    tokens = Tokens(with_secret(of_directory(tmp_path / "data")).token)
    assert tokens.read(done.output.strip())[:3] == ("trader", "anna", "")


async def test_token_is_minted_from_the_configured_secret(config):
    environment = {"FUNDSVC_TOKEN_SECRET": SECRET, "FUNDSVC_TOKEN_AUDIENCE": "elsewhere"}
    done = await fundsvc(config, "token", "--role", "engine", "--subject", "engine 1", "--json", **environment)
    caller = Tokens(TokenConfig(secret=SECRET, audience="elsewhere")).read(done.result["token"])
    assert caller == Caller("engine", "", "engine 1", done.result["id"])


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ((), {}, "token.secret is not set"),
        ((), {"FUNDSVC_TOKEN_KEYS": "keys.json"}, "token.keys has public keys only"),
        ((), {"FUNDSVC_TOKEN_SECRET": "short"}, "token.secret has 5 characters"),
        (("--hours", "87600"), {"FUNDSVC_TOKEN_SECRET": SECRET}, "--hours is 87600: a token may be valid for 168 hours"),
        (("--hours", "9"), {"FUNDSVC_TOKEN_SECRET": SECRET, "FUNDSVC_TOKEN_HOURS_MAX": "8"}, "token.hours_max"),
        (("--account", "anna"), {"FUNDSVC_TOKEN_SECRET": SECRET}, "omit --account"),
        (("--role", "trader"), {"FUNDSVC_TOKEN_SECRET": SECRET}, "must name an `account`"),
        (("--role", "trader", "--account", "a" * 65), {"FUNDSVC_TOKEN_SECRET": SECRET}, "account"),
    ],
)
async def test_token_that_the_service_would_reject_is_not_minted(config, arguments, environment, message):
    done = await fundsvc(config, "token", "--role", "risk", *arguments, **environment)
    assert (done.code, done.output) == (2, "")
    assert message in done.error


def test_embedded_ledger_has_a_secret_readable_only_for_its_owner(tmp_path):
    config = of_directory(tmp_path / "data")
    made = with_ledger_secret(config)
    path = tmp_path / "data" / LEDGER_FILE
    assert made.ledger.secret == path.read_text() != with_secret(config).token.secret
    assert path.stat().st_mode & 0o777 == 0o600
    assert with_ledger_secret(config) == made == with_ledger_secret(made)


def test_external_ledger_has_only_the_configured_secret(tmp_path):
    config = of_directory(tmp_path)
    elsewhere = msgspec.structs.replace(
        config, database=DatabaseConfig(dsn="postgresql://u@h/d"), stream=StreamConfig(url="redis://h")
    )
    assert with_ledger_secret(elsewhere) == elsewhere
    assert elsewhere.ledger.secrets.current is None


@pytest.mark.parametrize(
    ("ledger", "message"),
    [
        (LedgerConfig(secret="short"), "ledger.secret has 5 characters"),
        (LedgerConfig(secret="," * 40), "ledger.secret contains a comma"),
        (LedgerConfig(secret="s" * 32, previous=f"{'p' * 32},short"), "ledger.previous has 5 characters"),
    ],
)
def test_invalid_ledger_secret_is_refused(tmp_path, ledger, message):
    with pytest.raises(ConfigError, match=message):
        with_ledger_secret(msgspec.structs.replace(of_directory(tmp_path), ledger=ledger))


@pytest.fixture
def revoking(tmp_path):
    """The environment of commands with a file of revoked tokens and a file of actions."""
    (tmp_path / "revoked").touch()
    return {
        "FUNDSVC_TOKEN_SECRET": SECRET,
        "FUNDSVC_TOKEN_REVOKED": str(tmp_path / "revoked"),
        "FUNDSVC_LOG_ACTIONS": str(tmp_path / "actions"),
    }


@pytest.mark.parametrize("token_id", ["-e7Q", "--e7Q", "-"])
async def test_id_that_begins_with_a_hyphen_is_revoked(config, revoking, token_id):
    done = await fundsvc(config, "revoke", token_id, "--why", "stolen", **revoking)
    assert (done.code, done.error) == (0, "")
    assert token_id in read_revoked(Path(revoking["FUNDSVC_TOKEN_REVOKED"]))


async def test_revoked_token_is_rejected_and_both_actions_are_recorded(config, tmp_path, revoking):
    minted = await fundsvc(config, "token", "--role", "risk", "--subject", "desk", "--json", "--why", "new desk", **revoking)
    tokens = Tokens(TokenConfig(secret=SECRET, revoked=revoking["FUNDSVC_TOKEN_REVOKED"]))
    assert tokens.read(minted.result["token"]).token_id == minted.result["id"]
    done = await fundsvc(config, "revoke", minted.result["token"], "--why", "laptop\nstolen", **revoking)
    assert (done.code, done.error) == (0, "")
    with pytest.raises(WrongToken, match="the token is revoked"):
        tokens.read(minted.result["token"])
    assert (await fundsvc(config, "revoke", minted.result["id"], **revoking)).code == 1
    first, second = map(msgspec.json.decode, (tmp_path / "actions").read_text().splitlines())
    assert (first["action"], first["why"], first["token"], first["subject"]) == (
        "token",
        "new desk",
        minted.result["id"],
        "desk",
    )
    assert (second["action"], second["why"], second["token"]) == ("revoke", "laptop\nstolen", minted.result["id"])
    assert "@" in first["who"]
    assert first["at"] < second["at"]
    assert stat.S_IMODE((tmp_path / "actions").stat().st_mode) == 0o600


async def test_action_is_logged_on_standard_error_without_a_file(config, revoking):
    for form in ("console", "json"):
        environment = {**revoking, "FUNDSVC_LOG_ACTIONS": "", "FUNDSVC_LOG_FORMAT": form}
        done = await fundsvc(config, "token", "--role", "risk", "--why", "audit of 2026", **environment)
        assert done.error.count("operator action") == len(done.error.splitlines()) == 1
        assert "audit of 2026" in done.error


async def test_embedded_service_has_a_file_of_revoked_tokens(tmp_path, config):
    environment = {"FUNDSVC_STREAM_URL": "", "FUNDSVC_DATA_DIRECTORY": str(tmp_path / "data")}
    token = (await fundsvc(config, "token", "--role", "risk", **environment)).output.strip()
    tokens = Tokens(with_secret(of_directory(tmp_path / "data")).token)
    assert tokens.read(token)
    assert (await fundsvc(config, "revoke", token, **environment)).code == 0
    with pytest.raises(WrongToken):
        tokens.read(token)


@pytest.mark.parametrize(
    ("token", "message"),
    [("two words # comment", "no id that a line can hold"), ("a.b.c", "not a JSON Web Token"), (" ", "no id")],
)
async def test_text_that_is_no_token_is_not_revoked(config, revoking, token, message):
    done = await fundsvc(config, "revoke", token, **revoking)
    assert (done.code, message in done.error) == (2, True)


async def test_action_that_cannot_be_recorded_does_not_begin(config, tmp_path, revoking):
    environment = {**revoking, "FUNDSVC_LOG_ACTIONS": str(tmp_path / "absent" / "actions")}
    done = await fundsvc(config, "revoke", "an-id", **environment)
    assert (done.code, (tmp_path / "revoked").read_text()) == (1, "")
    assert "absent/actions" in done.error


def test_every_command_that_changes_something_takes_a_reason():
    load()
    group = typer.main.get_command(cli)
    commands = dict(group.commands)
    for name in ("contracts", "rejected", "stream", "cells"):
        commands |= {f"{name} {inner}": command for inner, command in commands.pop(name).commands.items()}
    reasoned = {name for name, command in commands.items() if any("--why" in option.opts for option in command.params)}
    changing = {"contracts load", "contracts resume", "replay", "rebuild-rollups", "rejected replay", "stream acknowledge-gap"}
    assert reasoned == changing | {"cells move", "cells undo", "migrate", "token", "revoke"}
