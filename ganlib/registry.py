"""A file's name is its registered name: `ganlib/models/dcgan.py` is the family `dcgan`.

There is no list to keep. A file whose name starts with an underscore is shared code, not an entry.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType

__all__ = ["load", "names", "nearest"]


def names(kind: str) -> list[str]:
    """Names registered under `kind` (`"models"`, `"data"`, `"sources"`, `"metrics"`), sorted."""
    package = importlib.import_module(f"ganlib.{kind}")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


def load(kind: str, name: str) -> ModuleType:
    """Import the module registered as `name`. Raises ValueError naming the nearest entry if there is none."""
    known = names(kind)
    if name not in known:
        raise ValueError(f"{name!r} is not one of ganlib/{kind}{nearest(name, known)}; known: {', '.join(known)}")
    return importlib.import_module(f"ganlib.{kind}.{name}")


def nearest(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the entry of `known` that looks most like `word`, or nothing."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""
