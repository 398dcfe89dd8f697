"""Commitments to accounts: public hashes do not allow guesses of accounts."""

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
    """Entries and hashes of a fund that settles a fill of each of these accounts."""
    fund = Fund(UNIT)
    fund.secret = LedgerSecret(secret) if secret else None
    return [fund.settle(fill(seq, account=account)) for seq, account in enumerate(accounts, 1)]


def guesses(entry, digest, previous):
    """The accounts for which the public fields of an entry give its public hash."""
    public = msgspec.structs.replace(entry, account="", seal=b"")
    return [one for one in ACCOUNTS if link(previous, msgspec.structs.replace(public, account=one)) == digest]


def test_account_cannot_be_guessed_from_public_hashes():
    ((entry, digest),) = settled(SECRET, "user-7")
    assert guesses(entry, digest, GENESIS) == []


def test_account_sealed_without_a_secret_can_be_guessed():
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


def test_same_secret_gives_the_same_chain():
    assert settled(SECRET, "a", "b") == settled(SECRET, "a", "b") != settled(OTHER, "a", "b")


def test_commitments_of_one_account_differ():
    seals = {seal_parts(entry.seal).commitment for entry, _ in settled(SECRET, "a", "a", "a")}
    assert len(seals) == 3


def test_entry_without_an_account_has_no_seal():
    assert settled(SECRET, "") == settled(None, "")


@given(st.text(max_size=20), st.integers(1, 2**63 - 1), st.text(max_size=20), st.integers(1, 2**63 - 1))
def test_entries_have_different_salts(symbol, entry, other_symbol, other_entry):
    secret = LedgerSecret(SECRET)
    same = (symbol, entry) == (other_symbol, other_entry)
    assert (secret.salt(symbol, entry) == secret.salt(other_symbol, other_entry)) == same


def replayed(lines, secrets):
    replay = Replay(UNIT, secrets=secrets)
    for entry, digest in lines:
        replay.follow(entry, digest)
    return replay


def test_replay_without_the_secret_counts_unopened_commitments():
    lines = settled(SECRET, "a", "", "b")
    for secrets, unopened in ((NO_SECRETS, 2), (secrets_of(OTHER, []), 2), (secrets_of(OTHER, [SECRET]), 0)):
        replay = replayed(lines, secrets)
        assert (replay.differences, replay.unopened) == ([], unopened)


def test_chain_may_mix_entries_with_and_without_secrets():
    fund = Fund(UNIT)
    lines = []
    for seq, secret in enumerate((None, LedgerSecret(SECRET), LedgerSecret(OTHER), None), 1):
        fund.secret = secret
        lines.append(fund.settle(fill(seq, account="a")))
    assert [entry.version for entry, _ in lines] == [1, 2, 2, 1]
    assert replayed(lines, secrets_of(OTHER, [SECRET])).differences == []


def test_altered_account_is_found_only_with_the_secret():
    ((entry, digest),) = settled(SECRET, "a")
    forged = [(msgspec.structs.replace(entry, account="b"), digest)]
    assert replayed(forged, NO_SECRETS).differences == []
    (difference,) = replayed(forged, secrets_of(SECRET, [])).differences
    assert "its commitment does not belong to its account" in difference


@pytest.mark.parametrize("change", [{"account": ""}, {"seal": b"short"}])
def test_illegal_seal_is_a_difference(change):
    ((entry, _),) = settled(SECRET, "a")
    forged = msgspec.structs.replace(entry, **change)
    assert any(
        "has a seal without an account" in one for one in replayed([(forged, link(GENESIS, forged))], NO_SECRETS).differences
    )


def test_salt_opens_one_entry_only():
    (first, _), (second, _) = settled(SECRET, "a", "a")
    salt = secrets_of(SECRET, []).salt(first.symbol, first.entry, first.seal)
    assert commitment(salt, "a") == seal_parts(first.seal).commitment != seal_parts(second.seal).commitment


def test_secrets_open_only_their_own_seals():
    assert Secrets().salt("A", 1, b"") is None
    sealed = LedgerSecret(SECRET).seal("A", 1, "a")
    assert Secrets(LedgerSecret(OTHER)).salt("A", 1, sealed) is None
    assert Secrets(LedgerSecret(OTHER), [LedgerSecret(SECRET)]).salt("A", 1, sealed) == LedgerSecret(SECRET).salt("A", 1)
