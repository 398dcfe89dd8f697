"""The client in TypeScript settles every event once, also after the stream server lost messages, and yields each round once."""

import asyncio
import json
import shutil
import subprocess

import pytest
from environments import NODE, ROOT, needs_node, node_environment
from escalations import SYMBOL
from eventually import eventually
from served import contract, served
from test_generators import write_schemas
from test_producers import config, connected, fill, has_message, last_sequence, mark, position

__all__ = ["config"]

pytestmark = needs_node
OPTIONS = ("--strict", "--noUncheckedIndexedAccess", "--module", "nodenext", "--target", "es2022", "--types", "node")


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """The command that runs an engine on the compiled client."""
    node_environment()
    directory = tmp_path_factory.mktemp("engine")
    write_schemas(directory)
    for name in ("events", "adlOrder"):
        schema, types = directory / f"{name}.json", directory / f"{name}.d.ts"
        subprocess.run((NODE / "node_modules" / ".bin" / "json2ts", "-i", schema, "-o", types), check=True)
    for source in (ROOT / "scripts" / "typescript" / "fundsvc.ts", NODE / "engine.ts"):
        shutil.copy(source, directory)
    (directory / "node_modules").symlink_to(NODE / "node_modules")
    (directory / "package.json").write_text('{"type": "module"}')
    compiled = subprocess.run(
        (NODE / "node_modules" / ".bin" / "tsc", *OPTIONS, "engine.ts"),
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (compiled.returncode, compiled.stdout) == (0, "")
    return ["node", "--experimental-websocket", "--no-warnings", directory / "engine.js"]


async def test_engine_resends_what_was_lost_and_gets_each_round_once(engine, config, tmp_path, servers, client, exits):
    def numbered(event, seq):
        return {"seq": seq, "prevSeq": seq - 1, **event}

    def executed(announced, seq):
        (each,) = announced["allocations"]
        execution = {"type": "adlFill", "symbol": SYMBOL, "adl": announced["adl"], "account": each["account"], "lots": 30}
        end = {"type": "adlEnd", "symbol": SYMBOL, "adl": announced["adl"]}
        return numbered(execution, seq), numbered(end, seq + 1)

    running = await exits.enter_async_context(connected(engine, config, tmp_path))
    async with served(config, config.http.port) as service:
        running.send(contract(SYMBOL), mark(39000), position("anna", -100), position("bert", -60))
        running.send(numbered(fill(100, 38900), 1), {"type": "mark", "symbol": "NONE", "price": "1"})
        assert (await running.round())["reason"] == "unknown_symbol"
        first = await running.round()
        running.send(*executed(first, 2))
        second = await running.round()
        assert [(one["adl"], one["round"], one["lots"]) for one in (first, second)] == [(1, 1, 100), (1, 2, 70)]
        await eventually(lambda: is_settled(service, 3))
    await client.flushall()
    running.send(*(numbered(fill(1, 39100), seq) for seq in range(4, 2504)))
    async with served(config, config.http.port) as service:
        await eventually(lambda: has_message(client, b'"seq":2000'))
    await client.flushall()
    servers.valkey.kill()
    await asyncio.to_thread(servers.start, postgres=False)
    async with served(config, config.http.port) as service:
        await eventually(lambda: is_settled(service, 2503), seconds=20)
        later = [json.loads(line) for line in await running.finished()]
        rounds = [(one["adl"], one["round"]) for one in (first, second, *later) if "adl" in one]
        assert len(rounds) == len({*rounds})
        assert {*await service.reasons()} == {"unknown_symbol"}
        assert service.count("fundsvc_sequence_gaps_total") == 0


async def is_settled(service, seq):
    return await last_sequence(service) == seq
