"""Names and order of classes, and the class that a caller asks for, by one rule for all callers.

A class is asked for by its name. Only `"#3"` asks for an index, that of the fourth class, and only where no class is
called so. Whole floats are integers, so 1, 1.0, "1" and "1.0" all mean the class called "1".
"""

from __future__ import annotations

import numbers
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

__all__ = ["MISSING_WORDS", "class_name", "label_of", "natural_order"]

MISSING_WORDS = (
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>"),
    *("N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
)
"""what pandas reads as a missing value. Tables read them as missing, too; in other data they may name a class"""

_WHOLE = re.compile(r"([+-]?\d+)\.0*")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_SHOWN = 20  # classes in an error


def class_name(value: Any) -> str | None:
    """What the class of a label's value is called; None where the value is missing: None, NaN or an empty string."""
    if value is None or value != value:
        return None
    if isinstance(value, bytes):
        return class_name(value.decode("utf-8", "backslashreplace"))
    if isinstance(value, numbers.Real | Decimal) and not isinstance(value, bool | np.bool_):
        whole: Any = value
        return str(int(whole)) if float(whole).is_integer() else str(value)
    name = str(value).strip()
    number = _WHOLE.fullmatch(name)
    return (number[1] if number else name) or None


def natural_order(names: Iterable[str]) -> list[str]:
    """Distinct names: numbers by size, then others, in which runs of digits count as numbers: a2 before a10."""
    return sorted(set(names), key=_natural_key)


def _natural_key(name: str) -> tuple[Any, ...]:
    if _NUMBER.fullmatch(name):
        return (0, float(name), name)
    parts = [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name)]
    return (1, parts, name)


def label_of(classes: Sequence[str], asked: Any) -> int:
    """The index of the class that is asked for. Raises ValueError for what is none."""
    name = asked if isinstance(asked, str) else class_name(asked)
    if name in classes:
        return classes.index(name)
    if isinstance(name, str):
        alike = [index for index, known in enumerate(classes) if class_name(known) == class_name(name)]
        if len(alike) == 1:
            return alike[0]
        if re.fullmatch(r"#\d+", name) and int(name[1:]) < len(classes):
            return int(name[1:])
    if not classes:
        raise ValueError(f"{asked!r} is not a class: the data have no labels")
    more = f" and {len(classes) - _SHOWN} more" if len(classes) > _SHOWN else ""
    known = ", ".join(classes[:_SHOWN]) + more
    raise ValueError(f"{asked!r} is not a class; known: {known}; or an index, #0 to #{len(classes) - 1}")
