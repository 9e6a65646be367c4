"""Small real data, prepared once for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("DVC_NO_ANALYTICS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def params():
    """The shipped `params.yaml`, on the 8x8 digits enlarged to 16x16, so that a DCGAN has two levels."""
    from ganlib.config import load_params

    shipped = load_params(ROOT / "params.yaml")
    digits = shipped.datasets["digits"]
    digits = digits.model_copy(update={"sample": digits.sample.model_copy(update={"size": (16, 16)})})
    return shipped.model_copy(update={"data": "digits", "datasets": {**shipped.datasets, "digits": digits}})


@pytest.fixture(scope="session")
def prepared(tmp_path_factory, params) -> Path:
    """The digits as the stage `prepare` writes them."""
    from pipelines.prepare import prepare

    out = tmp_path_factory.mktemp("data") / "prepared"
    prepare(params.dataset, Path("data/raw/digits"), out)
    return out
