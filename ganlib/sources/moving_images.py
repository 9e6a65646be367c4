"""Clips of images that move on a black canvas and bounce off its edges, after Moving MNIST (Srivastava et al. 2015).

The images are those of MNIST-format files (`idx`), such as Fashion-MNIST's: of `train-…` for training, of `t10k-…` for
testing. Places and speeds are functions of the split and the number of the clip.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, model_validator

from ganlib._config import Config as _Base
from ganlib.sources import idx
from ganlib.sources._source import Item, Source, SourceError, Split, ranges

__all__ = ["KINDS", "Config", "load"]

KINDS = ("video",)
_PART_CLIPS = 256
_SPLITS: tuple[tuple[Split, str], ...] = (("train", "train"), ("test", "t10k"))


class Config(_Base):
    name: Literal["moving_images"] = "moving_images"
    train: PositiveInt = 10_000
    """clips for training"""
    test: PositiveInt = 2_000
    """clips for testing, of images that training has not"""
    frames: PositiveInt = 12
    """of a clip: those given and those to be made"""
    canvas: PositiveInt = 64
    """pixels a side"""
    images: PositiveInt = 2
    """on a canvas; where they overlap, the lighter one shows"""
    speed: tuple[Annotated[float, Field(ge=0.0)], Annotated[float, Field(ge=0.0)]] = (2.0, 5.0)
    """pixels a frame, the least and the most"""

    @model_validator(mode="after")
    def _rising(self) -> Config:
        if self.speed[0] > self.speed[1]:
            raise ValueError(f"speed: expected the least, then the most, found {list(self.speed)}")
        return self


def load(cfg: Config, raw: Path) -> Source:
    """Raises SourceError if a file is missing or has no images, or images are larger than the canvas."""
    parts, about = [], []
    for split, prefix in _SPLITS:
        path, (count, height, width) = idx.images_of(raw, prefix)
        if not count:
            raise SourceError(f"{path}: no images")
        if max(height, width) > cfg.canvas:
            raise SourceError(f"{path}: images of {width}x{height} pixels; source.canvas is {cfg.canvas}")
        clips = getattr(cfg, split)
        parts += [partial(_items, cfg, path, split, slice(*bounds)) for bounds in ranges(clips, _PART_CLIPS)]
        about.append(f"{clips} clips of {count} images ({path.name})")
    return Source(", ".join(about), cfg.train + cfg.test, parts)


def _items(cfg: Config, path: Path, split: Split, clips: slice) -> Iterator[Item]:
    images = idx.pixels_of(path)
    for number in range(clips.start, clips.stop):
        # the legacy generator, whose numbers no version of numpy changes (NEP 19)
        rng = np.random.RandomState([[name for name, _ in _SPLITS].index(split), number])
        yield Item(f"{split}[{number}]", [*_clip(cfg, images, rng)], split=split)


def _clip(cfg: Config, images: NDArray[np.uint8], rng: np.random.RandomState) -> NDArray[np.uint8]:
    """uint8 `[T, canvas, canvas]`."""
    clip = np.zeros((cfg.frames, cfg.canvas, cfg.canvas), np.uint8)
    height, width = images.shape[1:]
    for _ in range(cfg.images):
        image = images[rng.randint(len(images))]
        room = np.array([cfg.canvas - height, cfg.canvas - width])
        angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(*cfg.speed)
        velocity = speed * np.array([np.sin(angle), np.cos(angle)])
        places = rng.uniform(0, 1, 2) * room + np.arange(cfg.frames)[:, None] * velocity
        for frame, (top, left) in zip(clip, _bounced(places, room), strict=True):
            there = frame[top : top + height, left : left + width]
            np.maximum(there, image, out=there)
    return clip


def _bounced(places: NDArray[np.float64], room: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places `[T, 2]` folded into 0 to `room`, as of what is reflected at both ends."""
    folded = np.abs((places + room) % np.maximum(2 * room, 1) - room)
    return np.rint(np.where(room > 0, folded, 0)).astype(np.int64)
