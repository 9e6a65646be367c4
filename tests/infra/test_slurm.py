"""The batch script of Slurm, run with stand-ins for Slurm's programs and Ray's."""

from __future__ import annotations

import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "infra/slurm/ganlib.sbatch"

# srun runs what follows its options, as the one task of this node; ray runs the command after `--`.
STANDINS = {
    "srun": 'echo "srun $*" >>"$LOG"; while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "ray": 'echo "ray $*" >>"$LOG"; cp --preserve=mode "$RAY_AUTH_TOKEN_PATH" "$LOG.token"\n'
    'stat --format %a "$(dirname "$RAY_AUTH_TOKEN_PATH")" >"$LOG.mode"; env >"$LOG.env"\n'
    '[[ -z ${NO_RAY:-} ]] || exit 0; while [[ $1 != -- ]]; do shift; done; shift; "$@"',
    "scontrol": 'echo "scontrol $*" >>"$LOG"',
    "squeue": 'echo "${STATE:-RUNNING}"',
    "getent": 'echo "${IP:-10.1.2.3} STREAM node"',
}


class Job:
    """A folder, and the batch script in it with stand-ins first on the PATH."""

    def __init__(self, folder: Path):
        self.folder, self.log, self.number = folder, folder / "log", "4711"
        for name, body in STANDINS.items():
            file = folder / "bin" / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(f"#!/usr/bin/env bash\n{body}\n")
            file.chmod(0o755)
        self.env = {
            "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
            "LOG": str(self.log),
            "SLURM_JOB_ID": self.number,
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_CPUS_ON_NODE": "8",
            "SLURM_SUBMIT_DIR": str(folder),
        }
        self.state = folder / ".ganlib/slurm" / self.number

    def start(self, *command: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", SCRIPT, *command],
            cwd=self.folder,
            env=self.env | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *command: str, **env: str) -> tuple[int, str]:
        process = self.start(*command, **env)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    def called(self, program: str) -> list[str]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if line.startswith(f"{program} ")]


@pytest.fixture
def job(tmp_path):
    return Job(tmp_path)


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 30
    while not file.exists():
        assert time.monotonic() < deadline, f"{file} was not made"
        time.sleep(0.05)


def test_the_command_runs_and_its_status_counts(job):
    status, _ = job.run("bash", "-c", 'echo "$RAY_ADDRESS" >address; exit 7')
    assert status == 7
    assert (job.folder / "address").read_text() == "10.1.2.3:24711\n"
    [ray] = job.called("ray")
    assert ray.startswith("ray symmetric-run --address 10.1.2.3:24711 --min-nodes 2 --num-cpus 8 ")
    [srun] = job.called("srun")
    assert "--nodes=2 --ntasks=2 --ntasks-per-node=1 --cpus-per-task=8" in srun
    assert job.called("scontrol") == []


def test_dvc_repro_is_the_default(job):
    (job.folder / "bin/dvc").write_text('#!/usr/bin/env bash\necho "$*" >dvc-called\n')
    (job.folder / "bin/dvc").chmod(0o755)
    assert job.run()[0] == 0
    assert (job.folder / "dvc-called").read_text() == "repro\n"


def test_every_job_has_a_token_of_its_own(job):
    tokens = []
    for number in ("1", "2"):
        assert job.run("true", SLURM_JOB_ID=number)[0] == 0
        token, folder = Path(f"{job.log}.token"), job.folder / ".ganlib/slurm" / number
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        assert Path(f"{job.log}.mode").read_text() == "700\n"
        seen = dict(line.split("=", 1) for line in Path(f"{job.log}.env").read_text().splitlines() if "=" in line)
        assert seen["RAY_AUTH_MODE"] == "token"
        assert seen["RAY_AUTH_TOKEN_PATH"] == str(folder / "token")
        assert not folder.exists(), "the token outlives its job"
        tokens.append(token.read_text())
    assert len(set(tokens)) == 2
    assert all(len(token) == 64 for token in tokens)


GRACEFUL = 'trap "echo stopped >stopped; exit 3" TERM; touch started; while :; do sleep 0.1; done'


def test_the_signal_reaches_the_command_and_the_job_is_requeued(job):
    process = job.start("bash", "-c", GRACEFUL)
    wait_for(job.folder / "started")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert (job.folder / "stopped").read_text() == "stopped\n"
    assert job.called("scontrol") == ["scontrol requeue 4711"]
    assert process.returncode == 0, output


def test_a_requeued_job_forgets_its_last_start(job):
    job.state.mkdir(parents=True)
    (job.state / "status").write_text("0\n")
    assert job.run("true", NO_RAY="1")[0] == 1


def test_a_cancelled_job_is_not_requeued(job):
    process = job.start("bash", "-c", GRACEFUL, STATE="COMPLETING")
    wait_for(job.folder / "started")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 3, output
    assert job.called("scontrol") == []


def test_a_command_that_ends_well_in_spite_of_the_signal_is_not_requeued(job):
    process = job.start("bash", "-c", "trap : TERM; touch started; sleep 2; exit 0")
    wait_for(job.folder / "started")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert job.called("scontrol") == []


def test_a_failure_is_not_requeued(job):
    assert job.run("false")[0] == 1
    assert job.called("scontrol") == []


def test_ray_that_does_not_start_is_a_failure(job):
    status, output = job.run("true", NO_RAY="1")
    assert status == 1
    assert "Ray did not start the command" in output


def test_a_node_without_an_address_is_said(job):
    status, output = job.run("true", IP="127.0.1.1")
    assert status == 1
    assert "has no IPv4 address" in output
    assert job.called("srun") == []


def test_what_slurm_reads():
    lines = SCRIPT.read_text().splitlines()
    asked = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    assert {"--requeue", "--signal=B:TERM@120", "--open-mode=append"} <= set(asked)
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(i < first_command for i, line in enumerate(lines) if line.startswith("#SBATCH")), (
        "Slurm reads no further"
    )
