"""Values that users write, turned into codes, and conditions on rows, turned into checks."""

from __future__ import annotations

import contextlib
import datetime
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ganlib.data._column import FORMATS, Column, as_date, as_number, as_text
from ganlib.data._kind import Block, Where
from ganlib.registry import nearest

__all__ = ["Vocabulary", "code_of", "codes_of", "parse_conditions", "vocabulary_of"]

_SHOWN = 20  # categories in an error


@dataclass(frozen=True)
class Vocabulary:
    """Codes of the values of each column."""

    missing: frozenset[str]
    categories: dict[str, dict[str, float]]
    """codes of categories and of the words of booleans"""
    by_number: dict[str, dict[float, float]]
    """codes of categories that are written as a number, where no other is the same number: 1.0 finds the category 01"""


def vocabulary_of(columns: Sequence[Column], missing_values: Iterable[str]) -> Vocabulary:
    of_words = {c.name: c.categories for c in columns if c.type in ("category", "boolean")}
    categories = {name: {word: float(code) for code, word in enumerate(words)} for name, words in of_words.items()}
    by_number = {}
    for name, codes in categories.items():
        numbers = {word: as_number(word, ".") for word in codes}
        count = Counter(numbers.values())
        once = {word: number for word, number in numbers.items() if number is not None and count[number] == 1}
        by_number[name] = {number: codes[word] for word, number in once.items()}
    return Vocabulary(frozenset(missing_values), categories, by_number)


def code_of(words: Vocabulary, column: Column, value: Any) -> float:
    """The code of a value: text as in the data, or a number, boolean or date as pandas reads it.
    Raises ValueError where the value is none of the column's."""
    text = as_text(value, words.missing)
    if text is None:
        if not column.missing:
            raise ValueError(f"column {column.name!r}: a value is missing")
        return np.nan
    code: float | None
    is_text = isinstance(value, str)
    if column.type == "boolean" and isinstance(value, bool | np.bool_):
        code = float(value)
    elif column.type in ("category", "boolean"):
        code = words.categories[column.name].get(text if column.type == "category" else text.lower())
        if code is None and not is_text:
            number = as_number(text, ".")
            code = None if number is None else words.by_number[column.name].get(number)
    elif column.type == "date":
        code = as_date(value if isinstance(value, datetime.date) else text, column.formats or FORMATS)
    else:
        code = as_number(text, column.decimal if is_text else ".")
        if column.type == "integer" and code is not None and not code.is_integer():
            code = None
    if code is None:
        raise ValueError(f"column {column.name!r}: {text[:40]!r} is not {_expected(column)}")
    return code + 0.0  # no negative zero


def _expected(column: Column) -> str:
    """What is allowed, for an error."""
    if column.categories:
        more = f" and {len(column.categories) - _SHOWN} more" if len(column.categories) > _SHOWN else ""
        return f"a {column.type} as expected there; known: {', '.join(column.categories[:_SHOWN])}{more}"
    if column.type == "date":
        return f"a date as expected there: {' or '.join(column.formats[:_SHOWN]) or 'in a common format'}"
    mark = ", with a decimal comma" if column.decimal == "," else ""
    return f"{'an' if column.type == 'integer' else 'a'} {column.type} as expected there{mark}"


def codes_of(column: Column) -> tuple[float, ...]:
    """What a column without modes may be, as stored, rising."""
    return column.values or tuple(map(float, range(len(column.categories))))


# -- conditions ---------------------------------------------------------------------------------------------------


_COMPARISON = re.compile(r"\s*(<=|>=|!=|=|<|>)\s*(.*?)\s*")


def parse_conditions(
    conditions: Sequence[str], columns: Sequence[Column], words: Vocabulary, choices: Mapping[int, Block], width: int
) -> Where:
    """Conditions such as `churn=yes`, `tenure<12`, `since>=2020-01-31`; all have to hold. `churn=` asks for a
    missing value. Dates are in the column's formats or ISO 8601. A column may have any name: of those with which a
    condition begins the longest counts. Raises ValueError for an unknown column or value, or a comparison of
    categories."""
    known = torch.full((width,), torch.nan)
    names = {column.name: i for i, column in enumerate(columns)}
    checks: list[tuple[int, str, float]] = []
    for condition in conditions:
        name, sign, text = _parsed(condition, names)
        i, column, block = names[name], columns[names[name]], choices[names[name]]
        if sign not in ("=", "!=") and column.type in ("category", "boolean"):
            raise ValueError(f"where: {condition!r}: a {column.type} is compared by = or != alone")
        value: Any = text
        if column.type == "date" and as_date(text, column.formats or FORMATS) is None:
            with contextlib.suppress(ValueError):
                value = datetime.datetime.fromisoformat(text)
        try:
            code = code_of(words, column, value)
        except ValueError as error:
            iso = ", or ISO 8601" if column.type == "date" else ""
            raise ValueError(f"where: {error}{iso}") from error
        if code != code and sign not in ("=", "!="):
            raise ValueError(f"where: {condition!r}: expected a value after {sign}")
        checks.append((i, sign, code))
        if sign == "=" and not column.modes:
            at = block.size - 1 if code != code else _place(column, code)
            known[block.start : block.start + block.size] = 0.0
            known[block.start + at] = 1.0
    return Where(known, lambda stored: _all_hold(checks, stored))


def _parsed(condition: str, names: Iterable[str]) -> tuple[str, str, str]:
    """`(column, sign, value)`. Raises ValueError for what has no sign or begins with no column."""
    for name in sorted(names, key=len, reverse=True):
        if condition.strip().startswith(name.strip()):
            match = _COMPARISON.fullmatch(condition.strip().removeprefix(name.strip()))
            if match is not None:
                return name, match[1], match[2]
    name, *value = re.split("<=|>=|!=|=|<|>", condition, maxsplit=1)
    if not value:
        raise ValueError(f"where: {condition!r}: expected COLUMN=VALUE, or <, <=, >, >=, != in place of =")
    raise ValueError(f"where: no column {name.strip()!r}{nearest(name.strip(), names)}; known: {', '.join(names)}")


def _place(column: Column, code: float) -> int:
    """Raises ValueError for a number that no training row has."""
    if code not in codes_of(column):
        raise ValueError(f"where: column {column.name!r} is one of {', '.join(map(str, column.values))}; found {code}")
    return codes_of(column).index(code)


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
