"""KuCoin's futures client: contracts over HTTPS and our topics over wss, until an entry has come."""

import asyncio
import json
import os
import sys

from kucoin_futures.client import Market, WsToken
from kucoin_futures.ws_client import KucoinFuturesWsClient

url, symbol = sys.argv[1:]
SECONDS_MAX = 30
TOPICS = (f"/insuranceFund/balance:{symbol}", f"/insuranceFund/entry:{symbol}")


async def listen(answers):
    """Prints the answers, with what was heard, and ends at once: the client's tasks cannot be cancelled."""
    heard = []

    async def hear(message):
        heard.append(message)
        if {each["subject"] for each in heard} == {"balance.change", "entry"}:
            print(json.dumps({**answers, "heard": heard}), flush=True)
            os._exit(0)
        if len(heard) == 1:
            print("listening", file=sys.stderr, flush=True)

    client = await KucoinFuturesWsClient.create(None, WsToken(url=url), hear)
    for topic in reversed(TOPICS):
        await client.subscribe(topic)
    await asyncio.sleep(SECONDS_MAX)
    os._exit(1)


market = Market(url=url)
contracts = [contract["symbol"] for contract in market.get_contracts_list()]
asyncio.run(listen({"contracts": contracts, "contract": market.get_contract_detail(symbol)}))
