"""A page that compares two tables: distributions of columns, associations between columns, and pairs of columns."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["Variable", "page"]

Values = NDArray[np.float64]

_ACROSS = 5  # panels in a row
_COLUMNS, _PAIRS, _BARS, _BINS, _POINTS = 40, 5, 10, 40, 1000  # at most, of each
_WIDTH, _HEIGHT, _DPI = 2.9, 2.2, 75  # of a panel, in inches
_REAL, _MADE = "0.65", "tab:blue"
_MISSING = "missing"


@dataclass(frozen=True)
class Variable:
    """A column of both tables, NaN where a value is missing."""

    name: str
    real: Values
    """`[N]`"""
    made: Values
    """`[M]`"""
    words: tuple[str, ...] | None = None
    """of categories, by their codes; None: numbers"""
    write: Callable[[float], str] = "{:g}".format
    """a number as text"""
    ordered: bool = False
    """whether categories stay in their order"""


def page(variables: Sequence[Variable]) -> Image.Image:
    """One histogram a column, generated values over real ones; the association of all pairs of columns in both tables,
    and their difference; the pairs that are most associated in the real one. Of more than 40 columns those that
    differ most."""
    # imported here: it takes a second, and callers that only read data do not need it
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [_as_categories(variable) for variable in variables]
    chosen = sorted(sorted(range(len(shown)), key=lambda i: -_apart(shown[i]))[:_COLUMNS])
    shown = [shown[i] for i in chosen]
    real, made = (_associations([_groups(of, side) for of in shown]) for side in ("real", "made"))
    pairs = _most_associated(shown, real)
    histograms = math.ceil(len(shown) / _ACROSS)
    heights = [_HEIGHT] * histograms + ([1.6 * _HEIGHT] + [_HEIGHT] * 2 if pairs else [])
    figure = Figure(figsize=(_ACROSS * _WIDTH, sum(heights) + 0.5), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{len(variables[0].made)} generated rows (blue) against {len(variables[0].real)} real ones (grey)")
    rows = figure.subfigures(len(heights), height_ratios=heights, squeeze=False)[:, 0]
    for i, variable in enumerate(shown):
        _histogram(_panel(rows[i // _ACROSS], i % _ACROSS), variable)
    if pairs:
        _heat_maps(rows[histograms], real, made, [variable.name for variable in shown])
        for row, side in zip(rows[histograms + 1 :], ("real", "made"), strict=True):
            for i, (a, b) in enumerate(pairs):
                _pair(_panel(row, i), shown[a], shown[b], side)
    with io.BytesIO() as file:
        figure.savefig(file, format="png")
        return Image.open(file).convert("RGB")


def _panel(row: Any, i: int) -> Any:
    return row.add_subplot(1, _ACROSS, i + 1)


def _as_categories(variable: Variable) -> Variable:
    """Numbers of few values are drawn as these."""
    values = np.unique(np.concatenate(_sides(variable)))
    values = values[~np.isnan(values)]
    if variable.words is not None or not 0 < len(values) <= _BARS:
        return variable
    real, made = (np.where(np.isnan(of), np.nan, np.searchsorted(values, of)) for of in _sides(variable))
    return Variable(variable.name, real, made, tuple(map(variable.write, values)), ordered=True)


# -- columns ------------------------------------------------------------------------------------------------------


def _edges(variable: Variable) -> Values:
    """Of bins that hold the real values, except for the outermost hundredths where these are outliers."""
    real = variable.real[~np.isnan(variable.real)]
    if not len(real):
        return np.array([0.0, 1.0])
    distinct = np.unique(real)
    if len(distinct) <= _BINS // 2 and len(distinct) > 1:  # one bin each
        middles = (distinct[1:] + distinct[:-1]) / 2
        return np.array([2 * distinct[0] - middles[0], *middles, 2 * distinct[-1] - middles[-1]])
    low, inner_low, inner_high, high = np.quantile(real, [0, 0.01, 0.99, 1])
    if high - low > 3 * (inner_high - inner_low) > 0:
        low, high = max(low, inner_low), min(high, inner_high)
    return np.histogram_bin_edges(real, _BINS, (low, high))


def _shares(variable: Variable) -> tuple[list[str], Values]:
    """Labels and `[2, bars]`, of the real and the made values: categories, the most frequent first, then all others
    and what is missing."""
    words = variable.words or ()
    counts = np.stack([_counts(of, len(words)) for of in (variable.real, variable.made)])
    order = np.arange(len(words)) if variable.ordered else np.argsort(-counts[0, :-1], kind="stable")
    head, tail = order[:_BARS], order[_BARS:]
    labels, columns = [words[i] for i in head], [counts[:, i] for i in head]
    if len(tail):
        labels.append(f"{len(tail)} others")
        columns.append(counts[:, tail].sum(1))
    if counts[:, -1].any():
        labels.append(_MISSING)
        columns.append(counts[:, -1])
    return labels, np.stack(columns, 1) / counts.sum(1, keepdims=True)


def _counts(codes: Values, size: int) -> NDArray[np.int64]:
    """`[size + 1]`, what is missing last."""
    return np.bincount(np.where(np.isnan(codes), size, codes).astype(np.int64), minlength=size + 1)


def _apart(variable: Variable) -> float:
    """Total variation distance of what is drawn."""
    if variable.words is not None:
        shares = _shares(variable)[1]
    else:
        edges = _edges(variable)
        counts = [np.histogram(np.clip(of[~np.isnan(of)], edges[0], edges[-1]), edges)[0] for of in _sides(variable)]
        shares = np.stack([of / max(1, of.sum()) for of in counts])
    return float(np.abs(shares[0] - shares[1]).sum())


def _sides(variable: Variable) -> tuple[Values, Values]:
    return variable.real, variable.made


def _histogram(ax: Any, variable: Variable) -> None:
    missing = ""
    if variable.words is not None:
        labels, shares = _shares(variable)
        places = np.arange(len(labels))
        for share, shift, colour in zip(shares, (-0.2, 0.2), (_REAL, _MADE), strict=True):
            ax.bar(places + shift, share, 0.4, color=colour)
        many = len(labels) > 4
        short = [_short(label) for label in labels]
        ax.set_xticks(places, short, rotation=30 if many else 0, ha="right" if many else "center", fontsize="x-small")
    else:
        edges = _edges(variable)
        styles: tuple[dict[str, Any], ...] = (
            {"color": _REAL, "histtype": "stepfilled"},
            {"color": _MADE, "histtype": "step", "linewidth": 1.5},
        )
        for of, style in zip(_sides(variable), styles, strict=True):
            known = np.clip(of[~np.isnan(of)], edges[0], edges[-1])
            ax.hist(known, edges, weights=np.full(len(known), 1 / max(1, len(of))), **style)
        if any(np.isnan(of).any() for of in _sides(variable)):
            real, made = (f"{np.isnan(of).mean():.1%}" for of in _sides(variable))
            missing = f"  (missing: {real}, generated {made})"
        _write_numbers(ax.xaxis, variable)
    ax.set_title(_short(variable.name, 40) + missing, fontsize="small")
    ax.set_yticks([])


def _write_numbers(axis: Any, variable: Variable) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(4))
    axis.set_major_formatter(FuncFormatter(lambda value, _: variable.write(value)))
    axis.set_tick_params(labelsize="x-small")


def _short(text: str, length: int = 12) -> str:
    # a dollar sign would begin a formula
    return (text if len(text) <= length else text[: length - 1] + "…").replace("$", r"\$")


# -- pairs --------------------------------------------------------------------------------------------------------


def _most_associated(variables: Sequence[Variable], associations: Values) -> list[tuple[int, int]]:
    """Pairs to draw: first pairs of numbers, then others, and no column more than twice."""
    numbers = [variable.words is None for variable in variables]
    ranked = sorted(
        itertools.combinations(range(len(variables)), 2),
        key=lambda pair: (-(numbers[pair[0]] and numbers[pair[1]]), -associations[pair]),
    )
    found: list[tuple[int, int]] = []
    for pair in ranked:
        if len(found) < _PAIRS and all(sum(column in other for other in found) < 2 for column in pair):
            found.append(pair)
    return found


def _groups(variable: Variable, side: str) -> NDArray[np.int64]:
    """Categories by code, numbers by tenths of the real table's rows; the last group is what is missing."""
    values: Values = getattr(variable, side)
    if variable.words is not None:
        return np.where(np.isnan(values), len(variable.words), values).astype(np.int64)
    known = variable.real[~np.isnan(variable.real)]
    edges = np.unique(np.quantile(known, np.arange(1, 10) / 10)) if len(known) else np.zeros(0)
    return np.where(np.isnan(values), len(edges) + 1, np.searchsorted(edges, values, side="right"))


def _associations(groups: list[NDArray[np.int64]]) -> Values:
    """Cramér's V of each pair, `[columns, columns]`: 0 where independent, 1 where one tells the other."""
    found = np.eye(len(groups))
    for i, j in itertools.combinations(range(len(groups)), 2):
        found[i, j] = found[j, i] = _cramer(groups[i], groups[j])
    return found


def _cramer(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """With the bias of few rows taken away: Bergsma 2013."""
    sizes = int(a.max()) + 1, int(b.max()) + 1
    table = np.bincount(a * sizes[1] + b, minlength=sizes[0] * sizes[1]).reshape(sizes).astype(np.float64)
    table = table[table.any(1)][:, table.any(0)]
    n, (rows, columns) = len(a), table.shape
    if min(rows, columns) < 2 or n < 3:
        return 0.0
    expected = table.sum(1, keepdims=True) * table.sum(0) / n
    phi = float((np.square(table - expected) / expected).sum()) / n - (rows - 1) * (columns - 1) / (n - 1)
    fewest = min(of - (of - 1) ** 2 / (n - 1) for of in (rows, columns)) - 1
    return math.sqrt(max(0.0, phi) / fewest) if fewest > 0 else 0.0


def _heat_maps(figure: Any, real: Values, made: Values, names: list[str]) -> None:
    panels = (
        ("association of columns, real (Cramér's V)", real),
        ("generated", made),
        ("generated − real", made - real),
    )
    for i, (title, values) in enumerate(panels):
        ax = figure.add_subplot(1, 3, i + 1)
        style = {"cmap": "viridis", "vmin": 0, "vmax": 1} if i < 2 else {"cmap": "RdBu", "vmin": -0.5, "vmax": 0.5}
        figure.colorbar(ax.imshow(values, **style), ax=ax, shrink=0.8).ax.tick_params(labelsize="x-small")
        ax.set_title(title, fontsize="small")
        size = "xx-small" if len(names) < 25 else 4
        short = [_short(name, 18) for name in names]
        ax.set_yticks(range(len(names)), short if i == 0 else [""] * len(names), fontsize=size)
        ax.set_xticks(range(len(names)), short, rotation=90, fontsize=size)


def _pair(ax: Any, a: Variable, b: Variable, side: str) -> None:
    """Numbers as a scatter plot, others with categories as a heat map of shares, a number with categories as boxes."""
    colour = _REAL if side == "real" else _MADE
    if a.words is not None and b.words is None:
        a, b = b, a
    x, y = (getattr(of, side)[:_POINTS] for of in (a, b))
    if b.words is None:
        ax.scatter(x, y, s=3, color=colour, linewidths=0)
        for axis, of, limit in ((ax.xaxis, a, ax.set_xlim), (ax.yaxis, b, ax.set_ylim)):
            edges = _edges(of)
            margin = (edges[-1] - edges[0]) * 0.03
            limit(edges[0] - margin, edges[-1] + margin)
            _write_numbers(axis, of)
    else:
        of_b = np.argsort(-_counts(b.real, len(b.words))[:-1], kind="stable")[:6]
        words = [_short(b.words[i], 9) for i in of_b]
        if a.words is None:
            parts = [x[(y == i) & ~np.isnan(x)] for i in of_b]
            ax.boxplot(parts, showfliers=False, medianprops={"color": colour}, widths=0.6)
            edges = _edges(a)
            ax.set_ylim(edges[0], edges[-1])
            ax.set_xticks(range(1, len(words) + 1), words, fontsize="xx-small")
            _write_numbers(ax.yaxis, a)
        else:
            of_a = np.argsort(-_counts(a.real, len(a.words))[:-1], kind="stable")[:6]
            whole = [getattr(of, side) for of in (a, b)]
            shares = np.array([[((whole[0] == i) & (whole[1] == j)).mean() for j in of_b] for i in of_a])
            ax.imshow(shares, cmap="Greys" if side == "real" else "Blues", vmin=0, vmax=0.5, aspect="auto")
            ax.set_xticks(range(len(words)), words, fontsize="xx-small")
            ax.set_yticks(range(len(of_a)), [_short(a.words[i], 9) for i in of_a], fontsize="xx-small")
    title = "real" if side == "real" else "generated"
    ax.set_title(f"{title}: {_short(a.name, 18)}, {_short(b.name, 18)}", fontsize="x-small")
