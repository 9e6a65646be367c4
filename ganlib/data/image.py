"""Images, stored as uint8 `[C, H, W]`: networks see float32 in [-1, 1], consumers get uint8 `[H, W, C]`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydantic import Field
from torch import Tensor

from ganlib._config import Config as _Base
from ganlib.data._kind import Part, Stored
from ganlib.data._pixels import MAX_MEGAPIXELS, as_pixels, open_image, sixteen_bits, to_uint8

__all__ = [
    "LOOKS",
    "MODALITY",
    "Config",
    "Level",
    "Megapixels",
    "Side",
    "decode",
    "describe",
    "encode",
    "flatten",
    "glance",
    "levels",
    "parts",
    "picture",
    "present",
    "present_tensor",
    "preview",
    "quantise",
    "read",
    "take",
    "take_any_size",
    "take_tensor",
    "tiny",
]

MODALITY = "image"
LOOKS = "picture"

Side = Annotated[int, Field(ge=1, le=8192)]
Level = Annotated[int, Field(ge=0, le=255)]
Megapixels = Annotated[float, Field(gt=0)]


class Config(_Base):
    kind: Literal["image"] = "image"
    resolution: tuple[Side, Side]
    """height, width"""
    channels: Literal[1, 3] = 3
    fit: Literal["crop", "pad", "stretch"] = "crop"
    """where the aspect differs: cut the centre out, add `background`, or distort"""
    background: tuple[Level, Level, Level] = (255, 255, 255)
    """RGB under transparent pixels and around padded images"""
    max_megapixels: Megapixels = MAX_MEGAPIXELS
    """larger images are rejected before they are decoded, which takes up to 12 bytes a pixel"""


def parts(cfg: Config) -> dict[str, Part]:
    shape = (cfg.channels, *cfg.resolution)
    return {"sample": Part(shape, shape)}


def encode(cfg: Config, raw: Path | bytes | NDArray[Any] | Image.Image) -> Stored:
    return {"sample": read(cfg, raw)}


def read(cfg: Config, raw: Path | bytes | NDArray[Any] | Image.Image) -> NDArray[np.uint8]:
    """One image, from a file, its bytes, an array or Pillow, to uint8 `[C, H, W]`.

    Arrays are `[H, W]`, `[H, W, C]` or `[C, H, W]` with 1, 3 or 4 channels (last, where both would fit): uint8 or
    other integers of 0 to 255, uint16 of 0 to 65535, bool, or floats of 0 to 1. Raises ValueError if unreadable.
    """
    image = flatten(open_image(raw, cfg.max_megapixels), cfg)
    height, width = cfg.resolution
    lanczos = Image.Resampling.LANCZOS  # Pillow widens the kernel when it shrinks an image: no aliasing
    if image.size != (width, height):
        match cfg.fit:
            case "crop":
                image = ImageOps.fit(image, (width, height), lanczos)
            case "pad":
                image = ImageOps.pad(image, (width, height), lanczos, _background(image.mode, cfg))
            case "stretch":
                image = image.resize((width, height), lanczos)
    pixels = np.asarray(image, dtype=np.uint8).reshape(height, width, cfg.channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def take(cfg: Config, part: str, raw: Path | NDArray[Any]) -> NDArray[np.uint8]:
    """An image of a user, uint8 `[C, H, W]`: a file, which is made to fit, or an array `[H, W, C]` of numbers as `read`
    takes them, which has to.

    Raises ValueError if it cannot be read, or has another shape.
    """
    if isinstance(raw, Path):
        return read(cfg, raw)
    raw = to_uint8(raw)
    expected = (*cfg.resolution, cfg.channels)
    if raw.shape != expected:
        raise ValueError(f"expected images of shape {list(expected)}, found {list(raw.shape)}")
    return np.ascontiguousarray(np.moveaxis(raw, -1, 0))


def take_any_size(cfg: Config, raw: Path | NDArray[Any]) -> NDArray[np.uint8]:
    """An image of a user in its own size, uint8 `[C, H, W]`: a file, or an array `[H, W, C]`.

    Raises ValueError if it cannot be read, has other channels, or numbers that `to_uint8` refuses.
    """
    if isinstance(raw, Path):
        pixels = np.atleast_3d(np.asarray(flatten(open_image(raw, cfg.max_megapixels), cfg), dtype=np.uint8))
    else:
        pixels = to_uint8(raw)
        if pixels.ndim != 3 or pixels.shape[2] != cfg.channels or not pixels.size:
            raise ValueError(f"expected images of shape [height, width, {cfg.channels}], found {list(pixels.shape)}")
    return np.ascontiguousarray(np.moveaxis(pixels, -1, 0))


def decode(cfg: object, part: str, stored: Tensor) -> Tensor:
    """uint8 `[N, C, H, W]` to float32 in [-1, 1]; the inverse of `quantise`."""
    # divided by a tensor: by a number, a GPU multiplies with its reciprocal and rounds otherwise than a CPU
    return stored.float().div_(torch.full((), 127.5, device=stored.device)).sub_(1.0)


def quantise(cfg: object, samples: Tensor) -> Tensor:
    """Floats in [-1, 1], clamped, to the nearest of 256 levels, uint8."""
    return ((samples.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)


def present(cfg: object, part: str, stored: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 `[N, C, H, W]` to `[N, H, W, C]`."""
    return np.moveaxis(stored, 1, -1)


def present_tensor(cfg: object, part: str, stored: Tensor) -> Tensor:
    """uint8 `[N, C, H, W]` to `[N, H, W, C]`."""
    return stored.movedim(1, -1)


def take_tensor(cfg: object, part: str, presented: Tensor) -> Tensor:
    """uint8 `[N, H, W, C]` to `[N, C, H, W]`."""
    return presented.movedim(-1, 1)


def glance(images: Tensor) -> Tensor:
    """Images of at most 32 pixels a side, which is enough to tell one from another."""
    if max(images.shape[2:]) <= 32:
        return images
    height, width = (min(side, 32) for side in images.shape[2:])
    return F.adaptive_avg_pool2d(images, (height, width))


def preview(cfg: object, samples: Mapping[str, Tensor], columns: int) -> Image.Image:
    """Images `[N, C, H, W]` in [-1, 1] as a grid with `columns` examples a row; those of several names, which may be
    grey and coloured, next to each other. Tiny images are magnified by a whole factor."""
    images = [part.detach().cpu() for part in samples.values()]
    if len(images) > 1:
        images = [part.expand(-1, 3, -1, -1) for part in images]
    pixels = quantise(cfg, torch.cat(images, 3))
    n, _, height, width = pixels.shape
    columns = max(1, min(columns, n))
    zoom = max(1, 56 // max(height, width))
    pixels = pixels.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    pixels = F.pad(pixels, (1, 1, 1, 1), value=128)
    empty = -n % columns
    pixels = torch.cat([pixels, pixels.new_full((empty, *pixels.shape[1:]), 128)])
    tiles = pixels.expand(-1, 3, -1, -1).reshape(-1, columns, 3, *pixels.shape[2:])
    return Image.fromarray(tiles.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2).numpy())


def picture(cfg: object, sample: Tensor) -> Image.Image:
    """One image `[1, C, H, W]` in [-1, 1]."""
    pixels = quantise(cfg, sample)[0].numpy()
    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1))


def describe(cfg: object, stored: Stored) -> dict[str, Any]:
    return {"levels": levels(stored)}


def levels(stored: Stored) -> dict[str, Any]:
    """Mean and deviation of each channel of uint8 images `[N, C, H, W]`, on the scale of 0 to 1."""
    means, deviations = list[float](), list[float]()
    for images in stored.values():
        sums, squares, count = torch.zeros(()), torch.zeros(()), 0
        for chunk in torch.from_numpy(images).split(64):
            values = ((decode(None, "", chunk) + 1) / 2).double().transpose(0, 1).flatten(1)
            sums, squares = sums + values.sum(1), squares + values.square().sum(1)
            count += values.shape[1]
        mean = sums / count
        means += mean.tolist()
        deviations += (squares / count - mean.square()).clamp(min=0).sqrt().tolist()
    return {
        "unit": "0 is black, 1 is white; one value a channel",
        "of_training_examples": len(stored["sample"]),
        "mean": [round(value, 5) for value in means],
        "std": [round(value, 5) for value in deviations],
    }


def tiny() -> tuple[Config, list[NDArray[np.uint8]]]:
    rng = np.random.default_rng(0)
    return Config(resolution=(8, 8), channels=1), list(rng.integers(0, 256, (48, 8, 8), dtype=np.uint8))


def flatten(image: Image.Image, cfg: Config) -> Image.Image:
    """To 8-bit "L" or "RGB", transparency laid over the background. Raises ValueError for pixels out of range."""
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(as_pixels(sixteen_bits(image)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, cfg.background), image).convert("RGB")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    mode = "L" if cfg.channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)  # which would copy


def _background(mode: str, cfg: Config) -> int | tuple[int, ...]:
    """The background in the colours of `mode`."""
    colour = Image.new("RGB", (1, 1), cfg.background).convert(mode).getpixel((0, 0))
    assert colour is not None
    return colour if isinstance(colour, tuple) else int(colour)
