"""Dashboards of Grafana as code; `python -m deploy.monitoring.dashboards` writes their JSON."""
