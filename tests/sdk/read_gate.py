import json
import os
import sys

from gate_api import ApiClient, Configuration, FuturesApi
from gate_api.exceptions import GateApiException

url, symbol = sys.argv[1:]
client = ApiClient(Configuration(host=f"{url}/api/v4", key="key", secret="secret"))
client.set_default_header("Authorization", f"Bearer {os.environ['TRADER']}")
api = FuturesApi(client)

try:
    api.list_futures_insurance_ledger("none")
except GateApiException as error:
    rejected = {"status": error.status, "label": error.label, "message": error.message}

answers = {
    "insurance": [record.to_dict() for record in api.list_futures_insurance_ledger("usdt", limit=5)],
    "risks": api.list_futures_adl_risk_states("usdt").to_dict(),
    "deleveraged": [row.to_dict() for row in api.list_auto_deleverages("usdt", contract=symbol)],
    "error": rejected,
}
print(json.dumps(answers))
