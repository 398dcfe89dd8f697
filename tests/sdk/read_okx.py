import json
import sys

from okx.PublicData import PublicAPI

url, symbol = sys.argv[1:]
api = PublicAPI(flag="0", domain=url, debug=False)


def changes(**parameters):
    (fund,) = api.get_insurance_fund(instType="SWAP", instFamily=symbol, **parameters)["data"]
    return fund["details"]


def pages():
    """Returns all changes, read in pages of two or three as a client of OKX does."""
    found = changes(limit="3")
    while page := changes(limit="3", after=found[-1]["ts"]):
        found += page
    return found


answers = {
    "all": api.get_insurance_fund(instType="SWAP", uly=symbol),
    "pages": pages(),
    "losses": changes(type="bankruptcy_loss"),
    "newer": changes(before=changes()[1]["ts"]),
    "no family": api.get_insurance_fund(instType="SWAP"),
    "wrong type": api.get_insurance_fund(instType="SWAP", uly=symbol, type="gift"),
    "margin": api.get_insurance_fund(instType="MARGIN", ccy="USDT"),
}
print(json.dumps(answers))
