"""Published validators and generators accept our schemas and documents, and the generated types fit our events."""

import json

import msgspec
import pytest
from commands import program
from environments import BIN, NODE, needs_node, node_environment, python_environment
from escalations import SYMBOL, TS
from served import served

from fundsvc.api.docs.schemas import json_schemas
from fundsvc.core.events import AdlEnd, AdlFill
from fundsvc.wire.codec import Message, decode
from fundsvc.wire.rounds import Announcement, RequestedLots

ROUND = Announcement(SYMBOL, 3, 1, "shortfall", 7, "short", "39000", 5, (RequestedLots("anna", 5),), TS, 1)

ANSWER = """
import json, sys
from pydantic import ValidationError
from adlOrder import Announcement
from events import AdlEnd, AdlFill, Event, Fill

round_ = Announcement.model_validate_json(sys.argv[1])
common = {"symbol": round_.symbol, "adl": round_.adl, "ts": round_.ts}
fills = [AdlFill(type="adlFill", seq=11, account=each.account, lots=each.lots, **common) for each in round_.allocations]
events = [*fills, AdlEnd(type="adlEnd", seq=12, **common)]
try:
    Fill(type="fill", seq=0, symbol=round_.symbol, side="long", lots=1, price="1", bankruptcyPrice="1", ts=0)
except ValidationError as error:
    wrong = sorted(each["loc"][0] for each in error.errors())
print(json.dumps({"events": [event.model_dump(mode="json", exclude_unset=True) for event in events], "wrong": wrong}))
"""


def write_schemas(directory):
    """Writes the schemas from which types are generated."""
    for name in ("events", "adlOrder"):
        (directory / f"{name}.json").write_bytes(msgspec.json.encode(json_schemas()[name]))


async def test_python_types_are_generated_and_fit(tmp_path):
    python_environment()
    write_schemas(tmp_path)
    for name in ("events", "adlOrder"):
        arguments = (
            "--input",
            tmp_path / f"{name}.json",
            "--input-file-type",
            "jsonschema",
            "--output",
            tmp_path / f"{name}.py",
        )
        model = ("--output-model-type", "pydantic_v2.BaseModel", "--disable-timestamp")
        done = await program(BIN / "datamodel-codegen", *arguments, *model)
        assert done.code == 0, done.error
    (tmp_path / "answer.py").write_text(ANSWER)
    done = await program(BIN / "python", tmp_path / "answer.py", msgspec.json.encode(ROUND).decode())
    assert done.code == 0, done.error
    answer = json.loads(done.output)
    events = decode(Message("1-0", "json", msgspec.json.encode(answer["events"])))
    assert events == [AdlFill(SYMBOL, 11, 3, "anna", 5, TS), AdlEnd(SYMBOL, 12, 3, TS)]
    assert answer["wrong"] == ["seq", "side"]


@needs_node
async def test_typescript_types_are_generated_and_fit(tmp_path):
    node_environment()
    write_schemas(tmp_path)
    for name in ("events", "adlOrder"):
        done = await program(
            NODE / "node_modules" / ".bin" / "json2ts", "-i", tmp_path / f"{name}.json", "-o", tmp_path / f"{name}.d.ts"
        )
        assert done.code == 0, done.error
    (tmp_path / "typed.ts").write_bytes((NODE / "typed.ts").read_bytes())
    options = ("--strict", "--noEmit", "--module", "nodenext", "--target", "es2022")
    done = await program(NODE / "node_modules" / ".bin" / "tsc", *options, tmp_path / "typed.ts")
    assert (done.code, done.output) == (0, "")


@needs_node
async def test_the_parser_of_asyncapi_finds_no_fault(tmp_path, service):
    node_environment()
    async with service.http.get("/asyncapi.json") as answer:
        (tmp_path / "asyncapi.json").write_bytes(await answer.read())
    done = await program("node", NODE / "check_asyncapi.mjs", tmp_path / "asyncapi.json")
    assert done.code == 0, done.error
    assert json.loads(done.output) == []


@pytest.fixture
async def service(config):
    async with served(config) as service:
        yield service
