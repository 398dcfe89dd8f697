"""The service's role has exactly the rights of the service's statements. Every table, column and verb is tried."""

import re

import asyncpg
import pytest

from fundsvc.mutual.store import rows as mutual_rows
from fundsvc.mutual.store.writer import SQL as MUTUAL_SQL
from fundsvc.store.database import SQL
from fundsvc.store.rows import COLUMNS, ORDER_COLUMNS, RECORD_COLUMNS

INSERT = re.compile(r"INSERT INTO (\w+)(?: AS \w+)?\s*\(([^()]*)\)(.*?)(?=INSERT INTO|\Z)", re.DOTALL)
ON_CONFLICT = re.compile(r"ON CONFLICT[^;]*?DO UPDATE SET(.*?)(?=\n\s*WHERE|\bRETURNING|\n\)|;|\Z)", re.DOTALL)
UPDATE = re.compile(r"UPDATE (\w+)(?: \w+)?\s+SET(.*?)(?=\bFROM\b|\bWHERE\b|\bRETURNING|;|\Z)", re.DOTALL)
DELETE = re.compile(r"DELETE FROM (\w+)")
ASSIGNED = re.compile(r"(?:\A|,)\s*(\w+) = ")

COPIED = {"entries": COLUMNS, "adl_orders": ORDER_COLUMNS, "adl_records": RECORD_COLUMNS, **mutual_rows.COPIED}
"""The columns that COPY writes."""


def needed():
    """Returns the rights that the statements need: (verb, table, column), without a column for DELETE."""
    found = {("INSERT", table, column) for table, columns in COPIED.items() for column in columns}
    for statement in (*SQL.values(), *MUTUAL_SQL.values()):
        text = re.sub(r"--[^\n]*", "", statement)
        for table, columns, rest in INSERT.findall(text):
            found |= {("INSERT", table, column.strip()) for column in columns.split(",")}
            for assignments in ON_CONFLICT.findall(rest)[:1]:
                found |= {("UPDATE", table, column) for column in ASSIGNED.findall(assignments)}
        for table, assignments in UPDATE.findall(text):
            found |= {("UPDATE", table, column) for column in ASSIGNED.findall(assignments)}
        found |= {("DELETE", table, None) for table in DELETE.findall(text)}
    return found


ATTEMPTS = {
    "INSERT": "INSERT INTO {table} ({column}) SELECT {column} FROM {table} WHERE false",
    "UPDATE": "UPDATE {table} SET {column} = {column} WHERE false",
    "DELETE": "DELETE FROM {table} WHERE false",
    "TRUNCATE": "TRUNCATE {table}",
    "LOCK": "LOCK {table} IN ACCESS EXCLUSIVE MODE",
    "ALTER": "ALTER TABLE {table} DISABLE TRIGGER ALL",
    "TRIGGER": "CREATE TRIGGER mine BEFORE INSERT ON {table} EXECUTE FUNCTION refuse_change()",
    "DROP": "DROP TABLE {table}",
}


async def allowed(connection, verb, table, column):
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute(ATTEMPTS[verb].format(table=table, column=column))
    except asyncpg.InsufficientPrivilegeError:
        return False
    finally:
        await transaction.rollback()
    return True


def test_needed_rights_are_derived_from_the_statements():
    found = needed()
    assert ("INSERT", "funds", "balance") in found
    assert ("UPDATE", "funds", "balance") in found
    assert ("UPDATE", "adl_orders", "price") not in found
    assert ("UPDATE", "partitions", "lease_until") in found
    assert ("DELETE", "engines", None) in found


async def test_service_has_exactly_the_rights_of_its_statements(service_connection, owner_connection):
    columns = await owner_connection.fetch(
        "SELECT table_name, column_name FROM information_schema.columns JOIN information_schema.tables"
        " USING (table_schema, table_name)"
        " WHERE table_schema = 'public' AND table_type = 'BASE TABLE' AND is_generated = 'NEVER'"
    )
    tables = {table for table, _ in columns}
    tried = {(verb, table, column) for table, column in columns for verb in ("INSERT", "UPDATE")}
    tried |= {(verb, table, None) for table in tables for verb in ATTEMPTS if verb not in ("INSERT", "UPDATE")}
    found = {key for key in sorted(tried, key=str) if await allowed(service_connection, *key)}
    lock = {("LOCK", table, None) for table in tables}
    expected = needed()
    assert {key for key in found - expected if key not in lock} == set(), "beyond need"
    assert expected - found == set(), "needed"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE contracts SET partition = 1",
        "UPDATE adl_orders SET price = 1",
        "UPDATE adl_orders SET cause = 1",
        "UPDATE mutual_pools SET home = 1",
        "UPDATE mutual_policies SET cap = 1",
        "UPDATE mutual_terms SET rules = '{}'",
        "UPDATE mutual_cycles SET budget = 1",
        "UPDATE mutual_entries SET amount = 1",
        "DELETE FROM mutual_rejected",
        "UPDATE policies SET body = '{}'",
        "UPDATE books SET symbol = 'x'",
        "INSERT INTO entries (recorded_at) VALUES (now())",
        "DELETE FROM rollup_progress",
        "DELETE FROM rejected",
        "UPDATE alembic_version SET version_num = '0001'",
    ],
)
async def test_service_cannot_change_what_decides_money(service_connection, statement):
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await service_connection.execute(statement)
