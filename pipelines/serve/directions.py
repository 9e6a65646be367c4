"""Principal directions: the changes of the inputs that change samples the most.

As GANSpace finds them for generators without a latent space of their own (Härkönen et al. 2020, section 2.2): the
principal components of what is made, here of the samples themselves, and the inputs regressed on them. Samples of a
class are taken relative to that class, so that a direction changes what classes have in common.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ganlib.export import Generator
from ganlib.game import Sample, map_tensors, tensors_of
from ganlib.noise import Noise

__all__ = ["COUNT", "principal_directions"]

COUNT = 8
SAMPLES = 512


def principal_directions(generator: Generator) -> list[Sample]:
    """`COUNT` directions or fewer, first that along which samples differ the most: each like the inputs of one sample,
    `[1, ...]`, and as long as the standard deviation of inputs along it.

    They are a function of the generator alone. Raises ValueError where inputs are no points, or samples are made of
    given parts.
    """
    if generator.translates:
        raise ValueError("directions: not available for a generator with given parts")
    inputs = generator.game.ask({}, Noise(0, "sample", size=SAMPLES), None)
    points = _flat(inputs)
    labels = generator.conditions(SAMPLES).get("label")
    features = generator.spec.kind.glance(generator.sample(SAMPLES, seed=0)["sample"]).flatten(1).double()
    features = _relative(features, labels)
    _, strengths, components = torch.linalg.svd(features, full_matrices=False)
    count = min(COUNT, int((strengths > 1e-6 * strengths[0]).sum()), points.shape[1])
    scores = features @ components[:count].T
    found = torch.linalg.lstsq(scores, points - points.mean(0)).solution
    found /= found.norm(dim=1, keepdim=True).clamp_min(1e-12)
    found *= (points @ found.T).std(0)[:, None]
    return [_shaped_like(inputs, direction) for direction in found]


def _relative(features: Tensor, labels: Tensor | None) -> Tensor:
    """Features `[N, D]` less the mean of their class, or of all."""
    labels = torch.zeros(len(features), dtype=torch.int64) if labels is None else labels
    for label in labels.unique():
        features[labels == label] -= features[labels == label].mean(0)
    return features


def _flat(inputs: Sample) -> Tensor:
    """All inputs of each sample next to each other, float64 `[N, D]`."""
    tensors = tensors_of(inputs)
    if not all(x.is_floating_point() for x in tensors):
        raise ValueError("directions: this generator's inputs are not all floats")
    return torch.cat([x.flatten(1) for x in tensors], 1).double()


def _shaped_like(inputs: Sample, direction: Tensor) -> Sample:
    """The inverse of `_flat`, of one row."""
    parts = iter(direction.float().split([x[0].numel() for x in tensors_of(inputs)]))
    return map_tensors(lambda x: next(parts).view(1, *x.shape[1:]), inputs)
