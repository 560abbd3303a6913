"""What all dashboards share: variables, links, and panels in the house's form."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from grafana_foundation_sdk.builders import dashboard as dashboards
from grafana_foundation_sdk.builders import prometheus, stat, table, tempo, timeseries
from grafana_foundation_sdk.builders.common import VizLegendOptions
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    VariableHide,
    VariableModel,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from grafana_foundation_sdk.cog.builder import Builder

INSTANCE = 'instance=~"$instance"'
"""Matches the instances that are chosen."""

RATE = "[$__rate_interval]"
METRICS = DataSourceRef(type_val="prometheus", uid="${datasource}")
TRACES = DataSourceRef(type_val="tempo", uid="${traces}")
_RUN_TRACES = '{ name = "lodestone.indexer.run" && span.lodestone.workspace =~ "$workspace" }'
_EXPLORE_TRACES = (
    '/explore?left={"datasource":"${traces}","queries":[{"refId":"A","queryType":"traceql",'
    '"query":"{ resource.service.name =~ \\"lodestone-.*\\" }"}],'
    '"range":{"from":"${__from}","to":"${__to}"}}'
)
_ALL = VariableOption(selected=True, text="All", value="$__all")


@dataclass(frozen=True, slots=True)
class Query:
    """A query of Prometheus and how its series are called."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Graph:
    """A panel: numbers over time, or the last one alone."""

    title: str
    description: str
    unit: str
    queries: Sequence[Query]
    single: bool = False
    stacked: bool = False
    width: int = 12


@dataclass(frozen=True, slots=True)
class Traces:
    """A table of the traces of runs of the chosen workspace."""

    title: str
    description: str
    width: int = 24


@dataclass(frozen=True, slots=True)
class Row:
    """A row of panels under a heading."""

    title: str
    panels: Sequence[Graph | Traces]


@dataclass(frozen=True, slots=True)
class Board:
    """A dashboard."""

    uid: str
    title: str
    description: str
    job: str
    """Pattern of the jobs whose instances may be chosen."""
    rows: Sequence[Row] = field(default_factory=tuple)


def build(board: Board) -> dashboards.Dashboard:
    """Returns the builder of a dashboard."""
    builder = (
        dashboards.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags(["lodestone"])
        .time("now-6h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .readonly()
    )
    for variable in _variables(board):
        builder = builder.with_variable(variable)
    builder = builder.link(
        dashboards.DashboardLink("Lodestone")
        .type(DashboardLinkType.DASHBOARDS)
        .tags(["lodestone"])
        .as_dropdown(True)
        .keep_time(True)
        .include_vars(True)
    ).link(dashboards.DashboardLink("Traces").type(DashboardLinkType.LINK).url(_EXPLORE_TRACES))
    for row in board.rows:
        builder = builder.with_row(dashboards.Row(row.title))
        for panel in row.panels:
            builder = builder.with_panel(
                _traces(panel) if isinstance(panel, Traces) else _graph(panel)
            )
    return builder


def _variables(board: Board) -> list[Builder[VariableModel]]:
    """Returns all variables for each board, so that links hand them on; shown are those in use."""
    traced = any(isinstance(panel, Traces) for row in board.rows for panel in row.panels)
    return [
        dashboards.DatasourceVariable("datasource").label("Metrics").type("prometheus"),
        dashboards.DatasourceVariable("traces").label("Traces").type("tempo"),
        dashboards.TextBoxVariable("workspace")
        .label("Workspace")
        .description("Name or pattern of a workspace. It filters traces: metrics know none.")
        .default_value(".*")
        .hide(VariableHide.DONT_HIDE if traced else VariableHide.HIDE_VARIABLE),
        dashboards.QueryVariable("instance")
        .label("Instance")
        .datasource(METRICS)
        .query(f'label_values(lodestone_build_info{{job=~"{board.job}"}}, instance)')
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(_ALL),
    ]


def _graph(graph: Graph) -> stat.Panel | timeseries.Panel:
    panel = stat.Panel() if graph.single else timeseries.Panel()
    panel = (
        panel.title(graph.title)
        .description(graph.description)
        .unit(graph.unit)
        .datasource(METRICS)
        .span(graph.width)
        .height(5 if graph.single else 8)
        .data_links([dashboards.DashboardLink("Traces of this time").url(_EXPLORE_TRACES)])
    )
    if isinstance(panel, timeseries.Panel):
        panel = panel.min(0).legend(
            VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        if graph.stacked:
            panel = panel.fill_opacity(30)
    for number, query in enumerate(graph.queries):
        target = prometheus.Dataquery().expr(query.expr).ref_id(chr(ord("A") + number))
        panel = panel.with_target(target.legend_format(query.legend or "{{instance}}"))
    return panel


def _traces(traces: Traces) -> table.Panel:
    query = tempo.TempoQuery().query_type("traceql").query(_RUN_TRACES).limit(20).ref_id("A")
    return (
        table.Panel()
        .title(traces.title)
        .description(traces.description)
        .datasource(TRACES)
        .span(traces.width)
        .height(8)
        .with_target(query)
    )
