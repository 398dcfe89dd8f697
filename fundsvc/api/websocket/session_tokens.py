"""Connection tokens: good for one connection, for a short time, from the address that asked for them.

A token is signed, so that any process with the same secret takes it. Each process remembers which it has taken until they have
expired, so a token is good once in each.
"""

import hmac
import secrets
import time
from collections import deque
from typing import NamedTuple

import jwt

from fundsvc.api.http.errors import WrongToken

_REQUIRED = ["exp", "aud", "account", "client", "jti"]


class Claims(NamedTuple):
    """What a connection token says: the account, "" for none, its own id, and until when (s) it is good."""

    account: str
    id: str
    expires: float


class ConnectionTokens:
    """Makes connection tokens and takes each once; `secret` may be "", then no other process takes them."""

    def __init__(self, secret: str, audience: str, leeway_seconds: float) -> None:
        # Of the secret, so that another process takes our tokens; but not the secret, so that none passes for an access token.
        self._key = hmac.digest(secret.encode() or secrets.token_bytes(32), audience.encode(), "sha256")
        self._audience = audience
        self._leeway = leeway_seconds
        self._redeemed: set[str] = set()
        self._expiring: deque[Claims] = deque()

    def sign(self, account: str, client: str, seconds: int) -> str:
        """A token for a client's address, and an account that it may see, for some time."""
        claims = {"aud": self._audience, "exp": int(time.time()) + seconds, "jti": secrets.token_urlsafe(12)}
        return jwt.encode({**claims, "account": account, "client": client}, self._key, "HS256")

    def verify(self, token: str, client: str) -> Claims:
        """What a token of this client says; raises WrongToken, also where it was taken before."""
        try:
            claims = jwt.decode(
                token, self._key, ["HS256"], audience=self._audience, leeway=self._leeway, options={"require": _REQUIRED}
            )
        except jwt.PyJWTError as error:
            raise _wrong(str(error)) from None
        if claims["client"] != client:
            raise _wrong("it was made for another address")
        found = Claims(str(claims["account"]), str(claims["jti"]), claims["exp"] + self._leeway)
        if found.id in self._redeemed:
            raise _wrong("it was used before")
        return found

    def redeem(self, claims: Claims) -> None:
        """Notes that a token was used for a connection; forgets those that have expired by now."""
        now = time.time()
        while self._expiring and self._expiring[0].expires < now:
            self._redeemed.discard(self._expiring.popleft().id)
        self._redeemed.add(claims.id)
        self._expiring.append(claims)


def _wrong(why: str) -> WrongToken:
    return WrongToken(f"the connection token is not good: {why}; get one by POST /api/v1/bullet-public")
