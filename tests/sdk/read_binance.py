"""Binance's old connector, which has only a generic method for these paths, and its new SDK, which has methods for them."""

import json
import os
import sys

from binance.error import ClientError
from binance.um_futures import UMFutures
from binance_common.configuration import ConfigurationRestAPI
from binance_sdk_derivatives_trading_usds_futures import DerivativesTradingUsdsFutures

url, symbol = sys.argv[1:]
connector = UMFutures(base_url=url, key="key", secret="secret")
connector.session.headers["Authorization"] = f"Bearer {os.environ['TRADER']}"
sdk = DerivativesTradingUsdsFutures(ConfigurationRestAPI(api_key="key", api_secret="secret", base_path=url)).rest_api

try:
    connector.query("/fapi/v1/symbolAdlRisk", {"symbol": "NONE"})
except ClientError as error:
    rejected = {"status": error.status_code, "code": error.error_code, "message": error.error_message}


def content(response):
    found = response.data().actual_instance
    return [plain(each.to_dict()) for each in found] if isinstance(found, list) else plain(found.to_dict())


def plain(value):
    """Removes the fields that the models of the SDK add."""
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items() if name != "additional_properties"}
    return value


answers = {
    "connector": connector.query("/fapi/v1/insuranceBalance"),
    "quantile": connector.adl_quantile(),
    "insurance": content(sdk.query_insurance_fund_balance_snapshot(symbol=symbol)),
    "insurances": content(sdk.query_insurance_fund_balance_snapshot()),
    "risk": content(sdk.adl_risk(symbol=symbol)),
    "risks": content(sdk.adl_risk()),
    "error": rejected,
}
print(json.dumps(answers))
