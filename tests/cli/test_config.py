from pathlib import Path

import pytest

from fundsvc.config.settings import Config, ConfigError, load_config

EXAMPLE = Path(__file__).parents[2] / "config" / "fundsvc.toml"


def load(tmp_path: Path, text: str = "", **environment: str) -> Config:
    path = tmp_path / "fundsvc.toml"
    path.write_text(text)
    return load_config(path, environment)


def refusal(tmp_path: Path, text: str = "", **environment: str) -> str:
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, text, **environment)
    return str(refused.value)


def test_every_key_has_a_default(tmp_path):
    assert load(tmp_path) == load_config(None, {}) == Config()
    assert Config().currency.decimals == {"USDT": 8, "USDC": 8}
    assert Config().currency.decimals_default == 10


@pytest.mark.skipif(not EXAMPLE.exists(), reason="there is no example yet")
def test_example_contains_only_existing_keys():
    assert isinstance(load_config(EXAMPLE, {}), Config)


def test_file_sets_only_the_keys_that_it_contains(tmp_path):
    config = load(tmp_path, '[stream]\npartitions = 4\nurl = "redis://somewhere"\n[currency.decimals]\nXBT = 8\n')
    assert (config.stream.partitions, config.stream.url, config.stream.mode) == (4, "redis://somewhere", "single")
    assert config.currency.decimals == {"XBT": 8}
    assert config.http == Config().http


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[htpp]\nport = 1", "htpp"),
        ("[http]\nprot = 1", "prot"),
        ("port = 1", "port"),
        ("[http]\nport = 65536", "http.port"),
        ("[http]\nport = -1", "http.port"),
        ("[http]\nport = 80.5", "http.port"),
        ('[http]\nport = "many"', "http.port"),
        ("[http]\nhost = 5", "http.host"),
        ("http = 5", "http"),
        ("[database]\nconnections_max = 0", "database.connections_max"),
        ("[stream]\npartitions = 0", "stream.partitions"),
        ("[stream]\npartitions = 1025", "stream.partitions"),
        ('[stream]\nmode = "many"', "stream.mode"),
        ("[stream]\nretention_hours = 0", "stream.retention_hours"),
        ("[stream]\nretention_hours = nan", "stream.retention_hours"),
        ("[stream]\nretention_hours = inf", "stream.retention_hours"),
        ('[stream]\nsentinels = "one"', "stream.sentinels"),
        ("[engine]\nlease_seconds = 0.1", "engine.lease_seconds"),
        ("[engine]\nlease_seconds = nan", "engine.lease_seconds"),
        ("[engine]\nbatch_fills_max = 0", "engine.batch_fills_max"),
        ("[engine]\nrollup_seconds = inf", "engine.rollup_seconds"),
        ("[currency]\ndecimals_default = 19", "currency.decimals_default"),
        ("[currency.decimals]\nUSDT = 30", "currency.decimals"),
        ('[log]\nlevel = "loud"', "log.level"),
    ],
)
def test_error_names_the_key(tmp_path, text, named):
    assert named in refusal(tmp_path, text)


def test_unreadable_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.toml"):
        load_config(tmp_path / "absent.toml", {})
    assert "not TOML" in refusal(tmp_path, "[http")
    (tmp_path / "latin.toml").write_bytes(b'[http]\nhost = "\xff"')
    with pytest.raises(ConfigError, match=r"latin\.toml is not TOML"):
        load_config(tmp_path / "latin.toml", {})


def test_environment_overrides_the_file(tmp_path):
    config = load(tmp_path, "[http]\nport = 1\n[engine]\nport = 2", FUNDSVC_HTTP_PORT="8081", PATH="/bin", FUNDSVCX="1")
    assert (config.http.port, config.engine.port) == (8081, 2)


def test_environment_sets_numbers_lists_and_keys_of_several_words(tmp_path):
    config = load(
        tmp_path,
        FUNDSVC_STREAM_MODE="sentinel",
        FUNDSVC_STREAM_SENTINELS="one:26379,two:26379",
        FUNDSVC_ENGINE_LEASE_SECONDS="1.5",
        FUNDSVC_CURRENCY_DECIMALS_DEFAULT="6",
        FUNDSVC_DATABASE_OWNER_DSN="postgresql://somewhere",
    )
    assert config.stream.sentinels == ("one:26379", "two:26379")
    assert config.engine.lease_seconds == 1.5
    assert config.currency.decimals_default == 6
    assert config.database.owner_dsn == "postgresql://somewhere"


def test_variable_of_the_file_is_not_a_key(tmp_path):
    assert load(tmp_path, FUNDSVC_CONFIG="elsewhere.toml") == Config()


@pytest.mark.parametrize("name", ["FUNDSVC_HTTP_PROT", "FUNDSVC_HTPP_PORT", "FUNDSVC_HTTP", "FUNDSVC_", "FUNDSVC_PORT"])
def test_variable_without_a_key_is_an_error(tmp_path, name):
    assert name in refusal(tmp_path, **{name: "1"})


@pytest.mark.parametrize(("value", "named"), [("65536", "http.port"), ("", "http.port"), ("8080.5", "http.port")])
def test_variable_is_validated_like_a_key(tmp_path, value, named):
    assert named in refusal(tmp_path, FUNDSVC_HTTP_PORT=value)


def test_booleans_accept_only_true_and_false(tmp_path):
    assert load(tmp_path, FUNDSVC_STREAM_FSYNC="true").stream.fsync is True
    assert "true or false" in refusal(tmp_path, FUNDSVC_STREAM_FSYNC="maybe")
    assert "true or false" in refusal(tmp_path, "[stream]\nfsync = 3")


def secret(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "secret"
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"postgresql://somewhere", "postgresql://somewhere"),
        (b"postgresql://somewhere\n", "postgresql://somewhere"),
        (b"two\n\n", "two\n"),
        (b" spaces ", " spaces "),
        (b"", ""),
    ],
)
def test_value_from_a_file_loses_only_the_final_newline(tmp_path, content, value):
    assert load(tmp_path, FUNDSVC_TOKEN_SECRET_FILE=secret(tmp_path, content)).token.secret == value


def test_numbers_and_lists_from_files_override_the_configuration(tmp_path):
    assert load(tmp_path, "[http]\nport = 1", FUNDSVC_HTTP_PORT_FILE=secret(tmp_path, b"8081\n")).http.port == 8081
    origins = load(tmp_path, FUNDSVC_HTTP_ORIGINS_FILE=secret(tmp_path, b"https://one,https://two\n")).http.origins
    assert origins == ("https://one", "https://two")


def test_setting_value_and_file_of_a_key_is_an_error(tmp_path):
    message = refusal(tmp_path, FUNDSVC_TOKEN_SECRET="a", FUNDSVC_TOKEN_SECRET_FILE=secret(tmp_path, b"a"))
    assert "FUNDSVC_TOKEN_SECRET and FUNDSVC_TOKEN_SECRET_FILE are both set" in message


@pytest.mark.parametrize("name", ["FUNDSVC_HTTP_PROT_FILE", "FUNDSVC_FILE", "FUNDSVC_HTTP_FILE", "FUNDSVC_HTTP_PORT_FILE_FILE"])
def test_file_variable_without_a_key_is_an_error_that_names_it(tmp_path, name):
    assert name in refusal(tmp_path, **{name: secret(tmp_path, b"1")})


def test_unreadable_value_file_is_named_with_its_variable_without_content(tmp_path):
    message = refusal(tmp_path, FUNDSVC_TOKEN_SECRET_FILE=str(tmp_path / "absent"))
    assert "FUNDSVC_TOKEN_SECRET_FILE" in message
    assert "absent" in message
    message = refusal(tmp_path, FUNDSVC_TOKEN_SECRET_FILE=secret(tmp_path, b"hidden\xff"))
    assert "is not text" in message
    assert "hidden" not in message


def test_section_that_is_not_a_table_is_an_error(tmp_path):
    assert "[http]" in refusal(tmp_path, "http = 5", FUNDSVC_HTTP_PORT="1")
