"""`ganlib …`. Each command imports what it needs when it runs, so that help comes at once."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from torch import Tensor

    from ganlib.data._spec import Spec
    from ganlib.export import Generator

__all__ = ["app"]

app = typer.Typer(
    help="Look after GANs that DVC, Ray and MLflow make.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
params_app = typer.Typer(help="What params.yaml and params/ say.", no_args_is_help=True)
app.add_typer(params_app, name="params")

ModelURI = Annotated[
    str,
    typer.Argument(metavar="MODEL_URI", help="models:/NAME@ALIAS, models:/NAME/VERSION, or a generator's folder"),
]


def _one_line_errors(command: Callable[..., None]) -> Callable[..., None]:
    """What a person can mend is said in a line, with exit status 1."""

    @functools.wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        from ganlib.config import ConfigError
        from pipelines._stage import StageError, spoken

        try:
            command(*args, **kwargs)
        except (ConfigError, StageError, OSError) as error:
            typer.echo(f"ganlib: {spoken(error)}", err=True)
            raise typer.Exit(1) from error

    return guarded


@params_app.command("check")
@_one_line_errors
def check_params(
    file: Annotated[Path, typer.Option("--file", "-f", help="the file to check")] = Path("params.yaml"),
) -> None:
    """Print what a run would use, as YAML, or what is wrong with the file and the folder `params` beside it."""
    import sys

    from ruamel.yaml import YAML

    from ganlib.config import load_params

    params = load_params(file)
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.sort_base_mapping_type_on_output, yaml.width = False, 120
    yaml.dump(params.chosen(), sys.stdout)


@app.command()
@_one_line_errors
def sample(
    model_uri: ModelURI,
    n: Annotated[int, typer.Option("-n", help="how many; images given: as many as these")] = 64,
    seed: Annotated[int, typer.Option(help="the same seed gives the same samples")] = 0,
    label: Annotated[
        str | None, typer.Option(help="a class by its name, or #3 for that of index 3; without it, in turn")
    ] = None,
    attribute: Annotated[
        list[str] | None, typer.Option(help="NAME=NUMBER, repeated for each of the data's; without, as real examples")
    ] = None,
    truncation: Annotated[float | None, typer.Option(help="below 1: more typical, less varied")] = None,
    given: Annotated[list[Path] | None, typer.Option(help="an image to translate; may be repeated")] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="of rows: COLUMN=VALUE, also with <, <=, >, >=, !=; may be repeated")
    ] = None,
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            help="the picture to write; of rows also .csv or .parquet; a folder, if several are restored",
        ),
    ] = Path("grid.png"),
) -> None:
    """Draw samples from a generator, as one picture or as rows."""
    import torch

    from pipelines._stage import StageError

    generator = _generator(model_uri)
    try:
        spec = generator.spec
        if given:
            if label is not None or attribute or truncation is not None:
                raise ValueError("--given: such a generator takes nothing else but a --seed")
            if not generator.translates:
                raise ValueError("--given: this generator makes samples of noise: it is given nothing")
            if generator.takes_any_size:
                _restore(generator, given, seed, output)
                return
            n, parts = len(given), _given(given, spec)
            made = {**parts, "sample": generator.sample(n, given=parts, seed=seed)["sample"]}
        else:
            asked = _class(label, generator.spec.classes)
            told = {"attributes": _attributes(attribute, spec.attributes), "label": asked, "truncation": truncation}
            chunks = generator.stream(n, where=_where(where, spec), seed=seed, **told)
            if output.suffix in (".csv", ".parquet"):
                _write_rows(chunks, generator, output)
                typer.echo(f"{output}: {n} rows of {model_uri}, seed {seed}")
                return
            made = {"sample": torch.cat(list(chunks))}
        in_turn = generator.conditional and label is None and len(generator.spec.classes) <= min(n, 32)
        columns = len(generator.spec.classes) if in_turn else math.ceil(math.sqrt(n))
        _save(spec.kind.preview(spec.sample, made, columns), output)
    except ValueError as error:
        raise StageError(str(error)) from error
    typer.echo(f"{output}: {n} samples of {model_uri}, seed {seed}")


def _save(picture: Any, path: Path) -> None:
    """Write a picture, or nothing. Raises ValueError for a format that is not known by its suffix."""
    partial = path.with_name(f".partial.{path.name}")
    try:
        picture.save(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _where(conditions: list[str] | None, spec: Spec) -> Any:
    if not conditions:
        return None
    if spec.kind.where is None:
        raise ValueError(f"--where: {spec.modality} data have no columns to set conditions on")
    return spec.kind.where(spec.sample, conditions)


def _write_rows(chunks: Iterable[Tensor], generator: Generator, output: Path) -> None:
    """Write samples, as a user knows them, to a CSV or Parquet file, of which a chunk is held at a time."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.csv as pa_csv
    import pyarrow.parquet as pq

    partial, writer, schema = output.with_name(f".partial.{output.name}"), None, None
    try:
        for chunk in chunks:
            shown = generator.present(chunk)
            if not isinstance(shown, pd.DataFrame):
                raise ValueError(
                    f"--output: {generator.spec.modality} data are no rows; expected a picture's name, such as .png"
                )
            table = pa.Table.from_pandas(shown, schema=schema, preserve_index=False)
            if writer is None:
                # a column whose first values are all missing has no type yet
                texts = [pa.field(f.name, pa.string() if pa.types.is_null(f.type) else f.type) for f in table.schema]
                schema = pa.schema(texts)
                kind = pa_csv.CSVWriter if output.suffix == ".csv" else pq.ParquetWriter
                options = pa_csv.WriteOptions(quoting_style="needed")
                writer = kind(partial, schema, **({"write_options": options} if output.suffix == ".csv" else {}))
            writer.write_table(table.cast(schema))
        if writer is not None:
            writer.close()
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)


def _restore(generator: Generator, paths: list[Path], seed: int, output: Path) -> None:
    """What is made of each file, in its size, as a picture of its own: `output`, or in the folder of that name where
    there are several files, or where it is one."""
    names = [f"{path.stem}.png" for path in paths]
    picture = generator.spec.kind.picture
    assert picture is not None
    into_folder = len(paths) > 1 or output.is_dir()
    if into_folder and len(set(names)) < len(names):
        raise ValueError("--given: two files would be written under one name; give them one after the other")
    if into_folder:
        output.mkdir(parents=True, exist_ok=True)
    for name, path in zip(names, paths, strict=True):
        made = generator.sample_any_size(_given([path], generator.spec), seed=seed)
        target = output / name if into_folder else output
        _save(picture(generator.spec.sample, made), target)
        typer.echo(f"{target}: made of {path}, {' x '.join(map(str, made.shape[:1:-1]))}")


def _given(paths: list[Path], spec: Spec) -> dict[str, Any]:
    """The given part of as many examples as there are files, as networks see it."""
    if len(spec.given) > 1:
        raise ValueError(f"--given: {spec.modality} data cannot be read from files, one for each example")
    return _of_files(paths, spec, spec.given[0], "--given")


def _of_files(paths: list[Path], spec: Spec, part: str, argument: str) -> dict[str, Any]:
    """A part of as many examples as there are files, as networks see it."""
    import numpy as np
    import torch

    take = spec.kind.take
    if take is None:
        raise ValueError(f"{argument}: {spec.modality} data cannot be read from files, one for each example")
    stored = []
    for path in paths:
        try:
            stored.append(take(spec.sample, part, path))
        except ValueError as error:
            raise ValueError(f"{argument}: {path}: {error}") from error
    return {part: spec.kind.decode(spec.sample, part, torch.from_numpy(np.stack(stored)))}


@app.command()
@_one_line_errors
def answer(
    model_uri: ModelURI,
    name: Annotated[str, typer.Argument(help="which answer, such as score")],
    files: Annotated[list[Path], typer.Argument(help="an example each, such as an image")],
) -> None:
    """Print what a model says of examples: a line for each file, the answer first."""
    from pipelines._stage import StageError

    generator = _generator(model_uri)
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


@app.command()
@_one_line_errors
def export(
    model_uri: ModelURI,
    format: Annotated[str, typer.Option("-f", "--format", help="onnx, or torch for torch.export")] = "onnx",
    latent: Annotated[bool, typer.Option("--latent", help="of latents as inputs, in place of a seed's key")] = False,
    output: Annotated[Path, typer.Option("-o", "--output", help="the folder to write to")] = Path("export"),
) -> None:
    """Write a generator as one graph, for runtimes without this code, and check that it makes the same samples."""
    import ganlib
    from ganlib.graph import FORMATS, TOLERANCE, GraphError, export_graph
    from ganlib.registry import nearest
    from pipelines._stage import StageError

    if format not in FORMATS:
        raise StageError(f"--format: {format!r} is not one{nearest(format, FORMATS)}; known: {', '.join(FORMATS)}")
    try:
        made = export_graph(ganlib.load(model_uri, "cpu"), output, format, latent=latent)
    except GraphError as error:
        raise StageError(f"{model_uri}: {error}") from error
    except ValueError as error:  # which names the folder
        raise StageError(str(error)) from error
    if not made.agrees:
        made.path.unlink()
        raise StageError(
            f"{model_uri}: {format}: its samples are up to {made.difference:.3g} from the generator's, "
            f"at most {TOLERANCE:g} is allowed"
        )
    typer.echo(f"{made.path}: of {', '.join(made.inputs)}; within {made.difference:.1e} of the generator")


@app.command()
@_one_line_errors
def register() -> None:
    """Register what outputs/ holds where the tracking store lacks it: in a new clone, or with another store."""
    from ganlib.config import load_params
    from pipelines.registered import ensure_registered

    raise typer.Exit(ensure_registered(load_params()))


@app.command()
@_one_line_errors
def lineage(
    model_uri: Annotated[str, typer.Argument(metavar="MODEL_URI", help="models:/NAME@ALIAS or models:/NAME/VERSION")],
) -> None:
    """Compare what a registered model was made from with what lies in this folder; exit status 1 if they differ."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ganlib.config import load_params
    from pipelines import lineage as facts
    from pipelines.loading import default_store
    from pipelines.model_registry import version_by_uri

    version = version_by_uri(default_store(), model_uri)
    prefix = "lineage."
    recorded = {tag.removeprefix(prefix): value for tag, value in version.tags.items() if tag.startswith(prefix)}
    table = Table("fact", "recorded", "here", "", title=f"{version.model} version {version.number}")
    checks = facts.verify(recorded, facts.facts(load_params()))
    styles = {"match": "", "unknown": "yellow", "differs": "red"}
    for check in checks:
        verdict = Text(check.verdict, styles[check.verdict])
        table.add_row(Text(check.fact), Text(check.recorded[:12]), Text(check.here[:12]), verdict)
    Console().print(table)
    if name := recorded.get("dvc_exp_name"):
        commit = facts.experiment_commit(name) or "not here: `dvc exp pull` brings it"
        typer.echo(f"DVC's experiment {name}, which holds what -S changed: {commit}")
    elif recorded.get("git.dirty") == "true":
        typer.echo(
            "git.dirty: true: files were changed that no commit holds; the facts that begin with dvc.lock name them"
        )
    if any(check.verdict == "differs" for check in checks):
        raise typer.Exit(1)


@app.command()
@_one_line_errors
def serve(
    model_uri: ModelURI,
    challenger: Annotated[str | None, typer.Option(help="another model, to be compared with it on the page")] = None,
    host: Annotated[
        str, typer.Option(help="the address to listen at; other than loopback with a token only")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    replicas: Annotated[
        int, typer.Option(min=1, help="processes with the model, each with its share of the cores")
    ] = 1,
    max_pending: Annotated[int, typer.Option(min=1, help="requests that may wait at a replica; others get 429")] = 32,
) -> None:
    """Serve a model over HTTP, with a page to look at it. An alias is followed to new versions.

    Clients have to send the token in the environment's GANLIB_API_TOKEN, if there is one.
    """
    from importlib.util import find_spec

    from ganlib.config import TrackingConfig, load_params
    from ganlib.device import default_device
    from pipelines._stage import StageError
    from pipelines.cluster import local_cpus

    if missing := [name for name in ("fastapi", "prometheus_client", "uvicorn") if find_spec(name) is None]:
        raise StageError(f"{', '.join(missing)}: not installed; `pip install -e '.[serve]'` brings it")
    from pipelines.serve.run import serve_until_stopped
    from pipelines.serve.settings import Settings

    settings = Settings(
        model=model_uri,
        challenger=challenger,
        tracking=load_params().tracking if Path("params.yaml").is_file() else TrackingConfig(),
        replicas=replicas,
        cpus=max(1, local_cpus() // replicas),
        gpus=1 / replicas if default_device().type == "cuda" else 0,
        max_pending=max_pending,
    )
    serve_until_stopped(
        settings,
        host,
        port,
        ready=lambda address: typer.echo(f"{model_uri} at {address}; Ctrl-C ends it"),
        stopping=lambda: typer.echo("answering what was accepted"),
    )


@app.command()
@_one_line_errors
def clean(
    delete: Annotated[bool, typer.Option("--delete", help="delete what is listed")] = False,
    days: Annotated[float, typer.Option(min=0, help="how long a run must not have changed")] = 7.0,
) -> None:
    """List what earlier runs left: checkpoints, Ray's session folders, scratch folders of killed processes."""
    from ganlib.config import load_params
    from pipelines.clean import leftovers
    from pipelines.launch import storage

    total = 0
    for leftover in leftovers(storage(load_params()), days):
        total += leftover.bytes
        typer.echo(f"{leftover.bytes / 1e6:8.1f} MB  {leftover.place}: {leftover.why}")
        if delete:
            leftover.delete()
    if total and not delete:
        typer.echo(f"{total / 1e6:8.1f} MB in all; `ganlib clean --delete` deletes them")
    elif not total:
        typer.echo("nothing is left over")


@app.command()
@_one_line_errors
def doctor(
    address: Annotated[
        str | None, typer.Option(help="of a cluster's dashboard, http://HOST:8265: look at that instead")
    ] = None,
) -> None:
    """Look for what would stop the pipeline, and say what to do about it."""
    from pipelines.doctor import examine, examine_cluster

    failed = False
    for finding in examine_cluster(address, Path.cwd()) if address else examine():
        failed |= finding.status == "fail"
        remedy = f" -> {finding.remedy}" if finding.remedy else ""
        typer.echo(f"{finding.status:4}  {finding.what}{remedy}")
    if failed:
        raise typer.Exit(1)


@app.command()
@_one_line_errors
def submit(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="-- DVC_ARGUMENTS", help="what `dvc` is to do; default: repro")
    ] = None,
    address: Annotated[
        str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="of the cluster's dashboard")
    ] = "http://127.0.0.1:8265",
    follow: Annotated[bool, typer.Option(help="show the log, and bring the results here at the end")] = True,
    pull: Annotated[bool, typer.Option(help="what the DVC remote has, before")] = True,
    push: Annotated[bool, typer.Option(help="what was made to the DVC remote, after")] = True,
) -> None:
    """Run the pipeline as a job of a Ray cluster, with the pipeline's exit status.

    The same submitted again is followed while it runs, brings its results once it has succeeded, and goes on with
    what is kept if it failed.
    """
    from pipelines.submit import submit as submit_job

    status = submit_job(Path.cwd(), address, arguments or [], pull=pull, push=push, wait=follow)
    raise typer.Exit(status)


def _generator(model_uri: str) -> Generator:
    """Raises StageError if the address leads to no generator."""
    import ganlib
    from pipelines._stage import StageError

    try:
        return ganlib.load(model_uri)
    except ValueError as error:
        raise StageError(str(error)) from error


def _class(label: str | None, classes: tuple[str, ...]) -> int | None:
    """The index of the class that is asked for by its name, or as #3; None: classes in turn."""
    from ganlib.data._classes import label_of

    try:
        return None if label is None else label_of(classes, label)
    except ValueError as error:
        raise ValueError(f"--label: {error}") from None


def _attributes(asked: list[str] | None, names: tuple[str, ...]) -> Any:
    """`NAME=NUMBER`s as attributes in the order of `names`, or None."""
    import torch

    if not asked:
        return None
    pairs = [one.partition("=") for one in asked]
    try:
        values = {name: float(number) for name, _, number in pairs}
    except ValueError as error:
        raise ValueError(f"--attribute: expected NAME=NUMBER: {error}") from error
    if sorted(name for name, _, _ in pairs) != sorted(names):
        known = ", ".join(names) or "none, the data have no attributes"
        raise ValueError(f"--attribute: expected each once: {known}; found {', '.join(name for name, _, _ in pairs)}")
    return torch.tensor([values[name] for name in names], dtype=torch.float64)


if __name__ == "__main__":
    app()
