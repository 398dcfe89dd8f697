import random
from bisect import insort

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fundsvc.core.adl.account_order import AccountOrder, rows_by_name
from fundsvc.core.adl.directory import NONE, Directory

NAMES = st.text(max_size=3) | st.text("ab", max_size=6)


@given(st.lists(NAMES, unique=True, max_size=300), NAMES)
def test_find_returns_the_row_of_each_account_and_none_for_others(names, other):
    directory = Directory()
    for row, name in enumerate(names):
        assert directory.find(name) == NONE
        assert directory.add(name) == row
    assert [directory.find(name) for name in names] == list(range(len(names)))
    assert directory.find(other) == (names.index(other) if other in names else NONE)
    assert directory.accounts == names


def test_find_works_with_many_accounts():
    directory = Directory()
    rows = {f"account{number}": directory.add(f"account{number}") for number in range(5000)}
    assert list(rows.values()) == list(range(5000))
    assert all(directory.find(name) == row for name, row in rows.items())
    assert directory.find("account5000") == NONE


@given(st.lists(st.tuples(st.integers(0, 60), st.booleans()), max_size=400))
def test_rows_of_removed_accounts_are_reused(steps):
    directory, rows = Directory(), {}
    for number, adds in steps:
        name = f"a{number}"
        if adds and name not in rows:
            rows[name] = directory.add(name)
        elif not adds and name in rows:
            directory.remove(name)
            del rows[name]
    assert {name: directory.find(name) for name in rows} == rows
    assert all(directory.find(f"a{number}") == NONE for number in range(61) if f"a{number}" not in rows)
    assert directory.used == len(rows)
    assert len(directory.accounts) <= 61


def test_accounts_keep_their_rows_while_the_table_grows_and_others_are_removed():
    chance = random.Random(4)
    directory, rows = Directory(), {}
    for _ in range(30_000):
        name = f"a{chance.randrange(3000)}"
        if name not in rows:
            rows[name] = directory.add(name)
        elif chance.random() < 0.4:
            directory.remove(name)
            del rows[name]
        assert directory.find(name) == rows.get(name, NONE)
    assert {name: directory.find(name) for name in rows} == rows


def test_reused_row_moves_in_the_account_order():
    directory = Directory()
    for name in ("d", "b", "c", "a", "e"):
        directory.add(name)
    account_order = AccountOrder(directory.accounts)
    directory.remove("c")
    directory.add("z")
    account_order.update(directory.renamed)
    assert [directory.accounts[row] for row in account_order.rows] == ["a", "b", "d", "e", "z"]
    assert directory.renamed == set()


@pytest.mark.parametrize("names", [30_000, 300], ids=["different", "often equal"])
def test_rows_are_sorted_by_name_and_equal_names_keep_their_order(names):
    chance = random.Random(3)
    accounts = [f"{chance.randrange(names)}" for _ in range(30_000)]
    rows = chance.sample(range(30_000), 25_000)
    assert rows_by_name(rows, accounts).tolist() == sorted(rows, key=accounts.__getitem__)


def assert_in_order(account_order: AccountOrder, accounts: list[str]) -> None:
    assert [accounts[row] for row in account_order.rows] == sorted(accounts)
    assert [account_order.rows[place] for place in account_order.ordinals] == list(range(len(accounts)))


@given(st.lists(NAMES, unique=True, max_size=200), st.lists(st.integers(0, 200), max_size=6))
def test_account_order_is_right_after_updates_of_any_size(names, cuts):
    accounts: list[str] = []
    account_order = AccountOrder(accounts)
    for end in sorted({min(cut, len(names)) for cut in cuts} | {len(names)}):
        accounts += names[len(accounts) : end]
        account_order.update(set())
        assert_in_order(account_order, accounts)


def test_account_order_inserts_a_few_new_names():
    accounts = [f"n{number:04d}" for number in range(0, 2000, 2)]
    account_order = AccountOrder(accounts)
    before = accounts.copy()
    for name in ("n0001", "a", "z", "n1999", "n0003"):
        accounts.append(name)
        insort(before, name)
    account_order.update(set())
    assert_in_order(account_order, accounts)
    assert [accounts[row] for row in account_order.rows] == before
