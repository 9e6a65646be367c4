"""The checkpoints of one training: checksummed, the newest sound one found again after any interruption.

A checkpoint is a folder `checkpoint-NUMBER-TOKEN`. Its manifest, which is written last, has the size and the SHA-256 of
each file: a folder without one is torn, and one whose files differ from it is damaged. Either is passed over, and said,
and the one before is used. Nothing is deleted because it could not be read.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ganlib.scratch import scratch_folder
from pipelines.storage import Storage

__all__ = ["Checkpoints", "Saved"]

MANIFEST = "manifest.json"
KEPT = 2
"""the newest that are kept, besides the best: one more than is needed, for it may be damaged"""


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was found sound."""

    name: str
    kimg: float
    score: float | None
    """lower is better; None where quality was not measured"""


class Checkpoints:
    """The checkpoints in `folder`, written by one process at a time and read by any."""

    def __init__(self, folder: Storage, since: Saved | None = None):
        self.folder = folder
        self.sound = [] if since is None else [since]
        """the last that are known to be sound, oldest first; `since` was found to be by another process"""

    def save(self, files: Path, *, kimg: float, score: float | None) -> Saved:
        """Keep the files in the folder `files`, then delete the checkpoints that are not kept any more."""
        names = self._names()
        number = 1 + (_number(names[-1]) if names else 0)
        saved = Saved(f"checkpoint-{number:06d}-{uuid.uuid4().hex[:6]}", kimg, score)
        kept, sums = self.folder / saved.name, {}
        for file in sorted(path for path in files.rglob("*") if path.is_file()):
            name, content = file.relative_to(files).as_posix(), file.read_bytes()
            sums[name] = _sum(content)
            kept.write(name, content)
        kept.write(MANIFEST, json.dumps({**asdict(saved), "files": sums}, indent=1).encode())
        self.sound.append(saved)
        self._prune()
        return saved

    def newest(self) -> Saved | None:
        """The newest sound one, or None. Raises OSError where one that may be sound cannot be read."""
        for name in reversed(self._names()):
            try:
                self.sound = [self._check(name)]
                return self.sound[0]
            except _Fault as fault:
                print(f"{self.folder / name}: {fault}; going on from the checkpoint before it", flush=True)
        return None

    @contextmanager
    def as_folder(self, saved: Saved) -> Iterator[Path]:
        """The files of a checkpoint in a folder of this machine, which is gone after the block if it is a copy."""
        kept = self.folder / saved.name
        if kept.local is not None:
            yield kept.local
            return
        with scratch_folder() as scratch:
            for name in json.loads(kept.read(MANIFEST))["files"]:
                file = Path(scratch) / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(kept.read(name))
            yield Path(scratch)

    def _names(self) -> list[str]:
        """All checkpoints, whole or not, oldest first."""
        return [name for name in self.folder.folders() if name.startswith("checkpoint-")]

    def _manifest(self, name: str) -> tuple[Saved, dict[str, Any]]:
        """A checkpoint and what its files should be. Raises _Fault if it has no manifest that says so."""
        try:
            manifest = json.loads((self.folder / name).read(MANIFEST))
            sums = manifest.pop("files")
            return Saved(**manifest), sums
        except FileNotFoundError:
            raise _Fault("was not finished") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise _Fault(f"{MANIFEST} is damaged") from None

    def _check(self, name: str) -> Saved:
        """Raises _Fault if the checkpoint is torn or damaged, OSError if it cannot be read."""
        saved, sums = self._manifest(name)
        for file, expected in sums.items():
            try:
                found = _sum((self.folder / name).read(file))
            except FileNotFoundError:
                raise _Fault(f"{file} is missing") from None
            if found != expected:
                raise _Fault(f"{file} is damaged: its SHA-256 is not the manifest's")
        return saved

    def _prune(self) -> None:
        """Keep the newest that are known to be sound, all that is newer than these, and the best."""
        del self.sound[:-KEPT]
        names = self._names()
        kept = {one.name for one in (*self.sound, *self._by_score(names)[:1])}
        for name in names:
            if _number(name) < _number(self.sound[0].name) and name not in kept:
                (self.folder / name).delete()

    def best(self) -> Saved | None:
        """The sound one with the best score, the first of equal ones, or None if none has a score. Raises OSError as
        `newest` does."""
        for saved in self._by_score(self._names()):
            try:
                return self._check(saved.name)
            except _Fault as fault:
                print(f"{self.folder / saved.name}: {fault}; taking the best of the others", flush=True)
        return None

    def _by_score(self, names: list[str]) -> list[Saved]:
        """The checkpoints that have a score, best first."""
        found = list[Saved]()
        for name in names:
            with suppress(_Fault):
                found.append(self._manifest(name)[0])
        return sorted((one for one in found if one.score is not None), key=lambda one: (one.score, one.name))


class _Fault(Exception):
    """What is wrong with a checkpoint."""


def _number(name: str) -> int:
    return int(name.split("-")[1])


def _sum(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
