"""Access tokens: JSON Web Tokens that identify the caller of a request.

A shared secret verifies HS256. The public keys in a JWKS file verify RS256 and ES256; the service never has the private keys.
The token names its algorithm, and only keys configured for exactly that algorithm are used. A public key can therefore not
serve as a secret, and `none` is never accepted.
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
"""The algorithms of public keys. There is one for each key type, so the key type determines the algorithm."""

TIMES = frozenset({"exp", "nbf", "iat"})
"""Claims that are seconds since the epoch (RFC 7519, section 2)."""

SECONDS_MAX = TIMESTAMP_MAX // 1000
"""The year 9999, as for all times of the service. Milliseconds of any day since 1978 exceed it."""

Role = Literal["trader", "engine", "risk"]
"""`trader` reads one account, `engine` posts events, `risk` reads all accounts."""

log = structlog.get_logger()


class Caller(NamedTuple):
    """The identity in a token. `account` is "" unless the role is `trader`."""

    role: Role
    account: str
    subject: str

    @property
    def client(self) -> str:
        """The name under which limits count this caller. It differs from all addresses: no address begins with a role."""
        return f"{self.role}:{self.account or self.subject}"


class _Claims(msgspec.Struct):
    role: Role
    account: Account | None = None
    sub: Annotated[str, msgspec.Meta(max_length=256)] = ""


class Tokens:
    """Verifies tokens with the configured secret and keys; raises ConfigError if these are invalid."""

    def __init__(self, config: TokenConfig) -> None:
        if config.secret and len(config.secret) < SECRET_LENGTH_MIN:
            raise ConfigError(f"token.secret has {len(config.secret)} characters: use at least {SECRET_LENGTH_MIN}")
        self._config = config
        self._keys = KeyFile(Path(config.keys)) if config.keys else None

    @property
    def configured(self) -> bool:
        """Whether a secret or keys are configured, so that a token can be valid."""
        return bool(self._config.secret or self._keys)

    def read(self, token: str) -> Caller:
        """Returns the caller of a token; raises WrongToken or ExpiredToken, whose messages never quote the token."""
        try:
            return _caller(self._claims(token))
        except (jwt.ExpiredSignatureError, jwt.ImmatureSignatureError) as error:
            raise ExpiredToken(
                f"{error}: get a new token; the issuer must have the right time and write it in seconds"
            ) from None
        except jwt.PyJWTError as error:
            raise WrongToken(f"the token is not accepted: {error}") from None
        except (TypeError, ValueError, ArithmeticError, RecursionError):  # PyJWT does not check the types of headers and claims
            raise WrongToken("the token is not accepted: it is not a JSON Web Token as in RFC 7519") from None

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
        raise WrongToken(f"the token's algorithm is not accepted: sign the token by {' or '.join(accepted) or 'no algorithm'}")


class KeyFile:
    """The public keys of a JWKS file. A changed file is read again, so keys rotate without a restart."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version = _version(path)
        try:
            self._keys = read_keys(path)
        except OSError as error:
            raise ConfigError(f"token.keys: cannot read {path}: {error.strerror}") from None

    def find(self, algorithm: str, key_id: object) -> jwt.PyJWK:
        """Returns the key for an algorithm and a key id; the id is optional if one key fits. Raises WrongToken."""
        self._refresh()
        fitting = [key for key in self._keys if key.algorithm_name == algorithm and key_id in {None, key.key_id}]
        if len(fitting) != 1:
            raise WrongToken(
                f"{len(fitting)} configured keys match the token's algorithm {algorithm} and its `kid`: exactly one must match"
            )
        return fitting[0]

    def _refresh(self) -> None:
        """Reads a changed file. If it is unreadable or invalid, the previous keys stay in use."""
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
    """Returns the keys of a JWKS file; raises OSError, or ConfigError unless all are supported public keys."""
    try:
        found = decode_json(path.read_bytes(), dict[str, list[dict[str, object]]])["keys"]
        keys = [jwt.PyJWK(key) for key in found]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, ValueError, jwt.PyJWTError):
        raise ConfigError(f'token.keys: {path} is not a JWKS file: {{"keys": [...]}} with keys of RFC 7517') from None
    if any(key.algorithm_name not in PUBLIC_ALGORITHMS or "d" in raw for key, raw in zip(keys, found, strict=True)):
        raise ConfigError(f"token.keys: {path} must contain only public keys for {' and '.join(sorted(PUBLIC_ALGORITHMS))}")
    return keys


def mint(config: TokenConfig, role: Role, account: str, subject: str, seconds: float) -> str:
    """Returns a token that expires after `seconds`, signed with the secret."""
    now = int(time.time())
    claims = {"aud": config.audience, "iat": now, "exp": now + int(seconds), "role": role}
    named = {"account": account, "sub": subject}
    return jwt.encode({**claims, **{name: value for name, value in named.items() if value}}, config.secret, "HS256")


def _version(path: Path) -> tuple[int, int, int] | None:
    """Returns a value that changes when a file is replaced or written; None without a file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _check_times(claims: dict[str, object]) -> None:
    """Raises WrongToken for times of a wrong type or unit. PyJWT accepts milliseconds, which expire after 50,000 years."""
    for name in TIMES & claims.keys():
        time = claims[name]
        if type(time) not in (int, float) or not 0 <= time <= SECONDS_MAX:  # type: ignore[operator] # type() is int or float
            raise WrongToken(f"the token's {name} must be a number of seconds since the epoch")


def _caller(claims: dict[str, object]) -> Caller:
    try:
        read = msgspec.convert(claims, _Claims)
    except msgspec.ValidationError as error:
        raise WrongToken(f"the token's claims are invalid: {error}") from None
    if read.role != "trader":
        return Caller(read.role, "", read.sub)
    if read.account is None or not read.account.isprintable():
        raise WrongToken("a trader's token must name an `account`")
    return Caller(read.role, read.account, read.sub)
