"""The stage `init`: find what `train.init` names, once, and keep its weights. `python -m pipelines.init`.

An alias may move while a run goes on: `outputs/init` stays as it was found, for the stages `tune` and `train` to start
from, until `train.init` is another or `dvc repro --force init` finds it anew. `parent.json` says which version or
checkpoint it is, with the SHA-256 of its files.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from ganlib import checkpoint
from ganlib.config import Params
from ganlib.scratch import scratch_folder
from ganlib.warm_start import DISCRIMINATOR, PARENT, save_discriminator
from pipelines import model_registry, tracking
from pipelines._stage import INIT, StageError, atomic_folder, main, project_folder
from pipelines.checkpoints import Checkpoints
from pipelines.storage import Storage
from pipelines.tracking import Store

__all__ = ["SCHEMES", "digests_of", "find_parent", "stage"]

SCHEMES = ("models:/", "runs:/")
NONE = "none"


def stage(params: Params) -> None:
    asked = params.train.init
    with atomic_folder(INIT) as out:
        if asked is None:
            (out / PARENT).write_text(json.dumps({"asked": None}) + "\n")
            return
        registered = asked.startswith(SCHEMES)
        about = find_parent(asked, out, tracking.open_store(params.tracking, create=False) if registered else None)
        (out / PARENT).write_text(json.dumps({"asked": asked, **about}, indent=2) + "\n")
    print(f"train.init: {asked} is {about['name']}; kept, and found anew only by `dvc repro --force init`")
    if about["sha256"]["discriminator"] == NONE:
        print("no discriminator is kept with it: that of the training starts from nothing")


def find_parent(address: str, into: Path, store: Store | None) -> dict[str, Any]:
    """Copy the generator and, where it is kept, the discriminator at `address` into the folder `into`.

    Returns the `name` of what was found, which stays where an alias moves, and `sha256`, its `digests_of`.
    Raises StageError where there is no generator, or not as it was written.
    """
    if store is not None:
        name = _copy_registered(address, into, store)
    elif "://" in address:
        raise StageError(
            f"train.init: {address}: expected an address that begins with {' or '.join(SCHEMES)}, or a folder"
        )
    else:
        name = _copy_folder(address, into)
    return {"name": name, "sha256": digests_of(into)}


def digests_of(folder: Path) -> dict[str, str]:
    """The SHA-256 of each player's files in a parent's folder, as tags of versions have it, or NONE."""
    file = folder / DISCRIMINATOR
    return {
        "generator": model_registry.folder_sha256(folder / "generator") if (folder / "generator").is_dir() else NONE,
        "discriminator": hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else NONE,
    }


def _copy_registered(address: str, into: Path, store: Store) -> str:
    try:
        model = model_registry.model_by_uri(store, address)
        with scratch_folder() as scratch:
            _copy_generator(model_registry.download(store, model, Path(scratch)), into)
            if (file := model_registry.download_discriminator(store, model, Path(scratch))) is not None:
                shutil.copyfile(file, into / DISCRIMINATOR)
    except StageError as error:
        raise StageError(f"train.init: {error}") from error
    return model.uri


def _copy_folder(address: str, into: Path) -> str:
    """Of a run, the newest checkpoint."""
    root = project_folder()
    folder = (root / address).resolve()
    if (folder / "checkpoints").is_dir():
        newest = Checkpoints(Storage(str(folder / "checkpoints"))).newest()
        if newest is None:
            raise StageError(f"train.init: {address}: no checkpoint yet")
        folder = folder / "checkpoints" / newest.name
    if (folder / checkpoint.NAME).is_file():
        try:
            save_discriminator(into, checkpoint.load(folder)["discriminator"])
        except checkpoint.Damaged as error:
            raise StageError(f"train.init: {error}") from error
    elif (folder / DISCRIMINATOR).is_file():
        shutil.copyfile(folder / DISCRIMINATOR, into / DISCRIMINATOR)
    generator = folder if (folder / "generator.json").is_file() else folder / "generator"
    if not generator.is_dir():
        raise StageError(
            f"train.init: {address}: no such generator; expected models:/NAME@ALIAS, runs:/RUN/generator, or a folder "
            "that is or holds a generator/, or a run's checkpoints"
        )
    _copy_generator(generator, into)
    return (folder.relative_to(root) if folder.is_relative_to(root) else folder).as_posix()


def _copy_generator(folder: Path, into: Path) -> None:
    (into / "generator").mkdir()
    for name in ("generator.json", "generator.safetensors"):
        try:
            shutil.copyfile(folder / name, into / "generator" / name)
        except OSError as error:
            raise StageError(f"train.init: {folder}: not a generator: {name}: {error.strerror}") from error


if __name__ == "__main__":
    main(stage)
