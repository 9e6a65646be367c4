"""Aligned pairs of images: the part `source` is given, the part `sample` is to be made of it.

Each is stored as `ganlib.data.image` stores an image; both are read as it reads images, and cut alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor

from ganlib._config import Config as _Base
from ganlib.data import image
from ganlib.data._kind import Part, Stored
from ganlib.data._pixels import MAX_MEGAPIXELS, open_image, without_pixel_limit
from ganlib.data.image import (
    LOOKS,
    Level,
    Megapixels,
    Side,
    decode,
    describe,
    glance,
    present,
    present_tensor,
    preview,
    quantise,
    take_tensor,
)

__all__ = [
    "LOOKS",
    "MODALITY",
    "Config",
    "SideBySide",
    "decode",
    "describe",
    "encode",
    "glance",
    "naive",
    "parts",
    "present",
    "present_tensor",
    "preview",
    "quantise",
    "take",
    "take_tensor",
    "tiny",
]

MODALITY = "image_pair"
_PARTS = ("source", "sample")


class Config(_Base):
    kind: Literal["pair"] = "pair"
    resolution: tuple[Side, Side]
    """height, width of each half"""
    channels: tuple[Literal[1, 3], Literal[1, 3]] = (3, 3)
    """of the given and of the generated half: 1 greyscale, 3 RGB"""
    fit: Literal["crop", "pad", "stretch"] = "crop"
    """where the aspect differs: cut the centre out, add `background`, or distort"""
    background: tuple[Level, Level, Level] = (255, 255, 255)
    """RGB under transparent pixels and around padded images"""
    max_megapixels: Megapixels = MAX_MEGAPIXELS
    """larger images are rejected before they are decoded"""


@dataclass(frozen=True)
class SideBySide:
    """A pair that is the left and the right half of one image."""

    raw: Path | bytes | NDArray[Any] | Image
    given: Literal["left", "right"] = "left"


def parts(cfg: Config) -> dict[str, Part]:
    shapes = {name: (channels, *cfg.resolution) for name, channels in zip(_PARTS, cfg.channels, strict=True)}
    return {name: Part(shape, shape) for name, shape in shapes.items()}


def encode(cfg: Config, raw: tuple[Any, Any] | SideBySide) -> Stored:
    """`(given, generated)`, each as `ganlib.data.image` reads it, to uint8 `[C, H, W]`.

    Raises ValueError if one cannot be read, if the two differ in size (unless both are stretched), or if an image
    that holds both has an odd width.
    """
    limit = cfg.max_megapixels
    halves = _halves(raw, limit) if isinstance(raw, SideBySide) else tuple(open_image(one, limit) for one in raw)
    (width, height), (other_width, other_height) = (half.size for half in halves)
    if (width, height) != (other_width, other_height) and cfg.fit != "stretch":
        raise ValueError(
            f"the given image is {width}x{height}, the other {other_width}x{other_height}: with fit {cfg.fit} "
            "both must be of one size, or they would not be cut alike"
        )
    return {name: image.read(_half(cfg, name), half) for name, half in zip(_PARTS, halves, strict=True)}


def take(cfg: Config, part: str, raw: Path | NDArray[Any]) -> NDArray[np.uint8]:
    """An image as `ganlib.data.image` takes it. Raises ValueError as it does."""
    return image.take(_half(cfg, part), part, raw)


def naive(cfg: Config, given: Mapping[str, Tensor]) -> Tensor:
    """The given images, grey where the generated are and as often as these have channels."""
    source, channels = given["source"], cfg.channels[1]
    return source if source.shape[1] == channels else source.mean(1, keepdim=True).expand(-1, channels, -1, -1)


def tiny() -> tuple[Config, list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (48, 16, 16, 3), dtype=np.uint8)
    return Config(resolution=(16, 16), channels=(3, 1)), [(one, one.max(2)) for one in images]


def _half(cfg: Config, part: str) -> image.Config:
    """How one half is read."""
    alike = cfg.model_dump(exclude={"kind", "channels"})
    return image.Config(channels=cfg.channels[_PARTS.index(part)], **alike)


def _halves(raw: SideBySide, max_megapixels: float) -> tuple[Image, ...]:
    """`(given, generated)`."""
    whole = open_image(raw.raw, max_megapixels)
    width, height = whole.size
    if width % 2:
        raise ValueError(f"{width}x{height} pixels: an odd width has no halves")
    with without_pixel_limit():
        left, right = whole.crop((0, 0, width // 2, height)), whole.crop((width // 2, 0, width, height))
    return (left, right) if raw.given == "left" else (right, left)
