"""Tables: rows of numbers, integers, categories, booleans and dates; any value may be missing.

A row is stored as float64 `[columns]`: numbers as they are, categories by their place in `categories`, booleans as 0
and 1, dates as seconds since 1970, what is missing as NaN. What a column holds is guessed by `scan` from all rows,
unless the user wrote it in `columns`; range, decimals and modes are learnt by `settle` from training rows.

Networks see blocks next to each other (`layout`). A column of few different values is a one-hot choice among them. Any
other number is a choice among the modes of its distribution and a scalar, its place within the mode, [-1, 1] in
training rows: mode-specific normalisation (Xu et al. 2019, section 4.2), with the modes of a Bayesian Gaussian mixture,
and each value that a tenth of the rows have. Where a value may be missing, that is one more choice.
"""

from __future__ import annotations

import datetime
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
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
from ganlib.data._classes import MISSING_WORDS
from ganlib.data._column import EPOCH, Column, Guess, Mode, as_date, as_number, changed, strftime, written
from ganlib.data._kind import Block, Part, Stored, Where
from ganlib.data._modes import ModeTensors, Numbers, Ranges, mode_of, mode_tensors
from ganlib.data._rows import Vocabulary, code_of, codes_of, parse_conditions, vocabulary_of
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

_CHUNK = 4096  # rows whose values are counted together
_FEW_WORDS = 0.1  # share of rows up to which words in a column of numbers are noted
_LEAST_ROWS = 50  # fewer do not show that a column holds identifiers
_LEAST_PAIRS = 8  # equal pairs that random whole numbers of a column's range would have
_FARTHEST = 10.0  # scalar that networks see of a value beyond its mode's range, at most


class Config(_Base):
    kind: Literal["table"] = "table"
    columns: tuple[Column, ...] = ()
    """in the order of all arrays; the user names those whose type is guessed wrongly"""
    exclude: tuple[str, ...] = ()
    """columns to be left out"""
    target: str | None = None
    """the column by whose prediction samples are judged (`tstr`); None: the last"""
    max_categories: PositiveInt = 500
    """of a column; more are an error"""
    max_values: PositiveInt = 30
    """a number with no more different values than this is a choice among them"""
    max_modes: Annotated[int, Field(ge=1, le=50)] = 10
    missing_values: tuple[str, ...] = MISSING_WORDS
    """words for a missing value, in the column of labels, too: by default those of pandas"""

    @model_validator(mode="after")
    def _named_once(self) -> Config:
        names = Counter([*(column.name for column in self.columns), *self.exclude])
        if twice := [name for name, count in names.items() if count > 1]:
            raise ValueError(f"columns and exclude: {', '.join(map(repr, twice))} is named twice")
        if self.target in self.exclude:
            raise ValueError(f"target: {self.target!r} is left out by `exclude`")
        return self


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
        size = (len(column.modes) or len(codes_of(column))) + bool(column.missing)
        blocks.append(Block(index, column.name, "choice", start, size, column.shares))
        start += size
    return tuple(blocks)


def encode(cfg: Config, row: Mapping[str, Any]) -> Stored:
    """A row by column names. Raises ValueError for a value that is not of its column's type."""
    words = _tables(cfg).words
    if lost := [column.name for column in cfg.columns if column.name not in row]:
        raise ValueError(f"it has no column {', '.join(map(repr, lost))}")
    return {"sample": np.array([code_of(words, column, row[column.name]) for column in cfg.columns])}


def take(cfg: Config, part: str, raw: Mapping[str, Any]) -> NDArray[Any]:
    """A row of what `present` shows. Raises ValueError as `encode` does."""
    if isinstance(raw, Path):
        raise ValueError("rows are not read from files; expected rows of a DataFrame, given to the registered model")
    if not isinstance(raw, Mapping):
        raise ValueError(f"expected a row: names of columns with values, found {type(raw).__name__}")
    return encode(cfg, raw)[part]


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
    found: dict[str, Guess] = {}
    rows = iter(rows)
    while chunk := list(islice(rows, _CHUNK)):
        if not found:
            found = {name: Guess(cfg.max_categories) for name in chunk[0] if name not in cfg.exclude}
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


# -- what is learnt -----------------------------------------------------------------------------------------------


def settle(cfg: Config, rows: Iterable[Stored]) -> Config:
    """Learn from training rows `[N, columns]` the ranges, decimals, few values and modes of numbers and dates, and how
    often each choice is made."""
    numbers = [i for i, column in enumerate(cfg.columns) if column.type in ("number", "integer", "date")]
    learnt = {i: Numbers(cfg.max_values) for i in numbers}
    for chunk in rows:
        for i, of in learnt.items():
            of.add(chunk["sample"][:, i])
    columns = list(cfg.columns)
    for i, of in learnt.items():
        columns[i] = of.column(columns[i], cfg.max_modes)
    # every mode's range has to be that of all training rows
    ranged = {i: Ranges(columns[i].modes) for i in numbers if columns[i].modes and not cfg.columns[i].modes}
    if ranged:
        for chunk in rows:
            for i, ranges in ranged.items():
                ranges.add(chunk["sample"][:, i])
    for i, ranges in ranged.items():
        columns[i] = changed(columns[i], modes=ranges.modes())
    settled = Config(**{**dict(cfg), "columns": tuple(columns)})
    tables = _tables(settled)
    counts = [torch.zeros(tables.choices[i].size, dtype=torch.int64) for i in range(len(columns))]
    for chunk in rows:
        chosen, _ = _choices(tables, torch.tensor(chunk["sample"]))
        for count, choice in zip(counts, chosen.unbind(1), strict=True):
            count += torch.bincount(choice, minlength=len(count))
    shares = [tuple((count / count.sum()).tolist()) for count in counts]
    completed = (changed(c, shares=c.shares or found) for c, found in zip(columns, shares, strict=True))
    return Config(**{**dict(settled), "columns": tuple(completed)})


# -- what networks see --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tables:
    """What functions look up, made once for a configuration."""

    words: Vocabulary
    width: int
    blocks: tuple[Block, ...]
    choices: dict[int, Block]
    """by column"""
    with_modes: list[int]
    without: list[int]
    modes: ModeTensors
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
    with_modes = [i for i, column in enumerate(cfg.columns) if column.modes]
    without = [i for i, column in enumerate(cfg.columns) if not column.modes]
    codes = [codes_of(cfg.columns[i]) for i in without]
    most = max(map(len, codes), default=0)
    tables = _Tables(
        vocabulary_of(cfg.columns, cfg.missing_values),
        sum(block.size for block in blocks),
        blocks,
        {block.column: block for block in blocks if block.kind == "choice"},
        with_modes,
        without,
        mode_tensors([cfg.columns[i].modes for i in with_modes]),
        torch.tensor([[*row, *[np.inf] * (most - len(row))] for row in codes], dtype=torch.float64),
        torch.tensor([max(0, len(row) - 1) for row in codes], dtype=torch.int64),
        torch.tensor([block.start for block in blocks if block.kind == "choice"]),
        torch.tensor([block.size - 1 for block in blocks if block.kind == "choice"]),
    )
    _recent.append((cfg, tables))
    return tables


def decode(cfg: Config, part: str, stored: Tensor) -> Tensor:
    """Codes `[N, columns]` to float32 `[N, width]`. A scalar lies in [-1, 1] for what training rows have, and goes
    beyond it with the distance for what none has. Where numbers are a choice, such a one becomes the nearest."""
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
        modes = ModeTensors(*(getattr(tables.modes, name).to(device) for name in ModeTensors.__dataclass_fields__))
        values = stored[:, tables.with_modes].nan_to_num(0.0)
        # far from all training rows the widest mode is the most probable, wherever it lies
        of = mode_of(values.clamp(modes.low.amin(1), modes.high.amax(1)), modes)
        chosen[:, tables.with_modes] = of
        columns = torch.arange(len(tables.with_modes), device=device)
        places = (values - modes.middle[columns, of]) / modes.half[columns, of]
        inside = (modes.low[columns, of] <= values) & (values <= modes.high[columns, of])
        farthest = torch.where(inside, 1.0, _FARTHEST)
        scalars = places.masked_fill(missing[:, tables.with_modes], 0.0).clamp(-farthest, farthest)
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
            low, high = tables.modes.low[modes[i]].to(out)[known], tables.modes.high[modes[i]].to(out)[known]
            values = (low + high) / 2 + samples[:, scalars[i]].double().clamp(-1.0, 1.0) * (high - low) / 2
            values = _rounded(column, values)
        elif codes_of(column):
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
    booleans are nullable where some values are missing."""
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
            return pd.Series((codes * 1e6).round().astype("datetime64[us]"))  # NaN as NaT
        distinct, of = np.unique(codes[~missing], return_inverse=True)
        words = np.full(len(codes), None, object)
        words[~missing] = np.array([written(column, second) for second in distinct.tolist()], object)[of]
        return pd.Series(words)
    names = [*column.categories, None]
    if column.shown in ("integer", "number"):
        numbers = np.array([np.nan if name is None else as_number(name, column.decimal) for name in names])
        chosen = pd.Series(numbers[np.where(missing, -1, codes).astype(np.int64)])
        return chosen.astype(integer) if column.shown == "integer" else chosen
    return pd.Series(np.array(names, object)[np.where(missing, -1, codes).astype(np.int64)])


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
    """A picture of codes `[N, columns]` and `[M, columns]`: their distributions by column and by pair of columns."""

    def write(column: Column) -> Callable[[float], str]:
        if column.type == "date":
            return lambda seconds: strftime(EPOCH + datetime.timedelta(seconds=seconds), "%Y-%m-%d")
        return "{:g}".format

    return _charts.page(
        [
            _charts.Variable(column.name, real[:, i], made[:, i], column.categories or None, write(column))
            for i, column in enumerate(cfg.columns)
        ]
    )


def where(cfg: Config, conditions: Sequence[str]) -> Where:
    """As of `parse_conditions`."""
    tables = _tables(cfg)
    return parse_conditions(conditions, cfg.columns, tables.words, tables.choices, tables.width)


def describe(cfg: Config, stored: Stored) -> dict[str, Any]:
    """What was guessed and learnt of each column, so that a user sees it and can write it otherwise."""
    codes = stored["sample"]
    known = [column[~np.isnan(column)] for column in codes.T]
    notes = [note for c, values in zip(cfg.columns, known, strict=True) if (note := _note(cfg, c, values))]
    return {"columns": {c.name: _described(c, codes[:, i]) for i, c in enumerate(cfg.columns)}, "notes": notes}


def _note(cfg: Config, column: Column, known: NDArray[np.float64]) -> str:
    """A note on a column whose type may be guessed wrongly, or ""; `known` are its values in training rows."""
    name, is_integer = column.name, column.type == "integer"
    words = {i: w for i, w in enumerate(column.categories) if as_number(w, ".") is None and as_number(w, ",") is None}
    share = float(np.isin(known, [*words]).sum()) / max(1, len(known))
    if is_integer and _are_dates(known):
        return (
            f"Column {name!r} holds dates as YYYYMMDD, taken for whole numbers, so what is made may be no date: write "
            f"`{{name: {name}, type: date, formats: ['%Y%m%d']}}` in `columns` if that is what they are."
        )
    if words and len(column.categories) - len(words) > cfg.max_values and share < _FEW_WORDS:
        return (
            f"Column {name!r} holds numbers and, in {share:.1%} of the training rows looked at, "
            f"{', '.join(map(repr, islice(words.values(), 3)))}, so it is a choice among {len(column.categories)} "
            "categories. If these are codes, leave it so; if those mean that a value is missing, add them to "
            f"`missing_values`; with `{{name: {name}, type: number}}` in `columns` rows that have them are rejects."
        )
    if name != cfg.target and (is_integer or column.type == "category") and _are_identifiers(column, known):
        return (
            f"Column {name!r} has another value in each training row looked at, as names and identifiers have: samples "
            f"of it mean nothing, or are those of real rows; `exclude: [{name}]` leaves it out."
        )
    return ""


def _are_dates(known: NDArray[np.float64]) -> bool:
    """Whether all numbers are dates as YYYYMMDD."""
    found = np.unique(known)
    in_range = len(found) > 0 and found[0] >= 1e7 and found[-1] < 1e8
    return in_range and all(as_date(f"{code:.0f}", ("%Y%m%d",)) is not None for code in found)


def _are_identifiers(column: Column, known: NDArray[np.float64]) -> bool:
    """Whether all values differ, where whole numbers drawn at random from the range would repeat."""
    if len(known) < _LEAST_ROWS or len(np.unique(known)) < len(known):
        return False
    return column.type == "category" or bool(len(known) ** 2 >= _LEAST_PAIRS * 2 * (np.ptp(known) + 1))


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
        shown = {name: strftime(EPOCH + datetime.timedelta(seconds=figures[name]), formats[0]) for name in figures}
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
