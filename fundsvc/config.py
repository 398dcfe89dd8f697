"""The configuration: one frozen struct from TOML, defaults for everything, unknown keys are errors.

Each key can be overridden by an environment variable named FUNDSVC_<SECTION>_<KEY>, for example FUNDSVC_HTTP_PORT=8080;
lists are comma-separated there. FUNDSVC_<SECTION>_<KEY>_FILE names a file that holds the value instead, which is how a secret
arrives that neither the environment nor a command line may show. This module is the only reader of the environment.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from fundsvc.core.policy import Policy

ENVIRONMENT_PREFIX = "FUNDSVC_"

CONFIG_FILE_VARIABLE = "FUNDSVC_CONFIG"
"""Names the file itself, for who cannot pass --config."""

FILE_SUFFIX = "_FILE"
"""Marks a variable that names a file with the value; the name is the one the official container images use."""

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Decimals = Annotated[int, msgspec.Meta(ge=0, le=18)]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the sections."""


class DataConfig(Section, frozen=True):
    """Where embedded servers and everything else of ours on disk lives."""

    directory: str = ".fundsvc"


class DatabaseConfig(Section, frozen=True):
    """PostgreSQL; without a DSN the embedded one is used."""

    dsn: str = ""
    owner_dsn: str = ""
    reader_dsn: str = ""
    connections_max: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 10

    @property
    def embedded(self) -> bool:
        """Whether it is the data directory's."""
        return not self.dsn


class StreamConfig(Section, frozen=True):
    """Redis or Valkey; without a URL or sentinels the embedded one is used."""

    url: str = ""
    mode: Literal["single", "sentinel", "cluster"] = "single"
    sentinels: tuple[str, ...] = ()
    sentinel_master: str = "fundsvc"
    partitions: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1
    retention_hours: Annotated[float, msgspec.Meta(gt=0, le=100_000)] = 24.0

    @property
    def embedded(self) -> bool:
        """Whether it is the data directory's."""
        return not (self.url or self.sentinels)


class EngineConfig(Section, frozen=True):
    """The consumer."""

    lease_seconds: Annotated[float, msgspec.Meta(ge=0.5, le=60)] = 3.0
    batch_fills_max: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 10_000
    book_seconds: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 60.0
    rollup_seconds: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 2.0
    port: Port = 0


Venue = Literal["binance", "bybit", "gate", "okx"]


class HttpConfig(Section, frozen=True):
    """The HTTP side."""

    host: str = "127.0.0.1"
    port: Port = 8080
    proxies: Annotated[int, msgspec.Meta(ge=0, le=10)] = 0
    public_url: str = ""
    certificate: str = ""
    certificate_key: str = ""
    origins: tuple[str, ...] = ()
    venues: tuple[Venue, ...] = ()
    requests_max: Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)] = 2000
    requests_seconds: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 30.0
    ingest_events_max: Annotated[int, msgspec.Meta(ge=10_000, le=1_000_000_000)] = 3_000_000
    ingest_bytes_max: Annotated[int, msgspec.Meta(ge=1000, le=1_000_000_000)] = 4_000_000
    book_seconds: Annotated[float, msgspec.Meta(ge=0.05, le=60)] = 1.0
    tail_seconds: Annotated[float, msgspec.Meta(ge=0.001, le=60)] = 0.02
    rate_seconds_max: Annotated[float, msgspec.Meta(gt=0, le=1_000_000)] = 600.0


class TokenConfig(Section, frozen=True):
    """What access tokens must be signed with and say."""

    secret: str = ""
    keys: str = ""
    audience: str = "fundsvc"
    leeway_seconds: Annotated[float, msgspec.Meta(ge=0, le=600)] = 30.0


class WebsocketConfig(Section, frozen=True):
    """Live topics."""

    clients_max: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 10_000
    topics_max: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100
    queue_bytes_max: Annotated[int, msgspec.Meta(ge=10_000, le=1_000_000_000)] = 1_000_000
    ping_interval_seconds: Annotated[float, msgspec.Meta(ge=1, le=600)] = 18.0
    ping_timeout_seconds: Annotated[float, msgspec.Meta(ge=3, le=600)] = 10.0


class CurrencyConfig(Section, frozen=True):
    """How many decimals the atoms of a settlement currency have."""

    decimals_default: Decimals = 10
    decimals: dict[str, Decimals] = msgspec.field(default_factory=lambda: {"USDT": 8, "USDC": 8})


class PolicyConfig(Section, frozen=True):
    """What funds do when they run dry: `default`, and contracts that differ by symbol."""

    default: Policy = Policy()
    contracts: dict[str, Policy] = msgspec.field(default_factory=dict)

    def of(self, symbol: str) -> Policy:
        """The policy of a contract."""
        return self.contracts.get(symbol, self.default)


class LogConfig(Section, frozen=True):
    """What is logged, and how it looks."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["console", "json"] = "console"


class Config(Section, frozen=True):
    """Everything that can be set; see config/fundsvc.toml for each key's meaning."""

    data: DataConfig = DataConfig()
    database: DatabaseConfig = DatabaseConfig()
    stream: StreamConfig = StreamConfig()
    engine: EngineConfig = EngineConfig()
    http: HttpConfig = HttpConfig()
    token: TokenConfig = TokenConfig()
    websocket: WebsocketConfig = WebsocketConfig()
    currency: CurrencyConfig = CurrencyConfig()
    policy: PolicyConfig = PolicyConfig()
    log: LogConfig = LogConfig()


class ConfigError(ValueError):
    """The configuration is wrong; the message names the key and what is allowed."""


def load_config(path: Path | None, environment: Mapping[str, str] = os.environ) -> Config:
    """The configuration from a file (none: the defaults) and the environment, which wins."""
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text())
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not TOML: {error}") from None
    for name, text in environment.items():
        if name.startswith(ENVIRONMENT_PREFIX) and name != CONFIG_FILE_VARIABLE:
            _override(values, name, text, environment)
    try:
        return msgspec.convert(values, Config, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"configuration: {error} (see config/fundsvc.toml for what is allowed)") from None


def _override(values: dict[str, Any], name: str, text: str, environment: Mapping[str, str]) -> None:
    plain = name.removesuffix(FILE_SUFFIX)
    section, _, key = plain.removeprefix(ENVIRONMENT_PREFIX).lower().partition("_")
    types = {field.name: field.type for field in msgspec.structs.fields(Config)}
    keys = {field.name: field.type for field in msgspec.structs.fields(types[section])} if section in types else {}
    if key not in keys:
        raise ConfigError(f"environment variable {name} names no key of the configuration (FUNDSVC_<SECTION>_<KEY>)")
    if plain != name:
        if plain in environment:
            raise ConfigError(f"environment variables {plain} and {name} are both set: leave one out")
        text = _read_value(name, text)
    inner = values.setdefault(section, {})
    if not isinstance(inner, dict):
        raise ConfigError(f"configuration: [{section}] must be a table")
    inner[key] = text.split(",") if "tuple" in str(keys[key]) else text


def _read_value(name: str, path: str) -> str:
    """What a file holds, without the newline that editors and shells end a file with."""
    try:
        return Path(path).read_text().removesuffix("\n")
    except OSError as error:
        raise ConfigError(f"environment variable {name}: cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"environment variable {name}: {path} is not text: {error}") from None
