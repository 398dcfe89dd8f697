"""Connection tokens: valid for one connection, for a short time, from the address that requested them.

Tokens are signed, so any process with the same secret accepts them. Each process remembers the tokens that it has accepted
until they expire, so a token is valid once per process, and once for all processes that share their limits.
"""

import hmac
import secrets
import time
from collections import deque
from typing import NamedTuple

import jwt

from fundsvc.api.http.errors import WrongToken

_REQUIRED = ["exp", "aud", "account", "role", "client", "jti"]


class Claims(NamedTuple):
    """The claims of a connection token: role and account, id, and the time in seconds at which it expires.

    `access_token` is the id of the access token with which it was requested. Role, account and this id are "" without an
    access token.
    """

    role: str
    account: str
    id: str
    expires: float
    access_token: str


class ConnectionTokens:
    """Signs connection tokens and accepts each once. With an empty `secret` only this process accepts them."""

    def __init__(self, secret: str, audience: str, leeway_seconds: float) -> None:
        # Derived from the secret, so that other processes accept the tokens. Not the secret itself: a connection token must
        # not be a valid access token.
        self._key = hmac.digest(secret.encode() or secrets.token_bytes(32), audience.encode(), "sha256")
        self._audience = audience
        self._leeway = leeway_seconds
        self._redeemed: set[str] = set()
        self._expiring: deque[Claims] = deque()

    def sign(self, role: str, account: str, client: str, seconds: int, access_token: str = "") -> str:
        """Returns a token for the address `client`, a role and an account, valid for `seconds`.

        `access_token` is the id of the access token with which it was requested.
        """
        claims = {"aud": self._audience, "exp": int(time.time()) + seconds, "jti": secrets.token_urlsafe(12)}
        claims |= {"role": role, "account": account, "client": client, "from": access_token}
        return jwt.encode(claims, self._key, "HS256")

    def verify(self, token: str, client: str) -> Claims:
        """Returns the claims of a token from the address `client`. Raises WrongToken, also if the token was redeemed before."""
        try:
            claims = jwt.decode(
                token, self._key, ["HS256"], audience=self._audience, leeway=self._leeway, options={"require": _REQUIRED}
            )
        except jwt.PyJWTError as error:
            raise _wrong(str(error)) from None
        if claims["client"] != client:
            raise _wrong("it was issued to another address")
        expires = claims["exp"] + self._leeway
        ids = str(claims["role"]), str(claims["account"]), str(claims["jti"])
        found = Claims(*ids, expires, str(claims.get("from", "")))
        if found.id in self._redeemed:
            raise used_before()
        return found

    def redeem(self, claims: Claims) -> None:
        """Records that a token was used. Drops the records of expired tokens."""
        now = time.time()
        while self._expiring and self._expiring[0].expires < now:
            self._redeemed.discard(self._expiring.popleft().id)
        self._redeemed.add(claims.id)
        self._expiring.append(claims)


def used_before() -> WrongToken:
    """Returns the error for a token that was redeemed before."""
    return _wrong("it was used before")


def _wrong(reason: str) -> WrongToken:
    return WrongToken(f"the connection token is not valid: {reason}; request one with POST /api/v1/bullet-public")
