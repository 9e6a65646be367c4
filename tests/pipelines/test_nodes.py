"""Training over several nodes of a Ray cluster, each with a raylet of its own, on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from test_reliability import KIMG, SHORT, forget, read_until, reports, run_train

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def project(checkout):
    """A copy of the project, ready for the stage `train`, with what one process made of it."""
    project = checkout("nodes", ready=True)
    project.edit(SHORT | {"scale.num_workers": 0})
    project.run("dvc", "repro", "init", "reference")
    forget(project)
    project.run(sys.executable, "-m", "pipelines.train")
    return project


def losses(project):
    """The discriminator's at each report."""
    rows = (project.folder / "outputs/train/stats.jsonl").read_text().splitlines()
    return [json.loads(row)["loss/discriminator"] for row in rows]


@pytest.fixture(scope="module")
def alone(project):
    return losses(project)


# in a process of its own: Ray reads how it authenticates when it is imported
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
print(cluster.address, flush=True)
for _ in sys.stdin:
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def cluster(project, alone, object_store):
    """Two nodes of one core each for the project, which may write to the object store; a line on stdin kills the
    second."""
    project.env.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="t" * 32)
    project.env.update({name: os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")})
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER], env=project.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    project.env["RAY_ADDRESS"] = process.stdout.readline().strip()
    yield process
    del project.env["RAY_ADDRESS"]
    process.communicate(timeout=60)


@pytest.mark.usefixtures("cluster")
def test_a_cluster_that_is_too_small_is_one_line(project):
    forget(project)
    with project.edited({"scale.num_workers": 4, "scale.wait_seconds": 3}):
        done = run_train(project)
    assert done.returncode == 1
    assert "waiting for a cluster with room for 4 workers" in done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("ganlib: scale.num_workers: 4 workers x 1 CPU asked for, the cluster has 2; lower it")


def test_two_nodes_and_then_one(project, alone, cluster, object_store, start):
    """As many workers as the cluster holds: two, then one, after a node was killed; checkpoints in an object store."""
    forget(project)
    project.edit({"scale.num_workers": [1, 2], "scale.storage": object_store.replace("kept", "nodes")})
    process = start()
    read_until(process, 2)
    cluster.stdin.write("kill\n")
    cluster.stdin.flush()
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert "training goes on from" in output
    assert reports(output)[-1] == pytest.approx(KIMG, abs=0.1)
    # the same batches in the same order, but two sum in another order than one, which training magnifies
    mine = losses(project)
    assert mine[:2] == pytest.approx(alone[:2], rel=2e-3)
    assert mine == pytest.approx(alone, rel=0.15)
