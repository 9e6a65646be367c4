"""Which files of a folder and of the archives in it are images: by suffix, or else by content."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from ganlib.data import image
from ganlib.sources._files import File, head, payloads, tree
from ganlib.sources._source import Item, SourceError, Split, printable

__all__ = ["PART", "images", "read"]

PART = 256
Known = tuple[int | None, Split | None, tuple[float, ...] | None]
"""label, split, attributes"""
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"),
    *(".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm"),
)
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
        raise SourceError(f"{raw}: no images (of any of {', '.join(image.FORMATS)}); it holds {here}{hint}")
    return found, others


def _is_image(file: File) -> bool:
    if file.hidden:
        return False
    if file.name.lower().endswith(SUFFIXES):
        return True
    if not image.may_be_image(head(file)):
        return False
    ((_, content, _),) = list(payloads([file]))
    if content is None:
        return False
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as opened:
        return image.is_image(opened)


def read(files: Iterable[File], known: Iterable[Known]) -> Iterator[Item]:
    """The items of files and what is known of each besides."""
    for (file, content, why), (label, split, attributes) in zip(payloads(files), known, strict=True):
        yield Item(printable(file.name), content, label, split, attributes, why or Item.reason)
