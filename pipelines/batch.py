"""Many samples, into a folder of Parquet shards: `ganlib sample -n 1000000 -o FOLDER`.

A shard is a function of the request and of its number, and stands under its name only once it is whole. So a killed job
goes on with the shards that are missing, several jobs at one folder do no harm, and each sample is there once. The file
`_request.json` says what was asked for; a folder is never filled by two different requests (where there are no hard
links: unless they begin within the same milliseconds).

Shards are made by this process, or, where `address` names a cluster, by Ray Data on all of it: then every node must
see the folder.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from ganlib.config import ScaleConfig
from ganlib.scratch import scratch_folder
from pipelines._stage import StageError

if TYPE_CHECKING:
    import pyarrow as pa

    from ganlib.export import Generator

__all__ = [
    "Request",
    "free_name",
    "missing_shards",
    "partial_of",
    "remove_partials",
    "shard_size",
    "table_of",
    "write_shards",
]

REQUEST = "_request.json"  # readers of Parquet pass over such names
SHARD_BYTES = 2**25
"""bytes of stored samples in one shard, about: a kill loses no more than one shard"""


@dataclass(frozen=True)
class Request:
    """Samples 0 to `n` - 1 of a seed."""

    generator: str
    """SHA-256 of its files"""
    n: int
    seed: int
    rows_per_shard: int
    label: int | None = None
    attributes: tuple[float, ...] | None = None
    truncation: float | None = None

    @property
    def names(self) -> list[str]:
        """The files of the shards, in the order of their samples."""
        count = -(-self.n // self.rows_per_shard)
        return [f"samples-{i:05d}-of-{count:05d}.parquet" for i in range(count)]

    def rows(self, shard: int) -> slice:
        return slice(shard * self.rows_per_shard, min(self.n, (shard + 1) * self.rows_per_shard))


def shard_size(generator: Generator, rows: int | None = None) -> int:
    """Rows in a shard: as many as are asked for, or 32 MiB, in runs of the network, so that none makes a row twice."""
    at_once = generator.batch_size
    rows = rows or SHARD_BYTES // generator.spec.parts["sample"].stored_bytes
    return max(1, rows // at_once) * at_once


def missing_shards(folder: Path, request: Request) -> list[int]:
    """The shards that are still to be made, after `_request.json` was written or found to be the same.

    Raises StageError where the folder holds other things.
    """
    asked = json.loads(json.dumps(asdict(request)))
    file = folder / REQUEST
    folder.mkdir(parents=True, exist_ok=True)
    there = {one.name for one in folder.iterdir() if not one.name.startswith(".partial-")}
    if not there:
        text = json.dumps(asked, indent=2) + "\n"
        _write_whole(file, lambda partial: partial.write_text(text, encoding="utf-8"), _name_if_new)
    elif REQUEST not in there:
        raise StageError(f"{folder}: expected a new folder, or one with a {REQUEST}; found other files in it")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))  # perhaps of another job that began at the same time
        if not isinstance(found, dict):
            raise ValueError(f"expected an object, found {found!r:.80}")
    except ValueError as error:
        raise StageError(f"{file}: not a request: {error}") from error
    if found != asked:
        differs = [f"{key} {found.get(key)!r}, asked {asked[key]!r}" for key in asked if found.get(key) != asked[key]]
        raise StageError(f"{folder} holds samples of another request: {'; '.join(differs)}; choose another folder")
    remove_partials(folder)
    return [i for i, name in enumerate(request.names) if not (folder / name).is_file()]


def write_shards(
    generator: Generator, files: Path, request: Request, shards: list[int], folder: Path, address: str | None
) -> Iterator[int]:
    """Make the shards, and yield how many samples each of them has once it is there.

    `files` is the folder that the generator was loaded from, which is sent to the nodes of a cluster.
    """
    if address is None:
        for shard in shards:
            yield _write_shard(generator, request, shard, folder)
        return
    from pipelines.cluster import connected

    with connected(ScaleConfig(ray_address=address)) as resources:
        import ray

        content = {file.name: file.read_bytes() for file in files.iterdir()}
        gpus = int(resources.get("GPU", 0))
        data = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=max(1, len(shards)))
        made = data.map(
            _ShardWriter,
            fn_constructor_args=(content, request, str(folder.absolute())),
            concurrency=(1, gpus or max(1, int(resources["CPU"]) - 1)),
            num_cpus=1,
            num_gpus=1 if gpus else None,
        )
        for row in made.iter_rows():
            yield row["rows"]


class _ShardWriter:
    """What a process of the cluster does with the number of a shard."""

    def __init__(self, content: dict[str, bytes], request: Request, folder: str) -> None:
        from ganlib.device import default_device
        from ganlib.export import load_generator

        with scratch_folder() as scratch:
            for name, data in content.items():
                (Path(scratch) / name).write_bytes(data)
            self._generator = load_generator(scratch, default_device())
        self._request, self._folder = request, Path(folder)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"rows": _write_shard(self._generator, self._request, int(row["shard"]), self._folder)}


def _write_shard(generator: Generator, request: Request, shard: int, folder: Path) -> int:
    """Also where it is there already: a node that was lost may have written it."""
    import pyarrow.parquet as pq
    import torch

    rows = request.rows(shard)
    attributes = None if request.attributes is None else torch.tensor(request.attributes, dtype=torch.float64)
    made = generator.sample(
        request.n,
        seed=request.seed,
        label=request.label,
        attributes=attributes,
        truncation=request.truncation,
        rows=rows,
    )
    table = table_of(generator, made, first=rows.start)
    _write_whole(
        folder / request.names[shard],
        lambda partial: pq.write_table(table, partial, compression="zstd", write_statistics=False),
    )
    return int(table.num_rows)


def table_of(generator: Generator, made: dict[str, Any], *, first: int | None = None) -> pa.Table:
    """Samples as columns: those of a DataFrame, else one, `sample`; and `index`, if there is a `first` one.

    A class-conditional generator adds the column `label`, the name of the class; one that is conditioned on attributes
    adds a column for each attribute. Columns and attributes of the data keep their names, see `free_name`. The schema
    depends on the generator only, not on which values are missing.
    """
    import numpy as np
    import pandas as pd
    import pyarrow as pa

    shown, n = generator.present(made["sample"]), len(made["sample"])
    own, sample = dict[str, Any](), dict[str, Any]()
    if "attributes" in made:
        of_each = made["attributes"].numpy()
        own = {name: pa.array(of_each[:, i]) for i, name in enumerate(generator.spec.attributes)}
    if isinstance(shown, pd.DataFrame):
        table = pa.Table.from_pandas(shown, preserve_index=False)
        for field, column in zip(table.schema, table.columns, strict=True):
            # text that is missing in all rows, which Arrow cannot know
            own[field.name] = column.cast(pa.large_string()) if pa.types.is_null(field.type) else column
    elif isinstance(shown, np.ndarray):
        flat = pa.FixedSizeListArray.from_arrays(pa.array(shown.reshape(-1)), int(np.prod(shown.shape[1:])))
        kind = pa.fixed_shape_tensor(flat.type.value_type, shown.shape[1:])
        sample["sample"] = pa.ExtensionArray.from_storage(kind, flat)
    else:
        sample["sample"] = pa.array(shown)
    about: dict[str, Any] = {} if first is None else {"index": pa.array(np.arange(first, first + n))}
    if "label" in made:
        about["label"] = pa.array([generator.spec.classes[i] for i in made["label"].tolist()])
    about, sample = ({free_name(name, own): column for name, column in of.items()} for of in (about, sample))
    return pa.table({**about, **own, **sample})


def free_name(name: str, own: Collection[str]) -> str:
    """`name`, prefixed with underscores until it is not among the data's own columns."""
    return free_name(f"_{name}", own) if name in own else name


def partial_of(file: Path) -> Path:
    """What this process writes before it takes the name `file`."""
    return file.with_name(f".partial-{_host()}-{os.getpid()}-{file.name}")


def remove_partials(folder: Path, name: str = "*") -> None:
    """Remove what killed processes of this machine left of files of this name."""
    for partial in folder.glob(f".partial-{_host()}-*-{name}"):
        if not psutil.pid_exists(int(partial.name.split("-")[2])):
            partial.unlink(missing_ok=True)


def _name_if_new(partial: Path, file: Path) -> None:
    """Give a file its name unless another process has given it to one of its own. Where there are no hard links, as on
    mounted object stores, the later of two takes it."""
    try:
        file.hardlink_to(partial)
    except FileExistsError:
        pass
    except OSError:
        partial.replace(file)


def _write_whole(file: Path, write: Any, give_name: Callable[[Path, Path], object] = Path.replace) -> None:
    """`write` to a file of this process, which takes the name when it is on the disk."""
    partial = partial_of(file)
    try:
        write(partial)
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        give_name(partial, file)
    except OSError as error:
        raise StageError(f"{file}: {error.strerror or error}".replace(partial.name, file.name)) from error
    finally:
        partial.unlink(missing_ok=True)


def _host() -> str:
    return re.sub(r"\W", "_", platform.node())
