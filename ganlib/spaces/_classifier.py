"""The in-domain classifier: trained on the project's own labels, it judges classes and lends its features."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ganlib.config import ClassifierConfig

__all__ = ["Classifier", "fit", "shrunk"]

# Few enough that a thousand samples give a well-conditioned covariance.
_FEATURES = 64

_SIDE = 64  # pixels, at most: as much as the other networks look at


class Classifier(nn.Module):
    """A trunk that suits the shape of the samples, then two linear layers.

    `[C, H, W]`: shrinks the image to 64 px a side, if it is larger, and halves it until its shorter side is below 8;
    images have 8 px or more. `[L, D]`, L steps of D numbers: convolutions along the steps, in halvings. `[D]`: a
    perceptron.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, width: int) -> None:
        """`width`: the channels before the first halving; a perceptron has 8 times as many units."""
        super().__init__()
        self.size: tuple[int, ...] = _at_most(shape[1:]) if len(shape) == 3 else ()
        self.trunk, features = {1: _perceptron, 2: _along_steps, 3: _of_images}[len(shape)](shape, width)
        self.neck = nn.Linear(features, _FEATURES)
        self.head = nn.Linear(_FEATURES, classes)

    def features(self, samples: Tensor) -> Tensor:
        """The penultimate layer, `[N, 64]`, of samples `[N, *shape]`."""
        if samples.dim() == 4:
            samples = shrunk(samples).contiguous(memory_format=torch.channels_last)
        return F.relu(self.neck(self.trunk(samples)))

    def logits(self, samples: Tensor) -> Tensor:
        """`[N, K]` of samples `[N, *shape]`."""
        return self.classify(self.features(samples))

    def classify(self, features: Tensor) -> Tensor:
        """`[N, K]` logits of features `[N, 64]`."""
        logits: Tensor = self.head(features)
        return logits


def _of_images(shape: tuple[int, ...], width: int) -> tuple[nn.Module, int]:
    """The trunk for `[C, H, W]`, and how many numbers come out of it."""
    stages: list[nn.Module] = []
    inputs, outputs, side = shape[0], width, min(_at_most(shape[1:]))
    while side >= 8:
        for source in (inputs, outputs):
            stages += [nn.Conv2d(source, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        stages.append(nn.MaxPool2d(2))
        inputs, outputs, side = outputs, min(2 * outputs, 4 * width), side // 2
    return nn.Sequential(*stages, _AveragePool(4), nn.Flatten()), 16 * inputs


def _along_steps(shape: tuple[int, ...], width: int) -> tuple[nn.Module, int]:
    """The trunk for `[L, D]`, likewise."""
    stages: list[nn.Module] = [_StepsLast()]
    inputs, outputs, steps = shape[1], width, shape[0]
    while True:
        stages += [nn.Conv1d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]
        if steps < 8:
            return nn.Sequential(*stages, nn.Flatten()), outputs * steps
        stages.append(nn.MaxPool1d(2))
        inputs, outputs, steps = outputs, min(2 * outputs, 4 * width), steps // 2


def _perceptron(shape: tuple[int, ...], width: int) -> tuple[nn.Module, int]:
    """The trunk for `[D]`, likewise."""
    units = 8 * width
    return nn.Sequential(nn.Linear(shape[0], units), nn.ReLU(), nn.Linear(units, units), nn.ReLU()), units


class _StepsLast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """`[N, L, D]` → `[N, D, L]`."""
        return x.transpose(1, 2)


class _AveragePool(nn.Module):
    """Adaptive average pooling to `size` x `size`, as torch has it, but by one matrix product: on GPUs the gradient of
    torch's own sums in no fixed order, with other bits each time."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` → `[N, C, size, size]`."""
        averages = torch.kron(*(self._averages(side, x) for side in x.shape[2:]))  # [size², H·W]
        pooled: Tensor = (x.flatten(2) @ averages.T).unflatten(2, (self.size, self.size))
        return pooled

    def _averages(self, side: int, like: Tensor) -> Tensor:
        """`[size, side]`: in row i, the weights of the inputs from ⌊i·side/size⌋ to ⌈(i + 1)·side/size⌉."""
        place = torch.arange(side, device=like.device)
        cell = torch.arange(self.size, device=like.device)[:, None]
        inside = (place >= cell * side // self.size) & (place * self.size < (cell + 1) * side)
        return (inside / inside.sum(1, keepdim=True)).to(like.dtype)


def shrunk(images: Tensor) -> Tensor:
    """Images `[N, C, H, W]`, floats or uint8, as a classifier looks at them: at most 64 px a side."""
    size = _at_most(images.shape[2:])
    if images.shape[2:] == size:
        return images
    return F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)


def _at_most(size: tuple[int, ...]) -> tuple[int, int]:
    height, width = size
    return min(height, _SIDE), min(width, _SIDE)


def fit(
    classifier: Classifier,
    stored: Tensor,
    labels: Tensor,
    decode: Callable[[Tensor], Tensor],
    cfg: ClassifierConfig,
    seed: int,
    *,
    shift: bool = True,
) -> Classifier:
    """Train in place on `decode(stored)`, samples as networks see them, and their labels `[N]`, batch by batch.

    AdamW, a one-cycle learning rate (Smith & Topin 2018), label smoothing 0.1; with `shift`, images are shifted by up
    to a twelfth of a side. The order and the shifts follow from `seed`.
    """
    rng = torch.Generator().manual_seed(seed)
    device = next(classifier.parameters()).device
    classifier.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=cfg.lr, weight_decay=0.01)
    steps = cfg.epochs * math.ceil(len(stored) / cfg.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=cfg.lr, total_steps=max(steps, 2))
    for _ in range(cfg.epochs):
        for rows in torch.randperm(len(stored), generator=rng).split(cfg.batch):
            samples = decode(stored[rows])
            logits = classifier.logits((_shifted(samples, rng) if shift else samples).to(device))
            # of probabilities: on GPUs, cross-entropy of indices is not promised to be deterministic
            wanted = F.one_hot(labels[rows], logits.shape[1]).float().to(device)
            loss = F.cross_entropy(logits, wanted, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return classifier.eval().requires_grad_(False)


def _shifted(images: Tensor, rng: torch.Generator) -> Tensor:
    """Each image moved by up to a twelfth of its sides; the edge's colour is carried on."""
    move = torch.eye(2, 3).repeat(len(images), 1, 1)
    move[:, :, 2] = (torch.rand(len(images), 2, generator=rng) * 2 - 1) / 6  # the grid is two units wide
    grid = F.affine_grid(move, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
