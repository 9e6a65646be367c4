"""What workers read, on nodes that do not see the project's folders: carried there through the runs' storage."""

from __future__ import annotations

import getpass
import hashlib
import shutil
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from ganlib.config import ConfigError
from ganlib.shards import read_spec
from pipelines._stage import StageError
from pipelines.storage import Storage

__all__ = ["fetch", "publish"]

COMPLETE = "complete"
"""a file that is written last"""

T = TypeVar("T")


def publish(prepared: Path, reference: Path, storage: Storage) -> Storage | None:
    """Put both folders where all nodes of the cluster can read them; None where they can do so already.

    Raises StageError if a node cannot read `storage`, as where it is a folder of this machine alone.
    """
    nodes = _nodes()
    if len(nodes) == 1:
        return None
    marker = f".marker-{uuid.uuid4().hex}"
    storage.write(marker, b"")
    try:
        blind = [nodes[node] for node, seen in _on_each(nodes, _reads, storage, marker).items() if not seen]
    finally:
        storage.remove(marker)
    if blind:
        raise StageError(
            f"scale.storage: {storage} is not what the node{'s' * (len(blind) > 1)} {', '.join(blind)} see there; with "
            "more than one node it has to be a folder that all share, or an address such as s3://bucket/folder"
        )
    key = _key(prepared, reference)
    if all(seen == key for seen in _on_each(nodes, _key, prepared, reference).values()):
        return None
    inputs = storage / "inputs" / key
    if COMPLETE not in inputs.files():
        print(f"scale: the nodes get the data through {inputs}", flush=True)
        for folder in (prepared, reference):
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                inputs.write(f"{folder.name}/{file.relative_to(folder).as_posix()}", file.read_bytes())
        inputs.write(COMPLETE, b"")
    return inputs


def fetch(inputs: Storage) -> Path:
    """The folder on this machine that holds what was published: the storage itself, or a copy, made once a machine."""
    if inputs.local is not None:
        return inputs.local
    place = Path(tempfile.gettempdir()) / f"ganlib-{getpass.getuser()}" / inputs.name
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with FileLock(place.with_suffix(".lock")):
        if not place.exists():
            partial = place.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            inputs.download(partial)
            partial.rename(place)
    return place


def _key(prepared: Path, reference: Path) -> str:
    """A hash of the data and of the reference; empty where there are none."""
    try:
        digest = hashlib.sha256(read_spec(prepared).content_hash.encode())
    except (OSError, ValueError, ConfigError):
        return ""
    for path in sorted(path for path in reference.rglob("*") if path.is_file()):
        digest.update(path.relative_to(reference).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:20]


def _reads(storage: Storage, name: str) -> bool:
    try:
        return storage.read(name) == b""
    except OSError:
        return False


def _nodes() -> dict[str, str]:
    """Addresses of the living nodes, by their IDs."""
    import ray

    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}


def _on_each(nodes: dict[str, str], fn: Callable[..., T], *args: object) -> dict[str, T]:
    """What `fn(*args)` returns on each node. Raises StageError if one does not answer within a minute."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0)(fn)
    asked = {
        node: task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(*args)
        for node in nodes
    }
    found = {}
    for node, answer in asked.items():
        try:
            found[node] = ray.get(answer, timeout=60)
        except (ray.exceptions.RayError, TimeoutError) as error:
            reason = " ".join(str(error).split())[-200:]
            raise StageError(f"scale: node {nodes[node]} does not do its work: {reason}") from error
    return found
