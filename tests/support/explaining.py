"""Explains the statements that a test runs: the rows that they read of each table, and the tables that they scan as a whole."""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import asyncpg
import msgspec

WRITES = re.compile(r"\b(INSERT|UPDATE|DELETE|SET|SHOW)\b")
"""A statement with one of these words is run once only."""


class Reads:
    """What statements read: `rows` by table, and the tables `scanned` sequentially."""

    def __init__(self) -> None:
        self.rows: Counter[str] = Counter()
        self.scanned: set[str] = set()

    def clear(self) -> None:
        self.rows.clear()
        self.scanned.clear()

    def note(self, node: dict[str, Any]) -> None:
        """Adds what the part of a plan under a node has read. A part that did not run reads nothing."""
        if "Relation Name" in node and node["Actual Loops"]:
            removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
            self.rows[node["Relation Name"]] += round(node["Actual Loops"] * (node["Actual Rows"] + removed))
            if node["Node Type"] == "Seq Scan":
                self.scanned.add(node["Relation Name"])
        for part in node.get("Plans", ()):
            self.note(part)


@contextmanager
def explained(monkeypatch) -> Iterator[Reads]:
    """Explains each statement that `fetch` runs on any connection and that writes nothing; then runs it."""
    reads, original = Reads(), asyncpg.Connection.fetch

    async def fetch(connection, query, *parameters, **options):
        if not WRITES.search(query):
            ((plan,),) = await original(connection, f"EXPLAIN (ANALYZE, FORMAT JSON) {query}", *parameters)
            reads.note(msgspec.json.decode(plan)[0]["Plan"])
        return await original(connection, query, *parameters, **options)

    with monkeypatch.context() as patch:
        patch.setattr(asyncpg.Connection, "fetch", fetch)
        yield reads
