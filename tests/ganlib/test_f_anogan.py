"""f-AnoGAN: what is kept of normal examples, what is said of others, and the outlier detector around it."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from PIL import Image
from runs import Kept, equal, without_clock
from sklearn.base import clone
from sklearn.covariance import EmpiricalCovariance
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.utils.estimator_checks import (
    check_outlier_contamination,
    check_outliers_fit_predict,
)
from test_identity import parameters

from ganlib import checkpoint, registry, shards
from ganlib.anomaly import OutlierDetector
from ganlib.data import _kind
from ganlib.data._spec import Spec
from ganlib.models.f_anogan import Config, _Gaussian, build
from ganlib.noise import Noise
from ganlib.trainer import train
from pipelines import evaluate, reference
from pipelines._stage import EVALUATED, PREPARED, REFERENCE, TRAINED
from pipelines.prepare import prepare
from pipelines.pyfunc import logged

DIGITS = {
    "source": {"name": "digits"},
    "sample": {"kind": "image", "resolution": [8, 8], "channels": 1},
    "normal": ["0"],
    "test_share": 0.3,
}
LEARNER = {"lr": 2e-3, "betas": [0.0, 0.9]}
GAME = {
    "loss": "wasserstein",
    "penalties": {"gradient_penalty": {"weight": 10}},
    "generator": LEARNER,
    "discriminator": LEARNER,
    "batch": 32,
    "fits": {"encoder": {"kimg": 8, "lr": 2e-3}},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """`(parameters, folder, what was reported)` of zeros among other digits, prepared and measured in the folder."""
    folder = tmp_path_factory.mktemp("digits")
    params = parameters(DIGITS, "f_anogan", {"width": 8, "latent_dim": 8}, GAME)
    params = params.model_copy(
        update={
            "train": params.train.model_copy(update={"kimg": 4.0, "report_kimg": 4.0, "checkpoint_kimg": 4.0}),
            "evaluate": params.evaluate.model_copy(update={"num_samples": 100, "resamples": 20}),
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare(params.dataset, Path("raw"), PREPARED)
        reference.stage(params)
        kept = Kept(folder / "kept")
        train(params, kept, prepared=PREPARED, reference=REFERENCE)
        TRAINED.parent.mkdir(exist_ok=True)
        kept.folders[-1].rename(TRAINED)
        evaluate.stage(params)
    return params, folder, kept


@pytest.fixture
def data(trained):
    _, folder, _ = trained
    return {split: shards.read(folder / PREPARED, split)["sample"] for split in (*shards.SPLITS, shards.ANOMALIES)}


def test_other_digits_are_anomalies(trained):
    _, folder, _ = trained
    found = json.loads((folder / EVALUATED / "metrics.json").read_text())["answers"]
    assert list(found) == ["auroc", "average_precision"]
    assert found["auroc"]["low"] > 0.95
    assert 0.95 < found["auroc"]["floor"] <= 1


def test_pictures_of_answers_and_the_roc_curve(trained, data):
    _, folder, _ = trained
    with Image.open(folder / EVALUATED / "answers.png") as picture:
        zoom, across = 2, 3 * 8  # pixels of an example, its reconstruction and its map; two such in a row
        assert picture.size == (2 * (zoom * across + 2), 10 * (zoom * 8 + 2))
    rows = np.genfromtxt(folder / EVALUATED / "auroc.csv", delimiter=",", names=True)
    area = np.trapezoid(rows["true_positive_rate"], rows["false_positive_rate"])
    reported = json.loads((folder / EVALUATED / "metrics.json").read_text())["answers"]["auroc"]["value"]
    assert area == pytest.approx(reported, abs=1e-3)


def test_a_fit_that_was_killed_goes_on_with_equal_bits(trained, tmp_path):
    params, folder, kept = trained
    again = Kept(tmp_path)
    train(params, again, prepared=folder / PREPARED, reference=folder / REFERENCE, resume=kept.folders[1])
    assert [round(row["fit_kimg"]) for row in again.rows] == [8]
    one, other = (without_clock(checkpoint.load(run)) for run in (folder / TRAINED, again.folders[-1]))
    assert equal(one, other)
    assert "score.of_logs.covariance" in one["others/encoder"]


def test_the_registered_model_scores_explains_and_still_makes_samples(trained, data, tmp_path):
    _, folder, _ = trained
    mlflow.pyfunc.save_model(tmp_path / "model", **logged(folder / TRAINED / "generator"))
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    normals, others = (np.moveaxis(data[split].numpy(), 1, 3) for split in ("test", "anomalies"))
    scores = [model.predict(images, params={"answer": "score"}) for images in (normals, others)]
    labels = np.repeat([0, 1], [len(normals), len(others)])
    assert roc_auc_score(labels, np.concatenate(scores)) > 0.95
    made, seen = (model.predict(others, params={"answer": name}) for name in ("reconstruction", "map"))
    assert (made.dtype, made.shape) == (np.uint8, others.shape)
    np.testing.assert_allclose(seen, np.abs(others.astype(float) - made), atol=1.01)
    assert model.predict(None, params={"n": 2}).shape == (2, 8, 8, 1)

    detector = OutlierDetector(model, contamination=0.05).fit(np.moveaxis(data["train"].numpy(), 1, 3))
    np.testing.assert_array_equal(detector.score_samples(others), -scores[1].astype(np.float64))
    exported = OutlierDetector(folder / TRAINED / "generator", contamination=0.05)
    again = clone(exported).fit(np.moveaxis(data["train"].numpy(), 1, 3))
    assert again.offset_ == pytest.approx(detector.offset_, rel=1e-4)
    assert (again.predict(others) == -1).mean() > 0.9
    assert (again.predict(normals) == 1).mean() > 0.6
    assert again.predict(normals[:0]).shape == (0,)
    with pytest.raises(ValueError, match=r"^example 1: expected images of shape \[8, 8, 1\], found \[8, 7, 1\]"):
        again.predict([normals[0], normals[0][:, 1:]])
    with pytest.raises(ValueError, match="answer: 'x' is not one of this model's; known: score, residual"):
        OutlierDetector(folder / TRAINED / "generator", answer="x").fit(others)
    with pytest.raises(ValueError, match="'map' is no score"):
        OutlierDetector(folder / TRAINED / "generator", answer="map").fit(others)


class Distance:
    """A model whose score is the distance from the origin."""

    def predict(self, rows, params):
        rows = np.asarray(rows, np.float64)
        return np.linalg.norm(rows - np.median(rows, 0) * 0, axis=1)


class _OfDistance(OutlierDetector):
    """As scikit-learn's checks construct it: with no model."""

    def fit(self, X, y=None):
        self.model = Distance()
        return super().fit(X, y)


@pytest.mark.parametrize("check", [check_outliers_fit_predict, check_outlier_contamination])
def test_the_detector_keeps_the_contract_of_scikit_learn(check):
    check("OutlierDetector", _OfDistance())


def test_offset_parts_the_share_that_is_asked_for():
    rows = np.random.default_rng(0).normal(size=(400, 3))
    detector = OutlierDetector(Distance(), contamination=0.1).fit(rows)
    assert (detector.predict(rows) == -1).sum() == 40
    np.testing.assert_allclose(detector.decision_function(rows), detector.score_samples(rows) - detector.offset_)
    assert set(detector.fit_predict(rows)) == {-1, 1}
    assert clone(detector).get_params()["contamination"] == 0.1
    with pytest.raises(NotFittedError):
        OutlierDetector(Distance()).predict(rows)
    with pytest.raises(ValueError, match="fit: expected rows to set the threshold by, found none"):
        OutlierDetector(Distance()).fit(rows[:0])
    for share in (0.0, 0.6):
        with pytest.raises(ValueError, match="expected more than 0 and at most"):
            OutlierDetector(Distance(), contamination=share).fit(rows)


def test_running_moments_are_those_of_all_batches_at_first():
    rows = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)) @ torch.randn(
        5, 5, generator=torch.Generator().manual_seed(1)
    )
    gaussian = _Gaussian(5, shrinkage=1e-9)
    for batch in rows.split(8):
        gaussian.update(batch)
    expected = EmpiricalCovariance().fit(rows.double().numpy())
    np.testing.assert_allclose(gaussian.mean, expected.location_, atol=1e-5)
    np.testing.assert_allclose(gaussian.covariance, expected.covariance_, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gaussian(rows) * 5, expected.mahalanobis(rows.double().numpy()), rtol=1e-3)
    constant = _Gaussian(5, shrinkage=0.1)
    constant.update(torch.ones(8, 5))
    assert constant(rows).isfinite().all()


def test_rows_of_tables_are_made_and_judged(tmp_path):
    kind = _kind.load("table")
    cfg, payloads = kind.tiny()
    cfg = kind.scan(cfg, payloads)
    stored = {"sample": np.stack([kind.encode(cfg, payload)["sample"] for payload in payloads])}
    cfg = kind.settle(cfg, [stored])
    spec = Spec(cfg, "table", (), {"train": 8, "test": 8}, "")
    game = build(Config(max_width=8, latent_dim=4), spec)
    made = game.generator(game.ask({}, Noise(0, size=6), None))
    assert made.shape == (6, *spec.shape)
    for block in kind.layout(cfg):
        if block.kind == "choice":
            torch.testing.assert_close(made[:, block.start : block.start + block.size].sum(1), torch.ones(6))
    found = game.answers({"sample": kind.decode(cfg, "sample", torch.from_numpy(stored["sample"]))})
    assert {name: answer.shape[1:] for name, answer in found.items()} == {
        "score": (),
        "residual": (),
        "reconstruction": spec.shape,
    }


def test_sizes_that_it_cannot_make_are_refused():
    family = registry.load("models", "f_anogan")
    sample = _kind.load("image").Config(resolution=(30, 30), channels=1)
    with pytest.raises(ValueError, match="multiples of 4; found 30x30"):
        family.build(family.Config(), Spec(sample, "image", (), {"train": 8, "test": 8}, ""))
