"""Reads the service, and posts an event, with a client that openapi-python-client generated; prints what it received."""

import json
import os
import sys
import time

from fundsvc_client import AuthenticatedClient
from fundsvc_client.api.adl import adl_order, adl_orders
from fundsvc_client.api.contracts import contracts_cursor
from fundsvc_client.api.funds import funds_candles, funds_fund, funds_history
from fundsvc_client.api.ingest import ingest_post
from fundsvc_client.models.fill import Fill
from fundsvc_client.models.fill_side import FillSide
from fundsvc_client.models.fill_type import FillType
from fundsvc_client.models.funds_fund_numbers import FundsFundNumbers

url, symbol = sys.argv[1:]
client = AuthenticatedClient(base_url=url, token=os.environ["ENGINE"], raise_on_unexpected_status=True)
now_ms = time.time_ns() // 1_000_000
fill = Fill(FillType.FILL, symbol, 50, FillSide.SELL, 10, "39100", "39000", now_ms, trade_id="generated")
print(
    json.dumps(
        {
            "fund": funds_fund.sync(symbol, client=client).to_dict(),
            "strings": funds_fund.sync(symbol, client=client, numbers=FundsFundNumbers.STRING).to_dict(),
            "history": funds_history.sync(symbol, client=client, max_count=2).to_dict(),
            "candles": funds_candles.sync(symbol, client=client).to_dict(),
            "orders": adl_orders.sync(symbol, client=client).to_dict(),
            "order": adl_order.sync(symbol, 1, client=client).to_dict(),
            "cursor": contracts_cursor.sync(client=client).to_dict(),
            "posted": ingest_post.sync(client=client, body=fill).to_dict(),
            "missing": funds_fund.sync("NONE", client=client).to_dict(),
        }
    )
)
