"""Metrics against closed forms, against torchmetrics and scikit-learn, and against convention."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from ganlib import registry
from ganlib.metrics import (
    _neighbours,
    c2st,
    class_coverage,
    coverage,
    density,
    fd,
    kid,
    l1,
    label_accuracy,
    memorisation_ratio,
    precision,
    recall,
)
from ganlib.metrics._neighbours import nearest
from ganlib.metrics.picture import psnr, ssim


def normal(n: int, d: int, seed: int = 0, mean: float = 0.0, scale: float = 1.0) -> Tensor:
    return mean + scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def exactly(n: int, mean: Tensor, deviations: Tensor, seed: int) -> Tensor:
    """A sample whose own mean and covariance are exactly these."""
    x = normal(n, len(mean), seed).double()
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov()).T)
    return x * deviations + mean


def both(a: Tensor, b: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return {"features": a}, {"features": b}


# -- Fréchet distance ----------------------------------------------------------------------------------------


def test_fd_of_two_gaussians_is_the_closed_form():
    means, deviations = torch.tensor([[0.0, 0, 0], [1, -2, 0.5]]), torch.tensor([[1.0, 2, 3], [2, 2, 0.5]])
    a, b = (exactly(50, means[i], deviations[i], seed=i) for i in (0, 1))
    expected = (means[0] - means[1]).square().sum() + (deviations[0] - deviations[1]).square().sum()
    assert fd.compute(*both(a, b)) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize(("n", "d"), [(200, 12), (20, 30)], ids=["more samples", "more features"])
def test_fd_agrees_with_the_matrix_square_root(n: int, d: int):
    a, b = normal(n, d, 1).double(), normal(n + 5, d, 2, mean=0.3, scale=1.5).double()
    c1, c2 = (np.cov(x.numpy(), rowvar=False) + 1e-12 * np.eye(d) for x in (a, b))
    overlap = np.trace(sqrtm(c1 @ c2).real)
    expected = float((a.mean(0) - b.mean(0)).square().sum()) + np.trace(c1) + np.trace(c2) - 2 * overlap
    assert fd.compute(*both(a, b)) == pytest.approx(expected, rel=1e-4)


class _Flat(nn.Module):
    num_features = 12

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save:UserWarning")
def test_fd_and_kid_agree_with_torchmetrics():
    a, b = normal(80, 12, 1).reshape(-1, 3, 2, 2), normal(80, 12, 2, mean=0.2).reshape(-1, 3, 2, 2)
    theirs = {
        fd: FrechetInceptionDistance(_Flat(), input_img_size=(3, 2, 2)).set_dtype(torch.float64),
        kid: KernelInceptionDistance(_Flat(), subsets=1, subset_size=80),
    }
    for ours, metric in theirs.items():
        metric.update(a.double() if ours is fd else a, real=True)
        metric.update(b.double() if ours is fd else b, real=False)
        found = metric.compute()
        expected = float(found[0] if isinstance(found, tuple) else found)
        assert ours.compute(*both(a.flatten(1), b.flatten(1))) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_kid_is_unbiased():
    values = [kid.compute(*both(normal(30, 4, 2 * i), normal(30, 4, 2 * i + 1))) for i in range(300)]
    mean, error = np.mean(values), np.std(values) / 300**0.5
    assert abs(mean) < 3 * error
    assert min(values) < 0


# -- neighbours ----------------------------------------------------------------------------------------------


def _balls(points: Tensor, centres: Tensor, k: int) -> np.ndarray:
    """By scikit-learn: is each point within each centre's k-th nearest other centre?"""
    reach = NearestNeighbors(n_neighbors=k + 1).fit(centres.numpy()).kneighbors(centres.numpy())[0][:, -1]
    gaps = np.linalg.norm(points.numpy()[:, None].astype(float) - centres.numpy()[None], axis=2)
    return gaps <= reach


def test_neighbour_metrics_agree_with_scikit_learn():
    real, fake = normal(120, 6, 1), normal(100, 6, 2, mean=0.4)
    sides = both(real, fake)
    assert precision.compute(*sides) == pytest.approx(_balls(fake, real, 3).any(1).mean())
    assert recall.compute(*sides) == pytest.approx(_balls(real, fake, 3).any(1).mean())
    assert density.compute(*sides) == pytest.approx(_balls(fake, real, 5).sum(1).mean() / 5)
    assert coverage.compute(*sides) == pytest.approx(_balls(fake, real, 5).any(0).mean())


def test_many_examples_are_compared_few_at_a_time(monkeypatch):
    """A matrix of all their distances would fill the memory: of 50,000 it takes 10 GB, of the kernel's 20 GB."""
    real, fake = ({"features": torch.randn(n, 4, generator=torch.Generator().manual_seed(n))} for n in (700, 900))
    metrics = (precision, recall, density, coverage, kid)
    whole = [metric.compute(real, fake) for metric in metrics]
    rows, cdist, kernel = list[int](), torch.cdist, kid._kernel
    monkeypatch.setattr(torch, "cdist", lambda a, b: (rows.append(len(a)), cdist(a, b))[1])
    monkeypatch.setattr(kid, "_kernel", lambda a, b: (rows.append(len(a)), kernel(a, b))[1])
    for module in (_neighbours, kid):
        monkeypatch.setattr(module, "ROWS", 256)
    assert [metric.compute(real, fake) for metric in metrics] == pytest.approx(whole, rel=1e-9)
    assert max(rows) == 256


def test_nearest_agrees_with_scikit_learn_far_from_the_origin():
    points, pool = normal(40, 6, 1, mean=100.0), normal(700, 6, 2, mean=100.0)
    distances, rows = nearest(points, pool, 3)
    expected, at = NearestNeighbors(n_neighbors=3).fit(pool.numpy()).kneighbors(points.numpy())
    np.testing.assert_allclose(distances, expected, rtol=1e-3)
    np.testing.assert_array_equal(rows, at)


def test_repeated_reals_change_nothing():
    real, fake = normal(100, 6, 1), normal(100, 6, 2)
    for metric in (precision, density, coverage):
        once, often = (metric.compute(*both(real.repeat(times, 1), fake)) for times in (1, 6))
        assert once == often > 0.5


# -- against the true image ----------------------------------------------------------------------------------


def images(n: int, *shape: int, seed: int = 0) -> Tensor:
    """Smooth ones in [-1, 1]."""
    coarse = torch.rand(n, shape[0], 6, 6, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return nn.functional.interpolate(coarse, shape[1:], mode="bicubic").clamp(-1, 1)


def blurred(x: Tensor, seed: int = 9) -> Tensor:
    """Blurred and noisy, some images more than others."""
    strength = torch.linspace(0.02, 0.5, len(x)).view(-1, 1, 1, 1)
    smooth = nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    return (smooth + strength * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))).clamp(-1, 1)


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 40, 24), (3, 11, 16)], ids=str)
def test_psnr_ssim_and_l1_agree_with_torchmetrics(shape: tuple[int, ...]):
    true = images(70, *shape)
    fake = blurred(true)
    theirs = peak_signal_noise_ratio(fake, true, (-1.0, 1.0), reduction="none", dim=(1, 2, 3))
    torch.testing.assert_close(psnr.score(None, fake, true), theirs.double(), rtol=1e-5, atol=0.0)
    _, everywhere = structural_similarity_index_measure(fake, true, data_range=2.0, return_full_image=True)
    inside = everywhere[:, :, 5:-5, 5:-5]  # theirs goes on into a reflected margin; Wang et al.'s code does not
    torch.testing.assert_close(ssim.score(None, fake, true), inside.mean((1, 2, 3)).double(), rtol=0.0, atol=5e-5)
    torch.testing.assert_close(
        l1.score(None, fake, true), (fake - true).abs().mean((1, 2, 3)).double(), rtol=1e-5, atol=0.0
    )


def test_ssim_of_constants_is_its_luminance():
    grey = torch.full((2, 3, 16, 16), 0.5)
    expected = (2 * 0.5 * 0.25 + 0.02**2) / (0.5**2 + 0.25**2 + 0.02**2)
    assert ssim.score(None, grey / 2, grey).tolist() == pytest.approx([expected] * 2, rel=1e-4)


def test_ssim_of_one_window_by_hand():
    """Of an image no larger than its window there is one value."""
    x, y = images(1, 1, 8, 8, seed=1).double(), images(1, 1, 8, 8, seed=2).double()
    line = torch.exp(-((torch.arange(8, dtype=torch.float64) - 3.5) ** 2) / (2 * 1.5**2))
    weights = line.outer(line) / line.outer(line).sum()
    mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
    variance_x, variance_y = ((weights * (of - mean) ** 2).sum() for of, mean in ((x, mean_x), (y, mean_y)))
    covariance = (weights * (x - mean_x) * (y - mean_y)).sum()
    expected = (2 * mean_x * mean_y + 0.0004) * (2 * covariance + 0.0036)
    expected /= (mean_x**2 + mean_y**2 + 0.0004) * (variance_x + variance_y + 0.0036)
    assert float(ssim.score(None, x, y)) == pytest.approx(float(expected), rel=1e-4)


def test_an_exact_copy_has_finite_psnr():
    x = images(3, 3, 16, 16)
    for near in (x, x + 2e-4):
        assert psnr.score(None, near, x).tolist() == pytest.approx([58.92] * 3, abs=0.01)
    assert psnr.score(None, x + 0.02, x).tolist() == pytest.approx([40.0] * 3, abs=1e-3)
    assert ssim.score(None, x, x).tolist() == pytest.approx([1.0] * 3, abs=1e-5)


# -- convention ----------------------------------------------------------------------------------------------


def test_collapse_has_high_precision_and_no_variety():
    real = normal(400, 8, 1)
    collapsed = real[:5].repeat(80, 1) + normal(400, 8, 2, scale=1e-3)
    sides = both(real, collapsed)
    assert precision.compute(*sides) > 0.95
    assert recall.compute(*sides) < 0.05
    assert coverage.compute(*sides) < 0.2
    assert recall.compute(*both(real, real[:5].repeat(80, 1))) < 0.05  # exact copies too


def test_scattered_fakes_have_recall_but_no_precision():
    sides = both(normal(400, 8, 1), normal(400, 8, 2, scale=4.0))
    assert precision.compute(*sides) < 0.2
    assert recall.compute(*sides) > 0.9
    assert density.compute(*sides) < 0.1


def test_equal_distributions_score_what_they_should():
    sides = both(normal(1000, 16, 1), normal(1000, 16, 2))
    assert c2st.compute(*sides) == pytest.approx(0.5, abs=0.04)
    assert density.compute(*sides) == pytest.approx(1.0, abs=0.1)
    assert coverage.compute(*sides) > 0.9
    assert c2st.compute(*both(normal(1000, 16, 1), normal(1000, 16, 2, mean=1.0))) > 0.95


def test_c2st_is_a_half_whatever_the_sizes_are():
    assert c2st.compute(*both(normal(900, 8, 1), normal(100, 8, 2))) == pytest.approx(0.5, abs=0.08)


def test_copies_of_the_training_set_are_seen():
    train, test, fake = normal(800, 8, 1), normal(200, 8, 2), normal(200, 8, 3)
    copied = train[:200] + normal(200, 8, 4, scale=1e-2)
    real, near, far = ({"nearest": nearest(of, train, 1)[0][:, 0]} for of in (test, copied, fake))
    assert memorisation_ratio.compute(real, near) < 0.1
    assert memorisation_ratio.compute(real, far) == pytest.approx(1.0, abs=0.1)


def test_classes_that_were_dropped_are_counted():
    real = {"predicted": torch.arange(10).repeat(100)}
    seven = {"predicted": torch.arange(7).repeat(100)}
    rare = {"predicted": torch.cat([torch.arange(9).repeat(100), torch.full((10,), 9)])}  # 1% where 10% are due
    assert class_coverage.compute(real, real) == 1.0
    assert class_coverage.compute(real, seven) == pytest.approx(0.7)
    assert class_coverage.compute(real, rare) == pytest.approx(0.9)


def test_label_accuracy_is_a_share():
    fake = {"label": torch.tensor([0, 1, 2, 3]), "predicted": torch.tensor([0, 1, 2, 0])}
    assert label_accuracy.compute({}, fake) == 0.75


# -- contract ------------------------------------------------------------------------------------------------

CLASSES = torch.arange(4).repeat(50)
TRUE = images(200, 3, 16, 16)
NAMES = registry.names("metrics", "picture")
SCORED = {name: m for name in NAMES if hasattr(m := registry.load("metrics", name, "picture"), "score")}
OF_ANSWERS = ("nll", "edge_correlation", "cycle_psnr", "attribute_error", "judge_error")
REAL = {
    # what a model answers of test examples; those of anomalies stand in the fakes' place
    "score": normal(200, 1, 5)[:, 0],
    "anomalous": torch.zeros(200, dtype=torch.bool),
    "nll": normal(200, 1, 6)[:, 0],
    # what a model answers of translations, there and back
    "edge_correlation": normal(200, 1, 6)[:, 0].sigmoid(),
    "cycle_psnr": normal(200, 1, 6, mean=20.0)[:, 0],
    "attribute_error": normal(200, 1, 7)[:, 0].abs(),
    "judge_error": normal(200, 1, 8)[:, 0].abs(),
    "features": normal(200, 8, 1),
    "nearest": torch.ones(200),
    "label": CLASSES,
    "predicted": CLASSES,
    **{name: metric.score(None, TRUE, TRUE) for name, metric in SCORED.items()},
}
CLEAN = {
    "score": normal(200, 1, 7, mean=3.0)[:, 0],
    "anomalous": torch.ones(200, dtype=torch.bool),
    **{name: REAL[name] for name in OF_ANSWERS},
    "features": normal(200, 8, 2),
    "nearest": torch.ones(200),
    "label": CLASSES,
    "predicted": CLASSES,
    **{name: metric.score(None, blurred(TRUE), TRUE) for name, metric in SCORED.items()},
}
# Worse in every respect: far off, of few kinds, close to the training set, of the wrong class, of another example.
WORSE = {
    "score": normal(200, 1, 7, mean=0.5)[:, 0],
    "anomalous": torch.ones(200, dtype=torch.bool),
    **{name: REAL[name] for name in OF_ANSWERS},
    "features": (normal(4, 8, 3, mean=4.0)).repeat(50, 1) + normal(200, 8, 4, scale=0.1),
    "nearest": torch.cat([torch.zeros(20), torch.full((180,), 0.1)]),
    "label": CLASSES,
    "predicted": torch.zeros(200, dtype=torch.int64),
    **{name: metric.score(None, TRUE.flip(0), TRUE) for name, metric in SCORED.items()},
}
REAL_OF_WORSE = {  # the model itself knows the test examples less well
    **REAL,
    "nll": REAL["nll"] + 1.0,
    "edge_correlation": REAL["edge_correlation"] - 0.5,
    "cycle_psnr": REAL["cycle_psnr"] - 5.0,
    "attribute_error": REAL["attribute_error"] + 1.0,
    "judge_error": REAL["judge_error"] + 1.0,
}


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_keeps_the_contract(name: str):
    metric = registry.load("metrics", name, "picture")
    assert metric.DIRECTION in ("lower", "higher")
    assert (metric.__doc__ or "").split("\n")[0].endswith((".", ". "))
    sides = (REAL, CLEAN, WORSE, REAL_OF_WORSE)
    real, clean, worse, real_of_worse = ({need: side[need] for need in metric.NEEDS} for side in sides)
    value = metric.compute(real, clean)
    assert isinstance(value, float)
    least, most = getattr(metric, "BOUNDS", (-math.inf, math.inf))  # where its interval ends
    assert metric.compute(real, clean) == value, "a metric is a pure function"
    of_worse = metric.compute(real_of_worse, worse)
    assert least <= min(value, of_worse) <= max(value, of_worse) <= most
    assert of_worse > value if metric.DIRECTION == "lower" else of_worse < value
    few = ({need: of[:5] for need, of in side.items()} for side in (real, clean))  # the least that evaluate hands out
    assert np.isfinite(metric.compute(*few))


@pytest.mark.parametrize("name", SCORED)
def test_a_metric_that_scores_images_is_the_mean_of_its_own_scores(name: str):
    metric, fake = SCORED[name], blurred(TRUE)
    scores = metric.score(None, fake, TRUE)
    assert (scores.shape, scores.dtype) == ((200,), torch.float64)
    torch.testing.assert_close(metric.score(None, fake[7:9], TRUE[7:9]), scores[7:9], rtol=1e-6, atol=1e-6)
    assert metric.compute({}, {name: scores}) == float(scores.mean())
