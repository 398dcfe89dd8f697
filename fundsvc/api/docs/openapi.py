"""Generates the OpenAPI 3.1 document from the table of endpoints and the types of their handlers.

The examples are recorded from a running service by `scripts/examples`.
"""

import inspect
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from http import HTTPStatus
from importlib.resources import files
from types import UnionType
from typing import Any, Union, get_args, get_origin

import msgspec
from aiohttp import web

import fundsvc
from fundsvc.api.docs.generated import Generated
from fundsvc.api.http.caching import ETAG
from fundsvc.api.http.errors import Failure, error_response
from fundsvc.api.http.parameters import Query
from fundsvc.api.http.routes import JSON, Endpoint, Media
from fundsvc.core.numbers import INT64_MAX

Schema = dict[str, Any]

TITLE = "fundsvc: the insurance fund of a derivatives exchange"

ABOUT = """Balances, histories and ADL of insurance funds that are isolated per contract.

Money and prices are exact decimal text. Times are milliseconds since the epoch. Answers are `{"code":"200000","data":...}`,
errors are `{"code":"400100","msg":"..."}` with the matching HTTP status. Account data requires an access token.
`/asyncapi.json` describes streams and topics, `/schemas` lists the JSON Schemas of events.

Integers have up to 64 bits. With `numbers=string` all integers are decimal strings, for clients such as JavaScript that round
integers above 2^53."""

FAILURES = {
    400: "A parameter is unknown, missing or out of its bounds; `msg` names it and the permitted values.",
    401: "The access token is missing or invalid.",
    403: "The token's role does not permit this operation.",
    404: "The contract, or the number in the path, does not exist.",
    408: "The request did not arrive in time.",
    409: "The stream is in a newer epoch than the producer knows: read the ingest cursor first.",
    413: "The body is too large.",
    415: "The body has another media type than the listed ones, or is compressed.",
    429: "A limit is reached; the header Retry-After contains the time to wait.",
    503: "The database or the stream server is unreachable, or the service is at a limit: retry shortly.",
}
"""Descriptions of the error answers by HTTP status."""

LIMITS = {
    "gw-ratelimit-limit": "The requests that a client may make within a window.",
    "gw-ratelimit-remaining": "The requests that are left in the window.",
    "gw-ratelimit-reset": "The time until the next window, in milliseconds.",
}
"""The headers of every answer to a counted request."""

NOT_MODIFIED = "The client has the current version: its header If-None-Match names the ETag of this answer."
VERSION = "The version of the answer; send it as If-None-Match."
"""The descriptions of the answer 304, and of the header ETag, of cached endpoints."""

_NUMBERED = {"type": "integer", "minimum": 1, "maximum": 999_999_999}

PATH_PARAMETERS: Mapping[str, tuple[Schema, str]] = {
    "symbol": ({"type": "string", "minLength": 1, "maxLength": 64}, "a contract, as /api/v1/contracts/active lists it"),
    "pool": ({"type": "string", "minLength": 1, "maxLength": 64}, "a pool, as /api/v1/mutual/pools lists it"),
    "adl": (_NUMBERED, "the number of an ADL order of the contract"),
    "round": (_NUMBERED, "the number of a round of that order"),
    "settle": ({"type": "string", "minLength": 1, "maxLength": 16}, "a settlement currency in lower case"),
    "entry": ({"type": "integer", "minimum": 1, "maximum": 2**63 - 1}, "the number of an entry of the contract's ledger"),
}
"""The schema and the description of each path parameter."""

SECTIONS: Mapping[str, str] = {
    "fundsvc.api.fund_cache": "fundsvc.api.funds",
    "fundsvc.api.inventory": "fundsvc.api.funds",
    "fundsvc.api.targets": "fundsvc.api.funds",
    "fundsvc.api.websocket.endpoints": "fundsvc.api.websocket",
    "fundsvc.mutual.api.accounts": "fundsvc.mutual",
    "fundsvc.mutual.api.pools": "fundsvc.mutual",
}
"""Modules whose operations appear in the section of another module. Every other module is a section; its docstring begins with
the section's description.
"""

_COMPONENT = "#/components/schemas/{name}"
_REFERENCE = re.compile(r'"#/components/schemas/([^"]+)"')


def openapi_endpoint(endpoints: Sequence[Endpoint]) -> Endpoint:
    """Returns the endpoint whose document describes these endpoints and itself."""
    generated = Generated(lambda: msgspec.json.encode(description((*endpoints, own))))

    async def openapi(_request: web.Request) -> web.Response:
        """The OpenAPI 3.1 document of this API."""
        return web.Response(body=await generated.result(), content_type=JSON)

    own = Endpoint("/openapi.json", openapi, {200: Media(JSON, dict[str, Any])}, fails=frozenset())
    return own


def description(endpoints: Iterable[Endpoint]) -> Schema:
    """Returns the OpenAPI document of a table."""
    table = tuple(endpoints)
    schemas = _Schemas(media for endpoint in table for media in (*endpoint.answers.values(), *endpoint.bodies))
    schemas.allow_strings(
        media for endpoint in table if issubclass(endpoint.query, Query) for media in endpoint.answers.values()
    )
    paths: dict[str, Schema] = {}
    for endpoint in table:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, schemas)
    sections = sorted({_section(endpoint) for endpoint in table}, key=_tag)
    return {
        "openapi": "3.1.0",
        "info": {"title": TITLE, "version": fundsvc.__version__, "description": ABOUT},
        "tags": [{"name": _tag(name), "description": paragraphs(sys.modules[name])[0]} for name in sections],
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "responses": {"NotModified": {"description": NOT_MODIFIED}}
            | {_response_name(status): _failure(status) for status in FAILURES},
            "headers": {name: _header(text) for name, text in LIMITS.items()}
            | {ETAG: {"description": VERSION, "required": True, "schema": {"type": "string"}}},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


class _Schemas:
    """The schemas of all bodies, generated together so that equal type names of different modules get distinct names."""

    def __init__(self, media: Iterable[Media]) -> None:
        kinds = tuple(dict.fromkeys(variant for one in media for variant in _variants(one.kind)))
        found, components = msgspec.json.schema_components((Failure, *kinds), ref_template=_COMPONENT)
        self.components: dict[str, Schema] = _without_item_flags(components)
        self._of = dict(zip(kinds, _without_item_flags(list(found[1:])), strict=True))

    def allow_strings(self, answers: Iterable[Media]) -> None:
        """Permits strings for the integers of these answers and their components, for `numbers=string`."""
        kinds = {variant for one in answers for variant in _variants(one.kind)}
        for name in {name for kind in kinds for name in self._referred(self._of[kind])}:
            self.components[name] = _with_strings(self.components[name])
        self._of |= {kind: _with_strings(self._of[kind]) for kind in kinds}

    def of(self, media: Media) -> Schema:
        """Returns the schema of a body, including its envelope."""
        variants = [self._of[variant] for variant in _variants(media.kind)]
        schema = variants[0] if len(variants) == 1 else {"anyOf": variants}
        if not media.in_envelope:
            return schema
        properties = {"code": {"const": "200000"}, "data": schema}
        return {"type": "object", "required": ["code", "data"], "properties": properties, "additionalProperties": False}

    def _referred(self, schema: Schema, known: frozenset[str] = frozenset()) -> frozenset[str]:
        """Returns the names of all components that a schema refers to, directly or indirectly."""
        for name in _REFERENCE.findall(msgspec.json.encode(schema).decode()):
            if name not in known:
                known = self._referred(self.components[name], known | {name})
        return known


def _without_item_flags(schema: Any) -> Any:
    """Removes `items: false` from arrays of a fixed length. `maxItems` says the same, and generators cannot read the flag."""
    match schema:
        case dict():
            return {name: _without_item_flags(part) for name, part in schema.items() if not (name == "items" and part is False)}
        case list():
            return [_without_item_flags(part) for part in schema]
        case _:
            return schema


def _with_strings(schema: Any) -> Any:
    match schema:
        case {"type": "integer"}:
            return {"anyOf": [schema, {"type": "string", "pattern": "^-?[0-9]+$"}]}
        case dict():
            return {name: _with_strings(part) for name, part in schema.items()}
        case list():
            return [_with_strings(part) for part in schema]
        case _:
            return schema


def _variants(kind: Any) -> tuple[Any, ...]:
    """Returns the types of a union. msgspec rejects some unions as one type, because it could not decode them."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _operation(endpoint: Endpoint, schemas: _Schemas) -> Schema:
    documented, tag = _documented(endpoint), _tag(_section(endpoint))
    example = _examples().get(f"{endpoint.method} {endpoint.path}", {})
    text = paragraphs(documented)
    query = paragraphs(endpoint.query) if endpoint.query.__struct_fields__ else []
    roles = [f"Requires a token with role {' or '.join(sorted(endpoint.roles))}."] if endpoint.roles else []
    operation: Schema = {
        "operationId": f"{tag}.{documented.__name__}",
        "tags": [tag],
        "summary": re.split(r"[;:.](?:\s|$)", text[0])[0],
        "description": "\n\n".join((*text, *query, *roles)),
        "parameters": [*_path_parameters(endpoint, example), *_query_parameters(endpoint, example)],
        "responses": {
            **{str(status): {"$ref": f"#/components/responses/{_response_name(status)}"} for status in _references(endpoint)},
            **{str(status): _answer(status, endpoint, schemas, example) for status in endpoint.answers},
        },
    }
    if endpoint.bodies:
        operation["requestBody"] = {"required": True, "content": _contents(endpoint.bodies, schemas, example)}
    if endpoint.roles:
        operation["security"] = [{"token": []}]
    elif endpoint.token_optional:
        operation["security"] = [{}, {"token": []}]
    return operation


def _references(endpoint: Endpoint) -> list[int]:
    """Returns the statuses whose answers are components."""
    return [*([HTTPStatus.NOT_MODIFIED.value] if endpoint.cached else []), *_failures(endpoint)]


def _failures(endpoint: Endpoint) -> list[int]:
    """Returns the error statuses that an endpoint answers in our envelope."""
    if endpoint.format_error is not error_response:
        return []
    also = {401, 403} if endpoint.roles else set()
    also |= {404} if "{" in endpoint.path else set()
    also |= {408, 413, 415} if endpoint.bodies else set()
    return sorted(endpoint.fails | also)


def _path_parameters(endpoint: Endpoint, example: Schema) -> Iterable[Schema]:
    for name in re.findall(r"{(\w+)}", endpoint.path):
        schema, text = PATH_PARAMETERS[name]
        yield _exemplified({"name": name, "in": "path", "required": True, "description": text, "schema": schema}, example)


def _query_parameters(endpoint: Endpoint, example: Schema) -> Iterable[Schema]:
    (_,), components = msgspec.json.schema_components([endpoint.query], ref_template=_COMPONENT)
    query = components[endpoint.query.__name__]
    for name, schema in query["properties"].items():
        parameter: Schema = {"name": name, "in": "query", "required": name in query["required"]}
        if "description" in schema:
            parameter["description"] = schema.pop("description")
        if schema.get("default") == INT64_MAX:
            del schema["default"]  # It means no bound. JavaScript would round it up, and send a number that is too large.
        yield _exemplified({**parameter, "schema": schema}, example)


def _exemplified(parameter: Schema, example: Schema) -> Schema:
    given = example.get(parameter["in"], {})
    return {**parameter, "example": given[parameter["name"]]} if parameter["name"] in given else parameter


def _answer(status: int, endpoint: Endpoint, schemas: _Schemas, example: Schema) -> Schema:
    media = endpoint.answers[status]
    content: Schema = {"schema": schemas.of(media)}
    if status == HTTPStatus.OK and "answer" in example:
        content["example"] = example["answer"]
    answer: Schema = {"description": HTTPStatus(status).phrase, "content": {media.content_type: content}}
    headers = [*(LIMITS if HTTPStatus.TOO_MANY_REQUESTS in endpoint.fails else ()), *([ETAG] if endpoint.cached else ())]
    if headers:
        answer["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in headers}
    return answer


def _contents(bodies: Iterable[Media], schemas: _Schemas, example: Schema) -> Schema:
    given = example.get("body", {})
    return {
        media.content_type: {"schema": schemas.of(media)}
        | ({"example": given[media.content_type]} if media.content_type in given else {})
        for media in bodies
    }


def _failure(status: int) -> Schema:
    return {
        "description": FAILURES[status],
        "content": {JSON: {"schema": {"$ref": _COMPONENT.format(name=Failure.__name__)}}},
    }


def _header(text: str) -> Schema:
    return {"description": text, "required": True, "schema": {"type": "integer", "minimum": 0}}


def _response_name(status: int) -> str:
    return HTTPStatus(status).phrase.replace(" ", "")


def _documented(endpoint: Endpoint) -> Any:
    return endpoint.documented or endpoint.handler


def _section(endpoint: Endpoint) -> str:
    """Returns the name of the module that is the section of an endpoint."""
    module: str = _documented(endpoint).__module__
    return SECTIONS.get(module, module)


def _tag(module: str) -> str:
    return module.rpartition(".")[2]


def paragraphs(thing: object) -> list[str]:
    """Returns the paragraphs of a docstring, each on one line."""
    text = inspect.getdoc(thing) or ""
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]


@cache
def _examples() -> Mapping[str, Schema]:
    """Returns the examples by method and path: `path` and `query` parameters, the `body` by content type, and the `answer`."""
    examples: Mapping[str, Schema] = msgspec.json.decode(files("fundsvc.api.docs").joinpath("examples.json").read_bytes())
    return examples
