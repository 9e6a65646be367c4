"""The files below a folder, each once: links are followed, and zip and tar archives are read where they lie.

Nothing is unpacked to disk. A member of an archive is at most `MEMBER_BYTES` unpacked, an archive at most `RATIO` times
as large as it is; members are known by the position of their bytes, so that any process can read any of them.
"""

from __future__ import annotations

import os
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby, pairwise
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal, NamedTuple, TypeVar

__all__ = [
    "File",
    "SourceError",
    "Split",
    "chunks",
    "head",
    "name_fault",
    "payloads",
    "split_name",
    "splits_note",
    "splits_of",
    "splits_of_files",
    "tree",
    "walk",
    "without_wrapper",
]

T = TypeVar("T")
Split = Literal["train", "test"]

MEMBER_BYTES = 2**29
RATIO = 100
_SLACK_BYTES = 2**26  # of small archives of text, which shrink more
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_STORED, _DEFLATED = 0, 8  # methods of zip


class SourceError(ValueError):
    """A source cannot be opened. The message is one line."""


class File(NamedTuple):
    name: str
    """below the folder; of a member, its archive's name comes first"""
    place: str
    """its path if archives were unpacked: folders and name, with slashes"""
    path: str
    """of the file, or of the archive"""
    kind: Literal["file", "zip", "tar", "stream"] = "file"
    """a stream is a compressed tar, whose members are read in order"""
    start: int = 0
    """bytes before the member's header (zip) or data (tar); the member's number in a stream"""
    packed: int = 0
    size: int = 0
    """bytes, in the archive and unpacked"""
    crc: int = 0
    fault: str = ""
    """why it cannot be read, or empty"""

    @property
    def hidden(self) -> bool:
        return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(self.place).parts)


def tree(folder: Path, what: str) -> list[File]:
    """All files, in the order of their paths' parts. Raises SourceError where there is no folder, or an archive is
    damaged or would take the machine."""
    return [member for file in walk(folder, what) for member in _members(file)]


def walk(folder: Path, what: str) -> Iterator[File]:
    """All files in the order of their paths' parts, archives as files. Raises SourceError where there is no folder."""
    if not folder.is_dir():
        raise SourceError(f"{folder}: no such folder; put {what} there")
    return _walk(folder, "", ())


def payloads(files: Iterable[File]) -> Iterator[tuple[File, Path | bytes | None, str]]:
    """`(file, its path or its bytes, "")`, or `(file, None, why)`; files of a stream follow each other in its order."""
    for (path, kind), group in groupby(files, key=lambda file: (file.path, file.kind)):
        if kind == "file":
            yield from ((file, None if file.fault else Path(path), file.fault) for file in group)
        elif kind == "stream":
            yield from _streamed(path, list(group))
        else:
            with open(path, "rb") as archive:
                for file in group:
                    try:
                        if file.fault:
                            raise ValueError(file.fault)
                        archive.seek(file.start)
                        content = _unzipped(archive, file) if kind == "zip" else archive.read(file.size)
                        yield file, content, ""
                    except ValueError as error:
                        yield file, None, str(error)


def head(file: File, size: int = 32) -> bytes:
    """The first bytes; none of a file that cannot be read, or is a member of a compressed tar."""
    if file.fault or file.kind == "stream":
        return b""
    with open(file.path, "rb") as opened:
        opened.seek(file.start)
        try:
            return _unzipped(opened, file, size) if file.kind == "zip" else opened.read(size)
        except ValueError:
            return b""


def chunks(files: list[File], size: int) -> list[list[File]]:
    """Parts of `size` files; those of a stream stay together."""
    found = []
    for path, group in groupby(files, key=lambda file: file.path if file.kind == "stream" else None):
        together = list(group)
        found += [together] if path else [together[i : i + size] for i in range(0, len(together), size)]
    return found


# -- what folders are called ---------------------------------------------------------------------------------------

_SPLIT = re.compile(
    r"(train|training|test|testing|val|valid|validation)([-_. ]?(set|data|imgs?|images?|\d+))*"
    r"(-\d+-of-\d+(-[\da-f]{16})?)?",  # shards of Hugging Face
    re.IGNORECASE,
)
_NOTED = 8


def split_name(folder: str) -> str:
    """`train`, `val` or `test`; empty for other folders."""
    found = _SPLIT.fullmatch(folder)
    return {"tr": "train", "te": "test", "va": "val"}[found[1][:2].lower()] if found else ""


def splits_of(folders: Iterable[str]) -> dict[str, Split]:
    """The split of each folder called so, as `train`, `Testing` or `val2017`, where there is one to train and one to
    test on; also after what all names begin with, as in `seg_train`, where `data` next to `test` is to train on (UCI's
    `adult.data`). `val` trains where there is a `test`; other folders have none."""
    folders = list(folders)
    headings = {re.split(r"[^-_. ]+$", folder)[0] for folder in folders}
    common = headings.pop() if len(headings) == 1 else ""
    named = {folder: name for folder in folders if (name := split_name(folder.removeprefix(common)))}
    if common.endswith(".") and "train" not in named.values():
        named |= {folder: "train" for folder in folders if folder.removeprefix(common).lower() == "data"}
    found = set(named.values())
    if "train" not in found or len(found) == 1:
        return {}
    of_name: dict[str, Split] = {"train": "train", "val": "train" if "test" in found else "test", "test": "test"}
    return {folder: of_name[name] for folder, name in named.items()}


def splits_note(splits: Mapping[str, Split], where: str = "folders") -> str:
    """What `splits_of` found, for the card."""
    said = [f"{name} for {'training' if split == 'train' else 'testing'}" for name, split in sorted(splits.items())]
    more = f" and {len(said) - _NOTED} others" if len(said) > _NOTED else ""
    return f"The split is that of the {where}: {', '.join(said[:_NOTED])}{more}."


def splits_of_files(folder: Path, paths: Iterable[Path], *, by_name: bool = True) -> tuple[dict[Path, Split], str]:
    """The split of each file that has one, by the folder below those that hold all, or by its own name where it lies in
    none; and the note for the card, empty where there is no split."""
    parts = {path: path.relative_to(folder).parts for path in paths}
    places = without_wrapper({path: (*of[:-1], path.stem) if by_name else of[:-1] for path, of in parts.items()})
    known = splits_of({of[0] for of in places.values() if of})
    found = {path: known[of[0]] for path, of in places.items() if of and of[0] in known}
    return found, splits_note(known, "files and folders") if known else ""


def without_wrapper(places: dict[T, tuple[str, ...]]) -> dict[T, tuple[str, ...]]:
    """The folders of each file without those that hold all, as unpacking makes them; the innermost folder stays."""
    while len({folders[:1] for folders in places.values()}) == 1 and all(len(f) > 1 for f in places.values()):
        places = {key: folders[1:] for key, folders in places.items()}
    return places


# -- on disk -------------------------------------------------------------------------------------------------------


def _walk(folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[File]:
    about = folder.stat()
    above = (*above, (about.st_dev, about.st_ino))
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        name = f"{prefix}{entry.name}"
        file = File(name, name, entry.path, fault=name_fault(name))
        try:
            about = entry.stat()
            is_folder, is_file = entry.is_dir(), entry.is_file()
        except OSError as error:
            why = "a link to nothing" if isinstance(error, FileNotFoundError) else f"a link: {error.strerror}"
            yield file._replace(fault=why)
            continue
        if is_folder and not file.hidden:
            if (about.st_dev, about.st_ino) in above:
                yield file._replace(fault="a link to a folder that it lies in")
            else:
                yield from _walk(Path(entry.path), f"{name}/", above)
        elif is_file:
            yield file


def name_fault(name: str) -> str:
    """Why a file cannot be kept under its name, or nothing."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8: DVC takes no such names; rename it"
    return ""


# -- archives ------------------------------------------------------------------------------------------------------


def _members(file: File) -> Iterator[File]:
    """The members of an archive, or the file itself."""
    name = file.name.lower()
    if file.fault or file.hidden or not name.endswith((".zip", *_TARS)):
        yield file
        return
    read = _zip_members if name.endswith(".zip") else _tar_members
    try:
        members = list(read(file))
    except (OSError, EOFError, RuntimeError, ValueError, zlib.error, zipfile.BadZipFile, tarfile.TarError) as error:
        raise SourceError(f"{file.path}: {' '.join(str(error).split()) or type(error).__name__}") from error
    members.sort(key=lambda member: PurePosixPath(member.name).parts if member.kind == "zip" else ())
    # As it would lie if it were unpacked: in a folder of the archive's name where that says something.
    stem = name.removesuffix(".zip")
    for suffix in _TARS:
        stem = stem.removesuffix(suffix)
    folder, _, stem = file.place[: len(stem)].rpartition("/")
    flat = all("/" not in member.place for member in members if not member.hidden)
    around = [folder, stem] if split_name(stem) or (flat and file.name.lower().endswith(".zip")) else [folder]
    prefix = "".join(f"{part}/" for part in around if part)
    for member in members:
        yield member._replace(place=prefix + member.place)


def _member(archive: File, name: str, kind: Literal["zip", "tar", "stream"], size: int, fault: str = "") -> File:
    parts = [part for part in PurePosixPath(name).parts if part not in ("/", ".")]
    if ".." in parts:
        fault = fault or "its path leads out of the archive"
    if size > MEMBER_BYTES:
        fault = fault or f"{size / 2**20:.0f} MiB unpacked, expected at most {MEMBER_BYTES / 2**20:.0f}"
    place = "/".join(part for part in parts if part != "..")
    whole = f"{archive.name}/{place}"
    return File(whole, place, archive.path, kind, size=size, fault=fault or name_fault(whole))


def _zip_members(archive: File) -> Iterator[File]:
    with zipfile.ZipFile(archive.path) as opened:
        members = [member for member in opened.infolist() if not member.is_dir()]
    _check_total(archive, sum(member.file_size for member in members))
    in_order = sorted(members, key=lambda member: member.header_offset)
    if any(one.header_offset + one.compress_size > other.header_offset for one, other in pairwise(in_order)):
        raise SourceError("its members lie over each other, as in no archive but a bomb")
    for member in members:
        fault = "encrypted" if member.flag_bits & 1 else ""
        if member.compress_type not in (_STORED, _DEFLATED):
            fault = fault or f"compressed in a way that is not read here: method {member.compress_type} of zip"
        file = _member(archive, member.filename.replace("\\", "/"), "zip", member.file_size, fault)
        yield file._replace(start=member.header_offset, packed=member.compress_size, crc=member.CRC)


def _tar_members(archive: File) -> Iterator[File]:
    kind: Literal["tar", "stream"] = "tar" if archive.name.lower().endswith(".tar") else "stream"
    total = 0
    with tarfile.open(archive.path, "r:" if kind == "tar" else "r|*") as opened:
        for number, member in enumerate(opened):
            if member.isdir():
                continue
            total += member.size
            _check_total(archive, total)
            fault = "" if member.isreg() and not member.issparse() else "a link or another special file of an archive"
            file = _member(archive, member.name, kind, member.size, fault)
            yield file._replace(start=member.offset_data if kind == "tar" else number)


def _check_total(archive: File, size: int) -> None:
    packed = os.stat(archive.path).st_size
    if size > RATIO * packed + _SLACK_BYTES:
        raise SourceError(f"it would be {size / max(1, packed):.0f} times as large unpacked, expected at most {RATIO}")


def _unzipped(archive: BinaryIO, file: File, size: int | None = None) -> bytes:
    """The member whose local header comes next, or its first `size` bytes. Raises ValueError where it is damaged."""
    header = archive.read(30)
    if header[:4] != b"PK\3\4" or len(header) < 30:
        raise ValueError("damaged archive: no header where one should be")
    method, name_bytes, extra_bytes = struct.unpack("<8xH16xHH", header)
    archive.read(name_bytes + extra_bytes)
    raw = archive.read(file.packed if size is None else min(file.packed, 2**12))
    try:
        unpacked = raw if method == _STORED else zlib.decompressobj(-15).decompress(raw, file.size + 1)
    except zlib.error as error:
        raise ValueError(f"damaged archive: {error}") from error
    if size is not None:
        return unpacked[:size]
    if len(unpacked) != file.size or zlib.crc32(unpacked) != file.crc:
        raise ValueError("damaged archive: its checksum is another")
    return unpacked


def _streamed(path: str, files: list[File]) -> Iterator[tuple[File, bytes | None, str]]:
    wanted = {file.start: file for file in files}
    with tarfile.open(path, "r|*") as opened:
        for number, member in enumerate(opened):
            if number not in wanted:
                continue
            file = wanted.pop(number)
            content = None if file.fault else opened.extractfile(member)
            yield file, content.read() if content else None, file.fault
            if not wanted:
                return
