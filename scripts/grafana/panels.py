"""The kinds of panels of all dashboards."""

from collections.abc import Iterable, Sequence
from string import ascii_uppercase
from typing import NamedTuple, TypeVar

import limits
from grafana_foundation_sdk.builders import bargauge, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.builders.common import (
    GraphThresholdsStyleConfig,
    ReduceDataOptions,
    StackingConfig,
    TableSortByFieldState,
    VizLegendOptions,
    VizTooltipOptions,
)
from grafana_foundation_sdk.builders.dashboard import DashboardLink, ThresholdsConfig
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery as AnyDataquery
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    DataSourceRef,
    GraphThresholdsStyleMode,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
    VizOrientation,
)
from grafana_foundation_sdk.models.dashboard import DataTransformerConfig, DynamicConfigValue, ValueMap, ValueMappingResult
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = DataSourceRef("prometheus", "${datasource}")

MONEY, COUNT, SHARE, SECONDS, RATE, MULTIPLE, BYTES = "locale", "short", "percentunit", "s", "cps", "suffix:x", "decbytes"
"""Grafana's units. Money is in whole units of the settlement currency, which a legend or column shows."""

WHOLE, HALF, THIRD, QUARTER, SIXTH = 24, 12, 8, 6, 4
"""Widths in columns of Grafana's grid."""

AnyPanel = bargauge.Panel | stat.Panel | statetimeline.Panel | table.Panel | timeseries.Panel
Panel = TypeVar("Panel", bargauge.Panel, stat.Panel, statetimeline.Panel, table.Panel, timeseries.Panel)


class Query(NamedTuple):
    """A PromQL expression and the legend of its series; by default their labels."""

    expression: str
    legend: str = "__auto"


class Column(NamedTuple):
    """A column of a table of contracts; its expression returns series with the label `symbol` only."""

    name: str
    expression: str
    unit: str = MONEY
    thresholds: ThresholdsConfig | None = None
    words: ValueMap | None = None


def words(*meanings: tuple[str, str]) -> ValueMap:
    """Maps the numbers 0, 1, 2 … to words with colours."""
    results = (ValueMappingResult(text, colour, index=value) for value, (text, colour) in enumerate(meanings))
    return ValueMap({str(value): result for value, result in enumerate(results)})


def number(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    thresholds: ThresholdsConfig | None = None,
    meanings: ValueMap | None = None,
    width: int = SIXTH,
) -> stat.Panel:
    """Returns a panel with the current value of each series in large digits over its course."""
    panel = stat.Panel().graph_mode(BigValueGraphMode.AREA).reduce_options(_last())
    panel.thresholds(thresholds or limits.neither()).mappings([meanings] if meanings else [])
    return _described(panel, title, description, unit).span(width).height(4).targets(_over_time(queries))


def lines(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    thresholds: ThresholdsConfig | None = None,
    stacked: bool = False,
    width: int = HALF,
) -> timeseries.Panel:
    """Returns a panel of values over time, with dashed lines at the thresholds of alerts."""
    panel = timeseries.Panel().show_points(VisibilityMode.AUTO).fill_opacity(20 if stacked else 0).legend(_legend())
    panel.tooltip(VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    if stacked:
        panel.stacking(StackingConfig().mode(StackingMode.NORMAL))
    if thresholds:
        panel.thresholds(thresholds)
        panel.thresholds_style(GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED))
    return _described(panel, title, description, unit).span(width).height(8).targets(_over_time(queries))


def bars(
    title: str, description: str, unit: str, query: Query, *, thresholds: ThresholdsConfig | None = None, width: int = THIRD
) -> bargauge.Panel:
    """Returns a panel of current values as horizontal bars."""
    panel = bargauge.Panel().orientation(VizOrientation.HORIZONTAL).reduce_options(_last())
    panel.thresholds(thresholds or limits.neither()).no_value("none")
    query = Dataquery().expr(query.expression).instant().legend_format(query.legend).ref_id("A")
    return _described(panel, title, description, unit).span(width).height(9).targets([query])


def states(title: str, description: str, *queries: Query, meanings: ValueMap, width: int = WHOLE) -> statetimeline.Panel:
    """Returns a panel of states over time as coloured bands."""
    panel = statetimeline.Panel().mappings([meanings]).show_value(VisibilityMode.NEVER).legend(_legend())
    return _described(panel, title, description, "none").span(width).height(8).targets(_over_time(queries))


def rows(title: str, description: str, expression: str, *labels: str, height: int = 8) -> table.Panel:
    """Returns a table with one row per current series: the given labels and the value."""
    panel = table.Panel().thresholds(limits.neither()).no_value("none").targets(_tables([expression]))
    panel.with_transformation(_only(*labels, "Value"))
    order = {name: position for position, name in enumerate((*labels, "Value"))}
    panel.with_transformation(DataTransformerConfig("organize", options={"indexByName": order}))
    return _described(panel, title, description, "none").span(WHOLE).height(height)


def contracts(
    title: str, description: str, shown: str, *columns: Column, sort: str, descending: bool, link: str
) -> table.Panel:
    """Returns a table with one row per contract of `shown`, which links to the contract's dashboard."""
    panel = table.Panel().thresholds(limits.neither()).no_value("none")
    panel.sort_by([TableSortByFieldState().display_name(sort).desc(descending)])
    panel.targets(_tables([shown, *(f"({column.expression}) and on (symbol) ({shown})" for column in columns)]))
    panel.with_transformation(_only("symbol", "currency", "Value.*"))
    panel.with_transformation(DataTransformerConfig("joinByField", options={"byField": "symbol", "mode": "outer"}))
    names = {f"Value #{letter}": column.name for letter, column in zip(ascii_uppercase[1:], columns, strict=False)}
    renamed = {"symbol": "Contract", "currency": "Currency"} | names
    options = {"renameByName": renamed, "excludeByName": {"Value #A": True}}
    panel.with_transformation(DataTransformerConfig("organize", options=options))
    panel.override_by_name("Contract", [DynamicConfigValue("links", [contract_link(link, "${__value.raw}").build()])])
    for column in columns:
        panel.override_by_name(column.name, list(_looks(column)))
    return _described(panel, title, description, MONEY).span(WHOLE).height(10)


def contract_link(uid: str, symbol: str) -> DashboardLink:
    """Returns a link from a value to a contract's dashboard; `symbol` is Grafana's expression for the contract of the value."""
    address = f"/d/{uid}?var-symbol={symbol}&${{datasource:queryparam}}&${{__url_time_range}}"
    return DashboardLink("Dashboard of this contract").url(address)


def leading_to_contracts(panel: Panel, uid: str) -> Panel:
    """Adds links from the values of a panel to the dashboards of their contracts."""
    return panel.data_links([contract_link(uid, "${__field.labels.symbol}")])


def _looks(column: Column) -> Iterable[DynamicConfigValue]:
    yield DynamicConfigValue("unit", column.unit)
    if column.thresholds:
        yield DynamicConfigValue("thresholds", column.thresholds.build())
    if column.words:
        yield DynamicConfigValue("mappings", [column.words])
    if column.thresholds or column.words:
        yield DynamicConfigValue("custom.cellOptions", {"type": "color-text"})


def _described(panel: Panel, title: str, description: str, unit: str) -> Panel:
    return panel.title(title).description(description).unit(unit).datasource(SOURCE)


def _over_time(queries: Sequence[Query]) -> list[Builder[AnyDataquery]]:
    return [
        Dataquery().expr(query.expression).range().legend_format(query.legend).ref_id(letter)
        for letter, query in zip(ascii_uppercase, queries, strict=False)
    ]


def _tables(expressions: Sequence[str]) -> list[Builder[AnyDataquery]]:
    return [
        Dataquery().expr(expression).instant().format(PromQueryFormat.TABLE).ref_id(letter)
        for letter, expression in zip(ascii_uppercase, expressions, strict=False)
    ]


def _only(*fields: str) -> DataTransformerConfig:
    return DataTransformerConfig("filterFieldsByName", options={"include": {"pattern": f"^({'|'.join(fields)})$"}})


def _last() -> ReduceDataOptions:
    return ReduceDataOptions().calcs(["lastNotNull"])


def _legend() -> VizLegendOptions:
    return VizLegendOptions().show_legend(show_legend=True)
