import copy
import json
from pathlib import Path

import msgspec
import pytest

from fundsvc.vectors import RANKING, Difference, Outcome, VectorError, read_vector, run_vector

DIRECTORY = Path(__file__).parent / "vectors"
SHARED = Path(__file__).parents[2] / "shared" / "vectors"
FILES = sorted(DIRECTORY.glob("*.json"))
SHORTFALL = DIRECTORY / "partial-cover-then-nobody-to-deleverage.json"


def vector(path: Path = SHORTFALL) -> dict:
    return copy.deepcopy(json.loads(path.read_text()))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_vector_passes_or_needs_ranking(path):
    ranked = '"position"' in path.read_text()
    expected = Outcome("not_runnable", needs=RANKING) if ranked else Outcome("passed")
    assert run_vector(read_vector(path)) == expected


def test_there_are_vectors_of_both_kinds():
    verdicts = [run_vector(read_vector(path)).verdict for path in FILES]
    assert (verdicts.count("passed"), verdicts.count("not_runnable")) == (9, 7)


@pytest.mark.skipif(not SHARED.exists(), reason="the originals are not here")
def test_our_copies_are_the_originals():
    originals = {path.name: path.read_bytes() for path in SHARED.glob("*.json")}
    assert {path.name: path.read_bytes() for path in FILES} == originals


@pytest.mark.parametrize(
    ("path", "value", "got"),
    [
        (("entries", 0, "entry"), 2, 1),
        (("entries", 0, "kind"), "surplus", "shortfall"),
        (("entries", 0, "change"), "-100.00000001", "-100"),
        (("entries", 0, "balance"), "1", "0"),
        (("entries", 0, "uncovered"), "51", "50"),
        (("entries", 0, "repaid"), "1", "0"),
        (("fund", "balance"), "1", "0"),
        (("fund", "outstanding"), "0", "50"),
        (("adl", 0, "cause"), 2, 1),
        (("adl", 0, "reduce"), "long", "short"),
        (("adl", 0, "lots"), 333, 334),
        (("adl", 0, "price"), "39000.1", "39000"),
        (("adl", 0, "uncovered"), "49", "50"),
        (("adl", 0, "recovered"), "50", "0"),
        (("adl", 0, "state"), "done", "uncovered"),
        (("duplicates",), 1, 0),
    ],
)
def test_an_altered_expectation_fails_with_that_difference(path, value, got):
    altered = vector()
    place = altered["expect"]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    name = "expect" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    assert run_vector(altered) == Outcome("failed", (Difference(name, value, got),))


def test_what_is_missing_and_what_is_too_much_are_differences():
    altered = vector()
    (entry,) = altered["expect"]["entries"]
    altered["expect"]["entries"] = []
    altered["expect"]["adl"][0]["rounds"] = [[{"account": "w", "lots": 1}], []]
    assert run_vector(altered).differences == (
        Difference("expect.entries[0]", None, entry),
        Difference("expect.adl[0].rounds[0][0]", {"account": "w", "lots": 1}, None),
        Difference("expect.adl[0].rounds[1]", [], None),
    )


@pytest.mark.parametrize(("field", "value"), [("price", "38849"), ("lots", 999), ("side", "buy"), ("bankruptcyPrice", "39001")])
def test_an_altered_event_fails(field, value):
    altered = vector()
    altered["events"][0][field] = value
    assert run_vector(altered).verdict == "failed"


def test_another_start_fails():
    altered = vector()
    altered["fund"]["balance"] = "101"
    assert Difference("expect.entries[0].change", "-100", "-101") in run_vector(altered).differences


def test_the_same_amount_may_be_written_in_several_ways():
    altered = vector()
    altered["fund"]["balance"] = "100.00"
    altered["expect"]["entries"][0] |= {"change": "-1E+2", "uncovered": "50.0"}
    assert run_vector(altered).verdict == "passed"


def test_a_fund_may_start_with_an_outstanding_amount():
    altered = vector(DIRECTORY / "linear-long-surplus.json")
    altered["fund"]["outstanding"] = "30"
    altered["expect"]["entries"][0] |= {"change": "70", "balance": "1070", "repaid": "30"}
    altered["expect"]["fund"]["balance"] = "1070"
    assert run_vector(altered).verdict == "passed"


def test_the_reserve_line_is_obeyed():
    altered = vector()
    altered["policy"] = {"reserveLine": "60"}
    altered["expect"]["entries"][0] |= {"change": "-40", "balance": "60", "uncovered": "110"}
    altered["expect"]["fund"] = {"balance": "60", "outstanding": "110"}
    altered["expect"]["adl"][0] |= {"lots": 734, "uncovered": "110"}
    assert run_vector(altered).verdict == "passed"


def test_a_policy_that_matters_only_among_positions_is_run_without_any():
    policy = {"waterfall": "fund_then_adl", "eligible": "all", "allocation": "pro_rata", "roundsMax": 1, "drawdownGuard": "off"}
    assert run_vector(vector() | {"policy": policy}).verdict == "passed"


@pytest.mark.parametrize("policy", [{"waterfall": "adl_then_fund"}, {"drawdownGuard": {"start": 0.3}}, {"unheardOf": 1}])
def test_a_policy_that_is_not_settled_yet_is_said(policy):
    outcome = run_vector(vector() | {"policy": policy})
    assert outcome.verdict == "not_runnable"
    assert next(iter(policy)) in outcome.needs


def test_a_rejected_event_moves_nothing_and_is_told():
    altered = vector()
    altered["events"][:0] = [
        {"type": "fill", "seq": 1, "side": "sell", "lots": 0, "price": "1", "bankruptcyPrice": "1"},
        {"type": "fill", "seq": 1, "side": "sell", "lots": 1, "price": "1.0000000000001", "bankruptcyPrice": "1"},
        {"type": "trade", "seq": 1},
    ]
    outcome = run_vector(altered)
    assert outcome.verdict == "passed"
    assert [line.split(": ")[:2] for line in outcome.rejected] == [
        ["events[0]", "invalid_field"],
        ["events[1]", "too_many_decimals"],
        ["events[2]", "unknown_type"],
    ]


def test_events_of_other_types_are_the_wire_s_own():
    altered = vector()
    altered["events"] += [
        {"type": "mark", "price": "39000"},
        {"type": "rate", "currency": "XBT", "price": "39000", "ts": 5},
        {"type": "contract", "contract": altered["contract"]},
        {"type": "adlEnd", "seq": 1, "adl": 1},
    ]
    altered["expect"]["duplicates"] = 1
    assert run_vector(altered) == Outcome("passed")


def test_a_vector_without_events_shows_the_fund_it_started_with():
    altered = vector()
    altered["events"] = []
    altered["expect"] = {"entries": [], "fund": {"balance": "100", "outstanding": "0"}, "adl": [], "duplicates": 0}
    assert run_vector(altered) == Outcome("passed")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": None}, "name"),
        ({"expected": {}}, "expected"),
        ({"expect": {}}, "entries"),
        ({"events": {}}, "events"),
        ({"events": [5]}, "events"),
        ({"fund": {"balance": 100}}, "fund.balance"),
        ({"fund": {"balance": "-1"}}, "fund.balance"),
        ({"fund": {"balance": "0.000000001"}}, "fund.balance"),
        ({"fund": {"balance": "much"}}, "fund.balance"),
        ({"fund": {"balance": "92233720369"}}, "fund.balance"),
        ({"fund": {"blance": "1"}}, "blance"),
        ({"policy": {"reserveLine": 5}}, "policy.reserveLine"),
        ({"policy": {"reserveLine": "NaN"}}, "policy.reserveLine"),
        ({"contract": {"symbol": "X"}}, "contract"),
    ],
)
def test_what_is_no_vector_is_an_error_that_says_where(change, said):
    with pytest.raises(VectorError, match=said):
        run_vector(vector() | change)


@pytest.mark.parametrize(
    ("name", "value"), [("change", 100), ("change", "1e-9"), ("chnage", "100"), ("kind", "profit"), ("entry", "1")]
)
def test_a_misspelt_expectation_is_an_error(name, value):
    altered = vector()
    altered["expect"]["entries"][0][name] = value
    with pytest.raises(VectorError, match=name):
        run_vector(altered)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b'{"a":' * 5000, b'{"a": "\xff"}'])
def test_a_file_that_is_no_vector_is_named(tmp_path, content):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(VectorError, match=r"broken\.json"):
        read_vector(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(VectorError, match=r"absent\.json"):
        read_vector(tmp_path / "absent.json")


def test_an_outcome_can_be_printed_for_programs():
    assert msgspec.json.decode(msgspec.json.encode(run_vector(vector())))["verdict"] == "passed"
