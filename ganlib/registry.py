"""A file's name is its registered name: `ganlib/models/dcgan.py` is the family `dcgan`.

There is no list to keep. A file whose name starts with an underscore is shared code, not an entry. Feature spaces and
metrics that suit one sort of data only lie in a folder of its name: `ganlib/metrics/picture/ssim.py`. For other data it
is not imported, so it may need packages that are not installed.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType

__all__ = ["KINDS", "folders", "load", "load_all", "modalities", "module_name", "names", "nearest", "places"]

KINDS = ("models", "data", "sources", "spaces", "metrics")
"""folders of `ganlib` whose files are registered by being there"""


def names(kind: str, folder: str | None = None) -> list[str]:
    """Names registered under `kind`, one of KINDS, sorted; with those in its `folder`, if that exists."""
    return sorted(_modules(kind, folder))


def folders(kind: str) -> list[str]:
    """The folders of `kind`, sorted."""
    package = importlib.import_module(f"ganlib.{kind}")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if module.ispkg)


def places(kind: str) -> dict[str, str | None]:
    """The folder that each name of `kind` is registered in, None for those outside of folders; the first of several."""
    found = dict[str, str | None]()
    for folder in (*reversed(folders(kind)), None):
        found |= dict.fromkeys(names(kind, folder), folder)
    return found


def load(kind: str, name: str, folder: str | None = None) -> ModuleType:
    """Import the module registered as `name`. Raises ValueError naming the nearest entry if there is none."""
    return importlib.import_module(module_name(kind, name, folder))


def load_all(kind: str, folder: str | None = None) -> dict[str, ModuleType]:
    """The modules of all `names(kind, folder)`, imported, by name."""
    return {name: load(kind, name, folder) for name in names(kind, folder)}


def module_name(kind: str, name: str, folder: str | None = None) -> str:
    """The full name of the module registered as `name`, which is not imported. Raises ValueError as `load` does."""
    known = _modules(kind, folder)
    if name not in known:
        raise ValueError(
            f"{name!r} is not one of ganlib/{kind}{nearest(name, known)}; known: {', '.join(sorted(known))}"
        )
    return known[name]


def modalities(family: ModuleType) -> tuple[str, ...]:
    """The modalities of data that a family is for: its `MODALITY`, or several."""
    of = family.MODALITY
    return (of,) if isinstance(of, str) else tuple(of)


def _modules(kind: str, folder: str | None) -> dict[str, str]:
    """Full names of modules by their registered names."""
    packages = [f"ganlib.{kind}", *([f"ganlib.{kind}.{folder}"] if folder in folders(kind) else [])]
    return {
        module.name: f"{package}.{module.name}"
        for package in packages
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__)
        if not module.ispkg and not module.name.startswith("_")
    }


def nearest(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the entry of `known` that looks most like `word`, or nothing."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""
