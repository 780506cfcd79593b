"""The Grafana dashboard and the example for Prometheus ask for what the service says."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from lurm.settings import Settings
from service.app import create_api
from service.telemetry import Telemetry


@pytest.fixture
def dashboard(repository: Path) -> dict[str, Any]:
    return json.loads((repository / "docker/grafana/lurm.json").read_text())


def told() -> set[str]:
    """Every metric of the service, as Prometheus names it."""
    return set(re.findall(r"^# TYPE (\S+)", Telemetry().exposition().decode(), re.MULTILINE))


def shown(dashboard: dict[str, Any]) -> set[str]:
    """Every metric of a panel; of a histogram the name without the series."""
    queries = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ()))
    series = set(re.findall(r"\blurm_\w+", queries))
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in series}


def test_every_metric_has_a_panel_and_every_panel_its_metrics(dashboard: dict[str, Any]) -> None:
    assert "lurm_http_requests_total" in told()
    assert shown(dashboard) == told()
    others = json.dumps([dashboard["templating"], dashboard["annotations"]])
    assert set(re.findall(r"\blurm_\w+", others)) <= told()


def test_panels_are_named_and_lie_beside_each_other(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    assert all(one["x"] + one["w"] <= 24 for one in places)
    for one, other in itertools.combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above


def test_prometheus_asks_where_the_service_answers(repository: Path) -> None:
    (job,) = yaml.safe_load((repository / "docker/prometheus.yml").read_text())["scrape_configs"]
    services = yaml.safe_load((repository / "docker/compose.yaml").read_text())["services"]
    (target,) = job["static_configs"][0]["targets"]
    host, port = target.split(":")
    assert host in services
    assert int(port) == Settings.model_fields["port"].default
    assert job["metrics_path"] in {getattr(route, "path", "") for route in create_api().routes}
