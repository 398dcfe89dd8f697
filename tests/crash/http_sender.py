"""An exchange without a stream client: it posts its letters to the API."""

import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

import jwt
import msgspec

from fundsvc.client.api import Api, ApiError, StreamChanged, Unavailable, open_api
from fundsvc.streams.client import StreamFault
from tests.crash.letters import CONTRACTS, Letter, listing_of
from tests.crash.sender import Sender
from tests.crash.world import TOKEN_SECRET

MEDIA = {"json": "application/json", "msgpack": "application/msgpack"}
NDJSON = "application/x-ndjson"

LINES_SHARE = 0.3
"""The share of JSON letters that are sent as NDJSON."""

_OK, _REJECTED_WHOLE = 200, (400, 413)


class HttpSender(Sender):
    """Posts letters to the API. Appends letters to the stream that the API does not accept, such as policies."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        claims = {"aud": "fundsvc", "exp": int(time.time()) + 86_400, "role": "engine"}
        self._token = jwt.encode(claims, TOKEN_SECRET, "HS256")
        self._opened = AsyncExitStack()
        self._api: Api | None = None

    async def aclose(self) -> None:
        """Closes the HTTP connections."""
        await self._opened.aclose()

    async def append(self, letter: Letter) -> None:
        if not letter.body() or letter.field not in MEDIA or any(_is_policy(element.content) for element in letter.elements):
            await super().append(letter)
            return
        in_lines = letter.field == "json" and len(letter.elements) > 1 and self._chance.random() < LINES_SHARE
        body = b"\n".join(element.raw("json") for element in letter.elements) if in_lines else letter.body()
        status = await self._post(body, NDJSON if in_lines else MEDIA[letter.field])
        may_be_rejected = all(element.garbage for element in letter.elements)
        assert status == _OK or (may_be_rejected and status in _REJECTED_WHOLE), f"{status} for {letter}"[:1000]

    async def _request_cursor(self) -> Mapping[str, int]:
        """Requests the cursor from the API, which rejects events until then if the stream may have lost messages."""
        try:
            cursor = await (await self._opened_api()).cursor()
        except Unavailable as fault:
            raise StreamFault(str(fault)) from fault
        return {contract.symbol: contract.seq for contract in cursor.contracts}

    async def _post(self, body: bytes, media: str) -> int:
        """Returns the status; raises StreamFault if the stream is unreachable or may have lost messages."""
        try:
            await (await self._opened_api()).post(body, media)
        except (StreamChanged, Unavailable) as fault:
            raise StreamFault(str(fault)) from fault
        except ApiError as error:
            return error.status
        return _OK

    async def _opened_api(self) -> Api:
        if self._api is None:
            self._api = await self._opened.enter_async_context(open_api(self._world.api_url, self._token))
        return self._api

    async def _probe(self) -> None:
        if await self._post(msgspec.json.encode(listing_of(CONTRACTS[0])), MEDIA["json"]) != _OK:
            raise AssertionError("the API rejects a listing")


def _is_policy(content: object) -> bool:
    return isinstance(content, dict) and content.get("type") == "policy"
