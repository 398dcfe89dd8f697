"""KuCoin's futures client: reads contracts over HTTPS and the topics over wss until it has received an entry."""

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
    """Prints the answers and the received messages, and exits at once: the tasks of the client cannot be cancelled."""
    received = []

    async def receive(message):
        received.append(message)
        if {each["subject"] for each in received} == {"balance.change", "entry"}:
            print(json.dumps({**answers, "received": received}), flush=True)
            os._exit(0)
        if len(received) == 1:
            print("listening", file=sys.stderr, flush=True)

    client = await KucoinFuturesWsClient.create(None, WsToken(url=url), receive)
    for topic in reversed(TOPICS):
        await client.subscribe(topic)
    await asyncio.sleep(SECONDS_MAX)
    os._exit(1)


market = Market(url=url)
contracts = [contract["symbol"] for contract in market.get_contracts_list()]
asyncio.run(listen({"contracts": contracts, "contract": market.get_contract_detail(symbol)}))
