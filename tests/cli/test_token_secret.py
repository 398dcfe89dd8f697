"""Embedded runs generate their secrets; `fundsvc token` signs with the configured or the generated one."""

import stat
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
from commands import fundsvc
from conftest import with_section
from tokens import SECRET

from fundsvc.api.http.tokens import Caller, Tokens
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
    assert (done.code, done.error) == (0, "")
    assert done.output == done.output.strip() + "\n"
    tokens = Tokens(with_secret(of_directory(tmp_path / "data")).token)
    assert tokens.read(done.output.strip()) == Caller("trader", "anna", "")


async def test_token_is_minted_from_the_configured_secret(config):
    environment = {"FUNDSVC_TOKEN_SECRET": SECRET, "FUNDSVC_TOKEN_AUDIENCE": "elsewhere"}
    done = await fundsvc(config, "token", "--role", "engine", "--subject", "engine 1", "--json", **environment)
    assert Tokens(TokenConfig(secret=SECRET, audience="elsewhere")).read(done.result["token"]) == Caller(
        "engine", "", "engine 1"
    )


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ((), {}, "token.secret is not set"),
        ((), {"FUNDSVC_TOKEN_KEYS": "keys.json"}, "token.keys has public keys only"),
        ((), {"FUNDSVC_TOKEN_SECRET": "short"}, "token.secret has 5 characters"),
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
