"""Where runs keep what must outlive a process: a folder that all nodes share, or an object store.

pyarrow's file systems do the reading and writing. A file is written whole or not at all.
"""

from __future__ import annotations

import json
import os
import posixpath
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pyarrow.fs
from filelock import FileLock, Timeout

from pipelines.background import background_thread

__all__ = ["Storage", "exclusive", "is_held"]

OWNER, LOCK = "owner.json", "lock"
BEAT_SECONDS = 5.0
"""how often the owner of a lease in an object store renews it; 3 beats without renewal, and it is taken over"""


@dataclass(frozen=True)
class Storage:
    """A folder: an absolute path, or an address such as `s3://bucket/folder`. It need not exist."""

    address: str

    def __truediv__(self, name: str) -> Storage:
        if "://" not in self.address:
            return Storage(str(Path(self.address) / name))
        parts = urlsplit(self.address)  # the query has the store's options
        path = posixpath.normpath(posixpath.join(parts.path or "/", name))
        return Storage(urlunsplit(parts._replace(path=path)))

    def __str__(self) -> str:
        return self.address.partition("?")[0]

    @property
    def name(self) -> str:
        return str(self).rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> Storage:
        """The folder it is in."""
        return self / ".." if self.local is None else Storage(str(self.local.parent))

    @property
    def local(self) -> Path | None:
        """The folder's path, if it is in this machine's file system."""
        return None if "://" in self.address else Path(self.address)

    def folders(self) -> list[str]:
        """Names of the folders in it, sorted."""
        return sorted(Path(found.path).name for found in self._list() if found.type == pyarrow.fs.FileType.Directory)

    def files(self) -> list[str]:
        """Names of the files in it, sorted; without those that are being written."""
        found = (Path(one.path).name for one in self._list() if one.type == pyarrow.fs.FileType.File)
        return sorted(name for name in found if not name.endswith(".partial"))

    def contents(self) -> list[tuple[int, float]]:
        """Bytes, and the time of the last change in seconds, of each file in it and in all folders below, but for the
        lock, which is touched by looking whether it is held."""
        files = [one for one in self._list(recursive=True) if one.type == pyarrow.fs.FileType.File]
        return [(one.size, one.mtime_ns / 1e9) for one in files if one.base_name != LOCK]

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError if there is no such file, OSError if it cannot be read."""
        filesystem, path = _filesystem(self.address)
        with filesystem.open_input_file(f"{path}/{name}") as file:  # a stream would ask for it in many pieces
            return bytes(file.read())

    def write(self, name: str, content: bytes) -> None:
        """Write a file, which may be in folders below; it is durable, and whole, when this returns."""
        if self.local is not None:
            final = self.local / name
            final.parent.mkdir(parents=True, exist_ok=True)
            partial = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.partial")
            try:
                with partial.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(final)
            finally:
                partial.unlink(missing_ok=True)
            return
        filesystem, path = _filesystem(self.address)
        with filesystem.open_output_stream(f"{path}/{name}") as file:  # an object appears when it is whole
            file.write(content)

    def remove(self, name: str) -> None:
        """Delete a file; nothing if there is none."""
        filesystem, path = _filesystem(self.address)
        with suppress(FileNotFoundError):
            filesystem.delete_file(f"{path}/{name}")

    def download(self, into: Path) -> None:
        """Copy all that is in the folder."""
        filesystem, path = _filesystem(self.address)
        into.mkdir(parents=True, exist_ok=True)
        pyarrow.fs.copy_files(path, str(into), source_filesystem=filesystem)

    def delete(self) -> None:
        """Delete the folder with all that is in it; nothing if there is none."""
        filesystem, path = _filesystem(self.address)
        with suppress(FileNotFoundError):
            filesystem.delete_dir(path)

    def _list(self, *, recursive: bool = False) -> list[Any]:
        filesystem, path = _filesystem(self.address)
        return list(filesystem.get_file_info(pyarrow.fs.FileSelector(path, allow_not_found=True, recursive=recursive)))


@lru_cache
def _filesystem(address: str) -> tuple[Any, str]:
    """pyarrow's file system and the path in it. Raises ValueError for an address it does not know."""
    filesystem, path = pyarrow.fs.FileSystem.from_uri(address)
    return filesystem, path.rstrip("/")


@contextmanager
def exclusive(folder: Storage, what: str) -> Iterator[None]:
    """Hold the only right to work in `folder`; wait for it, with one line that says who has it.

    In a shared folder by a lock of the file system, which ends with its process however that ends. In an object
    store, which has no locks, by a lease that the owner renews: others wait while it is renewed. Waiting looks at
    whether the lease changes, never at a time written in it, so clocks may disagree.
    """
    me = {"host": socket.gethostname(), "pid": os.getpid(), "folder": os.getcwd()}
    if (path := folder.local) is not None:
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _record_owner(folder, what)
            lock.acquire()
        try:
            folder.write(OWNER, json.dumps(me).encode())
            yield
        finally:
            lock.release()
        return
    with _lease(folder, what, me):
        yield


def is_held(folder: Storage) -> bool:
    """Whether a process holds the right of `exclusive` now, as far as one can see without waiting."""
    if (path := folder.local) is not None:
        lock = FileLock(path / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False
    return bool(_owner(folder)) and time.time() - max(at for _, at in folder.contents()) < 24 * BEAT_SECONDS


def _record_owner(folder: Storage, what: str) -> None:
    owner = _owner(folder)
    who = f"process {owner['pid']} on {owner['host']}, in {owner['folder']}" if owner else "another process"
    print(f"{what}: {who}, is at this work; waiting for it to end", flush=True)


def _owner(folder: Storage) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(folder.read(OWNER))
    except (FileNotFoundError, ValueError):
        return {}
    return found


@contextmanager
def _lease(folder: Storage, what: str, me: dict[str, Any]) -> Iterator[None]:
    token = uuid.uuid4().hex

    def renew(beat: int) -> None:
        folder.write(OWNER, json.dumps({**me, "token": token, "beat": beat}).encode())

    seen, since, said = _owner(folder), time.monotonic(), False
    while True:
        if not seen or time.monotonic() - since > 3 * BEAT_SECONDS:
            renew(0)
            time.sleep(BEAT_SECONDS)  # of two that write at once the later stays, and the other sees it
            if _owner(folder).get("token") == token:
                break
        elif not said and time.monotonic() - since > BEAT_SECONDS:
            _record_owner(folder, what)
            said = True
        time.sleep(BEAT_SECONDS / 5)
        found = _owner(folder)
        if found != seen:
            seen, since = found, time.monotonic()

    def keep(over: threading.Event) -> None:
        beat = 0
        while not over.wait(BEAT_SECONDS):
            renew(beat := beat + 1)

    try:
        with background_thread(keep, "lease"):
            yield
    finally:
        folder.write(OWNER, b"{}")
