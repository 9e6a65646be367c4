"""Small real data, prepared once for all tests, and copies of the whole project."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from params_files import edit_params, params_file

os.environ.setdefault("DVC_NO_ANALYTICS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
if "PYTEST_XDIST_WORKER" in os.environ:  # tests side by side: threads that outnumber the cores wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pipelines.cluster  # noqa: F401  before Ray, which reads at once how it authenticates

ROOT = Path(__file__).parent.parent


LONGEST = (
    "test_pipeline.py",
    "test_reliability.py",
    "test_submit.py",
    "test_killed_search.py",
    "test_nodes.py",
    "test_own_images.py",
    "test_mlflow_server.py",
)
"""files that take minutes as a whole: they start first, so that no process is left with one of them at the end"""


def pytest_collection_modifyitems(items):
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


@pytest.fixture(scope="session")
def params():
    """The shipped `params.yaml` with a budget, on the 8x8 digits enlarged to 16x16, so that a DCGAN has two levels."""
    from ganlib.config import load_params

    shipped = load_params(ROOT / "params.yaml")
    digits = shipped.datasets["digits"]
    digits = digits.model_copy(update={"sample": digits.sample.model_copy(update={"resolution": (16, 16)})})
    train = shipped.train.model_copy(update={"kimg": digits.budget.kimg})  # as the stages resolve `auto`
    datasets = {**shipped.datasets, "digits": digits}
    return shipped.model_copy(update={"data": "digits", "datasets": datasets, "train": train})


@pytest.fixture(scope="session")
def prepared(tmp_path_factory, params) -> Path:
    """The digits as the stage `prepare` writes them."""
    from pipelines.prepare import prepare

    out = tmp_path_factory.mktemp("data") / "prepared"
    prepare(params.dataset, Path("data/raw/digits"), out)
    return out


@pytest.fixture(scope="session")
def pairs(tmp_path_factory, params) -> tuple[Any, Path]:
    """The digits paired with their outlines, at 32x32: `(parameters that name them, prepared folder)`."""
    import numpy as np
    from PIL import Image, ImageFilter
    from sklearn.datasets import load_digits

    from ganlib.config import parse_params
    from pipelines.prepare import prepare

    raw, out = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("pairs") / "prepared"
    for i, digit in enumerate(load_digits().images[:120]):
        image = Image.fromarray(np.uint8(digit * 15)).resize((32, 32))
        both = Image.new("L", (64, 32))
        both.paste(image.filter(ImageFilter.FIND_EDGES), (0, 0))
        both.paste(image, (32, 0))
        both.save(raw / f"{i}.png")
    section = params.datasets["pairs"].model_dump(mode="json")
    section["sample"] |= {"resolution": [32, 32], "channels": [1, 1]}
    plain = params.model_dump(mode="json")
    plain["datasets"]["pairs"] = section | {"test_share": 0.3}
    of_pairs = parse_params(plain | {"data": "pairs"})
    prepare(of_pairs.dataset, raw, out)
    return of_pairs, out


@pytest.fixture
def small(params, pairs):
    """A budget of 12 steps in float32, no fits, reported every 4th; small networks, on data that suit the family."""
    from ganlib import registry
    from ganlib.config import override

    def make(family="mlp", *, changes=(), **train_changes):
        of_family = pairs[0] if "image_pair" in registry.modalities(registry.load("models", family)) else params
        budget = {"kimg": 0.384, "report_kimg": 0.128, "checkpoint_kimg": 0.128, "amp": False} | train_changes
        of_train = params.train.model_copy(update={"quality_samples": 0, **budget})
        chosen = of_family.model_copy(update={"model": family, "train": of_train})
        known = chosen.game.network.model_dump()
        tiny = {
            "width": 8,
            "discriminator_width": 8,
            "max_width": 32,
            "latent_dim": 20,
            "patch_levels": 2,
            "group": 2,
            "blocks": 1,
            "layers": [0, 2, 4],
            "patches": 16,
            "units": 16,
        }
        overrides = {f"network.{k}": v for k, v in tiny.items() if k in known} | {"batch": 32}
        return override(chosen, overrides | {f"fits.{name}.kimg": 0 for name in chosen.game.fits} | dict(changes))

    return make


@pytest.fixture
def data_of(prepared, pairs, tmp_path_factory):
    """The prepared folder for a family."""
    from specs import kind_of, tiny_folder
    from zoo import spec_of

    from ganlib import registry

    def folder(family):
        modality = registry.modalities(registry.load("models", family))[0]
        if modality in ("image", "image_pair"):
            return prepared if modality == "image" else pairs[1]
        out = tmp_path_factory.mktemp(modality) / "prepared"
        return tiny_folder(kind_of(modality), out, spec_of(family).attributes)

    return folder


@pytest.fixture(scope="session")
def object_store():
    """The address of an empty bucket: `moto`, a stand-in for Amazon's S3 that speaks its protocol, on loopback."""
    import logging

    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "tests")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "tests")
        server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1").create_bucket(Bucket="runs")
        yield f"s3://runs/kept?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
        server.stop()


@dataclass(frozen=True)
class Checkout:
    """A copy of the project as it is now, in a git repository of its own: what a person who cloned it has."""

    folder: Path
    env: dict[str, str]

    def run(self, *command: str) -> str:
        """What the command printed, stderr included; an error, with all of it, unless it succeeds."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert done.returncode == 0, f"{command} exited with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def edit(self, changes: dict[str, Any]) -> None:
        """Change `KEY` of params.yaml or `FILE:KEY` as a person would: comments stay."""
        edit_params(self.folder, changes)

    @contextmanager
    def edited(self, changes: dict[str, Any]) -> Iterator[None]:
        """The same, taken back at the end."""
        before = {file: file.read_bytes() for file in (params_file(self.folder, key) for key in changes)}
        self.edit(changes)
        try:
            yield
        finally:
            for file, content in before.items():
                file.write_bytes(content)


@pytest.fixture(scope="session")
def checkout(tmp_path_factory):
    """`checkout(name)` makes a Checkout; with `ready=True` its commands find this Python, and ganlib in the copy."""

    def make(name: str, ready: bool = False) -> Checkout:
        folder = tmp_path_factory.mktemp(name)
        # what git tracks, and what it would if all were added
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        found = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for file in filter(None, found.split("\0")):
            if (ROOT / file).exists():
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / file, folder / file)
        elsewhere = ("PYTHONPATH", "DVC_ROOT", "DVC_EXP_NAME", "MLFLOW_TRACKING_URI", "RAY_ADDRESS", "VIRTUAL_ENV")
        copy = Checkout(folder, {key: value for key, value in os.environ.items() if key not in elsewhere})
        if ready:
            # Ray's workers import ganlib from here, not from where it is installed
            copy.env["PYTHONPATH"] = str(folder)
            copy.env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), copy.env["PATH"]])
        copy.run("git", "init", "--quiet")
        copy.run("git", "config", "user.name", "tests")
        copy.run("git", "config", "user.email", "tests@localhost")
        copy.run("git", "add", "--all")
        copy.run("git", "commit", "--quiet", "--message", "copy")
        return copy

    return make
