import json
import sys

from kucoin_universal_sdk.api import DefaultClient
from kucoin_universal_sdk.generate.futures.market import GetSymbolReqBuilder
from kucoin_universal_sdk.model import ClientOptionBuilder, TransportOptionBuilder

url, symbol = sys.argv[1:]
options = (
    ClientOptionBuilder()
    .set_futures_endpoint(url)
    .set_spot_endpoint(url)
    .set_broker_endpoint(url)
    .set_transport_option(TransportOptionBuilder().build())
    .build()
)
market = DefaultClient(options).rest_service().get_futures_service().get_market_api()
one = market.get_symbol(GetSymbolReqBuilder().set_symbol(symbol).build())
every = market.get_all_symbols().data

answers = {
    "one": {"symbol": one.symbol, "multiplier": one.multiplier, "type": one.type.value, "status": one.status.value},
    "all": [contract.symbol for contract in every],
    "time": market.get_server_time().data,
}
print(json.dumps(answers))
