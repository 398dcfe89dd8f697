import json
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
from builders import INVERSE, LINEAR, specification
from hypothesis import given
from hypothesis import strategies as st

from fundsvc.core.contracts import Contract, contract_of, partition_of
from fundsvc.core.events import Reason, Rejection
from fundsvc.core.numbers import INT64_MAX

KUCOIN = Path(__file__).parents[3] / "shared" / "data" / "kucoin_contracts_active.json"


def contract(**fields) -> Contract:
    return contract_of(specification(**fields), {"USDT": 8, "USDC": 8}, 10)


def rejection(**fields) -> str:
    with pytest.raises(Rejection) as rejected:
        contract(**fields)
    assert rejected.value.reason == Reason.CONTRACT_INVALID
    return rejected.value.detail


@pytest.mark.skipif(not KUCOIN.exists(), reason="the recorded answer is not available")
def test_recorded_answer_of_the_exchange_lists_unchanged():
    answer = msgspec.json.decode(KUCOIN.read_bytes())["data"]
    listed = {found.symbol: found for found in (contract_of(one, {"USDT": 8, "USDC": 8}, 10) for one in answer)}
    assert {symbol: (str(one.multiplier), one.settle_decimals, one.is_inverse) for symbol, one in listed.items()} == {
        "XBTUSDTM": ("0.001", 8, False),
        "XBTMZ26": ("1", 10, True),
        "XBTUSDM": ("1", 10, True),
        "PROMPTUSDTM": ("1E+1", 8, False),
        "BPUSDTM": ("1E+1", 8, False),
        "AAOIUSDTM": ("0.01", 8, False),
        "BYDUSDTM": ("0.1", 8, False),
        "YFIUSDTM": ("0.0001", 8, False),
        "DOGEUSDTM": ("1E+2", 8, False),
        "PAXGUSDTM": ("0.001", 8, False),
        "SOLUSDCM": ("0.01", 8, False),
    }
    assert {one.price_decimals for one in listed.values()} == {12}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0.001", "0.001"),
        ('"0.001"', "0.001"),
        ("1E-05", "0.00001"),
        ('"1E-05"', "0.00001"),
        ("1", "1"),
        ("10000000000", "10000000000"),
        ('"12345678901234567"', "12345678901234567"),
        ('"999999999999999999.999999999999999999"', "999999999999999999.999999999999999999"),
        ('"0.000000000000000001"', "0.000000000000000001"),
        ('"1.00000000000000000000000000"', "1"),
    ],
)
def test_multiplier_is_exact_in_every_notation(text, size):
    assert contract(multiplier=json.loads(text)).multiplier == Decimal(size)


def test_inverse_multiplier_has_its_absolute_value():
    assert contract(multiplier=-1.0, isInverse=True).multiplier == 1
    assert contract(multiplier=1, isInverse="true").multiplier == 1


@pytest.mark.parametrize(
    "multiplier",
    [
        *("NaN", "sNaN", "Infinity", "1E+999", "1E-999", "1E+999999999", "1E-999999999", "0.0000000000000000001", "1" * 5000),
        *(0, -0.0, -1, "-0.001", 10**18, 1e300),
    ],
)
def test_illegal_multiplier_is_rejected(multiplier):
    assert "multiplier" in rejection(multiplier=multiplier)


def test_zero_multiplier_of_an_inverse_contract_is_rejected():
    assert "multiplier" in rejection(multiplier=0.0, isInverse=True)


@pytest.mark.parametrize(
    ("max_price", "decimals"),
    [
        (None, 12),
        (1e6, 12),
        ("9223372.036854775807", 12),
        ("9223372.0368547758071", 11),
        (1e7, 11),
        (1e15, 3),
        (INT64_MAX, 0),
        (1e300, 0),
        ("1E+999999", 0),
        ("1E+999999999", 0),
        ("1E-999999999", 12),
        ("NaN", 12),
        ("sNaN", 12),
        ("-5", 12),
    ],
)
def test_max_price_limits_the_price_decimals(max_price, decimals):
    assert contract(maxPrice=max_price).price_decimals == decimals


def test_currency_without_a_setting_has_the_default_decimals():
    assert contract(settleCurrency="ETH").settle_decimals == 10
    assert contract(settleCurrency="USDC").settle_decimals == 8


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"symbol": "A B"}, "symbol"),
        ({"symbol": "A,B"}, "symbol"),
        ({"symbol": "A/B"}, "symbol"),
        ({"symbol": "A:B"}, "symbol"),
        ({"symbol": "A\n"}, "symbol"),
        *(({"symbol": word}, "the API uses it in paths") for word in ("active", "all", "summary")),
        *(({"symbol": word}, "clients remove it from URLs") for word in (".", "..")),
        *(({"symbol": f"{first}AUSDTM"}, "must not begin") for first in "=+-@\uff1d\uff0b\uff0d\uff20"),
        ({"symbol": ""}, "symbol"),
        ({"symbol": "A" * 65}, "symbol"),
        ({"symbol": 5}, "symbol"),
        ({"settleCurrency": "U$"}, "settleCurrency"),
        ({"settleCurrency": None}, "settleCurrency"),
        ({"multiplier": None}, "multiplier"),
        ({"multiplier": "one"}, "multiplier"),
        ({"isInverse": "perhaps"}, "isInverse"),
        ({"maxPrice": "high"}, "maxPrice"),
    ],
)
def test_rejection_names_the_field(fields, named):
    assert named in rejection(**fields)


@pytest.mark.parametrize(
    "symbol", ["$MICHI_USDT", "...", ".KXBT", "%2e", "%2E%2E", "A-USDT", "A=B", "a?b#c&d=e", "币安人生USDT"]
)
def test_other_symbols_are_legal(symbol):
    assert contract(symbol=symbol).symbol == symbol


@pytest.mark.parametrize("missing", ["symbol", "settleCurrency", "multiplier", "isInverse"])
def test_every_field_that_settlement_reads_is_required(missing):
    with pytest.raises(Rejection, match=missing):
        contract_of({key: value for key, value in specification().items() if key != missing}, {}, 10)


@pytest.mark.parametrize(
    "extra",
    [
        float("nan"),
        float("inf"),
        "\0",
        {"\0": 1},
        b"bytes",
        msgspec.msgpack.Ext(5, b""),
        {1: "number"},
        {None: "nothing"},
        {(1,): "pair"},
        [[[[[[[[[]]]]]]]]],
        {"a": {"a": {"a": {"a": {"a": {"a": {"a": {"a": 1}}}}}}}},
    ],
)
def test_value_that_json_cannot_store_is_rejected(extra):
    assert "plain JSON" in rejection(extra=extra)


def test_other_fields_may_have_any_json_value():
    names = ["okex", "binance"]
    assert (
        contract(sourceExchanges=names, isQuanto=True, expireDate=None, risk={"k": [490.0, {"m": 1e-5}]}).symbol == "UNITUSDTM"
    )


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3),
    max_leaves=10,
)
_FIELDS = ["symbol", "settleCurrency", "multiplier", "isInverse", "maxPrice", "extra"]
_NUMBERS = st.decimals() | st.floats() | st.integers()


@given(
    st.dictionaries(st.sampled_from(_FIELDS), _JSON | _NUMBERS.map(str) | _NUMBERS.map(str).map(lambda text: text + "0" * 30))
)
def test_every_object_is_listed_or_rejected(fields):
    try:
        listed = contract_of(specification(**fields), {"USDT": 8}, 10)
    except Rejection:
        return
    assert 0 < listed.multiplier < 10**18
    assert 0 <= listed.price_decimals <= 12
    assert Decimal(str(fields.get("multiplier", 1))).copy_abs() == listed.multiplier


def test_value_factor_is_the_formula_in_lowest_terms():
    assert LINEAR.value_factor() == (1, 10**7)
    assert INVERSE.value_factor() == (10**22, 1)


def test_same_terms_compares_currency_multiplier_and_kind():
    assert LINEAR.same_terms(msgspec.structs.replace(LINEAR, multiplier=Decimal("0.0010"), price_decimals=2))
    for other in ({"settle_currency": "USDC"}, {"multiplier": Decimal(1)}, {"is_inverse": True}):
        assert not LINEAR.same_terms(msgspec.structs.replace(LINEAR, **other))


def test_partition_is_the_crc32_of_the_symbol():
    assert partition_of("123456789", 2**32) == 0xCBF43926, "the standard check value of CRC-32"
    assert partition_of("123456789", 4) == 2
