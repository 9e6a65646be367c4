"""Image files: flat, or in a folder per class, nested as deep as one likes below that."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

from ganlib._config import Config as _Base
from ganlib.sources._source import Item, Source, SourceError, files, ranges

__all__ = ["Config", "load"]

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_PART = 256


class Config(_Base):
    name: Literal["image_folder"] = "image_folder"
    labels: Literal["folders", "none"] = "folders"
    """"folders": the top folders, if there are any, are the classes; "none": folders mean nothing"""


def load(cfg: Config, raw: Path) -> Source:
    """Raises SourceError if there are no images, or some in class folders and some beside these."""
    paths = [str(path.relative_to(raw)) for path in files(raw, "images", _SUFFIXES)]
    loose = [path for path in paths if "/" not in path]
    if cfg.labels == "none" or len(loose) == len(paths):
        classes: tuple[str, ...] = ()
    elif loose:
        raise SourceError(
            f"{raw}: {len(loose)} images lie beside class folders (as {loose[0]}), "
            f"{len(paths) - len(loose)} in them; move them, or set source.labels to none"
        )
    else:
        classes = tuple(sorted({path.split("/", 1)[0] for path in paths}))
    known = {name: label for label, name in enumerate(classes)}
    parts = [partial(_items, raw, paths[start:stop], known) for start, stop in ranges(len(paths), _PART)]
    return Source(f"{len(paths)} image files", len(paths), parts, classes)


def _items(raw: Path, paths: list[str], known: dict[str, int]) -> Iterator[Item]:
    for path in paths:
        yield Item(path, raw / path, known[path.split("/", 1)[0]] if known else None)
