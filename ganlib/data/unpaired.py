"""Unpaired images of two domains: the part `given` is of one domain, the part `sample` of the other, into which the
given image is to be translated. The two of an example do not belong together. Its label is the domain of `sample`.

Both are stored as `ganlib.data.image` stores an image, and read as it reads images. Files of users are translated in
their own size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ganlib._config import Config as _Base
from ganlib.data import image
from ganlib.data._kind import Part, Stored
from ganlib.data._pixels import MAX_MEGAPIXELS
from ganlib.data.image import (
    LOOKS,
    Level,
    Megapixels,
    Side,
    decode,
    describe,
    glance,
    picture,
    present,
    present_tensor,
    preview,
    quantise,
    take_tensor,
)

__all__ = [
    "ALIGNED",
    "BY_LABEL",
    "LOOKS",
    "MODALITY",
    "Config",
    "decode",
    "describe",
    "encode",
    "glance",
    "naive",
    "parts",
    "picture",
    "present",
    "present_tensor",
    "preview",
    "quantise",
    "take",
    "take_tensor",
    "tiled",
    "tiny",
]

MODALITY = "unpaired"
ALIGNED = False
BY_LABEL = True

_PARTS = ("given", "sample")


class Config(_Base):
    kind: Literal["unpaired"] = "unpaired"
    resolution: tuple[Side, Side]
    """height, width of both"""
    channels: Literal[1, 3] = 3
    """of both"""
    fit: Literal["crop", "pad", "stretch"] = "crop"
    """where the aspect differs: cut the centre out, add `background`, or distort"""
    background: tuple[Level, Level, Level] = (255, 255, 255)
    """RGB under transparent pixels and around padded images"""
    max_megapixels: Megapixels = MAX_MEGAPIXELS
    """larger images are rejected before they are decoded"""


def parts(cfg: Config) -> dict[str, Part]:
    shape = (cfg.channels, *cfg.resolution)
    return dict.fromkeys(_PARTS, Part(shape, shape))


def encode(cfg: Config, raw: tuple[Any, Any]) -> Stored:
    """`(given, sample)`, each as `ganlib.data.image` reads it, to uint8 `[C, H, W]`. Raises ValueError as it does."""
    return {name: image.read(_as_image(cfg), one) for name, one in zip(_PARTS, raw, strict=True)}


def take(cfg: Config, part: str, raw: Path | NDArray[Any]) -> NDArray[np.uint8]:
    """An image of a user in its own size, by `ganlib.data.image.take_any_size`. Raises ValueError as it does."""
    return image.take_any_size(_as_image(cfg), raw)


def naive(cfg: Config, given: Mapping[str, Tensor]) -> Tensor:
    """The given images."""
    return given["given"]


def tiled(cfg: Config, given: Mapping[str, Tensor], margin: int, make: Callable[[dict[str, Tensor]], Tensor]) -> Tensor:
    """A sample made of a given image of any size, `[1, C, H, W]`, whole: instance normalisation, which families of
    translation have, takes its statistics from the whole image, so that tiles of it would not fit each other."""
    return make(dict(given))


def tiny() -> tuple[Config, list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]]:
    """The second domain is the first, transposed and inverted."""
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 256, (2, 48, 16, 16), dtype=np.uint8)
    return Config(resolution=(16, 16), channels=1), list(zip(one, 255 - other.transpose(0, 2, 1), strict=True))


def _as_image(cfg: Config) -> image.Config:
    """How images are read."""
    return image.Config(**cfg.model_dump(exclude={"kind"}))
