"""Commitments to accounts: entries seal a commitment in place of the account, so that public hashes do not reveal it.

    salt       = HMAC-SHA-256(key = ledger secret, MessagePack array [symbol, entry number])
    commitment = HMAC-SHA-256(key = salt, account)

Accounts cannot be guessed without the secret. A salt opens one entry only. The same secret and events give the same chain. A
seal contains the commitment and the id of its secret. Verifying a chain needs no secret; verifying an opening needs the secret
that made the seal.
"""

from collections.abc import Iterable
from hashlib import sha256
from hmac import compare_digest
from typing import NamedTuple

import msgspec

KEY_ID_BYTES = 4
"""Long enough to distinguish the few secrets that one ledger uses."""

SEAL_BYTES = KEY_ID_BYTES + 32
"""The id of the secret, then the commitment."""

_BLOCK_BYTES = 64
_INNER, _OUTER = (bytes(byte ^ pad for byte in range(256)) for pad in (0x36, 0x5C))
_INNER_REST, _OUTER_REST = (bytes([pad]) * (_BLOCK_BYTES - sha256().digest_size) for pad in (0x36, 0x5C))
"""The constants of HMAC-SHA-256 (RFC 2104): the block size, the translation tables that XOR a key with the pads, and the
padding of a 32-byte key. This implementation takes half the time of `hmac.digest`, and each fill needs two HMACs.
"""

_KEY_ID = b"fundsvc ledger secret"
"""The HMAC of this message begins with the id of a secret. It is not a salt: no MessagePack array begins with these bytes."""

_encode = msgspec.msgpack.Encoder().encode


class LedgerSecret:
    """A secret that derives the salts of entries. `key_id` identifies the secret without revealing it."""

    def __init__(self, secret: str) -> None:
        key = secret.encode()
        key = (sha256(key).digest() if len(key) > _BLOCK_BYTES else key).ljust(_BLOCK_BYTES, b"\0")
        # Copies of these hash states, which include the key, derive a salt in a third of the time.
        self._inner, self._outer = sha256(key.translate(_INNER)), sha256(key.translate(_OUTER))
        self.key_id = self._hmac(_KEY_ID)[:KEY_ID_BYTES]

    def salt(self, symbol: str, entry: int) -> bytes:
        """Returns the salt of an entry: 32 bytes."""
        return self._hmac(_encode((symbol, entry)))

    def seal(self, symbol: str, entry: int, account: str) -> bytes:
        """Returns the seal of an entry's account, SEAL_BYTES long; empty if the entry has no account."""
        return self.key_id + commitment(self.salt(symbol, entry), account) if account else b""

    def sign(self, message: bytes) -> bytes:
        """Returns the signature of a message that is neither an array nor begins like the message of the key id: 36 bytes."""
        return self.key_id + self._hmac(message)

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
    """The configured ledger secrets.

    `current` seals new entries; if it is None, entries contain the accounts themselves. `previous` are earlier secrets, which
    open the entries that they sealed.
    """

    def __init__(self, current: LedgerSecret | None = None, previous: Iterable[LedgerSecret] = ()) -> None:
        self.current = current
        known = (*previous, current) if current else tuple(previous)
        self._known = {secret.key_id: secret for secret in known}

    def salt(self, symbol: str, entry: int, seal: bytes) -> bytes | None:
        """Returns the salt that opens the seal of an entry; None without a seal, or if its secret is not configured."""
        secret = self._known.get(seal[:KEY_ID_BYTES])
        return secret.salt(symbol, entry) if secret else None

    def sign(self, message: bytes) -> bytes:
        """Returns the signature of a message under the current secret; empty without one."""
        return self.current.sign(message) if self.current else b""

    def has_signed(self, message: bytes, signature: bytes) -> bool | None:
        """Whether a signature is that of a message; None if it is empty or its secret is not configured."""
        secret = self._known.get(signature[:KEY_ID_BYTES])
        return compare_digest(signature, secret.sign(message)) if secret else None


NO_SECRETS = Secrets()


def secrets_of(current: str, previous: Iterable[str]) -> Secrets:
    """Returns the secrets of a configuration; "" means no secret."""
    return Secrets(LedgerSecret(current) if current else None, [LedgerSecret(one) for one in previous])


def commitment(salt: bytes, account: str) -> bytes:
    """Returns the commitment to an account: HMAC-SHA-256 under the salt, 32 bytes."""
    inner = sha256(salt.translate(_INNER) + _INNER_REST + account.encode()).digest()
    return sha256(salt.translate(_OUTER) + _OUTER_REST + inner).digest()


def seal_parts(seal: bytes) -> Seal:
    """Splits a seal; both parts of an empty seal are empty."""
    return Seal(seal[:KEY_ID_BYTES], seal[KEY_ID_BYTES:])
