"""Public answers may be kept by shared caches for a second, and are answered with 304 to a client that has them."""

import re

import aiohttp
import msgspec
import pytest
from conftest import with_section
from eventually import eventually
from served import contract, fill, served
from tokens import bearer, with_secret

SHARED = "public, max-age=0, s-maxage=1"
SYMBOLS = [f"S{number:03d}USDTM" for number in range(150)]

PUBLIC = [
    "/api/v1/contracts/active",
    "/api/v1/contracts/AAA",
    "/api/v1/insurance-fund",
    "/api/v1/insurance-fund/AAA",
    "/api/v1/insurance-fund/AAA?numbers=string",
    "/api/v1/insurance-fund/AAA/history",
    "/api/v1/insurance-fund/AAA/inventory",
    "/api/v1/insurance-fund/summary",
    "/api/v1/policies",
]
UNCACHED = ["/api/v1/timestamp", "/api/v1/adl/AAA/queue", "/api/v1/adl/AAA/orders", "/api/v1/insurance-fund/AAA/entries/1"]
PRIVATE = ["/api/v1/adl/positions?account=anna", "/api/v1/ingest/cursor"]
STABLE = ["/api/v1/contracts/active", "/api/v1/contracts/AAA", "/api/v1/policies"]
"""Paths whose answers change only with the contracts, so that two of them are equal."""


@pytest.fixture
async def service(config):
    async with served(with_section(with_secret(config), "http", origins=("https://page.test",))) as service:
        await service.append(contract("AAA"), *map(contract, SYMBOLS), fill("AAA", 1))
        await service.fund("AAA")
        await eventually(lambda: has_all_policies(service))
        yield service


async def has_all_policies(service):
    """Whether the recorded policies of all contracts are shown: the answer is final."""
    return sorted(symbol for policy in await service.get("/api/v1/policies") for symbol in policy["symbols"]) == [
        "AAA",
        *SYMBOLS,
    ]


async def ask(service, path, method="GET", **headers):
    async with service.http.request(method, path, headers=headers) as answer:
        return answer.status, answer.headers, await answer.read()


async def test_only_public_answers_are_cached(service):
    for path in PUBLIC:
        status, headers, _ = await ask(service, path)
        assert (path, status, headers.get("Cache-Control")) == (path, 200, SHARED)
        assert headers["ETag"].startswith('W/"')
    for path in UNCACHED:
        status, headers, _ = await ask(service, path)
        assert (path, status, headers.get("Cache-Control"), "ETag" in headers) == (path, 200, None, False)
    for path in (*UNCACHED[1:], *PRIVATE):
        _, headers, _ = await ask(service, path, **bearer("risk"))
        assert (path, headers.get("Cache-Control"), "ETag" in headers) == (path, "no-store", False)
    for path in ("/api/v1/insurance-fund/NONE", "/api/v1/insurance-fund/AAA?x=1"):
        status, headers, _ = await ask(service, path)
        assert (status >= 400, "Cache-Control" in headers) == (True, False)


@pytest.mark.parametrize("path", STABLE)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_answer_that_the_client_has_is_304_with_the_same_headers(service, path, method):
    _, first, body = await ask(service, path)
    assert body
    for known in (first["ETag"], first["ETag"].removeprefix("W/"), f'"other", {first["ETag"]}', "*"):
        status, headers, body = await ask(service, path, method, **{"If-None-Match": known, "Origin": "https://page.test"})
        assert (status, body) == (304, b"")
        names = ("ETag", "Cache-Control")
        assert [headers[name] for name in names] == [first[name] for name in names]
        assert ("Accept-Encoding" in headers.get("Vary", "")) == ("Accept-Encoding" in first.get("Vary", ""))
        assert headers["Access-Control-Allow-Origin"] == "https://page.test"
    for other in ('"other"', "W/other", '"', ""):
        assert (await ask(service, path, method, **{"If-None-Match": other}))[0] == 200


async def test_document_lists_304_for_the_paths_whose_answers_have_a_version(service):
    _, _, body = await ask(service, "/openapi.json")
    templates = msgspec.json.decode(body)["paths"]
    for path in (*PUBLIC, *UNCACHED, *PRIVATE):
        plain = path.partition("?")[0]
        matching = [template for template in templates if re.fullmatch(re.sub(r"{\w+}", "[^/]+", template), plain)]
        operation = templates[min(matching, key=lambda template: template.count("{"))]["get"]
        listed = "304" in operation["responses"], "ETag" in operation["responses"]["200"].get("headers", {})
        assert (path, listed) == (path, (path in PUBLIC,) * 2)


async def test_gzipped_and_plain_answers_have_one_version(service):
    path = "/api/v1/contracts/active"
    async with aiohttp.ClientSession(service.url, auto_decompress=False) as client:
        found = []
        for coding in ("gzip", "identity"):
            async with client.get(path, headers={"Accept-Encoding": coding}) as answer:
                assert (answer.headers.get("Content-Encoding") == "gzip") == (coding == "gzip")
                assert "Accept-Encoding" in answer.headers["Vary"]
                found.append(answer.headers["ETag"])
    assert found[0] == found[1]


async def test_changed_fund_has_another_version_at_once(service):
    path = "/api/v1/insurance-fund/AAA"
    _, before, _ = await ask(service, path)
    await service.append(fill("AAA", 2))
    await service.fund("AAA")
    status, after, body = await ask(service, path, **{"If-None-Match": before["ETag"]})
    assert (status, after["ETag"] != before["ETag"], b'"entry":2' in body) == (200, True, True)


async def test_requests_answered_with_304_count_for_the_limit(service):
    _, first, _ = await ask(service, STABLE[0])
    status, headers, _ = await ask(service, STABLE[0], **{"If-None-Match": first["ETag"]})
    assert status == 304
    assert int(headers["gw-ratelimit-remaining"]) == int(first["gw-ratelimit-remaining"]) - 1
