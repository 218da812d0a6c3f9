"""Turns a dashboard into Grafana's JSON, as `@grafana/schema` describes it."""

from __future__ import annotations

from typing import Any

from deploy.dashboards.panels import Dashboard, Kind, Panel, Target

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_COLUMNS = 24


def to_grafana(dashboard: Dashboard) -> dict[str, Any]:
    """The whole dashboard."""
    return {
        "uid": f"headwise-{dashboard.name}",
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": ["headwise"],
        "schemaVersion": 41,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": _variables()},
        "panels": _placed(dashboard.panels),
    }


def _variables() -> list[dict[str, Any]]:
    within = 'namespace=~"$namespace"'
    return [
        {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
        _query("namespace", "Namespace", "label_values(headwise_serving, namespace)"),
        _query("model", "Model", f"label_values(headwise_model_info{{{within}}}, model)"),
        _query(
            "instance",
            "Instance",
            f'label_values(headwise_model_info{{{within}, model=~"$model"}}, instance)',
        ),
        _query(
            "head_class",
            "Head class",
            f"label_values(headwise_heads_received_total{{{within}}}, head_class)",
        ),
    ]


def _query(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": _SOURCE,
        "query": query,
        # when the time range changes
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _placed(panels: tuple[Panel, ...]) -> list[dict[str, Any]]:
    """Left to right, in rows as high as their first panel."""
    placed, x, y = [], 0, 0
    height = panels[0].height
    for number, panel in enumerate(panels, start=1):
        if x + panel.width > _COLUMNS:
            x, y, height = 0, y + height, panel.height
        position = {"x": x, "y": y, "w": panel.width, "h": panel.height}
        placed.append({"id": number, "gridPos": position, **_panel(panel)})
        x += panel.width
    return placed


def _panel(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.highest is not None:
        defaults["max"] = panel.highest
    if panel.kind is Kind.TIME_SERIES:
        defaults["custom"] = {
            "fillOpacity": 30 if panel.stacked else 8,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        }
    return {
        "type": str(panel.kind),
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _options(panel),
        "targets": [
            _target(target, panel.kind, chr(ord("A") + place))
            for place, target in enumerate(panel.targets)
        ],
    }


def _options(panel: Panel) -> dict[str, Any]:
    match panel.kind:
        case Kind.STAT:
            return {"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "area"}
        case Kind.HEAT_MAP:
            # each series is a row of its own
            return {
                "calculate": False,
                "color": {"mode": "scheme", "scheme": "Viridis", "min": 0, "max": panel.highest},
                "cellValues": {"unit": panel.unit},
                "rowsFrame": {"layout": "unknown"},
                "tooltip": {"mode": "single", "yHistogram": False},
                "legend": {"show": True},
            }
        case Kind.TABLE:
            return {"showHeader": True}
        case _:
            return {
                "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }


def _target(target: Target, kind: Kind, letter: str) -> dict[str, Any]:
    table = kind is Kind.TABLE
    return {
        "refId": letter,
        "datasource": _SOURCE,
        "expr": target.expr,
        "legendFormat": target.legend,
        "range": not table,
        "instant": table,
        "format": "table" if table else "time_series",
    }
