"""Identifiers are printable text that no spreadsheet evaluates."""

import msgspec
import pytest
from builders import UNIT, partition

from fundsvc.core.events import Fill, Position, Rate, Reason, Rejection
from fundsvc.core.fund.settlement import Fund
from fundsvc.core.identifiers import check_identifiers, is_identifier

FILL = Fill("XBTUSDTM", 1, "sell", 1, "2", "1", 1)
POSITION = Position("XBTUSDTM", "anna", 5, "1", "1", 1)
FORMULAS = (
    *('=HYPERLINK("http://x.invalid","y")', "@SUM(1+1)|cmd", "-1", "+1", "=", " =1", "\N{NO-BREAK SPACE}=1", "  @x"),
    *(
        "\uff1d1",
        "\uff0b1",
        "\uff0d1",
        "\uff20SUM(1)",
        "\t=1",
        "\r1",
        "\n",
        "a\tb",
        "\0",
        "\N{RIGHT-TO-LEFT OVERRIDE}=1",
        "\ufeff=1",
    ),
)
NAMES = ("", "a", "t-77", "5c164b6a92ee4ca5", "adl/3", "A=B", "x@y.example", "1+1", "'=1", "$1", "#1", "%1", "é😀", "_-")


@pytest.mark.parametrize("text", FORMULAS)
@pytest.mark.parametrize(
    ("event", "field"),
    [(FILL, "trade_id"), (FILL, "order_id"), (FILL, "account"), (POSITION, "account"), (POSITION, "owner")],
)
def test_formula_or_unprintable_text_is_rejected(event, field, text):
    with pytest.raises(Rejection) as rejection:
        check_identifiers(msgspec.structs.replace(event, **{field: text}))
    assert rejection.value.reason == Reason.INVALID_FIELD
    assert msgspec.structs.fields(type(event))[event.__struct_fields__.index(field)].encode_name in rejection.value.detail


@pytest.mark.parametrize("text", NAMES)
def test_other_text_is_legal(text):
    assert is_identifier(text)
    check_identifiers(msgspec.structs.replace(FILL, trade_id=text, order_id=text, account=text))
    check_identifiers(msgspec.structs.replace(POSITION, account=text, owner=text))


@pytest.mark.parametrize("currency", ["=A", "U$", "A B", "-"])
def test_currency_must_be_letters_and_digits(currency):
    with pytest.raises(Rejection, match="letters and digits"):
        check_identifiers(Rate(currency, "1", 1))


def test_position_with_an_illegal_name_can_be_restored_and_closed():
    settling = partition(Fund(UNIT))
    opened = Position("UNITUSDTM", "-1", 5, "1", "1", 1)
    with pytest.raises(Rejection):
        settling.apply(opened)
    settling.apply_to_book(opened)
    assert settling.book("UNITUSDTM").open == 1
    settling.apply(Position("UNITUSDTM", "-1", 0, "1", "0", 2))
    assert settling.book("UNITUSDTM").open == 0
