"""What deploy/ has is read by the tools of those who deploy it. No cluster, container or Grafana runs here."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.tools import DEPLOY, find_helm, find_promtool, run

CHART = DEPLOY / "helm" / "cirrus-search"
KUBERNETES = "1.34"
SETTINGS = {
    "a volume": ["data.claim=models"],
    "object storage": [
        "data.pull.bundle=s3://models/union",
        "data.pull.index=s3://models/index",
        "data.pull.secret=s3",
    ],
    "in process, everything on": [
        *("data.claim=models", "triton=", "ingress.enabled=true", "ingress.tlsSecret=tls", "autoscaling.enabled=true"),
        *("monitoring.enabled=true", "images=s3://photos", "options.CIRRUS_SERVE_RATE=20", "optionsSecret=milvus"),
        "networkPolicy.from[0].namespaceSelector.matchLabels.kind=ingress",
    ],
}


@pytest.fixture(scope="session")
def helm(request: pytest.FixtureRequest) -> str:
    return find_helm(request.config.cache.mkdir("helm"))


def rendered(helm: str, settings: list[str]) -> list[dict[str, Any]]:
    options = [part for setting in settings for part in ("--set", setting)]
    text = run(helm, "template", "shop", CHART, *options)
    return [document for document in yaml.safe_load_all(text) if document]


@pytest.mark.network
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_chart_makes_what_kubernetes_takes(helm: str, settings: list[str]) -> None:
    import kubernetes_validate

    run(helm, "lint", "--strict", CHART, "--set", ",".join(settings))
    documents = rendered(helm, settings)
    kinds = [document["kind"] for document in documents]
    assert {"Deployment", "Service", "ServiceAccount", "PodDisruptionBudget", "NetworkPolicy"} <= set(kinds)
    for document in documents:
        if not document["apiVersion"].startswith("monitoring.coreos.com/"):
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
        if document["kind"] == "PrometheusRule":
            assert document["spec"] == yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())


@pytest.mark.network
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_no_container_is_root_or_writes_or_is_without_limits(helm: str, settings: list[str]) -> None:
    (deployment,) = (document for document in rendered(helm, settings) if document["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert not pod["automountServiceAccountToken"]
    (search,) = pod["containers"]
    assert {probe for probe in search if probe.endswith("Probe")} == {"startupProbe", "livenessProbe", "readinessProbe"}
    for container in (search, *pod.get("initContainers", ())):
        locked = container["securityContext"]
        assert locked["readOnlyRootFilesystem"]
        assert not locked["allowPrivilegeEscalation"]
        assert locked["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]
    assert search["lifecycle"]["preStop"], "a pod that ends is sent requests until every node knows"
    mounted = {mount["name"]: mount for mount in search["volumeMounts"]}
    assert mounted["data"]["readOnly"]


@pytest.mark.network
def test_every_option_that_the_chart_sets_is_one_of_the_service(helm: str) -> None:
    from cirrus_client.cli.app import app

    taken = options_of(app, "serve")
    for settings in SETTINGS.values():
        (deployment,) = (document for document in rendered(helm, settings) if document["kind"] == "Deployment")
        (search,) = deployment["spec"]["template"]["spec"]["containers"]
        names = {variable["name"] for variable in search["env"]}
        assert names - {"FORWARDED_ALLOW_IPS"} <= taken, names - taken  # which is uvicorn's own
        assert ("FORWARDED_ALLOW_IPS" in names) == ("ingress.enabled=true" in settings)


@pytest.mark.network
@pytest.mark.parametrize(("settings", "expected"), [([], True), (["replicas=1"], False)])
def test_one_pod_alone_does_not_keep_its_node_from_being_drained(helm, settings: list[str], expected: bool) -> None:
    kinds = [document["kind"] for document in rendered(helm, [*SETTINGS["a volume"], *settings])]
    assert ("PodDisruptionBudget" in kinds) is expected


@pytest.mark.network
def test_a_token_of_milvus_comes_from_a_secret(helm: str) -> None:
    settings = SETTINGS["in process, everything on"]
    (deployment,) = (document for document in rendered(helm, settings) if document["kind"] == "Deployment")
    (search,) = deployment["spec"]["template"]["spec"]["containers"]
    assert search["envFrom"] == [{"secretRef": {"name": "milvus"}}]


@pytest.mark.network
def test_numbers_of_a_values_file_are_given_as_they_are_written(helm: str, tmp_path: Path) -> None:
    """Helm reads them as floats, and prints large ones as 6.7108864e+07."""
    values = {"MAX_BODY_BYTES": 67108864, "RATE": 0.5, "WARM": True, "API_KEYS": "007"}
    options = {f"CIRRUS_SERVE_{name}": value for name, value in values.items()}
    (tmp_path / "values.yaml").write_text(yaml.safe_dump({"data": {"claim": "models"}, "options": options}))
    text = run(helm, "template", "shop", CHART, "--values", tmp_path / "values.yaml")
    (deployment,) = (document for document in yaml.safe_load_all(text) if document["kind"] == "Deployment")
    (search,) = deployment["spec"]["template"]["spec"]["containers"]
    given = {variable["name"].removeprefix("CIRRUS_SERVE_"): variable["value"] for variable in search["env"]}
    assert {name: given[name] for name in values} == {
        "MAX_BODY_BYTES": "67108864",
        "RATE": "0.5",
        "WARM": "true",
        "API_KEYS": "007",
    }


@pytest.mark.network
def test_an_ingress_that_the_network_policy_keeps_out_is_refused(helm: str) -> None:
    chart = [helm, "template", "shop", str(CHART), "--set", "data.claim=models", "--set", "ingress.enabled=true"]
    done = subprocess.run(chart, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "networkPolicy.from" in done.stderr
    assert "kind: Ingress" in run(*chart, "--set", "networkPolicy.enabled=false")


@pytest.mark.network
def test_without_data_the_chart_says_what_is_missing(helm: str) -> None:
    done = subprocess.run([helm, "template", "shop", str(CHART)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "/data/claim" in done.stderr


def options_of(app: Any, verb: str) -> set[str]:
    import typer.main

    command = typer.main.get_command(app)
    parameters = command.get_command(None, verb).params  # type: ignore[attr-defined]
    return {f"CIRRUS_{verb.upper()}_{parameter.name.upper()}" for parameter in parameters}


def test_images_and_compose_set_options_that_there_are() -> None:
    from cirrus_client.cli.app import app

    texts = [path.read_text() for path in (DEPLOY / "compose.yaml", *sorted((DEPLOY / "docker").iterdir()))]
    found = {name for text in texts for name in re.findall(r"CIRRUS_SERVE_\w+", text)}
    assert {"CIRRUS_SERVE_TRITON", "CIRRUS_SERVE_API_KEYS_FILE", "CIRRUS_SERVE_INDEX"} <= found
    assert found <= options_of(app, "serve"), found - options_of(app, "serve")


def test_compose_files_are_of_the_compose_specification() -> None:
    files = sorted(DEPLOY.glob("compose*.yaml"))
    assert len(files) == 2
    run(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", *files)


def test_dockerfiles_are_linted() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    for path in sorted((DEPLOY / "docker").iterdir()):
        assert run(hadolint, path) == ""


def test_alerts_fire_when_they_should(tmp_path: Path) -> None:
    promtool = find_promtool()
    folder = DEPLOY / "prometheus"
    run(promtool, "check", "rules", folder / "alerts.yml")
    run(promtool, "test", "rules", folder / "alerts_test.yml")
    run(promtool, "check", "config", "--syntax-only", folder / "prometheus.yml")


def test_the_values_for_tritons_chart_name_what_it_has() -> None:
    """The keys of deploy/k8s-onprem/values.yaml and of its deployment, in triton-inference-server/server."""
    values = yaml.safe_load((DEPLOY / "helm" / "triton-values.yaml").read_text())
    assert set(values) <= {
        *("tags", "image", "serverArgs", "traefik", "autoscaling", "prometheus-adapter"),
        *("volumes", "volumeMounts", "envFrom", "resources"),
    }
    assert {volume["name"] for volume in values["volumes"]} == {mount["name"] for mount in values["volumeMounts"]}
    assert "/dev/shm" in {mount["mountPath"] for mount in values["volumeMounts"]}
