"""Clips cut out of video files, and out of folders in which each frame is an image with a number in its name.

Clips never go across files, nor across images of a folder whose names differ in their letters. All clips of a file are
in one split, by the hash of the file's content; of few long files, `block` makes stretches that are split as files are.
Frames that cannot be decoded take the clips that need them along.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, PositiveInt

from ganlib._config import Config as _Base
from ganlib.data import _film
from ganlib.sources._files import File, walk
from ganlib.sources._source import Item, Part, Source, SourceError, passed_over, printable

__all__ = ["KINDS", "Config", "load"]

KINDS = ("video",)
_PART_CLIPS = 64
_LEAST_FRAMES = 2  # of a folder whose images are the frames of one film


class Config(_Base):
    name: Literal["video_files"] = "video_files"
    frames: PositiveInt = 12
    """of a clip: those given and those to be made"""
    stride: PositiveInt | None = None
    """frames from the start of a clip to that of the next; null: as many as it has, so that none is in two clips"""
    fps: Annotated[float, Field(gt=0.0, le=1000.0)] | None = None
    """take the frame on show so many times a second, also of files whose frames are not evenly spaced; null: all"""
    block: PositiveInt | None = None
    """cut files into blocks of so many frames (after `fps`), which clips do not cross and which are split like files of
    their own; null: whole files"""


class _Film(NamedTuple):
    name: str
    path: Path
    times: _film.Times | None
    """of a file's frames; None of a folder's"""
    images: Sequence[Path] = ()
    """of a folder's frames"""


_Clip = tuple[int, ...]
"""numbers of frames"""


def load(cfg: Config, raw: Path) -> Source:
    """Reads the packets of all files once, to know their frames. Raises SourceError if there is no film."""
    files = list(walk(raw, "videos, or folders of numbered frames"))
    films, faults, used = _films(raw, files)
    if not films and not faults:
        seen = [file for file in files if not file.hidden]
        here = f"{len(seen)} other files, as {printable(seen[0].name)}" if seen else "nothing"
        expected = f"no videos ({', '.join(_film.SUFFIXES)}) and no folder of numbered images"
        raise SourceError(f"{raw}: {expected}; it holds {here}")
    parts, count = list[Part](), 0
    for film in films:
        clips, why = _clips(cfg, film)
        if not clips:
            faults.append(Item(printable(film.name), None, reason=why))
        count += sum(map(len, clips.values()))
        digest = _digest(film)
        for block, of_block in clips.items():
            for start in range(0, len(of_block), _PART_CLIPS):
                parts.append(partial(_items, film, of_block[start : start + _PART_CLIPS], f"{digest}:{block}"))
    parts += [partial(iter, faults)] if faults else []
    about = f"{len(films)} films, {count} clips of {cfg.frames} frames"
    left = passed_over(file for file in files if file.name not in used)
    return Source(about, count + len(faults), parts, passed_over=left)


def _films(raw: Path, files: list[File]) -> tuple[list[_Film], list[Item], set[str]]:
    """`(films, items for files that are none, names of the files that are in either)`."""
    films, faults, used = list[_Film](), list[Item](), set[str]()
    images = dict[tuple[Path, str], list[File]]()  # by folder, and the letters of their names
    for file in files:
        path = Path(file.path)
        if file.hidden:
            continue
        if path.suffix.lower() in _film.SUFFIXES:
            used.add(file.name)
            try:
                if file.fault:
                    raise ValueError(file.fault)
                films.append(_Film(file.name, path, _film.times(path)))
            except ValueError as error:
                faults.append(Item(printable(file.name), None, reason=str(error)))
        elif _film.is_frame(path):
            if file.fault:
                faults.append(Item(printable(file.name), None, reason=file.fault))
                used.add(file.name)
                continue
            images.setdefault((path.parent, _film.letters(path)), []).append(file)
    films_in = Counter(folder for (folder, _), frames in images.items() if len(frames) >= _LEAST_FRAMES)
    for (folder, letters), frames in images.items():
        if len(frames) >= _LEAST_FRAMES:
            used |= {file.name for file in frames}
            name = frames[0].name.rpartition("/")[0] or raw.name
            name = name if films_in[folder] == 1 else f"{name}/{letters}"
            films.append(_Film(name, folder, None, sorted((Path(f.path) for f in frames), key=_film.by_number)))
    return sorted(films, key=lambda film: film.name), faults, used


def _clips(cfg: Config, film: _Film) -> tuple[dict[int, list[_Clip]], str]:
    """The clips of each block, and why there are none."""
    try:
        if film.times is None and cfg.fps is not None:
            raise ValueError("images have no times: source.fps has to be null")
        frames = list(range(len(film.images))) if film.times is None else film.times.every(cfg.fps)
    except ValueError as error:
        return {}, str(error)
    size, clips = cfg.block or len(frames), dict[int, list[_Clip]]()
    for first in range(0, len(frames), size):
        block = frames[first : first + size]
        starts = range(0, len(block) - cfg.frames + 1, cfg.stride or cfg.frames)
        if starts:
            clips[first // size] = [tuple(block[start : start + cfg.frames]) for start in starts]
    return clips, f"{len(frames)} frames, in blocks of {size}; a clip has {cfg.frames}"


def _digest(film: _Film) -> str:
    found = hashlib.sha256()
    for path in film.images or [film.path]:
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


def _items(film: _Film, clips: list[_Clip], group: str) -> Iterator[Item]:
    """Clips in order; only the frames that the next clip needs are in memory."""
    if film.times is None:
        for clip in clips:
            yield Item(_name(film, clip), [film.images[number] for number in clip], group=group)
        return
    waiting, held = deque(clips), dict[int, Any]()
    with contextlib.suppress(ValueError):  # the clips that are left say what they lack
        for number, frame in _film.decoded(film.path, film.times, clips[0][0]):
            held[number] = frame
            while waiting and number >= waiting[0][-1]:
                yield _item(film, waiting.popleft(), held, group)
            if not waiting:
                return
            for past in [n for n in held if n < waiting[0][0]]:
                del held[past]
    yield from (_item(film, clip, held, group) for clip in waiting)


def _item(film: _Film, clip: _Clip, held: dict[int, Any], group: str) -> Item:
    if lost := [number for number in clip if number not in held]:
        return Item(_name(film, clip), None, reason=f"frame {lost[0]} cannot be decoded")
    return Item(_name(film, clip), [held[number] for number in clip], group=group)


def _name(film: _Film, clip: _Clip) -> str:
    return f"{printable(film.name)}[{clip[0]}:{clip[-1] + 1}]"
