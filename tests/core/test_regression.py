"""Books after a stream regression: messages that are read again change nothing, later messages do."""

import msgspec
import pytest
from builders import UNIT, fill, mark, partition, position

from fundsvc.core.adl.book_parts import BookPart
from fundsvc.core.batch import StoredBook
from fundsvc.core.events import Snapshot
from fundsvc.core.fund.settlement import Fund

BEGIN, END = Snapshot(UNIT.symbol, "begin", 1), Snapshot(UNIT.symbol, "end", 2)
KNOWN_MS = 1000

HISTORY = [
    mark("50"),
    position("closed", 10),
    BEGIN,
    position("closed", 10),
    position("open", 5),
    END,
    position("numbered", 7, seq=3),
    position("closed", 0),
    position("open", 6),
    position("numbered", 8, seq=4),
    mark("60"),
]
POSITIONS = {"open": 6, "numbered": 8}


def lots(settling):
    book = settling.book(UNIT.symbol)
    found = {}
    for side in book.sides.values():
        found |= {account: side.valued(row, 1).lots for account in side.accounts if (row := side.row_of(account)) >= 0}
    return found


def regressed(*, restarts: bool):
    """A partition that has settled the history, after a stream regression."""
    settling = partition(Fund(UNIT))
    for event in HISTORY:
        settling.apply(event, KNOWN_MS - 1)
    settling.make_stale(KNOWN_MS)
    return restarted(settling) if restarts else settling


def restarted(settling):
    book, again = settling.book(UNIT.symbol), partition(Fund(UNIT))
    saved = msgspec.msgpack.decode(msgspec.msgpack.encode(next(book.save())), type=BookPart)
    for _ in again.restore(StoredBook(UNIT.symbol, "0-0", 0, book.mark, book.mark_ts, book.mark_seq, [saved])):
        pass
    return again


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("book_only", [False, True])
def test_messages_read_again_do_not_roll_a_book_back(restarts, book_only):
    settling = regressed(restarts=restarts)
    for event in HISTORY:
        if book_only:
            settling.apply_to_book(event, stream_ms=KNOWN_MS)
        else:
            settling.apply(event, KNOWN_MS)
    book = settling.book(UNIT.symbol)
    assert lots(settling) == POSITIONS
    assert book.mark == 60 * 10**12
    assert book.stale, "a snapshot from before the regression does not end it"


def test_apply_to_book_counts_no_duplicates():
    settling = partition(Fund(UNIT))
    for event in (mark("50", seq=1), mark("50", seq=1), position("a", 1, seq=1), position("a", 1, seq=1)):
        settling.apply_to_book(event, stream_ms=1)
    assert not settling.take().duplicates


@pytest.mark.parametrize("loaded", [mark("50", seq=1), position("a", 1, seq=1), fill(7)])
def test_apply_to_book_keeps_the_counts_of_settlement(loaded):
    settling = partition(Fund(UNIT))
    for _ in range(3):
        settling.apply(fill(5))
    for _ in range(2):
        settling.apply_to_book(loaded, stream_ms=1)
    assert settling.take().duplicates == {UNIT.symbol: 2}


def test_events_after_the_regression_are_applied():
    settling = regressed(restarts=False)
    settling.apply(position("open", 0), KNOWN_MS + 1)
    settling.apply(mark("70"), KNOWN_MS + 1)
    assert lots(settling) == {"numbered": 8}
    assert settling.book(UNIT.symbol).mark == 70 * 10**12
    for event in (BEGIN, position("new", 1), END):
        settling.apply(event, KNOWN_MS + 2)
    assert lots(settling) == {"new": 1}
    assert not settling.book(UNIT.symbol).stale


def test_book_without_positions_does_not_become_stale():
    settling = partition(Fund(UNIT))
    settling.apply(position("closed", 10), 1)
    settling.apply(position("closed", 0), 2)
    settling = restarted(settling)
    settling.make_stale(KNOWN_MS)
    settling.apply(position("closed", 10), 1)
    assert lots(settling) == {}
    assert not settling.book(UNIT.symbol).stale, "a book without positions cannot be stale"


@pytest.mark.parametrize("seq", [6, 7])
@pytest.mark.parametrize("leg", ["BOTH", "LONG"])
def test_snapshot_keeps_a_position_whose_sequence_is_known(leg, seq):
    settling = partition(Fund(UNIT))
    settling.apply(mark("50"))
    settling.apply(position("named", 5, seq=7, position_side=leg))
    settling.apply(position("other", 5, seq=8))
    for event in (BEGIN, position("named", 4, seq=seq, position_side=leg), END):
        settling.apply(event)
    assert lots(settling) == {"named": 5}
