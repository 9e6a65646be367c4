"""Mode-specific normalisation (Xu et al. 2019, section 4.2): the modes of numbers, and the mode of each value."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ganlib.data._column import Column, Mode, changed

_LEAST_WEIGHT = 0.005  # of a mode
_POINT_SHARE = 0.1  # a value with this share of a column is a mode of its own
_MIXTURE_VALUES = 5_000  # by which modes are found


class Numbers:
    """What training rows tell of a column of numbers or dates."""

    def __init__(self, max_values: int) -> None:
        self.max_values = max_values
        self.first = np.empty(0)
        """values by which modes are found"""
        self.low, self.high = np.inf, -np.inf
        self.values: NDArray[np.float64] | None = np.empty(0)
        self.decimals, self.step = 0, 86400.0

    def add(self, column: NDArray[np.float64]) -> None:
        column = column[~np.isnan(column)]
        if not len(column):
            return
        self.low, self.high = min(self.low, column.min()), max(self.high, column.max())
        if len(self.first) < _MIXTURE_VALUES:  # rows lie in random order
            self.first = np.concatenate([self.first, column[: _MIXTURE_VALUES - len(self.first)]])
        if self.values is not None:
            self.values = np.unique(np.concatenate([self.values, column]))
            if len(self.values) > self.max_values:
                self.values = None
        while self.decimals < 15 and (np.round(column, self.decimals) != column).any():
            self.decimals += 1
        for step in (3600.0, 60.0, 1.0, 0.0):
            if self.step and (np.remainder(column, self.step) != 0).any():
                self.step = step

    def column(self, said: Column, max_modes: int) -> Column:
        """The column completed."""
        if self.low > self.high:  # all values are missing
            return changed(said, missing=True)
        few = self.values is not None and not said.modes
        changes: dict[str, Any] = {
            "low": float(self.low) if said.low is None else said.low,
            "high": float(self.high) if said.high is None else said.high,
            "values": said.values or (tuple(map(float, self.values)) if few and self.values is not None else ()),
        }
        if said.type == "number" and said.decimals is None and self.decimals < 15:
            changes["decimals"] = self.decimals
        if said.type == "integer":
            changes["decimals"] = 0
        if said.type == "date":
            changes["step"] = self.step if said.step is None else said.step
            if not changes["step"] and said.decimals is None and self.decimals <= 6:
                changes["decimals"] = self.decimals
        if not changes["values"] and not said.modes:
            changes["modes"] = _modes(self.first, max_modes)
        return changed(said, **changes)


def _modes(values: NDArray[np.float64], max_modes: int) -> tuple[Mode, ...]:
    """Frequent values, each a mode without width, so that samples have exactly this value; and the components of a
    mixture of the others."""
    distinct, counts = np.unique(values, return_counts=True)
    order = np.argsort(-counts, kind="stable")[: max_modes - 1]
    points = distinct[order[counts[order] >= _POINT_SHARE * len(values)]]
    others = values[~np.isin(values, points)]
    if not len(points) or len(others) < 2:
        return _mixture(values, max_modes)
    # so narrow that no other value is nearest to it
    std = float(np.diff(distinct).min()) / 1e6
    shares = {float(point): float((values == point).mean()) for point in points}
    found = [Mode(weight=share, mean=at, std=std, low=at, high=at) for at, share in shares.items()]
    for mode in _mixture(others, max_modes - len(points)):
        found.append(Mode(**{**dict(mode), "weight": mode.weight * len(others) / len(values)}))
    return tuple(sorted(found, key=lambda mode: mode.mean))


def _mixture(values: NDArray[np.float64], max_modes: int) -> tuple[Mode, ...]:
    """The modes of a variational Gaussian mixture with a Dirichlet process prior (Blei & Jordan 2006), by their means.

    Xu et al. 2019 do the same: they fit 10 modes and drop those of little weight.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import BayesianGaussianMixture

    mean, std = float(values.mean()), float(values.std()) or 1.0
    mixture = BayesianGaussianMixture(
        n_components=min(max_modes, len(values)),
        weight_concentration_prior_type="dirichlet_process",
        weight_concentration_prior=0.001,
        random_state=0,
        max_iter=100,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit((values[:, None] - mean) / std)
    found = zip(mixture.weights_, mixture.means_[:, 0], mixture.covariances_[:, 0, 0], strict=True)
    kept = sorted((m, w, v) for w, m, v in found if w > _LEAST_WEIGHT)
    low, high = float(values.min()), float(values.max())
    return tuple(
        Mode(weight=float(w), mean=float(m * std + mean), std=float(np.sqrt(v) * std), low=low, high=high)
        for m, w, v in kept
    )


class Ranges:
    """The range of the training values of each mode."""

    def __init__(self, modes: tuple[Mode, ...]) -> None:
        self._modes = modes
        self._numbers = mode_tensors([modes])
        self._low, self._high = np.full(len(modes), np.inf), np.full(len(modes), -np.inf)

    def add(self, column: NDArray[np.float64]) -> None:
        values = torch.tensor(column[~np.isnan(column)])
        of = mode_of(values[:, None], self._numbers)[:, 0].numpy()
        np.minimum.at(self._low, of, values.numpy())
        np.maximum.at(self._high, of, values.numpy())

    def modes(self) -> tuple[Mode, ...]:
        """Those that are nearest to any value."""
        found = zip(self._modes, self._low.tolist(), self._high.tolist(), strict=True)
        return tuple(Mode(**{**dict(mode), "low": low, "high": high}) for mode, low, high in found if low <= high)


@dataclass(frozen=True)
class ModeTensors:
    """Of each of C columns the K modes, or fewer and entries that no value is near to; float64 `[C, K]`."""

    log_weight: Tensor
    mean: Tensor
    std: Tensor
    middle: Tensor
    half: Tensor
    """of the range; where it is a point, that of an average mode of the column"""
    low: Tensor
    high: Tensor


def mode_tensors(columns: list[tuple[Mode, ...]]) -> ModeTensors:
    most = max(map(len, columns), default=0)

    def table(of: Any, padding: float) -> Tensor:
        rows = [[of(mode) for mode in modes] + [padding] * (most - len(modes)) for modes in columns]
        return torch.tensor(rows, dtype=torch.float64)

    low, high = table(lambda mode: mode.low, np.inf), table(lambda mode: mode.high, -np.inf)
    average = [(max(m.high for m in modes) - min(m.low for m in modes)) / (2 * len(modes)) or 1.0 for modes in columns]
    half = table(lambda mode: (mode.high - mode.low) / 2, 1.0)

    return ModeTensors(
        table(lambda mode: np.log(mode.weight / mode.std), -np.inf),
        table(lambda mode: mode.mean, 0.0),
        table(lambda mode: mode.std, 1.0),
        table(lambda mode: (mode.low + mode.high) / 2, 0.0),
        torch.where(half > 0, half, torch.tensor(average, dtype=torch.float64)[:, None]),
        low,
        high,
    )


def mode_of(values: Tensor, numbers: ModeTensors) -> Tensor:
    """The most probable mode, int64, of each value, both `[N, C]`."""
    scaled = (values[:, :, None] - numbers.mean) / numbers.std
    return (numbers.log_weight - 0.5 * scaled.square()).argmax(2)
