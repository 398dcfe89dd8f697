"""Every statement that may be read from several cells has a route."""

import ast
import re
from pathlib import Path

import fundsvc
from fundsvc.store.archive.ranges import ARCHIVE_SQL
from fundsvc.store.cell_routes import ROUTES
from fundsvc.store.database import SQL

ROUTING = re.compile(r"fetch|fetch_archives|self\._?fetch|(self\._)?archives\.fetch")
"""The functions and methods that take the pools of all cells."""

IN_CELLS = {"reductions_page"}
"""Statements that a reader of several cells replaces by others."""

OF_ONE_CELL = {"writer.py", "moves.py"}
"""Modules of `fundsvc.store` that use connections to one database."""


def paths_of_readers():
    root = Path(fundsvc.__file__).parent
    return [path for path in root.rglob("*.py") if not path.is_relative_to(root / "mutual") and path.name not in OF_ONE_CELL]


def statements_read_by(path):
    """Yields the strings among the first arguments of calls that route a statement."""
    for call in ast.walk(ast.parse(path.read_text())):
        if isinstance(call, ast.Call) and ROUTING.fullmatch(ast.unparse(call.func)):
            for given in call.args[:2]:
                yield from (one.value for one in ast.walk(given) if isinstance(one, ast.Constant))


def test_every_statement_that_is_read_from_cells_has_a_route():
    found = {name for path in paths_of_readers() for name in statements_read_by(path)}
    statements = SQL.keys() | ARCHIVE_SQL.keys()
    assert len(found & ROUTES.keys()) > 80  # the walk finds the calls
    assert (found & statements) - ROUTES.keys() == IN_CELLS


def test_a_route_means_one_statement():
    assert ROUTES.keys() <= SQL.keys() | ARCHIVE_SQL.keys()
    assert not ROUTES.keys() & SQL.keys() & ARCHIVE_SQL.keys()
