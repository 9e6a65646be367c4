"""Which files of a folder and of the archives in it are images: by suffix, or else by content."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator
from itertools import chain, tee
from pathlib import Path
from typing import Any

from ganlib.data import image
from ganlib.data._pixels import FORMATS, TooManyPixels, is_image, may_be_image, open_image
from ganlib.sources._files import File, head, payloads, tree
from ganlib.sources._source import Item, SourceError, Split, printable

__all__ = [
    "MADE",
    "PART",
    "Known",
    "decoding_fault",
    "digest",
    "fault_of",
    "images",
    "read",
    "read_two",
    "rejects_note",
    "split_of",
]

PART = 256
MADE = {"both": (1, 0), "a_to_b": (1,), "b_to_a": (0,)}
"""which of two domains are made of the other, in the order of their examples, by the direction"""
Known = tuple[int | None, Split | None, tuple[float, ...] | None]
"""label, split, attributes"""
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"),
    *(".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm"),
)
_ANY_SIZE = image.Config(resolution=(1, 1))
_ARCHIVES = (".gz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".tgz", ".tbz2")


def images(raw: Path) -> tuple[list[File], list[File]]:
    """`(images, other files)`. A file with the suffix of an image is one, however damaged; of any other, the content
    decides. Raises SourceError if there are no images."""
    found, others = list[File](), list[File]()
    for file in tree(raw, "images"):
        (found if _is_image(file) else others).append(file)
    if not found:
        shown = [file for file in others if not file.hidden]
        here = f"{len(shown)} other files, as {printable(shown[0].name)}" if shown else "nothing"
        packed = [file.name for file in shown if file.name.lower().endswith(_ARCHIVES)]
        hint = f"; of archives, .zip and .tar are read: unpack {printable(packed[0])}" if packed else ""
        raise SourceError(f"{raw}: no images (of any of {', '.join(FORMATS)}); it holds {here}{hint}")
    return found, others


def _is_image(file: File) -> bool:
    if file.hidden:
        return False
    if file.name.lower().endswith(SUFFIXES):
        return True
    if not may_be_image(head(file)):
        return False
    ((_, content, _),) = list(payloads([file]))
    if content is None:
        return False
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as opened:
        return is_image(opened)


def read(files: Iterable[File], known: Iterable[Known]) -> Iterator[Item]:
    """The items of files and what is known of each besides."""
    for (file, content, why), (label, split, attributes) in zip(payloads(files), known, strict=True):
        yield Item(printable(file.name), content, label, split, attributes, why or Item.reason)


def read_two(files: Iterable[tuple[File, File]], known: Iterable[Known]) -> Iterator[Item]:
    """An item for each two files, the given one and the sample."""
    two, alone = tee(files)
    contents = payloads(chain.from_iterable(alone))
    for (given, sample), (label, split, attributes) in zip(two, known, strict=True):
        (_, one, why), (_, other, why_other) = next(contents), next(contents)
        reason = why or why_other
        name = f"{printable(given.name)} -> {printable(sample.name)}"
        yield Item(name, None if reason else (one, other), label, split, attributes, reason or Item.reason)


def digest(file: File) -> str:
    """SHA-256 of the content, or of the name where it cannot be read."""
    ((_, content, _),) = list(payloads([file]))
    if content is None:
        return hashlib.sha256(file.name.encode(errors="surrogateescape")).hexdigest()
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def split_of(digest: str, test_share: float) -> Split:
    """The split of a file by its content."""
    return "test" if int(digest[:16], 16) < test_share * 2**64 else "train"


def fault_of(file: File) -> str:
    """Why a file cannot be decoded as an image; empty for one that can."""
    ((_, content, why),) = list(payloads([file]))
    return why if content is None else decoding_fault(content)


def decoding_fault(payload: Any) -> str:
    """Why a path, bytes or an array cannot be decoded as an image; empty for one that can."""
    # Every example of a damaged image would be a reject, and take a good image along.
    try:
        image.flatten(open_image(payload), _ANY_SIZE)
    except TooManyPixels:
        return ""  # sample.max_megapixels decides
    except ValueError as error:
        return str(error)
    return ""


def rejects_note(rejects: list[Item]) -> str:
    """The end of an error's line: how many images were rejected and why, if any."""
    return f"; {len(rejects)} rejected, as {rejects[0].id}: {rejects[0].reason}" if rejects else ""
