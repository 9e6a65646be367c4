"""Aligned pairs of images: one is given, the other is to be made of it. Stored as one image, channels stacked.

uint8 `[C_given + C_generated, H, W]`; the spec's `given` says how many channels lead. Both halves are read as
`ganlib.data.image` reads images, and cut alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor

from ganlib._config import Config as _Base
from ganlib.data import image
from ganlib.data._spec import Spec
from ganlib.data.image import Level, Side, decode, quantise

__all__ = ["MODALITY", "Config", "SideBySide", "decode", "encode", "preview", "quantise", "spec"]

MODALITY = "image_pair"


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


@dataclass(frozen=True)
class SideBySide:
    """A pair that is the left and the right half of one image."""

    raw: Path | bytes | NDArray[Any] | Image
    given: Literal["left", "right"] = "left"


def spec(cfg: Config, *, classes: tuple[str, ...], counts: dict[str, int], content_hash: str) -> Spec:
    given, generated = cfg.channels
    return Spec("pair", MODALITY, (given + generated, *cfg.resolution), classes, counts, content_hash, given=given)


def encode(cfg: Config, raw: tuple[Any, Any] | SideBySide) -> NDArray[np.uint8]:
    """`(given, generated)`, each whatever `ganlib.data.image` reads, to uint8 `[C_given + C_generated, H, W]`.

    Raises ValueError if one cannot be read, if the two differ in size (unless both are stretched), or if an image
    that holds both has an odd width.
    """
    halves = _halves(raw) if isinstance(raw, SideBySide) else (image._open(raw[0]), image._open(raw[1]))
    (width, height), (other_width, other_height) = (half.size for half in halves)
    if (width, height) != (other_width, other_height) and cfg.fit != "stretch":
        raise ValueError(
            f"the given image is {width}x{height}, the other {other_width}x{other_height}: with fit {cfg.fit} "
            "both must be of one size, or they would not be cut alike"
        )
    alike = cfg.model_dump(exclude={"kind", "channels"})
    parts = [
        image.encode(image.Config(channels=channels, **alike), half)
        for channels, half in zip(cfg.channels, halves, strict=True)
    ]
    return np.concatenate(parts)


def preview(samples: Tensor | Sequence[Tensor], columns: int) -> Image:
    """A grid with `columns` examples a row, the images of each side by side.

    Samples are a sequence of `[N, 1 or 3, H, W]` in [-1, 1], to be shown beside each other (the spec's
    `split(samples)`, or the given, the generated and the true half), or one tensor: halves of one kind, or pairs
    as they are stored, in which 2 channels are taken for 1 + 1, 4 for 3 + 1 and 6 for 3 + 3.
    """
    if isinstance(samples, Tensor):
        given = {2: 1, 4: 3, 6: 3}.get(samples.shape[1], 0)
        samples = samples.tensor_split([given], 1) if given else [samples]
    return image.preview(torch.cat([half.detach().cpu().expand(-1, 3, -1, -1) for half in samples], 3), columns)


def _halves(raw: SideBySide) -> tuple[Image, ...]:
    """`(given, generated)`."""
    whole = image._open(raw.raw)
    width, height = whole.size
    if width % 2:
        raise ValueError(f"{width}x{height} pixels: an odd width has no halves")
    left, right = whole.crop((0, 0, width // 2, height)), whole.crop((width // 2, 0, width, height))
    return (left, right) if raw.given == "left" else (right, left)
