"""What every stage shares: where things lie, whole-or-nothing output folders, and errors of one line."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic_core import to_jsonable_python

import ganlib
from ganlib.config import ConfigError, Params, load_params
from pipelines.clean import sweep_scratch
from pipelines.storage import Storage, exclusive

__all__ = [
    "CODE",
    "EVALUATED",
    "INIT",
    "PREPARED",
    "REFERENCE",
    "REGISTERED",
    "TRAINED",
    "TUNED",
    "StageError",
    "atomic_folder",
    "json_text",
    "main",
    "printable_error",
    "project_folder",
    "read_json",
    "read_jsonl",
]

CODE = Path("outputs/code")
PREPARED = Path("data/prepared")
REFERENCE = Path("data/reference")
INIT = Path("outputs/init")
TUNED = Path("outputs/tune")
TRAINED = Path("outputs/train")
EVALUATED = Path("outputs/evaluate")
REGISTERED = Path("outputs/register")


class StageError(RuntimeError):
    """A stage cannot do its work, for a reason that is not a fault of the program. The message is one line."""


def project_folder() -> Path:
    """The project folder, absolute; the real one when DVC runs an experiment in `.dvc/tmp/exps/`.

    What must outlive a stage's run (checkpoints, MLflow's store) is kept below it, never relative to the
    working directory. DVC tells a stage the folder that holds `.dvc`, which may hold several projects.
    """
    here, root = Path.cwd(), Path(os.environ.get("DVC_ROOT", Path.cwd())).resolve()
    if not (here.is_relative_to(root) and Path("params.yaml").is_file()):
        here = root
    # where DVC works: the project, or an experiment's copy of it, for which DVC_ROOT may still name the project
    checkout = next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), here)
    real = next((parent.parent for parent in checkout.parents if parent.name == ".dvc"), checkout)
    return real / here.relative_to(checkout)


@contextmanager
def atomic_folder(final: Path) -> Iterator[Path]:
    """A folder to write into that becomes `final` only when the block ends without an error; else it is gone.

    What `final` was before is kept until then; what a kill left is put right by the next use.
    """
    partial, old = (final.with_name(f".{final.name}.{part}") for part in ("partial", "old"))

    def tidy() -> None:
        if os.path.lexists(old) and not os.path.lexists(final):
            old.rename(final)
        for leftover in (partial, old):
            if leftover.is_symlink():  # a person's, to a folder on another disk
                leftover.unlink()
            shutil.rmtree(leftover, ignore_errors=True)

    tidy()
    partial.mkdir(parents=True)
    try:
        yield partial
        if os.path.lexists(final):
            final.rename(old)
        partial.rename(final)
    finally:
        tidy()


def read_json(file: Path, default: Any) -> Any:
    """What a JSON file holds, or `default` where there is no such file. Raises ValueError for what is not JSON."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else default


def read_jsonl(file: Path) -> list[Any]:
    """What each line of a file of JSON lines holds; none where there is no such file. Raises ValueError likewise."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def printable_error(error: BaseException) -> str:
    """The printable text of an error: without control characters, which a file from elsewhere may hold.

    A line; of a ConfigError, a line for each fault.
    """
    text = str(error) if isinstance(error, ConfigError) else " ".join(str(error).split()) or type(error).__name__
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def json_text(content: object, *, sort_keys: bool = False) -> str:
    """Data, dataclasses too, as JSON for people and programs; NaN and infinities become null."""
    return json.dumps(to_jsonable_python(content, inf_nan_mode="null"), indent=2, sort_keys=sort_keys)


_terminated: list[int] = []
"""SIGTERM, once it has come. What raises it may be passed on as a KeyboardInterrupt: Ray does so."""


def main(stage: Callable[[Params], None]) -> None:
    """Run a stage on what `params.yaml` chooses, one process at a time in a folder.

    A fault the user can mend is one line on stderr and exit status 1; Ctrl-C is 130, SIGTERM 143.
    """
    signal.signal(signal.SIGTERM, _terminate)
    name = Path(inspect.getfile(stage)).stem
    try:
        _check_code()
        params = load_params()
        sweep_scratch()
        # DVC's own lock ends with DVC, and a stage may outlive it
        with exclusive(Storage(str(Path(".ganlib/stages", name).absolute())), f"stage {name}"):
            stage(params)
    except (ConfigError, StageError, OSError) as error:
        sys.exit(f"ganlib: {printable_error(error)}")
    except KeyboardInterrupt:
        said, status = ("terminated", 143) if _terminated else ("interrupted", 130)
        print(f"ganlib: {said}; the same command goes on from what is kept", file=sys.stderr)
        sys.exit(status)


def _check_code() -> None:
    """Raise StageError where the code of another folder would run: DVC would take its result for that of this one."""
    used, here = Path(ganlib.__file__).resolve().parent, Path("ganlib").resolve()
    if here.is_dir() and used != here:
        raise StageError(
            f"the code of {used.parent} would run, not that of {here.parent}; start stages as `python -m` here, and "
            "without PYTHONSAFEPATH"
        )


def _terminate(signum: int, frame: FrameType | None) -> None:
    """Schedulers send SIGTERM: everything that ends on Ctrl-C ends on it alike."""
    _terminated.append(signum)
    raise KeyboardInterrupt
