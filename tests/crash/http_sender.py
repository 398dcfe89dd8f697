"""An exchange that has no client of the stream: it posts its letters to the HTTP side."""

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
"""Of the JSON letters: so many are sent as one event a line."""

POST_SECONDS_MAX = 20.0
"""The HTTP side answers within this time that the stream is away."""

_REJECTED_WHOLE = (400, 413)
_STREAM_CHANGED = 409


class HttpSender(Sender):
    """Posts letters to the HTTP side; what that does not take, such as a policy, goes onto the stream as from others."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        claims = {"aud": "fundsvc", "exp": int(time.time()) + 86_400, "role": "engine"}
        headers = {"Authorization": f"Bearer {jwt.encode(claims, TOKEN_SECRET, 'HS256')}"}
        self._http = aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=POST_SECONDS_MAX))

    async def aclose(self) -> None:
        """Closes its connections."""
        await self._http.close()

    async def _append(self, letter: Letter) -> None:
        if not letter.body() or letter.field not in MEDIA or any(_is_policy(element.content) for element in letter.elements):
            await super()._append(letter)
            return
        in_lines = letter.field == "json" and len(letter.elements) > 1 and self._chance.random() < LINES_SHARE
        body = b"\n".join(element.raw("json") for element in letter.elements) if in_lines else letter.body()
        status = await self._post(body, NDJSON if in_lines else MEDIA[letter.field])
        may_be_rejected = all(element.garbage for element in letter.elements)
        assert status == 200 or (may_be_rejected and status in _REJECTED_WHOLE), f"{status} for {letter}"[:1000]

    async def _request_cursor(self) -> Mapping[str, int]:
        """From the HTTP side, which takes nothing before that once the stream may have lost what it had."""
        status, content = await self._request("GET", "cursor")
        assert status == 200, f"{status}: {content!r}"
        return {contract["symbol"]: contract["seq"] for contract in msgspec.json.decode(content)["data"]["contracts"]}

    async def _post(self, body: bytes, media: str) -> int:
        """Returns the status; raises StreamFault where the stream is away, or may have lost what it had."""
        status, content = await self._request("POST", "events", data=body, headers={"Content-Type": media})
        if status == _STREAM_CHANGED:
            raise StreamFault(content.decode())
        return status

    async def _request(self, method: str, route: str, **options: Any) -> tuple[int, bytes]:
        """The status and the body of an answer; raises StreamFault where nobody answers, or answers that a server is away."""
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
            raise AssertionError("a listing is refused")


def _is_policy(content: object) -> bool:
    return isinstance(content, dict) and content.get("type") == "policy"
