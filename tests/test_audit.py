"""What others know of our dependencies, and what must not lie in the repository."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ACCEPTED: dict[str, str] = {}
"""Vulnerabilities that do not concern this project, by their identifier, with the reason."""

NO_SECRETS = {
    "infra/kuberay/cluster.yaml": "names of Kubernetes' secrets",
    "infra/kuberay/job.yaml": "names of Kubernetes' secrets",
    "infra/kuberay/service.yaml": "names of Kubernetes' secrets",
    "tests/infra/test_kuberay.py": "names of Kubernetes' secrets",
    "tests/pipelines/test_cluster.py": "made up, to see that it is not shown",
    "tests/pipelines/test_doctor.py": "made up, to see that it is not shown",
    "tests/pipelines/test_model_registry.py": "made up, to see that it is not shown",
    "tests/pipelines/test_submit.py": "made up, to see that it is not shown",
    "tests/pipelines/test_tracking.py": "made up, to see that it is not shown",
    "tests/test_audit.py": "made up, to see that it is found",
}
"""Files in which what looks like a secret is none, with the reason."""


def vulnerable(report: dict) -> list[str]:
    """Each known vulnerability of an installed package that is not accepted, as a line."""
    return [
        f"{package['name']} {package['version']}: {found['id']}, fixed in {', '.join(found['fix_versions']) or 'none'}"
        for package in report["dependencies"]
        for found in package.get("vulns", [])
        if ACCEPTED.keys().isdisjoint([found["id"], *found.get("aliases", [])])
    ]


def test_no_installed_package_has_a_known_vulnerability(tmp_path):
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "--local",
        "--progress-spinner",
        "off",
        "--timeout",
        "10",
        "--cache-dir",  # there may be no home folder
        str(tmp_path),
        "-f",
        "json",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if not done.stdout.strip():
        pytest.skip(f"nothing was looked up: {' '.join(done.stderr.split())[-200:]}")
    report = json.loads(done.stdout)
    if not any("vulns" in package for package in report["dependencies"]):
        pytest.skip("nothing was looked up: the index here does not answer for vulnerabilities, as pypi.org does")
    assert vulnerable(report) == []


def test_a_vulnerability_would_be_told():
    found = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.0"]}
    report = {"dependencies": [{"name": "a", "version": "1.0", "vulns": [found]}, {"name": "b", "skip_reason": "own"}]}
    assert vulnerable(report) == ["a 1.0: PYSEC-1, fixed in 2.0"]


def secrets_in(*files: str, cwd: Path) -> set[str]:
    """Files in which something looks like a key, a token or a password; of those that Git tracks, if none are named.
    By no entropy: there are many hashes here."""
    without = ("HexHighEntropyString", "Base64HighEntropyString")
    disabled = [word for plugin in without for word in ("--disable-plugin", plugin)]
    command = [sys.executable, "-m", "detect_secrets", "scan", "--no-verify", *disabled, *files]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=cwd)
    return set(json.loads(done.stdout)["results"])


def test_no_tracked_file_has_a_secret():
    assert secrets_in(cwd=ROOT) - NO_SECRETS.keys() == set()


def test_a_secret_would_be_found(tmp_path):
    (tmp_path / "settings.yaml").write_text("key: AKIA2E0A8F3B244C9986\n")
    (tmp_path / "plain.yaml").write_text("key: 180\n")
    assert secrets_in("settings.yaml", "plain.yaml", cwd=tmp_path) == {"settings.yaml"}
