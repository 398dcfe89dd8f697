"""Commitments to accounts: what is sealed in the place of an account, so that public hashes reveal none.

    salt       = HMAC-SHA-256(key = ledger secret, MessagePack array [symbol, entry number])
    commitment = HMAC-SHA-256(key = salt, account)

Without the secret nobody can try accounts. The salt of one entry opens that entry and no other. The same secret gives the same
commitments, so the same events give the same chain. A seal holds the commitment and the id of its secret: a chain is verified
without any secret, and an opening by the secret that made it.
"""

from collections.abc import Iterable
from hashlib import sha256
from typing import NamedTuple

import msgspec

KEY_ID_BYTES = 4
"""Enough to tell the few secrets apart that a ledger has in its life."""

SEAL_BYTES = KEY_ID_BYTES + 32
"""The id of the secret, then the commitment."""

_BLOCK_BYTES = 64
_INNER, _OUTER = (bytes(byte ^ pad for byte in range(256)) for pad in (0x36, 0x5C))
_INNER_REST, _OUTER_REST = (bytes([pad]) * (_BLOCK_BYTES - sha256().digest_size) for pad in (0x36, 0x5C))
"""HMAC's block of SHA-256, and what it XORs a key with and fills a key of 32 bytes up with (RFC 2104). Written out, an HMAC
takes half as long as `hmac.digest`, and each fill needs two.
"""

_KEY_ID = b"fundsvc ledger secret"
"""Its HMAC begins with the id of a secret. No MessagePack array begins with these bytes, so it is no entry's salt."""

_encode = msgspec.msgpack.Encoder().encode


class LedgerSecret:
    """A secret that makes the salts of entries; `key_id` names it and does not reveal it."""

    def __init__(self, secret: str) -> None:
        key = secret.encode()
        key = (sha256(key).digest() if len(key) > _BLOCK_BYTES else key).ljust(_BLOCK_BYTES, b"\0")
        # The states of HMAC after its key: kept, they make a salt in a third of the time.
        self._inner, self._outer = sha256(key.translate(_INNER)), sha256(key.translate(_OUTER))
        self.key_id = self._hmac(_KEY_ID)[:KEY_ID_BYTES]

    def salt(self, symbol: str, entry: int) -> bytes:
        """The salt of an entry: 32 bytes."""
        return self._hmac(_encode((symbol, entry)))

    def seal(self, symbol: str, entry: int, account: str) -> bytes:
        """The seal of an entry's account: SEAL_BYTES; empty where there is no account to hide."""
        return self.key_id + commitment(self.salt(symbol, entry), account) if account else b""

    def _hmac(self, message: bytes) -> bytes:
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(message)
        outer.update(inner.digest())
        return outer.digest()


class Seal(NamedTuple):
    """The parts of a seal."""

    key_id: bytes
    commitment: bytes


class Secrets:
    """The ledger secrets that are known: `current` seals new entries, None seals their accounts as they are.

    `previous` are those of before, which open what they sealed.
    """

    def __init__(self, current: LedgerSecret | None = None, previous: Iterable[LedgerSecret] = ()) -> None:
        self.current = current
        known = (*previous, current) if current else tuple(previous)
        self._known = {secret.key_id: secret for secret in known}

    def salt(self, symbol: str, entry: int, seal: bytes) -> bytes | None:
        """The salt that opens the seal of an entry; None where its secret is not known, or there is no seal."""
        secret = self._known.get(seal[:KEY_ID_BYTES])
        return secret.salt(symbol, entry) if secret else None


NO_SECRETS = Secrets()
"""Where none is known."""


def secrets_of(current: str, previous: Iterable[str]) -> Secrets:
    """The secrets of a configuration; "" is none."""
    return Secrets(LedgerSecret(current) if current else None, [LedgerSecret(one) for one in previous])


def commitment(salt: bytes, account: str) -> bytes:
    """What an account is committed to by a salt: HMAC-SHA-256, 32 bytes."""
    inner = sha256(salt.translate(_INNER) + _INNER_REST + account.encode()).digest()
    return sha256(salt.translate(_OUTER) + _OUTER_REST + inner).digest()


def seal_parts(seal: bytes) -> Seal:
    """The id of the secret and the commitment in a seal, both empty in an empty one."""
    return Seal(seal[:KEY_ID_BYTES], seal[KEY_ID_BYTES:])
