"""Alerts, dashboard and metrics' page: each name in them is a metric that is served, with labels that it has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import metrics_page
import pytest
import yaml

from producer.jobs.model.metric import Metric
from producer.monitoring.metrics import METRICS as OF_DEPLOYMENT
from worker.metrics import METRICS as OF_WORKERS

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
ALERTS: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "grafana" / "dashboard.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
SERIES: dict[str, Metric] = {name: metric for metric in (*OF_DEPLOYMENT, *OF_WORKERS) for name in metric.series}
#: Labels that Prometheus adds, or that a histogram has.
ADDED = {"instance", "job", "le", "namespace"}

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)"
)


def expressions() -> Iterator[tuple[str, str]]:
    """Every expression, and where it stands."""
    for alert in ALERTS:
        yield alert["alert"], alert["expr"]
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def problems(expr: str) -> list[str]:
    """Names that nobody serves, and labels that a metric does not have."""
    names = set(re.findall(r"\bgradcam_\w+", expr))
    found = [f"there is no {name}" for name in sorted(names - SERIES.keys())]
    labels = {label for name in names & SERIES.keys() for label in SERIES[name].labels} | ADDED
    for name, matchers in re.findall(r"(gradcam_\w+)\{([^}]*)\}", expr):
        asked = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
        found += [f"{name} has no {label}" for label in asked - set(getattr(SERIES.get(name), "labels", ())) - ADDED]
    for listed in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expr):
        found += [f"nothing has {label}" for label in set(re.findall(r"\w+", listed)) - labels]
    return found


@pytest.mark.parametrize(("where", "expr"), list(expressions()))
def test_every_expression_names_metrics_that_are_served_and_labels_that_they_have(where: str, expr: str) -> None:
    """A name that is gone is no error to Prometheus: its alert never fires, and its panel stays empty."""
    assert problems(expr) == [], where
    assert "gradcam_" in expr


@pytest.mark.parametrize(
    "expr",
    ["gradcam_gone", "rate(gradcam_images[5m])", 'gradcam_jobs{status="x"}', "sum by (queue) (gradcam_jobs)"],
)
def test_a_wrong_expression_is_found(expr: str) -> None:
    assert problems(expr)


def test_names_of_metrics_are_prometheus_own_way_and_none_is_declared_twice() -> None:
    names = [metric.name for metric in (*OF_DEPLOYMENT, *OF_WORKERS)]
    assert len(set(names)) == len(names)
    for metric in (*OF_DEPLOYMENT, *OF_WORKERS):
        assert re.fullmatch(r"gradcam_[a-z_]+", metric.name)
        assert not metric.name.endswith("_total")
        assert metric.words.endswith(".")
        assert not {"job", "chunk", "worker", "image", "id"} & set(metric.labels), "a label that grows"


def test_each_alert_has_a_sentence_a_severity_and_its_part_of_the_runbook() -> None:
    runbook = (ROOT / "docs" / "operations.md").read_text()
    for alert in ALERTS:
        annotations = alert["annotations"]
        assert alert["labels"]["severity"] in {"warning", "critical"}
        assert annotations["summary"].endswith(".")
        assert annotations["description"].endswith(".")
        assert annotations["runbook"] == f"docs/operations.md#{alert['alert'].lower()}"
        assert f"### {alert['alert']}\n" in runbook
        assert "for" in alert
    assert set(re.findall(r"^### (Gradcam\w+)$", runbook, re.MULTILINE)) == {alert["alert"] for alert in ALERTS}


def test_the_dashboards_panels_have_a_unit_and_a_sentence_and_do_not_lie_upon_each_other() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    for panel in PANELS:
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs) > 0


def test_every_metric_is_in_the_dashboard_or_an_alert_but_for_what_they_are_derived_from() -> None:
    """What nobody looks at is not worth its cost."""
    shown = {SERIES[name].name for _, expr in expressions() for name in re.findall(r"\bgradcam_\w+", expr)}
    assert {metric.name for metric in (*OF_DEPLOYMENT, *OF_WORKERS)} - shown == {"gradcam_images_in_flight"}


def test_compose_mounts_the_files_and_prometheus_asks_services_that_are_there() -> None:
    services = COMPOSE["services"]
    for name in ("prometheus", "grafana"):
        mounted = [volume.split(":")[0] for volume in services[name]["volumes"] if volume.startswith("./")]
        assert mounted
        assert all((ROOT / "deploy" / path).exists() for path in mounted)
    jobs = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    (target,) = jobs[0]["static_configs"][0]["targets"]
    host, _, port = target.partition(":")
    assert services[host]["command"][-1] == port
    (found,) = jobs[1]["dns_sd_configs"]
    for name in found["names"]:
        command = [str(word) for word in services[name]["command"]]
        assert [word for pair in pairwise(command) if pair[0] == "--metrics-port" for word in pair[1:]] == [
            str(found["port"])
        ]
        assert ("--metrics-address", "0.0.0.0") in set(pairwise(command))
    provider = yaml.safe_load((MONITORING / "grafana/provisioning/dashboards/gradcam.yml").read_text())["providers"][0]
    mounts = [volume.split(":")[1] for volume in services["grafana"]["volumes"]]
    assert any(mount.startswith(provider["options"]["path"] + "/") for mount in mounts)
    source = yaml.safe_load((MONITORING / "grafana/provisioning/datasources/prometheus.yml").read_text())
    assert source["datasources"][0]["url"] == "http://prometheus:9090"


def test_the_page_of_metrics_is_made_of_the_code_that_declares_them() -> None:
    """`make docs` brings it up to date."""
    assert metrics_page.PAGE.read_text() == metrics_page.renewed()


def test_the_page_says_how_often_scaler_and_prometheus_ask_as_the_files_have_it() -> None:
    values = yaml.safe_load((ROOT / "deploy/helm/gradcam-queue/values.yaml").read_text())
    alone = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["global"]["scrape_interval"]
    page = " ".join(metrics_page.PAGE.read_text().split())
    assert f"every {values['keda']['pollingIntervalSeconds']} s (`keda.pollingIntervalSeconds`)" in page
    seconds = values["monitoring"]["serviceMonitor"]["interval"].removesuffix("s")
    assert f"every {seconds} s (`monitoring.serviceMonitor.interval`)" in page
    assert f"with `deploy/monitoring/prometheus.yml` Prometheus every {alone.removesuffix('s')} s" in page


@needs_promtool
def test_prometheus_own_tool_takes_rules_and_configuration() -> None:
    for arguments in (["rules", "alerts.yml"], ["config", "prometheus.yml"]):
        ended = subprocess.run(
            ["promtool", "check", *arguments], cwd=MONITORING, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr


def exported(metric: Metric, name: str, exporter: int) -> dict[str, str]:
    """A series of one exporter, as Prometheus' own tool has it."""
    labels = {"instance": str(exporter), **dict.fromkeys(metric.labels, "x")}
    pairs = ", ".join(f"{label}='{value}'" for label, value in labels.items())
    return {"series": f"{name}{{{pairs}}}", "values": "7x30" if metric.kind == "gauge" else "0+60x30"}


def answers(exporters: int, folder: Path) -> list[str]:
    """What the dashboard's queries for exporters find, with so many exporters of the same Redis."""
    theirs = {name: metric for metric in OF_DEPLOYMENT for name in metric.series}
    series = [exported(metric, name, one) for name, metric in theirs.items() for one in range(exporters)]
    asked = []
    for text in (target["expr"] for panel in PANELS for target in panel["targets"]):
        if set(re.findall(r"\bgradcam_\w+", text)) <= theirs.keys():
            # Each label has the value x here.
            expr = re.sub(r'(\w+)=~?"(?!\$)[^"]*"', r'\1="x"', text)
            expr = re.sub(r"\$(namespace|job)\b", ".*", expr).replace("$__rate_interval", "5m")
            asked.append({"expr": expr, "eval_time": "20m", "exp_samples": [{"labels": "nothing", "value": -1}]})
    cases = {"tests": [{"interval": "1m", "input_series": series, "promql_expr_test": asked}]}
    path = folder / f"{exporters}.yml"
    path.write_text(yaml.safe_dump(cases))
    ended = subprocess.run(["promtool", "test", "rules", path], capture_output=True, text=True, check=False)
    found = re.findall(r"\bgot:\s*(.*)", ended.stdout + ended.stderr)
    assert len(found) == len(asked) > 0, ended.stdout + ended.stderr
    return found


@needs_promtool
def test_the_dashboard_shows_the_same_with_one_exporter_and_with_three(tmp_path: Path) -> None:
    """Each of them tells all of the deployment; they are documented as more than one."""
    one = answers(1, tmp_path)
    assert "nil" not in one
    assert answers(3, tmp_path) == one


def test_the_dashboard_can_be_narrowed_to_a_namespace_and_a_job_and_shows_all_where_there_are_none() -> None:
    variables = {one["name"]: one for one in DASHBOARD["templating"]["list"] if one["type"] == "query"}
    assert set(variables) == {"namespace", "job"}
    for one in variables.values():
        # An expression that takes nothing as well takes series without that label.
        assert one["includeAll"]
        assert one["allValue"] == ".*"
        assert one["current"]["value"] == ["$__all"]
        assert re.match(r"label_values\(.*, (namespace|job)\)", one["query"]["query"])
    for panel in PANELS:
        for target in panel["targets"]:
            matched = target["expr"].count('namespace=~"$namespace", job=~"$job"}')
            assert matched == len(re.findall(r"\bgradcam_\w+", target["expr"])), panel["title"]


@needs_promtool
def test_each_alert_fires_when_it_should_and_not_before() -> None:
    """By Prometheus' own tool, with the times that are written there: `tests/support/alerts_test.yml`."""
    cases = ROOT / "tests" / "support" / "alerts_test.yml"
    tested = {
        test["alertname"] for case in yaml.safe_load(cases.read_text())["tests"] for test in case["alert_rule_test"]
    }
    assert tested == {alert["alert"] for alert in ALERTS}
    ended = subprocess.run(["promtool", "test", "rules", cases], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
