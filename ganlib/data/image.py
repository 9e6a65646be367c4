"""Images, stored as uint8 `[C, H, W]`: networks see float32 in [-1, 1], consumers get uint8 `[H, W, C]`."""

from __future__ import annotations

import contextlib
import io
import math
import threading
import warnings
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile
from pydantic import Field
from torch import Tensor

from ganlib._config import Config as _Base
from ganlib.data._kind import Part, Stored

__all__ = [
    "FORMATS",
    "LOOKS",
    "MAX_MEGAPIXELS",
    "MODALITY",
    "Config",
    "Level",
    "Megapixels",
    "Side",
    "TooManyPixels",
    "check_pixels",
    "decode",
    "describe",
    "encode",
    "flatten",
    "glance",
    "is_image",
    "levels",
    "may_be_image",
    "open_image",
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
    "to_uint8",
    "without_pixel_limit",
]

MODALITY = "image"
LOOKS = "picture"

Side = Annotated[int, Field(ge=1, le=8192)]
Level = Annotated[int, Field(ge=0, le=255)]
Megapixels = Annotated[float, Field(gt=0)]

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""what is read, by Pillow's names; some of its other formats start foreign programs, as EPS starts Ghostscript"""
MAX_MEGAPIXELS = 200.0


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


def to_uint8(raw: Any) -> NDArray[np.uint8]:
    """Pixels as uint8, of the same shape: integers of 0 to 255, uint16 of 0 to 65535, bool, or floats of 0 to 1. Raises
    ValueError for others."""
    array, expected = np.asarray(raw), "expected integers of 0 to 255, or floats of 0 to 1"
    if array.dtype.kind not in "buif":
        raise ValueError(f"{expected}; found no array of numbers")
    if array.dtype == np.bool_:
        return np.where(array, np.uint8(255), np.uint8(0))
    if array.dtype == np.uint16:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    top = 1 if array.dtype.kind == "f" else 255
    if not ((array >= 0) & (array <= top)).all():  # so written that NaN fails too
        raise ValueError(f"{expected}; found {array.dtype} of {array.min()} to {array.max()}")
    scaled = np.rint(array * 255.0) if top == 1 else array
    return np.ascontiguousarray(scaled, dtype=np.uint8)


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


def is_image(file: BinaryIO) -> bool:
    """Whether the content starts as an image of one of `FORMATS`; what follows may be damaged."""
    with warnings.catch_warnings(), without_pixel_limit():
        warnings.simplefilter("ignore")
        try:
            Image.open(file, formats=FORMATS)
        except UnidentifiedImageError:
            return False
        except Exception:  # decoders raise any exception on broken bytes
            file.seek(0)
            text = bytes([*b"\t\n\r", *range(32, 127)])
            return bool(file.read(32).strip(text))  # a bitmap begins with BM, and a text may
    return True


def may_be_image(head: bytes) -> bool:
    """Whether a file with these first bytes, 16 or more, can be one of `FORMATS`."""
    Image.init()
    return any(accept is None or accept(head) for accept in (Image.OPEN[name][1] for name in FORMATS))


class TooManyPixels(ValueError):
    """An image has more pixels than `max_megapixels` allows."""


def open_image(raw: Path | bytes | NDArray[Any] | Image.Image, max_megapixels: float = MAX_MEGAPIXELS) -> Image.Image:
    """Decode the first frame and turn it as its EXIF tag says. Metadata that cannot be read change nothing.

    Raises TooManyPixels, and ValueError for what cannot be read.
    """
    if isinstance(raw, np.ndarray):
        check_pixels(raw.shape[:2] if raw.ndim < 3 or raw.shape[2] in (1, 3, 4) else raw.shape[1:], max_megapixels)
        return Image.fromarray(_as_pixels(raw))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd but readable files
            if isinstance(raw, Image.Image):
                return _upright(raw)
            with io.BytesIO(raw) if isinstance(raw, bytes) else raw.open("rb") as file:
                try:
                    return _decoded(file, max_megapixels)
                except TooManyPixels:
                    raise
                except Exception:
                    bare = _without_metadata(file)
                    if bare is None:
                        raise
            return _decoded(io.BytesIO(bare), max_megapixels)
    except TooManyPixels:
        raise
    except UnidentifiedImageError as error:  # whose own message holds an absolute path or an address
        raise ValueError("not an image, or of an unknown format") from error
    except Exception as error:  # decoders raise any exception on broken bytes
        raise ValueError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


def _decoded(file: BinaryIO, max_megapixels: float) -> Image.Image:
    with without_pixel_limit():
        image = Image.open(file, formats=FORMATS)
    check_pixels(image.size[::-1], max_megapixels)
    is_wide = isinstance(image, TiffImageFile) and image.mode == "I" and 32 in image.tag_v2.get(BITSPERSAMPLE, ())
    decoded = _upright(image)
    return Image.fromarray(_as_pixels(np.asarray(decoded))) if is_wide else decoded


def _upright(image: Image.Image) -> Image.Image:
    """The image, decoded, as its EXIF tag says that it is to be shown."""
    image.load()
    try:
        method = _ORIENTATIONS.get(image.getexif().get(0x0112, 1))
    except Exception:  # damaged EXIF data may raise any exception in Pillow
        method = None
    return image if method is None else image.transpose(method)


_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def check_pixels(size: tuple[int, ...], max_megapixels: float) -> None:
    """Raises TooManyPixels for `(height, width)` of more pixels than that."""
    pixels = math.prod(size)
    if pixels > max_megapixels * 1e6:
        raise TooManyPixels(
            f"{'x'.join(map(str, size[::-1]))} are {pixels / 1e6:.3g} megapixels; "
            f"sample.max_megapixels allows {max_megapixels:g}"
        )


_limit_lock = threading.RLock()


@contextlib.contextmanager
def without_pixel_limit() -> Iterator[None]:
    """Inside, Pillow opens and crops images of any size: `check_pixels` says which are too large, before decoding."""
    with _limit_lock:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"


def _without_metadata(file: BinaryIO) -> bytes | None:
    """A PNG or JPEG file with nothing but what its pixels need, and the EXIF data of a PNG; None for other files.

    Pillow refuses images for their texts or colour profiles: too large, or damaged.
    """
    file.seek(0)
    head = file.read(8)
    if head == _PNG:
        return head + b"".join(_png_chunks(file.read()))
    if head[:2] == _JPEG:
        return _JPEG + b"".join(_jpeg_segments(head[2:] + file.read()))
    return None


def _png_chunks(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4])
        name, whole = data[at + 4 : at + 8], data[at:end]
        undamaged = zlib.crc32(whole[4:-4]) == int.from_bytes(whole[-4:])
        if name in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND") or (name == b"eXIf" and undamaged):
            yield whole
        at = end


def _jpeg_segments(data: bytes) -> Iterator[bytes]:
    """All but APP1 to APP13, APP15 (APP0 and APP14 say which colours they are) and comments."""
    at = 0
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] not in (b"\xda", b""):
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if data[at + 1] not in (*range(0xE1, 0xEE), 0xEF, 0xFE):
            yield data[at:end]
        at = end
    yield data[at:]


def flatten(image: Image.Image, cfg: Config) -> Image.Image:
    """To 8-bit "L" or "RGB", transparency laid over the background. Raises ValueError for pixels out of range."""
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_as_pixels(_sixteen_bits(image)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, cfg.background), image).convert("RGB")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    mode = "L" if cfg.channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)  # which would copy


def _sixteen_bits(image: Image.Image) -> NDArray[Any]:
    """Pillow's integer modes hold 16-bit greyscale, "I" in 32 bits; "F" is left as it is."""
    pixels = np.asarray(image)
    if image.mode == "F":
        return pixels
    if pixels.size and (pixels.min() < 0 or pixels.max() > 65535):
        raise ValueError(f"32-bit pixels of {pixels.min()} to {pixels.max()}; at most 16 bits are understood")
    return pixels.astype(np.uint16)


def _as_pixels(array: NDArray[Any]) -> NDArray[np.uint8]:
    """`[H, W]` or `[H, W, C]` uint8 as Pillow takes it. Raises ValueError."""
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))) or not array.size:
        raise ValueError(f"an array of shape {list(array.shape)} is not an image")
    return to_uint8(array)


def _background(mode: str, cfg: Config) -> int | tuple[int, ...]:
    """The background in the colours of `mode`."""
    colour = Image.new("RGB", (1, 1), cfg.background).convert(mode).getpixel((0, 0))
    assert colour is not None
    return colour if isinstance(colour, tuple) else int(colour)
