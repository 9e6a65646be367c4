"""The files of Ray's cluster launcher, and the script that has a cluster's autoscaler bring GPUs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import botocore.session
import jsonschema
import psutil
import pytest
import ray.autoscaler
from botocore.validate import ParamValidator

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "infra/ray/with_gpus.py"


@pytest.fixture(params=["aws", "gcp"])
def cluster(request, load):
    return load(f"ray/{request.param}.yaml")


def test_ray_s_schema_accepts(cluster):
    schema = json.loads(Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout"):
        jsonschema.validate(cluster | {"idle_timeout": 1}, schema)


def test_aws_accepts_the_machines(load):
    run_instances = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances")
    for node in load("ray/aws.yaml")["available_node_types"].values():
        request = node["node_config"] | {"MinCount": 1, "MaxCount": 1}
        assert not ParamValidator().validate(request, run_instances.input_shape).has_errors()
        wrong = ParamValidator().validate(request | {"InstanceTypo": "x"}, run_instances.input_shape)
        assert "InstanceTypo" in wrong.generate_report()


def test_only_the_head_stays_and_does_no_work(cluster):
    types = cluster["available_node_types"]
    assert cluster["head_node_type"] == "head"
    assert types["head"]["resources"] == {"CPU": 0, "GPU": 0}
    assert types["gpu"]["min_workers"] == 0 < types["gpu"]["max_workers"] <= cluster["max_workers"]
    head = " ".join(cluster["head_start_ray_commands"])
    assert "--num-cpus=0" in head
    assert "--dashboard-host=127.0.0.1" in head


def test_all_nodes_share_a_folder_and_a_token(cluster):
    options = cluster["docker"]["run_options"]
    assert "--volume /mnt/ganlib:/shared" in options
    assert any("/mnt/ganlib" in command and "mount -t nfs" in command for command in cluster["initialization_commands"])
    [folder] = cluster["file_mounts"]
    assert f"--env RAY_AUTH_TOKEN_PATH={folder}/auth_token" in options


def test_no_secret_is_in_a_file(cluster):
    text = json.dumps(cluster).lower()
    assert not [word for word in ("password=", "secret_access_key", "auth_token=", "@mlflow") if word in text]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def head():
    """The environment of a process beside a Ray head of one core and one GPU, on ports and in a folder of its own."""
    port = free_port()
    # a short path, as those of Ray's sockets have at most 107 characters
    folder = Path(tempfile.mkdtemp(prefix="ganlib-", dir="/tmp"))
    env = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 32, "RAY_USAGE_STATS_ENABLED": "0"}
    ray_program = Path(sys.executable).with_name("ray")
    ports = ("port", "ray-client-server-port", "dashboard-agent-listen-port")
    process = subprocess.Popen(
        [ray_program, "start", "--head", "--block", "--num-cpus=1", "--num-gpus=1", "--include-dashboard=false"]
        + [f"--temp-dir={folder}", "--object-store-memory=80000000"]
        + [f"--{name}={port if name == 'port' else free_port()}" for name in ports],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        check = [ray_program, "health-check", "--address", f"127.0.0.1:{port}"]
        while subprocess.run(check, env=env, capture_output=True).returncode != 0:
            assert process.poll() is None, "Ray did not start"
            assert time.monotonic() < deadline, "Ray was not up after 120 s"
        yield env | {"RAY_ADDRESS": f"127.0.0.1:{port}"}
    finally:
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for child in psutil.wait_procs(children, 10)[1]:
            child.kill()
        shutil.rmtree(folder, ignore_errors=True)


def with_gpus(*arguments, env):
    return subprocess.run([sys.executable, SCRIPT, *arguments], env=env, capture_output=True, text=True)


@pytest.mark.pipeline
def test_the_command_runs_when_the_gpus_are_there(head):
    done = with_gpus("1", "--", sys.executable, "-c", "print('ran'); raise SystemExit(7)", env=head)
    assert (done.returncode, done.stdout) == (7, "ran\n"), done.stderr


@pytest.mark.pipeline
def test_gpus_that_do_not_come_are_said(head):
    done = with_gpus("--timeout", "2", "3", "--", "touch", "never", env=head)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "with_gpus: 1 of 3 GPUs after 2 s; see `ray status`"
    assert not Path("never").exists()


@pytest.mark.pipeline
def test_a_wrong_token_is_said(head):
    done = with_gpus("1", "--", "touch", "never", env=head | {"RAY_AUTH_TOKEN": "1" * 32})
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"with_gpus: no Ray cluster at {head['RAY_ADDRESS']}: "), done.stderr


@pytest.mark.pipeline
def test_the_signal_reaches_the_command(head, tmp_path):
    started = tmp_path / "started"
    command = ["bash", "-c", f"trap 'exit 5' TERM; touch {started}; while :; do sleep 0.1; done"]
    process = subprocess.Popen([sys.executable, SCRIPT, "1", "--", *command], env=head)
    deadline = time.monotonic() + 60
    while not started.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 5


def test_what_is_no_cluster_or_no_number_is_said():
    address = f"127.0.0.1:{free_port()}"
    env = os.environ | {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"}
    nobody = with_gpus("1", "--", "true", env=env)
    assert nobody.returncode == 1
    assert nobody.stderr == f"with_gpus: no Ray cluster at {address}: [Errno 111] Connection refused\n"
    none = with_gpus("0", "--", "true", env=env)
    assert none.returncode == 2
    assert "gpus: 0; at least 1 expected" in none.stderr
