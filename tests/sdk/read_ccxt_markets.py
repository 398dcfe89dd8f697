"""ccxt's unified markets and currencies of KuCoin Futures."""

import json
import sys

import ccxt

kucoin = ccxt.kucoinfutures()
kucoin.urls["api"]["futuresPublic"] = kucoin.urls["api"]["public"] = sys.argv[1]
markets = kucoin.load_markets().values()
answers = {
    "markets": {
        market["id"]: [market["type"], market["settleId"], market["inverse"], market["contractSize"]] for market in markets
    },
    "currencies": {currency["id"]: currency["precision"] for currency in kucoin.currencies.values()},
}
print(json.dumps(answers))
