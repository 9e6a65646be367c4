"""`ganlib drift`: new data against those that the champion was trained on."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.commands._common import AsJson, console_for, load_generator, one_line_errors

__all__ = ["drift"]


@one_line_errors
def drift(
    data: Annotated[
        str, typer.Argument(help="a name of params/datasets; a folder like that of `data`; NAME=FOLDER, as NAME's")
    ],
    model: Annotated[
        str | None, typer.Option(metavar="MODEL_URI", help="whose data they are compared with; default: the champion")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say whether new data are still what the champion was trained on; exit status 1 if not."""
    from rich.table import Table

    from ganlib.config import load_params
    from pipelines._stage import json_text
    from pipelines.drift import measure_drift

    params = load_params()
    spec = load_generator(model or f"models:/{params.registered_model}@champion").spec
    found = measure_drift(params, data, spec)
    if as_json:
        typer.echo(json_text(found))
    else:
        table = Table("metric", "new data", "low", "high", "floor", title=f"{data}: {found.examples} examples")
        for section, named in found.metrics.items():
            for name, figures in named.items():
                values = (figures.get(key) for key in ("value", "low", "high", "floor"))
                table.add_row(f"{section}.{name}", *("" if value is None else f"{value:.4g}" for value in values))
        console_for(table).print(table)
        verdict = "not what the model was trained on" if found.drifted else "as what the model was trained on"
        typer.echo(f"{data}: {verdict}, by {found.metric}; {found.rejected} of {found.items} items rejected")
    if found.drifted:
        raise typer.Exit(1)
