"""Compression: values of Accept-Encoding on every route that compresses."""

import gzip

import aiohttp
import pytest
from aiohttp import hdrs
from aiohttp.test_utils import make_mocked_request
from conftest import with_section
from ledgers import listing, owned
from live import serving
from multidict import CIMultiDict

from fundsvc.api.http.compression import accepts_gzip

PLAIN_HEADERS = (
    "",
    "identity",
    "gzip;q=0",
    "gzip;q=0, identity",
    "gzip; q=0.0",
    "gzip ;\tQ=0.000",
    "GZIP;q=0",
    "x-gzip-not",
    "notgzip",
    "gzip2, deflate, br",
    "*;q=0",
    "identity, *;q=0",
    "*, gzip;q=0",
    "gzip;q=0, *;q=1",
    "gzip;q=0.5, identity",
    "gzip;q=2",
    "gzip;q=",
    "gzip;level=9",
    "gzip gzip",
    '"gzip"',
)

GZIP_HEADERS = (
    "gzip",
    "GZIP",
    "Gzip",
    "x-gzip",
    "X-GZIP;q=0.1",
    "*",
    "*;q=0.001",
    "br, gzip",
    "deflate,gzip;q=1.0,*;q=0.5",
    "gzip;q=0.001",
    "gzip;q=1.000, identity; q=0.5, *;q=0",
    "identity;q=0, gzip",
    "br;q=0, gzip ; q=1",
    ",gzip,",
)


def accepts(*values):
    headers = CIMultiDict((hdrs.ACCEPT_ENCODING, value) for value in values)
    return accepts_gzip(make_mocked_request("GET", "/", headers))


@pytest.mark.parametrize("value", PLAIN_HEADERS)
def test_plain_bytes_are_sent_unless_gzip_is_preferred(value):
    assert not accepts(value)


@pytest.mark.parametrize("value", GZIP_HEADERS)
def test_gzip_is_sent_if_it_is_acceptable(value):
    assert accepts(value)


def test_repeated_headers_are_one_list_and_a_missing_header_means_plain():
    assert accepts("br", "gzip")
    assert not accepts("br", "gzip;q=0")
    assert not accepts()


@pytest.fixture
async def http(config):
    config = with_section(config, "http", port=0, requests_max=100_000)
    async with owned(config) as owner:
        await owner.settle([listing(f"C{number}") for number in range(60)])
        async with serving(config) as service, aiohttp.ClientSession(service.url, auto_decompress=False) as http:
            yield http


@pytest.mark.parametrize("path", ["/", "/docs/index", "/docs/reference/start.js", "/api/v1/insurance-fund"])
async def test_every_compressing_route_respects_accept_encoding(http, path):
    bodies = set()
    for value, gzipped in {**dict.fromkeys(PLAIN_HEADERS, False), **dict.fromkeys(GZIP_HEADERS, True)}.items():
        async with http.get(path, headers={"Accept-Encoding": value}) as answer:
            assert (answer.headers.get("Content-Encoding") == "gzip") == gzipped, value
            assert answer.headers["Vary"] == "Accept-Encoding"
            body = await answer.read()
            bodies.add(gzip.decompress(body) if gzipped else body)
    assert len(bodies) == 1 or path == "/api/v1/insurance-fund"
