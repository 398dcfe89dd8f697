"""An exchange without a stream client: it posts its letters to the API."""

import time
from collections.abc import Mapping
from typing import Any

import aiohttp
import jwt
import msgspec

from fundsvc.streams.client import StreamFault
from tests.crash.letters import CONTRACTS, Letter, listing_of
from tests.crash.sender import Sender
from tests.crash.world import TOKEN_SECRET

MEDIA = {"json": "application/json", "msgpack": "application/msgpack"}
NDJSON = "application/x-ndjson"

LINES_SHARE = 0.3
"""The share of JSON letters that are sent as NDJSON."""

POST_SECONDS_MAX = 20.0
"""The API answers within this time that the stream is unreachable."""

_REJECTED_WHOLE = (400, 413)
_STREAM_CHANGED = 409


class HttpSender(Sender):
    """Posts letters to the API. Appends letters to the stream that the API does not accept, such as policies."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        claims = {"aud": "fundsvc", "exp": int(time.time()) + 86_400, "role": "engine"}
        headers = {"Authorization": f"Bearer {jwt.encode(claims, TOKEN_SECRET, 'HS256')}"}
        self._http = aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=POST_SECONDS_MAX))

    async def aclose(self) -> None:
        """Closes the HTTP connections."""
        await self._http.close()

    async def append(self, letter: Letter) -> None:
        if not letter.body() or letter.field not in MEDIA or any(_is_policy(element.content) for element in letter.elements):
            await super().append(letter)
            return
        in_lines = letter.field == "json" and len(letter.elements) > 1 and self._chance.random() < LINES_SHARE
        body = b"\n".join(element.raw("json") for element in letter.elements) if in_lines else letter.body()
        status = await self._post(body, NDJSON if in_lines else MEDIA[letter.field])
        may_be_rejected = all(element.garbage for element in letter.elements)
        assert status == 200 or (may_be_rejected and status in _REJECTED_WHOLE), f"{status} for {letter}"[:1000]

    async def _request_cursor(self) -> Mapping[str, int]:
        """Requests the cursor from the API, which rejects events until then if the stream may have lost messages."""
        status, content = await self._request("GET", "cursor")
        assert status == 200, f"{status}: {content!r}"
        return {contract["symbol"]: contract["seq"] for contract in msgspec.json.decode(content)["data"]["contracts"]}

    async def _post(self, body: bytes, media: str) -> int:
        """Returns the status; raises StreamFault if the stream is unreachable or may have lost messages."""
        status, content = await self._request("POST", "events", data=body, headers={"Content-Type": media})
        if status == _STREAM_CHANGED:
            raise StreamFault(content.decode())
        return status

    async def _request(self, method: str, route: str, **options: Any) -> tuple[int, bytes]:
        """Returns status and body; raises StreamFault if the API does not answer, or a server is unreachable."""
        try:
            async with self._http.request(method, f"{self._world.api_url}/api/v1/ingest/{route}", **options) as answer:
                content = await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise StreamFault(f"{type(error).__name__}: {error}") from error
        if answer.status >= 500:
            raise StreamFault(content.decode())
        return answer.status, content

    async def _probe(self) -> None:
        if await self._post(msgspec.json.encode(listing_of(CONTRACTS[0])), MEDIA["json"]) != 200:
            raise AssertionError("the API rejects a listing")


def _is_policy(content: object) -> bool:
    return isinstance(content, dict) and content.get("type") == "policy"
