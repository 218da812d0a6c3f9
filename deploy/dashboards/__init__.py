"""Grafana's dashboards as Python: `make dashboards` writes deploy/grafana/dashboards."""

from deploy.dashboards.health import HEALTH
from deploy.dashboards.latency import LATENCY
from deploy.dashboards.memory import MEMORY_SAVINGS
from deploy.dashboards.transfers import TRANSFERS_AND_STORE

DASHBOARDS = (MEMORY_SAVINGS, LATENCY, TRANSFERS_AND_STORE, HEALTH)

__all__ = ["DASHBOARDS"]
