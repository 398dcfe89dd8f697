"""Binance's old connector, which has no method for these paths but asks any, and its new SDK, which has."""

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
    refused = {"status": error.status_code, "code": error.error_code, "message": error.error_message}


def said(response):
    found = response.data().actual_instance
    return [plain(each.to_dict()) for each in found] if isinstance(found, list) else plain(found.to_dict())


def plain(value):
    """Without what its models add to what they read."""
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items() if name != "additional_properties"}
    return value


answers = {
    "connector": connector.query("/fapi/v1/insuranceBalance"),
    "quantile": connector.adl_quantile(),
    "insurance": said(sdk.query_insurance_fund_balance_snapshot(symbol=symbol)),
    "insurances": said(sdk.query_insurance_fund_balance_snapshot()),
    "risk": said(sdk.adl_risk(symbol=symbol)),
    "risks": said(sdk.adl_risk()),
    "refused": refused,
}
print(json.dumps(answers))
