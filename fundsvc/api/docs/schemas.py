"""JSON Schemas of all events and of ADL rounds, generated from the structs that decode them, and served at /schemas."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import msgspec
from aiohttp import web

from fundsvc.api.docs.generated import Generated
from fundsvc.api.http.errors import NotFound
from fundsvc.api.http.routes import JSON, Endpoint, Media
from fundsvc.core.contracts import Specification
from fundsvc.core.events import Listing
from fundsvc.mutual import codec as pool_codec
from fundsvc.wire import codec
from fundsvc.wire.rounds import Announcement

Schema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"

SCHEMA_JSON = "application/schema+json"

INTERNAL = get_args(codec.OwnEvent) + get_args(pool_codec.OwnEvent)
"""Events that the owners of partitions append, not matching engines."""

EVENTS = get_args(codec.PostedEvent)
"""The events that matching engines send to the stream of a partition."""

POOL_EVENTS = get_args(pool_codec.PostedEvent)
"""The events that exchanges send to the stream of a pool."""

BUNDLES: Mapping[str, tuple[str, str, tuple[type, ...]]] = {
    "events": ("Event", "An event that a matching engine sends to the stream of a partition.", EVENTS),
    "poolEvents": ("PoolEvent", "An event that an exchange sends to the stream of a pool.", POOL_EVENTS),
}
"""The schemas of several types by name: title, description and types."""

_DEFINITION = "#/$defs/{name}"
_DECIMAL = {"type": "string", "format": "decimal"}


def tag_of(kind: type[msgspec.Struct]) -> str:
    """Returns the `type` of an event."""
    return str(kind.__struct_config__.tag)


def components_of(kinds: Sequence[Any], ref_template: str) -> tuple[list[Schema], dict[str, Schema]]:
    """Returns the schemas of types and the components to which they refer, by name.

    A listing refers to the fields of KuCoin's contract object that settlement reads.
    """
    schemas, components = msgspec.json.schema_components((*kinds, Specification), ref_template=ref_template)
    *found, specification = schemas
    if Listing.__name__ in components:
        components[Listing.__name__]["properties"]["contract"] = specification
        components[Specification.__name__] = _with_numbers(components[Specification.__name__])
    else:
        del components[Specification.__name__]
    for component in components.values():
        if "description" in component:
            component["description"] = inspect.cleandoc(component["description"])
    return list(found), components


def json_schemas() -> dict[str, Schema]:
    """Returns all schemas by name: one of each event by its `type`, those of all events of a stream, and that of a round."""
    single = {tag_of(kind): _of_one(kind) for kind in (*EVENTS, *POOL_EVENTS, *INTERNAL, Announcement)}
    return {**{name: _of_any(*bundle) for name, bundle in BUNDLES.items()}, **single}


def _of_one(kind: type) -> Schema:
    """Returns the self-contained schema of a type."""
    _, components = components_of([kind], _DEFINITION)
    return {"$schema": DIALECT, **components.pop(kind.__name__), "$defs": components}


def _of_any(title: str, text: str, kinds: Sequence[type]) -> Schema:
    """Returns the self-contained schema of any of several types."""
    found, components = components_of(kinds, _DEFINITION)
    return {"$schema": DIALECT, "title": title, "description": text, "oneOf": found, "$defs": components}


def _with_numbers(schema: Any) -> Any:
    """Permits numbers for the decimal texts of a schema: KuCoin's contract object has both."""
    match schema:
        case dict() if _DECIMAL.items() <= schema.items():
            return {"anyOf": [{"type": "number"}, schema]}
        case dict():
            return {name: _with_numbers(part) for name, part in schema.items()}
        case list():
            return [_with_numbers(part) for part in schema]
        case _:
            return schema


class SchemaFiles:
    """The endpoints of the schemas."""

    def __init__(self) -> None:
        self._generated = Generated(_files)
        self.endpoints = (
            Endpoint("/schemas", self.index, {200: Media(JSON, list[str])}),
            Endpoint("/schemas/{name}", self.schema, {200: Media(SCHEMA_JSON, dict[str, Any])}),
        )

    async def index(self, _: web.Request) -> web.Response:
        """The names of all schemas."""
        return web.Response(body=msgspec.json.encode(sorted(await self._generated.result())), content_type=JSON)

    async def schema(self, request: web.Request) -> web.Response:
        """The JSON Schema of an event, of all events of a stream, or of a round."""
        name, bodies = request.match_info["name"], await self._generated.result()
        if name not in bodies:
            raise NotFound(f"no schema {name!r} exists: GET /schemas lists all")
        return web.Response(body=bodies[name], content_type=SCHEMA_JSON)


def _files() -> Mapping[str, bytes]:
    """Returns the content of all files by name."""
    return {f"{name}.json": msgspec.json.encode(schema) for name, schema in json_schemas().items()}
