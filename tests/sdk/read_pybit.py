import json
import sys

from pybit.exceptions import InvalidRequestError
from pybit.unified_trading import HTTP

url, symbol = sys.argv[1:]
session = HTTP()
session.endpoint = url

try:
    session.get_adl_alert(symbol="NONE")
except InvalidRequestError as error:
    rejected = {"code": error.status_code, "message": error.message}

answers = {
    "insurance": session.get_insurance(coin="USDT"),
    "alert": session.get_adl_alert(symbol=symbol),
    "error": rejected,
}
print(json.dumps(answers))
