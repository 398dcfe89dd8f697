"""Identifies the client of a request without a token: one IPv4 address or one IPv6 /64, in any notation."""

import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

from aiohttp import hdrs, web

UNKNOWN = "unknown"
"""The client of all requests whose address cannot be parsed."""

ADDRESS_LENGTH_MAX = 80
"""Exceeds the longest address with brackets, zone and port. Longer text is not an address and is not cached."""

ADDRESSES_CACHED_MAX = 10_000
"""Some 2 MB; parsing takes microseconds, so a miss costs little."""

SUBSCRIBER_BITS = 64
"""The smallest prefix that a provider assigns to a subscriber (RFC 6177). The subscriber may use all its addresses."""

_WITH_PORT = re.compile(r"\[(?P<bracketed>[^\]]*)\](?::\d+)?|(?P<dotted>[^\[\]]*\.\d+):\d+", re.ASCII)
"""An IPv6 address in brackets with an optional port, or an address with a dotted end and a port."""


def client_address(peer: str | None, forwarded: Sequence[str], proxies: int) -> str:
    """Returns the client of a request from `peer` with X-Forwarded-For headers, behind `proxies` trusted proxies.

    The outermost trusted proxy appends the entry that counts; a client can forge the entries before it. Without that entry the
    peer is the client.
    """
    if proxies:
        hops = ",".join(forwarded).split(",")
        if len(hops) >= proxies and (hop := hops[-proxies].strip()):
            return _client(hop)
    return _client(peer or "")


def address_of(request: web.BaseRequest, proxies: int) -> str:
    """Returns the address of the client of a request."""
    forwarded = request.headers.getall(hdrs.X_FORWARDED_FOR, ()) if proxies else ()
    return client_address(request.remote, forwarded, proxies)


def _client(text: str) -> str:
    return _parsed(text) if len(text) <= ADDRESS_LENGTH_MAX else UNKNOWN


@lru_cache(ADDRESSES_CACHED_MAX)
def _parsed(text: str) -> str:
    text = text.strip('" \t')
    found = _WITH_PORT.fullmatch(text)
    try:
        address = ip_address((found["bracketed"] or found["dotted"] or "") if found else text)
    except ValueError:
        return UNKNOWN
    return str(_subscriber(address))


def _subscriber(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Network:
    if isinstance(address, IPv4Address):
        return address
    return address.ipv4_mapped or IPv6Network((int(address), SUBSCRIBER_BITS), strict=False)
