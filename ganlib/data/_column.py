"""A column of a table: what is known of it, its values as they are read, and what it is guessed to be from them."""

from __future__ import annotations

import datetime
import itertools
import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from ganlib._config import Config as _Base

ColumnType = Literal["number", "integer", "category", "boolean", "date"]

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_LAST = (datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC) - EPOCH).total_seconds()
_LARGEST = 1e150
LEARNT = ("low", "high", "decimals", "step", "values", "modes", "shares")
"""the fields of `Column` that are learnt from training rows"""
_TYPE_SHARE = 0.99  # of the values has to fit a type for the others to be rejects
_EXACT = 2**53  # integers up to this are float64 numbers


class Mode(_Base):
    """A mode of a column's distribution: a Gaussian, and the range of the training values that are nearest to it."""

    weight: float
    mean: float
    std: float
    low: float
    high: float


class Column(_Base):
    """What is known of a column. What the user leaves out is guessed or learnt; what the user writes is kept."""

    name: str
    type: ColumnType | None = None
    """None: guessed"""
    missing: bool | None = None
    """whether a value may be missing"""
    categories: tuple[str, ...] = ()
    """of a category, in the order of their codes; of a boolean, the words for false and true"""
    formats: tuple[str, ...] = ()
    """of a date, as `strptime` has them, and `%-d` for numbers without a leading zero; what is made is written in the
    first. Empty where dates came as such"""
    decimal: Literal[".", ","] | None = None
    """mark of decimals in numbers that are text; the other one may group thousands"""
    shown: Literal["text", "integer", "number", "boolean", "date"] | None = None
    """as what its values are presented: as pandas reads them from a file"""
    low: float | None = None
    high: float | None = None
    decimals: Annotated[int, Field(ge=0, le=15)] | None = None
    """of a number, or of a date's seconds; None: as many as float64 has"""
    step: float | None = None
    """of a date, in seconds: 86400 where all are whole days"""
    values: tuple[float, ...] = ()
    """rising: all that a number has, where these are few"""
    modes: tuple[Mode, ...] = ()
    """of a number with many values"""
    shares: tuple[float, ...] = ()
    """of the training rows: each category, value or mode, then what is missing, if anything may be"""


def changed(column: Column, **changes: Any) -> Column:
    return Column(**{**dict(column), **changes})


class Text(str):
    """Text of a file that has types: no number or boolean, though it may be written like one."""

    __slots__ = ()


# -- reading values -----------------------------------------------------------------------------------------------


def as_text(value: Any, missing: frozenset[str]) -> str | None:
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
        return None if value != value else str(value)  # of float32 the digits that tell it apart
    if getattr(value, "nanosecond", 0):  # of pandas; times are kept to the microsecond
        value = value.replace(nanosecond=0)
    if isinstance(value, datetime.date):  # a datetime, too
        return value.isoformat(" ") if isinstance(value, datetime.datetime) else value.isoformat()
    if isinstance(value, (bytes, list, dict, tuple)) or not hasattr(value, "__float__"):
        raise ValueError(f"{type(value).__name__} values are no numbers, text or dates")
    return repr(float(value))


_INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]*)")
_POINT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_COMMA = re.compile(r"[+-]?([0-9]+,?[0-9]*|,[0-9]+)([eE][+-]?[0-9]+)?")
_THOUSANDS_COMMA = re.compile(r"[+-]?[1-9][0-9]{0,2}(,[0-9]{3})+(\.[0-9]*)?")
_THOUSANDS_POINT = re.compile(r"[+-]?[1-9][0-9]{0,2}(\.[0-9]{3})+(,[0-9]*)?")
_LEADING_ZERO = re.compile(r"[+-]?0[0-9]+")


def as_number(text: str, decimal: str | None) -> float | None:
    """None where it is no number with this decimal mark, or one so large that its square is not finite."""
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
    return found if abs(found) < _LARGEST else None


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
_TIMES = (
    "%H:%M",
    "%H:%M:%S",
    "%H:%M:%S.%f",
    "%H:%M:%SZ",
    "%H:%M:%S.%fZ",
    "%H:%M:%S%z",
    "%H:%M:%S.%f%z",
    "%I:%M %p",
    "%I:%M:%S %p",
)
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
    """Seconds since 1970, or None where the text does not have this format. Without a time zone it is UTC."""
    try:
        found = datetime.datetime.strptime(text, form.replace("%-", "%"))
    except ValueError:
        return None
    return _seconds(found)


def _seconds(moment: datetime.datetime) -> float:
    # the last moment of 9999, rounded to a float, is in the year 10000
    return min((moment.replace(tzinfo=moment.tzinfo or datetime.UTC) - EPOCH).total_seconds(), _LAST)


def as_date(value: str | datetime.date, formats: Iterable[str]) -> float | None:
    """By the first format that suits, where it is text."""
    if isinstance(value, datetime.datetime):
        return _seconds(value)
    if isinstance(value, datetime.date):
        return _seconds(datetime.datetime.combine(value, datetime.time()))
    return next((found for form in formats if (found := _date(value, form)) is not None), None)


def written(column: Column, seconds: float) -> str:
    """A date as text in the column's first format, in UTC."""
    moment, form = EPOCH + datetime.timedelta(seconds=seconds), column.formats[0].replace("%z", "+00:00")
    if column.decimals:
        form = form.replace("%f", f"{moment.microsecond:06}"[: column.decimals])
    return strftime(moment, form)


def strftime(moment: datetime.datetime, form: str) -> str:
    """As Python's, but with years of four digits, which `strptime` needs and Python's omits before 1000."""
    return moment.strftime(form.replace("%Y", f"{moment.year:04}"))


_FALSE, _TRUE = ("false", "f", "no", "n", "0"), ("true", "t", "yes", "y", "1")


# -- guessing -----------------------------------------------------------------------------------------------------


class Guess:
    """What a column may be, as its values come."""

    def __init__(self, max_categories: int) -> None:
        self.max_categories = max_categories
        self.count = self.missing = 0
        self.types: set[str] = set()
        self.distinct: Counter[str] | None = Counter()
        """None after more than `max_categories`"""
        self.fits: Counter[str] = Counter()
        """how many values each of the forms below has"""
        self.formats: Counter[str] = Counter()
        self.unpadded = Counter[tuple[str, str]]()
        """by format and directive: how many more values below 10 have no leading zero than have one"""

    def add(self, values: list[Any], missing: frozenset[str]) -> None:
        self.types |= {type(value).__name__ for value in values}
        found = Counter(as_text(value, missing) for value in values)
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
            date, colon, _ = text.partition(":")
            numbers = re.findall(r"[0-9]+", date)
            for directives, found in (("HI", numbers[-1:]), ("dm", numbers[:-1])) if colon else (("dm", numbers),):
                for number in (number for number in found if int(number) < 10 and len(number) < 3):
                    more = count if len(number) == 1 else -count
                    self.unpadded.update(dict.fromkeys(itertools.product(forms, directives), more))
        if _THOUSANDS_POINT.fullmatch(text) and not _POINT.fullmatch(text):
            self.fits["comma"] += count

    def column(self, said: Column) -> Column:
        """The column completed. Raises ValueError as `scan` does."""
        if self.distinct is not None:
            for text, count in self.distinct.items():
                self._count(text, count)
        present = self.count - self.missing
        is_text = Text.__name__ in self.types and said.type in (None, "category")
        guessed, decimal = self._type(present, is_text)
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
        kept = {name: getattr(said, name) for name in LEARNT}
        return Column(**known, **kept)

    def _type(self, present: int, is_text: bool) -> tuple[ColumnType, str | None]:
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
        if is_text:  # dates are, too, once they are given back
            forms = forms[-1:]
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
            typed = self.types & {"date", "datetime", "Timestamp"} and not self.types & {"str", Text.__name__}
            return "date" if typed else "text"
        return kind

    def _formats(self) -> tuple[str, ...]:
        """The format that most values suit; further ones where it does not suit all, by how many suit them."""
        ranks = {form: rank for rank, form in enumerate(FORMATS)}
        by_count = sorted(self.formats, key=lambda form: (-self.formats[form], ranks[form]))
        if not by_count:
            raise ValueError("no known format of dates suits its values; write `formats`, as strptime has them")
        first = re.sub(
            r"%([dmHI])", lambda of: f"%-{of[1]}" if self.unpadded[by_count[0], of[1]] > 0 else of[0], by_count[0]
        )
        return (first,) if self.formats[by_count[0]] == self.fits["date"] else (first, *by_count[1:])

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
                f"[{said.name}]`{'' if said.type else ', write its type in `columns`'}, or raise max_categories"
            )
        numbers = all(_POINT.fullmatch(text) for text in self.distinct)
        return tuple(sorted(self.distinct, key=(lambda text: (float(text), text)) if numbers else str))
