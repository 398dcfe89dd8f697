"""Sealed ADL records instead of allocations: orders, rounds and executions in a hash chain of each contract.

Stop engines of an older version first: they would write orders without records.
"""

from collections.abc import Iterator, Sequence
from itertools import count, groupby
from typing import Any

from alembic import op
from sqlalchemy import Connection, text

from fundsvc.core.adl.order import AdlOrder, RoundProgress, RoundTerms
from fundsvc.core.adl.records import AdlRecord, SealedRecord, link_record, reduced_body, round_bodies
from fundsvc.core.fund.chain import GENESIS
from fundsvc.store.migrations import run_script

revision = "0008"
down_revision = "0007"

_SCHEMA = """
ALTER TABLE adl_orders
    ADD COLUMN account text NOT NULL DEFAULT '',
    ADD COLUMN acknowledged boolean NOT NULL DEFAULT false,
    ADD COLUMN round_ms bigint NOT NULL DEFAULT 0 CHECK (round_ms >= 0),
    ADD COLUMN policy_version integer NOT NULL DEFAULT 0 CHECK (policy_version >= 0);
UPDATE adl_orders o SET account = e.account FROM entries e WHERE e.symbol = o.symbol AND e.entry = o.cause;

ALTER TABLE funds
    ADD COLUMN adl_record bigint NOT NULL DEFAULT 0 CHECK (adl_record >= 0),
    ADD COLUMN adl_head bytea NOT NULL DEFAULT decode(repeat('00', 32), 'hex') CHECK (octet_length(adl_head) = 32);

ALTER TABLE books
    ADD COLUMN mark_ts bigint NOT NULL DEFAULT 0,
    ADD COLUMN mark_seq bigint NOT NULL DEFAULT 0;

CREATE TABLE adl_records (
    symbol text COLLATE "C" NOT NULL,
    record bigint NOT NULL CHECK (record > 0),
    entry bigint NOT NULL CHECK (entry >= 0),
    kind text COLLATE "C" NOT NULL CHECK (kind IN ('order', 'round', 'part', 'execution', 'end')),
    adl bigint NOT NULL CHECK (adl > 0),
    round integer NOT NULL CHECK (round > 0),
    seq bigint NOT NULL CHECK (seq >= 0),
    ts bigint NOT NULL CHECK (ts >= 0),
    account text COLLATE "C" NOT NULL,
    lots bigint NOT NULL CHECK (lots >= 0),
    body bytea NOT NULL,
    first_rank bigint CHECK (first_rank > 0),
    hash bytea NOT NULL CHECK (octet_length(hash) = 32),
    recorded_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (symbol, record),
    CHECK ((kind = 'execution') = (account <> '')),
    CHECK ((first_rank IS NULL) = (kind IN ('execution', 'end')))
);
ALTER TABLE adl_records ALTER COLUMN body SET STORAGE EXTERNAL; -- the bodies hardly compress, and trying costs CPU
CREATE INDEX adl_records_by_order ON adl_records (symbol, adl, round);
CREATE INDEX adl_records_by_account ON adl_records (account, symbol, adl) WHERE kind = 'execution';
CREATE TRIGGER adl_records_are_append_only BEFORE UPDATE OR DELETE ON adl_records
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER adl_records_are_never_emptied BEFORE TRUNCATE ON adl_records
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
GRANT SELECT, INSERT ON adl_records TO fundsvc_service;
"""


def upgrade() -> None:
    """Adds the records and seals the existing orders. Their executions have no sequence, because none was stored."""
    connection = op.get_bind()
    run_script(connection, _SCHEMA)
    orders = connection.execute(text("SELECT * FROM adl_orders ORDER BY symbol, adl")).mappings().all()
    for symbol, of_symbol in groupby(orders, lambda order: order["symbol"]):
        _seal(connection, symbol, [dict(order) for order in of_symbol])
    run_script(connection, "DROP TABLE adl_allocations;")


def _seal(connection: Connection, symbol: str, orders: Sequence[dict[str, Any]]) -> None:
    head, numbers = GENESIS, count(1)
    for order in orders:
        for unsealed, first_rank in _records_of(connection, order):
            record = AdlRecord(symbol, next(numbers), *unsealed)
            head = link_record(head, record)
            _insert(connection, SealedRecord(record, head, first_rank))
    connection.execute(
        text("UPDATE funds SET adl_record = :record, adl_head = :head WHERE symbol = :symbol"),
        {"record": next(numbers) - 1, "head": head, "symbol": symbol},
    )


def _records_of(connection: Connection, row: dict[str, Any]) -> Iterator[tuple[tuple[Any, ...], int]]:
    """Yields the records of an order, without contract and number, and their first ranks."""
    columns = (
        "symbol",
        "adl",
        "cause",
        "reduce",
        "lots",
        "price",
        "deficit",
        "deficit_lots",
        "uncovered",
        "ts",
        "seq",
        "account",
    )
    order = AdlOrder(**{name: row[name] for name in columns})
    found = connection.execute(
        text("SELECT * FROM adl_allocations WHERE symbol = :symbol AND adl = :adl ORDER BY round, rank"),
        {"symbol": order.symbol, "adl": order.adl},
    )
    allocations = [dict(each) for each in found.mappings()]
    for number in range(1, row["round"] + 1):
        asked = [each for each in allocations if each["round"] == number]
        order.round = number
        yield from _records_of_round(order, asked)
    if row["state"] == "uncovered":
        yield (0, "end", order.adl, order.round, 0, order.ts, "", row["lots"] - row["executed"], b""), 0


def _records_of_round(order: AdlOrder, asked: Sequence[dict[str, Any]]) -> Iterator[tuple[tuple[Any, ...], int]]:
    names = ("account", "rank", "lots", "entry_price", "margin", "asked")
    lists = [[each[name] for each in asked] for name in names]
    mark, ranked = (asked[0]["mark_price"], asked[0]["ranked"]) if asked else (0, 0)
    terms = RoundTerms(mark, False, ranked, len(asked), sum(lists[-1]), *lists)
    seq = order.seq if order.round == 1 else 0
    for kind, body, first_rank in round_bodies(order, terms):
        yield (order.cause if order.round == 1 else 0, kind, order.adl, order.round, seq, order.ts, "", 0, body), first_rank
    reductions = RoundProgress(terms)
    for place, each in enumerate(asked):
        if each["executed"]:
            body = reduced_body(reductions.reduced(place))
            yield (0, "execution", order.adl, order.round, 0, order.ts, each["account"], each["executed"], body), 0


def _insert(connection: Connection, sealed: SealedRecord) -> None:
    row = {name: getattr(sealed.record, name) for name in AdlRecord.__struct_fields__}
    row |= {"first_rank": sealed.first_rank or None, "hash": sealed.hash}
    columns, values = ", ".join(row), ", ".join(f":{name}" for name in row)
    connection.execute(text(f"INSERT INTO adl_records ({columns}) VALUES ({values})"), row)  # noqa: S608 - constant names
