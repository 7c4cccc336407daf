"""The Helm chart: linted, rendered by Helm's engine for every values file, valid by schemas. No cluster is asked."""

from __future__ import annotations

import copy
import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import helm_python
import jsonschema
import pytest
import yaml
from charts import (
    CHART,
    ROOT,
    SCHEMAS,
    VALUES,
    VERSIONS,
    Manifest,
    chart,
    files,
    find,
    manifests,
    merged,
    pods_of,
    validate,
)

from producer.jobs.model.settings import Connections
from worker.settings import WorkerSettings
from worker.supervise.check import STARTING_WITHIN_S
from worker.supervise.launcher import GIVEN_UP_AFTER

USER = 10001
#: At which the pods of a cluster's DNS listen: everywhere else, in a vcluster, on OpenShift, with Gardener.
DNS = {53, 1053, 5353, 8053}
GPU = VALUES["gpu"]
KEDA = VALUES["keda"]


def linted(values: dict[str, Any]) -> list[str]:
    """What `helm lint --strict` complains of; it also says that charts may have an icon."""
    messages = helm_python.lint(CHART, values, strict=True)["messages"]
    return [message["error"] for message in messages if message["severity"] > 1]


@pytest.mark.parametrize("name", VALUES)
def test_every_values_file_is_linted_and_what_it_renders_is_valid(name: str) -> None:
    assert linted(VALUES[name]) == []
    rendered = manifests(VALUES[name])
    for manifest in rendered:
        for version in VERSIONS:
            validate(manifest, version)
    identities = [(one["apiVersion"], one["kind"], one["metadata"]["name"]) for one in rendered]
    assert len(set(identities)) == len(identities)
    for one in rendered:
        assert len(one["metadata"]["name"]) <= 63
        assert one["metadata"]["labels"]["app.kubernetes.io/instance"] == "demo"


def test_the_values_files_render_every_template_and_every_kind() -> None:
    """A template that none of them renders would never be looked at."""
    written = {file for values in VALUES.values() for file, text in files(values).items() if text.strip()}
    templates = {f"gradcam-queue/{one['name']}" for one in chart().templates if not one["name"].endswith(".tpl")}
    assert templates - written == {"gradcam-queue/templates/checks.yaml"}, "which only refuses"
    kinds = {one["kind"] for values in VALUES.values() for one in manifests(values)}
    assert set(SCHEMAS) <= kinds


def test_the_checks_see_what_is_wrong() -> None:
    """Misspelt fields, of Kubernetes' own kinds and of operators'."""
    worker = find(manifests(GPU), "Deployment", "-worker")
    worker["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(jsonschema.ValidationError):
        validate(worker, VERSIONS[-1])
    broken: Manifest
    for kind, component, at in (
        ("ScaledObject", "-worker", ("spec", "triggers", 0, "metadata")),
        ("ServiceMonitor", "-exporter", ("spec",)),
        ("PodMonitor", "-worker", ("spec", "podMetricsEndpoints", 0)),
        ("PrometheusRule", "queue", ("spec", "groups", 0)),
    ):
        broken = find(manifests(KEDA), kind, component)
        part: Any = broken
        for step in at:
            part = part[step]
        part["misspelt"] = "x"
        with pytest.raises(jsonschema.ValidationError):
            validate(broken, VERSIONS[-1])


def test_rules_and_dashboard_are_the_files_of_monitoring_word_by_word(tmp_path: Path) -> None:
    """Prometheus and Grafana have templates of their own in them, which are not Helm's to fill in."""
    folder = tmp_path / "gradcam-queue"
    shutil.copytree(CHART, folder, ignore=shutil.ignore_patterns("files"))
    folder.joinpath("files").mkdir()
    expression = {
        "alert": "Stuck",
        "expr": "x > 1",
        "for": "5m",
        "annotations": {"summary": "{{ $labels.queue }}: {{ $value }}"},
    }
    rules = {"groups": [{"name": "gradcam", "rules": [expression]}]}
    dashboard = {"title": "{{name}} $__rate_interval", "panels": [{"legendFormat": "{{queue}}"}]}
    folder.joinpath("files/alerts.yml").write_text("# Why.\n" + yaml.safe_dump(rules), encoding="utf-8")
    folder.joinpath("files/dashboard.json").write_text(json.dumps(dashboard, indent=2) + "\n", encoding="utf-8")
    values = merged(GPU, {"monitoring": {part: {"enabled": True} for part in ("rules", "dashboard")}})
    with helm_python.Chart.load(folder) as copied:
        text = copied.render(values, name="demo")["gradcam-queue/templates/monitoring.yaml"]
    made = {one["kind"]: one for one in yaml.safe_load_all(text) if one}
    for one in made.values():
        validate(one, VERSIONS[-1])
    assert made["PrometheusRule"]["spec"] == rules
    assert json.loads(made["ConfigMap"]["data"]["gradcam.json"]) == dashboard
    assert made["ConfigMap"]["metadata"]["labels"]["grafana_dashboard"] == "1"


@pytest.mark.parametrize("base", ["https://wiki.example.org/gradcam", "https://wiki.example.org/gradcam/"])
def test_alerts_have_an_address_of_their_runbook_where_it_is_said_where_the_documentation_is(base: str) -> None:
    rule = find(manifests(merged(KEDA, {"monitoring": {"rules": {"runbooks": base}}})), "PrometheusRule", "queue")
    validate(rule, VERSIONS[-1])
    alerts = rule["spec"]["groups"][0]["rules"]
    for alert in alerts:
        part = alert["alert"].lower()
        assert alert["annotations"]["runbook_url"] == f"https://wiki.example.org/gradcam/operations.md#{part}"
        assert "runbook" not in alert["annotations"]
    rule = find(manifests(KEDA), "PrometheusRule", "queue")
    assert rule["spec"] == yaml.safe_load((CHART / "files/alerts.yml").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("ours", "its"), [("alerts.yml", "alerts.yml"), ("dashboard.json", "grafana/dashboard.json")])
def test_the_chart_has_what_compose_has_of_monitoring(ours: str, its: str) -> None:
    folder = ROOT / "deploy/monitoring"
    assert (CHART / "files" / ours).read_bytes() == (folder / its).read_bytes()


def test_the_chart_is_of_this_release() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert chart().metadata["appVersion"] == project["version"]


@pytest.mark.parametrize("name", VALUES)
def test_every_pod_runs_without_rights_as_pod_security_restricted_asks(name: str) -> None:
    for pod, spec in pods_of(manifests(VALUES[name])):
        context = spec["securityContext"]
        assert context["runAsNonRoot"] is True, pod
        assert context["runAsUser"] > 0, pod
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, pod
        assert spec["automountServiceAccountToken"] is False, pod
        for forbidden in ("hostNetwork", "hostPID", "hostIPC"):
            assert forbidden not in spec, pod
        for volume in spec["volumes"]:
            assert "hostPath" not in volume, pod
        for container in spec["containers"]:
            rights = container["securityContext"]
            assert rights["allowPrivilegeEscalation"] is False, pod
            assert rights["readOnlyRootFilesystem"] is True, pod
            assert rights["capabilities"] == {"drop": ["ALL"]}, pod
            assert container["resources"]["limits"]["memory"], pod
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted <= {volume["name"] for volume in spec["volumes"]} | {"data"}, pod


@pytest.mark.parametrize("name", VALUES)
def test_no_worker_and_no_exporter_keeps_a_node_that_nobody_needs(name: str) -> None:
    """The cluster's autoscaler leaves each node with a pod that has an `emptyDir` of which nobody said that it may go.

    An exporter on a node with GPUs kept it, and its bill, for ever. Who types in the client's pod has files there.
    """
    word = "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes"
    for one in manifests(VALUES[name]):
        if one["kind"] == "Deployment":
            template = one["spec"]["template"]
            part = template["metadata"]["labels"]["app.kubernetes.io/component"]
            said = template["metadata"].get("annotations", {}).get(word, "")
            local = {volume["name"] for volume in template["spec"]["volumes"] if "emptyDir" in volume}
            assert local
            assert (not said) if part == "client" else local <= set(said.split(",")), part


def test_who_says_otherwise_of_a_pods_volumes_is_heard() -> None:
    word = "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes"
    values = merged(GPU, {"worker": {"podAnnotations": {word: "tmp"}}})
    worker = find(manifests(values), "Deployment", "-worker")["spec"]["template"]["metadata"]
    assert worker["annotations"] == {word: "tmp"}


def test_pods_of_ours_run_as_the_images_user_and_write_where_the_images_do() -> None:
    spec = dict(pods_of(manifests(GPU)))["demo-gradcam-queue-worker"]
    assert spec["securityContext"]["runAsUser"] == spec["securityContext"]["fsGroup"] == USER
    folders = {one["name"] for one in spec["volumes"] if "emptyDir" in one}
    written = {mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"] if mount["name"] in folders}
    assert written == {"/run/gradcam", "/var/cache/gradcam", "/tmp", "/home/gradcam"}


@pytest.mark.parametrize("name", VALUES)
def test_secrets_are_files_and_no_value_of_the_environment(name: str) -> None:
    """`kubectl describe` shows an environment to everybody who may see pods."""
    for _, spec in pods_of(manifests(VALUES[name])):
        for container in spec["containers"]:
            for variable in container.get("env", []):
                if re.search(r"PASSWORD|SECRET|REDIS_URL|CREDENTIALS", variable["name"]):
                    assert variable["value"].startswith("/etc/gradcam/"), variable
            assert not re.search(
                r"redis://:|requirepass", json.dumps([container.get("command"), container.get("args")])
            )


@pytest.mark.parametrize("name", VALUES)
def test_every_setting_of_a_pod_is_one_of_ours(name: str) -> None:
    """A worker refuses to start on one that it does not know."""
    models = (Connections, WorkerSettings)
    known = {f"{model.model_config['env_prefix']}{field}".upper() for model in models for field in model.model_fields}
    for pod, spec in pods_of(manifests(VALUES[name])):
        for container in spec["containers"]:
            names = [variable["name"] for variable in container.get("env", [])]
            assert len(set(names)) == len(names), pod
            ours = {one.removesuffix("_FILE") for one in names if one.startswith("GRADCAM_")}
            assert ours <= known, pod


@pytest.mark.parametrize(("grace_s", "killed_after_s"), [(25, 45), (60, 80)])
def test_a_pod_is_killed_long_after_its_worker_has_ended(grace_s: int, killed_after_s: int) -> None:
    spec = dict(pods_of(manifests(merged(GPU, {"worker": {"graceSeconds": grace_s}}))))["demo-gradcam-queue-worker"]
    environment = {one["name"]: one["value"] for one in spec["containers"][0]["env"]}
    assert environment["GRADCAM_WORKER_GRACE_S"] == str(grace_s)
    assert spec["terminationGracePeriodSeconds"] == killed_after_s


def test_a_worker_is_restarted_only_where_that_helps_and_not_ready_with_the_first_trouble() -> None:
    """A store that was away for ten minutes had every pod restarted."""
    worker = dict(pods_of(manifests(GPU)))["demo-gradcam-queue-worker"]["containers"][0]
    commands = {probe: worker[f"{probe}Probe"]["exec"]["command"] for probe in ("startup", "readiness", "liveness")}
    assert commands["liveness"] == ["gradcam-worker", "check", "--live", "--all"]
    assert commands["startup"] == commands["readiness"] == ["gradcam-worker", "check"]
    assert f"[{', '.join(commands['liveness'])}]" in (ROOT / "docs/operations.md").read_text()


def test_an_update_looks_at_a_new_worker_until_one_that_cannot_work_is_not_ready_any_more() -> None:
    """One that starts is ready at once: a release with a broken torch took the place of all others within minutes."""
    deployment = find(manifests(GPU), "Deployment", "-worker")["spec"]
    probe = deployment["template"]["spec"]["containers"][0]["readinessProbe"]
    # Kubernetes gives up after three answers. Before the first one it may have just asked.
    longest_s = STARTING_WITHIN_S + probe.get("failureThreshold", 3) * probe["periodSeconds"]
    assert deployment["minReadySeconds"] > longest_s
    assert deployment["minReadySeconds"] > sum(2**death for death in range(GIVEN_UP_AFTER)) + 60, "given up by then"
    assert deployment["progressDeadlineSeconds"] > deployment["minReadySeconds"] + 600, (
        "Kubernetes refuses less than the first"
    )


def test_metrics_are_served_at_a_pods_address_of_whatever_kind() -> None:
    """Where it is one of IPv6, nothing that listens at 0.0.0.0 is reached: the exporter was killed for its probe."""
    for name, option in (("worker", "--metrics-address"), ("exporter", "--address")):
        arguments = dict(pods_of(manifests(GPU)))[f"demo-gradcam-queue-{name}"]["containers"][0]["args"]
        assert arguments[arguments.index(option) + 1] == "::"


def test_a_gpu_a_slice_of_one_and_a_cpu_are_asked_for_by_their_names() -> None:
    def worker(name: str) -> dict[str, Any]:
        container: dict[str, Any] = dict(pods_of(manifests(VALUES[name])))["demo-gradcam-queue-worker"]["containers"][0]
        return container

    assert worker("gpu")["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert worker("keda")["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert "cuda" in worker("gpu")["args"]
    assert worker("mig")["resources"]["limits"] == {"nvidia.com/mig-1g.10gb": "1", "memory": "8Gi"}
    cpu = worker("cpu")
    assert set(cpu["resources"]["limits"]) == {"cpu", "memory"}
    assert cpu["args"][:2] == ["--devices", "cpu"]


@pytest.mark.parametrize(
    ("profile", "resource"),
    [
        ("1g.10gb", "nvidia.com/mig-1g.10gb"),
        ("1g.10gb+me", "nvidia.com/mig-1g.10gb.me"),
        ("1g.10gb.me", "nvidia.com/mig-1g.10gb.me"),
        ("1g.24gb+me.all", "nvidia.com/mig-1g.24gb.me.all"),
        ("1g.24gb+gfx", "nvidia.com/mig-1g.24gb.gfx"),
    ],
)
def test_a_slice_is_asked_for_by_the_name_that_the_device_plugin_gives_it(profile: str, resource: str) -> None:
    """NVIDIA's tools say `+me`, which Kubernetes takes in no resource's name; the device plugin says `.me`."""
    values = merged(VALUES["mig"], {"worker": {"gpu": {"migProfile": profile}}})
    container = dict(pods_of(manifests(values)))["demo-gradcam-queue-worker"]["containers"][0]
    assert container["resources"]["limits"] == {resource: "1", "memory": "8Gi"}
    # As Kubernetes has it: "qualified name".
    assert re.fullmatch(r"[a-z0-9.-]+/[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", resource)
    assert f"1 {resource} each" in files(values)["gradcam-queue/templates/NOTES.txt"]


def test_a_cpu_worker_has_a_limit_of_cores_where_nothing_is_said() -> None:
    """Without one it starts as many threads as its node has cores."""
    values = merged(VALUES["cpu"], {"worker": {"resources": None}})
    spec = dict(pods_of(manifests(values)))["demo-gradcam-queue-worker"]
    assert spec["containers"][0]["resources"]["limits"]["cpu"]


def test_a_worker_on_a_cold_node_has_minutes_until_its_launcher_is_there() -> None:
    """With `worker.preload` the launcher imports torch from an image that may still be read for the first time."""
    spec = dict(pods_of(manifests(GPU)))["demo-gradcam-queue-worker"]
    probe = spec["containers"][0]["startupProbe"]
    assert probe["failureThreshold"] * probe["periodSeconds"] >= 300


def test_rights_come_from_a_role_where_no_secret_is_named() -> None:
    rendered = manifests(VALUES["eks"])
    account = find(rendered, "ServiceAccount", "")
    assert "eks.amazonaws.com/role-arn" in account["metadata"]["annotations"]
    for name in ("worker", "client"):
        spec = dict(pods_of(rendered))[f"demo-gradcam-queue-{name}"]
        assert spec["serviceAccountName"] == account["metadata"]["name"]
        assert {volume["name"] for volume in spec["volumes"]} & {"s3"} == set()
    exporter = dict(pods_of(rendered))["demo-gradcam-queue-exporter"]
    assert "serviceAccountName" not in exporter, "it needs nothing of the object store"


def test_keda_alone_says_how_many_workers_there_are() -> None:
    """`helm upgrade` would set the number back, and stop workers that are at work."""
    assert "replicas" not in find(manifests(KEDA), "Deployment", "-worker")["spec"]
    assert find(manifests(GPU), "Deployment", "-worker")["spec"]["replicas"] == 3


def test_keda_asks_the_exporter_for_gpus_and_divides_by_those_of_a_pod() -> None:
    rendered = manifests(KEDA)
    spec = find(rendered, "ScaledObject", "-worker")["spec"]
    [trigger] = spec["triggers"]
    service = find(rendered, "Service", "-exporter")
    port = service["spec"]["ports"][0]["port"]
    name = service["metadata"]["name"]
    assert trigger["metadata"]["url"] == f"http://{name}.vision.svc:{port}/scale?hours=4&images_per_s=20"
    assert trigger["metadata"]["valueLocation"] == "gpus_wanted"
    assert trigger["metadata"]["targetValue"] == "2"
    assert trigger["metadata"]["activationTargetValue"] == "0"
    assert spec["scaleTargetRef"]["name"] == find(rendered, "Deployment", "-worker")["metadata"]["name"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (0, 16)
    assert spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"] == {"selectPolicy": "Disabled"}


def test_workers_of_one_priority_are_scaled_by_what_is_theirs() -> None:
    [trigger] = find(manifests(VALUES["full"]), "ScaledObject", "-worker")["spec"]["triggers"]
    assert trigger["metadata"]["url"].endswith("/scale?hours=0.5&images_per_s=20&priority=high")


def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


@pytest.mark.parametrize("name", VALUES)
def test_selectors_find_the_pods_they_mean_and_no_others(name: str) -> None:
    rendered = manifests(VALUES[name])
    makers = [one for one in rendered if one["kind"] in {"Deployment", "StatefulSet", "Job"}]
    labels = {one["metadata"]["name"]: one["spec"]["template"]["metadata"]["labels"] for one in makers}
    for one in rendered:
        spec = one.get("spec", {})
        if one["kind"] == "Service":
            selector = spec["selector"]
        elif one["kind"] == "NetworkPolicy":
            selector = spec["podSelector"]["matchLabels"]
        elif one["kind"] in {"Deployment", "StatefulSet", "PodDisruptionBudget", "PodMonitor"}:
            selector = spec["selector"]["matchLabels"]
        else:
            continue
        assert [maker for maker, its in labels.items() if selects(selector, its)] == [one["metadata"]["name"]]
    for one in rendered:
        if one["kind"] == "ServiceMonitor":
            services = [other for other in rendered if other["kind"] == "Service"]
            found = [
                other["metadata"]["name"]
                for other in services
                if selects(one["spec"]["selector"]["matchLabels"], other["metadata"]["labels"])
            ]
            assert found == [one["metadata"]["name"]]


def test_two_releases_in_one_namespace_share_nothing() -> None:
    first, second = manifests(VALUES["trial"], "one"), manifests(VALUES["trial"], "two")
    assert not {one["metadata"]["name"] for one in first} & {one["metadata"]["name"] for one in second}
    labels = find(second, "Deployment", "-worker")["spec"]["template"]["metadata"]["labels"]
    assert not selects(find(first, "Deployment", "-worker")["spec"]["selector"]["matchLabels"], labels)


@pytest.mark.parametrize("word", ["on", "yes", "true", "null", "y"])
def test_a_name_that_yaml_reads_as_something_else_stays_a_name(word: str) -> None:
    """`helm install on …`: unquoted, the label would be `true`, which Kubernetes refuses."""
    values = merged(VALUES["trial"], {"fullnameOverride": word, "monitoring": KEDA["monitoring"]})
    values = merged(values, {"serviceAccount": {"name": word}})
    for one in manifests(values, word):
        validate(one, VERSIONS[-1])
        assert one["metadata"]["labels"]["app.kubernetes.io/instance"] == word
        assert isinstance(one["metadata"]["name"], str)
    assert find(manifests(values, word), "ServiceAccount", word)


@pytest.mark.parametrize("word", ["123", "1e3", "true", "null"])
def test_a_chart_by_another_name_has_that_name_in_its_labels(word: str) -> None:
    for one in manifests(merged(GPU, {"nameOverride": word})):
        validate(one, VERSIONS[-1])
        assert one["metadata"]["labels"]["app.kubernetes.io/name"] == word


def test_two_long_names_that_begin_alike_stay_two_names() -> None:
    long = "grad-cam-for-the-vision-team-of-the-second-floor"
    first, second = ({one["metadata"]["name"] for one in manifests(VALUES["trial"], f"{long}-{n}")} for n in "ab")
    assert not first & second
    assert max(map(len, first)) <= 63
    override = [manifests(merged(GPU, {"fullnameOverride": f"{long}-{n}"}), "demo") for n in "ab"]
    names = [{one["metadata"]["name"] for one in rendered} for rendered in override]
    assert not names[0] & names[1]


@pytest.mark.parametrize("name", ["v1.2", "1st"])
def test_a_releases_name_that_no_service_may_have_is_refused_and_another_name_helps(name: str) -> None:
    with pytest.raises(helm_python.HelmError, match=rf"{name}-gradcam-queue cannot be a Service's name"):
        files(GPU, name)
    assert manifests(merged(GPU, {"fullnameOverride": "first"}), name)


@pytest.mark.parametrize("name", ["worker", "exporter"])
def test_names_are_resolved_also_where_the_pods_of_dns_listen_at_another_port_than_their_service(name: str) -> None:
    """A policy is held to after a Service's address became that of a pod: on OpenShift nothing was resolved."""
    egress = find(manifests(GPU), "NetworkPolicy", f"-{name}")["spec"]["egress"]
    [dns] = [rule["ports"] for rule in egress if 53 in {port["port"] for port in rule["ports"]}]
    assert sorted((one["port"], one["protocol"]) for one in dns) == [
        (port, protocol) for port in sorted(DNS) for protocol in ("TCP", "UDP")
    ]


def test_workers_reach_redis_the_store_and_the_web_but_no_credentials_of_their_node() -> None:
    egress = find(manifests(VALUES["cpu"]), "NetworkPolicy", "-worker")["spec"]["egress"]
    ports = {port["port"] for rule in egress for port in rule["ports"]}
    assert ports - DNS == {6379, 9000, 80, 443}
    [web] = [rule for rule in egress if {port["port"] for port in rule["ports"]} == {80, 443}]
    assert [block["ipBlock"]["except"] for block in web["to"]] == [["169.254.0.0/16"], ["fe80::/10", "fd00:ec2::/32"]]
    exporter = find(manifests(VALUES["cpu"]), "NetworkPolicy", "-exporter")["spec"]
    assert {port["port"] for rule in exporter["egress"] for port in rule["ports"]} - DNS == {6379}
    assert {port["port"] for rule in exporter["ingress"] for port in rule["ports"]} == {9100}


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [
        ("https://s3.example.com", 443),
        ("http://s3.example.com", 80),
        ("https://s3.example.com:8443/", 8443),
        ("http://[fd00::1]:9000", 9000),
    ],
)
def test_the_port_of_the_object_store_is_open(endpoint: str, port: int) -> None:
    rules = find(manifests(merged(GPU, {"s3": {"endpointUrl": endpoint}})), "NetworkPolicy", "-worker")["spec"][
        "egress"
    ]
    assert {"ports": [{"port": port, "protocol": "TCP"}]} in rules


def test_traces_are_on_for_workers_and_client_where_a_collector_is_named() -> None:
    values = VALUES["full"]
    for name in ("-worker", "-client"):
        pod = find(manifests(values), "Deployment", name)["spec"]["template"]["spec"]
        environment = {one["name"]: one.get("value") for one in pod["containers"][0]["env"]}
        assert environment["GRADCAM_TRACES"] == "otlp"
        assert environment["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector.monitoring:4318"
        assert environment["OTEL_TRACES_SAMPLER_ARG"] == "0.1"
    rules = find(manifests(values), "NetworkPolicy", "-worker")["spec"]["egress"]
    assert {"ports": [{"port": 4318, "protocol": "TCP"}]} in rules
    assert "GRADCAM_TRACES" not in str(manifests(GPU))


def test_a_collector_of_each_node_is_named_by_a_variable_of_the_pod() -> None:
    """Kubernetes puts in a variable only what stands before it."""
    node = {"name": "HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}
    own = {"extraEnv": [node]}
    values = merged(GPU, {"traces": {"endpoint": "http://$(HOST_IP):4318"}, "worker": own, "client": own})
    for pod in pods_named(merged(values, {"client": {"enabled": True}}), "worker", "client").values():
        names = [one["name"] for one in pod["spec"]["containers"][0]["env"]]
        assert names.index("HOST_IP") < names.index("OTEL_EXPORTER_OTLP_ENDPOINT")


def test_what_the_chart_sets_itself_is_refused_in_the_environment_and_nothing_else_is() -> None:
    """A variable that stands twice in a container has the last value, and `kubectl apply` keeps only one of them."""
    everything = {
        "client": {"enabled": True},
        "traces": {"endpoint": "http://collector:4318"},
        "s3": {"endpointUrl": "http://store:9000", "publicEndpointUrl": "https://store.example.com"},
    }
    containers = [
        container
        for values in (merged(GPU, everything), VALUES["trial"])
        for _, spec in pods_of(manifests(values))
        for container in spec["containers"]
    ]
    its_own = {variable["name"] for container in containers for variable in container.get("env", [])}
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    refused = set(schema["definitions"]["variable"]["not"]["enum"])
    options = {"GRADCAM_WORKER_QUEUES", "GRADCAM_WORKER_PRELOAD"}
    secrets = {"GRADCAM_REDIS_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"}
    assert refused == its_own | options | secrets


def pods_named(values: dict[str, Any], *names: str) -> dict[str, dict[str, Any]]:
    """The pods of Deployments, by the end of their names."""
    return {name: find(manifests(values), "Deployment", f"-{name}")["spec"]["template"] for name in names}


def test_worker_exporter_and_client_have_the_same_things_of_ones_own() -> None:
    """The authority of Redis' certificate, for one, has to be known to all of them."""
    for name, pod in pods_named(VALUES["tls"], "worker", "exporter", "client").items():
        assert {"name": "authority", "configMap": {"name": "authority"}} in pod["spec"]["volumes"], name
        mounts = pod["spec"]["containers"][0]["volumeMounts"]
        assert {"name": "authority", "mountPath": "/etc/authority", "readOnly": True} in mounts, name
    toleration = {"key": "batch", "operator": "Exists"}
    values = merged(VALUES["full"], {"worker": {"nodeSelector": {"kubernetes.io/os": "linux"}}})
    for name, pod in pods_named(values, "worker", "exporter", "client").items():
        assert pod["metadata"]["labels"]["example.com/team"] == "vision", name
        assert pod["metadata"]["annotations"]["example.com/team"] == "vision", name
        spec = pod["spec"]
        assert spec["nodeSelector"] == {"kubernetes.io/os": "linux"}, name
        assert spec["priorityClassName"] == ("batch" if name == "worker" else "people")
        assert name == "worker" or (spec["tolerations"] == [toleration] and spec["affinity"]), name
        node = {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}
        assert node in spec["containers"][0]["env"], name
        assert spec["imagePullSecrets"] == [{"name": "registry"}, {"name": "mirror"}]


def test_a_workers_pod_takes_containers_options_and_names_of_hosts() -> None:
    deployment = find(manifests(VALUES["full"]), "Deployment", "-worker")
    assert deployment["metadata"]["annotations"] == {"example.com/reload": "true"}
    spec = deployment["spec"]["template"]["spec"]
    worker, sidecar = spec["containers"]
    assert worker["args"][-2:] == ["--processes-per-device", "1"]
    assert worker["envFrom"] == [{"configMapRef": {"name": "proxies"}}]
    assert (sidecar["name"], spec["initContainers"][0]["name"]) == ("logs", "wait")
    assert spec["dnsConfig"]["options"] == [{"name": "ndots", "value": "1"}]
    assert spec["hostAliases"] == [{"ip": "10.0.0.9", "hostnames": ["store.internal"]}]


def test_users_are_left_to_a_cluster_that_chooses_them() -> None:
    """OpenShift refuses a pod that names another user than those of its namespace."""
    security = {"runAsUser": None, "runAsGroup": None, "fsGroup": None}
    rendered = manifests(merged(VALUES["trial"], {"podSecurity": security}))
    for one in rendered:
        validate(one, VERSIONS[-1])
    for pod, spec in pods_of(rendered):
        assert not security.keys() & spec["securityContext"].keys(), pod
        assert spec["securityContext"]["runAsNonRoot"] is True, pod
    own = manifests(merged(VALUES["trial"], {"podSecurity": {"runAsUser": 1000660000}}))
    users = {pod.rsplit("-", 1)[1]: spec["securityContext"]["runAsUser"] for pod, spec in pods_of(own)}
    assert users.pop("valkey") == 999
    assert set(users.values()) == {1000660000}


def test_a_trials_password_is_long_and_of_this_installation() -> None:
    def secrets(name: str) -> list[str]:
        texts = [one["stringData"] for one in manifests(VALUES["trial"], name) if one["kind"] == "Secret"]
        return [key for text in texts for key in re.findall(r"[A-Za-z0-9]{40}", "".join(text.values()))]

    # The password stands in the server's file and in the address, the store's key in two files.
    first, second = secrets("demo"), secrets("other")
    assert (len(first), len(set(first)), len({*first, *second})) == (4, 2, 4)


#: A collector, and what is said of it.
TRACES = {"endpoint": "http://collector:4318", "env": {"OTEL_TRACES_SAMPLER": "always_off"}}

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("no Redis", {"redis": {"existingSecret": ""}}, "set redis.existingSecret"),
    ("two Redis", {"trial": {"valkey": {"enabled": True}}}, "leave one out"),
    ("no bucket", {"s3": {"bucket": ""}}, "set s3.bucket"),
    ("two stores", {"trial": {"s3": {"enabled": True}}}, "leave one out"),
    (
        "KEDA without the exporter",
        {"keda": {"enabled": True}, "exporter": {"enabled": False}},
        "needs exporter.enabled",
    ),
    (
        "a monitor of no exporter",
        {"monitoring": {"serviceMonitor": {"enabled": True}}, "exporter": {"enabled": False}},
        "needs exporter.enabled",
    ),
    ("more at least than at most", {"keda": {"minReplicas": 9, "maxReplicas": 8}}, "more than keda.maxReplicas"),
    ("a slice of a CPU", {"worker": {"device": "cpu", "gpu": {"migProfile": "1g.10gb"}}}, "needs worker.device gpu"),
    (
        "a label of the chart's own",
        {"worker": {"podLabels": {"app.kubernetes.io/component": "x"}}},
        "worker.podLabels names app.kubernetes.io/component",
    ),
    (
        "a label of the chart's own in a monitor",
        {"monitoring": {"rules": {"labels": {"helm.sh/chart": "x"}}}},
        "monitoring.rules.labels names helm.sh/chart",
    ),
    ("more GPUs", {"worker": {"resources": {"limits": {"nvidia.com/gpu": 2}}}}, "asks for nvidia.com/gpu"),
    (
        "a GPU beside a slice",
        {"worker": {"gpu": {"migProfile": "1g.10gb"}, "resources": {"requests": {"nvidia.com/gpu": "1"}}}},
        "worker.resources.requests asks for nvidia.com/gpu",
    ),
    (
        "a GPU for CPUs",
        {"worker": {"device": "cpu", "resources": {"limits": {"nvidia.com/gpu": 1}}}},
        "asks for nvidia.com/gpu",
    ),
    (
        "a variable twice",
        {"exporter": {"env": {"X": 1}, "extraEnv": [{"name": "X", "value": "2"}]}},
        "exporter.env and exporter.extraEnv name X twice",
    ),
    (
        "a secret in the further environment",
        {"client": {"extraEnv": [{"name": "AWS_SECRET_ACCESS_KEY", "valueFrom": {}}]}},
        "/client/extraEnv/0",
    ),
    ("root", {"podSecurity": {"runAsUser": 0}}, "/podSecurity/runAsUser"),
    ("a misspelt value", {"worker": {"replica": 3}}, "additional properties 'replica'"),
    ("a misspelt part", {"wroker": {}}, "additional properties 'wroker'"),
    ("a device of another kind", {"worker": {"device": "tpu"}}, "/worker/device"),
    ("no priority", {"worker": {"queues": []}}, "/worker/queues"),
    ("a priority that is none", {"worker": {"queues": ["urgent"]}}, "/worker/queues"),
    ("a number as text", {"worker": {"replicas": "3"}}, "/worker/replicas"),
    ("fewer than none", {"worker": {"replicas": -1}}, "/worker/replicas"),
    ("no grace", {"worker": {"graceSeconds": 0}}, "/worker/graceSeconds"),
    ("a profile that is none", {"worker": {"gpu": {"migProfile": "small"}}}, "/worker/gpu/migProfile"),
    (
        "a resource that Kubernetes does not take",
        {"worker": {"gpu": {"resource": "nvidia.com/mig-1g.10gb+me"}}},
        "/worker/gpu/resource",
    ),
    ("a resource whose name ends in a sign", {"worker": {"gpu": {"resource": "amd.com/gpu-"}}}, "/worker/gpu/resource"),
    (
        "a budget that lets no node be drained",
        {"worker": {"podDisruptionBudget": {"maxUnavailable": 0}}},
        "maxUnavailable",
    ),
    ("no hour", {"keda": {"hours": 0}}, "/keda/hours"),
    (
        "a longer memory than Kubernetes has",
        {"keda": {"scaleDown": {"stabilizationSeconds": 7200}}},
        "stabilizationSeconds",
    ),
    ("a bucket that cannot be", {"s3": {"bucket": "My_Pictures"}}, "/s3/bucket"),
    ("credentials in an address", {"s3": {"endpointUrl": "http://key:word@minio:9000"}}, "/s3/endpointUrl"),
    ("a secret in the environment", {"worker": {"env": {"AWS_SECRET_ACCESS_KEY": "x"}}}, "'AWS_SECRET_ACCESS_KEY'"),
    (
        "an address of Redis in the environment",
        {"worker": {"env": {"GRADCAM_REDIS_URL": "redis://:x@y"}}},
        "'GRADCAM_REDIS_URL'",
    ),
    ("what the chart sets itself", {"worker": {"env": {"GRADCAM_WORKER_GRACE_S": "1"}}}, "'GRADCAM_WORKER_GRACE_S'"),
    (
        "a variable of traces and of the worker",
        {"traces": TRACES, "worker": {"env": {"OTEL_TRACES_SAMPLER": "always_on"}}},
        "traces.env and worker.env name OTEL_TRACES_SAMPLER: leave one out",
    ),
    (
        "a variable of traces and of the client",
        {"traces": TRACES, "client": {"extraEnv": [{"name": "OTEL_TRACES_SAMPLER", "value": "always_on"}]}},
        "traces.env and client.extraEnv name OTEL_TRACES_SAMPLER: leave one out",
    ),
    ("a name that is no variable", {"worker": {"env": {"a b": "x"}}}, "'a b'"),
    ("a secret's name with a path", {"redis": {"existingSecret": "../x"}}, "/redis/existingSecret"),
    ("a key with a path", {"redis": {"key": "../../x"}}, "/redis/key"),
    ("a digest that is none", {"image": {"workerDigest": "latest"}}, "/image/workerDigest"),
    ("lines in an image's name", {"image": {"repository": "x\nprivileged: true"}}, "/image/repository"),
    ("lines in a bucket's prefix", {"s3": {"prefix": "a\n- name: X"}}, "/s3/prefix"),
    ("words in a model's name", {"worker": {"preload": ["resnet50 --devices"]}}, "/worker/preload"),
]


@pytest.mark.parametrize(("values", "said"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_values_that_cannot_work_are_refused_in_a_sentence(values: dict[str, Any], said: str) -> None:
    with pytest.raises(helm_python.HelmError) as refused:
        files(merged(GPU, values))
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "text",
    ['"}]\nhostNetwork: true', "{{ .Values }}", "a: b # c", "'\"\\", "*x", "yes", "1e3", "\u2028", "${HOME} $(id)"],
)
def test_texts_of_a_values_file_stay_texts(text: str) -> None:
    """What stands in an annotation or in the environment makes no field of its own."""
    values = merged(
        GPU, {"worker": {"env": {"X": text}, "podAnnotations": {"example.com/x": text}, "nodeSelector": {"x": text}}}
    )
    template = find(manifests(values), "Deployment", "-worker")["spec"]["template"]
    assert {"name": "X", "value": text} in template["spec"]["containers"][0]["env"]
    assert template["metadata"]["annotations"]["example.com/x"] == text
    assert template["spec"]["nodeSelector"]["x"] == text
    assert "hostNetwork" not in template["spec"]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (210_000_000, "210000000"),
        (10_737_418_240, "10737418240"),
        (210_000_000.5, "210000000.5"),
        (0.1, "0.1"),
        (4, "4"),
        (True, "true"),
    ],
)
def test_numbers_of_a_values_file_keep_their_digits_where_they_become_text(number: float, text: str) -> None:
    """Helm reads them as floats; no worker starts with 2.1e+08 pixels."""
    values = merged(VALUES["full"], {name: {"env": {"GRADCAM_X": number}} for name in ("worker", "exporter")})
    for name in ("-worker", "-exporter"):
        container = find(manifests(values), "Deployment", name)["spec"]["template"]["spec"]["containers"][0]
        assert {"name": "GRADCAM_X", "value": text} in container["env"]


def test_small_and_large_numbers_of_other_values_are_numbers_too() -> None:
    worker = {"cache": {"weightsBytes": 1_000_000_000_000}, "resources": {"limits": {"memory": 8_589_934_592}}}
    values = merged(KEDA, {"worker": worker, "keda": {"hours": 0.00005, "imagesPerSecondPerGpu": 100_000}})
    container = find(manifests(values), "Deployment", "-worker")["spec"]["template"]["spec"]["containers"][0]
    assert {"name": "GRADCAM_WORKER_WEIGHTS_CACHE_BYTES", "value": "1000000000000"} in container["env"]
    assert container["resources"]["limits"]["memory"] == 8_589_934_592
    [trigger] = find(manifests(values), "ScaledObject", "-worker")["spec"]["triggers"]
    assert trigger["metadata"]["url"].endswith("/scale?hours=0.00005&images_per_s=100000")


def test_notes_say_what_was_installed() -> None:
    notes = {name: files(values)["gradcam-queue/templates/NOTES.txt"] for name, values in VALUES.items()}
    assert "3 worker(s), 1 nvidia.com/gpu each" in notes["gpu"]
    assert "0 to 16 workers, so many that what is left is done in 4 h, 2 nvidia.com/gpu each" in notes["keda"]
    assert "1 nvidia.com/mig-1g.10gb each" in notes["mig"]
    assert "on CPUs" in notes["cpu"]
    assert "lost with its pod" in notes["trial"]
    assert "lost with its pod" not in notes["full"]
    for text in notes.values():
        assert max(map(len, text.splitlines())) <= 160
        assert "\n\n\n" not in text


def test_every_value_is_in_the_schema_with_its_default() -> None:
    def keys(value: object, at: str = "") -> set[str]:
        if not isinstance(value, dict):
            return {at}
        return {at}.union(*(keys(one, f"{at}.{name}") for name, one in value.items()))

    def properties(schema: dict[str, Any], root: dict[str, Any], at: str = "") -> set[str]:
        if "$ref" in schema:
            schema = root["definitions"][schema["$ref"].rsplit("/", 1)[-1]]
        return {at}.union(
            *(properties(one, root, f"{at}.{name}") for name, one in schema.get("properties", {}).items())
        )

    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft7Validator.check_schema(schema)
    defaults = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    jsonschema.validate(defaults, schema, jsonschema.Draft7Validator)
    free = re.compile(r"\.(limits|requests|labels|annotations)\.|\.metricsFrom")
    missing = {
        one for one in properties(schema, schema) - keys(defaults) if not re.search(r"\.(limits|requests)$", one)
    }
    assert missing == {".global"}
    assert {one for one in keys(defaults) - properties(schema, schema) if not free.search(one)} == set()


def test_values_that_an_earlier_chart_left_are_refused_by_the_name_of_what_is_missing(tmp_path: Path) -> None:
    """`helm upgrade --reuse-values` puts the defaults of the chart that is there in place of the new one's."""
    folder = tmp_path / "gradcam-queue"
    shutil.copytree(CHART, folder)
    defaults = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    for part in (name for name, value in defaults.items() if isinstance(value, dict)):
        earlier = {name: value for name, value in defaults.items() if name != part}
        (folder / "values.yaml").write_text(yaml.safe_dump(earlier), encoding="utf-8")
        with helm_python.Chart.load(folder) as copied, pytest.raises(helm_python.HelmError) as refused:
            copied.render({name: value for name, value in GPU.items() if name != part}, name="demo")
        assert "schema" in str(refused.value)
        assert part in str(refused.value)
    pages = [path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")]
    assert not [page for page in pages if re.search(r"^helm upgrade .*--reuse-values", page, re.MULTILINE)]


def test_a_values_file_is_not_changed_by_rendering() -> None:
    before = copy.deepcopy(VALUES["full"])
    manifests(VALUES["full"])
    assert VALUES["full"] == before
