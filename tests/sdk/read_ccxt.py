"""ccxt's implicit methods for these venues and for KuCoin's contracts."""

import json
import sys

import ccxt

url, symbol = sys.argv[1:]
bybit, okx, gate, binance, kucoin = ccxt.bybit(), ccxt.okx(), ccxt.gate(), ccxt.binance(), ccxt.kucoinfutures()
bybit.urls["api"]["public"] = url
okx.urls["api"]["rest"] = url
gate.urls["api"]["public"]["futures"] = f"{url}/api/v4"
binance.urls["api"]["fapiPublic"] = f"{url}/fapi/v1"
kucoin.urls["api"]["futuresPublic"] = url


def error_of(request):
    try:
        request()
    except ccxt.BaseError as error:
        return type(error).__name__


answers = {
    "bybit insurance": bybit.publicGetV5MarketInsurance({"coin": "USDT"}),
    "bybit alert": bybit.publicGetV5MarketAdlAlert({"symbol": symbol}),
    "okx": okx.publicGetPublicInsuranceFund({"instType": "SWAP", "instFamily": symbol}),
    "gate insurance": gate.publicFuturesGetSettleInsurance({"settle": "usdt"}),
    "binance insurance": binance.fapiPublicGetInsuranceBalance({"symbol": symbol}),
    "binance risk": binance.fapiPublicGetSymbolAdlRisk({"symbol": symbol}),
    "kucoin contracts": [contract["symbol"] for contract in kucoin.futuresPublicGetContractsActive()["data"]],
    "okx error": error_of(lambda: okx.publicGetPublicInsuranceFund({"instType": "SPOT"})),
    "bybit error": error_of(lambda: bybit.publicGetV5MarketAdlAlert({"symbol": "NONE"})),
    "gate error": error_of(lambda: gate.publicFuturesGetSettleInsurance({"settle": "none"})),
    "binance error": error_of(lambda: binance.fapiPublicGetSymbolAdlRisk({"symbol": "NONE"})),
}
print(json.dumps(answers))
