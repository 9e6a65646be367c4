"""The data for workers on nodes that do not see the project's folders, sent through the runs' storage."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from ganlib.config import ConfigError
from ganlib.shards import read_spec
from pipelines._stage import StageError
from pipelines.cluster import on_every_node, one_line
from pipelines.storage import Storage

__all__ = ["fetch", "publish"]

COMPLETE = "complete"
"""a file that is written last"""


def publish(folders: Sequence[Path], storage: Storage) -> Storage | None:
    """Put the folders where all nodes of the cluster can read them; None where they can do so already. The first has
    the prepared data.

    Raises StageError if a node cannot read `storage`, as where it is a folder of this machine alone.
    """
    import ray

    if sum(node["Alive"] for node in ray.nodes()) == 1:
        return None
    marker = f".marker-{uuid.uuid4().hex}"
    storage.write(marker, b"")
    try:
        blind = [node for node, seen in _everywhere(_reads, storage, marker).items() if not seen]
    finally:
        storage.remove(marker)
    if blind:
        raise StageError(
            f"scale.storage: {storage} is not the same on {', '.join(blind)}; with more than one node it has to be a "
            "folder that all share, or an address such as s3://bucket/folder"
        )
    key = _key(*folders)
    if all(seen == key for seen in _everywhere(_key, *folders).values()):
        return None
    inputs = storage / "inputs" / key
    if COMPLETE not in inputs.files():
        print(f"scale: the nodes get the data through {inputs}", flush=True)
        for folder in folders:
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                inputs.write(f"{folder.name}/{file.relative_to(folder).as_posix()}", file.read_bytes())
        inputs.write(COMPLETE, b"")
    return inputs


def fetch(inputs: Storage) -> Path:
    """The folder on this machine that holds what was published: the storage itself, or a copy, made once a machine."""
    if inputs.local is not None:
        return inputs.local
    place = Path(tempfile.gettempdir()) / f"ganlib-{os.getuid()}" / inputs.name
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with FileLock(place.with_suffix(".lock")):
        if not place.exists():
            partial = place.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            inputs.download(partial)
            partial.rename(place)
    return place


def _key(prepared: Path, *others: Path) -> str:
    """A hash of the data and of the other folders; empty where there are no data."""
    try:
        digest = hashlib.sha256(read_spec(prepared).content_hash.encode())
    except (OSError, ValueError, ConfigError):
        return ""
    for folder in others:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            digest.update(path.relative_to(folder).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:20]


def _reads(storage: Storage, name: str) -> bool:
    try:
        return storage.read(name) == b""
    except OSError:
        return False


def _everywhere(function: Callable[..., Any], *args: object) -> dict[str, Any]:
    """What a function returns on each node. Raises StageError if one fails."""
    answers = on_every_node(function, *args)
    for node, answer in answers.items():
        if isinstance(answer, Exception):
            raise StageError(f"node {node} runs no task: {one_line(answer)}")
    return answers
