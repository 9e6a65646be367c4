"""Video: the part `given` holds past frames, the part `sample` the frames that follow them.

A payload is a clip: its frames in order. Each frame is read as `ganlib.data.image` reads an image. Networks see
frames `[T, C, H, W]` in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from pydantic import PositiveInt
from torch import Tensor

from ganlib._config import Config as _Base
from ganlib.data import image
from ganlib.data._film import frames_of_folder, last_frames
from ganlib.data._kind import Part, Stored
from ganlib.data._pixels import MAX_MEGAPIXELS, to_uint8
from ganlib.data.image import Level, Megapixels, Side, decode, describe, quantise

__all__ = [
    "LOOKS",
    "MODALITY",
    "Config",
    "decode",
    "describe",
    "encode",
    "film",
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
    "views",
]

MODALITY = LOOKS = "video"

_SHOWN = 16  # examples in a picture
_SMALLEST = 56  # pixels a side of a frame that is shown
_GREY = 128


class Config(_Base):
    kind: Literal["video"] = "video"
    resolution: tuple[Side, Side]
    """height, width"""
    channels: Literal[1, 3] = 3
    past: PositiveInt = 4
    """frames that are given"""
    future: PositiveInt = 8
    """frames that are to be made"""
    fit: Literal["crop", "pad", "stretch"] = "crop"
    """where the aspect differs: cut the centre out, add `background`, or distort"""
    background: tuple[Level, Level, Level] = (255, 255, 255)
    """RGB under transparent pixels and around padded frames"""
    max_megapixels: Megapixels = MAX_MEGAPIXELS
    """larger frames are rejected, of folders before they are decoded; of files none above 200 is decoded"""


def parts(cfg: Config) -> dict[str, Part]:
    shapes = {
        name: (frames, cfg.channels, *cfg.resolution) for name, frames in (("given", cfg.past), ("sample", cfg.future))
    }
    return {name: Part(shape, shape) for name, shape in shapes.items()}


def encode(cfg: Config, clip: Sequence[Any]) -> Stored:
    """Frames as `ganlib.data.image` reads images, uint8 `[past, C, H, W]` and `[future, C, H, W]`.

    Raises ValueError if there are not as many, or one cannot be read.
    """
    if len(clip) != cfg.past + cfg.future:
        raise ValueError(
            f"a clip of {len(clip)} frames; expected past + future = {cfg.past + cfg.future} (source.frames)"
        )
    read = np.stack([image.read(_as_image(cfg), frame) for frame in clip])
    return {"given": read[: cfg.past], "sample": read[cfg.past :]}


def take(cfg: Config, part: str, raw: Path | NDArray[Any]) -> NDArray[np.uint8]:
    """The last frames of a video file, or of a folder of numbered frames, which are made to fit; or an array
    `[T, H, W, C]`, which has to. uint8 `[T, C, H, W]`.

    Raises ValueError if it cannot be read, has too few frames, another shape, or pixels that `to_uint8` refuses.
    """
    count = parts(cfg)[part].shape[0]
    if isinstance(raw, Path):
        found = frames_of_folder(raw)[-count:] if raw.is_dir() else last_frames(raw, count, cfg.max_megapixels)
        if len(found) < count:
            raise ValueError(f"{len(found)} frames; expected {count} at the least")
        return np.stack([image.read(_as_image(cfg), frame) for frame in found])
    raw = to_uint8(raw)
    expected = (count, *cfg.resolution, cfg.channels)
    if raw.shape != expected:
        raise ValueError(f"expected frames of shape {list(expected)}, found {list(raw.shape)}")
    return np.ascontiguousarray(np.moveaxis(raw, -1, 1))


def present(cfg: Config, part: str, stored: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 `[N, T, C, H, W]` to `[N, T, H, W, C]`."""
    return np.moveaxis(stored, 2, -1)


def present_tensor(cfg: Config, part: str, stored: Tensor) -> Tensor:
    """uint8 `[N, T, C, H, W]` to `[N, T, H, W, C]`."""
    return stored.movedim(2, -1)


def take_tensor(cfg: Config, part: str, presented: Tensor) -> Tensor:
    """uint8 `[N, T, H, W, C]` to `[N, T, C, H, W]`."""
    return presented.movedim(-1, 2)


def naive(cfg: Config, given: Mapping[str, Tensor]) -> Tensor:
    """The last given frame, again and again."""
    return given["given"][:, -1:].expand(-1, cfg.future, -1, -1, -1)


def views(cfg: Config, samples: Tensor) -> dict[str, Tensor]:
    """Whole clips, and the frames at each horizon, `[N, C, H, W]`."""
    return {"samples": samples, **{f"frame_{i + 1}": frame for i, frame in enumerate(samples.unbind(1))}}


def glance(samples: Tensor) -> Tensor:
    """Frames of at most 32 pixels a side, as channels."""
    return image.glance(samples.flatten(1, 2))


def preview(cfg: Config, samples: Mapping[str, Tensor], columns: int) -> Image.Image:
    """The first examples one below the other: a row of frames for each name, after what was given to all of them."""
    futures, given = _shown(samples)
    rows = torch.stack([*futures.values()], 1)
    if given is not None:  # once, in the row of the first name
        once = torch.zeros_like(given)[:, None].repeat(1, len(futures), 1, 1, 1, 1)
        once[:, 0] = given
        rows = torch.cat([once, rows], 2)
    tiles = _bordered(rows)  # [N, names, T, 3, h, w]
    return Image.fromarray(tiles.permute(0, 1, 4, 2, 5, 3).flatten(0, 2).flatten(1, 2).numpy())


def film(cfg: Config, samples: Mapping[str, Tensor]) -> list[Image.Image]:
    """The first examples one below the other, frame by frame; names side by side, after the same given frames."""
    futures, given = _shown(samples)
    clips = [x if given is None else torch.cat([given, x], 1) for x in futures.values()]
    tiles = _bordered(torch.stack(clips, 1))  # [N, names, T, 3, h, w]
    pages = tiles.permute(2, 0, 4, 1, 5, 3).flatten(1, 2).flatten(2, 3)
    return [Image.fromarray(page.numpy()) for page in pages]


def tiny() -> tuple[Config, list[NDArray[np.uint8]]]:
    rng = np.random.default_rng(0)
    return Config(resolution=(16, 16), channels=1, past=2, future=4), list(
        rng.integers(0, 256, (48, 6, 16, 16), dtype=np.uint8)
    )


def _as_image(cfg: Config) -> image.Config:
    """How a frame is read."""
    return image.Config(**cfg.model_dump(exclude={"kind", "past", "future"}))


def _shown(samples: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor | None]:
    """The first examples: what followed by name, and what was given, where there is both."""
    futures = {name: x[:_SHOWN].detach().cpu() for name, x in samples.items()}
    given = futures.pop("given") if "given" in futures and len(futures) > 1 else None
    return futures, given


def _bordered(frames: Tensor) -> Tensor:
    """Frames `[..., C, H, W]` in [-1, 1] as uint8 RGB with a grey border, small ones enlarged by a whole factor."""
    zoom = max(1, -(-_SMALLEST // max(frames.shape[-2:])))
    pixels = quantise(None, frames).repeat_interleave(zoom, -2).repeat_interleave(zoom, -1)
    return F.pad(pixels.expand(*pixels.shape[:-3], 3, -1, -1), (1, 1, 1, 1), value=_GREY)
