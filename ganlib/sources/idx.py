"""Files as MNIST's: `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`, gzipped or not, any prefix.

All pairs in the folder are read as one set (`t10k-…` too): the split is made anew, by content. Images without
files of labels are an unlabelled set.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal, cast

import numpy as np
from numpy.typing import NDArray

from ganlib._config import Config as _Base
from ganlib.data._pixels import MAX_MEGAPIXELS
from ganlib.sources._source import Item, Source, SourceError, class_names, files, labels_of, left_over

__all__ = ["KINDS", "Config", "images_of", "load", "pixels_of"]

KINDS = ("image",)
_IMAGES, _LABELS = 0x0803, 0x0801  # unsigned bytes in three dimensions, in one


class Config(_Base):
    name: Literal["idx"] = "idx"


def load(cfg: Config, raw: Path) -> Source:
    """Raises SourceError if a file is missing, is no IDX file or has the wrong length."""
    ends = [f"{stem}{end}" for stem in ("-images-idx3-ubyte", "-images.idx3-ubyte") for end in ("", ".gz")]
    images = files(raw, "MNIST-format image files", ends)
    images = [path for path in images if path.suffix != ".gz" or path.with_suffix("") not in images]
    sizes = [_check(path, _IMAGES) for path in images]
    companions = [_companion(path) for path in images]
    missing = [path.name for path, labels in zip(images, companions, strict=True) if labels is None]
    if 0 < len(missing) < len(images):
        raise SourceError(f"{raw}: {missing[0]} has no file of labels, others have; add it or take those away")
    labels = [None if path is None else _labels(path, n) for path, n in zip(companions, sizes, strict=True)]
    known = labels_of(int(v) for values in labels if values is not None for v in np.unique(values))
    parts = [partial(_items, path, values, known) for path, values in zip(images, labels, strict=True)]
    about = ", ".join(path.name for path in images)
    left = left_over(raw, [*images, *(path for path in companions if path is not None)])
    return Source(about, sum(sizes), parts, class_names(known), passed_over=left)


def images_of(raw: Path, prefix: str) -> tuple[Path, tuple[int, ...]]:
    """The file of images that begins so, and `(images, height, width)`. Raises SourceError as `load` does."""
    for name in (f"{prefix}-images-idx3-ubyte", f"{prefix}-images-idx3-ubyte.gz"):
        if (path := raw / name).is_file():
            _check(path, _IMAGES)
            with _open(path) as file:
                return path, _header(path, file, _IMAGES)
    raise SourceError(f"{raw}: no {prefix}-images-idx3-ubyte, gzipped or not")


def pixels_of(path: Path) -> NDArray[np.uint8]:
    """All images of a file that was checked, `[N, H, W]`."""
    with _open(path) as file:
        shape = _header(path, file, _IMAGES)
        return np.frombuffer(file.read(), np.uint8).reshape(shape)


def _companion(images: Path) -> Path | None:
    """The file of labels next to the images, or in a folder of its own name next to theirs, as on Kaggle."""
    stem = images.name.removesuffix(".gz").replace("-images", "-labels").replace("idx3", "idx1")
    for name in (stem, f"{stem}.gz"):
        in_its_folder = [images.parent.with_name(name) / name] if images.parent.name == images.name else []
        for place in (images.with_name(name), *in_its_folder):
            if place.is_file():
                return place
    return None


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _header(path: Path, file: BinaryIO, magic: int) -> tuple[int, ...]:
    """The dimensions."""
    head = np.frombuffer(file.read(4 + 4 * (magic & 255)), ">u4")
    if len(head) != 1 + (magic & 255) or head[0] != magic:
        found = f"0x{head[0]:08x}" if len(head) else "nothing"
        raise SourceError(f"{path}: starts with {found}; an IDX file of this name starts with 0x{magic:08x}")
    return tuple(int(size) for size in head[1:])


def _check(path: Path, magic: int) -> int:
    """How many examples the file holds, having read it to its end."""
    try:
        with _open(path) as file:
            dims = _header(path, file, magic)
            wanted, found = math.prod(dims), 0
            if dims[0] and not 0 < math.prod(dims[1:]) <= MAX_MEGAPIXELS * 1e6:
                size = " x ".join(map(str, dims[1:]))
                raise SourceError(f"{path}: images of {size} pixels; expected 1 to {MAX_MEGAPIXELS:g} million of them")
            while found <= wanted and (chunk := file.read(1 << 20)):
                found += len(chunk)
    except (OSError, EOFError) as error:
        raise SourceError(f"{path}: {error}") from error
    if found != wanted:
        shown = " x ".join(map(str, dims))
        more = "more than " if found > wanted else ""
        raise SourceError(f"{path}: {more}{min(found, wanted)} bytes after the header; expected {shown} = {wanted}")
    return dims[0]


def _labels(path: Path, images: int) -> NDArray[np.uint8]:
    found = _check(path, _LABELS)
    if found != images:
        raise SourceError(f"{path}: {found} labels for {images} images")
    with _open(path) as file:
        _header(path, file, _LABELS)
        return np.frombuffer(file.read(), np.uint8)


def _items(path: Path, labels: NDArray[np.uint8] | None, known: dict[int, int]) -> Iterator[Item]:
    with _open(path) as file:
        count, height, width = _header(path, file, _IMAGES)
        for i in range(count):
            image = np.frombuffer(file.read(height * width), np.uint8).reshape(height, width)
            yield Item(f"{path.name}[{i}]", image, None if labels is None else known[int(labels[i])])
