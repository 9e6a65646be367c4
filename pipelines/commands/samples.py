"""`ganlib sample`, `interpolate` and `answer`: what a generator makes, and what a model says of examples."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.commands._common import AsJson, ModelURI, load_generator, one_line_errors, progress
from pipelines.commands._files import (
    MOVING,
    Made,
    check_file,
    check_not_given,
    pictures_of,
    save_picture,
    write_film,
    writer_for,
)

if TYPE_CHECKING:
    from ganlib.data._spec import Spec
    from ganlib.export import Generator

__all__ = ["answer", "interpolate", "sample"]

Seed = Annotated[int, typer.Option(help="the same seed gives the same samples")]
Label = Annotated[str | None, typer.Option(help="a class by its name, or #3 for that of index 3; without it, in turn")]
Attribute = Annotated[
    list[str] | None,
    typer.Option(help="NAME=NUMBER, once for each attribute of the data; default: those of real examples"),
]
Truncation = Annotated[float | None, typer.Option(help="below 1: more typical, less varied")]

MAX_WIDTH = 2048
"""pixels; all frames of a film are in memory together"""


@one_line_errors
def sample(
    model_uri: ModelURI,
    n: Annotated[int, typer.Option("-n", help="how many; images given: as many as these")] = 64,
    seed: Seed = 0,
    label: Label = None,
    attribute: Attribute = None,
    truncation: Truncation = None,
    given: Annotated[list[Path] | None, typer.Option(help="an image to translate; may be repeated")] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="of rows: COLUMN=VALUE, also with <, <=, >, >=, !=; may be repeated")
    ] = None,
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            help="a picture of all (.png, …), or of each ('{index}.png', '{label}' too); .npz, .parquet, .csv; "
            "a folder: Parquet shards, or what was restored of several files",
        ),
    ] = Path("grid.png"),
    ray_address: Annotated[
        str | None, typer.Option(envvar="RAY_ADDRESS", help="of a cluster, to fill a folder with all of it")
    ] = None,
    rows_per_shard: Annotated[
        int | None, typer.Option(min=1, help="of a folder's files, rounded to what is made at once; default: 32 MB")
    ] = None,
    fps: Annotated[int, typer.Option(min=1, max=100, help="frames in a second of what moves")] = 10,
    as_json: AsJson = False,
) -> None:
    """Draw samples from a generator. A folder is filled where it was left, after a kill."""
    from ganlib.export import whole_number
    from ganlib.sources._source import printable
    from pipelines._stage import StageError

    generator = load_generator(model_uri)
    files = []
    try:
        spec = generator.spec
        n, seed = whole_number("n", n, least=1), whole_number("seed", seed)
        single = "{index}" in str(output)
        if "{label}" in str(output) and not single:
            raise ValueError("--output: {label} needs {index}: several samples may have one label")
        condition: dict[str, Any] = {
            "label": _class(label, spec.classes),
            "attributes": _attributes(attribute, spec.attributes),
        }
        if given:
            if truncation is not None or where:
                raise ValueError("--given: it goes with a --seed, and with --label or --attribute where there are any")
            if not generator.translates:
                raise ValueError("--given: this generator makes samples of noise and takes no given parts")
            if single:
                raise ValueError("--output: {index} is not known with --given")
            n = len(given)
            if generator.takes_any_size:
                for file, sentence in _translate(generator, given, output, seed=seed, **condition):
                    files.append(printable(file))
                    if not as_json:
                        typer.echo(sentence)
            else:
                _show_made(generator, given, output, fps, seed=seed, **condition)
        else:
            if generator.translates:
                names = ", ".join(spec.given)
                raise ValueError(
                    f"--given: expected a file or more: this generator makes samples of what it is given, {names}"
                )
            options = {**condition, "truncation": truncation}
            if not single and (not output.suffix or output.is_dir()):
                if where:
                    raise ValueError("--where: expected a file such as rows.parquet; shards take no conditions")
                _fill(model_uri, generator, n, seed, options, output, rows_per_shard, ray_address)
            else:
                conditions = _where(where, generator)
                write = writer_for(generator, output)
                chunks = _chunks(generator, n, seed, conditions, options)
                write(generator, progress(chunks, n, output.name, lambda chunk: len(chunk["sample"])), n, output)
    except ValueError as error:
        raise StageError(str(error)) from error
    if as_json:
        found = {"output": str(output), "n": n, "seed": seed, "model": model_uri}
        typer.echo(json.dumps(found | ({"files": files} if files else {})))
    elif not files:
        what = "rows" if output.suffix.lower() in (".csv", ".parquet") else "samples"
        typer.echo(f"{output}: {n} {what} of {model_uri}, seed {seed}")


@one_line_errors
def interpolate(
    model_uri: ModelURI,
    seed: Seed = 0,
    stops: Annotated[int, typer.Option(min=2, help="samples to go to, one after the other, and back to the first")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="frames from each to the next")] = 24,
    label: Label = None,
    attribute: Attribute = None,
    truncation: Truncation = None,
    fps: Annotated[int, typer.Option(min=1, max=100, help="frames in a second")] = 24,
    width: Annotated[
        int, typer.Option(min=1, max=MAX_WIDTH, help="of the film, at least; small frames are enlarged")
    ] = 256,
    output: Annotated[
        Path, typer.Option("-o", "--output", help=".gif, .webp or .apng; .mp4 where ffmpeg is installed")
    ] = Path("walk.gif"),
) -> None:
    """Film the way between samples of one class, along great circles of the latent space."""
    from PIL import Image

    from pipelines._stage import StageError

    generator = load_generator(model_uri)
    try:
        spec = generator.spec
        check_file(output, *MOVING, ".png", picture=False)
        made = generator.interpolate(
            [*range(stops), 0],
            steps,
            seed=seed,
            label=_class(label, spec.classes),
            attributes=_attributes(attribute, spec.attributes),
            truncation=truncation,
        )
        pictures = pictures_of(generator, made[:-1])  # the last is the first
        times = max(1, -(-width // pictures[0].width))
        size = (pictures[0].width * times, pictures[0].height * times)
        frames = [picture.convert("RGB").resize(size, Image.Resampling.NEAREST) for picture in pictures]
        write_film(frames, fps, output)
    except ValueError as error:
        raise StageError(str(error)) from error
    typer.echo(f"{output}: {len(frames)} frames between {stops} samples of {model_uri}, seed {seed}")


@one_line_errors
def answer(
    model_uri: ModelURI,
    name: Annotated[str, typer.Argument(help="which answer, such as score")],
    files: Annotated[list[Path], typer.Argument(help="an example each: an image, or a line of text")],
) -> None:
    """Print what a model says of examples: a line for each file, the answer first."""
    from pipelines._stage import StageError

    generator = load_generator(model_uri)
    known = [answer for answer, shape in generator.answer_shapes().items() if len(shape) < 2]
    try:
        if name not in known:
            raise ValueError(f"{name!r} is not one of this model's answers; known: {', '.join(known) or 'none'}")
        if generator.translates:
            raise ValueError("examples that have given parts cannot be read from files: ask the registered model")
        answers = generator.answer(_of_files(files, generator.spec, "sample", "files"))[name]
    except ValueError as error:
        raise StageError(str(error)) from error
    for file, answered in zip(files, answers.tolist(), strict=True):
        numbers = answered if isinstance(answered, list) else [answered]
        typer.echo("\t".join([*(f"{number:.6g}" for number in numbers), str(file)]))


# -- making --------------------------------------------------------------------------------------------------


def _chunks(generator: Generator, n: int, seed: int, where: Any, options: dict[str, Any]) -> Iterator[Made]:
    """Samples and their conditions, a chunk at a time."""
    start = 0
    for chunk in generator.stream(n, where=where, seed=seed, **options):
        rows = slice(start, start + len(chunk))
        yield {"sample": chunk, **generator.conditions(n, options["label"], options["attributes"], rows)}
        start = rows.stop


def _fill(
    model_uri: str,
    generator: Generator,
    n: int,
    seed: int,
    options: dict[str, Any],
    folder: Path,
    rows_per_shard: int | None,
    ray_address: str | None,
) -> None:
    """Write the shards of samples that are missing in the folder."""
    from ganlib.scratch import scratch_folder
    from pipelines import batch
    from pipelines.loading import generator_files
    from pipelines.model_registry import folder_sha256

    attributes = options["attributes"]
    # what cannot be made is said before a file is written
    generator.sample(n, seed=seed, rows=slice(0, 1), **options)
    with scratch_folder() as scratch:
        files = generator_files(model_uri, Path(scratch))
        request = batch.Request(
            folder_sha256(files),
            n,
            seed,
            batch.shard_size(generator, rows_per_shard),
            options["label"],
            None if attributes is None else tuple(attributes.tolist()),
            options["truncation"],
        )
        missing = batch.missing_shards(folder, request)
        if here := len(request.names) - len(missing):
            typer.echo(f"{folder}: {here} of {len(request.names)} shards are there", err=True)
        todo = sum(rows.stop - rows.start for rows in map(request.rows, missing))
        made = batch.write_shards(generator, files, request, missing, folder, ray_address)
        for _ in progress(made, todo, folder.name, int):
            pass


def _show_made(generator: Generator, paths: list[Path], output: Path, fps: int, **options: Any) -> None:
    """What is made of all files, in one picture, or as a film where it moves; `options` of `Generator.sample`."""
    spec, n = generator.spec, len(paths)
    check_file(output, *(() if spec.kind.film is None else MOVING))
    check_not_given([output], paths)
    parts = _given(paths, spec)
    made = {**parts, "sample": generator.sample(n, given=parts, **options)["sample"]}
    if spec.kind.film is not None and output.suffix.lower() in MOVING:
        write_film(spec.kind.film(spec.sample, made), fps, output)
    else:
        save_picture(spec.kind.preview(spec.sample, made, math.ceil(math.sqrt(n))), output)


def _translate(generator: Generator, paths: list[Path], output: Path, **options: Any) -> Iterator[tuple[Path, str]]:
    """What is made of each file, in its size, as a picture of its own: `output`, or in the folder of that name where
    there are several files, or where it is one. Yields each picture's path and a sentence about it. The `options` are
    those of `Generator.sample_any_size`."""
    from ganlib.sources._source import printable

    names = [f"{path.stem}.png" for path in paths]
    picture = generator.spec.kind.picture
    assert picture is not None
    into_folder = len(paths) > 1 or output.is_dir()
    if into_folder and len(set(names)) < len(names):
        raise ValueError("--given: two files would be written under one name; give them one after the other")
    if into_folder and output.is_file():
        raise ValueError(f"--output: {output}: expected a folder for {len(paths)} pictures, found a file")
    targets = [output / name for name in names] if into_folder else [output]
    for path in paths:
        if not path.is_file():
            found = "a folder" if path.is_dir() else "nothing there"
            raise ValueError(f"--given: {printable(path)}: expected a picture, found {found}")
    check_not_given(targets, paths)
    if not into_folder:
        check_file(output)
    for path in paths:  # a file that cannot be read is said before the first is translated
        _given([path], generator.spec)
    if into_folder:
        output.mkdir(parents=True, exist_ok=True)
    for target, path in zip(targets, paths, strict=True):
        made = generator.sample_any_size(_given([path], generator.spec), **options)
        save_picture(picture(generator.spec.sample, made), target)
        size = " x ".join(map(str, made.shape[:1:-1]))
        yield target, f"{printable(target)}: made of {printable(path)}, {size}"


# -- reading what is asked -----------------------------------------------------------------------------------


def _where(conditions: list[str] | None, generator: Generator) -> Any:
    try:
        return generator.where(conditions) if conditions else None
    except ValueError as error:
        raise ValueError(f"--{error}") from None


def _given(paths: list[Path], spec: Spec) -> dict[str, Any]:
    """The given part of as many examples as there are files, as networks see it."""
    if len(spec.given) > 1:
        raise ValueError(f"--given: {spec.modality} data cannot be read from files, one for each example")
    return _of_files(paths, spec, spec.given[0], "--given")


def _of_files(paths: list[Path], spec: Spec, part: str, argument: str) -> dict[str, Any]:
    """A part of as many examples as there are files, as networks see it."""
    import numpy as np
    import torch

    from ganlib.sources._source import printable

    take = spec.kind.take
    if take is None:
        raise ValueError(f"{argument}: {spec.modality} data cannot be read from files, one for each example")
    stored = []
    for path in paths:
        try:
            stored.append(take(spec.sample, part, path))
        except OSError as error:
            raise ValueError(f"{argument}: {printable(path)}: {error.strerror or error}") from error
        except ValueError as error:
            raise ValueError(f"{argument}: {printable(path)}: {error}") from error
    return {part: spec.kind.decode(spec.sample, part, torch.from_numpy(np.stack(stored)))}


def _class(label: str | None, classes: tuple[str, ...]) -> int | None:
    """The index of the class that is asked for by its name, or as #3; None: classes in turn."""
    from ganlib.data._classes import label_of

    try:
        return None if label is None else label_of(classes, label)
    except ValueError as error:
        raise ValueError(f"--label: {error}") from None


def _attributes(asked: list[str] | None, names: tuple[str, ...]) -> Any:
    """`NAME=NUMBER`s as attributes in the order of `names`, or None."""
    from pipelines.attributes import attributes_of, numbers_of

    try:
        return attributes_of(names, numbers_of(asked)) if asked else None
    except ValueError as error:
        raise ValueError(f"--attribute: {error}") from None
