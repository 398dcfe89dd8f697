"""Names in the handbook and the README exist: metrics, configuration keys, log events, commands, files, routes."""

import re

import pytest
import typer.main
from test_alerts import RECORDED
from test_dashboards import documented_metrics, family
from test_logs import documented
from test_openapi import application, config, world  # noqa: F401 - fixtures
from test_runbook import CHAPTERS, ROOT, invocations

from fundsvc.cli.commands import cli, load
from fundsvc.config.settings import Config
from fundsvc.config.validation import find, keys

ROLES = {"fundsvc_service", "fundsvc_owner", "fundsvc_app", "fundsvc_backup", "fundsvc_archiver", "fundsvc_archive"}
CURRENT = {name: text.split("\n## Changed names\n")[0] for name, text in CHAPTERS.items()}
each_chapter = pytest.mark.parametrize("text", CURRENT.values(), ids=CURRENT)


def code(text):
    """Returns the inline code of a text, and the lines of its blocks."""
    return re.findall(r"`([^`\n]+)`", text) + re.findall(r"^ {4,}(\S.*)$", text, re.MULTILINE)


@each_chapter
def test_metrics_exist(text):
    named = {family(name) for name in re.findall(r"\bfundsvc_\w+(?!\w*[@%*$(])", text) if not name.endswith("_")}
    assert named - ROLES - set(map(family, documented_metrics())) == set()
    recorded = set(re.findall(r"\b\w+:fundsvc_\w+:\w+", text))
    assert recorded <= RECORDED.keys()


SECTIONS = {key.path[0] for key in keys(Config)}
FILES = {"token.secret"}
"""A file of the data directory has the name of its key."""


@each_chapter
def test_configuration_keys_exist(text):
    for section, key in re.findall(r"`(\w+)\.([a-z_]+)(?: = [^`]*)?`", text):
        if section in SECTIONS:
            assert hasattr(getattr(Config(), section), key), f"{section}.{key}"
    for variable in re.findall(r"\bFUNDSVC_([A-Z_]+[A-Z])\b", text):
        name = variable.removesuffix("_FILE").lower()
        assert variable in {"CONFIG", "VERSION"} or find(Config, name), variable


@each_chapter
def test_named_log_events_exist(text):
    named = re.findall(r"(?:log events?|logs|log line) `([a-z][a-z ]+)`", text)
    assert set(named) <= documented().keys()


FOLDERS = "|".join(
    path.name for root in (ROOT, ROOT / "fundsvc") for path in root.iterdir() if path.is_dir() and path.name[0].isalpha()
)


@each_chapter
def test_files_of_the_repository_exist(text):
    named = {each for each in code(text) for each in re.findall(rf"(?<![\w/.$-])(?:{FOLDERS})/[\w./*@-]+", each)}
    for name in named | {each for each in code(text) if re.fullmatch(r"\w+\.py", each)}:
        pattern = name.rstrip("./")
        assert any(True for root in (ROOT, ROOT / "fundsvc") for _ in root.glob(pattern)), name


def test_the_layout_lists_every_package():
    layout = re.search(r"## Layout\n\n((?: {4}.*\n)+)", CHAPTERS["contributing.md"])[1]
    listed = {name for line in layout.splitlines() for name in re.findall(r"[\w/.]+/(?=[ ,])", line[4:33])}
    for name in listed:
        assert (ROOT / "fundsvc" / name).is_dir(), name
    assert {f"{path.name}/" for path in (ROOT / "fundsvc").iterdir() if path.is_dir() and path.name[0] != "_"} <= listed


def commands_of(command, context, path=()):
    """Yields the words of all commands that a user can run."""
    if not hasattr(command, "commands"):
        yield path
        return
    for name in command.list_commands(context):
        yield from commands_of(command.get_command(context, name), context, (*path, name))


def test_every_command_is_in_the_handbook():
    load()
    command = typer.main.get_command(cli)
    existing = {" ".join(path) for path in commands_of(command, command.make_context("fundsvc", [], resilient_parsing=True))}
    named = set()
    for _, call in invocations():
        first, *rest = call.split()
        named |= {first, *(f"{first} {word}" for word in (rest[0].split("/") if rest else ()))}
    assert existing - named == set()


def template(path):
    """Returns a path without the names of its parameters."""
    return re.sub(r"\{\w+\}", "{}", path)


async def test_routes_exist(world, application):  # noqa: F811
    served = {template(route.resource.canonical) for route in application[0].router.routes()}
    named = {
        template(path)
        for text in CURRENT.values()
        for path in re.findall(
            r"`(?:GET |POST )?(/(?:api/v\d/|healthz|readyz|metrics|docs|openapi|asyncapi|schemas)[^`?\s…]*)`", text
        )
    }
    assert len(named) > 20
    assert named - served == set()
