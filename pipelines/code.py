"""Stage `code`: which registered files of `ganlib` the other stages use. `python -m pipelines.code`.

DVC knows folders of code, not which of their files the chosen data and model use. So this stage depends on the folders
of sources, kinds of data, feature spaces, metrics and families, and writes to `outputs/code/` the SHA-256 of each file
that another stage uses. The other stages depend on those hashes, so that a new file makes no stage stale that does not
use it. `dvc.yaml` lists what stages import in any case.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import ganlib
from ganlib import registry
from ganlib._config import Config
from ganlib.config import Params
from ganlib.data import _kind
from pipelines._stage import CODE, atomic_folder, main

__all__ = ["imported", "stage", "used_files"]


def stage(params: Params) -> None:
    root = Path(ganlib.__file__).parent
    with atomic_folder(CODE) as folder:
        for name, files in used_files(params).items():
            hashes = {file.relative_to(root.parent).as_posix(): _sha256(file) for file in files}
            written = folder / f"{name}.json"
            written.parent.mkdir(exist_ok=True)
            written.write_text(json.dumps(hashes, indent=2) + "\n", encoding="utf-8")


def used_files(params: Params) -> dict[str, list[Path]]:
    """The registered files that stages use for the chosen data, under the stages' names, and the file of each family,
    under `models/NAME`; with what these import of such files."""
    kind = params.dataset.sample.kind  # type: ignore[attr-defined]
    looks = _kind.load(kind).LOOKS
    spaces, metrics = (
        [_file(folder, name, looks) for name in registry.names(folder, looks)] for folder in ("spaces", "metrics")
    )
    used = {
        # of the kind, the prepared data hold the hash for the stages that come after; of the spaces, the reference
        "prepare": [*(_file("sources", name) for name in _sources(params.dataset.source)), _file("data", kind)],
        "reference": spaces,
        "evaluate": metrics,
        **{f"models/{name}": [_file("models", name)] for name in registry.names("models")},
    }
    folders = {Path(ganlib.__file__).parent / name for name in registry.KINDS}
    return {
        name: [file for file in imported(files) if not folders.isdisjoint(file.parents)] for name, files in used.items()
    }


def _sources(cfg: Config) -> list[str]:
    """The names of a source and of those that are among its keys."""
    inner = [value for _, value in cfg if isinstance(value, Config)]
    return [cfg.name, *(name for one in inner for name in _sources(one))]  # type: ignore[attr-defined]


def _file(kind: str, name: str, folder: str | None = None) -> Path:
    return _of_module(registry.module_name(kind, name, folder))


def _of_module(name: str) -> Path:
    return Path(ganlib.__file__).parents[1] / f"{name.replace('.', '/')}.py"


def imported(files: Iterable[Path]) -> list[Path]:
    """The files, and those of `ganlib` that they import by a statement, directly or not; sorted. Who imports a package
    by name, and its files by theirs, is taken to use all of them."""
    seen, left = set[Path](), [*files]
    while left:
        file = left.pop()
        if file not in seen:
            seen.add(file)
            left += _imports(file)
    return sorted(seen)


def _imports(file: Path) -> list[Path]:
    modules, names = _imported_names(file.read_bytes())
    files = {_of_module(name) for name in (*modules, *names) if name.startswith("ganlib.")}
    packages = (_of_module(name).with_suffix("") for name in names if name.startswith("ganlib."))
    return [*filter(Path.is_file, files), *(file for package in packages for file in package.glob("*.py"))]


@functools.cache  # the families import the same files
def _imported_names(source: bytes) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Modules from which something is imported by a statement, and the names of all that is."""
    modules, names = list[str](), list[str]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules.append(node.module)
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return tuple(modules), tuple(names)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


if __name__ == "__main__":
    main(stage)
