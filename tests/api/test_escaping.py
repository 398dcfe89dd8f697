"""Escaping of foreign text in consoles, logs and JSON: control characters have no effect and text cannot pose as other text."""

import io
import json
import unicodedata

import msgspec
import pytest
import structlog
from commands import fundsvc
from hypothesis import given
from hypothesis import strategies as st
from served import served

from fundsvc.cli.running import Terminal
from fundsvc.config.settings import LogConfig
from fundsvc.logs import configure_logs
from fundsvc.logs.escaping import visible, visible_json

HOSTILE = {
    "turned": "a\u202eb",
    "embedded": "a\u2066b\u2069",
    "marked": "a\u200fb\u200e",
    "without width": "a\u200bb\u2060c\ufeff",
    "escape": "a\x1b[31mb\x1b]0;x\x07",
    "controls": "a\x00\x08\x7f\x9b",
    "separators": "a\u2028b\u2029",
    "soft hyphen": "a\u00adb",
    "tags": "a\U000e0041b",
    "carriage": "a\rb",
}


def is_safe(text, keeps=""):
    return all(character.isprintable() or character in keeps for character in text)


@pytest.mark.parametrize("text", HOSTILE.values())
def test_unprintable_characters_are_escaped(text):
    shown = visible(text)
    assert is_safe(shown)
    assert shown.encode().decode("unicode_escape") == text
    assert json.loads(visible_json(json.dumps([text], ensure_ascii=False))) == [text]


@given(st.text())
def test_any_text_becomes_printable_and_printable_text_is_unchanged(text):
    assert is_safe(visible(text))
    assert visible(text, keeps="\n").count("\n") == text.count("\n")
    document = msgspec.json.encode(text).decode()
    assert is_safe(visible_json(document))
    assert msgspec.json.decode(visible_json(document)) == text
    if text.isprintable():
        assert visible(text) == text


def test_letters_of_all_scripts_are_unchanged():
    for text in ("Δ", "é", "日本", "العربية", "😀", "ß§°"):
        assert visible(text) == text
        assert unicodedata.category(text[0]) not in {"Cf", "Cc"}


@pytest.fixture
def logged():
    """Captures the console log."""
    output = io.StringIO()
    configure_logs(LogConfig(), output)
    yield output
    structlog.reset_defaults()


@pytest.mark.parametrize("text", [*HOSTILE.values(), "a\nb"])
def test_log_line_is_a_single_printable_line(logged, text):
    structlog.get_logger().warning("event", path=text, other=[text])
    (line,) = logged.getvalue().splitlines()
    assert is_safe(line)


@pytest.mark.parametrize("text", HOSTILE.values())
def test_traceback_is_printable_and_keeps_its_lines(logged, text):
    structlog.get_logger().error("failed", exc_info=ValueError(text))
    assert is_safe(logged.getvalue(), keeps="\n")
    assert logged.getvalue().count("\n") >= 2


@pytest.mark.parametrize("text", [*HOSTILE.values(), "[red]a", "a[/]", "[link=https://evil.test]a[/link]", ":smile:"])
def test_terminal_shows_markup_literally(text):
    output = io.StringIO()
    Terminal(file=output, width=200).print(f"{text} end")
    assert output.getvalue() == f"{visible(text)} end\n"


async def test_rejected_events_with_any_text_are_listed_safely(config):
    async with served(config) as service:
        for text in ("\u202e", "\x1b[2J", "[/]", "[red]"):
            await service.post({"type": "mark", "symbol": "AAA", f"x{text}": 1})
        await service.settled()
        for command in (("list",), ("list", "--json")):
            done = await fundsvc(config, "rejected", *command, COLUMNS="300")
            assert done.code == 0, done
            assert is_safe(done.output, keeps="\n")
            assert "[/]" in done.output
