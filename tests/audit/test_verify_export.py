"""`scripts/verify-export` accepts an export of entries and ADL records, and rejects every altered one."""

import csv
import io
import itertools
import sys
from contextlib import redirect_stderr, redirect_stdout
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
from commands import Done, fundsvc, program
from escalations import BEGINNING, SYMBOL, ended, executed, mark, position, shortfall
from ledgers import listing, owned

from fundsvc.cli.tools.export import COLUMNS, export_rows
from fundsvc.core.adl import order
from fundsvc.core.adl.records import AdlRecord, OrderBody, Reduced, link_record, reduced_body
from fundsvc.store import exports
from fundsvc.store.database import open_pool
from fundsvc.store.exports import open_ledger

PATH = Path(__file__).parents[2] / "scripts" / "verify-export"
SCRIPT = ModuleType("verify_export")
SourceFileLoader(SCRIPT.__name__, str(PATH)).exec_module(SCRIPT)


@pytest.fixture
async def rows(config, monkeypatch):
    """An export with every kind of line: a round in parts, failed rounds, a refund, an end, a cover, an open order."""
    monkeypatch.setattr(order, "POSITIONS_PER_RECORD_MAX", 2)
    monkeypatch.setattr(exports, "ROWS_PER_PAGE", 3)
    monkeypatch.setattr(exports, "RECORDS_PER_PAGE", 2)
    async with owned(config) as owner:
        await owner.settle([*BEGINNING, shortfall(1, price="39050.3"), shortfall(2)])
        adl = owner.orders(SYMBOL)
        for seq, (account, lots) in enumerate(owner.requested(SYMBOL, adl), 3):
            await owner.settle([executed(seq, adl, account, lots)])
        await owner.settle([shortfall(20)])
        adl = owner.orders(SYMBOL)
        (account, lots), *_ = owner.requested(SYMBOL, adl)
        await owner.settle([executed(21, adl, account, 2), shortfall(22, price=39020)])
        await owner.settle(ended(seq, adl) for seq in range(23, 40))
        await owner.settle([shortfall(40, lots=10, price=39500), shortfall(41, lots=1, price=38999)])
        few = [position(f"account-{number}", -20, 41000) for number in range(5)]
        await owner.settle([*few, mark(39000), shortfall(50)])
        adl = owner.orders(SYMBOL)
        (account, lots), *_ = owner.requested(SYMBOL, adl)
        await owner.settle([executed(51, adl, account, 1), *BEGINNING[1:], shortfall(52, price=39100)])
    async with open_pool(config.database.dsn, 1) as pool:
        return [row async for row in export_rows(await open_ledger(pool, SYMBOL))]


def verify(rows, *options, columns=COLUMNS):
    """Runs the script on rows in this process, which is faster than a process per call."""
    text, output, error = io.StringIO(), io.StringIO(), io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    text.seek(0)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(error):
        patch.setattr(sys, "stdin", text)
        code = SCRIPT.main([*options])
    return Done(code, output.getvalue(), error.getvalue())


def records(rows, *kinds):
    """Returns the indices of the records of some kinds."""
    return [place for place, row in enumerate(rows) if row["line"] == "record" and row["kind"] in kinds]


def resealed(rows):
    """Returns the rows with the hashes of records and the fund's `recordHash` recomputed."""
    head, rows = bytes(32), [dict(row) for row in rows]
    for row in rows:
        if row["line"] == "record":
            record = AdlRecord(*(bytes.fromhex(row[name]) if name == "body" else row[name] for name in RECORD_FIELDS))
            head = link_record(head, record)
            row["hash"] = head.hex()
    rows[-1]["recordHash"] = head.hex()
    return rows


RECORD_FIELDS = ("symbol", "record", "entry", "kind", "adl", "round", "seq", "ts", "account", "lots", "body")


def with_order(row, **fields):
    """Returns the row of an order with fields of its body changed."""
    order = msgspec.msgpack.decode(bytes.fromhex(row["body"]), type=OrderBody)
    return row | {"body": msgspec.msgpack.encode(msgspec.structs.replace(order, **fields)).hex()}


def with_first_round(row, **fields):
    order = msgspec.msgpack.decode(bytes.fromhex(row["body"]), type=OrderBody)
    return with_order(row, first=msgspec.structs.replace(order.first, **fields))


async def test_an_export_with_every_kind_of_line_verifies(rows):
    kinds = {row.get("kind") for row in rows}
    assert kinds == {
        *("surplus", "shortfall", "refund", "cover"),
        *("order", "round", "part", "execution", "end"),
        None,
    }
    done = verify(rows)
    assert (done.code, done.error) == (0, "")
    heads = rows[-1]["recordHash"], rows[-1]["hash"]
    counts = [sum(row["line"] == line for row in rows) for line in ("entry", "record")]
    entries, adl_records = f"{counts[0]} entries with head {heads[1]}", f"{counts[1]} ADL records with head {heads[0]}"
    assert done.output == f"{entries}, {adl_records}: verified\n"
    assert resealed(rows) == rows


async def test_the_command_writes_both_forms(config, rows):
    for form in ("csv", "ndjson"):
        done = await fundsvc(config, "export", SYMBOL, "--format", form)
        verified = await program(sys.executable, PATH, given=done.output)
        assert (verified.code, verified.error) == (0, "")


async def test_lines_are_in_the_order_of_their_creation(rows):
    entries = [row["entry"] for row in rows]
    assert entries == sorted(entries)
    assert [row["record"] for row in rows if row["line"] == "record"] == list(range(1, rows[-1]["record"] + 1))


async def test_a_missing_line_is_found(rows):
    for place, row in enumerate(rows):
        done = verify(rows[:place] + rows[place + 1 :])
        assert done.code == 1, row
    for place in records(rows, "order", "round", "part", "execution", "end"):
        done = verify(rows[:place] + rows[place + 1 :])
        number = rows[place]["record"]
        last = f"its record is {number}, the lines before it give {number - 1}"
        assert (last if number == rows[-1]["record"] else f"record {number} is missing") in done.error


async def test_swapped_lines_are_found(rows):
    for place in range(len(rows) - 1):
        done = verify([*rows[:place], rows[place + 1], rows[place], *rows[place + 2 :]])
        assert done.code == 1, rows[place]


async def test_swapped_orders_are_found(rows):
    first, second = records(rows, "order")[:2]
    swapped = list(rows)
    swapped[first], swapped[second] = rows[second], rows[first]
    done = verify(swapped)
    assert done.code == 1
    assert "it begins ADL order 2, the last one was 0" in done.error


@pytest.mark.parametrize("lines", range(1, 6))
async def test_a_truncated_export_is_found(rows, lines):
    done = verify(rows[:-lines])
    assert done.code == 1
    assert "the export is truncated: the line of the fund is missing at its end" in done.error
    before_the_fund = verify([*rows[: -lines - 1], rows[-1]])
    assert before_the_fund.code == 1
    assert "the lines before it give" in before_the_fund.error


async def test_a_line_after_the_fund_is_found(rows):
    done = verify([*rows, rows[-2]])
    assert done.code == 1
    assert "it is after the line of the fund" in done.error


async def test_an_altered_field_is_found(rows):
    places = [records(rows, kind)[0] for kind in ("order", "round", "part", "execution", "end")]
    for place, name in itertools.product((*places, len(rows) - 1), COLUMNS):
        value = rows[place].get(name, "")
        other = {"order": "round"}.get(value, f"1{value}") if isinstance(value, str) else value + 1
        done = verify([*rows[:place], rows[place] | {name: other}, *rows[place + 1 :]])
        assert done.code or name == "recordedAt", (rows[place], name)


async def test_a_line_of_another_contract_is_found(config, rows):
    other = "ETHUSDTM"
    async with owned(config) as owner:
        await owner.settle([listing(other, multiplier=0.001), mark(39000, other), shortfall(1, symbol=other)])
        await owner.settle([position("anna", -100, 41000, symbol=other), shortfall(2, symbol=other)])
    async with open_pool(config.database.dsn, 1) as pool:
        theirs = [row async for row in export_rows(await open_ledger(pool, other))]
    assert (verify(theirs)).code == 0
    for place in (*records(rows, "order", "execution"), 0, len(rows) - 1):
        for line in theirs:
            if line["line"] == rows[place]["line"]:
                done = verify([*rows[:place], line, *rows[place + 1 :]])
                assert done.code == 1
                assert "its contract is " in done.error


class TestResealed:
    """The rules find changes even if the hashes are recomputed. Only the published head reveals a removed last record."""

    @pytest.mark.parametrize(
        ("kind", "change", "sentence"),
        [
            ("execution", {"lots": 1000}, "it executes 1000 lots, "),
            ("execution", {"lots": 0}, "it executes 0 lots, "),
            ("execution", {"account": "secret-mine"}, "has no allocation for 'secret-mine'"),
            ("execution", {"round": 9}, "has no allocation for "),
            ("execution", {"adl": 99}, "ADL order 99 is not open"),
            ("execution", {"body": reduced_body(Reduced(1, 1, 1, 1, 1, 1, 1)).hex()}, "it reduces [1, 1, 1, 1, 1, 1, 1], "),
            (
                "execution",
                {"body": "ff00"},
                "its body is not that of a record of kind execution: its body has 1 bytes after its end",
            ),
            (
                "execution",
                {"body": "dcffff"},
                "its body is not that of a record of kind execution: its body is not MessagePack",
            ),
            ("execution", {"entry": 1}, "it names entry 1, but is after entry "),
            ("end", {"lots": 1}, "lots, not 1"),
            ("order", {"adl": 7}, "it begins ADL order 7, the last one was 0"),
            ("order", {"ts": 5}, "requires"),
            ("order", {"body": "90"}, "its body is not that of a record of kind order: "),
            ("round", {"round": 5}, "it begins round 5, the last one was 1"),
            ("part", {"round": 5}, "its round is complete or not the current one"),
            ("part", {"kind": "round"}, "positions of round "),
        ],
    )
    async def test_a_record_that_breaks_a_rule_is_found(self, rows, kind, change, sentence):
        place = records(rows, kind)[0]
        done = verify(resealed([*rows[:place], rows[place] | change, *rows[place + 1 :]]))
        assert (done.code, sentence in done.error) == (1, True), done.error

    @pytest.mark.parametrize(
        ("fields", "sentence"),
        [
            ({"lots": 1}, "requires"),
            ({"cause": 1}, "requires"),
            ({"uncovered": 1}, "requires"),
            ({"deficit": 1}, "requires"),
            ({"deficit_lots": 0}, "requires"),
            ({"price": 1}, "requires"),
            ({"reduce": "long"}, "requires"),
            ({"account": "secret-anna"}, "it allocates to the liquidated account"),
        ],
    )
    async def test_an_order_that_differs_from_its_entry_is_found(self, rows, fields, sentence):
        place = records(rows, "order")[0]
        done = verify(resealed([*rows[:place], with_order(rows[place], **fields), *rows[place + 1 :]]))
        assert (done.code, sentence in done.error) == (1, True), done.error

    @pytest.mark.parametrize(
        ("fields", "sentence"),
        [
            ({"lots_requested": 10**6}, "its round allocates 1000000 lots, the order needs "),
            ({"positions": 2}, "its positions and lots do not add up to the numbers of its round"),
            ({"requested": [10**6, 1]}, "it allocates 1000000 of "),
            ({"ranks": [0, 1]}, "lots at rank 0 of "),
            ({"accounts": ["twice", "twice"]}, "it allocates to the account 'twice' twice"),
        ],
    )
    async def test_a_round_with_wrong_totals_is_found(self, rows, fields, sentence):
        place = records(rows, "part")[0] - 1
        done = verify(resealed([*rows[:place], with_first_round(rows[place], **fields), *rows[place + 1 :]]))
        assert (done.code, sentence in done.error) == (1, True), done.error

    @pytest.mark.parametrize("kind", ["order", "round", "part", "execution", "end"])
    async def test_a_removed_record_is_found(self, rows, kind):
        for place in records(rows, kind):
            kept = [dict(row) for row in (*rows[:place], *rows[place + 1 :])]
            for row in kept:
                if row.get("record", 0) > rows[place]["record"]:
                    row["record"] -= 1
            kept[-1]["record"] = rows[-1]["record"] - 1
            done = verify(resealed(kept))
            is_last = rows[place]["record"] == rows[-1]["record"]
            assert (done.code, rows[-1]["recordHash"] in done.output) == (int(not is_last), False), rows[place]

    @pytest.mark.parametrize("name", ["balance", "outstanding", "adl", "entry", "record"])
    async def test_a_wrong_fund_is_found(self, rows, name):
        fund = rows[-1] | {name: rows[-1][name] + 1 if isinstance(rows[-1][name], int) else "7"}
        done = verify([*rows[:-1], fund])
        assert done.code == 1
        assert f"its {name} is " in done.error


async def test_an_export_without_entries_verifies(config):
    async with owned(config) as owner:
        await owner.settle([listing("EMPTY")])
    async with open_pool(config.database.dsn, 1) as pool:
        rows = [row async for row in export_rows(await open_ledger(pool, "EMPTY"))]
    assert [row["line"] for row in rows] == ["fund"]
    assert (verify(rows)).code == 0
    assert (verify([])).code == 1
