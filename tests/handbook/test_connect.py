"""The tables of the chapter about connecting an engine agree with the structs of the events."""

import re
import zlib
from pathlib import Path

import aiohttp
import msgspec
import pytest
from served import served
from tokens import with_secret

from fundsvc.api.docs.schemas import EVENTS, json_schemas, tag_of
from fundsvc.core.contracts import Specification, partition_of
from fundsvc.core.events import Listing, Reason, Rejection
from fundsvc.wire.codec import decode_event

HANDBOOK = Path(__file__).parents[2] / "fundsvc" / "handbook"
CONNECT, EVENTS_CHAPTER = (HANDBOOK / "connect.md").read_text(), (HANDBOOK / "events.md").read_text()
SCHEMAS = json_schemas()
TABLED = [tag_of(kind) for kind in EVENTS if kind is not Listing]


def section(title):
    """Returns the text below a heading of any level."""
    return re.split(r"\n#+ ", CONNECT.split(f"# {title}\n", 1)[1], maxsplit=1)[0]


def rows(text):
    """Returns the cells of the rows of the first table, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def type_of(schema):
    """Returns the name of a field's type."""
    (schema,) = [one for one in schema.get("anyOf", [schema]) if one != {"type": "null"}]
    match schema:
        case {"enum": values}:
            return ", ".join(f"`{value}`" for value in values)
        case {"pattern": _}:
            return "decimal"
        case {"type": name}:
            return {"string": "text", "array": "list"}.get(name, name)


def fields_of(schema, *, without=()):
    """Returns the rows that a table of a schema must have: name, type, and whether the field is required."""
    properties = {name: each for name, each in schema["properties"].items() if name not in without}
    return [[f"`{name}`", type_of(each), "yes" if name in schema["required"] else "no"] for name, each in properties.items()]


@pytest.mark.parametrize("tag", TABLED)
def test_table_of_an_event_has_all_its_fields(tag):
    assert [row[:3] for row in rows(section(f"`{tag}`"))] == fields_of(SCHEMAS[tag], without=("type",))


def test_table_of_rounds_has_all_their_fields():
    assert [row[:3] for row in rows(section("ADL rounds"))] == fields_of(SCHEMAS["adlOrder"])


def test_every_event_has_a_section():
    assert re.findall(r"^### `(\w+)`$", CONNECT, re.MULTILINE) == TABLED


def test_table_of_contracts_has_the_fields_that_settlement_reads():
    schema = SCHEMAS["contract"]["$defs"][Specification.__name__]
    required = [[f"`{name}`", "yes" if name in schema["required"] else "no"] for name in schema["properties"]]
    assert [row[:2] for row in rows(section("Contracts"))] == required


def test_short_table_of_the_events_chapter_names_the_same_fields():
    for kinds, fields, *_ in rows(EVENTS_CHAPTER.split("\n## Sequences")[0]):
        (tag,) = re.findall(r"`(\w+)`", kinds)
        named = set(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", fields.split(":")[0] if tag == "contract" else fields)))
        assert named == SCHEMAS[tag]["properties"].keys() - {"type"}, tag


def test_every_type_has_a_row_in_the_table_of_resending():
    resent = " ".join(row[0] for row in rows(section("Restarts and lost connections").split("Resend, in the order")[1]))
    assert set(re.findall(r"`(\w+)`", resent)) - {"seq"} == {tag_of(kind) for kind in EVENTS}


def test_reasons_exist():
    assert {row[0].strip("`") for row in rows(section("When events are rejected"))} <= set(Reason)


def test_example_of_a_listing_is_legal():
    (text,) = re.findall(r'^    (\{"type":"contract".*\n.*\})$', CONNECT, re.MULTILINE)
    event = decode_event("json", re.sub(r"\s+", "", text).encode())
    assert not isinstance(event, Rejection)
    assert event.contract["multiplier"] == 0.001


def test_rule_of_partitions_is_that_of_the_service():
    assert "`crc32(symbol) mod partitions`, the CRC-32 of zlib" in CONNECT
    assert all(partition_of(symbol, 7) == zlib.crc32(symbol.encode()) % 7 for symbol in ("XBTUSDTM", "ETHUSDTM", "é"))


async def test_example_of_the_cursor_has_the_names_of_the_answer(config):
    example = re.search(r'^    (\{"code":"200000".*\n(?:     .*\n)+)', CONNECT, re.MULTILINE)[1]
    async with served(with_secret(config)) as service:
        await service.send(
            {"type": "contract", "contract": {"symbol": "A", "settleCurrency": "USDT", "multiplier": 1, "isInverse": False}}
        )
        answer = await service.get("/api/v1/ingest/cursor", "engine")
        assert names(msgspec.json.decode(example)["data"]) == names(answer)


def names(value):
    if isinstance(value, list):
        return names(value[0])
    return {name: names(part) for name, part in value.items()} if isinstance(value, dict) else None


async def test_producers_are_served(config):
    async with served(with_secret(config)) as service, aiohttp.ClientSession(service.url) as http:
        for link in re.findall(r"\]\((producers/[^)]+)\)", CONNECT):
            async with http.get(f"/docs/{link}") as answer:
                assert (answer.status, await answer.text()) == (200, (HANDBOOK / link).read_text())
