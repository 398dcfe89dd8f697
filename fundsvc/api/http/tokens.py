"""Access tokens: JSON Web Tokens that say who asks, believed only when signed as this service is configured to expect.

A shared secret signs HS256; private keys that we never see sign RS256 or ES256, and a JWKS file holds their public halves.
Which key fits is decided by the algorithm that the token names, but only among those that are configured for that very
algorithm: a public key can never pass for a secret, and `none` fits nothing.
"""

import time
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import jwt
import msgspec
import structlog

from fundsvc.api.http.errors import ExpiredToken, WrongToken
from fundsvc.config.settings import SECRET_LENGTH_MIN, ConfigError, TokenConfig
from fundsvc.core.events import TIMESTAMP_MAX, Account
from fundsvc.wire.duplicate_keys import decode_json

PUBLIC_ALGORITHMS = frozenset({"RS256", "ES256"})
"""What every issuer offers; one of each kind, so that a key's kind says its algorithm."""

TIMES = frozenset({"exp", "nbf", "iat"})
"""Claims that RFC 7519, section 2, defines as a number of seconds since the epoch."""

SECONDS_MAX = TIMESTAMP_MAX // 1000
"""The year 9999, as for all times here. Milliseconds of any day since 1978 are above it."""

Role = Literal["trader", "engine", "risk"]
"""A trader speaks for one account, the engine sends events, risk sees every account."""

log = structlog.get_logger()


class Caller(NamedTuple):
    """Whom a token speaks for; `account` is a trader's, "" otherwise."""

    role: Role
    account: str
    subject: str


class _Claims(msgspec.Struct):
    role: Role
    account: Account | None = None
    sub: Annotated[str, msgspec.Meta(max_length=256)] = ""


class Tokens:
    """Reads tokens by the configured secret and keys; raises ConfigError where those are not what they must be."""

    def __init__(self, config: TokenConfig) -> None:
        if config.secret and len(config.secret) < SECRET_LENGTH_MIN:
            raise ConfigError(f"token.secret has {len(config.secret)} characters: it must have {SECRET_LENGTH_MIN} or more")
        self._config = config
        self._keys = KeyFile(Path(config.keys)) if config.keys else None

    @property
    def configured(self) -> bool:
        """Whether any token can be good."""
        return bool(self._config.secret or self._keys)

    def read(self, token: str) -> Caller:
        """The caller that a token makes; raises WrongToken or ExpiredToken, saying what to do, and never quotes the token."""
        try:
            return _caller(self._claims(token))
        except (jwt.ExpiredSignatureError, jwt.ImmatureSignatureError) as error:
            raise ExpiredToken(
                f"{error}: get a new one, and check the clock and the unit (seconds) of who signs them"
            ) from None
        except jwt.PyJWTError as error:
            raise WrongToken(f"the token is not accepted: {error}") from None
        except (TypeError, ValueError, ArithmeticError, RecursionError):  # the driver trusts a header's and claims' types
            raise WrongToken("the token is not accepted: it is not one that RFC 7519 describes") from None

    def _claims(self, token: str) -> dict[str, object]:
        header = jwt.get_unverified_header(token)
        algorithm = str(header.get("alg"))
        claims: dict[str, object] = jwt.decode(
            token,
            self._key(algorithm, header.get("kid")),
            algorithms=[algorithm],
            audience=self._config.audience,
            leeway=self._config.leeway_seconds,
            options={"require": ["exp", "aud"], "enforce_minimum_key_length": True},
        )
        _check_times(claims)
        return claims

    def _key(self, algorithm: str, key_id: object) -> jwt.PyJWK | str:
        if algorithm == "HS256" and self._config.secret:
            return self._config.secret
        if algorithm in PUBLIC_ALGORITHMS and self._keys:
            return self._keys.find(algorithm, key_id)
        accepted = [*(["HS256"] if self._config.secret else []), *(sorted(PUBLIC_ALGORITHMS) if self._keys else [])]
        raise WrongToken(f"the token must be signed by {' or '.join(accepted) or 'nobody'}, not as it is")


class KeyFile:
    """The public keys of a JWKS file, read again when that changes: keys rotate without a restart."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version = _version(path)
        try:
            self._keys = read_keys(path)
        except OSError as error:
            raise ConfigError(f"token.keys: cannot read {path}: {error.strerror}") from None

    def find(self, algorithm: str, key_id: object) -> jwt.PyJWK:
        """The key of an algorithm with an id, which may be left out where there is but one; raises WrongToken."""
        self._refresh()
        fitting = [key for key in self._keys if key.algorithm_name == algorithm and key_id in {None, key.key_id}]
        if len(fitting) != 1:
            raise WrongToken(
                f"{len(fitting)} of the configured keys are for {algorithm} and have the token's `kid`: it takes one"
            )
        return fitting[0]

    def _refresh(self) -> None:
        """Reads the file if it is another one than before; what cannot be read leaves the keys that there were."""
        version = _version(self._path)
        if version == self._version:
            return
        self._version = version
        try:
            self._keys = read_keys(self._path)
            log.info("keys read", keys=[key.key_id for key in self._keys])
        except (OSError, ConfigError) as error:
            log.warning("keys unreadable", error=str(error))


def read_keys(path: Path) -> list[jwt.PyJWK]:
    """The keys of a JWKS file; raises OSError, or ConfigError where it holds anything but public keys that we can use."""
    try:
        found = decode_json(path.read_bytes(), dict[str, list[dict[str, object]]])["keys"]
        keys = [jwt.PyJWK(key) for key in found]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, ValueError, jwt.PyJWTError):
        raise ConfigError(f'token.keys: {path} is not a JWKS file: {{"keys": [...]}} with keys of RFC 7517') from None
    if any(key.algorithm_name not in PUBLIC_ALGORITHMS or "d" in raw for key, raw in zip(keys, found, strict=True)):
        raise ConfigError(f"token.keys: {path} may hold public keys for {' and '.join(sorted(PUBLIC_ALGORITHMS))} alone")
    return keys


def mint(config: TokenConfig, role: Role, account: str, subject: str, seconds: float) -> str:
    """A token for some time, signed with the secret."""
    now = int(time.time())
    claims = {"aud": config.audience, "iat": now, "exp": now + int(seconds), "role": role}
    named = {"account": account, "sub": subject}
    return jwt.encode({**claims, **{name: value for name, value in named.items() if value}}, config.secret, "HS256")


def _version(path: Path) -> tuple[int, int, int] | None:
    """What differs when a file was replaced or written again; None without one."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _check_times(claims: dict[str, object]) -> None:
    """Raises WrongToken for times of another type or unit. The driver takes these; milliseconds would last 50,000 years."""
    for name in TIMES & claims.keys():
        time = claims[name]
        if type(time) not in (int, float) or not 0 <= time <= SECONDS_MAX:  # type: ignore[operator] # it is a number here
            raise WrongToken(f"the token's {name} must be a number of seconds since the epoch, not text or milliseconds")


def _caller(claims: dict[str, object]) -> Caller:
    try:
        read = msgspec.convert(claims, _Claims)
    except msgspec.ValidationError as error:
        raise WrongToken(f"the token's claims are not what they must be: {error}") from None
    if read.role != "trader":
        return Caller(read.role, "", read.sub)
    if read.account is None or not read.account.isprintable():
        raise WrongToken("a trader's token must name an `account`")
    return Caller(read.role, read.account, read.sub)
