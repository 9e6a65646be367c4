"""Distributions of a table's columns, one by one and in pairs; rows are codes `[N, columns]`, NaN where missing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Column", "alike", "association", "bins", "categories", "columns", "correlation", "pairs"]

Column = NDArray[Any]
"""`[N]`"""

_BINS = 10
_CORRELATED, _ASSOCIATED = 0.5, 0.3  # of a pair of columns that counts, as in SDMetrics


def columns(cfg: Any, rows: Column) -> Iterator[tuple[bool, Column]]:
    """Each column of `rows`, and whether it is of numbers or dates rather than of categories."""
    for column, values in zip(cfg.columns, rows.T, strict=True):
        yield column.type in ("number", "integer", "date"), values


def categories(values: Column) -> NDArray[np.int64]:
    """Codes of categories as indices, 0 where missing."""
    return np.where(np.isnan(values), -1, values).astype(np.int64) + 1


def bins(values: Column) -> NDArray[np.int64]:
    """Numbers by the tenth of their own range that they lie in, from 1; 0 where missing, 11 the largest itself."""
    known = values[~np.isnan(values)]
    if not len(known):
        return np.zeros(len(values), np.int64)
    return np.where(np.isnan(values), 0, np.digitize(values, np.histogram_bin_edges(known, _BINS)))


def total_variation(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """Half the sum of the differences of the frequencies of non-negative integers."""
    size = int(max(a.max(), b.max())) + 1
    frequencies = [np.bincount(of, minlength=size) / len(of) for of in (a, b)]
    return float(np.abs(frequencies[0] - frequencies[1]).sum() / 2)


def kolmogorov_smirnov(a: Column, b: Column) -> float:
    """The largest difference of the cumulative distributions of two samples; what is missing lies below all numbers."""
    a, b = (np.sort(np.where(np.isnan(of), -np.inf, of)) for of in (a, b))
    at = np.concatenate([a, b])
    cumulative = [np.searchsorted(of, at, side="right") / len(of) for of in (a, b)]
    return float(np.abs(cumulative[0] - cumulative[1]).max())


def alike(cfg: Any, real: Column, fake: Column) -> list[float]:
    """For each column: how alike it is distributed in both tables, 0 to 1."""
    return [
        1 - (kolmogorov_smirnov(a, b) if number else total_variation(categories(a), categories(b)))
        for (number, a), (_, b) in zip(columns(cfg, real), columns(cfg, fake), strict=True)
    ]


def correlation(a: Column, b: Column) -> float:
    """Pearson's, of the rows where neither is missing; 0 where one of them does not vary."""
    known = ~(np.isnan(a) | np.isnan(b))
    if known.sum() < 2 or np.ptp(a[known]) == 0 or np.ptp(b[known]) == 0:
        return 0.0
    return float(np.corrcoef(a[known], b[known])[0, 1])


def association(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """Cramér's V: from 0, where the categories do not depend on one another, to 1, where one tells the other."""
    sizes = int(a.max()) + 1, int(b.max()) + 1
    table = np.bincount(a * sizes[1] + b, minlength=sizes[0] * sizes[1]).reshape(sizes).astype(np.float64)
    table = table[table.any(1)][:, table.any(0)]
    if min(table.shape) < 2:
        return 0.0
    expected = table.sum(1, keepdims=True) * table.sum(0) / len(a)
    return float(np.sqrt((np.square(table - expected) / expected).sum() / len(a) / (min(table.shape) - 1)))


def pairs(cfg: Any, real: Column, fake: Column) -> list[float]:
    """For each pair of columns that depend on one another in the real table: how alike they do so in both, 0 to 1."""
    found = list[float]()
    numbers = [number for number, _ in columns(cfg, real)]
    values = list(zip(real.T, fake.T, strict=True))
    discrete = [
        [(bins if number else categories)(of) for of in sides] for number, sides in zip(numbers, values, strict=True)
    ]
    for i, j in itertools.combinations(range(len(numbers)), 2):
        if numbers[i] and numbers[j]:
            of_real = correlation(values[i][0], values[j][0])
            if abs(of_real) > _CORRELATED:
                found.append(1 - abs(of_real - correlation(values[i][1], values[j][1])) / 2)
        elif association(discrete[i][0], discrete[j][0]) > _ASSOCIATED:
            width = int(max(of.max() for of in discrete[j])) + 1
            joint = (a * width + b for a, b in zip(discrete[i], discrete[j], strict=True))
            found.append(1 - total_variation(*joint))
    return found
