"""Access tokens: JSON Web Tokens that identify the caller of a request.

A shared secret verifies HS256. The public keys in a JWKS file verify RS256 and ES256; the service never has the private keys.
The token names its algorithm, and only keys configured for exactly that algorithm are used. A public key can therefore not
serve as a secret, and `none` is never accepted.

A token is valid until it expires, at most `token.hours_max` hours from now, or until its id (`jti`) is revoked.
"""

import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Generic, Literal, NamedTuple, TypeVar

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

Content = TypeVar("Content")

Role = Literal["trader", "engine", "risk"]
"""`trader` reads one account, `engine` posts events, `risk` reads all accounts."""

log = structlog.get_logger()


class Caller(NamedTuple):
    """The identity in a token, and the token's id, "" without one. `account` is "" unless the role is `trader`."""

    role: Role
    account: str
    subject: str
    token_id: str = ""

    @property
    def client(self) -> str:
        """The name under which limits count this caller. It differs from all addresses: no address begins with a role."""
        return f"{self.role}:{self.account or self.subject}"


class _Claims(msgspec.Struct):
    role: Role
    account: Account | None = None
    sub: Annotated[str, msgspec.Meta(max_length=256)] = ""
    jti: Annotated[str, msgspec.Meta(max_length=256)] = ""


class Tokens:
    """Verifies tokens with the configured secret and keys; raises ConfigError if these are invalid."""

    def __init__(self, config: TokenConfig) -> None:
        if config.secret and len(config.secret) < SECRET_LENGTH_MIN:
            raise ConfigError(f"token.secret has {len(config.secret)} characters: use at least {SECRET_LENGTH_MIN}")
        self._config = config
        self._keys = KeyFile(Path(config.keys)) if config.keys else None
        self._revoked = RevokedTokens(Path(config.revoked)) if config.revoked else None

    @property
    def configured(self) -> bool:
        """Whether a secret or keys are configured, so that a token can be valid."""
        return bool(self._config.secret or self._keys)

    def read(self, token: str) -> Caller:
        """Returns the caller of a token; raises WrongToken or ExpiredToken, whose messages never quote the token."""
        try:
            caller = _caller(self._claims(token))
        except (jwt.ExpiredSignatureError, jwt.ImmatureSignatureError) as error:
            raise ExpiredToken(
                f"{error}: get a new token; the issuer must have the right time and write it in seconds"
            ) from None
        except jwt.PyJWTError as error:
            raise WrongToken(f"the token is not accepted: {error}") from None
        except (TypeError, ValueError, ArithmeticError, RecursionError):  # PyJWT does not check the types of headers and claims
            raise WrongToken("the token is not accepted: it is not a JSON Web Token as in RFC 7519") from None
        if self.is_revoked(caller.token_id):
            raise WrongToken("the token is revoked: get a new one from its issuer")
        return caller

    def is_revoked(self, token_id: str) -> bool:
        """Returns whether the file of revoked tokens names an id; a token without an id cannot be revoked."""
        return bool(token_id and self._revoked and token_id in self._revoked)

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
        self._check_lifetime(claims)
        return claims

    def _check_lifetime(self, claims: dict[str, object]) -> None:
        """Raises WrongToken for a token that expires too late: a stolen token would be of use for so long."""
        hours = (float(str(claims["exp"])) - self._config.leeway_seconds - time.time()) / 3600
        if hours > self._config.hours_max:
            raise WrongToken(
                f"the token is valid for another {hours:,.0f} hours: it may be {self._config.hours_max:g} (token.hours_max);"
                " get one with a shorter lifetime"
            )

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
        self._file = RereadFile("token.keys", path, read_keys)

    def find(self, algorithm: str, key_id: object) -> jwt.PyJWK:
        """Returns the key for an algorithm and a key id; the id is optional if one key fits. Raises WrongToken."""
        match self._file.refresh():
            case "":
                log.info("keys read", keys=[key.key_id for key in self._file.content])
            case str(error):
                log.warning("keys unreadable", error=error)
        fitting = [key for key in self._file.content if key.algorithm_name == algorithm and key_id in {None, key.key_id}]
        if len(fitting) != 1:
            raise WrongToken(
                f"{len(fitting)} configured keys match the token's algorithm {algorithm} and its `kid`: exactly one must match"
            )
        return fitting[0]


class RevokedTokens:
    """The ids (`jti`) of revoked tokens in a file, one a line, with a comment after `#`. A changed file is read again."""

    def __init__(self, path: Path) -> None:
        self._file = RereadFile("token.revoked", path, read_revoked)

    def __contains__(self, token_id: str) -> bool:
        match self._file.refresh():
            case "":
                log.info("revocations read", tokens=len(self._file.content))
            case str(error):
                log.warning("revocations unreadable", error=error)
        return token_id in self._file.content


class RereadFile(Generic[Content]):
    """The content of a file that may change. A file that becomes unreadable or invalid leaves the previous content in use.

    Raises ConfigError, with the name of the `setting`, if the first read fails.
    """

    def __init__(self, setting: str, path: Path, read: Callable[[Path], Content]) -> None:
        self._path = path
        self._read = read
        self._version = _version(path)
        try:
            self.content = read(path)
        except OSError as error:
            raise ConfigError(f"{setting}: cannot read {path}: {error.strerror}") from None

    def refresh(self) -> str | None:
        """Reads a changed file. Returns None if it is unchanged or the failure is known, "" for new content, else the error."""
        version = _version(self._path)
        if version == self._version:
            return None
        self._version = version
        try:
            self.content = self._read(self._path)
        except (OSError, ConfigError) as error:
            return str(error)
        return ""


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


def read_revoked(path: Path) -> frozenset[str]:
    """Returns the ids in a file of revoked tokens; raises OSError, or ConfigError if it is not text."""
    try:
        words = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    except UnicodeDecodeError:
        raise ConfigError(f"token.revoked: {path} is not text: write one id (`jti`) a line") from None
    return frozenset(word for word in words if word)


def mint(config: TokenConfig, role: Role, account: str, subject: str, seconds: float) -> str:
    """Returns a token with an id of its own (`jti`) that expires after `seconds`, signed with the secret."""
    now = int(time.time())
    claims = {"aud": config.audience, "iat": now, "exp": now + int(seconds), "role": role, "jti": secrets.token_hex(12)}
    named = {"account": account, "sub": subject}
    return jwt.encode({**claims, **{name: value for name, value in named.items() if value}}, config.secret, "HS256")


def id_of(token: str) -> str:
    """Returns the `jti` of a token without a check of its signature, "" if it has none; raises ValueError for another text."""
    try:
        return str(jwt.decode(token, options={"verify_signature": False}).get("jti", ""))
    except jwt.PyJWTError:
        raise ValueError("the text is not a JSON Web Token as in RFC 7519") from None


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
        return Caller(read.role, "", read.sub, read.jti)
    if read.account is None or not read.account.isprintable():
        raise WrongToken("a trader's token must name an `account`")
    return Caller(read.role, read.account, read.sub, read.jti)
