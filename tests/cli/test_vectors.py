import copy
import json
from pathlib import Path

import msgspec
import pytest

from fundsvc.cli.tools.vectors import Difference, Outcome, VectorError, read_vector, run_vector

DIRECTORY = Path(__file__).parents[1] / "vectors"
SHARED = Path(__file__).parents[3] / "shared" / "vectors"
FILES = sorted(DIRECTORY.glob("*.json"))
TAKEOVERS = sorted((DIRECTORY / "takeover").glob("*.json"))
SHORTFALL = DIRECTORY / "partial-cover-then-nobody-to-deleverage.json"


def vector(path: Path = SHORTFALL) -> dict:
    return copy.deepcopy(json.loads(path.read_text()))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_vector_passes(path):
    assert run_vector(read_vector(path)) == Outcome("passed")


@pytest.mark.parametrize("path", TAKEOVERS, ids=lambda path: path.stem)
def test_every_takeover_vector_passes(path):
    outcome = run_vector(read_vector(path))
    assert (outcome.verdict, outcome.differences) == ("passed", ())
    assert len(outcome.rejected) == len(vector(path)["expect"]["rejected"])


def paths_of(value, path=()):
    """Yields the path of every leaf of a JSON value."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths_of(inner, (*path, key))
    else:
        yield path


@pytest.mark.parametrize("path", TAKEOVERS, ids=lambda path: path.stem)
def test_each_expectation_of_a_takeover_vector_is_compared(path):
    for place in paths_of(vector(path)["expect"]):
        altered = vector(path)
        part = altered["expect"]
        for step in place[:-1]:
            part = part[step]
        found = part[place[-1]]
        others = {"side": "buy", "reduce": "long", "kind": "flat", "origin": "takeover", "state": "open", "reason": "late"}
        second = {"side": "sell", "reduce": "short", "kind": "cover", "origin": "shortfall", "state": "done"}
        other = others.get(place[-1])
        if other == found:
            other = second[place[-1]]
        if other is None:
            other = not found if isinstance(found, bool) else found + 1 if isinstance(found, int) else "7.25"
        part[place[-1]] = other
        assert run_vector(altered).verdict == "failed", place


@pytest.mark.skipif(not SHARED.exists(), reason="the originals are not here")
def test_the_vectors_equal_the_published_ones():
    for ours, theirs in ((FILES, SHARED), (TAKEOVERS, SHARED / "takeover")):
        originals = {path.name: path.read_bytes() for path in theirs.glob("*.json")}
        assert {path.name: path.read_bytes() for path in ours} == originals


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
def test_an_altered_expectation_fails_with_its_difference(path, value, got):
    altered = vector()
    place = altered["expect"]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    name = "expect" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    assert run_vector(altered) == Outcome("failed", (Difference(name, value, got),))


def test_missing_and_surplus_elements_are_differences():
    altered = vector()
    (entry,) = altered["expect"]["entries"]
    altered["expect"]["entries"] = []
    altered["expect"]["adl"][0]["rounds"] = [[{"account": "w", "lots": 1}], []]
    of_fill = {"side": "sell", "lots": 1000, "price": "38850", "bankruptcyPrice": "39000", "closes": 0, "forced": False}
    assert run_vector(altered).differences == (
        Difference("expect.entries[0]", None, entry | of_fill),
        Difference("expect.adl[0].rounds[0][0]", {"account": "w", "lots": 1}, None),
        Difference("expect.adl[0].rounds[1]", [], None),
    )


@pytest.mark.parametrize(("field", "value"), [("price", "38849"), ("lots", 999), ("side", "buy"), ("bankruptcyPrice", "39001")])
def test_an_altered_event_fails(field, value):
    altered = vector()
    altered["events"][0][field] = value
    assert run_vector(altered).verdict == "failed"


def test_another_starting_fund_fails():
    altered = vector()
    altered["fund"]["balance"] = "101"
    assert Difference("expect.entries[0].change", "-100", "-101") in run_vector(altered).differences


def test_equal_amounts_in_different_notations_are_equal():
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


def test_the_reserve_line_limits_payments():
    altered = vector()
    altered["policy"] = {"reserveLine": "60"}
    altered["expect"]["entries"][0] |= {"change": "-40", "balance": "60", "uncovered": "110"}
    altered["expect"]["fund"] = {"balance": "60", "outstanding": "110"}
    altered["expect"]["adl"][0] |= {"lots": 734, "uncovered": "110"}
    assert run_vector(altered).verdict == "passed"


def test_without_positions_no_policy_finds_candidates():
    policy = {"waterfall": "adl_then_fund", "eligible": "all", "allocation": "pro_rata", "roundsMax": 1, "drawdownGuard": "off"}
    assert run_vector(vector() | {"policy": policy}) == Outcome("passed")


ACCOUNTS = ("a", "b", "c")


def adl_vector(policy: dict, *rounds: list[int], events: tuple[dict, ...] = ()) -> dict:
    """Returns a vector: an empty fund, shorts of 10 lots with PnL 50, 30 and -10, and a shortfall of 17 lots at 10 each."""
    altered = vector(DIRECTORY / "losers-are-not-deleveraged.json") | {"policy": policy}
    positions = [
        {"type": "position", "account": account, "lots": -10, "entryPrice": price, "margin": "500"}
        for account, price in zip(ACCOUNTS, ("100", "80", "40"), strict=True)
    ]
    shortfall = {"type": "fill", "seq": 1, "side": "sell", "lots": 17, "price": "50", "bankruptcyPrice": "60"}
    altered["events"] = [{"type": "mark", "price": "50"}, *positions, shortfall, *events]
    order = altered["expect"]["adl"][0] | {"lots": 17, "uncovered": "170", "recovered": "0", "state": "open"}
    allocated = [[{"account": a, "lots": n} for a, n in zip(ACCOUNTS, lots, strict=False) if n] for lots in rounds]
    altered["expect"]["adl"] = [order | {"rounds": allocated}]
    altered["expect"]["entries"][0]["uncovered"] = "170"
    altered["expect"]["fund"]["outstanding"] = "0"
    return altered


@pytest.mark.parametrize(
    ("policy", "lots"),
    [
        ({}, [10, 7]),
        ({"allocation": "queue", "waterfall": "fund_then_adl", "eligible": "profitable"}, [10, 7]),
        ({"allocation": "capped"}, [5, 5]),
        ({"allocation": "capped", "capShare": 0.3}, [3, 3]),
        ({"allocation": "capped", "capShare": "0.9", "eligible": "all"}, [9, 8]),
        ({"allocation": "capped", "eligible": "all"}, [5, 5, 5]),
        ({"allocation": "pro_rata"}, [10, 7]),
        ({"allocation": "pro_rata", "eligible": "all"}, [10, 7]),
        ({"waterfall": "adl_then_fund"}, [10, 7]),
    ],
)
def test_the_policy_determines_the_allocations(policy, lots):
    assert run_vector(adl_vector(policy, lots)) == Outcome("passed")


def test_an_account_is_in_at_most_rounds_max_rounds():
    ends = tuple({"type": "adlEnd", "seq": seq, "adl": 1} for seq in (2, 3))
    altered = adl_vector({"roundsMax": 2}, [10, 7], [10, 7], [], events=ends)
    altered["expect"]["adl"][0]["state"] = "uncovered"
    altered["expect"]["fund"]["outstanding"] = "170"
    assert run_vector(altered) == Outcome("passed")


@pytest.mark.parametrize("share", [0.3, "0.3"])
def test_a_drawdown_guard_stops_the_fund_from_paying(share):
    altered = vector()
    altered["policy"] = {"drawdownGuard": {"start": share, "stop": 0.25, "hours": 8, "minimumBalance": "0"}}
    altered["expect"]["entries"][0] |= {"change": "-30", "balance": "70", "uncovered": "120"}
    altered["expect"]["fund"] = {"balance": "70", "outstanding": "120"}
    altered["expect"]["adl"][0] |= {"lots": 800, "uncovered": "120"}
    assert run_vector(altered) == Outcome("passed")


def test_a_rejected_event_changes_nothing_and_is_listed():
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


def test_events_of_other_types_are_decoded_like_the_wire():
    altered = vector()
    altered["events"] += [
        {"type": "mark", "price": "39000"},
        {"type": "rate", "currency": "XBT", "price": "39000", "ts": 5},
        {"type": "contract", "contract": altered["contract"]},
        {"type": "adlEnd", "seq": 1, "adl": 1},
    ]
    altered["expect"]["duplicates"] = 1
    assert run_vector(altered) == Outcome("passed")


def test_a_vector_without_events_ends_with_its_starting_fund():
    altered = vector()
    altered["events"] = []
    altered["expect"] = {"entries": [], "fund": {"balance": "100", "outstanding": "0"}, "adl": [], "duplicates": 0}
    assert run_vector(altered) == Outcome("passed")


@pytest.mark.parametrize(
    ("change", "path"),
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
        ({"policy": {"waterfall": "adl_only"}}, "policy"),
        ({"policy": {"unheardOf": 1}}, "unheard_of"),
        ({"policy": {"drawdownGuard": {"start": 2}}}, "drawdown_guard"),
        ({"policy": {"drawdownGuard": {"stop": 0.5}}}, "drawdown_guard"),
        ({"contract": {"symbol": "X"}}, "contract"),
    ],
)
def test_an_invalid_vector_raises_an_error_with_the_path(change, path):
    with pytest.raises(VectorError, match=path):
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
def test_the_error_names_a_file_that_is_not_a_vector(tmp_path, content):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(VectorError, match=r"broken\.json"):
        read_vector(path)


def test_the_error_names_a_missing_file(tmp_path):
    with pytest.raises(VectorError, match=r"absent\.json"):
        read_vector(tmp_path / "absent.json")


def test_an_outcome_can_be_encoded_as_json():
    assert msgspec.json.decode(msgspec.json.encode(run_vector(vector())))["verdict"] == "passed"
