"""Fréchet distance between two Gaussians fitted to the features. Heusel et al. 2017, eq. 6.

‖μ₁ − μ₂‖² + tr(C₁ + C₂ − 2 √(C₁C₂)). It is biased upwards where samples are few: compare values of one sample
size only, and look at the floor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ganlib.metrics._types import Examples

__all__ = ["ALIASES", "BOUNDS", "DIRECTION", "NEEDS", "Gaussian", "compute", "distance", "gaussian"]

DIRECTION = "lower"
NEEDS = ("features",)
BOUNDS = (0.0, math.inf)
ALIASES = {"inception": "fid"}  # the name belongs to this network's features alone


@dataclass(frozen=True)
class Gaussian:
    mean: Tensor
    """`[D]`"""
    factor: Tensor
    """F, `[min(N, D), D]`, with FᵀF the covariance"""


def gaussian(features: Tensor) -> Gaussian:
    """The Gaussian of features `[N, D]`, in float64."""
    features = features.double()
    mean = features.mean(0)
    factor = (features - mean) / (len(features) - 1) ** 0.5
    if len(factor) > factor.shape[1]:
        factor = torch.linalg.qr(factor, mode="r").R
    return Gaussian(mean, factor)


def distance(a: Gaussian, b: Gaussian) -> float:
    """tr √(C₁C₂) is the nuclear norm of F₁F₂ᵀ, which needs no root of a product that is hardly symmetric."""
    means = (a.mean - b.mean).square().sum()
    overlap = torch.linalg.svdvals(a.factor @ b.factor.T).sum()
    return float(means + a.factor.square().sum() + b.factor.square().sum() - 2 * overlap)


def compute(real: Examples, fake: Examples) -> float:
    return distance(gaussian(real["features"]), gaussian(fake["features"]))
