"""The configuration: one frozen struct, read from TOML. Every key has a default; unknown keys are errors.

An environment variable named FUNDSVC_<SECTION>_<KEY> overrides a key, for example FUNDSVC_HTTP_PORT=8080. Lists are
comma-separated there, and tables are JSON. FUNDSVC_<SECTION>_<KEY>_FILE names a file with the value instead, so that a secret
is in neither the environment nor a command line. This module is the only reader of the environment.
"""

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from fundsvc.config import CONFIG_FILE_VARIABLE
from fundsvc.config.cells import CELL_NAME, MAIN, placement
from fundsvc.config.validation import ADDRESS, SECRET, allowed, complaints, find, from_text
from fundsvc.core.commitment import Secrets, secrets_of
from fundsvc.core.contracts import CONTRACTS_MAX, partition_of
from fundsvc.core.fund.fullness import TargetPolicy
from fundsvc.core.generations import public_symbol
from fundsvc.core.policy import Policies, Policy
from fundsvc.core.times import AHEAD_SECONDS_MAX
from fundsvc.mutual.core.terms import Terms, farming_warning

ENVIRONMENT_PREFIX = "FUNDSVC_"

FILE_SUFFIX = "_FILE"
"""Marks a variable that names a file with the value. Official container images use the same suffix."""

SECRET_LENGTH_MIN = 32
"""A secret shorter than the digest weakens HMAC-SHA256 (RFC 7518, section 3.2)."""

PORT_MAX = 65535
"""The highest TCP port."""

ARCHIVE_DAYS_MIN = 8
"""The service reads the entries of the last week often. A day more, because engines date entries."""

Port = Annotated[int, msgspec.Meta(ge=0, le=PORT_MAX)]
Decimals = Annotated[int, msgspec.Meta(ge=0, le=18)]
Name = Annotated[str, msgspec.Meta(min_length=1)]
Secret = Annotated[str, msgspec.Meta(extra=SECRET)]
Database = Annotated[
    str, msgspec.Meta(pattern=r"\A(postgres(ql)?://|\Z)", extra={**ADDRESS, "form": '"postgresql://..." or ""'})
]
Stream = Annotated[
    str,
    msgspec.Meta(
        pattern=r"\A((rediss?|unix)://|\Z)", extra={**ADDRESS, "form": '"redis://...", "rediss://...", "unix://..." or ""'}
    ),
]
PartitionRange = Annotated[
    str, msgspec.Meta(pattern=r"\A[0-9]{1,4}(-[0-9]{1,4})?\Z", extra={"form": '"PARTITION" or "FIRST-LAST"'})
]
PublicUrl = Annotated[str, msgspec.Meta(pattern=r"\A(https?://[^/]|\Z)", extra={"form": '"https://...", "http://..." or ""'})]
Origin = Annotated[
    str, msgspec.Meta(pattern=r"\A(\*|[a-z][a-z0-9+.-]*://[^/]+)\Z", extra={"form": '"https://HOST" without a path, or "*"'})
]


class ConfigError(ValueError):
    """The configuration is wrong. The message names the key and the allowed values."""


POOL_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}", re.ASCII)
"""Names of pools, which are part of the keys of their streams. No name is the number of a partition."""


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The base class of the sections."""


class DataConfig(Section, frozen=True):
    """The directory of embedded servers and other local files."""

    directory: Name = ".fundsvc"


class CellConfig(Section, frozen=True):
    """A further PostgreSQL cluster, and the partitions that it holds when `fundsvc migrate` first prepares it."""

    dsn: Database = ""
    owner_dsn: Database = ""
    reader_dsn: Database = ""
    partitions: tuple[PartitionRange, ...] = ()
    archive_dsn: Database = ""

    def __post_init__(self) -> None:
        if not self.dsn:
            raise ValueError('dsn must be set to the address of the cell, "postgresql://..."')


class DatabaseConfig(Section, frozen=True):
    """PostgreSQL. Without a DSN the service uses the embedded server. `cells` are further clusters by name."""

    dsn: Database = ""
    owner_dsn: Database = ""
    reader_dsn: Database = ""
    connections_max: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 10
    cells: dict[str, CellConfig] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.cells and not self.dsn:
            raise ValueError("cells require dsn: the embedded server cannot be one of several cells")
        for name in self.cells:
            if not CELL_NAME.fullmatch(name) or name == MAIN:
                raise ValueError(
                    f'cells: "{name}" must be 1 to 32 small letters, digits, "_" or "-", a letter first, and not "{MAIN}",'
                    " the name of the first cell"
                )

    @property
    def embedded(self) -> bool:
        """Whether PostgreSQL is the embedded server."""
        return not self.dsn


class StreamConfig(Section, frozen=True):
    """Redis or Valkey. Without a URL or sentinels the service uses the embedded server."""

    url: Stream = ""
    mode: Literal["single", "sentinel", "cluster"] = "single"
    sentinels: tuple[str, ...] = ()
    sentinel_master: Name = "fundsvc"
    partitions: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1
    retention_hours: Annotated[float, msgspec.Meta(gt=0, le=100_000)] = 24.0
    retention_bytes: Annotated[int, msgspec.Meta(ge=0, le=10**15)] = 1_000_000_000
    ts_ahead_seconds_max: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = AHEAD_SECONDS_MAX
    message_bytes_max: Annotated[int, msgspec.Meta(ge=1000, le=500_000_000)] = 5_000_000
    contracts_max: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = CONTRACTS_MAX
    on_gap: Literal["halt", "continue"] = "halt"
    replicas_min: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0
    fsync: bool = False

    def __post_init__(self) -> None:
        if (self.mode == "sentinel") != bool(self.sentinels):
            raise ValueError('mode = "sentinel" requires sentinels, and sentinels require mode = "sentinel"')
        if self.mode == "cluster" and not self.url:
            raise ValueError('mode = "cluster" requires url: the address of one node')
        for address in self.sentinels:
            host, _, port = address.rpartition(":")
            if not (host and port.isascii() and port.isdecimal() and 1 <= int(port) <= PORT_MAX):
                raise ValueError(f'sentinels: "{address}" is not "host:port"')

    @property
    def embedded(self) -> bool:
        """Whether the stream server is the embedded one."""
        return not (self.url or self.sentinels)


class EngineConfig(Section, frozen=True):
    """The engine: leases, batches and periodic work."""

    lease_seconds: Annotated[float, msgspec.Meta(ge=0.5, le=60)] = 3.0
    batch_fills_max: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 10_000
    book_seconds: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 60.0
    rollup_seconds: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 2.0
    target_seconds: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 60.0
    loop_ms_max: Annotated[float, msgspec.Meta(ge=1, le=1000)] = 10.0
    port: Port = 0
    cells: tuple[Name, ...] = ()


Venue = Literal["binance", "bybit", "gate", "okx"]


class QueueConfig(Section, frozen=True):
    """Limits on what the public sees of ADL queues."""

    k_min: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 5


class HttpConfig(Section, frozen=True):
    """The HTTP server."""

    host: Name = "127.0.0.1"
    port: Port = 8080
    health_port: Port = 0
    clients_max: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 12_000
    client_connections_max: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 500
    header_seconds_max: Annotated[float, msgspec.Meta(ge=0.1, le=600)] = 10.0
    body_seconds_max: Annotated[float, msgspec.Meta(ge=0.1, le=3600)] = 30.0
    idle_seconds_max: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 75.0
    drain_seconds: Annotated[float, msgspec.Meta(ge=0, le=600)] = 0.0
    exports_max: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 4
    proxies: Annotated[int, msgspec.Meta(ge=0, le=10)] = 0
    public_url: PublicUrl = ""
    certificate: str = ""
    certificate_key: str = ""
    origins: tuple[Origin, ...] = ()
    venues: tuple[Venue, ...] = ()
    requests_max: Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)] = 2000
    requests_seconds: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 30.0
    shared_limits: bool = False
    ingest_events_max: Annotated[int, msgspec.Meta(ge=10_000, le=1_000_000_000)] = 3_000_000
    ingest_bytes_max: Annotated[int, msgspec.Meta(ge=1000, le=1_000_000_000)] = 4_000_000
    book_seconds: Annotated[float, msgspec.Meta(ge=0.05, le=60)] = 1.0
    tail_seconds: Annotated[float, msgspec.Meta(ge=0.001, le=60)] = 0.02
    stale_seconds_max: Annotated[float, msgspec.Meta(ge=2, le=86_400)] = 10.0
    rate_seconds_max: Annotated[float, msgspec.Meta(gt=0, le=1_000_000)] = 600.0


class AdlConfig(Section, frozen=True):
    """The matching engine's time limits for a round of an ADL order."""

    ack_seconds: Annotated[float, msgspec.Meta(ge=0.1, le=3600)] = 5.0
    round_seconds: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 60.0
    mark_seconds_max: Annotated[float, msgspec.Meta(gt=0, le=1_000_000)] = 60.0


class LedgerConfig(Section, frozen=True):
    """The secrets that seal the accounts of new entries; `previous` contains earlier secrets, comma-separated."""

    secret: Secret = ""
    previous: Secret = ""

    @property
    def secrets(self) -> Secrets:
        """Returns all secrets; raises ConfigError for one that is too short or contains a comma."""
        if "," in self.secret:
            raise ConfigError(
                "ledger.secret contains a comma, which separates the secrets of ledger.previous: choose one without"
            )
        previous = self.previous.split(",") if self.previous else []
        for name, secret in (("secret", self.secret), *(("previous", one) for one in previous)):
            if len(secret) < SECRET_LENGTH_MIN and (secret or name == "previous"):
                raise ConfigError(
                    f"ledger.{name} has {len(secret)} characters: each secret must have {SECRET_LENGTH_MIN} or more"
                )
        return secrets_of(self.secret, previous)


class TokenConfig(Section, frozen=True):
    """The signature, claims and lifetime that access tokens must have, and the file with the ids of revoked ones."""

    secret: Secret = ""
    keys: str = ""
    revoked: str = ""
    audience: Name = "fundsvc"
    leeway_seconds: Annotated[float, msgspec.Meta(ge=0, le=600)] = 30.0
    hours_max: Annotated[float, msgspec.Meta(gt=0, le=8760)] = 168.0


class WebsocketConfig(Section, frozen=True):
    """WebSocket connections and topics."""

    clients_max: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 10_000
    client_connections_max: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 200
    topics_max: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100
    queue_bytes_max: Annotated[int, msgspec.Meta(ge=10_000, le=1_000_000_000)] = 1_000_000
    ping_interval_seconds: Annotated[float, msgspec.Meta(ge=1, le=600)] = 18.0
    ping_timeout_seconds: Annotated[float, msgspec.Meta(ge=3, le=600)] = 10.0


class CurrencyConfig(Section, frozen=True):
    """The decimals of settlement currencies: an atom is 10**-decimals."""

    decimals_default: Decimals = 10
    decimals: dict[str, Decimals] = msgspec.field(default_factory=lambda: {"USDT": 8, "USDC": 8})


class PolicyConfig(Section, frozen=True):
    """Fund policies: `default`, and `contracts` by symbol."""

    default: Policy = Policy()
    contracts: dict[str, Policy] = msgspec.field(default_factory=dict)

    def of(self, symbol: str) -> Policy:
        """Returns the policy of a contract."""
        return self.contracts.get(public_symbol(symbol), self.default)

    def version(self, number: int) -> Policies:
        """Returns the configured policies as version `number` of a partition's policies."""
        return Policies(number, self.default, self.contracts)


class TargetConfig(Section, frozen=True):
    """Target rules: `default`, and `contracts` by symbol."""

    default: TargetPolicy = TargetPolicy()
    contracts: dict[str, TargetPolicy] = msgspec.field(default_factory=dict)

    def of(self, symbol: str) -> TargetPolicy:
        """Returns the target policy of a contract."""
        return self.contracts.get(public_symbol(symbol), self.default)


class MutualConfig(Section, frozen=True):
    """The pools of the mutual, by name, each with its terms. Without a pool the mutual is off."""

    pools: dict[str, Terms] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.pools:
            if not POOL_NAME.fullmatch(name):
                raise ValueError(f'pools: "{name}" must be 1 to 64 letters, digits, "_", "." or "-", a letter first')

    @property
    def warnings(self) -> dict[str, str]:
        """Returns what is wrong with the terms of pools although they are legal, by the pool's name."""
        found = {name: farming_warning(terms.rules()) for name, terms in self.pools.items()}
        return {name: warning for name, warning in found.items() if warning}

    def missing(self, ledger: Iterable[str]) -> dict[str, str]:
        """Returns a warning for each pool of the ledger that the configuration does not name."""
        return {
            name: "the ledger has this pool, but this configuration does not, and engines with it do not settle the pool:"
            f" configure [mutual.pools.{name}] with the terms of the ledger"
            for name in ledger
            if name not in self.pools
        }


class AuditConfig(Section, frozen=True):
    """The background audit."""

    full_hours: Annotated[float, msgspec.Meta(gt=0, le=8760)] = 24.0
    share: Annotated[float, msgspec.Meta(ge=0.001, le=1)] = 0.05
    heads_directory: str = ""
    heads_days: Annotated[float, msgspec.Meta(gt=0, le=36_500)] = 366.0


class ArchiveConfig(Section, frozen=True):
    """the archive of earlier entries, and the login that removes them from the database."""

    location: str = ""
    days: Annotated[float, msgspec.Meta(ge=ARCHIVE_DAYS_MIN, le=36_500)] = 366.0
    dsn: Database = ""


class LogConfig(Section, frozen=True):
    """Level and format of log lines, and the file of operator actions."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["console", "json"] = "console"
    actions: str = ""


class Config(Section, frozen=True):
    """All settings. config/fundsvc.toml describes each key."""

    data: DataConfig = DataConfig()
    database: DatabaseConfig = DatabaseConfig()
    stream: StreamConfig = StreamConfig()
    engine: EngineConfig = EngineConfig()
    adl: AdlConfig = AdlConfig()
    queue: QueueConfig = QueueConfig()
    http: HttpConfig = HttpConfig()
    ledger: LedgerConfig = LedgerConfig()
    token: TokenConfig = TokenConfig()
    websocket: WebsocketConfig = WebsocketConfig()
    currency: CurrencyConfig = CurrencyConfig()
    policy: PolicyConfig = PolicyConfig()
    target: TargetConfig = TargetConfig()
    mutual: MutualConfig = MutualConfig()
    audit: AuditConfig = AuditConfig()
    archive: ArchiveConfig = ArchiveConfig()
    log: LogConfig = LogConfig()

    def __post_init__(self) -> None:
        if self.http.ingest_bytes_max > self.stream.message_bytes_max:
            raise ValueError(
                "http.ingest_bytes_max must not exceed stream.message_bytes_max: a body is appended as one message"
            )
        self._check_cells()

    def _check_cells(self) -> None:
        """Raises ValueError for ranges of cells that overlap, for unknown cells, and for pools outside the first cell."""
        try:
            cells = self.placement
        except ValueError as error:
            raise ValueError(f"database.{error}") from None
        for name in self.engine.cells:
            if name not in self.cells:
                raise ValueError(f'engine.cells: "{name}" is not a cell: there are {", ".join(self.cells)}')
        for pool in self.mutual.pools:
            home = partition_of(pool, self.stream.partitions)
            if cells[home] != MAIN:
                raise ValueError(
                    f"mutual.pools.{pool} belongs to partition {home}, which database.cells.{cells[home]} has: leave partition"
                    f" {home} to {MAIN}, the cell of all pools"
                )

    @property
    def cells(self) -> tuple[str, ...]:
        """The names of all cells."""
        return (MAIN, *self.database.cells)

    @property
    def placement(self) -> tuple[str, ...]:
        """The cell that first holds each partition, by number; raises ValueError."""
        return placement({name: cell.partitions for name, cell in self.database.cells.items()}, self.stream.partitions)

    def in_cell(self, name: str) -> "Config":
        """Returns the configuration of a service whose only database is that of one cell."""
        if name == MAIN:
            return msgspec.structs.replace(self, database=msgspec.structs.replace(self.database, cells={}), engine=self._engine)
        cell = self.database.cells[name]
        database = DatabaseConfig(cell.dsn, cell.owner_dsn, cell.reader_dsn, self.database.connections_max)
        archive = msgspec.structs.replace(self.archive, dsn=cell.archive_dsn)
        return msgspec.structs.replace(self, database=database, engine=self._engine, archive=archive)

    @property
    def _engine(self) -> EngineConfig:
        return msgspec.structs.replace(self.engine, cells=())


def load_config(path: Path | None, environment: Mapping[str, str] = os.environ) -> Config:
    """Reads the configuration from a file (None: the defaults) and from the environment, which overrides it.

    Raises ConfigError with all problems.
    """
    config, problems = read_config(path, environment)
    if problems:
        raise ConfigError("configuration: " + "\n".join(problems))
    return config


def read_config(path: Path | None, environment: Mapping[str, str] = os.environ) -> tuple[Config, list[str]]:
    """Returns the configuration of a file and the environment without its wrong values, and all problems."""
    problems: list[str] = []
    values = _read_file(path, problems) if path else {}
    overrides = [found for name in environment if _is_ours(name) and (found := _override(name, environment, problems))]
    for override in sorted(overrides, key=lambda override: len(override.path)):  # a table before the keys in it
        _put(values, override, problems)
    names = {".".join(override.path): override.name for override in overrides}
    wrong = list(complaints(values, Config))
    problems += (f"{text} (set by {names[path]})" if path in names else text for path, text in wrong)
    while wrong:  # a rule about several keys may need a wrong one, so the values that remain are checked again
        for complaint in wrong:
            _drop(values, complaint.path)
        wrong = list(complaints(values, Config))
    return msgspec.convert(values, Config), problems


class _Override(NamedTuple):
    """A value from an environment variable, and the path of its key."""

    name: str
    path: tuple[str, ...]
    value: Any


def _read_file(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        problems.append(f"cannot read {path}: {error.strerror}")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problems.append(f"{path} is not TOML: {error}")
    return {}


def _is_ours(name: str) -> bool:
    return name.startswith(ENVIRONMENT_PREFIX) and name != CONFIG_FILE_VARIABLE


def _override(name: str, environment: Mapping[str, str], problems: list[str]) -> _Override | None:
    plain = name.removesuffix(FILE_SUFFIX)
    key = find(Config, plain.removeprefix(ENVIRONMENT_PREFIX).lower())
    if key is None or len(key.path) == 1:
        problems.append(f"environment variable {name} is not a configuration key (FUNDSVC_<SECTION>_<KEY>)")
        return None
    if plain != name and plain in environment:
        problems.append(f"environment variables {plain} and {name} are both set: remove one")
        return None
    text = environment[name] if plain == name else _read_value(name, environment[name], problems)
    try:
        return None if text is None else _Override(name, key.path, from_text(text, key.kind))
    except ValueError as error:
        problems.append(f"environment variable {name} must be JSON, {allowed(key.kind)}: {error}")
        return None


def _put(values: dict[str, Any], override: _Override, problems: list[str]) -> None:
    *outer, key = override.path
    table = values
    for depth, name in enumerate(outer, 1):
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            problems.append(f"[{'.'.join(outer[:depth])}] must be a table: {override.name} sets a key of it")
            return
    table[key] = override.value


def _drop(values: dict[str, Any], path: str) -> None:
    """Removes the value at a dotted path; the whole section if a name in the path contains dots; everything for ""."""
    section, *names = path.split(".")
    table: Any = values.get(section)
    for name in names[:-1]:
        table = table.get(name) if isinstance(table, dict) else None
    if names and isinstance(table, dict) and names[-1] in table:
        del table[names[-1]]
    elif section in values:
        del values[section]
    else:
        values.clear()


def _read_value(name: str, path: str, problems: list[str]) -> str | None:
    """Returns a file's content without the final newline that editors and shells add; None if it cannot be read."""
    try:
        return Path(path).read_text().removesuffix("\n")
    except OSError as error:
        problems.append(f"environment variable {name}: cannot read {path}: {error.strerror}")
    except ValueError as error:
        problems.append(f"environment variable {name}: {path} is not text: {error}")
    return None
