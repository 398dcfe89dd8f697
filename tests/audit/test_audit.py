"""The audit finds and describes changes that a superuser made without triggers; the exit codes of the commands."""

import pytest
from commands import fundsvc
from conftest import with_section
from ledgers import fill, listing, owned

from fundsvc.cli.tools.audit import DIFFERENCES_MAX, audit_contract
from fundsvc.store.database import open_pool
from fundsvc.store.exports import known_contracts

AMOUNTS = [5, -3, 0, -10, 4, 20]
"""The fund cannot pay 8 of the fourth amount; the fifth and a part of the sixth repay them."""

ONE = 10**8


@pytest.fixture
async def ledger(config):
    """A ledger of two contracts with the same history."""
    async with owned(config) as owner:
        for symbol in ("ABC", "XYZ"):
            await owner.settle([listing(symbol), *(fill(symbol, seq, amount) for seq, amount in enumerate(AMOUNTS, 1))])
    return config


@pytest.fixture
async def tamper(ledger, owner_connection):
    """A function that runs statements without triggers and foreign keys."""

    async def tamper(*statements):
        await owner_connection.execute("SET session_replication_role = replica")
        for statement in statements:
            await owner_connection.execute(statement)

    return tamper


async def differences(config):
    """Returns the differences that the audit finds, by symbol."""
    async with open_pool(config.database.dsn, 1) as pool:
        audits = [await audit_contract(pool, symbol, lambda _: None) for symbol, _ in await known_contracts(pool)]
    return {audit.symbol: audit.differences for audit in audits}


async def test_an_untouched_ledger_passes(ledger):
    assert await differences(ledger) == {"ABC": [], "XYZ": []}


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        ("UPDATE entries SET change = change - 1 WHERE entry = 1", "entry 1: balance is 500000000, it should be 499999999"),
        ("UPDATE entries SET balance = balance + 1 WHERE entry = 2", "entry 2: balance is 200000001, it should be 200000000"),
        ("UPDATE entries SET uncovered = 0 WHERE entry = 4", "entry 4: change + repaid - uncovered is -200000000"),
        ("UPDATE entries SET repaid = repaid + 1 WHERE entry = 6", "entry 6: change + repaid - uncovered is 2000000001"),
        ("UPDATE entries SET kind = 'refund' WHERE entry = 1", "entry 1: hash is "),
        ("UPDATE entries SET side = 'buy' WHERE entry = 1", "entry 1: kind is surplus, it should be shortfall"),
        (
            "UPDATE entries SET lots = 2 WHERE entry = 1",
            "entry 1: change + repaid - uncovered is 500000000, it should be 1000000000",
        ),
        ("UPDATE entries SET price = price + 1 WHERE entry = 3", "entry 3: hash is "),
        ("UPDATE entries SET bankruptcy_price = 1 WHERE entry = 3", "entry 3: kind is flat, it should be surplus"),
        ("UPDATE entries SET account = 'mine' WHERE entry = 2", "entry 2: hash is "),
        ("UPDATE entries SET trade_id = '' WHERE entry = 2", "entry 2: hash is "),
        ("UPDATE entries SET order_id = '' WHERE entry = 2", "entry 2: hash is "),
        ("UPDATE entries SET ts = ts + 1 WHERE entry = 2", "entry 2: hash is "),
        ("UPDATE entries SET seq = 1 WHERE entry = 2", "entry 2: sequence 1 is not above 1"),
        ("UPDATE entries SET hash = sha256('x') WHERE entry = 2", "entry 2: hash is "),
        ("DELETE FROM entries WHERE entry = 6", "the fund has (entry, balance, head) (6, "),
        ("DELETE FROM entries WHERE entry = 3", "entry 4: entry number is 4, it should be 3"),
        ("DELETE FROM entries WHERE entry = 1", "entry 2: entry number is 2, it should be 1"),
        ("DELETE FROM entries", "the fund has (entry, balance, head) (6, "),
        ("UPDATE entries SET entry = 7 WHERE entry = 2", "entry 3: entry number is 3, it should be 2"),
        ("UPDATE funds SET balance = balance + 1", "the fund has (entry, balance, head) (6, 1600000001, "),
        ("UPDATE funds SET head = sha256('x')", "the fund has (entry, balance, head) (6, 1600000000, "),
        ("UPDATE funds SET entry = 5", "the fund has (entry, balance, head) (5, "),
        ("UPDATE funds SET seq = 5", "the fund's sequence is 5, the highest of its entries and orders 6"),
        ("UPDATE funds SET seq = 900", "the fund's sequence is 900, the highest of its entries and orders 6"),
        ("UPDATE funds SET outstanding = 1", "uncovered 800000000 is not recovered 0 + repaid 800000000 + outstanding 1"),
        (
            "UPDATE adl_orders SET executed = lots, recovered = uncovered, state = 'done'",
            "uncovered 800000000 is not recovered 800000000 + repaid",
        ),
        ("UPDATE adl_orders SET state = 'open'", "open in ADL 800000000"),
        ("UPDATE contracts SET multiplier = 2", "entry 1: change + repaid - uncovered is 500000000, it should be 1000000000"),
        ("DELETE FROM funds", "ABC: its contract or its fund is missing"),
        ("DELETE FROM contracts", "ABC: its contract or its fund is missing"),
    ],
)
async def test_a_change_of_one_contract_is_found_in_that_contract_only(ledger, tamper, statement, sentence):
    where = " AND" if "WHERE" in statement else " WHERE"
    await tamper(f"{statement}{where} symbol = 'ABC'")
    found = await differences(ledger)
    assert any(sentence in difference for difference in found["ABC"]), found["ABC"]
    assert found["XYZ"] == []


async def test_swapped_entries_are_found(ledger, tamper):
    await tamper(
        *(f"UPDATE entries SET entry = {new} WHERE entry = {old} AND symbol = 'ABC'" for old, new in ((2, 9), (3, 2), (9, 3)))
    )
    assert any("entry 2: hash is " in difference for difference in (await differences(ledger))["ABC"])


async def test_entries_without_a_contract_and_fund_are_found(ledger, tamper):
    await tamper(*(f"DELETE FROM {table} WHERE symbol = 'ABC'" for table in ("funds", "contracts")))
    assert (await differences(ledger))["ABC"] == ["ABC: its contract or its fund is missing"]


async def test_entries_moved_to_another_contract_are_found_in_both(ledger, tamper):
    await tamper("UPDATE entries SET symbol = 'XYZ', entry = 7 WHERE symbol = 'ABC' AND entry = 6")
    assert all((await differences(ledger)).values())


async def test_the_number_of_differences_is_bounded(ledger, tamper):
    async with owned(ledger) as owner:
        await owner.settle(fill("ABC", seq, 1) for seq in range(7, 107))
    await tamper("UPDATE entries SET lots = 2 WHERE symbol = 'ABC'")
    assert len((await differences(ledger))["ABC"]) == DIFFERENCES_MAX


class TestExitCodes:
    async def test_an_audit_without_differences_exits_with_0(self, ledger):
        done = await fundsvc(ledger, "audit")
        assert (done.code, done.output) == (0, "12 entries of 2 contracts recomputed: no differences\n")

    async def test_an_audit_with_a_difference_exits_with_1(self, ledger, tamper):
        await tamper("UPDATE funds SET balance = balance + 1 WHERE symbol = 'ABC'")
        done = await fundsvc(ledger, "audit", "--json")
        assert (done.code, done.result["differences"]) == (1, 1)
        printed = await fundsvc(ledger, "audit")
        assert printed.code == 1
        assert "the fund has" in printed.output
        assert printed.output.endswith("12 entries of 2 contracts recomputed: 1 contracts differ\n")

    async def test_wrong_use_exits_with_2(self, config):
        for wrong in (
            ("export", "NOSUCH"),
            ("rejected", "show", "what is this"),
            ("replay", "/nowhere"),
            ("replay", "/dev/null", "--format", "papyrus"),
            ("audit", "--colour"),
            ("frobnicate",),
        ):
            done = await fundsvc(config, *wrong)
            assert done.code == 2, wrong
            assert done.error
            assert "Traceback" not in done.error

    async def test_a_wrong_configuration_exits_with_2(self, config, tmp_path):
        file = tmp_path / "wrong.toml"
        file.write_text("[engine]\nlease_hours = 1\n")
        for done in (
            await fundsvc(config, "audit", FUNDSVC_STREAM_PARTITIONS="none"),
            await fundsvc(config, "audit", FUNDSVC_STREAM_PARTITIONS="2"),
            await fundsvc(config, "audit", FUNDSVC_NO_SUCH="1"),
            await fundsvc(config, "--config", file, "audit"),
        ):
            assert done.code == 2, done
            assert done.error.startswith("fundsvc: ")
            assert "Traceback" not in done.error

    async def test_an_unreachable_server_exits_with_1(self, config, tmp_path):
        nowhere = with_section(config, "database", dsn=f"postgresql://fundsvc_service@/fundsvc?host={tmp_path}")
        no_stream = with_section(config, "stream", url=f"unix://{tmp_path}/no.sock")
        recording = tmp_path / "recording"
        recording.write_text('{"type":"rate","currency":"XBT","price":"1","ts":1}\n')
        for done in (await fundsvc(nowhere, "audit"), await fundsvc(no_stream, "replay", recording)):
            assert done.code == 1, done
            assert done.error.splitlines()[-1].startswith("fundsvc: "), done.error
            assert "Traceback" not in done.error
