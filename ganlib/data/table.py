"""Tables: rows of numbers, integers, categories, booleans and dates, of any of which a value may be missing.

A row is stored as float64 `[columns]`: numbers as they are, categories by their place in `categories`, booleans as 0
and 1, dates as seconds since 1970, what is missing as NaN. What a column holds is guessed by `scan` from all rows,
unless the user wrote it in `columns`; range, decimals and modes are learnt by `settle` from training rows.

Networks see blocks next to each other (`layout`). A column of few different values is a one-hot choice among them. Any
other number is a choice among the modes of its distribution and a scalar in [-1, 1], its place within the mode:
mode-specific normalisation (Xu et al. 2019, section 4.2), with the modes of a Bayesian Gaussian mixture. Where a value
may be missing, that is one more choice.
"""

from __future__ import annotations

import datetime
import re
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from ganlib._config import Config as _Base
from ganlib.data import _charts
from ganlib.data._kind import Block, Part, Stored, Where
from ganlib.registry import nearest

__all__ = [
    "DUPLICATES",
    "MODALITY",
    "Column",
    "Config",
    "Mode",
    "compare",
    "decode",
    "describe",
    "encode",
    "layout",
    "parts",
    "present",
    "preview",
    "quantise",
    "scan",
    "settle",
    "take",
    "tiny",
    "where",
]

MODALITY = "table"
DUPLICATES = True

ColumnType = Literal["number", "integer", "category", "boolean", "date"]

_CHUNK = 4096  # rows whose values are counted together
_TYPE_SHARE = 0.99  # of the values has to fit a type for the others to be rejects
_MIXTURE_ROWS = 5_000  # training rows behind the modes
_LEAST_WEIGHT = 0.005  # of a mode
_LEARNT = ("low", "high", "decimals", "step", "values", "modes", "shares")
_EXACT = 2**53  # integers up to this are float64 numbers
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


class Mode(_Base):
    """A mode of a column's distribution: a Gaussian, and the range of the training values that are nearest to it."""

    weight: float
    mean: float
    std: float
    low: float
    high: float


class Column(_Base):
    """What is known of a column. What the user leaves out is guessed, or learnt; what he writes is kept."""

    name: str
    type: ColumnType | None = None
    """None: guessed"""
    missing: bool | None = None
    """whether a value may be missing"""
    categories: tuple[str, ...] = ()
    """of a category, in the order of their codes; of a boolean, the words for false and true"""
    formats: tuple[str, ...] = ()
    """of a date, as `strptime` has them; what is made is written in the first. Empty where dates came as such"""
    decimal: Literal[".", ","] | None = None
    """mark of decimals in numbers that are text; the other one may group thousands"""
    shown: Literal["text", "integer", "number", "boolean", "date"] | None = None
    """as what its values are presented: as pandas reads them from a file"""
    low: float | None = None
    high: float | None = None
    decimals: Annotated[int, Field(ge=0, le=15)] | None = None
    """of a number; None: as many as float64 has"""
    step: float | None = None
    """of a date, in seconds: 86400 where all are whole days"""
    values: tuple[float, ...] = ()
    """rising: all that a number has, where these are few"""
    modes: tuple[Mode, ...] = ()
    """of a number with many values"""
    shares: tuple[float, ...] = ()
    """of the training rows: each category, value or mode, then what is missing, if anything may be"""


class Config(_Base):
    kind: Literal["table"] = "table"
    columns: tuple[Column, ...] = ()
    """in the order of all arrays; the user names those whose type he knows better than it is guessed"""
    exclude: tuple[str, ...] = ()
    """columns to be left out"""
    target: str | None = None
    """the column by whose prediction samples are judged (`tstr`); None: the last"""
    max_categories: PositiveInt = 500
    """of a column; more are an error"""
    max_values: PositiveInt = 30
    """a number with no more different values than this is a choice among them"""
    max_modes: Annotated[int, Field(ge=1, le=50)] = 10
    missing_values: tuple[str, ...] = (
        *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>"),
        *("N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
    )
    """words for a missing value: by default those of pandas"""

    @model_validator(mode="after")
    def _named_once(self) -> Config:
        names = Counter([*(column.name for column in self.columns), *self.exclude])
        if twice := [name for name, count in names.items() if count > 1]:
            raise ValueError(f"columns and exclude: {', '.join(map(repr, twice))} is named twice")
        if self.target in self.exclude:
            raise ValueError(f"target: {self.target!r} is left out by `exclude`")
        return self


# -- reading values -----------------------------------------------------------------------------------------------


def _text(value: Any, missing: frozenset[str]) -> str | None:
    """A cell as text, None where it is missing. Raises ValueError for what no table has."""
    if isinstance(value, str):
        value = value.strip()
        return None if value in missing else value
    if value is None or value is pd.NaT or value is pd.NA:
        return None
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating):
        return None if value != value else repr(float(value))
    if isinstance(value, datetime.date):  # a datetime, too
        return value.isoformat(" ") if isinstance(value, datetime.datetime) else value.isoformat()
    if isinstance(value, (bytes, list, dict, tuple)) or not hasattr(value, "__float__"):
        raise ValueError(f"{type(value).__name__} values are no numbers, text or dates")
    return repr(float(value))


_INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]*)")
_POINT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_COMMA = re.compile(r"[+-]?([0-9]+,?[0-9]*|,[0-9]+)([eE][+-]?[0-9]+)?")
_THOUSANDS_COMMA = re.compile(r"[+-]?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]*)?")
_THOUSANDS_POINT = re.compile(r"[+-]?[0-9]{1,3}(\.[0-9]{3})+(,[0-9]*)?")
_LEADING_ZERO = re.compile(r"[+-]?0[0-9]+")


def _number(text: str, decimal: str | None) -> float | None:
    """None where it is no finite number with this decimal mark."""
    if decimal == ",":
        if _COMMA.fullmatch(text):
            text = text.replace(",", ".")
        elif _THOUSANDS_POINT.fullmatch(text):
            text = text.replace(".", "").replace(",", ".")
        else:
            return None
    elif not _POINT.fullmatch(text):
        if not _THOUSANDS_COMMA.fullmatch(text):
            return None
        text = text.replace(",", "")
    found = float(text)
    return found if abs(found) != np.inf else None


_DATES: tuple[str, ...] = (
    "%Y-%m-%d",
    "%Y/%m/%d",
    "%Y.%m.%d",
    "%d.%m.%Y",
    "%d-%m-%Y",
    "%m/%d/%Y",
    "%d/%m/%Y",
    "%m-%d-%Y",
    "%d.%m.%y",
)
_DATES += ("%m/%d/%y", "%d/%m/%y", "%d %b %Y", "%d %B %Y", "%d-%b-%Y", "%d-%b-%y", "%b %d, %Y", "%B %d, %Y", "%b %d %Y")
_TIMES = ("%H:%M", "%H:%M:%S", "%H:%M:%S.%f", "%H:%M:%S%z", "%H:%M:%S.%f%z", "%I:%M %p", "%I:%M:%S %p")
FORMATS = (
    *_DATES,
    *(f"{date}{between}{time}" for date in _DATES for between in (" ", "T") for time in _TIMES),
)
"""formats of dates that are known; where a column suits several, the first one holds"""


def _marks(text: str) -> str:
    """What tells formats of dates apart quickly: all that is neither letter nor digit."""
    return re.sub(r"[0-9A-Za-z]+", "", text)


@lru_cache(1)
def _formats_by_marks() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for form in FORMATS:
        shown = datetime.datetime(2001, 2, 3, 4, 5, 6, 7, datetime.UTC).strftime(form.replace("%z", "{}"))
        for zone in ("+00:00", "-00:00", "+0000", "-0000", "Z") if "{}" in shown else ("",):
            found.setdefault(_marks(shown.replace("{}", zone)), []).append(form)
    return {marks: list(dict.fromkeys(forms)) for marks, forms in found.items()}


@lru_cache(100_000)
def _date(text: str, form: str) -> float | None:
    """Seconds since 1970, or None where the text is not so written. What names no zone is taken for UTC."""
    try:
        found = datetime.datetime.strptime(text, form)
    except ValueError:
        return None
    return (found.replace(tzinfo=found.tzinfo or datetime.UTC) - _EPOCH).total_seconds()


def _date_in(text: str, formats: Iterable[str]) -> float | None:
    """By the first format that suits."""
    return next((found for form in formats if (found := _date(text, form)) is not None), None)


_FALSE, _TRUE = ("false", "f", "no", "n", "0"), ("true", "t", "yes", "y", "1")


# -- what is encoded ----------------------------------------------------------------------------------------------


def _complete(cfg: Config) -> None:
    if not cfg.columns or any(column.type is None for column in cfg.columns):
        raise ValueError("the columns of this table are not known yet: `scan` completes them")


def parts(cfg: Config) -> dict[str, Part]:
    """Raises ValueError before `scan`. Before `settle`, the width is that of as many choices as are known."""
    _complete(cfg)
    width = sum(block.size for block in layout(cfg))
    return {"sample": Part((width,), (len(cfg.columns),), "float64")}


def layout(cfg: Config) -> tuple[Block, ...]:
    """How the numbers of a sample lie: `Block`s that follow one another, in the order of the columns. A column with
    modes has a scalar and then a choice; any other is one choice. What is missing is a choice's last entry."""
    blocks, start = list[Block](), 0
    for index, column in enumerate(cfg.columns):
        if column.modes:
            blocks.append(Block(index, column.name, "scalar", start, 1))
            start += 1
        size = (len(column.modes) or len(_codes(column))) + bool(column.missing)
        blocks.append(Block(index, column.name, "choice", start, size, column.shares))
        start += size
    return tuple(blocks)


def _codes(column: Column) -> tuple[float, ...]:
    """What a column without modes may be, as stored, rising."""
    return column.values or tuple(map(float, range(len(column.categories))))


def encode(cfg: Config, row: Mapping[str, Any]) -> Stored:
    """A row by column names. Raises ValueError for a value that is not of its column's type."""
    tables = _tables(cfg)
    if lost := [column.name for column in cfg.columns if column.name not in row]:
        raise ValueError(f"it has no column {', '.join(map(repr, lost))}")
    return {"sample": np.array([_code(tables, column, row[column.name]) for column in cfg.columns])}


def take(cfg: Config, part: str, raw: Mapping[str, Any]) -> NDArray[Any]:
    """A row of what `present` shows."""
    return encode(cfg, raw)[part]


def _code(tables: _Tables, column: Column, value: Any) -> float:
    """Raises ValueError where the value is none of the column's."""
    text = _text(value, tables.missing)
    if text is None:
        if not column.missing:
            raise ValueError(f"column {column.name!r}: a value is missing")
        return np.nan
    code: float | None
    if column.type == "category":
        code = tables.categories[column.name].get(text)
    elif column.type == "boolean":
        code = tables.categories[column.name].get(text.lower())
    elif column.type == "date":
        code = _date_in(text, column.formats or FORMATS)
    else:
        code = _number(text, column.decimal)
        if column.type == "integer" and code is not None and not code.is_integer():
            code = None
    if code is None:
        raise ValueError(f"column {column.name!r}: {text[:40]!r} is not a {column.type} as expected there")
    return code + 0.0  # no negative zero


# -- what is guessed ----------------------------------------------------------------------------------------------


def scan(cfg: Config, rows: Iterable[Mapping[str, Any]]) -> Config:
    """Complete the columns by what rows hold: types, categories, formats, whether something is missing.

    A type holds if all values fit it: boolean (true, false), integer, number, date. Otherwise the column is a category,
    or, where there are more than `max_categories` different values, of a type that 99 % of the values fit; then the
    others are rejects. Digits that start with a zero, and whole numbers beyond 2^53, are text. Raises ValueError for no
    rows, an unknown column in `columns`, `exclude` or `target`, too many categories, or values that the type which the
    user wrote does not have.
    """
    missing = frozenset(cfg.missing_values)
    found: dict[str, _Guess] = {}
    rows = iter(rows)
    while chunk := list(islice(rows, _CHUNK)):
        if not found:
            found = {name: _Guess(cfg.max_categories) for name in chunk[0] if name not in cfg.exclude}
            names = [*(column.name for column in cfg.columns), *cfg.exclude]
            for name in [*names, *([] if cfg.target is None else [cfg.target])]:
                if name not in chunk[0]:
                    known = ", ".join(chunk[0])
                    raise ValueError(f"no column {name!r}{nearest(name, chunk[0])}; there are: {known}")
        for name, guess in found.items():
            try:
                guess.add([row[name] for row in chunk if name in row], missing)
            except ValueError as error:
                raise ValueError(f"column {name!r}: {error}") from error
    if not found:
        raise ValueError("there are no rows")
    said = {column.name: column for column in cfg.columns}
    columns = tuple(guess.column(said.get(name, Column(name=name))) for name, guess in found.items())
    return Config(**{**dict(cfg), "columns": columns})


class _Guess:
    """What a column may be, as its values come."""

    def __init__(self, max_categories: int) -> None:
        self.max_categories = max_categories
        self.count = self.missing = 0
        self.types: set[str] = set()
        self.distinct: Counter[str] | None = Counter()
        """None once there are too many"""
        self.fits: Counter[str] = Counter()
        """how many values each of the forms below has"""
        self.formats: Counter[str] = Counter()

    def add(self, values: list[Any], missing: frozenset[str]) -> None:
        self.types |= {type(value).__name__ for value in values}
        found = Counter(_text(value, missing) for value in values)
        texts = {text: count for text, count in found.items() if text is not None}
        self.count += len(values)
        self.missing += found[None]
        if self.distinct is None:
            for text, count in texts.items():
                self._count(text, count)
            return
        self.distinct.update(texts)
        if len(self.distinct) > self.max_categories:
            for text, count in self.distinct.items():
                self._count(text, count)
            self.distinct = None

    def _count(self, text: str, count: int) -> None:
        """Which forms a value has."""
        if text.lower() in ("true", "false"):
            self.fits["boolean"] += count
            return
        if _LEADING_ZERO.fullmatch(text):  # such as a postal code
            return
        if _POINT.fullmatch(text):
            if _INTEGER.fullmatch(text):
                if abs(int(text)) > _EXACT:
                    return
                self.fits["integer"] += count
                self.fits["comma"] += count
            self.fits["point"] += count
        elif _THOUSANDS_COMMA.fullmatch(text):
            self.fits["point"] += count
            if _COMMA.fullmatch(text):
                self.fits["comma"] += count
        elif _COMMA.fullmatch(text):
            self.fits["comma"] += count
        elif forms := [f for f in _formats_by_marks().get(_marks(text), ()) if _date(text, f) is not None]:
            self.formats.update(dict.fromkeys(forms, count))
            self.fits["date"] += count
        if _THOUSANDS_POINT.fullmatch(text) and not _POINT.fullmatch(text):
            self.fits["comma"] += count

    def column(self, said: Column) -> Column:
        """The column completed. Raises ValueError as `scan` does."""
        if self.distinct is not None:
            for text, count in self.distinct.items():
                self._count(text, count)
        present = self.count - self.missing
        guessed, decimal = self._type(present)
        kind = said.type or guessed
        known: dict[str, Any] = {
            "name": said.name,
            "type": kind,
            "missing": bool(self.missing) if said.missing is None else said.missing,
            "shown": said.shown or self._shown(kind, guessed),
        }
        if kind in ("number", "integer"):
            known["decimal"] = said.decimal or decimal or "."
        elif kind == "date":
            known["formats"] = said.formats or (() if known["shown"] == "date" else self._formats())
        elif kind == "boolean":
            known["categories"] = said.categories or self._words(said)
        else:
            known["categories"] = said.categories or self._categories(said)
        kept = {name: getattr(said, name) for name in _LEARNT}
        return Column(**known, **kept)

    def _type(self, present: int) -> tuple[ColumnType, str | None]:
        """Type and decimal mark."""
        forms: list[tuple[str, ColumnType, str | None]] = [
            ("boolean", "boolean", None),
            ("integer", "integer", "."),
            ("point", "number", "."),
            ("comma", "number", ","),
            ("date", "date", None),
        ]
        if not present:
            return "number", "."
        for form, kind, decimal in forms:
            if self.fits[form] == present:
                return kind, decimal
        if self.distinct is None:
            best = max(forms, key=lambda form: self.fits[form[0]])
            if self.fits[best[0]] >= _TYPE_SHARE * present:
                return best[1], best[2]
        return "category", None

    def _shown(self, kind: ColumnType, guessed: ColumnType) -> str:
        """As what pandas would read it."""
        if kind == "category":
            return guessed if guessed in ("integer", "number", "boolean") else "text"
        if kind == "date":
            typed = self.types & {"date", "datetime", "Timestamp"} and "str" not in self.types
            return "date" if typed else "text"
        return kind

    def _formats(self) -> tuple[str, ...]:
        """The format that most values suit; further ones where it does not suit all, by how many suit them."""
        ranks = {form: rank for rank, form in enumerate(FORMATS)}
        by_count = sorted(self.formats, key=lambda form: (-self.formats[form], ranks[form]))
        if not by_count:
            raise ValueError("no known format of dates suits its values; write `formats`, as strptime has them")
        return tuple(by_count[:1] if self.formats[by_count[0]] == self.fits["date"] else by_count)

    def _words(self, said: Column) -> tuple[str, ...]:
        """The words for false and true."""
        words = sorted({text.lower() for text in self.distinct or {}})
        pair = [word for words_of in (_FALSE, _TRUE) for word in words_of if word in words]
        if self.distinct is None:  # guessed with some rejects
            pair = ["false", "true"]
        elif len(words) > 2 or len(pair) < len(words):
            raise ValueError(f"column {said.name!r}: a boolean is false or true, 0 or 1, no or yes; found {words[:5]}")
        if len(pair) < 2:
            word = pair[0] if pair else "false"
            other = _TRUE[_FALSE.index(word)] if word in _FALSE else _FALSE[_TRUE.index(word)]
            pair = [word, other] if word in _FALSE else [other, word]
        return tuple(pair)

    def _categories(self, said: Column) -> tuple[str, ...]:
        if self.distinct is None:
            raise ValueError(
                f"column {said.name!r} has more than {self.max_categories} categories; leave it out by `exclude: "
                f"[{said.name}]`, write its type in `columns`, or raise max_categories"
            )
        numbers = all(_POINT.fullmatch(text) for text in self.distinct)
        return tuple(sorted(self.distinct, key=(lambda text: (float(text), text)) if numbers else str))


# -- what is learnt -----------------------------------------------------------------------------------------------


def settle(cfg: Config, rows: Iterable[Stored]) -> Config:
    """Learn from training rows `[N, columns]` the ranges, decimals, few values and modes of numbers and dates, and how
    often each choice is made."""
    numbers = [i for i, column in enumerate(cfg.columns) if column.type in ("number", "integer", "date")]
    learnt = {i: _Numbers(cfg.max_values) for i in numbers}
    sample, taken = list[NDArray[np.float64]](), 0
    for chunk in rows:
        for i, of in learnt.items():
            of.add(chunk["sample"][:, i])
        if taken < _MIXTURE_ROWS:  # rows lie in random order
            sample.append(chunk["sample"][: _MIXTURE_ROWS - taken])
            taken += len(sample[-1])
    whole = np.concatenate(sample)
    columns = list(cfg.columns)
    for i, of in learnt.items():
        columns[i] = of.column(columns[i], whole[:, i], cfg.max_modes)
    # every mode's range has to be that of all training rows
    ranged = {i: _Ranges(columns[i].modes) for i in numbers if columns[i].modes and not cfg.columns[i].modes}
    if ranged:
        for chunk in rows:
            for i, ranges in ranged.items():
                ranges.add(chunk["sample"][:, i])
    for i, ranges in ranged.items():
        columns[i] = _changed(columns[i], modes=ranges.modes())
    settled = Config(**{**dict(cfg), "columns": tuple(columns)})
    tables = _tables(settled)
    counts = [torch.zeros(tables.choices[i].size, dtype=torch.int64) for i in range(len(columns))]
    for chunk in rows:
        chosen, _ = _choices(tables, torch.tensor(chunk["sample"]))
        for count, choice in zip(counts, chosen.unbind(1), strict=True):
            count += torch.bincount(choice, minlength=len(count))
    shares = [tuple((count / count.sum()).tolist()) for count in counts]
    told = (_changed(c, shares=c.shares or found) for c, found in zip(columns, shares, strict=True))
    return Config(**{**dict(settled), "columns": tuple(told)})


def _changed(column: Column, **changes: Any) -> Column:
    return Column(**{**dict(column), **changes})


class _Numbers:
    """What training rows tell of a column of numbers or dates."""

    def __init__(self, max_values: int) -> None:
        self.max_values = max_values
        self.low, self.high = np.inf, -np.inf
        self.values: NDArray[np.float64] | None = np.empty(0)
        self.decimals, self.step = 0, 86400.0

    def add(self, column: NDArray[np.float64]) -> None:
        column = column[~np.isnan(column)]
        if not len(column):
            return
        self.low, self.high = min(self.low, column.min()), max(self.high, column.max())
        if self.values is not None:
            self.values = np.unique(np.concatenate([self.values, column]))
            if len(self.values) > self.max_values:
                self.values = None
        while self.decimals < 15 and (np.round(column, self.decimals) != column).any():
            self.decimals += 1
        for step in (3600.0, 60.0, 1.0, 0.0):
            if self.step and (np.remainder(column, self.step) != 0).any():
                self.step = step

    def column(self, said: Column, sample: NDArray[np.float64], max_modes: int) -> Column:
        """The column completed."""
        if self.low > self.high:  # all values are missing
            return _changed(said, missing=True)
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
        if not changes["values"] and not said.modes:
            changes["modes"] = _mixture(sample[~np.isnan(sample)], max_modes)
        return _changed(said, **changes)


def _mixture(values: NDArray[np.float64], max_modes: int) -> tuple[Mode, ...]:
    """The modes of a variational Gaussian mixture with a Dirichlet process prior (Blei & Jordan 2006), by their means.

    Xu et al. 2019 take the same: at most 10 modes, of which those of little weight fall away.
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


class _Ranges:
    """The range of the training values of each mode."""

    def __init__(self, modes: tuple[Mode, ...]) -> None:
        self._modes = modes
        self._numbers = _mode_numbers([modes])
        self._low, self._high = np.full(len(modes), np.inf), np.full(len(modes), -np.inf)

    def add(self, column: NDArray[np.float64]) -> None:
        values = torch.tensor(column[~np.isnan(column)])
        of = _mode_of(values[:, None], self._numbers)[:, 0].numpy()
        np.minimum.at(self._low, of, values.numpy())
        np.maximum.at(self._high, of, values.numpy())

    def modes(self) -> tuple[Mode, ...]:
        """Those that are nearest to any value."""
        found = zip(self._modes, self._low.tolist(), self._high.tolist(), strict=True)
        return tuple(Mode(**{**dict(mode), "low": low, "high": high}) for mode, low, high in found if low <= high)


# -- what networks see --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ModeNumbers:
    """Of each of C columns the K modes, or fewer and entries that no value is near to; float64 `[C, K]`."""

    log_weight: Tensor
    mean: Tensor
    std: Tensor
    middle: Tensor
    half: Tensor
    """of the range; 1 where it is a point"""


def _mode_numbers(columns: list[tuple[Mode, ...]]) -> _ModeNumbers:
    most = max(map(len, columns), default=0)

    def table(of: Any, padding: float) -> Tensor:
        rows = [[of(mode) for mode in modes] + [padding] * (most - len(modes)) for modes in columns]
        return torch.tensor(rows, dtype=torch.float64)

    return _ModeNumbers(
        table(lambda mode: np.log(mode.weight / mode.std), -np.inf),
        table(lambda mode: mode.mean, 0.0),
        table(lambda mode: mode.std, 1.0),
        table(lambda mode: (mode.low + mode.high) / 2, 0.0),
        table(lambda mode: (mode.high - mode.low) / 2 or 1.0, 1.0),
    )


def _mode_of(values: Tensor, numbers: _ModeNumbers) -> Tensor:
    """The most probable mode, int64, of each value, both `[N, C]`."""
    scaled = (values[:, :, None] - numbers.mean) / numbers.std
    return (numbers.log_weight - 0.5 * scaled.square()).argmax(2)


@dataclass(frozen=True)
class _Tables:
    """What functions look up, made once for a configuration."""

    missing: frozenset[str]
    categories: dict[str, dict[str, float]]
    """codes of categories and of the words of booleans"""
    width: int
    blocks: tuple[Block, ...]
    choices: dict[int, Block]
    """by column"""
    with_modes: list[int]
    without: list[int]
    modes: _ModeNumbers
    codes: Tensor
    """of the columns without modes, float64 `[C, K]`, rising, then infinite"""
    last: Tensor
    """where the last of these stands, int64 `[C]`"""
    starts: Tensor
    """of the choices of all columns, int64"""
    missing_at: Tensor
    """the last entries of these choices, int64"""


_recent: deque[tuple[Config, _Tables]] = deque(maxlen=8)  # by identity: to compare configurations would take longer


def _tables(cfg: Config) -> _Tables:
    for known, tables in _recent:
        if known is cfg:
            return tables
    _complete(cfg)
    blocks = layout(cfg)
    of_words = {c.name: c.categories for c in cfg.columns if c.type in ("category", "boolean")}
    categories = {name: {word: float(code) for code, word in enumerate(words)} for name, words in of_words.items()}
    with_modes = [i for i, column in enumerate(cfg.columns) if column.modes]
    without = [i for i, column in enumerate(cfg.columns) if not column.modes]
    codes = [_codes(cfg.columns[i]) for i in without]
    most = max(map(len, codes), default=0)
    tables = _Tables(
        frozenset(cfg.missing_values),
        categories,
        sum(block.size for block in blocks),
        blocks,
        {block.column: block for block in blocks if block.kind == "choice"},
        with_modes,
        without,
        _mode_numbers([cfg.columns[i].modes for i in with_modes]),
        torch.tensor([[*row, *[np.inf] * (most - len(row))] for row in codes], dtype=torch.float64),
        torch.tensor([max(0, len(row) - 1) for row in codes], dtype=torch.int64),
        torch.tensor([block.start for block in blocks if block.kind == "choice"]),
        torch.tensor([block.size - 1 for block in blocks if block.kind == "choice"]),
    )
    _recent.append((cfg, tables))
    return tables


def decode(cfg: Config, part: str, stored: Tensor) -> Tensor:
    """Codes `[N, columns]` to float32 `[N, width]`. Where numbers are a choice, one that no training row has becomes
    the nearest that one has."""
    tables = _tables(cfg)
    chosen, scalars = _choices(tables, stored)
    out = torch.zeros(len(stored), tables.width, device=stored.device)
    out[:, [block.start for block in tables.blocks if block.kind == "scalar"]] = scalars.float()
    return out.scatter_(1, chosen + tables.starts.to(stored.device), 1.0)


def _choices(tables: _Tables, stored: Tensor) -> tuple[Tensor, Tensor]:
    """What each column chooses, int64 `[N, columns]`, and the places within modes, float64 `[N, scalars]`."""
    device, missing = stored.device, stored.isnan()
    chosen = torch.zeros_like(stored, dtype=torch.int64)
    scalars = stored.new_zeros(len(stored), 0)
    if tables.with_modes:
        modes = _ModeNumbers(*(getattr(tables.modes, name).to(device) for name in _ModeNumbers.__dataclass_fields__))
        values = stored[:, tables.with_modes].nan_to_num(0.0)
        of, columns = _mode_of(values, modes), torch.arange(len(tables.with_modes), device=device)
        chosen[:, tables.with_modes] = of
        places = (values - modes.middle[columns, of]) / modes.half[columns, of]
        # of values beyond all training rows', too
        scalars = places.masked_fill(missing[:, tables.with_modes], 0.0).clamp(-1.0, 1.0)
    if tables.without and tables.codes.shape[1]:
        codes, columns = tables.codes.to(device), torch.arange(len(tables.without), device=device)
        values = stored[:, tables.without].nan_to_num(0.0)
        above = torch.searchsorted(codes, values.T.contiguous()).T.minimum(tables.last.to(device))
        below = (above - 1).clamp_min(0)
        nearer = (values - codes[columns, below]).abs() < (codes[columns, above] - values).abs()
        chosen[:, tables.without] = torch.where(nearer, below, above)
    return torch.where(missing, tables.missing_at.to(device), chosen), scalars


def quantise(cfg: Config, samples: Tensor) -> Tensor:
    """Float `[N, width]`, of a generator too, to codes `[N, columns]`: a choice is its largest entry. Numbers keep to
    the range, the decimals and, in dates, the steps of the training rows."""
    tables = _tables(cfg)
    out = torch.empty(samples.shape[0], len(cfg.columns), dtype=torch.float64, device=samples.device)
    scalars = {block.column: block.start for block in tables.blocks if block.kind == "scalar"}
    modes = {column: row for row, column in enumerate(tables.with_modes)}
    codes = {column: row for row, column in enumerate(tables.without)}
    for i, column in enumerate(cfg.columns):
        block = tables.choices[i]
        chosen = samples[:, block.start : block.start + block.size].argmax(1)
        known = chosen.clamp_max(max(0, block.size - 1 - bool(column.missing)))
        if column.modes:
            middle, half = tables.modes.middle[modes[i]].to(out), tables.modes.half[modes[i]].to(out)
            values = middle[known] + samples[:, scalars[i]].double().clamp(-1.0, 1.0) * half[known]
            values = _rounded(column, values)
        elif _codes(column):
            values = tables.codes[codes[i]].to(out)[known]
        else:
            values = torch.full_like(out[:, i], np.nan)
        out[:, i] = values.masked_fill(chosen == block.size - 1, np.nan) if column.missing else values
    return out


def _rounded(column: Column, values: Tensor) -> Tensor:
    if column.step:
        values = (values / column.step).round() * column.step
    elif column.decimals is not None:
        values = (values * 10.0**column.decimals).round() / 10.0**column.decimals
    return values.clamp(column.low, column.high) + 0.0  # no negative zero


# -- what a consumer gets -----------------------------------------------------------------------------------------


def present(cfg: Config, part: str, stored: NDArray[np.float64]) -> pd.DataFrame:
    """Codes `[N, columns]` as a DataFrame with the columns and dtypes of the file as pandas reads it; integers and
    booleans of which some are missing are nullable."""
    return pd.DataFrame({column.name: _series(column, stored[:, i]) for i, column in enumerate(cfg.columns)})


def _series(column: Column, codes: NDArray[np.float64]) -> Any:
    missing = np.isnan(codes)
    integer, boolean = ("Int64", "boolean") if column.missing else ("int64", "bool")
    if column.type == "number":
        return pd.Series(codes)
    if column.type == "integer":
        return pd.Series(codes).astype(integer)
    if column.type == "boolean":
        return pd.Series(codes).astype(boolean)
    if column.type == "date":
        if column.shown == "date":
            return pd.Series(pd.to_datetime(codes, unit="s"))
        distinct, of = np.unique(codes[~missing], return_inverse=True)
        words = np.full(len(codes), None, object)
        words[~missing] = np.array([_written(column, second) for second in distinct.tolist()], object)[of]
        return pd.Series(words)
    names = [*column.categories, None]
    if column.shown in ("integer", "number"):
        numbers = np.array([np.nan if name is None else _number(name, column.decimal) for name in names])
        chosen = pd.Series(numbers[np.where(missing, -1, codes).astype(np.int64)])
        return chosen.astype(integer) if column.shown == "integer" else chosen
    return pd.Series(np.array(names, object)[np.where(missing, -1, codes).astype(np.int64)])


def _written(column: Column, seconds: float) -> str:
    return (_EPOCH + datetime.timedelta(seconds=seconds)).strftime(column.formats[0])


def preview(cfg: Config, samples: Mapping[str, Tensor], columns: int) -> Image.Image:
    """A histogram of each column; of several names, in one picture each below the other's."""
    tables, cell, bins = _tables(cfg), (150, 90), 30
    across = max(1, min(6, len(cfg.columns)))
    down = -(-len(cfg.columns) // across)
    picture = Image.new("RGB", (across * cell[0], down * cell[1] * len(samples)), "white")
    draw = ImageDraw.Draw(picture)
    for number, (name, sample) in enumerate(samples.items()):
        codes = quantise(cfg, sample.detach().cpu())
        for i, column in enumerate(cfg.columns):
            left = i % across * cell[0] + 4
            top = (number * down + i // across) * cell[1] + 2
            found = codes[:, i][~codes[:, i].isnan()]
            draw.text((left, top), f"{column.name[:18]} ({name})"[:24], "black")
            if column.modes:
                heights = torch.histc(found, bins, column.low or 0.0, column.high or 1.0).tolist()
            else:
                places = torch.searchsorted(tables.codes[tables.without.index(i)], found)
                heights = torch.bincount(places)[:bins].tolist()
            most = max(heights, default=0.0) or 1.0
            wide = (cell[0] - 8) / max(1, len(heights))
            base = top + cell[1] - 6
            for k, height in enumerate(heights):
                x = left + k * wide
                draw.rectangle((x, base - height / most * (cell[1] - 24), x + wide * 0.8, base), "steelblue")
    return picture


def compare(cfg: Config, made: NDArray[np.float64], real: NDArray[np.float64]) -> Image.Image:
    """Codes `[N, columns]` and `[M, columns]` beside each other, column by column and in pairs."""

    def write(column: Column) -> Callable[[float], str]:
        if column.type == "date":
            return lambda seconds: (_EPOCH + datetime.timedelta(seconds=seconds)).strftime("%Y-%m-%d")
        return "{:g}".format

    return _charts.page(
        [
            _charts.Variable(column.name, real[:, i], made[:, i], column.categories or None, write(column))
            for i, column in enumerate(cfg.columns)
        ]
    )


_CONDITION = re.compile(r"\s*(.+?)\s*(<=|>=|!=|=|<|>)\s*(.*?)\s*")


def where(cfg: Config, conditions: Sequence[str]) -> Where:
    """Conditions such as `churn=yes`, `tenure<12`, `since>=2020-01-31`, all of which have to hold; `churn=` asks for a
    missing value. Raises ValueError for an unknown column or value, or a comparison of categories."""
    tables = _tables(cfg)
    known = torch.full((tables.width,), torch.nan)
    names = {column.name: i for i, column in enumerate(cfg.columns)}
    checks: list[tuple[int, str, float]] = []
    for condition in conditions:
        match = _CONDITION.fullmatch(condition)
        if match is None:
            raise ValueError(f"where: {condition!r}: expected COLUMN=VALUE, or <, <=, >, >=, != in place of =")
        name, sign, text = match.groups()
        if name not in names:
            raise ValueError(f"where: no column {name!r}{nearest(name, names)}; known: {', '.join(names)}")
        i, column, block = names[name], cfg.columns[names[name]], tables.choices[names[name]]
        if sign not in ("=", "!=") and column.type in ("category", "boolean"):
            raise ValueError(f"where: {condition!r}: a {column.type} is compared by = or != alone")
        try:
            code = _code(tables, column, text)
        except ValueError as error:
            hint = f"; known: {', '.join(column.categories[:20])}" if column.categories else ""
            raise ValueError(f"where: {error}{hint}") from error
        if code != code and sign not in ("=", "!="):
            raise ValueError(f"where: {condition!r}: expected a value after {sign}")
        checks.append((i, sign, code))
        if sign == "=" and not column.modes:
            at = block.size - 1 if code != code else _place(column, code)
            known[block.start : block.start + block.size] = 0.0
            known[block.start + at] = 1.0
    return Where(known, lambda stored: _all_hold(checks, stored))


def _place(column: Column, code: float) -> int:
    """Raises ValueError for a number that no training row has."""
    if code not in _codes(column):
        raise ValueError(f"where: column {column.name!r} is one of {', '.join(map(str, column.values))}; found {code}")
    return _codes(column).index(code)


def _all_hold(checks: list[tuple[int, str, float]], stored: Tensor) -> Tensor:
    held = torch.ones(len(stored), dtype=torch.bool)
    compare = {"=": torch.eq, "!=": torch.ne, "<": torch.lt, "<=": torch.le, ">": torch.gt, ">=": torch.ge}
    for i, sign, code in checks:
        values = stored[:, i]
        if code != code:
            held &= values.isnan() == (sign == "=")
        else:
            held &= compare[sign](values, torch.tensor(code, dtype=stored.dtype))
    return held


def describe(cfg: Config, stored: Stored) -> dict[str, Any]:
    """What was guessed and learnt of each column, so that a user sees it and can write it otherwise."""
    return {"columns": {c.name: _described(c, stored["sample"][:, i]) for i, c in enumerate(cfg.columns)}}


def _described(column: Column, codes: NDArray[np.float64]) -> dict[str, Any]:
    known = codes[~np.isnan(codes)]
    found: dict[str, Any] = {"type": column.type, "missing_share": round(1 - len(known) / max(1, len(codes)), 4)}
    if column.categories:
        counts = np.bincount(known.astype(np.int64), minlength=len(column.categories)) / max(1, len(known))
        shares = dict(zip(column.categories, np.round(counts, 4).tolist(), strict=True))
        return {**found, "categories": len(shares), "shares": dict(islice(shares.items(), 20))}
    if not len(known):
        return found
    figures: dict[str, Any] = {"low": column.low, "high": column.high, "mean": round(float(known.mean()), 6)}
    if column.type == "date":
        formats = column.formats or ("%Y-%m-%d %H:%M:%S",)
        shown = {name: (_EPOCH + datetime.timedelta(seconds=figures[name])).strftime(formats[0]) for name in figures}
        figures = {**shown, "formats": list(column.formats)}
    elif column.type == "number":
        figures |= {"decimals": column.decimals, "decimal_mark": column.decimal}
    return {**found, **figures, **({"values": len(column.values)} if column.values else {"modes": len(column.modes)})}


def tiny() -> tuple[Config, list[dict[str, Any]]]:
    rng = np.random.default_rng(0)

    def rows() -> Iterator[dict[str, Any]]:
        for i in range(70):
            day = datetime.date(2020, 1, 1) + datetime.timedelta(days=int(rng.integers(0, 700)))
            yield {
                "weight": f"{rng.normal(70, 9):.2f}",
                "age": str(int(rng.integers(18, 90))),
                "children": str(int(rng.integers(0, 4))) if i % 7 else "",
                "colour": ("red", "green", "blue", "")[int(rng.integers(0, 4))],
                "member": ("True", "False")[int(rng.integers(0, 2))],
                "since": day.strftime("%d.%m.%Y"),
            }

    made = list(rows())
    return Config(max_modes=3), [*made, *made[:10]]
