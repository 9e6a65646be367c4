"""`ganlib …`. Each command imports what it needs when it runs, so that help comes at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.commands import drift, export, lineage, models, samples, serve
from pipelines.commands._common import one_line_errors

__all__ = ["app"]

app = typer.Typer(
    help="Check, sample, compare, promote, export and serve the GANs that the pipeline (`dvc repro`) trains.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
params_app = typer.Typer(help="What params.yaml and params/ say.", no_args_is_help=True)
app.add_typer(params_app, name="params")
app.add_typer(models.app, name="models")
app.add_typer(lineage.app, name="lineage")
for _command in (
    samples.sample,
    samples.interpolate,
    samples.answer,
    export.export,
    serve.serve,
    models.approve,
    drift.drift,
):
    app.command()(_command)


@params_app.command("check")
@one_line_errors
def check_params(
    file: Annotated[Path, typer.Option("--file", "-f", help="the file to check")] = Path("params.yaml"),
    estimate: Annotated[
        bool, typer.Option("--estimate", help="say what training takes here, by a few real steps on the prepared data")
    ] = False,
) -> None:
    """Print what a run would use, as YAML, or what is wrong with the file and the folder `params` next to it."""
    import io

    from ruamel.yaml import YAML

    from ganlib.config import load_params

    params = load_params(file)
    if estimate:
        from pipelines._stage import PREPARED, REFERENCE
        from pipelines.estimate import estimate as estimated

        typer.echo("\n".join(estimated(params, PREPARED, REFERENCE).lines()))
        return
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.sort_base_mapping_type_on_output, yaml.width = False, 120
    yaml.dump(params.chosen(), text := io.StringIO())
    typer.echo(text.getvalue(), nl=False)


@app.command()
@one_line_errors
def register() -> None:
    """Register the model in outputs/ if the tracking store lacks it: after a clone and `dvc pull`, or with a new store.

    In the clone that trained it, `dvc repro` has registered it already.
    """
    from ganlib.config import load_params
    from pipelines.registered import ensure_registered

    raise typer.Exit(ensure_registered(load_params()))


@app.command()
@one_line_errors
def clean(
    delete: Annotated[bool, typer.Option("--delete", help="delete what is listed")] = False,
    days: Annotated[float, typer.Option(min=0, help="how long a run must not have changed")] = 7.0,
) -> None:
    """List what earlier runs left: checkpoints, Ray's session folders, scratch folders of killed processes."""
    from ganlib.config import load_params
    from pipelines.clean import leftovers
    from pipelines.training import storage

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
@one_line_errors
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
@one_line_errors
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


if __name__ == "__main__":
    app()
