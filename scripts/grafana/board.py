"""The common parts of all dashboards: data source, time range, links to each other, ADL orders as annotations."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import count

from grafana_foundation_sdk.builders.dashboard import (
    AnnotationQuery,
    Dashboard,
    DashboardLink,
    DatasourceVariable,
    QueryVariable,
    Row,
)
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DashboardLinkType, VariableRefresh, VariableSort
from panels import SOURCE, AnyPanel

OVERVIEW, CONTRACT, ADL, ENGINE = "fundsvc-overview", "fundsvc-contract", "fundsvc-adl", "fundsvc-engine"
"""The uids of the dashboards."""

FAMILY = "fundsvc"
"""The tag by which the dashboards link to each other."""


def board(
    uid: str,
    title: str,
    description: str,
    tag: str,
    *,
    choices: Iterable[QueryVariable],
    orders_of: str,
    rows: Mapping[str, Sequence[AnyPanel]],
) -> Dashboard:
    """Returns a dashboard; `orders_of` is a regular expression of the symbols with annotated ADL orders."""
    dashboard = Dashboard(title).uid(uid).description(description).tags([FAMILY, tag]).readonly().timezone("browser")
    dashboard.time("now-24h", "now").refresh("30s").tooltip(DashboardCursorSync.CROSSHAIR)
    dashboard.variables([DatasourceVariable("datasource").label("Prometheus").type("prometheus"), *choices])
    dashboard.annotation(_orders(orders_of)).link(_others())
    numbers = count(1)
    for name, panels in rows.items():
        dashboard.with_row(Row(name).id(next(numbers)))
        for panel in panels:
            dashboard.with_panel(panel.id(next(numbers)))
    return dashboard


def choice(name: str, label: str, metric: str, *, several: bool = True) -> QueryVariable:
    """Returns a variable with the values of a metric's label; with `several`, all are selected by default."""
    variable = QueryVariable(name).label(label).query(f"label_values({metric}, {name})").datasource(SOURCE)
    variable.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).sort(VariableSort.ALPHABETICAL_ASC)
    return variable.multi(multi=True).include_all(include_all=True).all_value(".+") if several else variable


def _others() -> DashboardLink:
    links = DashboardLink("Insurance funds").type(DashboardLinkType.DASHBOARDS).tags([FAMILY])
    return links.include_vars(include_vars=True).keep_time(keep_time=True)


def _orders(symbols: str) -> AnnotationQuery:
    began = f'sum by (symbol) (increase(fundsvc_adl_orders_total{{state="open", symbol=~"{symbols}"}}[1m])) > 0'
    marks = AnnotationQuery().name("ADL orders").datasource(SOURCE).enable(enable=True).icon_color("purple")
    return marks.expr(began).step("60s").title_format("ADL order").text_format("{{symbol}}").tag_keys("symbol")
