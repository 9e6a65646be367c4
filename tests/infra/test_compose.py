"""The Compose file, as Docker Compose itself reads it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

COMPOSE = Path(__file__).parents[2] / "infra/compose"
SECRETS = ("POSTGRES_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY", "RAY_AUTH_TOKEN")


@pytest.fixture(scope="module")
def config(tool):
    """`config(**variables)`: the finished process of `docker compose config`, which says what would run, as JSON."""

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [tool("docker-compose"), *arguments, "--profile", "gpu", "config", "--format", "json"]
        clean = {key: value for key, value in os.environ.items() if key not in SECRETS}
        return subprocess.run(command, cwd=COMPOSE, env=clean | variables, capture_output=True, text=True)

    return run


@pytest.fixture(scope="module")
def services(config):
    done = config("--env-file", os.devnull, **{name: f"secret-{name}" for name in SECRETS})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["services"]


def test_all_that_is_needed_is_there(services):
    assert services.keys() == {"postgres", "s3", "bucket", "mlflow", "head", "worker", "gpu-worker"}


@pytest.mark.parametrize("missing", SECRETS)
def test_a_missing_secret_is_named(missing, config):
    done = config("--env-file", os.devnull, **{name: "x" for name in SECRETS if name != missing})
    assert done.returncode != 0
    assert f"{missing} is missing a value: not set; see infra/compose/.env.example" in done.stderr


def test_the_example_works_for_nobody(config):
    assert config("--env-file", ".env.example").returncode != 0
    lines = [line for line in (COMPOSE / ".env.example").read_text().splitlines() if "=" in line and line[0] != "#"]
    example = dict(line.split("=", 1) for line in lines)
    assert {name: example[name] for name in SECRETS} == dict.fromkeys(SECRETS, "")


def test_git_ignores_the_secrets():
    assert subprocess.run(["git", "check-ignore", "--quiet", COMPOSE / ".env"], cwd=COMPOSE).returncode == 0


def test_no_secret_is_in_the_file_or_a_command(services):
    assert not re.search(r"(PASSWORD|SECRET|TOKEN)\w*: [^$]", (COMPOSE / "compose.yaml").read_text())
    for name, service in services.items():
        assert "secret-" not in json.dumps([service.get("command"), service.get("healthcheck")]), name


def test_only_who_needs_a_secret_has_it(services):
    holders = {
        secret: {name for name, service in services.items() if f"secret-{secret}" in json.dumps(service)}
        for secret in SECRETS
    }
    assert holders == {
        "POSTGRES_PASSWORD": {"postgres", "mlflow"},
        "S3_ACCESS_KEY": {"s3", "bucket", "mlflow"},
        "S3_SECRET_KEY": {"s3", "bucket", "mlflow"},
        "RAY_AUTH_TOKEN": {"head", "worker", "gpu-worker"},
    }


def test_ports_are_published_on_loopback(services):
    published = {
        (name, port["target"], port.get("host_ip"))
        for name, service in services.items()
        for port in service.get("ports", [])
    }
    assert published == {("mlflow", 5000, "127.0.0.1"), ("head", 8265, "127.0.0.1")}


def test_containers_cannot_gain_rights(services):
    for name, service in services.items():
        assert service["security_opt"] == ["no-new-privileges:true"], name
        # PostgreSQL's image starts as root and changes the owner of its folder
        assert service.get("cap_drop") == (None if name == "postgres" else ["ALL"]), name
        assert not service.get("privileged"), name


def test_images_are_pinned(services):
    for name, service in services.items():
        image, _, tag = service["image"].rpartition(":")
        assert image, f"{name}: {service['image']} has no tag"
        assert tag != "latest", name


def test_starts_in_order(services):
    conditions = {
        name: {other: depends["condition"] for other, depends in service.get("depends_on", {}).items()}
        for name, service in services.items()
    }
    healthy = "service_healthy"
    assert conditions["bucket"] == {"s3": healthy}
    assert conditions["mlflow"] == {"postgres": healthy, "bucket": "service_completed_successfully"}
    assert conditions["head"] == {"mlflow": healthy}
    assert conditions["worker"] == conditions["gpu-worker"] == {"head": healthy}


def test_the_head_does_no_work(services):
    assert "--num-cpus=0" in services["head"]["command"]
