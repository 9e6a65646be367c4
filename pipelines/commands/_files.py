"""Files of samples, each whole or not at all: pictures, films, arrays, rows."""

from __future__ import annotations

import glob
import math
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from ganlib.export import Generator

__all__ = ["MOVING", "Made", "check_file", "check_not_given", "pictures_of", "save_picture", "write_film", "writer_for"]

MOVING = (".gif", ".webp", ".apng", ".mp4")

Made = dict[str, Any]
"""samples as of `Generator.sample`"""


def check_file(output: Path, *suffixes: str, picture: bool = True) -> None:
    """Raise ValueError unless a file of one of these suffixes, or a picture, can be written there."""
    suffix = output.suffix.lower()
    if suffix not in suffixes and not (picture and _is_picture(suffix)):
        expected = ", ".join(suffixes) if not picture else ", ".join([*suffixes, ".png", ".jpg or another picture"])
        raise ValueError(f"--output: {output}: expected {expected}; found {suffix or 'no suffix'}")
    if suffix == ".mp4" and shutil.which("ffmpeg") is None:
        raise ValueError("--output: .mp4 needs ffmpeg (apt-get install ffmpeg); .gif and .webp do not")
    if output.is_dir():
        raise ValueError(f"--output: {output}: expected a file, found a folder")
    if not output.parent.is_dir() and "{index}" not in str(output):
        raise ValueError(f"--output: {output.parent}: no such folder")


def check_not_given(targets: Iterable[Path], given: Iterable[Path]) -> None:
    """Raise ValueError where a target is a given file, or one of a given folder of frames."""
    from ganlib.sources._source import printable

    kept = {path.resolve() for path in given}
    for target in targets:
        resolved = target.resolve()
        if resolved in kept or (resolved.is_file() and resolved.parent in kept):
            raise ValueError(f"--output: {printable(target)} is given, and would be overwritten")


def _is_picture(suffix: str) -> bool:
    """Whether Pillow writes such files: some formats it only reads, and for some it needs another library."""
    import io

    from PIL import Image

    Image.init()
    try:
        Image.new("L", (8, 8)).save(io.BytesIO(), Image.registered_extensions()[suffix])
    except (KeyError, OSError, ValueError):
        return False
    return True


def writer_for(generator: Generator, output: Path) -> Callable[[Generator, Iterable[Made], int, Path], None]:
    """The function that writes such a file, whole or not at all. Raises ValueError for one that cannot be written."""
    import numpy as np
    import torch

    example, suffix = torch.zeros(1, *generator.spec.shape), output.suffix.lower()
    if "{index}" in str(output):
        pictures_of(generator, example)
        if "{label}" in str(output) and not generator.conditional:
            raise ValueError("--output: {label} is not known: this generator is not conditional")
        check_file(output)
        return _write_each
    rows = (".parquet",) if isinstance(generator.present(example), np.ndarray) else (".csv", ".parquet")
    check_file(output, *rows, ".npz")
    if suffix in rows:
        return _write_rows
    return _write_arrays if suffix == ".npz" else _write_picture


@contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    """A file to write, which becomes `path` only when the block ends without an error. Raises ValueError, naming
    `path`, where it cannot be written."""
    from pipelines.batch import partial_of, remove_partials

    partial = partial_of(path)
    remove_partials(path.parent, glob.escape(path.name))
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        reason = str(error.strerror or error).replace(partial.name, path.name)
        raise ValueError(f"--output: {path}: {reason}") from error
    finally:
        with suppress(OSError):
            partial.unlink()


def _write_picture(generator: Generator, chunks: Iterable[Made], n: int, output: Path) -> None:
    import torch

    spec = generator.spec
    made = list(chunks)
    labels = {label for chunk in made if "label" in chunk for label in chunk["label"].tolist()}
    in_turn = len(spec.classes) if len(labels) > 1 and len(spec.classes) <= min(n, 32) else 0
    samples = torch.cat([chunk["sample"] for chunk in made])
    save_picture(spec.kind.preview(spec.sample, {"sample": samples}, in_turn or math.ceil(math.sqrt(n))), output)


def _write_each(generator: Generator, chunks: Iterable[Made], n: int, output: Path) -> None:
    """A picture each, under a name with its index and, if asked for, its class."""
    template, digits, index, names = str(output), len(str(n - 1)), 0, _file_names(generator.spec.classes)
    for chunk in chunks:
        for i, picture in enumerate(pictures_of(generator, chunk["sample"])):
            name = template.replace("{index}", f"{index:0{digits}d}")
            if "label" in chunk:
                name = name.replace("{label}", names[int(chunk["label"][i])])
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            save_picture(picture, Path(name))
            index += 1


def _file_names(classes: tuple[str, ...]) -> list[str]:
    """A name of a file for each class; where two would be one, capitals aside, all begin with the class's index."""
    names = ["".join(c if c.isalnum() or c in "-_ " else "_" for c in name) for name in classes]
    unique = len({name.casefold() for name in names}) == len(names)
    return names if unique else [f"{index}_{name}" for index, name in enumerate(names)]


def _write_arrays(generator: Generator, chunks: Iterable[Made], n: int, output: Path) -> None:
    """NumPy's file of arrays: `sample`, or one for each column of a table; `label`, the class names; `attributes`."""
    import numpy as np
    import pandas as pd

    from pipelines.batch import free_name

    columns: dict[str, list[Any]] = {}
    for chunk in chunks:
        shown = generator.present(chunk["sample"])
        own = {name: _without_objects(shown[name]) for name in shown} if isinstance(shown, pd.DataFrame) else {}
        found = dict(own) or {"sample": np.asarray(shown)}
        if "label" in chunk:
            found[free_name("label", own)] = np.array([generator.spec.classes[i] for i in chunk["label"].tolist()])
        if "attributes" in chunk:
            found[free_name("attributes", own)] = chunk["attributes"].numpy()
        for name, column in found.items():
            columns.setdefault(name, []).append(column)
    arrays: dict[str, Any] = {name: np.concatenate(parts) for name, parts in columns.items()}
    # as np.savez_compressed, which takes arrays called `file` and `allow_pickle` for arguments
    with _whole_file(output) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _without_objects(column: pd.Series) -> Any:
    """The column as an array without objects, which would be pickled: missing text is empty; nullable integers and
    booleans are floats, NaN where missing."""
    import numpy as np

    if column.dtype.name in ("Int64", "boolean"):
        return column.to_numpy(np.float64, na_value=np.nan)
    array = column.to_numpy()
    return column.to_numpy(object, na_value="").astype(str) if array.dtype == object else array


def _write_rows(generator: Generator, chunks: Iterable[Made], n: int, output: Path) -> None:
    """Write a CSV or Parquet file; one chunk is in memory at a time."""
    import pyarrow.csv as pa_csv
    import pyarrow.parquet as pq

    from pipelines.batch import table_of

    writer, is_csv = None, output.suffix.lower() == ".csv"
    with _whole_file(output) as partial:
        for chunk in chunks:
            table = table_of(generator, chunk)
            if writer is None:
                kind = pa_csv.CSVWriter if is_csv else pq.ParquetWriter
                options = pa_csv.WriteOptions(quoting_style="needed")
                writer = kind(partial, table.schema, **({"write_options": options} if is_csv else {}))
            writer.write_table(table)
        if writer is not None:
            writer.close()


def pictures_of(generator: Generator, samples: Tensor) -> list[Any]:
    """Samples as a picture each. Raises ValueError for data that are none."""
    import numpy as np
    from PIL import Image

    shown = generator.present(samples)
    if not isinstance(shown, np.ndarray) or shown.dtype != np.uint8 or shown.ndim != 4 or shown.shape[-1] not in (1, 3):
        raise ValueError(f"--output: {generator.spec.modality} samples cannot be written as one picture each")
    return [Image.fromarray(one[..., 0] if one.shape[-1] == 1 else one) for one in shown]


def write_film(frames: list[Any], fps: int, output: Path) -> None:
    """Pictures of one size, one after the other."""
    import numpy as np

    if output.suffix.lower() == ".mp4":
        _encode(np.stack([np.asarray(frame) for frame in frames]), fps, output)
        return
    with _whole_file(output) as partial:
        frames[0].save(partial, save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0)


def _encode(frames: Any, fps: int, output: Path) -> None:
    """Frames uint8 `[N, H, W, 3]` as H.264. Raises ValueError where ffmpeg fails."""
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(fps), "-i", "-"]
    even = "pad=ceil(iw/2)*2:ceil(ih/2)*2"  # as yuv420p wants it, which every player reads
    words = ["ffmpeg", "-v", "error", "-y", *raw, "-vf", even, "-pix_fmt", "yuv420p", "-f", "mp4"]
    with _whole_file(output) as partial:
        done = subprocess.run([*words, str(partial)], input=frames.tobytes(), capture_output=True, check=False)
        if done.returncode:
            reason = (done.stderr.decode().splitlines() or ["failed"])[0].replace(partial.name, output.name)
            raise ValueError(f"--output: ffmpeg: {reason}")


def save_picture(picture: Any, path: Path) -> None:
    """Write a picture, or nothing."""
    with _whole_file(path) as partial:
        picture.save(partial)
