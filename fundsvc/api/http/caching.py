"""Lets shared caches keep public answers for a second, and lets clients and caches revalidate what they have."""

from collections.abc import Mapping
from hashlib import sha256

from aiohttp import hdrs, web

SHARED = "public, max-age=0, s-maxage=1"
"""A shared cache passes on one request a second for each address. A browser revalidates, so a page shows no old balance."""

ETAG = "ETag"
"""The header with the version of an answer, as RFC 9110 spells it; aiohttp's constant has another case."""

HASH_LENGTH = 16
"""Hexadecimal digits of a hash: 64 bits distinguish the versions of an answer."""


def digest(content: bytes) -> str:
    """Returns a short hash of the content."""
    return sha256(content).hexdigest()[:HASH_LENGTH]


def validated(version: str) -> Mapping[str, str]:
    """Returns the header with the version of an answer. It is weak, because gzipped and plain bytes have the same one."""
    return {ETAG: f'W/"{version}"'}


def is_current(request: web.Request, version: str) -> bool:
    """Returns whether the client has this version already, so that 304 suffices."""
    return hdrs.IF_NONE_MATCH in request.headers and any(tag.value in (version, "*") for tag in request.if_none_match or ())
