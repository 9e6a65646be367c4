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
    """The shipped `params.yaml`, on the 8x8 digits."""
    from ganlib.config import load_params

    return load_params(ROOT / "params.yaml").model_copy(update={"data": "digits"})


@pytest.fixture(scope="session")
def prepared(tmp_path_factory, params) -> Path:
    """The 8x8 digits as the stage `prepare` writes them."""
    from pipelines.prepare import prepare

    out = tmp_path_factory.mktemp("data") / "prepared"
    prepare(params.dataset, Path("data/raw/digits"), out)
    return out
