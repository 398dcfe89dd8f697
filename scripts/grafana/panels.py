"""The kinds of panels that all dashboards are made of."""

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

MONEY, COUNT, SHARE, SECONDS, RATE, MULTIPLE = "locale", "short", "percentunit", "s", "cps", "suffix:x"
"""Money is in whole units of a contract's settlement currency, with all its digits: a legend or a column tells the currency."""

WHOLE, HALF, THIRD, QUARTER, SIXTH = 24, 12, 8, 6, 4
"""Widths; Grafana's grid has 24 columns."""

AnyPanel = bargauge.Panel | stat.Panel | statetimeline.Panel | table.Panel | timeseries.Panel
Panel = TypeVar("Panel", bargauge.Panel, stat.Panel, statetimeline.Panel, table.Panel, timeseries.Panel)


class Ask(NamedTuple):
    """A PromQL expression, and what its series are called: by their labels where nothing is said."""

    expression: str
    legend: str = "__auto"


class Column(NamedTuple):
    """A column of a table of contracts; its expression answers series with no label but `symbol`."""

    name: str
    expression: str
    unit: str = MONEY
    thresholds: ThresholdsConfig | None = None
    words: ValueMap | None = None


def words(*meanings: tuple[str, str]) -> ValueMap:
    """What the numbers 0, 1, 2 … mean: words and their colours."""
    results = (ValueMappingResult(text, colour, index=value) for value, (text, colour) in enumerate(meanings))
    return ValueMap({str(value): result for value, result in enumerate(results)})


def number(
    title: str,
    description: str,
    unit: str,
    *asks: Ask,
    thresholds: ThresholdsConfig | None = None,
    meanings: ValueMap | None = None,
    width: int = SIXTH,
) -> stat.Panel:
    """Each series' present value in large digits, before its past."""
    panel = stat.Panel().graph_mode(BigValueGraphMode.AREA).reduce_options(_last())
    panel.thresholds(thresholds or limits.neither()).mappings([meanings] if meanings else [])
    return _described(panel, title, description, unit).span(width).height(4).targets(_over_time(asks))


def lines(
    title: str,
    description: str,
    unit: str,
    *asks: Ask,
    thresholds: ThresholdsConfig | None = None,
    stacked: bool = False,
    width: int = HALF,
) -> timeseries.Panel:
    """Values over time; dashed lines where alerts begin."""
    panel = timeseries.Panel().show_points(VisibilityMode.AUTO).fill_opacity(20 if stacked else 0).legend(_legend())
    panel.tooltip(VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    if stacked:
        panel.stacking(StackingConfig().mode(StackingMode.NORMAL))
    if thresholds:
        panel.thresholds(thresholds)
        panel.thresholds_style(GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED))
    return _described(panel, title, description, unit).span(width).height(8).targets(_over_time(asks))


def bars(
    title: str, description: str, unit: str, ask: Ask, *, thresholds: ThresholdsConfig | None = None, width: int = THIRD
) -> bargauge.Panel:
    """Present values as bars, one below the other."""
    panel = bargauge.Panel().orientation(VizOrientation.HORIZONTAL).reduce_options(_last())
    panel.thresholds(thresholds or limits.neither()).no_value("none")
    query = Dataquery().expr(ask.expression).instant().legend_format(ask.legend).ref_id("A")
    return _described(panel, title, description, unit).span(width).height(9).targets([query])


def states(title: str, description: str, *asks: Ask, meanings: ValueMap, width: int = WHOLE) -> statetimeline.Panel:
    """Words over time, as bands of colour."""
    panel = statetimeline.Panel().mappings([meanings]).show_value(VisibilityMode.NEVER).legend(_legend())
    return _described(panel, title, description, "none").span(width).height(8).targets(_over_time(asks))


def rows(title: str, description: str, expression: str, *labels: str, height: int = 8) -> table.Panel:
    """A row for each series that there is now, with these of its labels and its value."""
    panel = table.Panel().thresholds(limits.neither()).no_value("none").targets(_tables([expression]))
    panel.with_transformation(_only(*labels, "Value"))
    order = {name: position for position, name in enumerate((*labels, "Value"))}
    panel.with_transformation(DataTransformerConfig("organize", options={"indexByName": order}))
    return _described(panel, title, description, "none").span(WHOLE).height(height)


def contracts(
    title: str, description: str, shown: str, *columns: Column, sort: str, descending: bool, link: str
) -> table.Panel:
    """A row for each contract that `shown` answers, which tells its currency too; it leads to the contract's dashboard."""
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
    """A link from a value to a contract's dashboard; `symbol` is how the value tells its contract."""
    address = f"/d/{uid}?var-symbol={symbol}&${{datasource:queryparam}}&${{__url_time_range}}"
    return DashboardLink("This contract").url(address)


def leading_to_contracts(panel: Panel, uid: str) -> Panel:
    """The panel, each of whose values leads to the dashboard of its contract."""
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


def _over_time(asks: Sequence[Ask]) -> list[Builder[AnyDataquery]]:
    return [
        Dataquery().expr(ask.expression).range().legend_format(ask.legend).ref_id(letter)
        for letter, ask in zip(ascii_uppercase, asks, strict=False)
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
