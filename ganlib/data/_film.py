"""Frames of video files, decoded by PyAV (FFmpeg), and of folders in which each is an image.

A frame is known by its time, in the units of its stream, so that a reader may begin anywhere and still know which
frames it has; in streams that state no times, by its number.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import re
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ganlib.data._pixels import MAX_MEGAPIXELS, check_pixels

if TYPE_CHECKING:
    import av

__all__ = [
    "SUFFIXES",
    "Times",
    "by_number",
    "decoded",
    "frames_of_folder",
    "is_frame",
    "last_frames",
    "letters",
    "times",
]

SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".gif", ".webm", ".mkv", ".mpg", ".mpeg", ".ogv", ".wmv", ".flv")
_IMAGES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".ppm", ".pgm")

_OPTIONS = {  # a playlist that is called a video would have FFmpeg read other files, or addresses
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,avi,gif,matroska,webm,mpeg,mpegts,mpegvideo,ogg,asf,flv",
    "protocol_whitelist": "file",
}
_MAX_PIXELS = 200_000_000  # of any frame that is decoded
_PADDING_PIXELS = 2**20  # FFmpeg counts rows as long as it pads them
_UNSEEKABLE = ("mpeg", "mpegts", "mpegvideo")  # after a seek, their frames have other frames' times
_SEEK_MARGIN_FRAMES = 32  # a container seeks by the time of decoding, which is before that of showing
_MAX_REORDERED_FRAMES = 16  # of H.264 and HEVC

Frame = NDArray[np.uint8]
"""`[H, W, 3]`, or `[H, W, 4]` where it has transparent pixels"""


class Times:
    """When the frames of a file are shown."""

    def __init__(self, stated: list[int] | None, count: int, seconds: float):
        self.stated = stated
        """of each frame, rising, in the stream's units; None where they are not stated"""
        self.count = count
        self.seconds = seconds
        """of one unit; 0.0 where no times are stated"""

    def __len__(self) -> int:
        return self.count

    def every(self, fps: float | None) -> list[int]:
        """The number of the frame on show at each 1 / fps seconds; all frames where that is None.

        Raises ValueError where it is not, and no times are stated.
        """
        if fps is None:
            return list(range(self.count))
        if self.stated is None:
            raise ValueError("its frames have no times: source.fps has to be null")
        starts = (np.array(self.stated) - self.stated[0]) * self.seconds
        shown = np.arange(0.0, starts[-1] + 1e-6, 1.0 / fps)
        numbers: list[int] = (np.searchsorted(starts, shown + 1e-6, side="right") - 1).tolist()
        return numbers


def times(path: Path) -> Times:
    """When each frame is shown, by the packets of the file alone, which are not decoded.

    Raises ValueError for a file that is no video.
    """
    with _opened(path) as (container, stream):
        # an edit list marks the packets before a cut: they are decoded for later frames, and not shown
        found = [packet.pts for packet in container.demux(stream) if packet.size and not packet.is_discard]
        seconds = float(stream.time_base or 0)
    if not found:
        raise ValueError("a video without frames")
    stated = sorted(pts for pts in found if pts is not None)
    whole = len(set(stated)) == len(found) and seconds > 0
    return Times(stated if whole else None, len(found), seconds if whole else 0.0)


def decoded(
    path: Path, known: Times, first: int = 0, max_megapixels: float = MAX_MEGAPIXELS
) -> Iterator[tuple[int, Frame]]:
    """`(number, frame)` from number `first` on. Those that are damaged are left out.

    Raises ValueError at a frame of more pixels than that.
    """
    start = max(0, first - _SEEK_MARGIN_FRAMES)
    frames = _numbered_frames(path, known, start, max_megapixels)
    if start:
        head = next(frames, None)
        if head is None or head[0] is None or head[0] > first:  # as in FLV, and where an index is wrong
            frames = _numbered_frames(path, known, 0, max_megapixels)
        else:
            frames = itertools.chain([head], frames)
    for number, frame in frames:
        if number is not None and number >= first and not frame.is_corrupt:
            yield number, _upright(frame)


def last_frames(path: Path, count: int, max_megapixels: float = MAX_MEGAPIXELS) -> list[Frame]:
    """As many frames from the end of a video, or fewer if it has no more.

    Raises ValueError for what is no video, and for frames of more pixels than that.
    """
    known = times(path)
    frames = decoded(path, known, max(0, len(known) - count), max_megapixels)
    return [*deque((frame for _, frame in frames), maxlen=count)]


def frames_of_folder(folder: Path) -> list[Path]:
    """The images in a folder, by the numbers in their names; of several films, those of the last."""
    found = sorted((path for path in folder.iterdir() if is_frame(path) and path.is_file()), key=by_number)
    images = Counter(map(letters, found))
    films = [path for path in found if images[letters(path)] > 1] or found
    return [path for path in films if letters(path) == letters(films[-1])]


def is_frame(path: Path) -> bool:
    """Whether a file may be a frame, by its name: an image's, with a number in it, and not hidden."""
    has_number = re.search(r"\d", path.stem) is not None
    return path.suffix.lower() in _IMAGES and has_number and not path.name.startswith(".")


def letters(path: Path) -> str:
    """What the names of a film's frames have in common."""
    return "".join(filter(str.isalpha, path.stem))


def by_number(path: Path) -> list[tuple[int, int, str]]:
    """A key by which frame10 comes after frame9."""
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]


def _numbered_frames(
    path: Path, known: Times, start: int, max_megapixels: float
) -> Iterator[tuple[int | None, av.VideoFrame]]:
    """Frames with their numbers, from a keyframe before number `start`, or from the first on.

    The number is None where the file does not state the frame's time.
    """
    numbers = None if known.stated is None else {pts: i for i, pts in enumerate(known.stated)}
    with _opened(path) as (container, stream):
        codec = stream.codec_context
        check_pixels((codec.height, codec.width), max_megapixels)
        # of files that state no size, and of frames that are larger than stated: the error is FFmpeg's
        most = min(_MAX_PIXELS, int(2e6 * max_megapixels) + _PADDING_PIXELS)
        codec.options = {"max_pixels": str(most)}
        if start and known.stated is not None and container.format.name not in _UNSEEKABLE:
            container.seek(known.stated[start], stream=stream)
        frames, count = _good_frames(container, stream), itertools.count()
        if container.format.name == "avi" and codec.name in ("h264", "hevc"):
            frames = _with_sorted_times(frames)
        for frame in frames:
            check_pixels((frame.height, frame.width), max_megapixels)
            yield next(count) if numbers is None else numbers.get(-1 if frame.pts is None else frame.pts), frame


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream. Raises ValueError for what is no video."""
    try:
        import av
    except ImportError:
        raise ValueError("PyAV is not installed: pip install -e '.[video]'") from None
    try:
        with av.open(str(path), metadata_errors="replace", options=_OPTIONS) as container:
            if not container.streams.video:
                raise ValueError("a file without a video stream")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield container, stream
    except av.FFmpegError as error:
        raise ValueError(f"no video that FFmpeg reads: {error.strerror}") from error


def _good_frames(container: Any, stream: Any) -> Iterator[av.VideoFrame]:
    """Frames in the order of their times; packets that cannot be decoded are left out."""
    import av

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                return
            yield from packet.decode()
        except av.InvalidDataError:
            continue
        except av.EOFError:
            return


def _with_sorted_times(frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """The same frames, which are in the order of showing, with their times in that order.

    AVI states only the times of decoding, which FFmpeg passes on where H.264 and HEVC have B-frames.
    """
    waiting, times_ahead = deque[Any](), list[int]()
    for frame in frames:
        if frame.pts is None:
            continue
        waiting.append(frame)
        heapq.heappush(times_ahead, frame.pts)
        if len(waiting) > _MAX_REORDERED_FRAMES:
            waiting[0].pts = heapq.heappop(times_ahead)
            yield waiting.popleft()
    for frame, pts in zip(waiting, sorted(times_ahead), strict=True):
        frame.pts = pts
        yield frame


def _upright(frame: av.VideoFrame) -> Frame:
    """As RGB or RGBA, turned as a phone says that it was held."""
    pixels = None
    if any(component.is_alpha for component in frame.format.components):
        pixels = frame.to_ndarray(format="rgba")
    if pixels is None or pixels[..., 3].min() == 255:  # as in most GIFs, which FFmpeg decodes to BGRA
        pixels = frame.to_ndarray(format="rgb24")
    return np.rot90(pixels.astype(np.uint8, copy=False), k=round((frame.rotation or 0) / 90) % 4)
