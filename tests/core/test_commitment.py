"""Commitments to accounts: public hashes give nobody anything to try accounts with."""

import hashlib
import hmac

import msgspec
import pytest
from builders import UNIT, fill
from hypothesis import given
from hypothesis import strategies as st

from fundsvc.core.commitment import NO_SECRETS, SEAL_BYTES, LedgerSecret, Secrets, commitment, seal_parts, secrets_of
from fundsvc.core.fund.chain import GENESIS, link
from fundsvc.core.fund.settlement import Fund
from fundsvc.core.fund.verification import Replay

SECRET = "a secret of thirty-two characters"
OTHER = "another secret of some characters"
ACCOUNTS = [f"user-{number}" for number in range(1000)]


def settled(secret, *accounts):
    """Entries and hashes of a fund that takes a fill of each of these accounts."""
    fund = Fund(UNIT)
    fund.secret = LedgerSecret(secret) if secret else None
    return [fund.settle(fill(seq, account=account)) for seq, account in enumerate(accounts, 1)]


def guesses(entry, digest, previous):
    """The accounts that the public hashes of an entry fit: of what is public, all but the account is known."""
    public = msgspec.structs.replace(entry, account="", seal=b"")
    return [one for one in ACCOUNTS if link(previous, msgspec.structs.replace(public, account=one)) == digest]


def test_public_hashes_let_nobody_guess_an_account():
    ((entry, digest),) = settled(SECRET, "user-7")
    assert guesses(entry, digest, GENESIS) == []


def test_an_account_that_is_sealed_as_it_is_can_be_guessed():
    ((entry, digest),) = settled(None, "user-7")
    assert guesses(entry, digest, GENESIS) == ["user-7"]


@pytest.mark.parametrize("secret", [SECRET, "ä" * 64, "k" * 64, "k" * 65])
def test_salt_and_commitment_are_the_documented_hmacs(secret):
    ((entry, _),) = settled(secret, "äccount")
    packed = b"\x92" + bytes([0xA0 | len(UNIT.symbol)]) + UNIT.symbol.encode() + b"\x01"
    salt = hmac.new(secret.encode(), packed, hashlib.sha256).digest()
    assert LedgerSecret(secret).salt(entry.symbol, 1) == salt
    assert seal_parts(entry.seal).commitment == hmac.new(salt, "äccount".encode(), hashlib.sha256).digest()
    assert len(entry.seal) == SEAL_BYTES


def test_the_same_secret_gives_the_same_chain():
    assert settled(SECRET, "a", "b") == settled(SECRET, "a", "b") != settled(OTHER, "a", "b")


def test_entries_of_one_account_have_nothing_in_common():
    seals = {seal_parts(entry.seal).commitment for entry, _ in settled(SECRET, "a", "a", "a")}
    assert len(seals) == 3


def test_an_entry_without_an_account_is_sealed_as_without_a_secret():
    assert settled(SECRET, "") == settled(None, "")


@given(st.text(max_size=20), st.integers(1, 2**63 - 1), st.text(max_size=20), st.integers(1, 2**63 - 1))
def test_no_two_entries_share_a_salt(symbol, entry, other_symbol, other_entry):
    secret = LedgerSecret(SECRET)
    same = (symbol, entry) == (other_symbol, other_entry)
    assert (secret.salt(symbol, entry) == secret.salt(other_symbol, other_entry)) == same


def replayed(lines, secrets):
    replay = Replay(UNIT, secrets=secrets)
    for entry, digest in lines:
        replay.follow(entry, digest)
    return replay


def test_a_chain_holds_without_its_secret_and_says_how_much_it_could_not_open():
    lines = settled(SECRET, "a", "", "b")
    for secrets, unopened in ((NO_SECRETS, 2), (secrets_of(OTHER, []), 2), (secrets_of(OTHER, [SECRET]), 0)):
        replay = replayed(lines, secrets)
        assert (replay.differences, replay.unopened) == ([], unopened)


def test_a_chain_goes_on_under_another_secret_and_from_before_there_was_one():
    fund = Fund(UNIT)
    lines = []
    for seq, secret in enumerate((None, LedgerSecret(SECRET), LedgerSecret(OTHER), None), 1):
        fund.secret = secret
        lines.append(fund.settle(fill(seq, account="a")))
    assert [entry.version for entry, _ in lines] == [1, 2, 2, 1]
    assert replayed(lines, secrets_of(OTHER, [SECRET])).differences == []


def test_an_account_that_was_altered_is_found_by_its_secret_alone():
    ((entry, digest),) = settled(SECRET, "a")
    forged = [(msgspec.structs.replace(entry, account="b"), digest)]
    assert replayed(forged, NO_SECRETS).differences == []
    (difference,) = replayed(forged, secrets_of(SECRET, [])).differences
    assert "its commitment does not belong to its account" in difference


@pytest.mark.parametrize("change", [{"account": ""}, {"seal": b"short"}])
def test_a_seal_that_no_account_has_is_a_difference(change):
    ((entry, _),) = settled(SECRET, "a")
    forged = msgspec.structs.replace(entry, **change)
    assert any(
        "has a seal without an account" in one for one in replayed([(forged, link(GENESIS, forged))], NO_SECRETS).differences
    )


def test_a_salt_opens_one_entry_and_no_other():
    (first, _), (second, _) = settled(SECRET, "a", "a")
    salt = secrets_of(SECRET, []).salt(first.symbol, first.entry, first.seal)
    assert commitment(salt, "a") == seal_parts(first.seal).commitment != seal_parts(second.seal).commitment


def test_secrets_know_what_they_sealed():
    assert Secrets().salt("A", 1, b"") is None
    sealed = LedgerSecret(SECRET).seal("A", 1, "a")
    assert Secrets(LedgerSecret(OTHER)).salt("A", 1, sealed) is None
    assert Secrets(LedgerSecret(OTHER), [LedgerSecret(SECRET)]).salt("A", 1, sealed) == LedgerSecret(SECRET).salt("A", 1)
