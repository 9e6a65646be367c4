"""Restoration: the part `given` is a degraded image, the part `sample` the image that it was made of.

One task with a degradation as its parameter: bicubic downscaling, Gaussian noise, Gaussian blur or JPEG. Sources feed
whole images; `encode` degrades each, always in the same way: noise is seeded by the image's content. Images are read,
stored and seen by networks as `ganlib.data.image` does it. Files of users are degraded images of any size, which are
taken as they are.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, model_validator
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
    picture,
    present,
    present_tensor,
    quantise,
    take_tensor,
)

__all__ = [
    "LOOKS",
    "MODALITY",
    "PAYLOADS",
    "Bicubic",
    "Blur",
    "Config",
    "Jpeg",
    "Noise",
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

MODALITY = "restoration"
PAYLOADS = "image"

Pixels = NDArray[np.uint8]
"""`[C, H, W]`"""

_TILE = 128  # given pixels a side of what one tile adds, at least


class Bicubic(_Base):
    """Downscaled by Pillow's bicubic filter (a = −0.5), widened by the factor against aliasing."""

    name: Literal["bicubic"] = "bicubic"
    factor: Literal[2, 4]
    """how many times fewer pixels a side"""

    def degrade(self, pixels: Pixels) -> Pixels:
        drawn = _drawn(pixels)
        smaller = (drawn.width // self.factor, drawn.height // self.factor)
        return _pixels(drawn.resize(smaller, Image.Resampling.BICUBIC))


class Noise(_Base):
    """White Gaussian noise, rounded and clamped to 0 to 255; a function of the image's content."""

    name: Literal["noise"] = "noise"
    sigma: Annotated[float, Field(gt=0.0, le=255.0)]
    """standard deviation, in levels of 0 to 255"""

    def degrade(self, pixels: Pixels) -> Pixels:
        seed = np.frombuffer(hashlib.sha256(pixels.tobytes()).digest(), "<u4")
        # the legacy generator, whose numbers no version of numpy changes (NEP 19)
        drawn = np.random.RandomState(seed).standard_normal(pixels.shape)
        return _rounded(torch.from_numpy(pixels + self.sigma * drawn))


class Blur(_Base):
    """A Gaussian window, cut off at 4 standard deviations; edges are continued by their last pixel."""

    name: Literal["blur"] = "blur"
    sigma: Annotated[float, Field(gt=0.0, le=32.0)]
    """standard deviation, in pixels"""

    def degrade(self, pixels: Pixels) -> Pixels:
        reach = math.ceil(4 * self.sigma)
        window = torch.exp(-(torch.arange(-reach, reach + 1.0) / self.sigma).square() / 2)
        window /= window.sum()
        padded = F.pad(torch.from_numpy(pixels.astype(np.float32))[:, None], (reach,) * 4, mode="replicate")
        return _rounded(F.conv2d(F.conv2d(padded, window[None, None, None]), window[None, None, :, None])[:, 0])


class Jpeg(_Base):
    """Written and read by Pillow; colours have half the resolution, as is JPEG's way."""

    name: Literal["jpeg"] = "jpeg"
    quality: Annotated[int, Field(ge=1, le=95)]

    def degrade(self, pixels: Pixels) -> Pixels:
        file = io.BytesIO()
        _drawn(pixels).save(file, "JPEG", quality=self.quality)
        return _pixels(Image.open(file))


class Config(_Base):
    kind: Literal["restoration"] = "restoration"
    resolution: tuple[Side, Side]
    """height, width of what is restored"""
    channels: Literal[1, 3] = 3
    degradation: Annotated[Bicubic | Noise | Blur | Jpeg, Field(discriminator="name")]
    fit: Literal["crop", "pad", "stretch", "cut"] = "crop"
    """where the size differs: as of images; "cut" cuts the centre out without resizing, so that textures keep their
    scale, and rejects images that are too small"""
    background: tuple[Level, Level, Level] = (255, 255, 255)
    """RGB under transparent pixels and around padded images"""
    max_megapixels: Megapixels = MAX_MEGAPIXELS
    """larger images are rejected before they are decoded"""

    @model_validator(mode="after")
    def _divides(self) -> Config:
        if any(side % self.factor for side in self.resolution):
            raise ValueError(
                f"resolution: {list(self.resolution)} cannot be downscaled by {self.factor}; "
                f"expected multiples of {self.factor}"
            )
        return self

    @property
    def factor(self) -> int:
        """How many times larger than the given image a side of the sample is."""
        return self.degradation.factor if isinstance(self.degradation, Bicubic) else 1


def parts(cfg: Config) -> dict[str, Part]:
    sizes = {"given": [side // cfg.factor for side in cfg.resolution], "sample": cfg.resolution}
    shapes = {name: (cfg.channels, *size) for name, size in sizes.items()}
    return {name: Part(shape, shape) for name, shape in shapes.items()}


def encode(cfg: Config, raw: Path | bytes | NDArray[Any] | Image.Image) -> Stored:
    """An image, read as `ganlib.data.image` reads it, and what the degradation makes of it.

    Raises ValueError if it cannot be read, or is too small to be cut.
    """
    opened = open_image(raw, cfg.max_megapixels)
    if cfg.fit == "cut":
        height, width = cfg.resolution
        left, top = (opened.width - width) // 2, (opened.height - height) // 2
        if left < 0 or top < 0:
            raise ValueError(f"{opened.width}x{opened.height} pixels, too small to cut {width}x{height} out")
        with without_pixel_limit():
            opened = opened.crop((left, top, left + width, top + height))
    sample = image.read(_as_image(cfg), opened)
    return {"given": cfg.degradation.degrade(sample), "sample": sample}


def take(cfg: Config, part: str, raw: Path | NDArray[Any]) -> Pixels:
    """A degraded image of any size, by `ganlib.data.image.take_any_size`. Raises ValueError as it does."""
    return image.take_any_size(_as_image(cfg), raw)


def naive(cfg: Config, given: Mapping[str, Tensor]) -> Tensor:
    """Bicubic upscaling (torch's with antialiasing, which has Pillow's a = −0.5), or the degraded image itself."""
    degraded = given["given"]
    if cfg.factor == 1:
        return degraded
    size = [side * cfg.factor for side in degraded.shape[2:]]
    return F.interpolate(degraded, size, mode="bicubic", antialias=True, align_corners=False).clamp(-1.0, 1.0)


def tiled(cfg: Config, given: Mapping[str, Tensor], margin: int, make: Callable[[dict[str, Tensor]], Tensor]) -> Tensor:
    """A sample made of a given image of any size, `[1, C, H, W]`, tile by tile, each with `margin` pixels around it.

    Tiles start at multiples of `margin`.
    """
    degraded, factor = given["given"], cfg.factor
    height, width = degraded.shape[2:]
    step = math.ceil(_TILE / max(margin, 1)) * max(margin, 1)
    restored = degraded.new_empty(1, cfg.channels, height * factor, width * factor)
    for top, left in product(range(0, height, step), range(0, width, step)):
        rows, columns = (
            slice(max(0, start - margin), min(start + step + margin, side))
            for start, side in ((top, height), (left, width))
        )
        made = make({"given": degraded[:, :, rows, columns]})
        down, across = ((start - part.start) * factor for start, part in ((top, rows), (left, columns)))
        tile = made[:, :, down : down + step * factor, across : across + step * factor]
        y, x = top * factor, left * factor
        restored[:, :, y : y + tile.shape[2], x : x + tile.shape[3]] = tile
    return restored


def preview(cfg: Config, samples: Mapping[str, Tensor], columns: int) -> Image.Image:
    """Next to each other: given, enlarged without interpolation; what is naively made of it, where that is another;
    the images of the other names."""
    shown = {name: x.detach().cpu() for name, x in samples.items()}
    if cfg.factor > 1 and "given" in shown:
        given = {"given": shown.pop("given")}
        larger = given["given"].repeat_interleave(cfg.factor, 2).repeat_interleave(cfg.factor, 3)
        shown = {"given": larger, "naive": naive(cfg, given), **shown}
    return image.preview(cfg, shown, columns)


def tiny() -> tuple[Config, list[Pixels]]:
    rng = np.random.default_rng(0)
    degradation = Bicubic(factor=2)
    return Config(resolution=(16, 16), channels=1, degradation=degradation), list(
        rng.integers(0, 256, (48, 16, 16), dtype=np.uint8)
    )


def _as_image(cfg: Config) -> image.Config:
    """How images are read."""
    fit = "crop" if cfg.fit == "cut" else cfg.fit
    alike = cfg.model_dump(exclude={"kind", "degradation", "fit"})
    return image.Config(fit=fit, **alike)


def _drawn(pixels: Pixels) -> Image.Image:
    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1))


def _pixels(drawn: Image.Image) -> Pixels:
    array = np.asarray(drawn, dtype=np.uint8)
    return np.ascontiguousarray(array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0))


def _rounded(levels: Tensor) -> Pixels:
    return levels.round().clamp(0, 255).to(torch.uint8).numpy()
