"""Tests use other objects and modules only by their public names."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

OF_NAMED_TUPLES = {"_asdict", "_fields", "_make", "_replace"}
"""Public names of named tuples: the underscore keeps them apart from fields."""

ALLOWED = {
    "os._exit": "It ends a client's process from within a callback of its SDK.",
}
"""Private names of libraries that tests may use, with the reasons."""

BY_NAME = {"getattr", "setattr", "delattr"}
"""Functions, and methods of `monkeypatch`, that take the name of an attribute as text."""


def is_private(name):
    return name.startswith("_") and not name.startswith("__") and name not in OF_NAMED_TUPLES


def private_names(code):
    """Yields the private names that code uses of anything but `self` and `cls`."""
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                pass
            case ast.Attribute(attr=name) if is_private(name):
                yield ast.unparse(node)
            case ast.ImportFrom(names=names):
                yield from (f"{node.module}.{alias.name}" for alias in names if is_private(alias.name))
            case ast.Call(func=ast.Name(id=called) | ast.Attribute(attr=called), args=arguments) if called in BY_NAME:
                texts = [argument.value for argument in arguments[:2] if isinstance(argument, ast.Constant)]
                yield from (text for text in texts if isinstance(text, str) and is_private(text.rpartition(".")[2]))


def test_tests_use_no_private_names_of_other_objects():
    found = {f"{path.relative_to(TESTS)}: {name}" for path in TESTS.rglob("*.py") for name in private_names(path.read_text())}
    assert {one for one in found if one.partition(": ")[2] not in ALLOWED} == set(), (
        "test through the public interface, or make public what the test needs"
    )


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("engine._owned", ["engine._owned"]),
        ("await service.http._base_url.host", ["service.http._base_url"]),
        ("super()._fetch('funds')", ["super()._fetch"]),
        ("from fundsvc.streams.source import Source, _message", ["fundsvc.streams.source._message"]),
        ("monkeypatch.setattr('fundsvc.local.servers._package', found)", ["fundsvc.local.servers._package"]),
        ("patch.setattr(Session, '_load', counted)", ["_load"]),
        ("getattr(writer, '_connection', writer)", ["_connection"]),
        ("self._partition.take(), cls._made, _local, row._replace(seq=1), Entry._fields, made.__name__", []),
        ("monkeypatch.setattr('fundsvc.engine.leases.STANDSTILL_SECONDS', 1.5), name.startswith('_')", []),
    ],
)
def test_private_names_are_found(code, names):
    assert list(private_names(code)) == names
