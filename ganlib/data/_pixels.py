"""Opening images of users, from files, bytes and arrays, as pixels of 8 bits."""

from __future__ import annotations

import contextlib
import io
import math
import threading
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile

__all__ = [
    "FORMATS",
    "MAX_MEGAPIXELS",
    "TooManyPixels",
    "as_pixels",
    "check_pixels",
    "is_image",
    "may_be_image",
    "open_image",
    "sixteen_bits",
    "to_uint8",
    "without_pixel_limit",
]

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""what is read, by Pillow's names; some of its other formats start foreign programs, as EPS starts Ghostscript"""
MAX_MEGAPIXELS = 200.0


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
        return Image.fromarray(as_pixels(raw))
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
    return Image.fromarray(as_pixels(np.asarray(decoded))) if is_wide else decoded


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


def sixteen_bits(image: Image.Image) -> NDArray[Any]:
    """Pillow's integer modes hold 16-bit greyscale, "I" in 32 bits; "F" is left as it is."""
    pixels = np.asarray(image)
    if image.mode == "F":
        return pixels
    if pixels.size and (pixels.min() < 0 or pixels.max() > 65535):
        raise ValueError(f"32-bit pixels of {pixels.min()} to {pixels.max()}; at most 16 bits are understood")
    return pixels.astype(np.uint16)


def as_pixels(array: NDArray[Any]) -> NDArray[np.uint8]:
    """`[H, W]` or `[H, W, C]` uint8 as Pillow takes it. Raises ValueError."""
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))) or not array.size:
        raise ValueError(f"an array of shape {list(array.shape)} is not an image")
    return to_uint8(array)


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
