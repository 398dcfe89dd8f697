"""Rejects compressed request bodies: a small body could expand a thousandfold and exhaust memory."""

from aiohttp import hdrs, web

from fundsvc.api.http.errors import WrongMedia

IDENTITY = frozenset({"", "identity"})
"""The names of the identity coding (RFC 9110, section 8.4)."""

CHUNKED = frozenset({"", "chunked"})
"""The only transfer coding that keeps the bytes of a body."""


def check_uncompressed(request: web.Request) -> None:
    """Raises WrongMedia if a request declares a compressed body."""
    headers = request.headers
    if hdrs.CONTENT_ENCODING in headers or hdrs.TRANSFER_ENCODING in headers:
        _check(request, hdrs.CONTENT_ENCODING, IDENTITY)
        _check(request, hdrs.TRANSFER_ENCODING, CHUNKED)


def _check(request: web.Request, name: str, allowed: frozenset[str]) -> None:
    codings = {coding.strip().lower() for value in request.headers.getall(name, ()) for coding in value.split(",")}
    if not codings <= allowed:
        raise WrongMedia(f"{name} is {', '.join(sorted(codings - allowed))[:60]!r}: send the body uncompressed")
