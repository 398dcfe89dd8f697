"""The description of the API, OpenAPI 3.1: made of the table of endpoints and of the types that their handlers use.

Each operation has an example, recorded from a running service (`scripts/examples`), not invented.
"""

import inspect
import re
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from http import HTTPStatus
from importlib.resources import files
from types import UnionType
from typing import Any, Union, get_args, get_origin

import msgspec
from aiohttp import web

import fundsvc
from fundsvc.api.http.errors import Failure, error_response
from fundsvc.api.http.parameters import Query
from fundsvc.api.http.routes import JSON, Endpoint, Media

Schema = dict[str, Any]

TITLE = "fundsvc: the insurance fund of a derivatives exchange"

ABOUT = """Balances, histories and deleveraging of insurance funds that are isolated per contract.

Money and prices are exact decimal text, times are milliseconds since the epoch. Answers are `{"code":"200000","data":...}`,
errors `{"code":"400100","msg":"..."}` with a fitting HTTP status. What names an account needs an access token.

Integers have up to 64 bits. With `numbers=string` all of them are decimal strings, for readers such as JavaScript that round
those above 2^53."""

FAILURES = {
    400: "A parameter is unknown, missing or out of its bounds; `msg` names it and says what is allowed.",
    401: "There is no access token, or it is not good.",
    403: "The token's role is not one of those that this is for.",
    404: "There is no such contract, or nothing of that number.",
    408: "The request did not arrive within the time that it has.",
    409: "The stream is in another epoch than the poster knows: ask for the ingest cursor first.",
    413: "The body is larger than what is accepted.",
    415: "The body is of another kind than those listed, or compressed.",
    429: "Too many requests; the headers say when to ask again.",
    503: "The database or the stream is away for now: ask again shortly.",
}
"""What an operation may answer besides its answer, by HTTP status."""

LIMITS = {
    "gw-ratelimit-limit": "How many requests a client may make within a window.",
    "gw-ratelimit-remaining": "How many are left of it.",
    "gw-ratelimit-reset": "When the next window begins, in milliseconds from now.",
}
"""What every answer says whose requests are counted."""

_NUMBERED = {"type": "integer", "minimum": 1, "maximum": 999_999_999}

PATH_PARAMETERS: Mapping[str, tuple[Schema, str]] = {
    "symbol": ({"type": "string", "minLength": 1, "maxLength": 64}, "a contract, as /api/v1/contracts/active lists it"),
    "adl": (_NUMBERED, "the number of an ADL order of the contract"),
    "round": (_NUMBERED, "the number of a round of that order"),
    "settle": ({"type": "string", "minLength": 1, "maxLength": 16}, "a settlement currency in lower case"),
    "entry": ({"type": "integer", "minimum": 1, "maximum": 2**63 - 1}, "the number of an entry of the contract's ledger"),
}
"""What stands in braces in a path: its schema, and what it is."""

SECTIONS: Mapping[str, str] = {
    "fundsvc.api.fund_cache": "fundsvc.api.funds",
    "fundsvc.api.targets": "fundsvc.api.funds",
    "fundsvc.api.websocket.endpoints": "fundsvc.api.websocket",
}
"""Modules whose operations stand in the section of another; each other module has its own, told by how its docstring begins."""

_COMPONENT = "#/components/schemas/{name}"
_REFERENCE = re.compile(r'"#/components/schemas/([^"]+)"')


def openapi_endpoint(endpoints: Iterable[Endpoint]) -> Endpoint:
    """The endpoint that describes these and itself."""

    async def openapi(_request: web.Request) -> web.Response:
        """The description of the API, OpenAPI 3.1."""
        return web.Response(body=body, content_type=JSON)

    own = Endpoint("/openapi.json", openapi, {200: Media(JSON, dict[str, Any])}, fails=frozenset())
    body = msgspec.json.encode(description((*endpoints, own)))
    return own


def description(endpoints: Iterable[Endpoint]) -> Schema:
    """The OpenAPI document of a table."""
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
        "tags": [{"name": _tag(name), "description": _paragraphs(sys.modules[name])[0]} for name in sections],
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "responses": {_response_name(status): _failure(status) for status in FAILURES},
            "headers": {name: _header(text) for name, text in LIMITS.items()},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


class _Schemas:
    """The schemas of all bodies, made at once so that types of one name in several modules are told apart."""

    def __init__(self, media: Iterable[Media]) -> None:
        kinds = tuple(dict.fromkeys(variant for one in media for variant in _variants(one.kind)))
        found, self.components = msgspec.json.schema_components((Failure, *kinds), ref_template=_COMPONENT)
        self._of = dict(zip(kinds, found[1:], strict=True))

    def allow_strings(self, answers: Iterable[Media]) -> None:
        """Lets integers of these answers, and of all that they refer to, be strings too, as `numbers=string` has them."""
        kinds = {variant for one in answers for variant in _variants(one.kind)}
        for name in {name for kind in kinds for name in self._referred(self._of[kind])}:
            self.components[name] = _with_strings(self.components[name])
        self._of |= {kind: _with_strings(self._of[kind]) for kind in kinds}

    def of(self, media: Media) -> Schema:
        """The schema of a body, its envelope included."""
        variants = [self._of[variant] for variant in _variants(media.kind)]
        schema = variants[0] if len(variants) == 1 else {"anyOf": variants}
        if not media.in_envelope:
            return schema
        properties = {"code": {"const": "200000"}, "data": schema}
        return {"type": "object", "required": ["code", "data"], "properties": properties, "additionalProperties": False}

    def _referred(self, schema: Schema, known: frozenset[str] = frozenset()) -> frozenset[str]:
        """The names of the components that a schema is made of."""
        for name in _REFERENCE.findall(msgspec.json.encode(schema).decode()):
            if name not in known:
                known = self._referred(self.components[name], known | {name})
        return known


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
    """The types of a union, which need not be told apart by whoever only describes them."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _operation(endpoint: Endpoint, schemas: _Schemas) -> Schema:
    told, tag = _documented(endpoint), _tag(_section(endpoint))
    example = _examples().get(f"{endpoint.method} {endpoint.path}", {})
    paragraphs = _paragraphs(told)
    asked = _paragraphs(endpoint.query) if endpoint.query.__struct_fields__ else []
    for_whom = [f"For {' or '.join(sorted(endpoint.roles))}."] if endpoint.roles else []
    operation: Schema = {
        "operationId": f"{tag}.{told.__name__}",
        "tags": [tag],
        "summary": re.split(r"[;:.](?:\s|$)", paragraphs[0])[0],
        "description": "\n\n".join((*paragraphs, *asked, *for_whom)),
        "parameters": [*_path_parameters(endpoint, example), *_query_parameters(endpoint, example)],
        "responses": {
            **{str(status): {"$ref": f"#/components/responses/{_response_name(status)}"} for status in _ours(endpoint)},
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


def _ours(endpoint: Endpoint) -> list[int]:
    """With which statuses an endpoint may fail in our envelope."""
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
    question = components[endpoint.query.__name__]
    for name, schema in question["properties"].items():
        parameter: Schema = {"name": name, "in": "query", "required": name in question["required"]}
        if "description" in schema:
            parameter["description"] = schema.pop("description")
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
    if HTTPStatus.TOO_MANY_REQUESTS in endpoint.fails:
        answer["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in LIMITS}
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
    """The module that tells of the section that an endpoint stands in."""
    module: str = _documented(endpoint).__module__
    return SECTIONS.get(module, module)


def _tag(module: str) -> str:
    return module.rpartition(".")[2]


def _paragraphs(thing: object) -> list[str]:
    """What a docstring says, a paragraph to a line."""
    text = inspect.getdoc(thing) or ""
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]


@cache
def _examples() -> Mapping[str, Schema]:
    """By method and path: values of `path` and `query` parameters, a `body` by content type, and the `answer` to that."""
    examples: Mapping[str, Schema] = msgspec.json.decode(files("fundsvc.api.docs").joinpath("examples.json").read_bytes())
    return examples
