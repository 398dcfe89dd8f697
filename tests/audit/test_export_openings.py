"""`scripts/verify-export` and the audit check commitments to accounts and their openings, and reject altered ones."""

import sys

import msgspec
import pytest
from commands import fundsvc, program
from conftest import with_section
from escalations import BEGINNING, SYMBOL, executed, shortfall
from ledgers import fill, listing, owned
from test_verify_export import PATH, verify

from fundsvc.cli.tools.audit import audit_contract
from fundsvc.cli.tools.export import PUBLIC_COLUMNS, export_rows, public_rows
from fundsvc.core.commitment import secrets_of
from fundsvc.store.database import open_pool
from fundsvc.store.exports import open_ledger

SECRET, OTHER = "the first secret of these tests that is long enough", "the second secret of these tests that is long enough"


@pytest.fixture
async def ledger(config):
    """A ledger with entries sealed without a secret, under one, under another, and an entry without an account."""
    plain = msgspec.structs.replace(fill("AAA", 7, 5), account="")
    for secret, events in (
        ("", [listing("AAA"), fill("AAA", 1, 5), fill("AAA", 2, -3)]),
        (SECRET, [fill("AAA", 3, 5), fill("AAA", 4, -3)]),
        (OTHER, [fill("AAA", 5, 5), fill("AAA", 6, 0), plain]),
    ):
        async with owned(with_section(config, "ledger", secret=secret)) as owner:
            await owner.settle(events)
    return config


async def rows(config, *secrets):
    async with open_pool(config.database.dsn, 1) as pool:
        known = secrets_of(secrets[0] if secrets else "", secrets[1:])
        return [row async for row in export_rows(await open_ledger(pool, "AAA"), known)]


@pytest.mark.parametrize(("secrets", "unopened"), [((OTHER, SECRET), 0), ((OTHER,), 2), ((), 4)])
async def test_both_versions_verify_with_and_without_openings(ledger, secrets, unopened):
    exported = await rows(ledger, *secrets)
    assert [bool(row.get("commitment")) for row in exported] == [False, False, True, True, True, True, False, False]
    done = verify(exported)
    assert (done.code, done.error) == (0, "")
    assert ("were not checked" in done.output) == bool(unopened)
    assert not unopened or f"{unopened} commitments to accounts were not checked" in done.output
    async with open_pool(ledger.database.dsn, 1) as pool:
        audit = await audit_contract(pool, "AAA", lambda _: None, secrets=secrets_of((*secrets, "")[0], secrets[1:]))
    assert (audit.differences, audit.unopened) == ([], unopened)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"account": "secret-4"}, "its salt does not open its commitment to the account"),
        ({"account": ""}, "its commitment is incomplete, or it has no account"),
        ({"salt": "00" * 32}, "its salt does not open its commitment to the account"),
        ({"commitment": "00" * 32}, "its hash does not follow from its fields and the hash before"),
        ({"keyId": "00" * 4}, "its hash does not follow from its fields and the hash before"),
        ({"keyId": "", "commitment": ""}, "it has a salt but no commitment"),
        ({"keyId": "", "commitment": "", "salt": ""}, "its hash does not follow from its fields and the hash before"),
        ({"commitment": ""}, "its commitment is incomplete, or it has no account"),
    ],
)
async def test_an_altered_opening_is_found(ledger, changes, sentence):
    exported = await rows(ledger, OTHER, SECRET)
    done = verify([*exported[:2], exported[2] | changes, *exported[3:]])
    assert done.code == 1
    assert sentence in done.error


async def test_an_export_without_commitments_verifies(config):
    async with owned(config) as owner:
        await owner.settle([listing("AAA"), fill("AAA", 1, 5)])
    assert verify(await rows(config)).code == 0


async def test_the_audit_with_the_secret_finds_an_altered_account(ledger, owner_connection):
    await owner_connection.execute("SET session_replication_role = replica")
    await owner_connection.execute("UPDATE entries SET account = 'mine' WHERE entry = 3")
    async with open_pool(ledger.database.dsn, 1) as pool:
        blind = await audit_contract(pool, "AAA", lambda _: None)
        seeing = await audit_contract(pool, "AAA", lambda _: None, secrets=secrets_of(OTHER, [SECRET]))
    assert (blind.differences, blind.unopened) == ([], 4)
    assert any("its commitment does not belong to its account" in one for one in seeing.differences)


async def test_commands_open_the_commitments_whose_secrets_are_configured(ledger):
    known = {"FUNDSVC_LEDGER_SECRET": OTHER, "FUNDSVC_LEDGER_PREVIOUS": SECRET}
    for environment, unopened in ((known, 0), ({"FUNDSVC_LEDGER_SECRET": OTHER}, 2)):
        audited = await fundsvc(ledger, "audit", "--json", **environment)
        assert (audited.code, audited.result["unopened"]) == (0, unopened)
        exported = await fundsvc(ledger, "export", "AAA", "--format", "ndjson", **environment)
        assert SECRET not in exported.output
        assert OTHER not in exported.output
        done = await program(sys.executable, PATH, given=exported.output)
        assert done.code == 0, done.error
        assert ("were not checked" in done.output) == bool(unopened)
    short = await fundsvc(ledger, "audit", FUNDSVC_LEDGER_SECRET="short")
    assert (short.code, "ledger.secret has 5 characters" in short.error) == (2, True)


@pytest.mark.parametrize("statement", ["UPDATE entries SET seal = '\\x00'", "UPDATE entries SET seal = '' WHERE entry = 3"])
async def test_the_database_rejects_a_change_of_a_seal(ledger, owner_connection, statement):
    with pytest.raises(Exception, match="append-only"):
        await owner_connection.execute(statement)


async def public(config):
    async with open_pool(config.database.dsn, 1) as pool:
        return [row async for row in public_rows(await open_ledger(pool, "AAA"))]


async def test_a_public_export_contains_commitments_and_no_accounts(ledger):
    exported = await public(ledger)
    assert not any({"account", "salt"} & row.keys() for row in exported)
    assert [bool(row.get("commitment")) for row in exported] == [False, False, True, True, True, True, False, False]
    done = verify(exported, "--public", columns=PUBLIC_COLUMNS)
    assert (done.code, done.error) == (0, "")
    assert "2 hashes were not checked: they cover accounts" in done.output


@pytest.mark.parametrize(
    ("place", "changes", "sentence"),
    [
        (2, {"tradeId": "other"}, "its hash does not follow"),
        (2, {"commitment": "00" * 32}, "its hash does not follow"),
        (2, {"commitment": "00"}, "its commitment is incomplete"),
        (1, {"change": "-1"}, "its amounts differ from the value of the fill"),
        (1, {"balance": "5"}, "does not follow from the one before"),
        (2, {"repaid": "7"}, "it repays more than is outstanding"),
        (3, {"entry": 9}, "entry 4 is missing"),
        (7, {"outstanding": "1"}, "its outstanding is 1"),
        (7, {"hash": "00" * 32}, "its hash is "),
    ],
)
async def test_an_altered_public_export_is_found(ledger, place, changes, sentence):
    exported = await public(ledger)
    done = verify([*exported[:place], exported[place] | changes, *exported[place + 1 :]], "--public", columns=PUBLIC_COLUMNS)
    assert (done.code, sentence in done.error) == (1, True), done.error


async def test_the_command_writes_a_public_export_of_a_ledger_with_adl(config):
    async with owned(with_section(config, "ledger", secret=SECRET)) as owner:
        await owner.settle([*BEGINNING, shortfall(1)])
        (account, lots), *_ = owner.requested(SYMBOL, owner.orders(SYMBOL))
        await owner.settle([executed(2, 1, account, lots)])
    for form in ("csv", "ndjson"):
        exported = await fundsvc(config, "export", SYMBOL, "--public", "--format", form, FUNDSVC_LEDGER_SECRET=SECRET)
        assert "secret-" not in exported.output
        assert "record" not in exported.output.replace("recordedAt", "")
        assert (await program(sys.executable, PATH, "--public", given=exported.output)).code == 0
        assert (await program(sys.executable, PATH, given=exported.output)).code == 2
    assert (await program(sys.executable, PATH, "--private", given=exported.output)).code == 2
