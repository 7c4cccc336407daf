"""The Helm chart, rendered by Helm's own engine, and Kubernetes' and other operators' schemas for what comes of it."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import helm_python
import jsonschema
import kubernetes_validate
import yaml

ROOT: Final = Path(__file__).parents[2]
CHART: Final = ROOT / "deploy/helm/gradcam-queue"
#: Values files of the chart, by their names.
VALUES: Final = {
    path.name.removesuffix("-values.yaml"): yaml.safe_load(path.read_text(encoding="utf-8"))
    for path in sorted((CHART / "ci").glob("*-values.yaml"))
}
#: The oldest and the newest Kubernetes that the chart is for and whose schemas are here.
VERSIONS: Final = ("1.27", kubernetes_validate.latest_version())
#: Kinds of operators, whose schemas we wrote down.
SCHEMAS: Final = {
    str(schema["properties"]["kind"]["const"]): schema
    for schema in (
        json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "tests/schemas").glob("*.json"))
    )
}

Manifest = dict[str, Any]
#: The safe one in C, where PyYAML was built with it: a tenth of the time.
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# It reads a megabyte of definitions for each manifest.
kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)


def merged(*values: Mapping[str, Any]) -> dict[str, Any]:
    """Lay values over each other, as several `--values` do."""
    made: dict[str, Any] = {}
    for one in values:
        _merge(made, one)
    return made


def _merge(into: dict[str, Any], what: Mapping[str, Any]) -> None:
    for name, value in what.items():
        if isinstance(value, Mapping) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = copy.deepcopy(value)


@functools.cache
def chart() -> helm_python.Chart:
    """The chart, loaded once."""
    return helm_python.Chart.load(CHART)


def files(values: Mapping[str, Any], name: str = "demo") -> dict[str, str]:
    """Render every template: file → text. Raises HelmError where values are refused."""
    return _rendered(json.dumps(values), name)


@functools.cache
def _rendered(values: str, name: str) -> dict[str, str]:
    return chart().render(json.loads(values), name=name, namespace="vision", revision=1, is_install=True)


def manifests(values: Mapping[str, Any], name: str = "demo") -> list[Manifest]:
    """Render what would be applied."""
    texts = [text for file, text in files(values, name).items() if not file.endswith(".txt")]
    return [document for text in texts for document in yaml.load_all(text, Loader=_LOADER) if document]


def find(rendered: list[Manifest], kind: str, component: str) -> Manifest:
    """Return the one manifest of a kind whose name ends so."""
    [found] = [one for one in rendered if one["kind"] == kind and one["metadata"]["name"].endswith(component)]
    return found


def pods_of(rendered: list[Manifest]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the pod's `spec` of everything that makes pods."""
    for one in rendered:
        if one["kind"] in {"Deployment", "StatefulSet", "Job"}:
            yield one["metadata"]["name"], one["spec"]["template"]["spec"]


def validate(manifest: Manifest, version: str) -> None:
    """Hold a manifest against its schema. Raises jsonschema.ValidationError."""
    if manifest["kind"] in SCHEMAS:
        jsonschema.validate(manifest, SCHEMAS[manifest["kind"]], jsonschema.Draft202012Validator)
    else:
        kubernetes_validate.validate(manifest, version, strict=True)
