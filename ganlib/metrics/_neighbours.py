"""The manifold of a set of examples, estimated by balls around each that reach to its k-th nearest neighbour."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ROWS", "distances", "distinct", "inside", "nearest", "radii"]

ROWS = 4096
"""examples whose distances or products to all others are in memory at a time"""


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean, `[N, M]`. Taken from the middle of `b`: far from the origin, small distances drown in rounding."""
    middle = b.mean(0)
    return torch.cdist(a - middle, b - middle)


def distinct(points: Tensor) -> Tensor:
    """`points` without repetitions. Copies have a neighbour at distance zero and would empty their balls.

    Only reals are treated so, where copies are a fault of the data. Copies among fakes are a fault of the
    generator, which recall is there to see.
    """
    distinct: Tensor = torch.unique(points, dim=0)
    return distinct


def radii(points: Tensor, k: int) -> Tensor:
    """`[N]`: the distance from each point to its k-th nearest other point (the farthest, where there are fewer)."""
    near = [distances(part, points).topk(min(k + 1, len(points)), 1, largest=False) for part in points.split(ROWS)]
    return torch.cat([found.values[:, -1] for found in near])


def inside(points: Tensor, centres: Tensor, k: int) -> Tensor:
    """`[N, M]`, bool: does each point lie in the ball around each centre?"""
    reach = radii(centres, k)
    return torch.cat([distances(part, centres) <= reach for part in points.split(ROWS)])


def nearest(points: Tensor, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Distances and rows, `[N, k]` each, of the k members of `pool` nearest to each point, in bounded memory."""
    found = [distances(part, pool).topk(k, dim=1, largest=False) for part in points.split(512)]
    near, rows = torch.cat([part.values for part in found]), torch.cat([part.indices for part in found])
    return _exact_where_tiny(near, rows, points, pool), rows


def _exact_where_tiny(near: Tensor, rows: Tensor, points: Tensor, pool: Tensor) -> Tensor:
    """`near` with the distances that rounding may have made: that of a copy is 0, which products of vectors miss."""
    least = 1e-3 * pool.double().var(0, correction=0).sum().sqrt()
    n, j = (near.double() < least).nonzero(as_tuple=True)
    if not len(n):
        return near
    exact = (points[n].double() - pool[rows[n, j]].double()).norm(dim=1)
    return near.index_put((n, j), exact.to(near))
