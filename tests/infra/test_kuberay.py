"""The Kubernetes files against KubeRay's own schemas, strictly, and against what this project promises of them."""

from __future__ import annotations

import copy
import gzip
import importlib
import inspect
import json
from itertools import chain
from pathlib import Path

import pytest
import ray
from jsonschema import Draft202012Validator
from ray.serve.schema import ServeDeploySchema
from ruamel.yaml import YAML
from vendor_kuberay import FILE

from pipelines.serve.settings import TOKEN, Settings

ROOT = Path(__file__).parents[2]
FILES = {
    "RayCluster": "kuberay/cluster.yaml",
    "RayJob": "kuberay/job.yaml",
    "RayService": "kuberay/service.yaml",
}


def strict(schema):
    """A schema of Kubernetes as one of JSON that refuses unknown keys, as `kubectl --validate=strict` does."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items() if key not in ("properties", "format", "default")}
    if "properties" in schema:
        made["properties"] = {key: strict(value) for key, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
    if schema.get("nullable"):
        return {"anyOf": [made, {"type": "null"}]}
    return made


@pytest.fixture(scope="module")
def errors():
    """`errors(manifest)`: what KubeRay's schema finds wrong with it."""
    schemas = json.loads(gzip.decompress(FILE.read_bytes()))
    validators = {kind: Draft202012Validator(strict(schema)) for kind, schema in schemas.items()}
    return lambda manifest: [
        f"{error.json_path}: {error.message}" for error in validators[manifest["kind"]].iter_errors(manifest)
    ]


@pytest.fixture(params=sorted(FILES))
def manifest(request, load):
    return load(FILES[request.param])


def cluster_spec(manifest):
    spec = manifest["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def groups(manifest):
    spec = cluster_spec(manifest)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def containers(manifest):
    return chain.from_iterable(group["template"]["spec"]["containers"] for group in groups(manifest))


def test_the_schema_accepts(manifest, errors):
    assert errors(manifest) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "headGroupSpec", "rayStartParam"), {}),
        (("spec", "headGroupSpec", "rayStartParams"), {"num-cpus": 0}),
        (("spec", "workerGroupSpecs", 0, "replicas"), "1"),
        (("spec", "workerGroupSpecs", 1, "template", "spec", "containers", 0, "imagee"), "x"),
        (("spec", "workerGroupSpecs", 1, "template", "spec", "containers", 0, "livenessProbe", "httpGet", "prt"), 1),
        (("spec", "autoscalerOptions", "version"), "v3"),
        (("spec", "authOptions", "mode"), "password"),
    ],
)
def test_the_schema_refuses(path, value, load, errors):
    manifest = copy.deepcopy(load(FILES["RayCluster"]))
    *parents, last = path
    place = manifest
    for key in parents:
        place = place[key]
    place[last] = value
    assert errors(manifest), f"{path} = {value!r} was accepted"


def test_job_and_cluster_have_one_spec(load):
    assert load(FILES["RayJob"])["spec"]["rayClusterSpec"] == load(FILES["RayCluster"])["spec"]


def test_the_head_does_no_work(manifest):
    assert cluster_spec(manifest)["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_gpus_come_and_go(kind, load):
    manifest = load(FILES[kind])
    assert cluster_spec(manifest)["enableInTreeAutoscaling"] is True
    [gpu] = [group for group in groups(manifest) if group.get("groupName") == "gpu"]
    assert gpu["minReplicas"] < gpu["maxReplicas"]
    assert gpu["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_ray_is_the_image_s(manifest):
    assert cluster_spec(manifest)["rayVersion"] == ray.__version__


def test_the_job_s_process_finds_its_place(load):
    job = load(FILES["RayJob"])
    [wanted] = json.loads(job["spec"]["entrypointResources"])
    offered = [group for group in groups(job) if wanted in group.get("resources", {})]
    assert [group["groupName"] for group in offered] == ["driver"]
    assert offered[0]["minReplicas"] >= 1
    script = next(word for word in job["spec"]["entrypoint"].split() if word.endswith(".py"))
    assert (ROOT / script).is_file()
    assert job["spec"]["backoffLimit"] > 0


def test_ray_serve_takes_the_service(load):
    """Its schema, the builder that it names, the settings, and cores for each replica; a secret holds the token."""
    service = load(FILES["RayService"])
    described = ServeDeploySchema.model_validate(YAML(typ="safe").load(service["spec"]["serveConfigV2"]))
    [application] = described.applications
    module, _, name = application.import_path.partition(":")
    builder = getattr(importlib.import_module(module), name)
    [argument] = inspect.signature(builder).parameters.values()
    settings = argument.annotation(**application.args)
    assert isinstance(settings, Settings)
    [group] = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    [container] = group["template"]["spec"]["containers"]
    assert {"containerPort": described.http_options.port, "name": "serve"} in container["ports"]
    assert settings.replicas * settings.cpus <= group["replicas"] * int(container["resources"]["limits"]["cpu"])
    assert settings.hosts == ("*",)
    for one in containers(service):
        [token] = [variable for variable in one["env"] if variable["name"] == TOKEN]
        assert token["valueFrom"]["secretKeyRef"]["name"] == "ganlib-api"


def test_containers_are_locked_down(manifest):
    for group in groups(manifest):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers(manifest):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }


def test_containers_are_bounded_and_watched(manifest):
    for container in containers(manifest):
        resources = container["resources"]
        assert resources["requests"] == resources["limits"]
        assert {"cpu", "memory"} <= resources["limits"].keys()
        serves = any(port["name"] == "serve" for port in container.get("ports", ()))
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            of_serve = serves and probe == "readinessProbe"
            expected = {"path": "/-/healthz", "port": 8000} if of_serve else {"path": "/api/healthz", "port": 52365}
            assert container[probe]["httpGet"] == expected


def test_secrets_are_references(manifest):
    assert cluster_spec(manifest)["authOptions"] == {"mode": "token", "secretName": "ganlib-ray"}
    for container in containers(manifest):
        for variable in container["env"]:
            assert variable.keys() == {"name", "valueFrom"}
            assert variable["valueFrom"].keys() == {"secretKeyRef"}


def test_every_node_has_the_shared_folder(manifest, load):
    claim = load("kuberay/storage.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for group in groups(manifest):
        pod = group["template"]["spec"]
        [volume] = [one for one in pod["volumes"] if "persistentVolumeClaim" in one]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        for container in pod["containers"]:
            assert {"name": volume["name"], "mountPath": "/shared"} in container["volumeMounts"]
