"""`scripts/verify-export` accepts an export of a pool of the mutual, and rejects every altered one."""

import csv
import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
from commands import Done, fundsvc, program
from owners import owned_pool
from streams import POOL, events_of, small_rules

from fundsvc.cli.tools.mutual_export import POOL_COLUMNS, PUBLIC_POOL_COLUMNS, pool_rows, public_pool_rows
from fundsvc.core.commitment import NO_SECRETS
from fundsvc.core.events import Rejection
from fundsvc.mutual.core.chain import GENESIS, Entry, link
from fundsvc.mutual.core.events import TermsChange, Tick, TopUp
from fundsvc.mutual.core.terms import Rules
from fundsvc.mutual.store import exports
from fundsvc.mutual.store.exports import open_pool_ledger
from fundsvc.store.database import open_pool

PATH = Path(__file__).parents[2] / "scripts" / "verify-export"
SCRIPT = ModuleType("verify_export")
SourceFileLoader(SCRIPT.__name__, str(PATH)).exec_module(SCRIPT)

SEED = 1892
"""A stream with entries of all kinds; see test_mutual_verification."""


@pytest.fixture
async def stored(config, monkeypatch):
    """A pool with entries of all kinds and two versions of its terms."""
    monkeypatch.setattr(exports, "ROWS_PER_PAGE", 7)
    rules = small_rules(platform_fee=150_000)
    async with owned_pool(config, rules, POOL) as owner:
        for event, _ in events_of(SEED, 90):
            apply(owner.pool, event)
        await owner.commit()
        last = owner.pool.row()
        owner.pool.apply(TermsChange(POOL, last.time, 2, msgspec.structs.replace(rules, threshold=9)))
        owner.pool.apply(TopUp(POOL, last.time, last.seq + 1, "5", "u"))
        owner.pool.apply(Tick(POOL, last.time + 3_000))
        await owner.commit()
    return config


def apply(pool, event):
    try:
        pool.apply(event)
    except Rejection:
        return


async def exported(config, secrets=NO_SECRETS, *, public=False):
    async with open_pool(config.database.dsn, 1) as pool:
        ledger = await open_pool_ledger(pool, POOL)
        return [row async for row in (public_pool_rows(ledger) if public else pool_rows(ledger, secrets))]


@pytest.fixture
async def rows(stored):
    return await exported(stored, stored.ledger.secrets)


@pytest.fixture
async def public(stored):
    return await exported(stored, public=True)


def verify(rows, *options):
    """Runs the script on rows in this process, which is faster than a process per call."""
    text, output, error = io.StringIO(), io.StringIO(), io.StringIO()
    writer = csv.DictWriter(text, PUBLIC_POOL_COLUMNS if options else POOL_COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    text.seek(0)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(error):
        patch.setattr(sys, "stdin", text)
        code = SCRIPT.main([*options])
    return Done(code, output.getvalue(), error.getvalue())


def places(rows, *kinds):
    """Returns the indices of the entries of some kinds."""
    return [place for place, row in enumerate(rows) if row["line"] == "entry" and row["kind"] in kinds]


def changed(rows, place, **fields):
    return [*rows[:place], rows[place] | fields, *rows[place + 1 :]]


def rechained(rows):
    """Returns the rows with all numbers, hashes and terms recomputed; amounts have no decimals."""
    head, number, digests, rows = GENESIS, 0, {}, [dict(row) for row in rows]
    for row in rows:
        if row["line"] == "terms":
            digests[row["version"]] = msgspec.json.decode(row["rules"], type=Rules).digest
        if row["line"] == "entry":
            number += 1
            row["entry"] = number
            seal = bytes.fromhex(row.get("keyId", "") + row.get("commitment", ""))
            amounts = (int(row[name]) for name in ("amount", "balance", "profits"))
            given = (row[name] for name in ("pool", "entry", "seq", "ts", "kind", "account", "policy"))
            head = link(head, Entry(*given, *amounts, row["version"], seal), digests[row["version"]])
            row["hash"] = head.hex()
    rows[-1] |= {"hash": head.hex(), "entry": number}
    return rows


async def test_an_export_with_all_kinds_of_lines_verifies(rows):
    assert {row["line"] for row in rows} == {"terms", "entry", "cycle", "pool"}
    assert len({row["kind"] for row in rows if row["line"] == "entry"}) == 15
    done = verify(rows)
    assert (done.code, done.error) == (0, "")
    last = rows[-1]
    counts = f"{last['cycle']} cut-offs, {last['policies']} policies"
    assert done.output == f"{last['entry']} entries with head {last['hash']}, {counts}: verified\n"
    assert rechained(rows) == rows


async def test_the_command_writes_both_forms_in_private_and_in_public(stored):
    for options in ((), ("--public",)):
        for form in ("csv", "ndjson"):
            done = await fundsvc(stored, "mutual", "export", POOL, "--format", form, *options)
            verified = await program(sys.executable, PATH, *options, given=done.output)
            assert (verified.code, verified.error) == (0, "")


async def test_an_unknown_pool_cannot_be_exported(stored):
    done = await fundsvc(stored, "mutual", "export", "other")
    assert (done.code, done.output) == (2, "")
    assert "there is no pool 'other'" in done.error


async def test_a_public_export_has_no_accounts_and_verifies(public):
    assert not any("account" in row or "salt" in row for row in public)
    done = verify(public, "--public")
    assert (done.code, done.error) == (0, "")


async def test_a_missing_line_is_found(rows, public):
    for place in range(len(rows)):
        assert verify(rows[:place] + rows[place + 1 :]).code, rows[place]
        if rows[place]["line"] != "entry":
            assert verify(public[:place] + public[place + 1 :], "--public").code, public[place]


async def test_swapped_lines_are_found(rows):
    for place in range(1, len(rows) - 1):
        assert verify([*rows[:place], rows[place + 1], rows[place], *rows[place + 2 :]]).code == 1, rows[place]


async def test_a_truncated_export_is_found(rows):
    for count in range(1, 6):
        done = verify(rows[:-count])
        assert done.code == 1
        assert "the export is truncated: the line of the pool is missing at its end" in done.error
        before_the_pool = verify([*rows[: -count - 1], rows[-1]])
        assert before_the_pool.code == 1


async def test_a_line_after_the_pool_is_found(rows):
    done = verify([*rows, rows[-2]])
    assert done.code == 1
    assert "it is after the line of the pool" in done.error


async def test_every_altered_field_is_found(rows):
    first = {kind: places(rows, kind)[-1] for kind in {row["kind"] for row in rows if row["line"] == "entry"}}
    others = [[row["line"] for row in rows].index(line) for line in ("terms", "cycle", "pool")]
    for place in (*first.values(), *others):
        for name in rows[place].keys() | {"salt", "rules", "fees"}:
            value = rows[place].get(name, "")
            other = f"1{value}" if isinstance(value, str) else value + 1
            if name == "rules" and value:
                other = json.dumps(json.loads(value) | {"threshold": 8})
            done = verify(changed(rows, place, **{name: other}))
            assert done.code or name == "recordedAt", (rows[place], name)


class TestRechained:
    """The rules find changes even if the hashes are recomputed."""

    @pytest.mark.parametrize(
        "kind",
        ["premium", "issue", "activate", "freeze", "thaw", "expire", "complete", "cancel", "payout", "cycle", "uncovered"],
    )
    async def test_another_amount_is_found(self, rows, kind):
        for place in places(rows, kind):
            done = verify(rechained(changed(rows, place, amount=str(int(rows[place]["amount"]) + 1))))
            assert done.code == 1
            assert f"entry {rows[place]['entry']}: it is [" in done.error

    @pytest.mark.parametrize("kind", ["issue", "uncovered", "expire", "complete", "cycle"])
    async def test_a_removed_entry_that_the_rules_require_is_found(self, rows, kind):
        for place in places(rows, kind):
            if kind != "uncovered" or rows[place]["seq"] == rows[place - 1].get("seq"):
                assert verify(rechained(rows[:place] + rows[place + 1 :])).code == 1, rows[place]

    @pytest.mark.parametrize(
        ("kind", "fields", "sentence"),
        [
            ("loss", {"amount": "1"}, "a loss of 1 units does not qualify"),
            ("loss", {"account": "z"}, "the account was never covered"),
            ("transfer", {"amount": "-1000"}, "units in the insurance account"),
            ("topUp", {"amount": "-1"}, "its amount is not above 0"),
            ("premium", {"profits": "1"}, "which owe 0"),
            ("covered", {"account": "z"}, "the account is covered already, or has 0 units"),
            ("uncovered", {"account": "z"}, "the account is not covered"),
            ("cancel", {"policy": 99}, "the account has no live policy 99"),
            ("freeze", {"policy": 99}, "policy 99 is not live, not active"),
            ("thaw", {"kind": "freeze"}, "is frozen, not active"),
            ("payout", {"account": "z"}, "nothing is payable to the account"),
            ("cycle", {"ts": 1}, "the next cut-off is at "),
            ("topUp", {"seq": 1}, "its seq and ts are 1 and "),
            ("topUp", {"ts": 2 * 10**12}, "the cut-off at "),
        ],
    )
    async def test_an_entry_that_breaks_a_rule_is_named(self, rows, kind, fields, sentence):
        place = places(rows, kind)[1]
        done = verify(rechained(changed(rows, place, **fields)))
        assert (done.code, sentence in done.error) == (1, True), done.error

    async def test_other_terms_are_found(self, rows):
        for name, value in (("face", 11), ("cap_rate", 400_000), ("platform_fee", 0), ("release", [[0, 1]]), ("threshold", 6)):
            rules = json.dumps(json.loads(rows[0]["rules"]) | {name: value})
            assert verify(rechained(changed(rows, 0, rules=rules))).code == 1, name

    async def test_a_wrong_cut_off_or_pool_is_found(self, rows):
        paying = [place for place, row in enumerate(rows) if row["line"] == "cycle" and row["budget"] != "0"]
        for place in (*paying, len(rows) - 1):
            for name in ("balance", "shareIndex", "rem", "weight", "cycle", "version"):
                value = int(rows[place][name]) + 1
                done = verify(changed(rows, place, **{name: value}))
                assert done.code == 1
                assert f"its {name} is {value}, the lines before it give {value - 1}" in done.error

    async def test_a_public_export_is_checked_but_for_accounts(self, public):
        for kind in ("issue", "cycle", "expire", "complete"):
            for place in places(public, kind):
                altered = changed(public, place, amount=str(int(public[place]["amount"]) + 1))
                assert f"entry {public[place]['entry']}: it is [" in verify(altered, "--public").error
        place = places(public, "premium")[0]
        assert verify(changed(public, place, balance="1"), "--public").code == 1
